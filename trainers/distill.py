"""Distillation: the student's next-token distribution is pulled to a teacher's.

    python trainers/teacher.py --rows rows/sft/train.parquet --teacher qwen2.5-coder-1.5b --out scored
    python trainers/distill.py --rows scored --student qwen2.5-coder-0.5b --out student

Off-policy, from the top-k that trainers/teacher.py stored once: no teacher is in memory, and an epoch costs what SFT
costs. With --teacher instead, on-policy: the student answers the rows' prompts itself and the teacher in memory judges
each token (TRL's DistillationTrainer, full vocabulary).

The loss of a learned token is

    kd D(p, q) + (1 - kd) (-log q(token))

with D one of the divergences of trainers/losses.py between teacher p and student q.
"""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from types import MethodType
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from agentsys.commands import command, knob, run_app
from agentsys.trainers.loading import TrainerError, load_causal_lm, load_tokenizer, vocabulary_difference
from agentsys.trainers.training import (
    Guarded,
    RowOptions,
    StudentOptions,
    TrainingOptions,
    configuration,
    fit,
    fit_length,
    load_student,
    memory_errors,
    read_rows,
    say,
)

if TYPE_CHECKING:
    from datasets import Dataset

Kind = Literal["forward_kl", "reverse_kl", "js", "skewed_forward_kl", "skewed_reverse_kl"]
TOP_K = ("teacher_ids", "teacher_logprobs", "teacher_tail")
COLUMNS = {"input_ids": "give rows of the kind sft or role", "loss_mask": "give rows of the kind sft or role"}


@dataclass(frozen=True)
class ScoredOptions(RowOptions):
    """Rows with a teacher's top-k."""

    rows: Path = knob(
        Path("scored"), "output folder of trainers/teacher.py; with --teacher rows of the kind sft or role"
    )
    validation: Path | None = knob(
        None, "the same for validation rows; with --teacher a Parquet file, unless --rows is a folder that has one"
    )


@dataclass(frozen=True)
class DistillOptions:
    """What only distillation has."""

    panel: ClassVar[str] = "Distillation"
    divergence: Kind = knob("forward_kl", "from teacher p to student q")
    beta: float = knob(0.5, "js: weight of the teacher in the mixture")
    skew: float = knob(0.1, "skewed divergences: weight of the first distribution in the mixture")
    kd: float = knob(1.0, "share of the divergence in the loss, the rest is cross-entropy; 0-1")

    def __post_init__(self) -> None:
        """Raises TrainerError for a share out of range."""
        if not 0 <= self.kd <= 1:
            raise TrainerError(f"--kd {self.kd:g}: give a share from 0 to 1")


@dataclass(frozen=True)
class OnPolicyOptions:
    """The student answers, a teacher in memory judges."""

    panel: ClassVar[str] = "On-policy"
    teacher: str = knob("", "folder, catalogue name or hub name; without it the teacher is what was stored")
    answer_tokens: int = knob(256, "tokens of the student's answers at most")


def scored_splits(rows: ScoredOptions, tokenizer: Any) -> dict[str, Dataset]:
    """Training and validation rows with the teacher's top-k. Raises TrainerError."""
    folders = {"train": rows.rows, "validation": rows.validation}
    return {name: fit_length(_scored(folder, tokenizer), rows) for name, folder in folders.items() if folder}


def _scored(folder: Path, tokenizer: Any) -> Dataset:
    from datasets import concatenate_datasets

    shards = sorted(folder.glob("scored-*.parquet")) if folder.is_dir() else [folder]
    if not shards:
        raise TrainerError(f"{folder}: no scored-*.parquet here; trainers/teacher.py scores rows")
    manifest = folder / "manifest.json"
    if manifest.is_file() and not (about := json.loads(manifest.read_text(encoding="utf-8"))).get("complete", True):
        done = f"{about['rows_scored']} of {about['rows_in_all']} rows are scored"
        raise TrainerError(f"{folder}: {done}; run trainers/teacher.py again, it goes on from there")
    needed = COLUMNS | dict.fromkeys(TOP_K, "trainers/teacher.py adds it to rows")
    parts = [read_rows(shard, needed, tokenizer)["train"] for shard in shards]
    return concatenate_datasets([part.select_columns(list(needed)) for part in parts])


