"""Language-model pre-training on a chunk folder: a whole corpus, or a selection by difference sampling.

    L = -(1/B) sum over chunks x of (1/|x|) sum over t of log q(x_t | x_<t)                 nats per token

(MiniPLM, the training objective). Chunks of all lengths have the same weight, as in the scores that selected them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from agentsys.commands import knob
from agentsys.trainers.loading import (
    DType,
    TrainerError,
    folder_of,
    load_causal_lm,
    load_config,
    load_tokenizer,
    tokenizer_digest,
)
from agentsys.trainers.output import check_folder
from agentsys.trainers.pretrain.chunks import Encoder, rechunk
from agentsys.trainers.pretrain.corpus import ChunkFolder, ChunkWriter, describe_format, read_chunks, write_chunks
from agentsys.trainers.training import Guarded, TrainingOptions, fit, prepare

if TYPE_CHECKING:
    import torch
    from datasets import Dataset
    from transformers import PreTrainedModel


@dataclass(frozen=True)
class PretrainingOptions:
    """The student and its corpus."""

    panel: ClassVar[str] = "Pre-training"
    corpus: Path = knob(Path("miniplm/selected"), "chunk folder to train on, made by select or chunk")
    validation: Path | None = knob(None, "chunk folder for the validation loss")
    from_config: str = knob("", "start from new weights with the configuration of this model (folder or name)")
    model: str = knob("", "start from the weights of this model (folder or name)")
    dtype: DType = knob("float32", "type of the weights during training")
    retokenize: bool = knob(
        False, "make chunks in the student's tokens from the text of the corpus", old_name="retokenise"
    )

    def __post_init__(self) -> None:
        """Raises TrainerError unless exactly one of --from-config and --model is given."""
        if bool(self.from_config) == bool(self.model):
            raise TrainerError("give either --from-config NAME (new weights) or --model NAME (its weights)")


@dataclass(frozen=True)
class _CardSettings:
    """The names of base and data in the model card."""

    student: str
    rows: Path


def pretrain(options: PretrainingOptions, training: TrainingOptions) -> dict[str, float]:
    """Train on the corpus and save the student. Returns the validation metrics. Raises TrainerError."""
    from transformers import Trainer, TrainingArguments

    class Pretrainer(Guarded, Trainer):
        def compute_loss(
            self, model: Any, inputs: Mapping[str, Any], return_outputs: bool = False, **rest: Any
        ) -> torch.Tensor | tuple[torch.Tensor, dict[str, Any]]:
            loss = chunk_loss(model, inputs["input_ids"], inputs["learned"])
            return (loss, {}) if return_outputs else loss

    check_folder(training.out)
    folders = {"train": ChunkFolder(options.corpus)}
    if options.validation:
        folders["validation"] = ChunkFolder(options.validation)
    tokenizer = _tokenizer(options, folders["train"])
    folders = {split: _convert_folder(tokenizer, folder, options, training, split) for split, folder in folders.items()}
    config = load_config(options.from_config or options.model)
    for folder in folders.values():
        _check_size(config, folder)
    splits = {split: _dataset(folder) for split, folder in folders.items()}
    run = prepare(
        "MiniPLM",
        TrainingArguments,
        training,
        splits,
        _CardSettings(options.from_config or options.model, options.corpus),
        options,
        prediction_loss_only=True,
        label_names=["learned"],
    )
    student = make_student(options, training.seed)
    use_nll_forward(student)
    trainer = Pretrainer(
        model=student,
        args=run.config,
        data_collator=ChunkCollator(folders["train"].end_id),
        train_dataset=splits["train"],
        eval_dataset=splits.get("validation"),
        processing_class=tokenizer,
    )
    trainer.model_accepts_loss_kwargs = False  # chunk_loss is a mean; the trainer divides by accumulated steps
    return fit(trainer, run)


def chunk_loss(model: Callable[..., torch.Tensor], ids: torch.Tensor, learned: torch.Tensor) -> torch.Tensor:
    """The mean over chunks of their mean negative log-likelihood. A chunk without learned tokens counts as 0.

    `model` is a student after `use_nll_forward`, possibly wrapped for several processes; `ids` and `learned` are (B, T)
    as for `sum_nll`.
    """
    return (model(ids=ids, learned=learned) / learned.sum(1).clamp(min=1)).mean()


def use_nll_forward(student: PreTrainedModel) -> None:
    """Make the student's forward pass `sum_nll`, so that it runs inside wrappers for several processes."""
    from agentsys.trainers.pretrain.nll import check_head, sum_nll

    check_head(student)
    student.forward = partial(sum_nll, student)


