"""What all trainers share: options, configuration, a finite loss, and the frame of a training.

A trainer is a class of TRL or transformers with `Guarded` as its first base, and a function that reads its rows, calls
`prepare`, which checks everything that can be checked without weights, loads the student and calls `fit`.
The output folder:

    model/            the student, adapters merged: what `vllm:<folder>` and `transformers:<folder>` take
    adapter/          the LoRA adapter alone, where one was trained
    checkpoint-N/     where --resume continues
    metrics.jsonl, curves.png, report.json, runs/ (TensorBoard), README.md (model card), settings.json
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from agentsys.commands import knob
from agentsys.config import save_config
from agentsys.trainers.loading import DType, TrainerError, load_causal_lm
from agentsys.trainers.output import (
    begun_earlier,
    check_folder,
    check_resumed,
    find_start,
    last_checkpoint,
    save_student,
    write_settings,
)
from agentsys.trainers.processes import count_processes, main_process, print_once
from agentsys.trainers.schedule import BATCH, Schedule, plan_schedule

if TYPE_CHECKING:
    from datasets import Dataset


@dataclass(frozen=True)
class StudentOptions:
    """The model to train."""

    panel: ClassVar[str] = "Student"
    student: str = knob("qwen2.5-coder-0.5b", "folder, catalog name or hub name")
    lora: int = knob(0, "rank of LoRA adapters on all linear layers but the head; 0 trains all weights")
    dtype: DType = knob("float32", "type of the weights during training")

    def __post_init__(self) -> None:
        """Raises TrainerError for a negative rank."""
        if self.lora < 0:
            raise TrainerError(f"--lora {self.lora}: give a rank, such as 16, or 0 to train all weights")


@dataclass(frozen=True)
class TrainingOptions:
    """Options of the training loop; --set gives any other field of the trainer's configuration."""

    panel: ClassVar[str] = "Training"
    default_rate: ClassVar[float] = 2e-5
    """Peak learning rate where none is given and all weights are trained."""
    out: Path = knob(Path("student"), "output folder")
    epochs: float = knob(1.0, "passes over the rows")
    steps: int = knob(-1, "optimizer steps; overrides --epochs")
    learning_rate: float | None = knob(None, "peak learning rate; default 2e-5, and 2e-4 with --lora")
    warmup: float = knob(0.1, "warm-up: a number of steps, or below 1 a share of all steps, rounded up")
    schedule: str = knob("cosine", "a learning-rate schedule of transformers")
    batch: int | None = knob(
        None, "rows per optimizer step and process; default 8, fewer where there would be less than 10 steps"
    )
    micro_batch: int = knob(1, "rows per forward pass; --batch must be a multiple of it")
    seed: int = knob(0, "seed of the row order and of new weights")
    bf16: bool = knob(False, "compute in bfloat16; the weights stay in --dtype")
    gradient_checkpointing: bool = knob(False, "recompute activations: less memory, about 20 % slower")
    log_every: int = knob(1, "steps between lines of metrics.jsonl")
    evaluate_every: int = knob(50, "steps between evaluations on the validation rows")
    checkpoint_every: int = knob(50, "steps between checkpoints")
    checkpoints: int = knob(2, "checkpoints to keep")
    resume: bool = knob(False, "continue from the last checkpoint in --out", once=True)
    set: list[str] = knob((), "NAME=VALUE for another field of the trainer's configuration; repeatable")

    def __post_init__(self) -> None:
        """Raises TrainerError for sizes that do not fit together."""
        if self.micro_batch < 1:
            raise TrainerError(f"--micro-batch {self.micro_batch}: give at least 1")
        if self.batch is not None and (self.batch < 1 or self.batch % self.micro_batch):
            raise TrainerError(f"--batch {self.batch}: give a multiple of --micro-batch {self.micro_batch}")

    @property
    def largest_batch(self) -> int:
        """Rows per step and process, before the schedule lowers them for want of rows."""
        return self.batch or max(self.micro_batch, BATCH - BATCH % self.micro_batch)

    def with_rate(self, lora: int) -> TrainingOptions:
        """These options with a learning rate; by default ten times as high for adapters as for all weights."""
        if self.learning_rate is not None:
            return self
        return replace(self, learning_rate=self.default_rate * (10 if lora else 1))


def make_config(
    kind: Any, training: TrainingOptions, schedule: Schedule | None = None, *, evaluate: bool = False, **more: Any
) -> Any:
    """The trainer's configuration, an instance of `kind`, with `schedule`, or as the options say. Raises TrainerError.

    With `evaluate` the trainer evaluates before the first step and then every `evaluate_every` steps.
    """
    settings = _settings_of(kind, training, evaluate, more) | (schedule.settings if schedule else {})
    try:
        return kind(**settings)
    except (TypeError, ValueError) as err:
        raise TrainerError(f"the trainer's configuration: {' '.join(str(err).split())}") from None


