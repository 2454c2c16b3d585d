"""On-policy distillation: TRL's DistillationTrainer on the student's own answers to the rows' prompts.

The teacher is in memory and gives its full distribution at each token that the student has sampled.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from agentsys.commands import knob
from agentsys.trainers.distill_offline import DistillOptions, ScoredOptions
from agentsys.trainers.loading import TrainerError, load_causal_lm, load_tokenizer, vocabulary_difference
from agentsys.trainers.processes import print_once
from agentsys.trainers.row_files import TEXT_COLUMNS, Needs, find_row_files, read_rows
from agentsys.trainers.training import Guarded, StudentOptions, TrainingOptions, fit, load_student, prepare

if TYPE_CHECKING:
    from datasets import Dataset

NEEDS = Needs("distill --teacher", TEXT_COLUMNS, ("sft", "role"))


@dataclass(frozen=True)
class OnPolicyOptions:
    """Options of on-policy distillation."""

    panel: ClassVar[str] = "On-policy"
    teacher: str = knob("", "folder, catalog name or hub name; without it, the stored top-k is used")
    answer_tokens: int = knob(256, "maximum length of the student's answers, in tokens")


def train_on_policy(
    rows: ScoredOptions,
    student: StudentOptions,
    distill: DistillOptions,
    on_policy: OnPolicyOptions,
    training: TrainingOptions,
) -> dict[str, float]:
    """Train with TRL's DistillationTrainer and save the student. Returns the validation metrics. Raises TrainerError.

    TRL has the generalized JS divergence, whose limits are forward and reverse KL. Validation measures it on answers
    that the student samples to the validation prompts: the mean over tokens in a micro-batch, then over answers.
    """
    from trl import DistillationConfig, DistillationTrainer

    class OnPolicyTrainer(Guarded, DistillationTrainer):
        def _tokenize_prompts(self, prompts: list[list[int]]) -> Any:
            return prompts, None, {}  # rows hold ids

    betas = {"forward_kl": 0.0, "reverse_kl": 1.0, "js": distill.beta}
    if distill.divergence not in betas or distill.kd != 1:
        raise TrainerError(
            f"with --teacher, --divergence must be one of {', '.join(betas)} and --kd 1; TRL has no other"
        )
    find_row_files(rows.rows, NEEDS)
    if rows.validation:
        find_row_files(rows.validation, NEEDS, "--validation")
    tokenizer = load_tokenizer(student.student)
    if reason := vocabulary_difference(tokenizer, load_tokenizer(on_policy.teacher)):
        raise TrainerError(f"--teacher {on_policy.teacher}: {reason}")
    splits = read_prompt_splits(rows, tokenizer)
    run = prepare(
        "On-policy distillation",
        DistillationConfig,
        training,
        splits,
        student,
        rows,
        distill,
        on_policy,
        lora=student.lora,
        drop_last=True,
        logging_strategy="steps",
        beta=betas[distill.divergence],
        max_completion_length=on_policy.answer_tokens,
    )
    trainer = OnPolicyTrainer(
        model=load_student(student, training.seed),
        teacher_model=load_causal_lm(on_policy.teacher, student.dtype),
        args=run.config,
        train_dataset=splits["train"],
        eval_dataset=splits.get("validation"),
        processing_class=tokenizer,
    )
    return fit(trainer, run)


def read_prompt_splits(rows: ScoredOptions, tokenizer: Any) -> dict[str, Dataset]:
    """Prompts of the training rows, and of the validation rows where there are any. Raises TrainerError."""
    splits = read_rows(rows.rows, NEEDS, tokenizer)
    if rows.validation:
        splits["validation"] = read_rows(rows.validation, NEEDS, tokenizer)["train"]
    return {split: _prompts(data, rows.max_length) for split, data in splits.items()}


def _prompts(rows: Dataset, longest: int) -> Dataset:
    """The tokens before the first learned one of each row."""
    rows = rows.filter(lambda row: 1 in row["loss_mask"])
    prompts = rows.map(lambda row: {"prompt": row["input_ids"][: row["loss_mask"].index(1)]}, desc="prompts")
    kept = prompts.filter(lambda row: len(row["prompt"]) <= longest).select_columns(["prompt"])
    if len(kept) < len(rows):
        print_once(f"{len(rows) - len(kept)} of {len(rows)} prompts are longer than {longest} tokens: dropped")
    if not len(kept):
        raise TrainerError(f"no prompt has at most {longest} tokens; raise --max-length")
    return kept