class ChunkCollator:
    """Collates chunks to ids (B, T) and a mask of learned tokens (B, T)."""

    def __init__(self, end_id: int) -> None:
        self.end_id = end_id

    def __call__(self, chunks: Sequence[Mapping[str, list[int]]]) -> dict[str, torch.Tensor]:
        """Pad on the right."""
        from agentsys.trainers.pretrain.nll import pad_chunks

        ids, learned = pad_chunks([np.array(chunk["input_ids"]) for chunk in chunks], self.end_id)
        return {"input_ids": ids, "learned": learned}


def make_student(options: PretrainingOptions, seed: int) -> PreTrainedModel:
    """The student, with existing weights, or with new ones from `seed`. Raises TrainerError."""
    if options.model:
        return load_causal_lm(options.model, options.dtype)
    from transformers import AutoConfig, AutoModelForCausalLM, set_seed

    name = folder_of(options.from_config)
    try:
        config = AutoConfig.from_pretrained(name)
        set_seed(seed)
        return AutoModelForCausalLM.from_config(config, dtype=options.dtype)
    except (OSError, ValueError) as err:
        raise TrainerError(f"--from-config {name}: {' '.join(str(err).split())[:300]}") from None


def _tokenizer(options: PretrainingOptions, corpus: ChunkFolder) -> Any:
    """The student's tokenizer, or the corpus's if the student's folder has none."""
    name = folder_of(options.from_config or options.model)
    has_none = Path(name).is_dir() and not (Path(name) / "tokenizer.json").exists()
    return load_tokenizer(corpus.manifest["tokenizer"] if has_none else name)


def _convert_folder(
    tokenizer: Any, folder: ChunkFolder, options: PretrainingOptions, training: TrainingOptions, split: str
) -> ChunkFolder:
    """The folder if its ids are this tokenizer's, else a retokenized one. Raises TrainerError."""
    digest = tokenizer_digest(tokenizer)
    if folder.manifest["tokenizer_sha256"] == digest:
        return folder
    if not options.retokenize:
        raise TrainerError(
            f"{folder.folder} has the ids of {folder.manifest['tokenizer']}, the student has another tokenizer; "
            "--retokenize makes chunks in the student's tokens from the text"
        )
    name = options.from_config or options.model
    return retokenize(folder, tokenizer, name, training.out / f"corpus-{split}")


def retokenize(folder: ChunkFolder, tokenizer: Any, name: str, out: Path) -> ChunkFolder:
    """The chunks in the tokens of another tokenizer, which the manifest calls `name`; made once.

    No text is lost: a chunk with more tokens than the corpus's `max_length` becomes several. Raises TrainerError if
    `out` has another corpus.
    """
    from filelock import FileLock

    out.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(f"{out}.lock"):
        if (out / "manifest.json").exists():
            existing = ChunkFolder(out)
            manifest = existing.manifest
            source = manifest.get("retokenized_from", manifest.get("retokenised_from"))  # the key of earlier versions
            if source != folder.manifest["sha256"] or manifest["tokenizer_sha256"] != tokenizer_digest(tokenizer):
                raise TrainerError(f"{out} has another corpus; remove it, or give another --out")
            return existing
        encoder = Encoder(tokenizer)
        length = folder.manifest["max_length"]
        new = (piece for chunk in read_chunks(folder) for piece in rechunk(chunk, encoder, length))
        facts = describe_format(encoder, tokenizer, name, length)
        return write_chunks(new, ChunkWriter(out), **facts, retokenized_from=folder.manifest["sha256"])


def _check_size(config: Any, folder: ChunkFolder) -> None:
    """Raises TrainerError if a student of this configuration cannot read the chunks."""
    limit = getattr(config, "max_position_embeddings", None)
    longest = folder.manifest["max_length"] - 1
    if limit and longest > limit:
        raise TrainerError(
            f"the student reads {limit} tokens, the chunks have {longest}; chunk with a smaller --max-length"
        )
    if folder.end_id >= config.get_text_config().vocab_size:
        raise TrainerError("the vocab_size of the configuration is smaller than the corpus's tokenizer; increase it")


def _dataset(folder: ChunkFolder) -> Dataset:
    from datasets import Dataset

    return Dataset.from_parquet([str(shard.path) for shard in folder.shards], columns=["input_ids"])
