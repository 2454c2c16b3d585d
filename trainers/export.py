"""The way back to the embedded engine: a trained transformers folder becomes one GGUF file that `embedded:` takes.

    python trainers/export.py FOLDER --out model.gguf --type f16
    python -m agentsys ... --model embedded:model.gguf

The file is written beside its final name, loaded in llama.cpp and compared with the folder: the tokens of a text full
of seams, and the next-token probabilities at positions along it. Only a file that agrees gets its name.
"""

from __future__ import annotations

import asyncio
import os
import sys
import uuid
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, ClassVar, Final

import typer

from agentsys.commands import command, knob, run_app
from agentsys.trainers.gguf_file import WeightType, write_gguf
from agentsys.trainers.loading import TrainerError, folder_of, load_causal_lm, load_tokenizer

BOUNDS: Final[dict[WeightType, float]] = {"f32": 0.01, "f16": 0.01, "q8_0": 0.05}
"""The largest difference of a probability (0-1) that a file may have.

Even with f32 one is left, because llama.cpp's attention computes in fp16: 0.003 with Qwen2.5-Coder-0.5B (f16 0.003,
q8_0 0.015). Without it tiny models agree to 1e-6. A wrong head of a tiny one showed as 0.6.
"""
TOP: Final = 20
"""Tokens compared at each position: the likeliest of either side."""
POSITIONS: Final = 24
CHECK_TEXT: Final = (  # begins with a letter: see _engine_probabilities
    "The lamplighter's 1,204 steps weren't counted;  nobody asks\ttwice.\n\n"
    "他把旧信折成一只船,放进了雨里。¿Y después? 12 años de silencio… 🌧️🚢\n"
    "def walk(n: int) -> str:\n    return 'n' * n  # naïve\n"
    "In the end the river kept what it had been given, and the town kept quiet about the river."
)


@dataclass(frozen=True)
class ExportOptions:
    """What to write."""

    panel: ClassVar[str] = "Export"

    out: Path = knob(Path("model.gguf"), "file to write; it appears whole or not at all")
    type: WeightType = knob("f16", "stored weights: 4 (f32), 2 (f16) or about 1.06 (q8_0) bytes each")
    no_check: bool = knob(False, "do not compare the file with the folder (which takes both in memory, one in fp32)")


@dataclass(frozen=True, slots=True)
class Agreement:
    """What the comparison found: positions looked at, and the largest difference of a probability (0-1)."""

    positions: int
    difference: float


Folder = Annotated[str, typer.Argument(help="transformers folder of a Qwen2 or Llama model (merged, no adapter)")]


def main(folder: Folder, options: ExportOptions) -> None:
    """Write a transformers folder (Qwen2, Llama) as a GGUF file and compare the two."""
    agreement = export(folder, options.out, options.type, check=not options.no_check)
    print(f"written: {options.out} ({options.out.stat().st_size / 1e6:,.1f} MB); use it as embedded:{options.out}")
    if agreement:
        print(
            f"next-token probabilities of the folder and the file at {agreement.positions} positions: "
            f"largest difference {agreement.difference:.2g} ({options.type} may have {BOUNDS[options.type]:g})"
        )


def export(folder: str | Path, out: Path, weight_type: WeightType = "f16", *, check: bool = True) -> Agreement | None:
    """Write `folder` to `out`, whole or not at all; the comparison's result where `check` asks for it.

    Raises TrainerError for a model that cannot be exported, and if the file and the folder disagree.
    """
    source = _model_folder(str(folder))
    if out.suffix != ".gguf":
        raise TrainerError(f"--out {out}: give a name that ends in .gguf")
    out.parent.mkdir(parents=True, exist_ok=True)
    # A new name each time: the embedded engine keeps a loaded file by its name.
    part = out.with_name(f".{out.stem}-{uuid.uuid4().hex[:8]}.gguf")
    try:
        write_gguf(source, part, weight_type)
        agreement = compare(source, part) if check else None
        if agreement and agreement.difference > BOUNDS[weight_type]:
            raise TrainerError(
                f"a probability differs by {agreement.difference:.2g} ({weight_type} may differ by "
                f"{BOUNDS[weight_type]:g}); nothing was written: try --type f32, or --no-check to have the file anyway"
            )
        os.replace(part, out)
    finally:
        part.unlink(missing_ok=True)
    return agreement


