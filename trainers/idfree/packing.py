"""Rows of one text side by side, so that its keys and values are read once for all users who have it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import torch
from torch import Tensor

MOST_ROWS: Final = 64
"""Rows of one text that are computed side by side; each sees the text and itself."""


@dataclass(frozen=True, slots=True)
class Packing:
    """Where each row is computed: chunks of up to `rows` rows, each chunk with one text."""

    chunk_text: Tensor
    """(C,) the text of each chunk."""
    slot: Tensor
    """(R,) the place of each row among the C x rows places."""
    rows: int
    """Places per chunk."""

    def row_of_place(self) -> Tensor:
        """(C x rows,) the row at each place; 0 at an empty one."""
        rows = torch.zeros(len(self.chunk_text) * self.rows, dtype=torch.long, device=self.slot.device)
        rows[self.slot] = torch.arange(len(self.slot), device=self.slot.device)
        return rows


def pack(texts: Tensor) -> Packing:
    """Pack rows by their text, (R,): a chunk has as many places as a text has rows on average."""
    order = torch.argsort(texts, stable=True)
    unique, counts = torch.unique_consecutive(texts[order], return_counts=True)
    rows = min(MOST_ROWS, -(-len(texts) // len(unique)))
    chunks = -(-counts // rows)
    first_row, first_chunk = counts.cumsum(0) - counts, chunks.cumsum(0) - chunks
    rank = torch.arange(len(texts), device=texts.device) - first_row.repeat_interleave(counts)
    slot = torch.empty_like(texts)
    slot[order] = first_chunk.repeat_interleave(counts) * rows + rank
    return Packing(unique.repeat_interleave(chunks), slot, rows)


def text_mask(lengths: Tensor, width: int) -> Tensor:
    """(T, width) which positions of right-padded texts hold a token."""
    return torch.arange(width, device=lengths.device) < lengths[:, None]


def additive(allowed: Tensor, dtype: torch.dtype) -> Tensor:
    """An attention mask to add: 0 where a position may be seen, else the lowest number."""
    return torch.zeros(allowed.shape, dtype=dtype, device=allowed.device).masked_fill(~allowed, torch.finfo(dtype).min)


def packed_mask(lengths: Tensor, width: int, rows: int, n_tokens: int, causal: bool) -> Tensor:
    """(C, 1, rows x n, width + rows x n) a row's embedding sees its text and itself, and no other row.

    `lengths` (C,) are those of the texts, `width` the padded length of their keys.
    """
    own = torch.ones(n_tokens, n_tokens, dtype=torch.bool, device=lengths.device)
    own = torch.block_diag(*[own.tril() if causal else own] * rows).bool()
    text = text_mask(lengths, width)[:, None].expand(-1, len(own), -1)
    return torch.cat([text, own.expand(len(lengths), -1, -1)], -1)[:, None]


def hiding_mask(lengths: Tensor, width: int, n_tokens: int) -> Tensor:
    """(R, 1, width + n, width + n) a text sees itself; the embedding, which follows it, sees both.

    `width` is the padded length of the texts; a text's embedding begins right after its last token.
    """
    place = torch.arange(width + n_tokens, device=lengths.device)
    is_text = place < lengths[:, None]
    is_used = place < lengths[:, None] + n_tokens
    return (is_used[:, None, :] & (is_text[:, None, :] | ~is_text[:, :, None]))[:, None]
