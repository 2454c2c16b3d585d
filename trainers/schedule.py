"""The schedule of a training, computed before anything is loaded: rows per step, optimizer steps, warm-up.

A schedule that cannot teach is changed, and the change is printed: with fewer rows than a step takes, a step takes
fewer; a warm-up that covers all steps is shortened, because its first step has the learning rate 0. What cannot be
changed for the better (no step, no learning rate) is an error.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import ceil
from typing import Any, Final

from agentsys.trainers.loading import TrainerError

BATCH: Final = 8
"""Rows per optimizer step and process, where --batch does not say otherwise."""

FEW_STEPS: Final = 10
"""With fewer steps than this in a run, the default batch is lowered."""

WITHOUT_WARMUP: Final = ("constant", "greedy", "reduce_lr_on_plateau")
"""Schedules of transformers that ignore the warm-up."""

LARGEST: Final = 1e12
"""Numbers above this are mistakes."""


@dataclass(frozen=True, slots=True)
class Schedule:
    """Optimizer steps of a run, and what they take."""

    rows: int
    steps: int
    batch: int
    """Rows per optimizer step and process."""
    micro_batch: int
    """Rows per forward pass."""
    warmup: int
    """Warm-up steps."""
    learning_rate: float
    processes: int = 1
    notes: tuple[str, ...] = ()
    """One line for each change of what the options say."""

    @property
    def rows_per_step(self) -> int:
        """Rows of an optimizer step in all processes."""
        return self.batch * self.processes

    @property
    def settings(self) -> dict[str, Any]:
        """The fields of transformers' TrainingArguments."""
        return {
            "per_device_train_batch_size": self.micro_batch,
            "gradient_accumulation_steps": self.batch // self.micro_batch,
            "warmup_steps": self.warmup,
        }

    def describe(self) -> str:
        """One line for the reader."""
        steps = f"{_count(self.steps, 'optimizer step')} of {_count(self.rows_per_step, 'row')}"
        rate = f"peak learning rate {self.learning_rate:g}"
        return f"{_count(self.rows, 'row')}, {steps}, {self.warmup} of them warm-up, {rate}"


def plan_schedule(
    settings: Mapping[str, Any],
    rows: int,
    processes: int = 1,
    *,
    fixed_batch: bool = True,
    drop_last: bool = False,
    unchanged: bool = False,
) -> Schedule:
    """The schedule of `rows` rows under `settings`, fields of transformers' TrainingArguments.

    Without `fixed_batch` the batch is also lowered where there would be fewer than FEW_STEPS steps. `drop_last`: the
    trainer leaves out rows that do not fill a step. `unchanged`: batch and warm-up stay as they are, whatever they
    teach. Raises TrainerError for values that are no numbers, and for a run that cannot learn.
    """
    _check_numbers(settings)
    _check(settings)
    full_batch = int(settings["per_device_train_batch_size"]) * int(settings["gradient_accumulation_steps"])
    batch = full_batch if unchanged else _choose_batch(settings, full_batch, rows, processes, fixed_batch, drop_last)
    micro_batch = min(int(settings["per_device_train_batch_size"]), batch)
    steps = _count_steps(settings, rows, batch, micro_batch, processes, drop_last)
    if not steps or (drop_last and rows < batch * processes):
        raise TrainerError(
            f"{_count(rows, 'row')} cannot fill one optimizer step in {processes} processes; start fewer"
        )
    notes = [_batch_note(rows, full_batch, batch, processes, fixed_batch)] if batch != full_batch else []
    warmup, warmup_note = _choose_warmup(settings, steps, unchanged)
    notes += [warmup_note] if warmup_note else []
    rate = float(settings["learning_rate"])
    return Schedule(rows, steps, batch, micro_batch, warmup, rate, processes, tuple(notes))


OPTIONS: Final = {
    "num_train_epochs": "--epochs",
    "max_steps": "--steps",
    "learning_rate": "--learning-rate",
    "warmup_steps": "--warmup",
}
"""Fields whose range `_check` knows -> the options that set them."""

BATCHES: Final = ("per_device_train_batch_size", "gradient_accumulation_steps")


