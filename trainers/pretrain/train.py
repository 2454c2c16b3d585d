"""Language-model pre-training on a chunk folder: a whole corpus, or what difference sampling selected from it.

    L = -(1/B) sum over chunks x of (1/|x|) sum over t of log q(x_t | x_<t)                 nats a token

(MiniPLM, the training objective). Each chunk counts the same, whatever its length, as in the scores that selected it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from agentsys.commands import knob
from agentsys.trainers.loading import DType, TrainerError, folder_of, load_causal_lm, load_tokenizer, tokenizer_digest
from agentsys.trainers.pretrain.chunks import Encoder, rechunked
from agentsys.trainers.pretrain.corpus import ChunkFolder, Writer, chunks_of, facts_of, write_chunks
from agentsys.trainers.training import Guarded, TrainingOptions, configuration, fit

if TYPE_CHECKING:
    import torch
    from datasets import Dataset
    from transformers import PreTrainedModel


@dataclass(frozen=True)
class PretrainingOptions:
    """What a student is made from, and what it reads."""

    panel: ClassVar[str] = "Pre-training"
    corpus: Path = knob(Path("miniplm/selected"), "chunk folder to train on: of the step select, or of chunk")
    validation: Path | None = knob(None, "chunk folder whose loss is measured")
    from_config: str = knob("", "start from fresh weights of this model's configuration (folder or name)")
    model: str = knob("", "go on from this model's weights (folder or name)")
    dtype: DType = knob("float32", "type of the weights while they train")
    retokenize: bool = knob(False, "make chunks in the student's own tokens from the corpus's text")

    def __post_init__(self) -> None:
        """Raises TrainerError unless exactly one source of the student is named."""
        if bool(self.from_config) == bool(self.model):
            raise TrainerError("give --from-config NAME (fresh weights) or --model NAME (go on), one of the two")


@dataclass(frozen=True)
class _Card:
    """What the model card calls base and data."""

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

    folders = {"train": ChunkFolder(options.corpus)}
    if options.validation:
        folders["validation"] = ChunkFolder(options.validation)
    tokenizer = _tokenizer(options, folders["train"])
    folders = {split: _in_tokens_of(tokenizer, folder, options, training, split) for split, folder in folders.items()}
    student = load(options, training.seed)
    for folder in folders.values():
        _check_size(student, folder)
    through_forward(student)
    more: dict[str, Any] = {"prediction_loss_only": True, "label_names": ["learned"]}
    if "validation" in folders:
        more |= {"eval_strategy": "steps", "eval_steps": training.evaluate_every}
    trainer = Pretrainer(
        model=student,
        args=configuration(TrainingArguments, training, **more),
        data_collator=Collator(folders["train"].end_id),
        train_dataset=_dataset(folders["train"]),
        eval_dataset=_dataset(folders["validation"]) if "validation" in folders else None,
        processing_class=tokenizer,
    )
    trainer.model_accepts_loss_kwargs = False  # the mean over chunks is ours; the trainer divides by accumulated steps
    return fit(trainer, "MiniPLM", training, _Card(options.from_config or options.model, options.corpus), options)


def chunk_loss(model: Callable[..., torch.Tensor], ids: torch.Tensor, learned: torch.Tensor) -> torch.Tensor:
    """The mean over chunks of each one's mean negative log-likelihood. A chunk without learned tokens counts as 0.

    `model` is a student that `through_forward` has changed, as it is or wrapped for several processes; `ids` and
    `learned` are (B, T) as for `summed_nll`.
    """
    return (model(ids=ids, learned=learned) / learned.sum(1).clamp(min=1)).mean()


def through_forward(student: PreTrainedModel) -> None:
    """Make the student's forward pass `summed_nll`: so wrappers of several processes see it and no logits come out."""
    from agentsys.trainers.pretrain.nll import check_head, summed_nll

    check_head(student)
    student.forward = partial(summed_nll, student)


class Collator:
    """Chunks as a batch: ids (B, T) and which tokens are learned (B, T)."""

    def __init__(self, end_id: int) -> None:
        self.end_id = end_id

    def __call__(self, chunks: Sequence[Mapping[str, list[int]]]) -> dict[str, torch.Tensor]:
        """Pad on the right."""
        from agentsys.trainers.pretrain.nll import padded

        ids, learned = padded([np.array(chunk["input_ids"]) for chunk in chunks], self.end_id)
        return {"input_ids": ids, "learned": learned}


def load(options: PretrainingOptions, seed: int) -> PreTrainedModel:
    """The student: weights that are there, or fresh ones that `seed` decides. Raises TrainerError."""
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
    """The student's tokenizer; of a folder that holds only a configuration, the corpus's."""
    name = folder_of(options.from_config or options.model)
    bare = Path(name).is_dir() and not (Path(name) / "tokenizer.json").exists()
    return load_tokenizer(corpus.manifest["tokenizer"] if bare else name)


def _in_tokens_of(
    tokenizer: Any, folder: ChunkFolder, options: PretrainingOptions, training: TrainingOptions, split: str
) -> ChunkFolder:
    """The folder itself where its ids are this tokenizer's, else one with the same text. Raises TrainerError."""
    digest = tokenizer_digest(tokenizer)
    if folder.manifest["tokenizer_sha256"] == digest:
        return folder
    if not options.retokenize:
        raise TrainerError(
            f"{folder.folder} holds the ids of {folder.manifest['tokenizer']}, the student has another tokenizer; "
            "--retokenize makes chunks of the student's from the text"
        )
    name = options.from_config or options.model
    return retokenize(folder, tokenizer, name, training.out / f"corpus-{split}")


def retokenize(folder: ChunkFolder, tokenizer: Any, name: str, out: Path) -> ChunkFolder:
    """The same chunks in the tokens of another tokenizer, called `name` in the manifest; made once.

    No text is lost: where a chunk has more tokens now than the corpus's `max_length`, it becomes several.
    Raises TrainerError if `out` holds another corpus.
    """
    from filelock import FileLock

    out.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(f"{out}.lock"):
        if (out / "manifest.json").exists():
            made = ChunkFolder(out)
            same = made.manifest.get("retokenized_from") == folder.manifest["sha256"]
            if not same or made.manifest["tokenizer_sha256"] != tokenizer_digest(tokenizer):
                raise TrainerError(f"{out} has another corpus; remove it or choose another --out")
            return made
        encoder = Encoder(tokenizer)
        length = folder.manifest["max_length"]
        new = (piece for chunk in chunks_of(folder) for piece in rechunked(chunk, encoder, length))
        facts = facts_of(encoder, tokenizer, name, length)
        return write_chunks(new, Writer(out), **facts, retokenized_from=folder.manifest["sha256"])


def _check_size(student: PreTrainedModel, folder: ChunkFolder) -> None:
    limit = getattr(student.config, "max_position_embeddings", None)
    longest = folder.manifest["max_length"] - 1
    if limit and longest > limit:
        raise TrainerError(f"the student reads {limit} tokens, the chunks have {longest}; chunk with --max-length less")
    if folder.end_id >= student.get_input_embeddings().weight.shape[0]:
        raise TrainerError("the configuration's vocab_size is smaller than the corpus's tokenizer; make it as large")


def _dataset(folder: ChunkFolder) -> Dataset:
    from datasets import Dataset

    return Dataset.from_parquet([str(shard.path) for shard in folder.shards], columns=["input_ids"])
