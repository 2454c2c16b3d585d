"""All devices in one batched pass: the model is frozen, and all users' parameters are one tensor.

On a device (papers file, section 4.3, step 3) the task loss is minimized over the parameters alone, through draws of
embeddings, with AdamW, gradients of a norm up to 5, and a linear schedule with warm-up. Each step takes a few texts of
every user at once. A user's gradients, draws and order of texts depend on nothing of other users, so that the result is
that of a loop over users. Each user keeps the parameters with the lowest loss on validation texts that the device does
not train on (in the released code these overlap); a user without such texts keeps the last ones.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Final, Protocol

import numpy as np
import torch
from torch import Tensor

from agentsys.progress import Progress
from agentsys.trainers.idfree.data import Examples, IntArray
from agentsys.trainers.idfree.designs import Design, Family, UserParameters, draw_per_user
from agentsys.trainers.idfree.network import Backbone, Keys, Tokens
from agentsys.trainers.idfree.options import FitOptions

CLIP: Final = 5.0
WARMUP: Final = 0.1
CHECKS: Final = 10
"""Evaluations on the validation texts."""
VALIDATION_DRAWS: Final = 2
VALIDATION_TEXTS: Final = 64
"""Validation texts of a user at most."""


class Personal(Protocol):
    """What a device trains: the parameters of a distribution, or adapters."""

    @property
    def trained(self) -> list[Tensor]:
        """The tensors for the optimizer, (users, ...) each."""

    def embed(self, draws: int, randoms: Sequence[torch.Generator]) -> Tensor:
        """(users, draws, n_tokens, width) embeddings."""

    def select(self, users: Tensor) -> None:
        """Have the rows of the next pass belong to these users, (R,)."""

    def finish_step(self) -> None:
        """What follows each step of the optimizer."""


class Distributions(UserParameters):
    """The parameters of users as what a device trains."""

    def embed(self, draws: int, randoms: Sequence[torch.Generator]) -> Tensor:
        """(users, draws, n_tokens, width) embeddings, with gradients to the parameters."""
        first, second = self.values()
        return draw_per_user(self.design.family, first, second, draws, randoms)

    def select(self, users: Tensor) -> None:
        """The embeddings are all that is personal."""

    def finish_step(self) -> None:
        """Move the parameters back to within the spread."""
        self.move_to_spread()


@dataclass(frozen=True, slots=True)
class Devices:
    """The parameters of all users, each (users, n_tokens, width), and the mean loss at each check."""

    family: Family
    first: Tensor
    second: Tensor
    losses: list[dict[str, float]]

    def of(self, users: Tensor) -> tuple[Tensor, Tensor]:
        """The parameters of some rows' users."""
        return self.first[users], self.second[users]


def texts_by_user(examples: Examples, users: Sequence[int], most: int, seed: int) -> list[IntArray]:
    """The rows of each user, at most `most` of them, in a random order of its own."""
    order = np.argsort(examples.user, kind="stable")
    starts, ends = (np.searchsorted(examples.user[order], users, side=side) for side in ("left", "right"))
    return [
        np.random.default_rng([seed, user]).permutation(order[start:end])[:most]
        for user, start, end in zip(users, starts, ends, strict=True)
    ]


def group_users(texts: Sequence[IntArray], text_bytes: int, limit: float, most: int) -> Iterator[slice]:
    """Groups of at most `most` users, the keys and values of whose distinct texts fit into `limit` bytes.

    `texts` are those of each user. A user whose own texts do not fit is a group alone.
    """
    start, distinct = 0, set[int]()
    for user, own in enumerate(texts):
        together = distinct.union(own.tolist())
        if user > start and (len(together) * text_bytes > limit or user - start >= most):
            yield slice(start, user)
            start, together = user, set(own.tolist())
        distinct = together
    if start < len(texts):
        yield slice(start, len(texts))


MOST_USERS: Final = 512
"""Users in one group: their draws and gradients are in memory at once."""


