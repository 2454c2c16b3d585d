"""The negative log-likelihood of chunks under a causal model, without holding all logits in memory.

MiniPLM's scores and the loss of the student use the same function, so both count the same tokens: all but the first of
a chunk and the first of each document that begins inside it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Final, cast

import numpy as np
import torch
from torch import nn
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

from agentsys.trainers.loading import TrainerError

if TYPE_CHECKING:
    from transformers import PreTrainedModel

Ids = np.ndarray[Any, np.dtype[Any]]
"""Token ids (T,), or lengths: integers."""

HEAD_ELEMENTS: Final = 2**25
"""Logits in memory at a time: 128 MiB in fp32, for any vocabulary."""


def sum_nll(model: PreTrainedModel, ids: torch.Tensor, learned: torch.Tensor) -> torch.Tensor:
    """The negative log-likelihood of each row in nats, summed over its learned tokens: (B,), fp32.

    `ids` are (B, T); `learned` (B, T) is True where the token is predicted from those before it, never at position 0.
    The head is applied to a slice of the learned positions at a time, so that no (B, T, vocabulary) tensor exists, in
    the backward pass neither. Rows are padded on the right, where no learned token sees the padding, so no attention
    mask is needed.
    """
    hidden = model.base_model(input_ids=ids[:, :-1], use_cache=False)[0]
    mask = learned[:, 1:]
    states, labels = hidden[mask], ids[:, 1:][mask]
    head = model.get_output_embeddings()
    step = max(1, HEAD_ELEMENTS // head.weight.shape[0])
    parts = [_slice_nll(head, states[i : i + step], labels[i : i + step]) for i in range(0, len(states), step)]
    losses = torch.zeros(mask.shape, device=ids.device)
    if parts:
        losses[mask] = torch.cat(parts)
    return losses.sum(1)


def _slice_nll(head: nn.Module, states: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Negative log-likelihoods (n,) from hidden states (n, H); the backward pass recomputes the logits."""

    def nll(states: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        return functional.cross_entropy(head(states).float(), labels, reduction="none")

    if torch.is_grad_enabled():
        return cast(torch.Tensor, checkpoint(nll, states, labels, use_reentrant=False))
    return nll(states, labels)


def mark_learned(ids: Ids, end_id: int) -> np.ndarray[Any, np.dtype[np.bool_]]:
    """True for each predicted token of a chunk (T,): all but the first and those after a document's end."""
    learned = np.append(False, ids[:-1] != end_id)
    return learned[: len(ids)]


def check_head(model: PreTrainedModel) -> None:
    """Raises TrainerError for a model that changes its logits after the head (soft caps, scales)."""
    ids = torch.arange(4, device=model.device)[None]
    training = model.training
    model.eval()  # with dropout, two passes would always differ
    with torch.no_grad():
        ours = model.get_output_embeddings()(model.base_model(input_ids=ids, use_cache=False)[0])
        theirs = model(input_ids=ids, use_cache=False).logits
    model.train(training)
    if not torch.allclose(ours.float(), theirs.float(), rtol=1e-3, atol=1e-3, equal_nan=True):
        raise TrainerError(
            f"{model.config.model_type} changes its logits after the head (soft cap or scale), which "
            "scoring in slices would miss; choose a model of another family"
        )


def pad_chunks(chunks: Sequence[Ids], end_id: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Chunks as one batch: ids (B, T), padded with zeros on the right, and `mark_learned` of each (B, T)."""
    width = max(len(ids) for ids in chunks)
    batch = torch.zeros(len(chunks), width, dtype=torch.long)
    learned = torch.zeros(len(chunks), width, dtype=torch.bool)
    for row, ids in enumerate(chunks):
        batch[row, : len(ids)] = torch.from_numpy(ids.astype(np.int64))
        learned[row, : len(ids)] = torch.from_numpy(mark_learned(ids, end_id))
    return batch, learned


def mean_nll(model: PreTrainedModel, chunks: Sequence[Ids], end_id: int) -> tuple[list[float], list[int]]:
    """Mean nats per token of each chunk (NaN where no token is predicted), and its number of predicted tokens."""
    ids, learned = pad_chunks(chunks, end_id)
    counts = learned.sum(1)
    if not counts.any():
        return [float("nan")] * len(chunks), counts.tolist()
    with torch.inference_mode():
        sums = sum_nll(model, ids.to(model.device), learned.to(model.device)).cpu()
    return (sums / counts).tolist(), counts.tolist()


def plan_batches(lengths: Ids, batch_tokens: int) -> list[Ids]:
    """Batches of chunk positions, sorted by length, the longest first, so that batches have little padding."""
    order = np.argsort(-lengths, kind="stable")
    batches, start = [], 0
    while start < len(order):
        size = max(1, batch_tokens // max(1, int(lengths[order[start]])))
        batches.append(order[start : start + size])
        start += size
    return batches