def _model_folder(name: str) -> Path:
    """The folder of a merged model. Raises TrainerError for an adapter, naming the merged folder if it is near."""
    given = Path(name)
    if (given / "adapter_config.json").exists():
        near = [given.parent, *sorted(path for path in given.parent.iterdir() if path.is_dir())]
        merged = [path for path in near if path != given and (path / "config.json").exists()]
        fix = f"export the merged model, {merged[0]}" if merged else "merge it first (peft's merge_and_unload)"
        raise TrainerError(f"{name} is a LoRA adapter: {fix}")
    folder = Path(folder_of(name))
    if not folder.is_dir():
        raise TrainerError(f"{name}: no such folder; download a hub model first (hf download {name} --local-dir DIR)")
    return folder


def compare(folder: Path, gguf: Path) -> Agreement:
    """Tokens and next-token probabilities of the folder (transformers, fp32) and the file (llama.cpp).

    Raises TrainerError if llama.cpp cannot load the file, or splits the text into other tokens.
    """
    import torch

    ids = load_tokenizer(str(folder))(CHECK_TEXT, add_special_tokens=False).input_ids
    positions = sorted({round(1 + i * (len(ids) - 1) / (POSITIONS - 1)) for i in range(POSITIONS)})
    found = asyncio.run(_engine_probabilities(gguf, ids, positions))
    with torch.no_grad():
        logits = load_causal_lm(str(folder))(torch.tensor([ids])).logits[0]
    expected = logits.float().softmax(-1)
    return Agreement(
        len(positions), max(_difference(expected[n - 1], likely) for n, likely in zip(positions, found, strict=True))
    )


def _difference(expected: Any, likely: dict[int, float]) -> float:
    """Largest difference over the likeliest tokens of both sides."""
    least = min(likely.values())  # a token that llama.cpp leaves out has at most this much
    differences = [abs(float(expected[token]) - value) for token, value in likely.items()]
    for value, token in zip(*(part.tolist() for part in expected.topk(min(TOP, len(expected)))), strict=True):
        if token not in likely:
            differences.append(max(0.0, value - least))
    return max(differences)


async def _engine_probabilities(gguf: Path, ids: list[int], positions: list[int]) -> list[dict[int, float]]:
    """For each position n: llama.cpp's likeliest tokens after the first n ids, with their probabilities."""
    from math import exp

    from agentsys.models.engines import EmbeddedEngine

    engine = EmbeddedEngine(str(gguf), slots=1, context=1024)
    try:
        try:
            served = await engine.serve()
        except RuntimeError as err:
            raise TrainerError(f"llama.cpp cannot check the file: {' '.join(str(err).split())}") from None
        assert served.tokenizer is not None, "llama.cpp always tells its tokenizer"
        others = await served.tokenizer.encode(CHECK_TEXT, special=False)
        if others != ids:
            first = next((i for i, (a, b) in enumerate(zip(others, ids, strict=False)) if a != b), "the end")
            raise TrainerError(f"llama.cpp splits the test text into other tokens than the folder, from token {first}")
        rows = []
        for n in positions:
            # The choice is forced to a plain token, for a stop token or half a character comes back without its
            # probabilities; those are of the model, before any bias.
            forced = {"logit_bias": [[ids[0], 1000.0]], "temperature": 0}
            body = {"prompt": ids[:n], "n_predict": 1, "n_probs": TOP, "cache_prompt": True, **forced}
            answer = await served.endpoint.post("/completion", body)
            entries = answer["completion_probabilities"][0]["top_logprobs"]
            rows.append({entry["id"]: exp(entry["logprob"]) for entry in entries})
        return rows
    finally:
        await engine.aclose()


if __name__ == "__main__":
    sys.exit(run_app(command(main)))
