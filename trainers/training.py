"""What every trainer shares: options, rows, a loss that must stay a number, what is saved and shown at the end.

A trainer is a class of TRL or transformers with `Guarded` before it, and a function that calls `fit`.
The output folder:

    model/            the student, adapters merged: what `vllm:<folder>` and `transformers:<folder>` take
    adapter/          the LoRA adapter alone, where one was trained
    checkpoint-N/     what --resume goes on from
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
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from agentsys.commands import knob
from agentsys.trainers.loading import DType, TrainerError, load_causal_lm, load_tokenizer, tokenizer_digest

if TYPE_CHECKING:
    from datasets import Dataset


@dataclass(frozen=True)
class StudentOptions:
    """The model that learns."""

    panel: ClassVar[str] = "Student"
    student: str = knob("qwen2.5-coder-0.5b", "folder, catalogue name or hub name")
    lora: int = knob(0, "rank of LoRA adapters on all linear layers but the head; 0 trains all weights")
    dtype: DType = knob("float32", "type of the weights while they train")


@dataclass(frozen=True)
class RowOptions:
    """What it learns from."""

    panel: ClassVar[str] = "Rows"
    rows: Path = knob(Path("rows/sft"), "folder with train.parquet and perhaps validation.parquet, or a Parquet file")
    max_length: int = knob(2048, "tokens of a row")
    too_long: Literal["drop", "cut"] = knob("drop", "what happens to longer rows: drop them, or cut their end off")


@dataclass(frozen=True)
class TrainingOptions:
    """How it learns. Every other setting of the trainer's TRL configuration can be given with --set."""

    panel: ClassVar[str] = "Training"
    out: Path = knob(Path("student"), "output folder")
    epochs: float = knob(1.0, "passes over the rows")
    steps: int = knob(-1, "optimiser steps; takes the place of --epochs")
    learning_rate: float = knob(2e-5, "peak learning rate")
    warmup: float = knob(0.1, "warm-up: steps, or below 1 a share of all steps")
    schedule: str = knob("cosine", "learning-rate schedule of transformers")
    batch: int = knob(8, "rows of one optimiser step in each process")
    micro_batch: int = knob(1, "rows of one forward pass; --batch is a multiple of it")
    seed: int = knob(0, "seed of the row order and of new weights")
    bf16: bool = knob(False, "compute in bfloat16, keep the weights in --dtype")
    gradient_checkpointing: bool = knob(False, "recompute activations: less memory, about a fifth slower")
    log_every: int = knob(1, "steps between two lines of metrics.jsonl")
    evaluate_every: int = knob(50, "steps between two evaluations on the validation rows")
    checkpoint_every: int = knob(50, "steps between two checkpoints")
    checkpoints: int = knob(2, "checkpoints to keep")
    resume: bool = knob(False, "go on from the last checkpoint in --out")
    set: list[str] = knob((), "NAME=VALUE for another field of the trainer's configuration; may be repeated")

    def __post_init__(self) -> None:
        """Raises TrainerError for sizes that do not fit together."""
        if self.micro_batch < 1 or self.batch % self.micro_batch:
            raise TrainerError(f"--batch {self.batch}: give a multiple of --micro-batch {self.micro_batch}")


def configuration(kind: Any, training: TrainingOptions, **more: Any) -> Any:
    """The TRL or transformers configuration of a class `kind`; --set comes last. Raises TrainerError."""
    import torch

    known = {item.name for item in fields(kind)}
    recompute = "activation_checkpointing"  # called gradient_checkpointing in earlier transformers
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
        recompute if recompute in known else "gradient_checkpointing": training.gradient_checkpointing,
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
    given = settings | more | _set(kind, known, training.set)
    try:
        return kind(**given)
    except (TypeError, ValueError) as err:
        raise TrainerError(f"the trainer's configuration: {' '.join(str(err).split())}") from None


def _set(kind: Any, known: set[str], pairs: list[str]) -> dict[str, Any]:
    found = {}
    for pair in pairs:
        name, _, value = pair.partition("=")
        if name not in known:
            raise TrainerError(f"--set {pair}: {kind.__name__} has no field {name!r}")
        try:
            found[name] = json.loads(value)
        except json.JSONDecodeError:
            found[name] = value  # a plain word is a string
    return found


def read_rows(path: Path, columns: Mapping[str, str], tokenizer: Any = None) -> dict[str, Dataset]:
    """Rows by split: `train`, and `validation` where there is one. `columns` names those needed: {"input_ids": "sft"}.

    Raises TrainerError for a missing, empty or malformed file, and where the ids are not `tokenizer`'s.
    """
    files = {path.stem: path} if path.is_file() else {s: path / f"{s}.parquet" for s in ("train", "validation")}
    if path.is_file():
        files = {"train": path}
    if not files["train"].is_file():
        raise TrainerError(f"{files['train']}: no such file; trainers/rows.py makes rows from traces")
    return {split: _read(file, columns, tokenizer) for split, file in files.items() if file.is_file()}


