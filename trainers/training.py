"""What all trainers share: options, configuration, a finite loss, checkpoints, and saving of the student.

A trainer is a class of TRL or transformers with `Guarded` as its first base, and a function that calls `fit`.
The output folder:

    model/            the student, adapters merged: what `vllm:<folder>` and `transformers:<folder>` take
    adapter/          the LoRA adapter alone, where one was trained
    checkpoint-N/     where --resume continues
    metrics.jsonl, curves.png, runs/ (TensorBoard), README.md (model card), settings.json
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Final

from agentsys.commands import knob
from agentsys.trainers.loading import DType, TrainerError, load_causal_lm, load_tokenizer

if TYPE_CHECKING:
    from datasets import Dataset

OLD_SETTINGS: Final = {"retokenise": "retokenize"}
"""Former names in the settings.json of earlier versions -> the names of today."""


@dataclass(frozen=True)
class StudentOptions:
    """The model to train."""

    panel: ClassVar[str] = "Student"
    student: str = knob("qwen2.5-coder-0.5b", "folder, catalog name or hub name")
    lora: int = knob(0, "rank of LoRA adapters on all linear layers but the head; 0 trains all weights")
    dtype: DType = knob("float32", "type of the weights during training")


@dataclass(frozen=True)
class TrainingOptions:
    """Options of the training loop; --set gives any other field of the trainer's configuration."""

    panel: ClassVar[str] = "Training"
    out: Path = knob(Path("student"), "output folder")
    epochs: float = knob(1.0, "passes over the rows")
    steps: int = knob(-1, "optimizer steps; overrides --epochs")
    learning_rate: float = knob(2e-5, "peak learning rate")
    warmup: float = knob(0.1, "warm-up: a number of steps, or below 1 a share of all steps")
    schedule: str = knob("cosine", "a learning-rate schedule of transformers")
    batch: int = knob(8, "rows per optimizer step and process")
    micro_batch: int = knob(1, "rows per forward pass; --batch must be a multiple of it")
    seed: int = knob(0, "seed of the row order and of new weights")
    bf16: bool = knob(False, "compute in bfloat16; the weights stay in --dtype")
    gradient_checkpointing: bool = knob(False, "recompute activations: less memory, about 20 % slower")
    log_every: int = knob(1, "steps between lines of metrics.jsonl")
    evaluate_every: int = knob(50, "steps between evaluations on the validation rows")
    checkpoint_every: int = knob(50, "steps between checkpoints")
    checkpoints: int = knob(2, "checkpoints to keep")
    resume: bool = knob(False, "continue from the last checkpoint in --out")
    set: list[str] = knob((), "NAME=VALUE for another field of the trainer's configuration; repeatable")

    def __post_init__(self) -> None:
        """Raises TrainerError for sizes that do not fit together."""
        if self.micro_batch < 1 or self.batch % self.micro_batch:
            raise TrainerError(f"--batch {self.batch}: give a multiple of --micro-batch {self.micro_batch}")


def make_config(kind: Any, training: TrainingOptions, *, evaluate: bool = False, **more: Any) -> Any:
    """The trainer's configuration, an instance of `kind`; --set overrides the rest. Raises TrainerError.

    With `evaluate` the trainer evaluates every `evaluate_every` steps.
    """
    import torch

    names = {item.name for item in fields(kind)}
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
        "gradient_accumulation_steps": training.batch // training.micro_batch,
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
    settings |= more | _parse_set(kind, names, training.set)
    try:
        return kind(**settings)
    except (TypeError, ValueError) as err:
        raise TrainerError(f"the trainer's configuration: {' '.join(str(err).split())}") from None


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


def load_student(options: StudentOptions, seed: int = 0) -> tuple[Any, Any]:
    """The model and its tokenizer; with LoRA a PEFT model initialized from `seed`. Raises TrainerError."""
    from transformers import set_seed

    tokenizer = load_tokenizer(options.student)
    model = load_causal_lm(options.student, options.dtype)
    set_seed(seed)
    return (add_lora(model, options.lora) if options.lora else model), tokenizer


def add_lora(model: Any, rank: int) -> Any:
    """Add adapters of this rank on every linear layer but the head, with alpha twice the rank."""
    from peft import LoraConfig, get_peft_model

    settings = LoraConfig(r=rank, lora_alpha=2 * rank, target_modules="all-linear", task_type="CAUSAL_LM")
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


def fit(trainer: Any, method: str, training: TrainingOptions, *options: Any) -> dict[str, float]:
    """Train, and save the student, metrics, curves and model card. Returns the final metrics. Raises TrainerError.

    All options are written to settings.json and the card; a resumed training must have the same.
    """
    from agentsys.trainers.reporting import MetricsFile, write_results

    out = training.out
    if trainer.is_fsdp_enabled and method == "Distillation":
        raise TrainerError("distillation does not run under FSDP, which rounds the stored teacher: launch without FSDP")
    settings = {"method": method, **_settings(trainer, training, *options)}
    checkpoint = _find_start(out, training, settings)
    trainer.add_callback(MetricsFile(out))
    with memory_errors(training):
        trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
        final = trainer.evaluate() if trainer.eval_dataset is not None else {}
    save_student(trainer, out)
    if main_process():
        write_results(out, settings, final)
    trainer.accelerator.wait_for_everyone()
    return {name: float(value) for name, value in final.items()}


