"""The output folder of a training: where it starts, its settings, and the saved student.

model/            the student, adapters merged: what `vllm:<folder>` and `transformers:<folder>` take
adapter/          the LoRA adapter alone, where one was trained
checkpoint-N/     where --resume continues
settings.json     what a resumed training must share
"""

from __future__ import annotations

import json
import os
import shlex
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Any, Final

from agentsys.paths import replace_file
from agentsys.trainers.loading import TrainerError, load_causal_lm
from agentsys.trainers.processes import main_process

OLD_SETTINGS: Final = {"retokenise": "retokenize"}
"""Former names in the settings.json of earlier versions -> the names of today."""


def check_folder(folder: Path, option: str = "--out") -> None:
    """Raises TrainerError if `folder` is a file, or cannot be made or written."""
    if folder.exists() and not folder.is_dir():
        raise TrainerError(f"{option} {folder} is a file; give a folder")
    parent = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    if not parent.is_dir():
        raise TrainerError(f"{option} {folder}: {parent} is a file; give another folder")
    if not os.access(parent, os.W_OK | os.X_OK):
        raise TrainerError(f"{option} {folder}: no permission to write in {parent}; give another folder")


def find_start(out: Path, resume: bool) -> tuple[Path | None, dict[str, Any]]:
    """The checkpoint to continue from, if any, and the settings with which its training was begun.

    Raises TrainerError if `resume` does not fit the folder, or the settings are damaged.
    """
    checkpoint = last_checkpoint(out)
    if not resume:
        if checkpoint:
            raise TrainerError(f"{out} has {checkpoint.name}: give --resume to continue from it, or another --out")
    elif not checkpoint:
        raise TrainerError(f"--resume: {out} has no checkpoint; start without --resume")
    else:
        return checkpoint, _read_settings(out / "settings.json")
    return None, {}


def begun_earlier(before: Mapping[str, Any]) -> bool:
    """Whether a version that took batch and warm-up as they were given began the training with these settings."""
    return bool(before) and "rows_per_step" not in before


def check_resumed(before: Mapping[str, Any], settings: Mapping[str, Any], options: Collection[str]) -> None:
    """Raises TrainerError if a resumed training has other settings than before, with the fix for one of `options`."""
    packed = begun_earlier(before) and before.get("packing") and settings.get("packing")
    if packed and before.get("train_sha256") != settings["train_sha256"]:
        raise TrainerError(
            "--resume: an earlier version of agentsys began this training with --packing, and recorded the packed "
            "rows, which this version does not: it cannot be continued; give another --out"
        )
    if name := _changed_setting(before, settings):
        fix = f": {_option_of(name, before.get(name))}," if name in options else ";"
        change = _describe_change(name, before, settings)
        raise TrainerError(f"{change}: --resume needs the same settings{fix} or give another --out")


def _option_of(name: str, value: Any) -> str:
    """What to give on the command line for this value of a setting."""
    option = f"--{name.replace('_', '-')}"
    if value is None or value is False or value == []:
        return f"leave out {option}"
    if value is True:
        return f"give {option}"
    values = value if isinstance(value, list) else [value]
    return "give " + " ".join(f"{option} {shlex.quote(str(one))}" for one in values)


def write_settings(file: Path, settings: Mapping[str, Any]) -> None:
    """Write JSON atomically."""
    file.parent.mkdir(parents=True, exist_ok=True)
    replace_file(file, json.dumps(settings, indent=1, ensure_ascii=False).encode())


def refuse_changes(file: Path, settings: Mapping[str, Any], fix: str) -> None:
    """Raises TrainerError that names a setting which differs from the one in `file`."""
    before = _read_settings(file)
    if name := _changed_setting(before, settings):
        raise TrainerError(f"{_describe_change(name, before, settings)}: {fix}")


def _changed_setting(before: Mapping[str, Any], settings: Mapping[str, Any]) -> str | None:
    """The first setting that is not as before, if any. `before` was read from JSON."""
    now = json.loads(json.dumps(settings))
    return next((name for name in now | before if now.get(name) != before.get(name)), None)


def _describe_change(name: str, before: Mapping[str, Any], settings: Mapping[str, Any]) -> str:
    was, now = ("not given" if group.get(name) is None else group[name] for group in (before, settings))
    return f"{name} was {was} and is {now}"


def _read_settings(file: Path) -> dict[str, Any]:
    """The settings in a file, under the names and values of this version. Raises TrainerError for a damaged file."""
    try:
        settings: dict[str, Any] = dict(json.loads(file.read_text(encoding="utf-8")))
    except (FileNotFoundError, ValueError, TypeError):
        raise TrainerError(f"{file} is missing or damaged; give another --out") from None
    renamed = {OLD_SETTINGS.get(name, name): value for name, value in settings.items()}
    if renamed.get("too_long") == "cut":
        renamed["too_long"] = "truncate"
    return renamed


def last_checkpoint(out: Path) -> Path | None:
    """The newest complete checkpoint, or None. trainer_state.json is written last; a kill may leave it incomplete."""
    complete = [path for path in out.glob("checkpoint-*") if _is_json(path / "trainer_state.json")]
    return max(complete, key=lambda path: int(path.name.rpartition("-")[2]), default=None)


def _is_json(file: Path) -> bool:
    try:
        json.loads(file.read_bytes())
    except (OSError, ValueError):
        return False
    return True


def save_student(trainer: Any, out: Path, load: Callable[[str], Any] = load_causal_lm) -> None:
    """Write `model/`, and `adapter/` where one was trained, with weights in the type of the base model on disk.

    `load` loads the base of an adapter by its name.
    """
    if trainer.is_fsdp_enabled:
        trainer.accelerator.state.fsdp_plugin.set_state_dict_type("FULL_STATE_DICT")
    state = trainer.accelerator.get_state_dict(trainer.model)
    if not main_process():
        return
    model = trainer.accelerator.unwrap_model(trainer.model)
    tokenizer, dtype = trainer.processing_class, stored_dtype(model)
    if hasattr(model, "merge_and_unload"):
        model.save_pretrained(out / "adapter", state_dict=state, selected_adapters=["default"])
        tokenizer.save_pretrained(out / "adapter")
        merged = merge(model.get_base_model().config._name_or_path, out / "adapter", load)
        merged.to(dtype).save_pretrained(out / "model")
    else:
        whole = {name: weight.to(dtype) for name, weight in state.items()}
        model.to(dtype).save_pretrained(out / "model", state_dict=whole)
    tokenizer.save_pretrained(out / "model")


def merge(base: str, adapter: Path, load: Callable[[str], Any] = load_causal_lm) -> Any:
    """The base model with the adapter merged, from disk: the weights in memory may be sharded over processes."""
    from peft import PeftModel

    return PeftModel.from_pretrained(load(base), adapter).merge_and_unload()


def stored_dtype(model: Any) -> Any:
    """The type of the base model's weights on disk."""
    from transformers import AutoConfig

    return AutoConfig.from_pretrained(model.config._name_or_path).dtype
