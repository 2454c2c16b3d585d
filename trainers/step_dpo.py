"""Step-level DPO: one step of an answer preferred to another after the same prefix. A thin layer on TRL's DPOTrainer.

    python trainers/step_dpo.py --rows rows/step --student qwen2.5-coder-0.5b --lora 16 --out student

The pair (y+, y-) after the prefix x is learned with

    L = -log sigmoid(beta (log pi(y+|x)/ref(y+|x) - log pi(y-|x)/ref(y-|x)))        (Rafailov et al. 2023, eq. 7)

TRL would tokenize texts, and both of its formats spoil a step: a conversation closes the assistant's turn in the middle
of the reasoning and opens a new one, plain strings get an end-of-sequence token after every step. Rows hold the ids
that the engine was sent and wrote, so nothing is tokenized here.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from agentsys.commands import command, knob, run_app
from agentsys.trainers.loading import TrainerError
from agentsys.trainers.training import (
    Guarded,
    RowOptions,
    StudentOptions,
    TrainingOptions,
    configuration,
    fit,
    load_student,
    memory_errors,
    read_rows,
    say,
)

if TYPE_CHECKING:
    from datasets import Dataset

IDS = ("prompt_ids", "chosen_ids", "rejected_ids")
COLUMNS = {name: "give rows of the kind step" for name in IDS}


@dataclass(frozen=True)
class PairOptions(RowOptions):
    """Rows of preference pairs."""

    rows: Path = knob(Path("rows/step"), "folder with train.parquet and perhaps validation.parquet, or a Parquet file")


@dataclass(frozen=True)
class DPOOptions:
    """What only DPO has."""

    panel: ClassVar[str] = "DPO"
    beta: float = knob(0.1, "weight of the implicit KL to the reference: the larger, the closer the student stays")
    loss: str = knob("sigmoid", "a loss_type of TRL's DPO")


@dataclass(frozen=True)
class DPOTraining(TrainingOptions):
    """DPO learns with a smaller rate than SFT."""

    learning_rate: float = knob(1e-6, "peak learning rate; with LoRA ten times as much is usual")


def pairs_that_fit(rows: Dataset, options: RowOptions) -> Dataset:
    """The ids of pairs of at most --max-length tokens, the others counted, then dropped or cut at their end.

    A pair with too long a prefix, or whose cut sides are the same, is dropped. Raises TrainerError if none stay.
    """
    rows = rows.select_columns(list(IDS))
    long = [_length(row) > options.max_length for row in rows]
    if not any(long):
        return rows
    if options.too_long == "cut":
        rows = rows.map(lambda row: _cut(row, options.max_length), desc="cutting")
    kept = rows.filter(lambda row: _length(row) <= options.max_length and row["chosen_ids"] != row["rejected_ids"])
    say(
        f"{sum(long)} of {len(rows)} pairs are longer than {options.max_length} tokens: {len(rows) - len(kept)} dropped"
    )
    if not len(kept):
        raise TrainerError(f"no pair has at most {options.max_length} tokens; raise --max-length")
    return kept


def _length(row: Mapping[str, list[int]]) -> int:
    return len(row["prompt_ids"]) + max(len(row["chosen_ids"]), len(row["rejected_ids"]))


def _cut(row: Mapping[str, list[int]], length: int) -> dict[str, list[int]]:
    left = max(0, length - len(row["prompt_ids"]))
    return {name: row[name][:left] for name in ("chosen_ids", "rejected_ids")}


def pair_trainer(**arguments: Any) -> Any:
    """TRL's DPOTrainer on token ids: everything after the tokenizer is TRL's. Takes what DPOTrainer takes."""
    from trl import DPOTrainer

    class Trainer(Guarded, DPOTrainer):
        def _prepare_dataset(self, dataset: Any, *rest: Any) -> Any:
            return dataset

    return Trainer(**arguments)


def train(rows: PairOptions, student: StudentOptions, dpo: DPOOptions, training: DPOTraining) -> dict[str, float]:
    """Train on the pairs and save the student. Returns the validation metrics. Raises TrainerError.

    Validation reports preference accuracy (`eval_rewards/accuracies`) and margin (`eval_rewards/margins`, in nats times
    beta).
    """
    from transformers import set_seed
    from trl import DPOConfig

    model, tokenizer = load_student(student, training.seed)
    splits = {split: pairs_that_fit(data, rows) for split, data in read_rows(rows.rows, COLUMNS, tokenizer).items()}
    more: dict[str, Any] = {
        "beta": dpo.beta,
        "loss_type": [dpo.loss],
        "max_length": None,
        "precompute_ref_log_probs": not student.lora,  # the reference need not stay in memory beside the student
    }
    if "validation" in splits:
        more |= {"eval_strategy": "steps", "eval_steps": training.evaluate_every}
    trainer = pair_trainer(
        model=model,
        args=configuration(DPOConfig, training, **more),
        train_dataset=splits["train"],
        eval_dataset=splits.get("validation"),
        processing_class=tokenizer,
    )
    set_seed(training.seed)  # the reference's log-probabilities may come from a cache, and then draw no random numbers
    return fit(trainer, "Step-level DPO", training, student, rows, dpo)


def main(rows: PairOptions, student: StudentOptions, dpo: DPOOptions, training: DPOTraining) -> None:
    """Step-level DPO on rows: token ids are handed over, nothing is tokenized again."""
    with memory_errors(training):
        train(rows, student, dpo, training)


if __name__ == "__main__":
    raise SystemExit(run_app(command(main)))