def _read(file: Path, columns: Mapping[str, str], tokenizer: Any) -> Dataset:
    import pyarrow as pa
    import pyarrow.parquet as pq
    from datasets import Dataset

    try:
        schema = pq.read_schema(file)
        count = pq.read_metadata(file).num_rows
    except (pa.ArrowException, OSError) as err:
        raise TrainerError(f"{file} is no Parquet file: {' '.join(str(err).split())[:200]}") from None
    if missing := [name for name in columns if name not in schema.names]:
        needs = columns[missing[0]]
        raise TrainerError(f"{file} has no column {missing[0]}; {needs}")
    if not count:
        raise TrainerError(f"{file} holds no rows; see what trainers/rows.py dropped, and why")
    made_for = (schema.metadata or {}).get(b"agentsys.tokenizer", b"").decode()
    if tokenizer is not None and made_for and made_for != tokenizer_digest(tokenizer):
        raise TrainerError(f"{file} holds the ids of another tokenizer; make the rows with --student as the one here")
    return Dataset.from_parquet(str(file))


def fit_length(rows: Dataset, options: RowOptions, name: str = "input_ids") -> Dataset:
    """Rows of at most --max-length tokens; counts the others and drops or cuts them. Raises TrainerError if none stay.

    A cut row that has nothing left to learn is dropped.
    """
    lengths = [len(ids) for ids in rows[name]]
    long = sum(length > options.max_length for length in lengths)
    if not long:
        return rows
    if options.too_long == "drop":
        say(f"{long} of {len(rows)} rows are longer than {options.max_length} tokens: dropped (--too-long cut cuts)")
        kept = rows.select([i for i, length in enumerate(lengths) if length <= options.max_length])
    else:
        cut = rows.map(lambda row: _cut(row, options.max_length), desc="cutting")
        kept = cut.filter(lambda row: 1 in row["loss_mask"])
        lost = len(rows) - len(kept)
        say(f"{long} of {len(rows)} rows are longer than {options.max_length} tokens: cut, {lost} dropped as empty")
    if not len(kept):
        raise TrainerError(f"no row has at most {options.max_length} tokens; raise --max-length")
    return kept


def _cut(row: Mapping[str, Any], length: int) -> dict[str, Any]:
    """The beginning of a row, and of what a teacher stored of its learned positions."""
    cut = {name: row[name][:length] for name in ("input_ids", "loss_mask")}
    if "teacher_tail" in row:
        learned, k = sum(cut["loss_mask"]), len(row["teacher_ids"]) // len(row["teacher_tail"])
        cut |= {name: row[name][: learned * k] for name in ("teacher_ids", "teacher_logprobs")}
        cut["teacher_tail"] = row["teacher_tail"][:learned]
    return cut


def load_student(options: StudentOptions, seed: int = 0) -> tuple[Any, Any]:
    """Model and tokenizer; with LoRA a PEFT model, whose new weights `seed` decides. Raises TrainerError."""
    from transformers import set_seed

    tokenizer = load_tokenizer(options.student)
    model = load_causal_lm(options.student, options.dtype)
    set_seed(seed)
    return (add_lora(model, options.lora) if options.lora else model), tokenizer


def add_lora(model: Any, rank: int) -> Any:
    """Adapters of this rank on every linear layer but the head, alpha twice the rank."""
    from peft import LoraConfig, get_peft_model

    settings = LoraConfig(r=rank, lora_alpha=2 * rank, target_modules="all-linear", task_type="CAUSAL_LM")
    return get_peft_model(model, settings)


class Guarded:
    """Put before a Trainer: a loss or gradient that is no number ends the training before it reaches the weights."""

    def training_step(self, model: Any, inputs: Any, *rest: Any, **options: Any) -> Any:
        """One forward and backward pass. Raises TrainerError with the step."""
        loss = super().training_step(model, inputs, *rest, **options)  # type: ignore[misc]
        self._must_be_finite(loss, "loss")
        return loss

    def _get_grad_norm(self, model: Any, grad_norm: Any = None) -> Any:
        norm = super()._get_grad_norm(model, grad_norm=grad_norm)  # type: ignore[misc]
        self._must_be_finite(norm, "gradient norm")
        return norm

    def _must_be_finite(self, value: Any, what: str) -> None:
        import math

        if math.isfinite(float(value)):
            return
        step = self.state.global_step  # type: ignore[attr-defined]
        out = Path(self.args.output_dir)  # type: ignore[attr-defined]
        last = last_checkpoint(out)
        rest = f"the last good checkpoint is {last}" if last else "there is no checkpoint yet"
        raise TrainerError(f"the {what} is {float(value)} at step {step + 1}: lower --learning-rate; {rest}")