def _check_numbers(settings: Mapping[str, Any]) -> None:
    """Raises TrainerError for a value that is no number of its kind. Only --set can give one of another type."""
    for name in (*OPTIONS, *BATCHES):
        value = settings[name]
        whole = name in (*BATCHES, "max_steps")
        if isinstance(value, bool) or not isinstance(value, int if whole else (int, float)):
            raise TrainerError(f"--set {name}={value}: give a {'whole ' if whole else ''}number")
        if name in BATCHES and value < 1:
            raise TrainerError(f"--set {name}={value}: give at least 1")
        if not abs(value) <= LARGEST:  # also true of NaN
            option = f"{OPTIONS[name]} {value:g}" if name in OPTIONS else f"--set {name}={value}"
            raise TrainerError(f"{option}: give a number up to {LARGEST:g}")


def _check(settings: Mapping[str, Any]) -> None:
    """Raises TrainerError for settings with which nothing can be learned."""
    steps, epochs, rate = settings["max_steps"], settings["num_train_epochs"], settings["learning_rate"]
    if steps == 0 or (steps < 0 and epochs <= 0):
        option = f"--epochs {epochs:g}" if steps else "--steps 0"
        raise TrainerError(f"{option}: no optimizer step, so nothing would be learned; give more than 0")
    if rate <= 0:
        raise TrainerError(f"--learning-rate {rate:g}: nothing would be learned; give more than 0")
    if settings["warmup_steps"] < 0:
        raise TrainerError(f"--warmup {settings['warmup_steps']:g}: give 0 or more")


def _choose_batch(
    settings: Mapping[str, Any], full_batch: int, rows: int, processes: int, fixed: bool, drop_last: bool
) -> int:
    """Rows per step and process: as asked, or as few as give FEW_STEPS steps where that teaches more."""
    short = rows < full_batch * processes
    if settings["max_steps"] > 0:  # the number of steps does not depend on the rows
        return max(1, _multiple(rows // processes, settings)) if short else full_batch
    if fixed and not short:
        return full_batch
    batch = full_batch
    while batch > 1 and _count_steps(settings, rows, batch, None, processes, drop_last) < FEW_STEPS:
        batch = max(1, _multiple(batch // 2, settings))
    return batch


def _multiple(batch: int, settings: Mapping[str, Any]) -> int:
    """The batch, lowered to a multiple of the micro-batch if it has room for one."""
    micro_batch = int(settings["per_device_train_batch_size"])
    return batch - batch % micro_batch if batch > micro_batch else batch


def _count_steps(
    settings: Mapping[str, Any], rows: int, batch: int, micro_batch: int | None, processes: int, drop_last: bool
) -> int:
    """The optimizer steps of the run, as transformers' Trainer counts them."""
    if settings["max_steps"] > 0:
        return int(settings["max_steps"])
    micro_batch = micro_batch or min(int(settings["per_device_train_batch_size"]), batch)
    if drop_last or settings.get("dataloader_drop_last"):
        per_epoch = rows // (batch * processes)
    else:
        per_epoch = ceil(ceil(ceil(rows / micro_batch) / processes) / (batch // micro_batch))
    return ceil(float(settings["num_train_epochs"]) * per_epoch)


def _batch_note(rows: int, full_batch: int, batch: int, processes: int, fixed: bool) -> str:
    each = f" in each of {processes} processes" if processes > 1 else ""
    if rows < full_batch * processes:
        option = f"--batch {full_batch}" if fixed else f"a batch of {full_batch}"
        return f"{_count(rows, 'row')}, fewer than {option}{each}: {_count(batch, 'row')} per optimizer step{each}"
    few = f"{_count(rows, 'row')} give few steps with a batch of {full_batch}{each}"
    return f"{few}: {_count(batch, 'row')} per optimizer step{each}; --batch sets another number"


def _choose_warmup(settings: Mapping[str, Any], steps: int, unchanged: bool) -> tuple[int, str]:
    """Warm-up steps as transformers' TrainingArguments count them, or fewer with a note if they cover all steps."""
    requested = settings["warmup_steps"]
    warmup = int(requested) if requested >= 1 else ceil(steps * requested)
    if unchanged or warmup < steps or str(settings["lr_scheduler_type"]) in WITHOUT_WARMUP:
        return warmup, ""
    shortened = steps // 10
    all_steps = "the only optimizer step" if steps == 1 else f"all {steps} optimizer steps"
    return shortened, f"--warmup {requested:g} covers {all_steps}: {_count(shortened, 'warm-up step')} instead"


def _count(number: int, noun: str) -> str:
    return f"{number:,} {noun}" + ("" if number == 1 else "s")
