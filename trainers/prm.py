"""Train a process reward model (PRM): the probability that a solution is right so far, at the end of each step.

    python trainers/prm.py --rows rows/prm --student qwen2.5-coder-0.5b --lora 16 --out prm

A PRM is the student with one number per token, f(x), in place of next-token logits. At the last token t of a step with
the label y, the share of right solutions among those that begin with it, the loss is the cross-entropy

    L = -y log sigmoid(f_t) - (1 - y) log(1 - sigmoid(f_t))

of soft labels (Math-Shepherd's soft estimation, Wang et al. 2024). Rows hold the engine's ids, so a step ends where the
engine ended it. `eval_accuracy` and `eval_auc` are over the steps of validation rows, whose questions are not trained
on; a step counts as right if its label is at least 0.5. Use the result as `--value prm:prm/model`.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from agentsys.commands import command, knob, run_app
from agentsys.metrics.ranking import area_under_curve
from agentsys.trainers.loading import TrainerError, load_token_classifier, load_tokenizer
from agentsys.trainers.processes import print_once
from agentsys.trainers.row_files import Needs, RowOptions, find_row_files, read_rows
from agentsys.trainers.training import (
    Guarded,
    StudentOptions,
    TrainingOptions,
    add_lora,
    fit,
    memory_errors,
    prepare,
)

if TYPE_CHECKING:
    from datasets import Dataset

COLUMNS: Final = ("input_ids", "step_ends", "step_labels")
NEEDS: Final = Needs("prm", COLUMNS, ("prm",))
NO_LABEL: Final = -100.0
"""Label of a token that ends no labeled step."""


@dataclass(frozen=True)
class SolutionOptions(RowOptions):
    """Rows of solutions with labels at the ends of steps."""

    rows: Path = knob(Path("rows/prm"), "folder with train.parquet and optionally validation.parquet, or a file")


def limit_solutions(rows: Dataset, options: RowOptions) -> Dataset:
    """Solutions of at most --max-length tokens; longer ones are counted, and dropped or truncated.

    A truncated solution keeps the steps that end within the limit. Raises TrainerError if no step is left.
    """
    rows = rows.select_columns(list(COLUMNS))
    long = sum(len(ids) > options.max_length for ids in rows["input_ids"])
    if not long:
        return rows
    if options.too_long == "truncate":
        rows = rows.map(lambda row: _truncate(row, options.max_length), desc="truncating")
    kept = rows.filter(lambda row: len(row["input_ids"]) <= options.max_length and bool(row["step_ends"]))
    print_once(
        f"{long} of {len(rows)} solutions are longer than {options.max_length} tokens: {len(rows) - len(kept)} dropped"
    )
    if not len(kept):
        raise TrainerError(f"no solution has a step within {options.max_length} tokens; raise --max-length")
    return kept


def _truncate(row: Mapping[str, Any], length: int) -> dict[str, Any]:
    count = sum(end < length for end in row["step_ends"])
    return {
        "input_ids": row["input_ids"][:length],
        "step_ends": row["step_ends"][:count],
        "step_labels": row["step_labels"][:count],
    }


@dataclass(frozen=True)
class SolutionCollator:
    """Pads solutions on the right: ids, attention mask, and labels [rows, tokens], NO_LABEL where there is none."""

    pad: int

    def __call__(self, rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        import torch

        length = max(len(row["input_ids"]) for row in rows)
        ids = torch.full((len(rows), length), self.pad)
        mask = torch.zeros((len(rows), length), dtype=torch.long)
        labels = torch.full((len(rows), length), NO_LABEL)
        for i, row in enumerate(rows):
            count = len(row["input_ids"])
            ids[i, :count] = torch.tensor(row["input_ids"])
            mask[i, :count] = 1
            labels[i, torch.tensor(row["step_ends"])] = torch.tensor(row["step_labels"], dtype=torch.float32)
        return {"input_ids": ids, "attention_mask": mask, "labels": labels}


def step_loss(outputs: Any, labels: Any, num_items_in_batch: Any = None) -> Any:
    """The mean cross-entropy of the soft labels over the labeled steps, of a whole optimizer step where it is given."""
    import torch

    known = labels != NO_LABEL
    logits = outputs["logits"].squeeze(-1)[known].float()
    total = torch.nn.functional.binary_cross_entropy_with_logits(logits, labels[known], reduction="sum")
    return total / (known.sum() if num_items_in_batch is None else num_items_in_batch)


def step_measures(prediction: Any) -> dict[str, float]:
    """Accuracy and AUC over all labeled steps of (logits, labels), each [rows, tokens]."""
    logits, labels = prediction.predictions, prediction.label_ids
    known = labels != NO_LABEL
    scores, right = logits[known], labels[known] >= 0.5
    measures = {"accuracy": float(((scores >= 0) == right).mean())}
    area = area_under_curve(scores.tolist(), right.tolist())
    return measures if area is None else {**measures, "auc": area}


def train(rows: SolutionOptions, student: StudentOptions, training: TrainingOptions) -> dict[str, float]:
    """Train on the rows and save the model. Returns the validation metrics. Raises TrainerError."""
    from transformers import Trainer, TrainingArguments, set_seed

    class PRMTrainer(Guarded, Trainer):
        pass

    find_row_files(rows.rows, NEEDS)
    tokenizer = load_tokenizer(student.student)
    splits = {split: limit_solutions(data, rows) for split, data in read_rows(rows.rows, NEEDS, tokenizer).items()}
    run = prepare(
        "Process reward model", TrainingArguments, training, splits, student, rows, lora=student.lora,
        label_names=["labels"],
    )  # fmt: skip
    set_seed(training.seed)  # the head is new
    model = load_token_classifier(student.student, student.dtype)
    trainer = PRMTrainer(
        model=add_lora(model, student.lora, "TOKEN_CLS") if student.lora else model,
        args=run.config,
        train_dataset=splits["train"],
        eval_dataset=splits.get("validation"),
        data_collator=SolutionCollator(tokenizer.pad_token_id),
        processing_class=tokenizer,
        compute_loss_func=step_loss,
        compute_metrics=step_measures,
        preprocess_logits_for_metrics=lambda logits, labels: logits.squeeze(-1),
    )
    return fit(trainer, run, load_token_classifier)


def main(rows: SolutionOptions, student: StudentOptions, training: TrainingOptions) -> None:
    """Train a process reward model on rows of kind prm: token classification at the ends of steps, on exact ids."""
    with memory_errors(training.micro_batch):
        train(rows, student, training)


app = command(main, name="train prm")

if __name__ == "__main__":
    sys.exit(run_app(app))
