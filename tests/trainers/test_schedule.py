"""The schedule of a training: steps as the trainer takes them, and what is changed where it could not teach."""

from __future__ import annotations

from typing import Any

import pytest
from transformers import Trainer, TrainingArguments

from agentsys.trainers.loading import TrainerError
from agentsys.trainers.schedule import Schedule, plan_schedule
from agentsys.trainers.training import TrainingOptions, make_config


def plan(
    rows: int,
    processes: int = 1,
    *,
    fixed: bool = False,
    drop_last: bool = False,
    unchanged: bool = False,
    **changes: Any,
) -> Schedule:
    settings = {
        "num_train_epochs": 1.0,
        "max_steps": -1,
        "learning_rate": 1e-4,
        "warmup_steps": 0.1,
        "lr_scheduler_type": "cosine",
        "per_device_train_batch_size": 1,
        "gradient_accumulation_steps": 8,
    }
    return plan_schedule(
        settings | changes, rows, processes, fixed_batch=fixed, drop_last=drop_last, unchanged=unchanged
    )


@pytest.mark.parametrize(
    ("rows", "batch", "steps", "warmup"),
    [(1, 1, 1, 0), (4, 1, 4, 1), (12, 1, 12, 2), (20, 2, 10, 1), (73, 8, 10, 1), (1000, 8, 125, 13)],
)
def test_few_rows_get_a_smaller_batch_by_default(rows: int, batch: int, steps: int, warmup: int) -> None:
    schedule = plan(rows)
    assert (schedule.batch, schedule.steps, schedule.warmup) == (batch, steps, warmup)
    assert bool(schedule.notes) == (batch < 8)


def test_a_batch_that_is_asked_for_is_kept_while_the_rows_fill_it() -> None:
    assert (plan(9, fixed=True).batch, plan(9, fixed=True).steps) == (8, 2)
    schedule = plan(5, fixed=True)
    assert (schedule.batch, schedule.steps) == (1, 5)
    assert schedule.notes == ("5 rows, fewer than --batch 8: 1 row per optimizer step",)
    assert plan(5).notes == ("5 rows, fewer than a batch of 8: 1 row per optimizer step",)


def test_a_smaller_batch_is_made_of_whole_micro_batches() -> None:
    schedule = plan(30, per_device_train_batch_size=5, gradient_accumulation_steps=4)
    assert (schedule.batch, schedule.micro_batch, schedule.steps) == (2, 2, 15)
    assert schedule.settings["gradient_accumulation_steps"] == 1
    schedule = plan(70, per_device_train_batch_size=3, gradient_accumulation_steps=5)
    assert (schedule.batch, schedule.micro_batch, schedule.steps) == (6, 3, 12)


def test_a_number_of_steps_needs_no_smaller_batch_than_the_rows() -> None:
    schedule = plan(5, max_steps=100)
    assert (schedule.steps, schedule.batch, schedule.warmup) == (100, 5, 10)
    assert plan(50, max_steps=3).batch == 8


def test_several_processes_share_the_rows() -> None:
    schedule = plan(12, 2, fixed=True)
    assert (schedule.batch, schedule.steps) == (1, 6)
    assert schedule.notes == (
        "12 rows, fewer than --batch 8 in each of 2 processes: 1 row per optimizer step in each of 2 processes",
    )
    assert (plan(320, 2).steps, plan(320, 2).rows_per_step) == (20, 16)


def test_a_warm_up_that_covers_all_steps_is_shortened() -> None:
    schedule = plan(160, warmup_steps=100)
    assert (schedule.steps, schedule.warmup) == (20, 2)
    assert schedule.notes == ("--warmup 100 covers all 20 optimizer steps: 2 warm-up steps instead",)
    assert plan(8, max_steps=1, warmup_steps=1).notes == (
        "--warmup 1 covers the only optimizer step: 0 warm-up steps instead",
    )
    assert plan(160, warmup_steps=10).warmup == 10
    assert (plan(1).warmup, plan(2).warmup, plan(3, warmup_steps=0.9).warmup) == (0, 1, 0)
    assert plan(8, max_steps=1, warmup_steps=5, lr_scheduler_type="constant").notes == (), "it has no warm-up"