def _settings(trainer: Any, *options: Any) -> dict[str, Any]:
    """The settings that a resumed training must share."""
    ignored = {"resume", "out", "checkpoints", "log_every"}
    flat: dict[str, Any] = {
        "train_examples": len(trainer.train_dataset),
        "train_sha256": rows_digest(trainer.train_dataset),
    }
    flat["processes"] = trainer.accelerator.num_processes
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


def _find_start(out: Path, training: TrainingOptions, settings: Mapping[str, Any]) -> Path | None:
    """The checkpoint to continue from, if any. Raises TrainerError if --resume does not fit the folder."""
    checkpoint = last_checkpoint(out)
    file = out / "settings.json"
    if not training.resume:
        if checkpoint:
            raise TrainerError(f"{out} has {checkpoint.name}: give --resume to continue from it, or another --out")
    elif not checkpoint:
        raise TrainerError(f"--resume: {out} has no checkpoint; start without --resume")
    else:
        refuse_changes(file, settings, "--resume needs the same settings; or give another --out")
    if main_process():
        write_settings(file, settings)
    return checkpoint


def write_settings(file: Path, settings: Mapping[str, Any]) -> None:
    """Write JSON atomically."""
    file.parent.mkdir(parents=True, exist_ok=True)
    part = file.with_name(f".{file.name}.part")
    part.write_text(json.dumps(settings, indent=1, ensure_ascii=False), encoding="utf-8")
    part.replace(file)


def refuse_changes(file: Path, settings: Mapping[str, Any], fix: str) -> None:
    """Raises TrainerError that names a setting which differs from the one in `file`."""
    before, now = _read_settings(file), json.loads(json.dumps(settings))
    if changed := [name for name in now | before if now.get(name) != before.get(name)]:
        name = changed[0]
        raise TrainerError(f"{name} was {before.get(name)} and is {now.get(name)}: {fix}")


def _read_settings(file: Path) -> dict[str, Any]:
    """The settings in a file, under the names and values of this version."""
    settings = json.loads(file.read_text(encoding="utf-8"))
    renamed = {OLD_SETTINGS.get(name, name): value for name, value in settings.items()}
    if renamed.get("too_long") == "cut":
        renamed["too_long"] = "truncate"
    return renamed


def last_checkpoint(out: Path) -> Path | None:
    """The newest complete checkpoint, or None. trainer_state.json is written last; a kill may leave it incomplete."""
    complete = [path for path in out.glob("checkpoint-*") if _is_json(path / "trainer_state.json")]
    return max(complete, key=lambda path: int(path.name.rpartition("-")[2]), default=None)


def _is_json(file: Path) -> bool:
    try:
        json.loads(file.read_bytes())
    except (OSError, ValueError):
        return False
    return True


def save_student(trainer: Any, out: Path) -> None:
    """Write `model/`, and `adapter/` where one was trained, with weights in the type of the base model on disk."""
    if trainer.is_fsdp_enabled:
        trainer.accelerator.state.fsdp_plugin.set_state_dict_type("FULL_STATE_DICT")
    state = trainer.accelerator.get_state_dict(trainer.model)
    if not main_process():
        return
    model = trainer.accelerator.unwrap_model(trainer.model)
    tokenizer, dtype = trainer.processing_class, stored_dtype(model)
    if hasattr(model, "merge_and_unload"):
        model.save_pretrained(out / "adapter", state_dict=state, selected_adapters=["default"])
        tokenizer.save_pretrained(out / "adapter")
        merged = merge(model.get_base_model().config._name_or_path, out / "adapter")
        merged.to(dtype).save_pretrained(out / "model")
    else:
        whole = {name: weight.to(dtype) for name, weight in state.items()}
        model.to(dtype).save_pretrained(out / "model", state_dict=whole)
    tokenizer.save_pretrained(out / "model")


def merge(base: str, adapter: Path) -> Any:
    """The base model with the adapter merged, from disk: the weights in memory may be sharded over processes."""
    from peft import PeftModel

    return PeftModel.from_pretrained(load_causal_lm(base), adapter).merge_and_unload()


def stored_dtype(model: Any) -> Any:
    """The type of the base model's weights on disk."""
    from transformers import AutoConfig

    return AutoConfig.from_pretrained(model.config._name_or_path).dtype


@contextmanager
def memory_errors(training: TrainingOptions) -> Iterator[None]:
    """Turn a failed allocation into a TrainerError that names the options to change."""
    import torch

    try:
        yield
    except (torch.OutOfMemoryError, MemoryError, RuntimeError) as err:
        message = str(err).lower()
        if isinstance(err, RuntimeError) and not any(w in message for w in ("out of memory", "allocate memory")):
            raise
        raise TrainerError(
            f"out of memory: lower --micro-batch (now {training.micro_batch}) or --max-length, or turn on "
            "--gradient-checkpointing, --bf16 or --lora 16"
        ) from None


def main_process() -> bool:
    """Whether this process prints and writes: the first of those under `accelerate launch`."""
    return int(os.environ.get("RANK", "0")) == 0


def print_once(text: str) -> None:
    """Print a line in the main process only."""
    if main_process():
        print(text, flush=True)
