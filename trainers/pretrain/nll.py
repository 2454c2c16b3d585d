"""The negative log-likelihood of chunks under a causal model, without ever holding all of its logits.

One function serves the scores of MiniPLM and the loss of the student that is trained on what they select, so that both
count the same tokens: every one but the first of a chunk and the first of a document that begins inside it.
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
"""Token ids (T,), or lengths: whole numbers."""

HEAD_ELEMENTS: Final = 2**25
"""Logits held in fp32 at once: 128 MiB, whatever the vocabulary."""


def summed_nll(model: PreTrainedModel, ids: torch.Tensor, learned: torch.Tensor) -> torch.Tensor:
    """Negative log-likelihood of each row in nats, summed over its learned tokens: (B,), fp32.

    `ids` (B, T) and `learned` (B, T): True where the token at that position is predicted from those before it; position
    0 never is. The head is applied to a slice of the learned positions at a time, so that no (B, T, vocabulary) tensor
    exists, nor does one in the backward pass. Rows are padded on the right, where no learned token sees the padding:
    so there is no attention mask.
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
    """Negative log-likelihoods (n,) from hidden states (n, H); the backward pass computes the logits again."""

    def nll(states: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        return functional.cross_entropy(head(states).float(), labels, reduction="none")

    if torch.is_grad_enabled():
        return cast(torch.Tensor, checkpoint(nll, states, labels, use_reentrant=False))
    return nll(states, labels)


def learned_tokens(ids: Ids, end_id: int) -> np.ndarray[Any, np.dtype[np.bool_]]:
    """True at each token of a chunk (T,) that is predicted: all but the first and those behind a document's end."""
    learned = np.append(False, ids[:-1] != end_id)
    return learned[: len(ids)]


def check_head(model: PreTrainedModel) -> None:
    """Raises TrainerError where the model does more to its last hidden state than its head does (soft caps, scales)."""
    ids = torch.arange(4, device=model.device)[None]
    training = model.training
    model.eval()  # two passes with dropout would differ whatever the head does
    with torch.no_grad():
        ours = model.get_output_embeddings()(model.base_model(input_ids=ids, use_cache=False)[0])
        theirs = model(input_ids=ids, use_cache=False).logits
    model.train(training)
    if not torch.allclose(ours.float(), theirs.float(), rtol=1e-3, atol=1e-3, equal_nan=True):
        raise TrainerError(
            f"{model.config.model_type} changes its logits behind the head (a soft cap or a scale), which scoring "
            "in slices leaves out; choose a model of another family"
        )


def padded(chunks: Sequence[Ids], end_id: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Chunks as one batch: ids (B, T), zeros behind the end of a row, and `learned_tokens` (B, T)."""
    width = max(len(ids) for ids in chunks)
    batch = torch.zeros(len(chunks), width, dtype=torch.long)
    learned = torch.zeros(len(chunks), width, dtype=torch.bool)
    for row, ids in enumerate(chunks):
        batch[row, : len(ids)] = torch.from_numpy(ids.astype(np.int64))
        learned[row, : len(ids)] = torch.from_numpy(learned_tokens(ids, end_id))
    return batch, learned


def mean_nll(model: PreTrainedModel, chunks: Sequence[Ids], end_id: int) -> tuple[list[float], list[int]]:
    """Nats a token of each chunk (NaN where no token is predicted), and how many tokens that is the mean of."""
    ids, learned = padded(chunks, end_id)
    counts = learned.sum(1)
    if not counts.any():
        return [float("nan")] * len(chunks), counts.tolist()
    with torch.inference_mode():
        sums = summed_nll(model, ids.to(model.device), learned.to(model.device)).cpu()
    return (sums / counts).tolist(), counts.tolist()


def plan(lengths: Ids, batch_tokens: int) -> list[Ids]:
    """Batches of places, the longest chunks first: like lengths together, so that little of a batch is padding."""
    order = np.argsort(-lengths, kind="stable")
    batches, start = [], 0
    while start < len(order):
        size = max(1, batch_tokens // max(1, int(lengths[order[start]])))
        batches.append(order[start : start + size])
        start += size
    return batches