class ScoredCollator:
    """Pads rows; the teacher's values are those of all learned positions of the batch, row after row."""

    def __init__(self, pad_id: int) -> None:
        self.pad_id = pad_id

    def __call__(self, rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
        """`input_ids`, `attention_mask`, `labels` (B, T); `top_ids`, `top_logprobs` (N, k), `tail` (N)."""
        import torch
        from torch.nn.utils.rnn import pad_sequence

        def padded(columns: list[list[int]], value: int) -> Any:
            return pad_sequence([torch.tensor(c) for c in columns], batch_first=True, padding_value=value)

        learned = [[i if m else -100 for i, m in zip(row["input_ids"], row["loss_mask"], strict=True)] for row in rows]
        batch = {
            "input_ids": padded([row["input_ids"] for row in rows], self.pad_id),
            "attention_mask": padded([[1] * len(row["input_ids"]) for row in rows], 0),
            "labels": padded(learned, -100),
        }
        tail = torch.cat([torch.tensor(row["teacher_tail"]) for row in rows])
        batch["tail"] = tail
        for name, column in (("top_ids", "teacher_ids"), ("top_logprobs", "teacher_logprobs")):
            batch[name] = torch.cat([torch.tensor(row[column]) for row in rows]).view(len(tail), -1)
        return batch


def add_topk_loss(model: Any, divergence: Any, kd: float) -> None:
    """Give the model's forward the loss from a teacher's top-k, so that it runs inside DDP's and FSDP's wrappers.

    With `top_ids` in its inputs, forward returns trainers.losses.Losses, summed over the batch, in place of logits; the
    head is applied to learned positions only, some at a time.
    """
    import torch

    from agentsys.trainers.losses import divergence_from_topk

    causal = model.get_base_model() if hasattr(model, "get_base_model") else model
    usual = causal.forward

    def forward(self: Any, *, labels: Any = None, top_ids: Any = None, **inputs: Any) -> Any:
        if top_ids is None:
            return usual(labels=labels, **inputs)
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


def offline_trainer(**arguments: Any) -> Any:
    """A transformers Trainer whose loss comes from stored top-k, the mean over the learned tokens of a whole step."""
    import torch
    from transformers import Trainer

    class TopKTrainer(Guarded, Trainer):
        def __init__(self, **given: Any) -> None:
            super().__init__(**given)
            self.model_accepts_loss_kwargs = True  # so that the learned tokens of an accumulated step are counted
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
            """Add the means over the learned tokens since the last log, of all processes.

            `eval_loss`, which the Trainer would weigh by rows, becomes such a mean too.
            """
            training = not any(name.startswith("eval_") for name in logs)
            if training in self._sums:
                sums = self.accelerator.reduce(self._sums.pop(training), "sum").tolist()
                loss, divergence, cross_entropy, count = sums
                mark = "" if training else "eval_"
                logs[mark + "divergence"], logs[mark + "cross_entropy"] = divergence / count, cross_entropy / count
                if not training:
                    logs["eval_loss"] = loss / count
            super().log(logs, *rest)

    return TopKTrainer(**arguments)


def train(
    rows: ScoredOptions, student: StudentOptions, distill: DistillOptions, training: TrainingOptions
) -> dict[str, float]:
    """Distil from stored top-k and save the student. Returns the validation metrics. Raises TrainerError."""
    from transformers import TrainingArguments

    from agentsys.trainers.losses import Divergence

    divergence = Divergence(distill.divergence, distill.beta, distill.skew)
    model, tokenizer = load_student(student, training.seed)
    splits = scored_splits(rows, tokenizer)
    check_width(model, splits)
    add_topk_loss(model, divergence, distill.kd)
    more: dict[str, Any] = {"label_names": ["labels"]}
    if "validation" in splits:
        more |= {"eval_strategy": "steps", "eval_steps": training.evaluate_every}
    trainer = offline_trainer(
        model=model,
        args=configuration(TrainingArguments, training, **more),
        train_dataset=splits["train"],
        eval_dataset=splits.get("validation"),
        data_collator=ScoredCollator(tokenizer.pad_token_id),
        processing_class=tokenizer,
    )
    return fit(trainer, "Distillation", training, student, rows, distill)


def measure(rows: ScoredOptions, student: StudentOptions, distill: DistillOptions) -> list[tuple[float, float, int]]:
    """Divergence and cross-entropy of a student on each scored row, in nats, and the row's learned tokens.

    Both are sums over the row's learned tokens. Trains nothing.
    """
    import torch

    from agentsys.trainers.losses import Divergence

    model, tokenizer = load_student(student)
    data = scored_splits(replace(rows, validation=None), tokenizer)["train"]
    add_topk_loss(model, Divergence(distill.divergence, distill.beta, distill.skew), distill.kd)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    model.eval().to(device)
    collate, found = ScoredCollator(tokenizer.pad_token_id), []
    for row in data:
        with torch.inference_mode():
            losses = model(**{name: part.to(device) for name, part in collate([row]).items()})
        found.append((float(losses.divergence), float(losses.cross_entropy), sum(row["loss_mask"])))
    return found


def check_width(model: Any, splits: dict[str, Dataset]) -> None:
    """Raises TrainerError if the teacher's ids reach beyond the student's head."""
    import pyarrow.compute as pc

    width = model.get_output_embeddings().weight.shape[0]
    for rows in splits.values():
        for batch in rows.select_columns(["teacher_ids"]).with_format("arrow").iter(1024):
            highest = pc.max(pc.list_flatten(batch["teacher_ids"])).as_py()
            if highest is not None and highest >= width:
                raise TrainerError(f"the teacher's ids go up to {highest}, the student has {width}: another family")


def train_on_policy(
    rows: ScoredOptions,
    student: StudentOptions,
    distill: DistillOptions,
    on_policy: OnPolicyOptions,
    training: TrainingOptions,
) -> dict[str, float]:
    """TRL's DistillationTrainer: the student's own answers, the teacher's full distribution. Raises TrainerError.

    TRL knows the generalised JS divergence: forward and reverse KL are its ends. Validation measures it on answers that
    the student samples to the validation prompts: a mean over tokens within a micro-batch, over answers between them.
    """
    from trl import DistillationConfig, DistillationTrainer

    class OnPolicyTrainer(Guarded, DistillationTrainer):
        def _tokenize_prompts(self, prompts: list[list[int]]) -> Any:
            return prompts, None, {}  # rows hold ids: nothing is tokenized again

    betas = {"forward_kl": 0.0, "reverse_kl": 1.0, "js": distill.beta}
    if distill.divergence not in betas or distill.kd != 1:
        raise TrainerError(f"with --teacher: --divergence is one of {', '.join(betas)} and --kd 1; TRL has no other")
    if reason := vocabulary_difference(load_tokenizer(student.student), load_tokenizer(on_policy.teacher)):
        raise TrainerError(f"--teacher {on_policy.teacher}: {reason}")
    model, tokenizer = load_student(student, training.seed)
    splits = prompt_splits(rows, tokenizer)
    needed = training.batch * int(os.environ.get("WORLD_SIZE", "1"))
    if len(splits["train"]) < needed:
        raise TrainerError(f"{len(splits['train'])} prompts do not fill one step of {needed}: lower --batch")
    more: dict[str, Any] = {"beta": betas[distill.divergence], "max_completion_length": on_policy.answer_tokens}
    if "validation" in splits:
        more |= {"eval_strategy": "steps", "eval_steps": training.evaluate_every}
    trainer = OnPolicyTrainer(
        model=model,
        teacher_model=load_causal_lm(on_policy.teacher, student.dtype),
        args=configuration(DistillationConfig, training, logging_strategy="steps", **more),
        train_dataset=splits["train"],
        eval_dataset=splits.get("validation"),
        processing_class=tokenizer,
    )
    return fit(trainer, "On-policy distillation", training, student, rows, distill, on_policy)


def prompt_splits(rows: ScoredOptions, tokenizer: Any) -> dict[str, Dataset]:
    """Prompts of the training rows, and of the validation rows where there are any. Raises TrainerError."""
    splits = read_rows(rows.rows, COLUMNS, tokenizer)
    if rows.validation:
        splits["validation"] = read_rows(rows.validation, COLUMNS, tokenizer)["train"]
    return {split: _prompts(data, rows.max_length) for split, data in splits.items()}


def _prompts(rows: Dataset, longest: int) -> Dataset:
    """What stands before the first learned token of each row."""
    rows = rows.filter(lambda row: 1 in row["loss_mask"])
    prompts = rows.map(lambda row: {"prompt": row["input_ids"][: row["loss_mask"].index(1)]}, desc="prompts")
    kept = prompts.filter(lambda row: len(row["prompt"]) <= longest).select_columns(["prompt"])
    if len(kept) < len(rows):
        say(f"{len(rows) - len(kept)} of {len(rows)} prompts are longer than {longest} tokens: dropped")
    if not len(kept):
        raise TrainerError(f"no prompt has at most {longest} tokens; raise --max-length")
    return kept


def main(
    rows: ScoredOptions,
    student: StudentOptions,
    distill: DistillOptions,
    on_policy: OnPolicyOptions,
    training: TrainingOptions,
) -> None:
    """Distil a teacher into a student: from stored top-k, or on-policy with --teacher."""
    with memory_errors(training):
        if on_policy.teacher:
            train_on_policy(rows, student, distill, on_policy, training)
        else:
            train(rows, student, distill, training)


if __name__ == "__main__":
    raise SystemExit(run_app(command(main)))
