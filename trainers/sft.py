"""SFT: next-token loss on the learned tokens of rows. A thin layer on TRL's SFTTrainer.

    python trainers/sft.py --rows rows/sft --student qwen2.5-coder-0.5b --out student

Rows have token ids and a loss mask, so TRL neither tokenizes nor guesses a mask.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from agentsys.commands import command, knob, run_app
from agentsys.trainers.row_files import RowOptions, limit_length, read_rows
from agentsys.trainers.training import (
    Guarded,
    StudentOptions,
    TrainingOptions,
    fit,
    load_student,
    make_config,
    memory_errors,
)

if TYPE_CHECKING:
    from datasets import Dataset

COLUMNS = {name: "give rows of kind sft or role" for name in ("input_ids", "loss_mask")}


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

    model, tokenizer = load_student(student, training.seed)
    splits = {
        split: with_labels(limit_length(data, rows)) for split, data in read_rows(rows.rows, COLUMNS, tokenizer).items()
    }
    trainer = Trainer(
        model=model,
        args=make_config(
            SFTConfig,
            training,
            evaluate="validation" in splits,
            max_length=rows.max_length,
            packing=sft.packing,
            eval_packing=False,
        ),
        train_dataset=splits["train"],
        eval_dataset=splits.get("validation"),
        processing_class=tokenizer,
    )
    return fit(trainer, "SFT", training, student, rows, sft)


def main(rows: RowOptions, student: StudentOptions, sft: SFTOptions, training: TrainingOptions) -> None:
    """Supervised fine-tuning on rows, with loss on the learned tokens only."""
    with memory_errors(training):
        train(rows, student, sft, training)


app = command(main)

if __name__ == "__main__":
    sys.exit(run_app(app))
