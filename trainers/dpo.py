"""DPO on the token ids of preference pairs: a thin layer on TRL's DPOTrainer.

The pair (y+, y-) after the prefix x is learned with

    L = -log sigmoid(beta (log pi(y+|x)/ref(y+|x) - log pi(y-|x)/ref(y-|x)))        (Rafailov et al. 2023, eq. 7)

A label may be wrong. Conservative DPO (Mitchell 2023), which MCTS-DPO uses, smooths it by e, the probability of that:

    L = -(1 - e) log sigmoid(h) - e log sigmoid(-h) = -log sigmoid(h) + e h

where h is the argument of the sigmoid above. With `conservative`, e is each pair's `label_smoothing`.

TRL would tokenize texts, and both of its formats damage a step: a conversation closes the assistant's turn in the
middle of the reasoning and opens a new one; plain strings get an end-of-sequence token after every step. Rows hold the
prompt and output ids of the engine, so nothing is tokenized here.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from agentsys.commands import knob
from agentsys.trainers.loading import TrainerError, load_tokenizer
from agentsys.trainers.processes import print_once
from agentsys.trainers.row_files import Needs, RowOptions, find_row_files, read_rows
from agentsys.trainers.training import (
    Guarded,
    StudentOptions,
    TrainingOptions,
    fit,
    load_student,
    prepare,
)

if TYPE_CHECKING:
    from datasets import Dataset

IDS = ("prompt_ids", "chosen_ids", "rejected_ids")

NEEDS = Needs("step-dpo", IDS, ("step",))


@dataclass(frozen=True)
class PairOptions(RowOptions):
    """Rows of preference pairs."""

    rows: Path = knob(Path("rows/step"), "folder with train.parquet and optionally validation.parquet, or a file")


@dataclass(frozen=True)
class DPOOptions:
    """Options of DPO."""

    panel: ClassVar[str] = "DPO"
    beta: float = knob(0.1, "weight of the implicit KL to the reference; larger keeps the student closer to it")
    loss: str = knob("sigmoid", "a loss_type of TRL's DPO")
    conservative: bool = knob(
        False, "cDPO: smooth the label of each pair by its score `label_smoothing` (pairs of MCTS-DPO and Step-DPO)"
    )

    def __post_init__(self) -> None:
        """Raises TrainerError for a loss that has no conservative form."""
        if self.conservative and self.loss != "sigmoid":
            raise TrainerError(f"--conservative goes with --loss sigmoid, not with --loss {self.loss}")


@dataclass(frozen=True)
class DPOTraining(TrainingOptions):
    """Training options with the smaller learning rate of DPO."""

    default_rate: ClassVar[float] = 1e-6
    learning_rate: float | None = knob(None, "peak learning rate; default 1e-6, and 1e-5 with --lora")


def with_label_smoothing(rows: Dataset) -> Dataset:
    """The pairs with a column `label_smoothing`, from their scores.

    Raises TrainerError for a pair without one, or with one that is not in 0..0.5.
    """
    values = [json.loads(scores).get("label_smoothing", -1.0) for scores in rows["scores"]]
    for name, value in zip(rows["id"], values, strict=True):
        if not 0 <= value <= 0.5:
            found = f"has label_smoothing {value:g}" if value != -1 else "has no score label_smoothing"
            raise TrainerError(f"--conservative: the pair {name} {found}; each pair needs one from 0 to 0.5")
    return rows.add_column("label_smoothing", values)


def limit_pairs(rows: Dataset, options: RowOptions) -> Dataset:
    """The ids of pairs of at most --max-length tokens; longer pairs are counted, and dropped or truncated.

    A pair with too long a prefix, or with equal truncated sides, is dropped. Raises TrainerError if none is left.
    """
    rows = rows.select_columns([name for name in (*IDS, "label_smoothing") if name in rows.column_names])
    long = [_length(row) > options.max_length for row in rows]
    if not any(long):
        return rows
    if options.too_long == "truncate":
        rows = rows.map(lambda row: _truncate_pair(row, options.max_length), desc="truncating")
    kept = rows.filter(lambda row: _length(row) <= options.max_length and row["chosen_ids"] != row["rejected_ids"])
    print_once(
        f"{sum(long)} of {len(rows)} pairs are longer than {options.max_length} tokens: {len(rows) - len(kept)} dropped"
    )
    if not len(kept):
        raise TrainerError(f"no pair has at most {options.max_length} tokens; raise --max-length")
    return kept


def _length(row: Mapping[str, list[int]]) -> int:
    return len(row["prompt_ids"]) + max(len(row["chosen_ids"]), len(row["rejected_ids"]))


def _truncate_pair(row: Mapping[str, list[int]], length: int) -> dict[str, list[int]]:
    room = max(0, length - len(row["prompt_ids"]))
    return {name: row[name][:room] for name in ("chosen_ids", "rejected_ids")}


def make_pair_trainer(**arguments: Any) -> Any:
    """TRL's DPOTrainer on token ids, with the arguments of DPOTrainer. Tokenization is left out.

    Pairs with `label_smoothing` have the conservative loss, for which the reference must be computed beforehand.
    """
    from trl import DPOTrainer

    class Trainer(Guarded, DPOTrainer):
        def _prepare_dataset(self, dataset: Any, *rest: Any) -> Any:
            return dataset

        def compute_loss(self, model: Any, inputs: Any, *rest: Any, **more: Any) -> Any:
            smoothing = inputs.pop("label_smoothing", None)
            if smoothing is None:
                return super().compute_loss(model, inputs, *rest, **more)
            outputs: list[Any] = []
            hook = model.register_forward_hook(lambda module, inputs, output: outputs.append(output))
            try:
                loss = super().compute_loss(model, inputs, *rest, **more)
            finally:
                hook.remove()
            [output] = outputs  # the reference is computed beforehand
            logps = output.log_probs[:, 1 - inputs["completion_mask"].size(1) :].sum(dim=1)
            chosen, rejected = logps.chunk(2)
            h = self.beta * (chosen - inputs["ref_chosen_logps"] - rejected + inputs["ref_rejected_logps"])
            return loss + (smoothing * h).mean()

    trainer = Trainer(**arguments)
    trainer.data_collator = _with_smoothing(trainer.data_collator)
    return trainer


def _with_smoothing(collate: Callable[[list[dict[str, Any]]], Any]) -> Callable[[list[dict[str, Any]]], dict[str, Any]]:
    """A collator that also passes the pairs' `label_smoothing`, if they have one."""
    import torch

    def collate_all(examples: list[dict[str, Any]]) -> dict[str, Any]:
        batch = dict(collate(examples))
        if "label_smoothing" in examples[0]:
            batch["label_smoothing"] = torch.tensor([example["label_smoothing"] for example in examples])
        return batch

    return collate_all


