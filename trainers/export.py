"""Export a trained transformers folder to one GGUF file, which `embedded:` serves.

    python trainers/export.py FOLDER --out model.gguf --type f16
    python graphs/drt_collect.py --model embedded:model.gguf

The file is written under a temporary name, loaded in llama.cpp and compared with the folder: the tokens of a difficult
text, and the next-token probabilities at positions along it. Only a file that agrees is renamed to --out.
"""

from __future__ import annotations

import os
import sys
import uuid
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated, ClassVar

import typer

from agentsys.commands import command, knob, run_app
from agentsys.display import show
from agentsys.installation import install_command
from agentsys.trainers.gguf_check import BOUNDS, Agreement, compare
from agentsys.trainers.gguf_file import WeightType, check_model, write_gguf
from agentsys.trainers.loading import TrainerError, folder_of
from agentsys.trainers.output import check_folder


@dataclass(frozen=True)
class ExportOptions:
    """The file to write."""

    panel: ClassVar[str] = "Export"

    out: Path = knob(Path("model.gguf"), "GGUF file to write; it appears only when complete")
    type: WeightType = knob("f16", "stored weights: 4 (f32), 2 (f16) or about 1.06 (q8_0) bytes each")
    no_check: bool = knob(
        False, "skip the comparison with the folder (it holds both in memory, the folder's weights in fp32)"
    )


Folder = Annotated[str, typer.Argument(help="transformers folder of a Qwen2 or Llama model (merged, no adapter)")]


def main(folder: Folder, options: ExportOptions) -> None:
    """Write a transformers folder (Qwen2, Llama) as a GGUF file and compare the two."""
    agreement = export(folder, options.out, options.type, check=not options.no_check)
    show(f"written: {options.out} ({options.out.stat().st_size / 1e6:,.1f} MB); use it as embedded:{options.out}")
    if agreement:
        show(
            f"next-token probabilities of the folder and the file at {agreement.positions} positions: "
            f"largest difference {agreement.difference:.2g} (allowed for {options.type}: {BOUNDS[options.type]:g})"
        )


def export(
    folder: str | Path, out: str | Path, weight_type: WeightType = "f16", *, check: bool = True
) -> Agreement | None:
    """Write `folder` to `out`, whole or not at all. Returns the comparison's result, or None without `check`.

    Raises TrainerError for a model that cannot be exported, and if the file and the folder disagree.
    """
    out = Path(out)
    if out.suffix != ".gguf" or out.is_dir():
        raise TrainerError(f"--out {out}: give a file name that ends in .gguf")
    check_folder(out.parent)
    if check and not find_spec("xllamacpp"):
        raise TrainerError(f"the check needs the embedded engine: {install_command('local')}; or give --no-check")
    source = _model_folder(str(folder))
    check_model(source)
    out.parent.mkdir(parents=True, exist_ok=True)
    # A new name each time: the embedded engine caches loaded files by name.
    part = out.with_name(f".{out.stem}-{uuid.uuid4().hex[:8]}.gguf")
    try:
        write_gguf(source, part, weight_type)
        agreement = compare(source, part) if check else None
        if agreement and agreement.difference > BOUNDS[weight_type]:
            raise TrainerError(
                f"a probability differs by {agreement.difference:.2g} (allowed for {weight_type}: "
                f"{BOUNDS[weight_type]:g}); no file was written: try --type f32, or --no-check to write it anyway"
            )
        os.replace(part, out)
    finally:
        part.unlink(missing_ok=True)
    return agreement


def _model_folder(name: str) -> Path:
    """The folder of a merged model. Raises TrainerError for an adapter, naming a merged folder next to it."""
    source = Path(name)
    if (source / "adapter_config.json").exists():
        nearby = [source.parent, *sorted(path for path in source.parent.iterdir() if path.is_dir())]
        merged = [path for path in nearby if path != source and (path / "config.json").exists()]
        fix = f"export the merged model, {merged[0]}" if merged else "merge it first (peft's merge_and_unload)"
        raise TrainerError(f"{name} is a LoRA adapter: {fix}")
    folder = Path(folder_of(name))
    if not folder.is_dir():
        raise TrainerError(f"{name}: no such folder; download a hub model first (hf download {name} --local-dir DIR)")
    return folder


app = command(main, name="train gguf")

if __name__ == "__main__":
    sys.exit(run_app(app))