def train_devices(
    backbone: Backbone,
    tokens: Tokens,
    train: Examples,
    validation: Examples,
    users: Sequence[int],
    design: Design,
    options: FitOptions,
    *,
    group: int = MOST_USERS,
) -> Devices:
    """The parameters of some users, in their order. A user without training texts has the prior.

    `group` is the number of users in one pass at most: 1 makes a loop over users, for benchmarks.
    """
    own = texts_by_user(train, users, options.device_texts, options.seed)
    held_out = texts_by_user(validation, users, VALIDATION_TEXTS, options.seed)
    length = int(tokens.lengths.max())
    texts = [np.concatenate([train.text[a], validation.text[b]]) for a, b in zip(own, held_out, strict=True)]
    text_bytes = backbone.key_bytes(length) if backbone.reuses else 0
    first, second = design.prior_parameters(len(users))
    losses: list[dict[str, float]] = []
    backbone.eval().requires_grad_(False)
    with Progress("users", len(users), step="devices") as progress:
        for part in group_users(texts, text_bytes, options.cache_gb * 1e9, group):
            learners = [index for index in range(len(users))[part] if len(own[index])]
            if learners:
                numbers = [users[index] for index in learners]

                def watch(share: float, part: slice = part) -> None:
                    progress.update(part.start + int(share * (part.stop - part.start)))

                trainer = DeviceTrainer(backbone, tokens, options, numbers, watch)
                personal = Distributions(design, len(learners))
                rows = [own[i] for i in learners], [held_out[i] for i in learners]
                trainer.train(personal, train, validation, *rows)
                first[learners], second[learners] = (values.detach() for values in personal.values())
                losses += trainer.losses
            progress.update(part.stop)
    backbone.requires_grad_(True)
    return Devices(design.family, first, second, losses)