def _settings_of(kind: Any, training: TrainingOptions, evaluate: bool, more: Mapping[str, Any]) -> dict[str, Any]:
    """Fields of the configuration; --set overrides the rest."""
    import torch

    names = {item.name for item in fields(kind)}
    training = training.with_rate(lora=0)
    recompute = "activation_checkpointing"  # called gradient_checkpointing in older transformers
    settings: dict[str, Any] = {
        "output_dir": str(training.out),
        "num_train_epochs": training.epochs,
        "max_steps": training.steps,
        "learning_rate": training.learning_rate,
        "warmup_steps": training.warmup,
        "lr_scheduler_type": training.schedule,
        "per_device_train_batch_size": training.micro_batch,
        "per_device_eval_batch_size": training.micro_batch,
        "gradient_accumulation_steps": training.largest_batch // training.micro_batch,
        "seed": training.seed,
        "bf16": training.bf16,
        recompute if recompute in names else "gradient_checkpointing": training.gradient_checkpointing,
        "logging_steps": training.log_every,
        "logging_nan_inf_filter": False,
        "save_steps": training.checkpoint_every,
        "save_total_limit": training.checkpoints,
        "report_to": ["tensorboard"],
        "use_cpu": not torch.cuda.is_available(),
        "dataloader_pin_memory": torch.cuda.is_available(),
        "remove_unused_columns": False,
        "disable_tqdm": False,
    }
    if evaluate:
        settings |= {"eval_strategy": "steps", "eval_steps": training.evaluate_every}
        settings["eval_on_start"] = not training.resume
    return settings | dict(more) | _parse_set(kind, names, training.set)


def _parse_set(kind: Any, names: set[str], pairs: list[str]) -> dict[str, Any]:
    values: dict[str, Any] = {}
    for pair in pairs:
        name, _, value = pair.partition("=")
        if name not in names:
            raise TrainerError(f"--set {pair}: {kind.__name__} has no field {name!r}")
        try:
            values[name] = json.loads(value)
        except json.JSONDecodeError:
            values[name] = value  # a plain word is a string
    return values


def load_student(options: StudentOptions, seed: int = 0) -> Any:
    """The model; with LoRA a PEFT model initialized from `seed`. Raises TrainerError."""
    from transformers import set_seed

    model = load_causal_lm(options.student, options.dtype)
    set_seed(seed)
    return add_lora(model, options.lora) if options.lora else model


def add_lora(model: Any, rank: int, task: str = "CAUSAL_LM") -> Any:
    """Add adapters of this rank on every linear layer but the head, with alpha twice the rank.

    `task` is one of peft's: with TOKEN_CLS the new head is trained whole.
    """
    from peft import LoraConfig, get_peft_model

    settings = LoraConfig(
        r=rank, lora_alpha=2 * rank, target_modules="all-linear", task_type=task,
        exclude_modules=["score", "classifier"] if task == "TOKEN_CLS" else None,
    )  # fmt: skip
    return get_peft_model(model, settings)


class Guarded:
    """Mixin before a Trainer: a loss or gradient that is not finite stops the training before the weights change."""

    def training_step(self, model: Any, inputs: Any, *rest: Any, **options: Any) -> Any:
        """One forward and backward pass. Raises TrainerError with the step."""
        loss = super().training_step(model, inputs, *rest, **options)  # type: ignore[misc]
        self._check_finite(loss, "loss")
        return loss

    def _get_grad_norm(self, model: Any, grad_norm: Any = None) -> Any:
        norm = super()._get_grad_norm(model, grad_norm=grad_norm)  # type: ignore[misc]
        self._check_finite(norm, "gradient norm")
        return norm

    def _check_finite(self, value: Any, name: str) -> None:
        import math

        if math.isfinite(float(value)):
            return
        step = self.state.global_step  # type: ignore[attr-defined]
        out = Path(self.args.output_dir)  # type: ignore[attr-defined]
        last = last_checkpoint(out)
        advice = f"the last good checkpoint is {last}" if last else "there is no checkpoint yet"
        raise TrainerError(f"the {name} is {float(value)} at step {step + 1}: lower --learning-rate; {advice}")


@dataclass(frozen=True, slots=True)
class Run:
    """A training that can start: all but the weights is checked."""

    method: str
    config: Any
    """The trainer's configuration."""
    schedule: Schedule
    settings: dict[str, Any]
    """All options as they were given, for settings.json and the model card; a resumed training must have the same."""
    checkpoint: Path | None
    """Where a resumed training continues."""