def train_dpo(rows: PairOptions, student: StudentOptions, dpo: DPOOptions, training: DPOTraining) -> dict[str, float]:
    """Train on the pairs and save the student. Returns the validation metrics. Raises TrainerError.

    Validation reports preference accuracy (`eval_rewards/accuracies`) and margin (`eval_rewards/margins`, in nats times
    beta).
    """
    from transformers import set_seed
    from trl import DPOConfig

    find_row_files(rows.rows, NEEDS)
    tokenizer = load_tokenizer(student.student)
    pairs = read_rows(rows.rows, NEEDS, tokenizer)
    if dpo.conservative:
        pairs = {split: with_label_smoothing(data) for split, data in pairs.items()}
    splits = {split: limit_pairs(data, rows) for split, data in pairs.items()}
    run = prepare(
        "Step-level DPO",
        DPOConfig,
        training,
        splits,
        student,
        rows,
        dpo,
        lora=student.lora,
        beta=dpo.beta,
        loss_type=[dpo.loss],
        max_length=None,
        # so that the reference does not stay in memory; the conservative loss reads its values
        precompute_ref_log_probs=not student.lora or dpo.conservative,
    )
    trainer = make_pair_trainer(
        model=load_student(student, training.seed),
        args=run.config,
        train_dataset=splits["train"],
        eval_dataset=splits.get("validation"),
        processing_class=tokenizer,
    )
    set_seed(training.seed)  # cached reference log-probabilities draw no random numbers
    return fit(trainer, run)
