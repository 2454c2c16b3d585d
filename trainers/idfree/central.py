"""Training on pooled texts: the loop that the central and the personalized training share, and the central one.

Central training (papers file, section 4.3, step 2) knows no users: all repetitions of a text with one class are one
example with a weight. It reads the mean of the prior where the embedding will be, so that the head reads the same
position from the start (a departure: the released code has no such position in the central model).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import torch
from torch import Tensor

from agentsys.progress import Progress
from agentsys.trainers.idfree.data import Data, Examples, IntArray
from agentsys.trainers.idfree.designs import Design
from agentsys.trainers.idfree.devices import linear_schedule
from agentsys.trainers.idfree.network import Backbone, Tokens
from agentsys.trainers.idfree.options import FitOptions
from agentsys.trainers.loading import TrainerError

Embed = Callable[[Tensor, torch.Generator], Tensor]
"""Embeddings (R, n_tokens, width) of rows whose users are (R,)."""
Losses = list[dict[str, float]]

DECAY: Final = 0.05
CLIP: Final = 5.0
HEAD_FACTOR: Final = 10.0
"""The new head learns so many times as fast as the network."""
CHECKS: Final = 5
"""Evaluations on the validation texts; the weights with the lowest loss are kept."""
VALIDATION_ROWS: Final = 4_096


def constant_embed(embedding: Tensor) -> Embed:
    """The same embedding for every row."""
    return lambda users, _: embedding.expand(len(users), -1, -1)


@dataclass(frozen=True, slots=True)
class Loop:
    """Sizes of one pooled training."""

    label: str
    steps: int
    batch: int
    rate: float
    lora: int = 0


def train_central(
    backbone: Backbone, tokens: Tokens, data: Data, design: Design, options: FitOptions, lora: int
) -> Losses:
    """Train the whole model without users. Returns the losses."""
    pairs, counts = np.unique(np.stack([data.train.text, data.train.label]), axis=1, return_counts=True)
    distinct = Examples(pairs[0], pairs[1], np.zeros(pairs.shape[1], np.int64))
    steps = max(options.central_steps, math.ceil(options.central_epochs * len(distinct) / options.batch))
    prior = design.prior_mean()

    loop = Loop("central", steps, options.batch, options.central_rate, lora)
    return fit_pooled(backbone, tokens, distinct, counts, data.validation, constant_embed(prior), loop, options)


def fit_pooled(
    backbone: Backbone,
    tokens: Tokens,
    train: Examples,
    weights: IntArray,
    validation: Examples,
    embed: Embed,
    loop: Loop,
    options: FitOptions,
) -> Losses:
    """Train network and head on rows with weights, and leave the weights with the lowest validation loss.

    Raises TrainerError for a loss that is not finite.
    """
    torch.manual_seed(options.seed)
    random = torch.Generator().manual_seed(options.seed)
    order = np.random.default_rng(options.seed)
    held_out = validation.take(order.permutation(len(validation))[:VALIDATION_ROWS])
    adapted = _add_lora(backbone, loop.lora) if loop.lora else None
    optimizer = _make_optimizer(backbone, loop.rate)
    rates = [group["lr"] for group in optimizer.param_groups]
    best: dict[str, Tensor] = {}
    lowest, losses = math.inf, list[dict[str, float]]()
    rows = np.empty(0, np.int64)
    with Progress("steps", loop.steps, step=loop.label) as progress:
        for step in range(loop.steps):
            while len(rows) < loop.batch:
                rows = np.concatenate([rows, order.permutation(len(train))])
            chosen, rows = rows[: loop.batch], rows[loop.batch :]
            for group, rate in zip(optimizer.param_groups, rates, strict=True):
                group["lr"] = rate * linear_schedule(step, loop.steps)
            loss = _step(backbone, tokens, train.take(chosen), weights[chosen], embed, optimizer, random, options)
            if not math.isfinite(loss):
                raise TrainerError(
                    f"the loss is {loss} at step {step + 1} of the {loop.label} training: lower its rate"
                )
            if (step + 1) % max(1, loop.steps // CHECKS) == 0 or step + 1 == loop.steps:
                held = evaluate_loss(backbone, tokens, held_out, embed, options)
                losses.append({"step": step + 1, "loss": loss, "eval_loss": held})
                if not held >= lowest:  # a NaN, where there is nothing to validate on, takes the last weights
                    lowest = held
                    best = {name: weight.detach().clone() for name, weight in _trained(backbone)}
            progress.update(step + 1)
    with torch.no_grad():
        for name, weight in _trained(backbone):
            weight.copy_(best[name])
    if adapted is not None:
        adapted.merge_and_unload()
    backbone.eval().requires_grad_(True)
    return losses


def _step(
    backbone: Backbone,
    tokens: Tokens,
    batch: Examples,
    weights: IntArray,
    embed: Embed,
    optimizer: torch.optim.Optimizer,
    random: torch.Generator,
    options: FitOptions,
) -> float:
    """One step on a batch, in several passes where it does not fit into one. Returns the mean loss."""
    backbone.train()
    optimizer.zero_grad(set_to_none=True)
    texts, labels = torch.as_tensor(batch.text), torch.as_tensor(batch.label)
    share = torch.as_tensor(weights / weights.sum(), dtype=torch.float32)
    total = 0.0
    for some in tokens.passes(texts, options.micro_batch, shared=backbone.reuses):
        embeddings = embed(torch.as_tensor(batch.user)[some], random)
        loss = (backbone.measure(tokens, texts[some], labels[some], embeddings).loss * share[some]).sum()
        loss.backward()
        total += float(loss.detach())
    torch.nn.utils.clip_grad_norm_([weight for _, weight in _trained(backbone)], CLIP)
    optimizer.step()
    return total


def evaluate_loss(backbone: Backbone, tokens: Tokens, rows: Examples, embed: Embed, options: FitOptions) -> float:
    """The mean loss of rows; NaN without any. The draws are the same at every call."""
    with torch.no_grad():
        backbone.eval()
        random = torch.Generator().manual_seed(options.seed + 1)
        texts, labels, users = (torch.as_tensor(values) for values in (rows.text, rows.label, rows.user))
        total = 0.0
        for some in tokens.passes(texts, options.micro_batch, shared=backbone.reuses):
            embeddings = embed(users[some], random)
            total += float(backbone.measure(tokens, texts[some], labels[some], embeddings).loss.sum())
        return total / len(rows) if len(rows) else math.nan


def _trained(backbone: Backbone) -> list[tuple[str, Any]]:
    return [(name, weight) for name, weight in backbone.named_parameters() if weight.requires_grad]


def _make_optimizer(backbone: Backbone, rate: float) -> torch.optim.Optimizer:
    head = set(backbone.head.parameters()) if backbone.head is not None else set()
    rest = [weight for _, weight in _trained(backbone) if weight not in head]
    groups: list[dict[str, Any]] = [{"params": rest, "lr": rate}, {"params": list(head), "lr": HEAD_FACTOR * rate}]
    return torch.optim.AdamW([group for group in groups if group["params"]], weight_decay=DECAY)


def _add_lora(backbone: Backbone, rank: int) -> Any:
    """Adapters on all linear layers of the network, which alone are trained beside the head."""
    from peft import LoraConfig, get_peft_model

    settings = LoraConfig(r=rank, lora_alpha=2 * rank, target_modules="all-linear")
    return get_peft_model(backbone.network, settings)