class DeviceTrainer:
    """Trains one group of users."""

    def __init__(
        self,
        backbone: Backbone,
        tokens: Tokens,
        options: FitOptions,
        users: Sequence[int],
        watch: Callable[[float], None] = lambda share: None,
    ) -> None:
        """`watch` is called after each step with the share of the steps that are done."""
        self.backbone, self.tokens, self.options, self.users = backbone, tokens, options, list(users)
        self.watch = watch
        self.losses: list[dict[str, float]] = []
        self.keys: Keys | None = None

    def train(
        self,
        personal: Personal,
        train: Examples,
        validation: Examples,
        own: Sequence[IntArray],
        held_out: Sequence[IntArray],
    ) -> None:
        """Fit the parameters, and leave each user's at its best check."""
        options, steps = self.options, self.options.device_steps
        if self.backbone.reuses:
            used = np.concatenate([train.text[np.concatenate(own)], validation.text[np.concatenate(held_out)]])
            with torch.no_grad():
                self.keys = self.backbone.read(self.tokens, torch.as_tensor(np.unique(used)), options.batch)
        optimizer = torch.optim.AdamW(personal.trained, lr=options.device_rate, eps=1e-8, weight_decay=0.0)
        randoms = [seeded(options.seed, user) for user in self.users]
        best = BestOfUsers(personal.trained, [len(rows) > 0 for rows in held_out])
        check_every = max(1, steps // CHECKS)
        for step in range(steps):
            for group in optimizer.param_groups:
                group["lr"] = options.device_rate * linear_schedule(step, steps)
            rows = np.stack([_cycle(rows, step, options.device_batch) for rows in own])
            loss = self._step(personal, train, rows, randoms, optimizer)
            self.watch((step + 1) / steps)
            if (step + 1) % check_every == 0 or step + 1 == steps:
                held = self.validate(personal, validation, held_out)
                best.update(personal.trained, held)
                self.losses.append({"step": step + 1, "loss": loss, "eval_loss": float(np.nanmean(held))})
        best.restore(personal.trained)

    def _step(
        self,
        personal: Personal,
        examples: Examples,
        rows: IntArray,
        randoms: Sequence[torch.Generator],
        optimizer: torch.optim.Optimizer,
    ) -> float:
        """One step of every user on its texts `rows` (users, batch). Returns the mean loss."""
        users, batch = rows.shape
        optimizer.zero_grad(set_to_none=True)
        drawn = personal.embed(batch, randoms).flatten(0, 1)
        leaf = drawn.detach().requires_grad_()
        losses = self._measure(personal, examples, rows.ravel(), np.arange(users).repeat(batch), leaf, 1 / batch)
        if leaf.grad is not None and drawn.requires_grad:
            drawn.backward(leaf.grad)
        clip_per_user([raw.grad for raw in personal.trained if raw.grad is not None])
        optimizer.step()
        personal.finish_step()
        return float(losses.mean())

    def _measure(
        self, personal: Personal, examples: Examples, rows: IntArray, users: IntArray, embeddings: Tensor, scale: float
    ) -> Tensor:
        """The loss of each row; with a `scale`, gradients of the scaled sum are left in `embeddings` and adapters."""
        texts, labels = torch.as_tensor(examples.text[rows]), torch.as_tensor(examples.label[rows])
        owner = torch.as_tensor(users)
        losses = torch.empty(len(rows))
        for some in self.tokens.passes(texts, self.options.micro_batch, cached=self.keys is not None):
            personal.select(owner[some])
            with torch.set_grad_enabled(scale > 0):
                measured = self.backbone.measure(self.tokens, texts[some], labels[some], embeddings[some], self.keys)
                if scale > 0:
                    (measured.loss.sum() * scale).backward()
            losses[some] = measured.loss.detach().float()
        return losses

    def validate(self, personal: Personal, validation: Examples, held_out: Sequence[IntArray]) -> IntArray:
        """(users,) the mean loss of each user on its validation texts, with the same draws at every check."""
        with torch.no_grad():
            counts = np.array([len(rows) for rows in held_out])
            if not counts.any():
                return np.full(len(counts), np.nan)
            randoms = [seeded(self.options.seed + 1, user) for user in self.users]
            drawn = personal.embed(VALIDATION_DRAWS, randoms)
            rows, users = np.concatenate(held_out), np.arange(len(counts)).repeat(counts)
            total = np.zeros(len(counts))
            for number in range(VALIDATION_DRAWS):
                embeddings = drawn[torch.as_tensor(users), number]
                loss = self._measure(personal, validation, rows, users, embeddings, 0.0)
                total += np.bincount(users, loss.numpy(), len(counts)) / VALIDATION_DRAWS
            return np.where(counts > 0, total / np.maximum(counts, 1), np.nan)


class BestOfUsers:
    """Copies of each user's tensors at its lowest validation loss."""

    def __init__(self, tensors: Sequence[Tensor], validated: Sequence[bool]) -> None:
        self.best = [tensor.detach().clone() for tensor in tensors]
        self.loss = np.full(len(validated), np.inf)
        self.validated = np.asarray(validated)

    def update(self, tensors: Sequence[Tensor], loss: IntArray) -> None:
        """Take over the users whose loss is lower than before; those without validation texts always."""
        with torch.no_grad():
            better = ~self.validated | (loss < self.loss)
            self.loss = np.where(better, loss, self.loss)
            chosen = torch.as_tensor(better)
            for kept, tensor in zip(self.best, tensors, strict=True):
                kept[chosen] = tensor[chosen]

    def restore(self, tensors: Sequence[Tensor]) -> None:
        """Put the copies in place."""
        with torch.no_grad():
            for kept, tensor in zip(self.best, tensors, strict=True):
                tensor.copy_(kept)


def seeded(seed: int, user: int) -> torch.Generator:
    """A generator of a user's own."""
    state = int(np.random.SeedSequence([seed, user]).generate_state(1, np.uint64)[0] >> np.uint64(1))
    return torch.Generator().manual_seed(state)


def linear_schedule(step: int, steps: int) -> float:
    """The share of the learning rate: up during the warm-up, then down to 0 after the last step."""
    warmup = max(1, round(WARMUP * steps))
    return (step + 1) / warmup if step < warmup else (steps - step) / (steps - warmup + 1)


def clip_per_user(gradients: Sequence[Tensor]) -> None:
    """Scale each user's gradient, (users, ...), to a norm of CLIP at most."""
    norm = sum(gradient.flatten(1).square().sum(1) for gradient in gradients)
    scale = (CLIP / (torch.as_tensor(norm).sqrt() + 1e-6)).clamp(max=1.0)
    for gradient in gradients:
        gradient.mul_(scale.view(-1, *[1] * (gradient.ndim - 1)))


def _cycle(rows: IntArray, step: int, batch: int) -> IntArray:
    """A step's texts of a user, who goes through them again and again."""
    return rows[(step * batch + np.arange(batch)) % len(rows)]
