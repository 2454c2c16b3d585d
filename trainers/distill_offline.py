"""Off-policy distillation from the top-k that trainers/teacher.py stored.

No teacher is in memory, and an epoch costs what an epoch of SFT costs.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from types import MethodType
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from agentsys.commands import knob
from agentsys.trainers.loading import TrainerError, head_width, load_tokenizer
from agentsys.trainers.row_files import (
    TEXT_COLUMNS,
    Needs,
    RowOptions,
    find_row_files,
    limit_length,
    read_row_file,
    score_advice,
)
from agentsys.trainers.training import Guarded, StudentOptions, TrainingOptions, fit, load_student, prepare

if TYPE_CHECKING:
    from datasets import Dataset

Kind = Literal["forward_kl", "reverse_kl", "js", "skewed_forward_kl", "skewed_reverse_kl"]

TOP_K = ("teacher_ids", "teacher_logprobs", "teacher_tail")

NEEDS = Needs("distill", (*TEXT_COLUMNS, *TOP_K), ("sft", "role"))


@dataclass(frozen=True)
class ScoredOptions(RowOptions):
    """Rows with a teacher's top-k."""

    rows: Path = knob(Path("scored"), "output folder of trainers/teacher.py; with --teacher, rows of kind sft or role")
    validation: Path | None = knob(
        None, "the same for validation rows; with --teacher, a Parquet file if the --rows folder has none"
    )


@dataclass(frozen=True)
class DistillOptions:
    """Options of distillation."""

    panel: ClassVar[str] = "Distillation"
    divergence: Kind = knob("forward_kl", "divergence of teacher p and student q")
    beta: float = knob(0.5, "js: weight of the teacher in the mixture")
    skew: float = knob(0.1, "skewed divergences: weight of the first distribution in the mixture")
    kd: float = knob(1.0, "weight of the divergence in the loss, 0-1; the rest is cross-entropy")

    def __post_init__(self) -> None:
        """Raises TrainerError for a share out of range."""
        if not 0 <= self.kd <= 1:
            raise TrainerError(f"--kd {self.kd:g}: give a share from 0 to 1")


def find_scored_files(rows: ScoredOptions) -> dict[str, list[Path]]:
    """The files of scored rows of each split. Only their schemas are read. Raises TrainerError."""
    folders = {"train": (rows.rows, "--rows"), "validation": (rows.validation, "--validation")}
    return {name: _find_shards(folder, option) for name, (folder, option) in folders.items() if folder}


def _find_shards(folder: Path, option: str) -> list[Path]:
    if not folder.exists():
        advice = "trainers/teacher.py (agentsys train teacher) writes it"
        raise TrainerError(f"{option} {folder}: no such folder; {advice}, or --teacher distills without it")
    shards = sorted(folder.glob("scored-*.parquet")) if folder.is_dir() else [folder]
    if not shards:
        files = [file for kind in (".", "sft", "role") if (file := folder / kind / "train.parquet").is_file()]
        advice = score_advice(files[0] if files else Path("rows/sft/train.parquet"))
        raise TrainerError(f"{option} {folder} has no teacher's scores; {advice}")
    manifest = folder / "manifest.json"
    progress = json.loads(manifest.read_text(encoding="utf-8")) if manifest.is_file() else {}
    if not progress.get("complete", True):
        total = progress.get("rows_total", progress.get("rows_in_all"))  # rows_in_all in earlier versions
        done = f"{progress['rows_scored']} of {total} rows are scored"
        raise TrainerError(f"{option} {folder}: {done}; rerun trainers/teacher.py to resume")
    for shard in shards:
        find_row_files(shard, NEEDS, option)
    return shards


def read_scored_splits(rows: ScoredOptions, tokenizer: Any) -> dict[str, Dataset]:
    """Training and validation rows with the teacher's top-k. Raises TrainerError."""
    from datasets import concatenate_datasets

    splits = {}
    for name, shards in find_scored_files(rows).items():
        parts = [read_row_file(shard, tokenizer).select_columns(list(NEEDS.columns)) for shard in shards]
        splits[name] = limit_length(concatenate_datasets(parts), rows)
    return splits