def fit(trainer: Any, method: str, training: TrainingOptions, *options: Any) -> dict[str, float]:
    """Train, save the student, its metrics, curves and card. Returns the last metrics. Raises TrainerError.

    All options go into settings.json and the card; a resumed training must have the same.
    """
    from agentsys.trainers.reporting import MetricsFile, write_results

    out = training.out
    if trainer.is_fsdp_enabled and method == "Distillation":
        raise TrainerError("distillation does not run under FSDP, which rounds the stored teacher: launch without it")
    settings = {"method": method, **_settings(trainer, training, *options)}
    checkpoint = _start(out, training, settings)
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
    """What a resumed training must agree on."""
    ignored = {"resume", "out", "checkpoints", "log_every"}
    flat: dict[str, Any] = {"train_examples": len(trainer.train_dataset), "train_sha256": digest(trainer.train_dataset)}
    flat["processes"] = trainer.accelerator.num_processes
    for group in options:
        flat |= {name: str(v) if isinstance(v, Path) else v for name, v in asdict(group).items() if name not in ignored}
    return flat


def digest(rows: Dataset) -> str:
    """SHA-256 over the ids of the rows, shortened: whether a resumed training sees what it saw before."""
    name = next(name for name in ("input_ids", "prompt_ids", "prompt") if name in rows.column_names)
    found = hashlib.sha256()
    for batch in rows.select_columns([name]).with_format("arrow").iter(1024):
        for buffer in batch.column(name).combine_chunks().buffers():
            found.update(buffer or b"")
    return found.hexdigest()[:16]


def _start(out: Path, training: TrainingOptions, settings: Mapping[str, Any]) -> Path | None:
    """The checkpoint to go on from. Raises TrainerError if --resume and what lies there do not fit."""
    checkpoint = last_checkpoint(out)
    file = out / "settings.json"
    if not training.resume:
        if checkpoint:
            raise TrainerError(f"{out} holds {checkpoint.name}: --resume goes on from it, or name another --out")
    elif not checkpoint:
        raise TrainerError(f"--resume: {out} holds no checkpoint; start without --resume")
    else:
        refuse_changes(file, settings, "--resume needs the same settings, or name another --out")
    if main_process():
        write_settings(file, settings)
    return checkpoint


def write_settings(file: Path, settings: Mapping[str, Any]) -> None:
    """Write JSON whole or not at all."""
    file.parent.mkdir(parents=True, exist_ok=True)
    part = file.with_name(f".{file.name}.part")
    part.write_text(json.dumps(settings, indent=1, ensure_ascii=False), encoding="utf-8")
    part.replace(file)


def refuse_changes(file: Path, settings: Mapping[str, Any], fix: str) -> None:
    """Raises TrainerError that names a setting which is not what it was when `file` was written."""
    then, now = json.loads(file.read_text(encoding="utf-8")), json.loads(json.dumps(settings))
    if changed := [name for name in now | then if now.get(name) != then.get(name)]:
        name = changed[0]
        raise TrainerError(f"{name} was {then.get(name)} and is {now.get(name)}: {fix}")


def last_checkpoint(out: Path) -> Path | None:
    """The newest whole checkpoint: its trainer_state.json is written last, and a kill may tear that too."""
    found = [path for path in out.glob("checkpoint-*") if _is_json(path / "trainer_state.json")]
    return max(found, key=lambda path: int(path.name.rpartition("-")[2]), default=None)


def _is_json(file: Path) -> bool:
    try:
        json.loads(file.read_bytes())
    except (OSError, ValueError):
        return False
    return True


def save_student(trainer: Any, out: Path) -> None:
    """`model/`, and `adapter/` where one was trained. Weights are saved in the type that the student came in."""
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
    """The base's weights with the adapter's added, read from disk: those in memory may be spread over processes."""
    from peft import PeftModel

    return PeftModel.from_pretrained(load_causal_lm(base), adapter).merge_and_unload()


def stored_dtype(model: Any) -> Any:
    """The type in which the base model lies on disk."""
    from transformers import AutoConfig

    return AutoConfig.from_pretrained(model.config._name_or_path).dtype


@contextmanager
def memory_errors(training: TrainingOptions) -> Iterator[None]:
    """Turns a failed allocation into one line that says what to lower. Raises TrainerError."""
    import torch

    try:
        yield
    except (torch.OutOfMemoryError, MemoryError, RuntimeError) as err:
        words = str(err).lower()
        if isinstance(err, RuntimeError) and not any(w in words for w in ("out of memory", "allocate memory")):
            raise
        raise TrainerError(
            f"out of memory: lower --micro-batch (now {training.micro_batch}) or --max-length, or turn on "
            "--gradient-checkpointing, --bf16 or --lora 16"
        ) from None


def main_process() -> bool:
    """Whether this is the process that prints and writes (one of several under `accelerate launch`)."""
    return int(os.environ.get("RANK", "0")) == 0


def say(text: str) -> None:
    """Print a line once, whatever the number of processes."""
    if main_process():
        print(text, flush=True)
