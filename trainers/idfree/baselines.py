"""What the method is compared with: majorities, adapters on the device, static embeddings, the user's id as text."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, Final

import numpy as np
import torch
from torch import Tensor, nn

from agentsys.progress import Progress
from agentsys.trainers.idfree.central import Embed, constant_embed
from agentsys.trainers.idfree.cloud import draw_embeddings, train_cloud
from agentsys.trainers.idfree.data import Data, IntArray
from agentsys.trainers.idfree.designs import Design
from agentsys.trainers.idfree.devices import MOST_USERS, VALIDATION_TEXTS, DeviceTrainer, texts_by_user, train_devices
from agentsys.trainers.idfree.network import Backbone, Tokens
from agentsys.trainers.idfree.options import FitOptions
from agentsys.trainers.idfree.predict import Predictions, predict

_ADAPTED: Final = ("query", "value", "q_proj", "v_proj", "q_lin", "v_lin", "Wqkv", "qkv_proj")
"""Names of the linear layers that get adapters: queries and values, as LoRA's paper has it."""
_PRIOR_WEIGHT: Final = 1.0
"""Weight of all users' classes in a user's own, in texts."""


def majorities(data: Data) -> dict[str, IntArray]:
    """Predicted classes of the test by no model: the most frequent one, that of the text, and that of the user."""
    classes, train, test = len(data.labels), data.train, data.test
    overall = np.bincount(train.label, minlength=classes) / len(train)
    texts, users = (np.zeros((count, classes)) for count in (len(data.texts), data.users))
    np.add.at(texts, (train.text, train.label), 1)
    np.add.at(users, (train.user, train.label), 1)
    return {
        "majority": np.full(len(test), overall.argmax()),
        "text alone": (texts + _PRIOR_WEIGHT * overall)[test.text].argmax(1),
        "user alone": (users + _PRIOR_WEIGHT * overall)[test.user].argmax(1),
    }


def train_static(
    backbone: Backbone, tokens: Tokens, data: Data, design: Design, users: Sequence[int], options: FitOptions, lora: int
) -> Predictions:
    """One fixed embedding per user: most useful, and an identifier. Fitted on the device, then trained on the cloud."""
    static = Design("static", design.task, design.n_tokens, design.width, design.spread)
    devices = train_devices(backbone, tokens, data.train, data.validation, users, static, options)
    first, second = static.prior_parameters(data.users)
    first[list(users)], second[list(users)] = devices.first, devices.second
    embed = draw_embeddings(type(devices)(devices.family, first, second, []))
    train_cloud(backbone, tokens, data, embed, options, lora, "static embedding")
    return predict(backbone, tokens, data.test, embed, options)


def train_id_text(backbone: Backbone, tokens: Tokens, data: Data, options: FitOptions, lora: int) -> Predictions:
    """The user's number as words, where the embedding would be, in a training of the same length."""
    numbers = [f"user {' '.join(f'{user:0{len(str(data.users))}d}')}" for user in range(data.users)]
    ids = backbone.tokenizer(numbers, add_special_tokens=False, padding=True, return_tensors="pt")["input_ids"]

    def embed(users: Tensor, random: torch.Generator) -> Tensor:
        return backbone.network.get_input_embeddings()(ids[users])

    before, backbone.n_tokens = backbone.n_tokens, ids.shape[1]
    train_cloud(backbone, tokens, data, embed, options, lora, "user id as text")
    predictions = predict(backbone, tokens, data.test, embed, options)
    backbone.n_tokens = before
    return predictions


