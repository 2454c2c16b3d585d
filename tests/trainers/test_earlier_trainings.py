"""A training that an earlier version began, which took batch and warm-up as they were, is continued as it was begun."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from datasets import Dataset
from transformers import TrainingArguments
from trl import SFTConfig

from agentsys.trainers.loading import TrainerError
from agentsys.trainers.output import write_settings
from agentsys.trainers.sft import SFTOptions
from agentsys.trainers.training import Run, StudentOptions, TrainingOptions, prepare

EARLIER = {
    "method": "SFT", "train_examples": 12, "processes": 1, "epochs": 4.0, "steps": -1, "learning_rate": 2e-05,
    "warmup": 0.1, "schedule": "cosine", "batch": 8, "micro_batch": 1, "seed": 0, "bf16": False,
    "gradient_checkpointing": False, "evaluate_every": 50, "checkpoint_every": 50, "set": [], "student": "tiny",
    "lora": 0, "dtype": "float32", "packing": False,
}  # fmt: skip
"""settings.json of an earlier version, without the digest of the rows."""

RESUMED = TrainingOptions(epochs=4, batch=8, resume=True)


def rows_of(count: int) -> Dataset:
    return Dataset.from_dict({"input_ids": [[1, 2, number] for number in range(count)]})


def begin(out: Path, count: int, **changes: Any) -> None:
    """The folder of an unfinished training with settings of an earlier version."""
    from agentsys.trainers.training import rows_digest

    facts = {"train_examples": count, "train_sha256": rows_digest(rows_of(count))}
    write_settings(out / "settings.json", EARLIER | facts | changes)
    (out / "checkpoint-2").mkdir()
    (out / "checkpoint-2" / "trainer_state.json").write_text("{}")


def resume(out: Path, count: int, training: TrainingOptions = RESUMED, *, packing: bool = False, lora: int = 0) -> Run:
    student = StudentOptions("tiny", lora)
    training = replace(training, out=out)
    return prepare("SFT", SFTConfig, training, {"train": rows_of(count)}, student, SFTOptions(packing), lora=lora)


@pytest.mark.parametrize("count", [1, 5, 8, 12, 40])
def test_the_batch_and_the_warm_up_are_those_of_the_beginning(count: int, tmp_path: Path) -> None:
    begin(tmp_path, count)
    run = resume(tmp_path, count)
    assert run.checkpoint == tmp_path / "checkpoint-2"
    assert (run.schedule.batch, run.config.gradient_accumulation_steps) == (8, 8)
    steps = 4 * -(-count // 8)
    assert (run.schedule.steps, run.schedule.notes) == (steps, ())
    assert run.config.warmup_steps == TrainingArguments(str(tmp_path), warmup_steps=0.1).get_warmup_steps(steps)
    write_settings(tmp_path / "settings.json", run.settings)
    assert resume(tmp_path, count).schedule == run.schedule, "also when it is resumed twice"


@pytest.mark.parametrize(
    ("before", "now", "words"),
    [
        (
            {},
            {"batch": None},
            "batch was 8 and is not given: --resume needs the same settings: give --batch 8, or give",
        ),
        (
            {"lora": 4},
            {"learning_rate": None},
            "learning_rate was 2e-05 and is 0.0002: .* --learning-rate 2e-05,",
        ),
        ({"set": ["optim=sgd", "x=a b"]}, {}, "give --set optim=sgd --set 'x=a b', or give another --out"),
        ({"bf16": True}, {}, "bf16 was True and is False: .*: give --bf16,"),
        ({}, {"bf16": True}, "bf16 was False and is True: .*: leave out --bf16,"),
        ({"seed": 3}, {"seed": 0}, "seed was 3 and is 0: .*: give --seed 3,"),
        ({}, {"seed": 3}, "seed was 0 and is 3: .*: give --seed 0,"),
        ({"dtype": "bfloat16"}, {}, "dtype was bfloat16 and is float32: --resume needs the same settings; or give"),
    ],
)
def test_a_setting_that_was_not_given_is_named_with_its_option(
    before: dict[str, Any], now: dict[str, Any], words: str, tmp_path: Path
) -> None:
    begin(tmp_path, 12, **before)
    with pytest.raises(TrainerError, match=words):
        resume(tmp_path, 12, replace(RESUMED, **now), lora=before.get("lora", 0))


def test_packed_rows_of_an_earlier_version_are_refused_with_the_reason(tmp_path: Path) -> None:
    begin(tmp_path, 12, packing=True, train_examples=3, train_sha256="of packed rows")
    with pytest.raises(TrainerError, match=r"an earlier version of agentsys began .* cannot be continued"):
        resume(tmp_path, 12, packing=True)
    with pytest.raises(TrainerError, match="train_examples was 3 and is 12"):
        resume(tmp_path, 12)


@pytest.mark.parametrize("batch", [None, 8])
def test_a_training_of_this_version_keeps_its_lowered_batch(batch: int | None, tmp_path: Path) -> None:
    options = replace(RESUMED, batch=batch)
    run = resume(tmp_path, 5, replace(options, resume=False))
    assert run.schedule.batch < 8
    assert (run.settings["batch"], run.settings["rows_per_step"]) == (batch, run.schedule.batch)
    begin(tmp_path, 5)
    write_settings(tmp_path / "settings.json", run.settings)
    again = resume(tmp_path, 5, options)
    assert again.checkpoint and again.schedule == run.schedule
    with pytest.raises(TrainerError, match=r"batch was .*(leave out --batch|give --batch 8), or give another"):
        resume(tmp_path, 5, replace(RESUMED, batch=4))
