"""Model folders: a base model with a new head, and the trained central and cloud models with their settings.

config.json, model.safetensors, tokenizer.json, ...   as transformers saves them
head.safetensors                                      the head of the classes, for classification
idfree.json                                           task, design, labels, prior, digest of the central model
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from agentsys.trainers.idfree.designs import Design, Family
from agentsys.trainers.idfree.network import Backbone, is_decoder
from agentsys.trainers.idfree.options import Task
from agentsys.trainers.loading import TrainerError, folder_of, load_config, load_tokenizer

FloatArray = npt.NDArray[np.float32]
FILE: Final = "idfree.json"
VERSION: Final = 1
_HEAD: Final = "head.safetensors"
_BATCH: Final = 64


@dataclass(frozen=True, slots=True)
class ModelInfo:
    """What idfree.json says of a model."""

    task: Task
    design: Family
    n_tokens: int
    width: int
    labels: tuple[str, ...]
    spread: float
    prior_first: float
    prior_second: float
    max_length: int
    unmasked: bool
    model: str = ""
    """SHA-256 of the central model, to which the parameter files of devices are tied."""
    version: int = VERSION

    def design_of(self) -> Design:
        """The family with its prior."""
        return Design(self.design, self.task, self.n_tokens, self.width, self.spread)


def find_folder(name: str) -> str:
    """The folder or hub name of a model; that of `weights-embedding` by its name. Raises TrainerError."""
    from agentsys.models.embeddings import find_embedding
    from agentsys.models.weights import WeightsError

    try:
        return str(find_embedding(name) or folder_of(name))
    except WeightsError as err:
        raise TrainerError(str(err)) from None


def load_backbone(
    name: str,
    task: Task,
    n_tokens: int,
    classes: int = 0,
    *,
    unmasked: bool = False,
    max_length: int = 0,
    seed: int = 0,
) -> Backbone:
    """A model with a new head of classes, in float32. Raises TrainerError for a model that cannot do the task."""
    from safetensors import SafetensorError
    from transformers import AutoModel, AutoModelForCausalLM, set_seed

    folder = find_folder(name)
    config = load_config(folder)
    if config.is_encoder_decoder:
        raise TrainerError(f"--model {name}: an encoder and decoder in one; give an encoder or a decoder")
    if task == "generate" and not is_decoder(config):
        raise TrainerError(f"--model {name}: an encoder predicts no next words; give a decoder, or --task classify")
    longest = getattr(config, "max_position_embeddings", None)
    if longest and max_length + n_tokens > longest:
        raise TrainerError(
            f"--max-length {max_length}: {name} has {longest} positions; give at most {longest - n_tokens}"
        )
    set_seed(seed)
    kind = AutoModelForCausalLM if task == "generate" else AutoModel
    tokenizer = load_tokenizer(folder)
    try:
        network = kind.from_pretrained(folder, dtype=torch.float32)
    except (OSError, ValueError, SafetensorError) as err:
        raise TrainerError(f"no model in {name}: {' '.join(str(err).split())[:300]}") from None
    return Backbone(network, tokenizer, task, n_tokens, classes, unmasked)


def new_info(backbone: Backbone, design: Design, labels: Sequence[str], max_length: int) -> ModelInfo:
    """The settings of a model that is about to be saved; the digest is added by `save_model`."""
    first, second = design.prior
    return ModelInfo(
        design.task,
        design.family,
        design.n_tokens,
        design.width,
        tuple(labels),
        design.spread,
        first,
        second,
        max_length,
        backbone.unmasked,
    )


def save_model(folder: Path, backbone: Backbone, info: ModelInfo) -> None:
    """Write a model folder. Without a digest in `info` it is a central model, and gets its own."""
    from safetensors.torch import save_file

    backbone.network.save_pretrained(folder)
    backbone.tokenizer.save_pretrained(folder)
    if backbone.head is not None:
        save_file({name: value.contiguous() for name, value in backbone.head.state_dict().items()}, folder / _HEAD)
    values = asdict(info) | {"model": info.model or digest_folder(folder)}
    (folder / FILE).write_text(json.dumps(values, indent=1, ensure_ascii=False), encoding="utf-8")


def digest_folder(folder: Path) -> str:
    """SHA-256 over configuration and weights."""
    digest = hashlib.sha256()
    for file in sorted([folder / "config.json", *folder.glob("*.safetensors")]):
        digest.update(file.name.encode())
        with file.open("rb") as content:
            while block := content.read(1 << 22):
                digest.update(block)
    return digest.hexdigest()


def read_info(folder: Path) -> ModelInfo:
    """The settings of a model folder. Raises TrainerError for a folder without them, or of another version."""
    try:
        values: dict[str, Any] = json.loads((folder / FILE).read_text(encoding="utf-8"))
        if values["version"] != VERSION:
            raise TrainerError(f"{folder}: version {values['version']} of {FILE}; train it again with this release")
        return ModelInfo(**(values | {"labels": tuple(values["labels"])}))
    except FileNotFoundError:
        raise TrainerError(f"{folder} has no {FILE}; give the folder central or cloud of an idfree-pl run") from None
    except (ValueError, KeyError, TypeError) as err:
        if isinstance(err, TrainerError):
            raise
        raise TrainerError(f"{folder / FILE} is damaged; train the model again") from None


def load_saved(folder: Path) -> tuple[Backbone, ModelInfo]:
    """A saved model and its settings. Raises TrainerError."""
    from safetensors.torch import load_file

    info = read_info(folder)
    backbone = load_backbone(
        str(folder), info.task, info.n_tokens, len(info.labels), unmasked=info.unmasked, max_length=info.max_length
    )
    if backbone.head is not None:
        backbone.head.load_state_dict(load_file(folder / _HEAD))
    backbone.eval()
    return backbone, info


class PersonalModel:
    """A trained model for use: classes or words for texts and their embeddings."""

    def __init__(self, backbone: Backbone, info: ModelInfo) -> None:
        self.backbone, self.info = backbone, info

    def classify(self, texts: Sequence[str], embeddings: FloatArray | None = None) -> FloatArray:
        """(texts, classes) probabilities. `embeddings` (texts, n_tokens, width); None: the prior's mean for all."""
        with torch.no_grad():
            rows = self._embeddings(len(texts), embeddings)
            probabilities = []
            for start in range(0, len(texts), _BATCH):
                some = slice(start, start + _BATCH)
                tokens = self.backbone.tokenize(texts[some], self.info.max_length)
                logits = self.backbone.logits(tokens, torch.arange(len(texts[some])), rows[some])
                probabilities.append(logits.softmax(-1))
            values: FloatArray = torch.cat(probabilities).numpy().astype(np.float32)
        return values

    def complete(
        self, texts: Sequence[str], embeddings: FloatArray | None = None, max_new_tokens: int = 15
    ) -> list[str]:
        """The most probable next words of each text; an embedding is kept for the whole generation."""
        with torch.no_grad():
            rows = self._embeddings(len(texts), embeddings)
            tokenizer, network = self.backbone.tokenizer, self.backbone.network
            answers = []
            for text, row in zip(texts, rows, strict=True):
                tokens = self.backbone.tokenize([text], self.info.max_length)
                words = torch.cat([row[None], network.get_input_embeddings()(tokens.ids)], 1)
                ids = network.generate(
                    inputs_embeds=words,
                    attention_mask=torch.ones(words.shape[:2], dtype=torch.long),
                    max_new_tokens=max_new_tokens,
                    do_sample=False,
                    pad_token_id=tokenizer.pad_token_id,
                )
                answers.append(tokenizer.decode(ids[0], skip_special_tokens=True))
            return answers

    def _embeddings(self, count: int, embeddings: FloatArray | None) -> Tensor:
        """(count, n_tokens, width). Raises TrainerError for another shape."""
        shape = (count, self.info.n_tokens, self.info.width)
        if embeddings is None:
            return self.info.design_of().prior_mean().expand(shape)
        rows = torch.as_tensor(np.asarray(embeddings, np.float32))
        if tuple(rows.shape) != shape:
            raise TrainerError(f"embeddings of shape {tuple(rows.shape)}; the model needs {shape}")
        return rows


def load_model(folder: str | Path) -> PersonalModel:
    """A trained model for use, from the folder `cloud` or `central` of a run. Raises TrainerError."""
    return PersonalModel(*load_saved(Path(folder)))