class Adapters:
    """LoRA for each user on the queries and values of the central model, all users in one batched pass.

    Where keys and values of texts are reused, the adapters act on the position that the head reads, and the text stays
    as the central model reads it; elsewhere they act on all positions.
    """

    def __init__(self, backbone: Backbone, users: int, rank: int, seed: int, embedding: Tensor) -> None:
        self.backbone, self.users, self.embedding = backbone, users, embedding
        random = torch.Generator().manual_seed(seed)
        self.down: list[Tensor] = []
        self.up: list[Tensor] = []
        self._handles: list[Any] = []
        self._owner = torch.zeros(0, dtype=torch.long)
        for number, layer in enumerate(_adapted_layers(backbone.body)):
            shape = (layer.in_features, rank)
            down = torch.randn(shape, generator=random) / layer.in_features**0.5
            self.down.append(down.expand(users, -1, -1).clone().requires_grad_())
            self.up.append(torch.zeros(users, rank, layer.out_features).requires_grad_())
            self._handles.append(layer.register_forward_hook(self._hook(number)))

    def _hook(self, number: int) -> Any:
        def add_delta(layer: nn.Module, inputs: tuple[Tensor], output: Tensor) -> Tensor:
            packing = self.backbone.packing
            if packing is None:  # a text is read, which is the same for all users
                return output
            owner = self._owner[packing.row_of_place()]
            hidden = inputs[0].reshape(len(owner), -1, inputs[0].shape[-1])
            delta = 2.0 * hidden @ self.down[number][owner] @ self.up[number][owner]
            return output + delta.view(output.shape)

        return add_delta

    @property
    def trained(self) -> list[Tensor]:
        """Both factors of every layer."""
        return [*self.down, *self.up]

    def embed(self, draws: int, randoms: Sequence[torch.Generator]) -> Tensor:
        """The prior's mean for all: the adapters are what is personal."""
        return self.embedding.expand(self.users, draws, -1, -1)

    def select(self, users: Tensor) -> None:
        """Have the rows of the next pass belong to these users."""
        self._owner = users

    def finish_step(self) -> None:
        """Adapters have no bounds."""

    def remove(self) -> None:
        """Take the adapters off the model."""
        for handle in self._handles:
            handle.remove()


def _adapted_layers(body: nn.Module) -> Iterator[nn.Linear]:
    layers = [
        (name.rpartition(".")[2], module) for name, module in body.named_modules() if isinstance(module, nn.Linear)
    ]
    chosen = [module for name, module in layers if name in _ADAPTED]
    yield from chosen or [module for _, module in layers]


def train_lora(
    backbone: Backbone, tokens: Tokens, data: Data, design: Design, users: Sequence[int], options: FitOptions, rank: int
) -> Predictions:
    """Adapters of each user on the frozen central model; users without training texts have the central model."""
    own = texts_by_user(data.train, users, options.device_texts, options.seed)
    held_out = texts_by_user(data.validation, users, VALIDATION_TEXTS, options.seed)
    prior = design.prior_mean()
    result = predict(backbone, tokens, data.test, constant_embed(prior), options)
    learners = [place for place in range(len(users)) if len(own[place])]
    backbone.eval().requires_grad_(False)
    size = max(1, MOST_USERS // 4)
    with Progress("users", len(users), step="LoRA on the device") as progress:
        for start in range(0, len(learners), size):
            places = learners[start : start + size]
            numbers = [users[place] for place in places]
            adapters = Adapters(backbone, len(places), rank, options.seed, prior)
            trainer = DeviceTrainer(backbone, tokens, options, numbers)
            trainer.train(
                adapters, data.train, data.validation, [own[p] for p in places], [held_out[p] for p in places]
            )
            rows = np.flatnonzero(np.isin(data.test.user, numbers))
            place_of = {number: place for place, number in enumerate(numbers)}
            owner = torch.tensor([place_of[int(user)] for user in data.test.user[rows]], dtype=torch.long)
            result.put(
                rows, predict(backbone, tokens, data.test.take(rows), adapter_embed(adapters, prior), options, owner)
            )
            adapters.remove()
            progress.update(start + len(places))
    backbone.requires_grad_(True)
    return result


def adapter_embed(adapters: Adapters, prior: Tensor) -> Embed:
    """The prior's mean for rows whose adapters are selected."""

    def embed(users: Tensor, random: torch.Generator) -> Tensor:
        adapters.select(users)
        return prior.expand(len(users), -1, -1)

    return embed