class ScoredCollator:
    """Pads rows, and concatenates the teacher's values of all learned positions of the batch, row after row."""

    def __init__(self, pad_id: int) -> None:
        self.pad_id = pad_id

    def __call__(self, rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
        """`input_ids`, `attention_mask`, `labels` (B, T); `top_ids`, `top_logprobs` (N, k), `tail` (N)."""
        import torch
        from torch.nn.utils.rnn import pad_sequence

        def pad(columns: list[list[int]], value: int) -> Any:
            return pad_sequence([torch.tensor(c) for c in columns], batch_first=True, padding_value=value)

        learned = [[i if m else -100 for i, m in zip(row["input_ids"], row["loss_mask"], strict=True)] for row in rows]
        batch = {
            "input_ids": pad([row["input_ids"] for row in rows], self.pad_id),
            "attention_mask": pad([[1] * len(row["input_ids"]) for row in rows], 0),
            "labels": pad(learned, -100),
        }
        tail = torch.cat([torch.tensor(row["teacher_tail"]) for row in rows])
        batch["tail"] = tail
        for name, column in (("top_ids", "teacher_ids"), ("top_logprobs", "teacher_logprobs")):
            batch[name] = torch.cat([torch.tensor(row[column]) for row in rows]).view(len(tail), -1)
        return batch


def add_topk_loss(model: Any, divergence: Any, kd: float) -> None:
    """Compute the loss from a teacher's top-k in the model's forward, so that it works under DDP and FSDP wrappers.

    With `top_ids` in its inputs, forward returns losses.Losses, summed over the batch, instead of logits. The head is
    applied to learned positions only, a chunk at a time.
    """
    import torch

    from agentsys.trainers.losses import divergence_from_topk

    causal = model.get_base_model() if hasattr(model, "get_base_model") else model
    original = causal.forward

    def forward(self: Any, *, labels: Any = None, top_ids: Any = None, **inputs: Any) -> Any:
        if top_ids is None:
            return original(labels=labels, **inputs)
        top_logprobs, tail = inputs.pop("top_logprobs"), inputs.pop("tail")
        states = self.get_decoder()(**inputs, use_cache=False).last_hidden_state
        if torch.is_autocast_enabled(states.device.type):
            states = states.to(torch.get_autocast_dtype(states.device.type))
        learned = labels[:, 1:] != -100  # position t - 1 predicts token t
        return divergence_from_topk(
            states[:, :-1][learned],
            self.get_output_embeddings().weight,
            top_ids,
            top_logprobs,
            tail,
            divergence,
            weight=kd,
            labels=labels[:, 1:][learned],
            ce_weight=1 - kd,
        )

    causal.forward = MethodType(forward, causal)


def make_offline_trainer(**arguments: Any) -> Any:
    """A transformers Trainer with the loss from stored top-k: the mean over the learned tokens of an optimizer step."""
    import torch
    from transformers import Trainer

    class TopKTrainer(Guarded, Trainer):
        def __init__(self, **options: Any) -> None:
            super().__init__(**options)
            self.model_accepts_loss_kwargs = True  # counts the learned tokens of an accumulated step
            self._sums: dict[bool, Any] = {}

        def compute_loss(
            self, model: Any, inputs: Any, return_outputs: bool = False, num_items_in_batch: Any = None
        ) -> Any:
            losses = model(**inputs)
            count = (inputs["labels"][:, 1:] != -100).sum()
            sums = torch.stack([losses.loss, losses.divergence, losses.cross_entropy, count.float()]).detach()
            self._sums[model.training] = self._sums.get(model.training, 0) + sums
            processes = self.accelerator.num_processes if self.args.average_tokens_across_devices else 1
            tokens, share = (count, 1) if num_items_in_batch is None else (num_items_in_batch, processes)
            loss = losses.loss / tokens * share
            return (loss, losses) if return_outputs else loss

        def prediction_step(self, model: Any, inputs: Any, *rest: Any, **options: Any) -> Any:
            with torch.no_grad(), self.compute_loss_context_manager():
                loss = self.compute_loss(model, self._prepare_inputs(inputs))
            return loss, None, None

        def log(self, logs: dict[str, float], *rest: Any) -> None:
            """Add the means per learned token since the last log, over all processes.

            `eval_loss`, which the Trainer would average over rows, becomes such a mean too.
            """
            training = not any(name.startswith("eval_") for name in logs)
            if training in self._sums:
                sums = self.accelerator.reduce(self._sums.pop(training), "sum").tolist()
                loss, divergence, cross_entropy, count = sums
                prefix = "" if training else "eval_"
                logs[prefix + "divergence"], logs[prefix + "cross_entropy"] = divergence / count, cross_entropy / count
                if not training:
                    logs["eval_loss"] = loss / count
            super().log(logs, *rest)

    return TopKTrainer(**arguments)


def train_offline(
    rows: ScoredOptions, student: StudentOptions, distill: DistillOptions, training: TrainingOptions
) -> dict[str, float]:
    """Distill from stored top-k and save the student. Returns the validation metrics. Raises TrainerError."""
    from transformers import TrainingArguments

    from agentsys.trainers.losses import Divergence

    divergence = Divergence(distill.divergence, distill.beta, distill.skew)
    find_scored_files(rows)
    tokenizer = load_tokenizer(student.student)
    splits = read_scored_splits(rows, tokenizer)
    check_width(head_width(student.student), splits)
    run = prepare(
        "Distillation",
        TrainingArguments,
        training,
        splits,
        student,
        rows,
        distill,
        lora=student.lora,
        label_names=["labels"],
    )
    model = load_student(student, training.seed)
    add_topk_loss(model, divergence, distill.kd)
    trainer = make_offline_trainer(
        model=model,
        args=run.config,
        train_dataset=splits["train"],
        eval_dataset=splits.get("validation"),
        data_collator=ScoredCollator(tokenizer.pad_token_id),
        processing_class=tokenizer,
    )
    return fit(trainer, run)


def measure(rows: ScoredOptions, student: StudentOptions, distill: DistillOptions) -> list[tuple[float, float, int]]:
    """A student's divergence and cross-entropy on each scored row, and the row's number of learned tokens.

    Both are sums over the learned tokens, in nats. Nothing is trained.
    """
    import torch

    from agentsys.trainers.losses import Divergence

    tokenizer = load_tokenizer(student.student)
    data = read_scored_splits(replace(rows, validation=None), tokenizer)["train"]
    model = load_student(student)
    add_topk_loss(model, Divergence(distill.divergence, distill.beta, distill.skew), distill.kd)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    model.eval().to(device)
    collate = ScoredCollator(tokenizer.pad_token_id)
    measures: list[tuple[float, float, int]] = []
    for row in data:
        with torch.inference_mode():
            losses = model(**{name: part.to(device) for name, part in collate([row]).items()})
        measures.append((float(losses.divergence), float(losses.cross_entropy), sum(row["loss_mask"])))
    return measures


def check_width(width: int, splits: dict[str, Dataset]) -> None:
    """Raises TrainerError if the teacher has ids that a student's head of `width` ids lacks."""
    import pyarrow.compute as pc

    for rows in splits.values():
        for batch in rows.select_columns(["teacher_ids"]).with_format("arrow").iter(1024):
            highest = pc.max(pc.list_flatten(batch["teacher_ids"])).as_py()
            if highest is not None and highest >= width:
                raise TrainerError(
                    f"the teacher has token id {highest}, the student {width} ids: take a teacher of its family"
                )
