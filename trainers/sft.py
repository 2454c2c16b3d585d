"""SFT: next-token loss on the learned tokens of rows. A thin layer on TRL's SFTTrainer.

    python trainers/sft.py --rows rows/sft --student qwen2.5-coder-0.5b --out student

Rows have token ids and a loss mask, so TRL neither tokenizes nor guesses a mask.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from agentsys.commands import command, knob, run_app
from agentsys.trainers.loading import load_tokenizer
from agentsys.trainers.row_files import TEXT_COLUMNS, Needs, RowOptions, find_row_files, limit_length, read_rows
from agentsys.trainers.training import (
    Guarded,
    StudentOptions,
    TrainingOptions,
    fit,
    load_student,
    memory_errors,
    prepare,
)

if TYPE_CHECKING:
    from datasets import Dataset

NEEDS = Needs("sft", TEXT_COLUMNS, ("sft", "role"))


@dataclass(frozen=True)
class SFTOptions:
    """Options of SFT."""

    panel: ClassVar[str] = "SFT"
    packing: bool = knob(False, "pack several rows into one sequence of --max-length; rows do not attend to each other")


def with_labels(rows: Dataset) -> Dataset:
    """Rows with `input_ids` and `labels`, which are -100 for tokens that are not learned."""
    return rows.map(
        lambda row: {"labels": [i if m else -100 for i, m in zip(row["input_ids"], row["loss_mask"], strict=True)]},
        remove_columns=[name for name in rows.column_names if name != "input_ids"],
        desc="labels",
    )


def train(rows: RowOptions, student: StudentOptions, sft: SFTOptions, training: TrainingOptions) -> dict[str, float]:
    """Train on the rows and save the student. Returns the validation metrics. Raises TrainerError."""
    from trl import SFTConfig, SFTTrainer

    class Trainer(Guarded, SFTTrainer):
        pass

    find_row_files(rows.rows, NEEDS)
    tokenizer = load_tokenizer(student.student)
    splits = {
        split: with_labels(limit_length(data, rows)) for split, data in read_rows(rows.rows, NEEDS, tokenizer).items()
    }
    run = prepare(
        "SFT",
        SFTConfig,
        training,
        splits,
        student,
        rows,
        sft,
        rows=count_packed(splits["train"], rows.max_length) if sft.packing else None,
        lora=student.lora,
        max_length=rows.max_length,
        packing=sft.packing,
        eval_packing=False,
    )
    trainer = Trainer(
        model=load_student(student, training.seed),
        args=run.config,
        train_dataset=splits["train"],
        eval_dataset=splits.get("validation"),
        processing_class=tokenizer,
    )
    return fit(trainer, run)


def count_packed(rows: Dataset, length: int) -> int:
    """The number of sequences of at most `length` tokens that TRL packs the rows into."""
    from trl import pack_dataset

    return len(pack_dataset(rows.select_columns(["input_ids"]), length))


def main(rows: RowOptions, student: StudentOptions, sft: SFTOptions, training: TrainingOptions) -> None:
    """Supervised fine-tuning on rows, with loss on the learned tokens only."""
    with memory_errors(training.micro_batch):
        train(rows, student, sft, training)


app = command(main, name="train sft")

if __name__ == "__main__":
    sys.exit(run_app(app))