@pytest.mark.parametrize("asked", [0, 0.01, 0.1, 0.35, 1, 3, 11])
def test_the_warm_up_is_that_of_transformers(asked: float, tmp_path: Any) -> None:
    """A training that was begun without a schedule of ours is resumed with the warm-up that it had."""
    arguments = TrainingArguments(str(tmp_path), warmup_steps=asked)
    for steps in (12, 23, 30, 125):
        assert plan(1000, max_steps=steps, warmup_steps=asked).warmup == arguments.get_warmup_steps(steps)
    assert plan(1000, max_steps=12).warmup == 2


def test_a_schedule_without_changes_keeps_batch_and_warm_up() -> None:
    schedule = plan(5, unchanged=True, num_train_epochs=4)
    assert (schedule.batch, schedule.steps, schedule.warmup, schedule.notes) == (8, 4, 1, ())
    assert plan(5, unchanged=True, warmup_steps=9).warmup == 9


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"max_steps": "ten"}, "--set max_steps=ten: give a whole number"),
        ({"max_steps": 2.5}, "--set max_steps=2.5: give a whole number"),
        ({"num_train_epochs": float("inf")}, "--epochs inf: give a number up to 1e+12"),
        ({"num_train_epochs": float("nan")}, "--epochs nan: give a number up to 1e+12"),
        ({"num_train_epochs": 1e308}, "--epochs 1e+308: give a number up to 1e+12"),
        ({"num_train_epochs": None}, "--set num_train_epochs=None: give a number"),
        ({"warmup_steps": float("inf")}, "--warmup inf: give a number up to 1e+12"),
        ({"warmup_steps": float("nan")}, "--warmup nan: give a number up to 1e+12"),
        ({"learning_rate": float("nan")}, "--learning-rate nan: give a number up to 1e+12"),
        ({"learning_rate": "fast"}, "--set learning_rate=fast: give a number"),
        ({"per_device_train_batch_size": 0}, "--set per_device_train_batch_size=0: give at least 1"),
        ({"per_device_train_batch_size": True}, "--set per_device_train_batch_size=True: give a whole number"),
        ({"gradient_accumulation_steps": -1}, "--set gradient_accumulation_steps=-1: give at least 1"),
        ({"gradient_accumulation_steps": 10**13}, "--set gradient_accumulation_steps=10000000000000: give a number up"),
    ],
)
def test_what_is_no_number_gets_one_line(changes: dict[str, Any], words: str) -> None:
    with pytest.raises(TrainerError) as error:
        plan(100, **changes)
    assert str(error.value).startswith(words)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"num_train_epochs": 0}, "--epochs 0: no optimizer step, so nothing would be learned"),
        ({"max_steps": 0}, "--steps 0: no optimizer step"),
        ({"learning_rate": 0.0}, "--learning-rate 0: nothing would be learned"),
        ({"warmup_steps": -1}, "--warmup -1: give 0 or more"),
    ],
)
def test_a_run_that_cannot_learn_is_refused(changes: dict[str, Any], words: str) -> None:
    with pytest.raises(TrainerError, match=words):
        plan(100, **changes)


def test_prompts_that_do_not_fill_a_step_of_all_processes_are_refused() -> None:
    assert plan(3, drop_last=True).steps == 3
    for changes in ({}, {"max_steps": 5}):
        with pytest.raises(TrainerError, match="3 rows cannot fill one optimizer step in 4 processes"):
            plan(3, 4, drop_last=True, **changes)


@pytest.mark.parametrize("rows", [1, 5, 7, 12, 33])
@pytest.mark.parametrize(("batch", "micro_batch"), [(None, 1), (4, 2), (6, 3)])
def test_the_steps_are_those_of_transformers(rows: int, batch: int | None, micro_batch: int, tmp_path: Any) -> None:
    from datasets import Dataset
    from torch import nn

    options = TrainingOptions(tmp_path, epochs=1.5, batch=batch, micro_batch=micro_batch)
    settings = make_config(TrainingArguments, options).to_dict()
    schedule = plan_schedule(settings, rows, fixed_batch=batch is not None)
    arguments = make_config(TrainingArguments, options, schedule)
    trainer = Trainer(nn.Linear(1, 1), arguments, train_dataset=Dataset.from_dict({"x": list(range(rows))}))
    *_, steps = trainer.set_initial_training_values(arguments, trainer.get_train_dataloader())
    assert steps == schedule.steps