def prepare(
    method: str,
    kind: Any,
    training: TrainingOptions,
    splits: Mapping[str, Dataset],
    *options: Any,
    rows: int | None = None,
    lora: int = 0,
    drop_last: bool = False,
    **more: Any,
) -> Run:
    """Check folder, configuration and schedule before any weights are loaded, and print the schedule.

    `splits` has `train` and optionally `validation`; `rows` is the number of training examples if it is not theirs.
    `more` are fields of the configuration, an instance of `kind`. Raises TrainerError.
    """
    check_folder(training.out)
    checkpoint, before = find_start(training.out, training.resume)
    training, evaluate = training.with_rate(lora), "validation" in splits
    accumulated = any(pair.startswith("gradient_accumulation_steps=") for pair in training.set)
    schedule = plan_schedule(
        _settings_of(kind, training, evaluate, more),
        len(splits["train"]) if rows is None else rows,
        count_processes(),
        fixed_batch=training.batch is not None or accumulated,
        drop_last=drop_last,
        unchanged=begun_earlier(before),
    )
    shared = {"method": method, **_shared_settings(splits["train"], training, *options)}
    if not begun_earlier(before):
        shared["rows_per_step"] = schedule.rows_per_step
    if checkpoint:
        check_resumed(before, shared, {item.name for item in fields(training)})
    config = make_config(kind, training, schedule, evaluate=evaluate, **more)
    for note in (*schedule.notes, schedule.describe()):
        print_once(note)
    return Run(method, config, schedule, shared, checkpoint)


def fit(trainer: Any, run: Run, load: Callable[[str], Any] = load_causal_lm) -> dict[str, float]:
    """Train, and save the student, metrics, curves, report and model card. Returns the final metrics.

    `load` loads the base model again, into which an adapter is merged. Raises TrainerError.
    """
    from agentsys.trainers.reporting import MetricsFile, write_results

    out = Path(run.config.output_dir)
    if trainer.is_fsdp_enabled and run.method == "Distillation":
        raise TrainerError("distillation does not run under FSDP, which rounds the stored teacher: launch without FSDP")
    if main_process():
        write_settings(out / "settings.json", run.settings)
        save_config(out)
    trainer.add_callback(MetricsFile(out))
    trainer.train(resume_from_checkpoint=str(run.checkpoint) if run.checkpoint else None)
    final = _evaluate(trainer)
    save_student(trainer, out, load)
    if main_process():
        validation_rows = len(trainer.eval_dataset) if trainer.eval_dataset is not None else 0
        write_results(out, run.settings, run.schedule, validation_rows, final)
    trainer.accelerator.wait_for_everyone()
    return {name: float(value) for name, value in final.items()}


def _evaluate(trainer: Any) -> dict[str, float]:
    """The metrics of the trained student on the validation rows, which transformers often has computed already."""
    if trainer.eval_dataset is None:
        return {}
    last: dict[str, float] = next((line for line in reversed(trainer.state.log_history) if "eval_loss" in line), {})
    if last.get("step") != trainer.state.global_step:
        return dict(trainer.evaluate())
    return {name: value for name, value in last.items() if name.startswith("eval_")}


def _shared_settings(rows: Dataset, *options: Any) -> dict[str, Any]:
    """The settings that a resumed training must share."""
    ignored = {"resume", "out", "checkpoints", "log_every"}
    flat: dict[str, Any] = {"train_examples": len(rows), "train_sha256": rows_digest(rows)}
    flat["processes"] = count_processes()
    for group in options:
        flat |= {name: str(v) if isinstance(v, Path) else v for name, v in asdict(group).items() if name not in ignored}
    return flat


def rows_digest(rows: Dataset) -> str:
    """Shortened SHA-256 of the rows' ids, by which a resumed training recognizes its data."""
    name = next(name for name in ("input_ids", "prompt_ids", "prompt") if name in rows.column_names)
    digest = hashlib.sha256()
    for batch in rows.select_columns([name]).with_format("arrow").iter(1024):
        for buffer in batch.column(name).combine_chunks().buffers():
            digest.update(buffer or b"")
    return digest.hexdigest()[:16]


def memory_errors(micro_batch: int) -> AbstractContextManager[None]:
    """Turn a failed allocation into a TrainerError that names the options of a language model's training."""
    return allocation_errors(
        f"out of memory: lower --micro-batch (now {micro_batch}) or --max-length, or turn on --gradient-checkpointing, "
        "--bf16 or --lora 16"
    )


@contextmanager
def allocation_errors(message: str) -> Iterator[None]:
    """Turn a failed allocation into a TrainerError with this message, which says which options to change."""
    import torch

    try:
        yield
    except (torch.OutOfMemoryError, MemoryError, RuntimeError) as err:
        text = str(err).lower()
        if isinstance(err, RuntimeError) and not any(w in text for w in ("out of memory", "allocate memory")):
            raise
        raise TrainerError(message) from None
