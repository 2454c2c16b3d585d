"""Predictions of a model for rows with embeddings."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from agentsys.trainers.idfree.central import Embed
from agentsys.trainers.idfree.data import Examples, IntArray
from agentsys.trainers.idfree.network import Backbone, Tokens
from agentsys.trainers.idfree.options import FitOptions


@dataclass(frozen=True, slots=True)
class Predictions:
    """Of each row, (R,): correct predictions, their number (1, or the learned tokens), and the class (-1 for words)."""

    correct: IntArray
    count: IntArray
    label: IntArray

    def put(self, rows: IntArray, other: Predictions) -> None:
        """Take over the predictions of some rows."""
        for name in ("correct", "count", "label"):
            getattr(self, name)[rows] = getattr(other, name)


def predict(
    backbone: Backbone, tokens: Tokens, rows: Examples, embed: Embed, options: FitOptions, owner: Tensor | None = None
) -> Predictions:
    """Predictions of rows, each with one embedding. `owner` (R,) is what `embed` gets; default: the rows' users."""
    with torch.no_grad():
        backbone.eval()
        random = torch.Generator().manual_seed(options.seed + 2)
        texts, labels = torch.as_tensor(rows.text), torch.as_tensor(rows.label)
        owner = torch.as_tensor(rows.user) if owner is None else owner
        correct, count, label = (np.full(len(rows), -1, np.int64) for _ in range(3))
        for some in tokens.passes(texts, options.micro_batch, shared=backbone.reuses):
            measured = backbone.measure(tokens, texts[some], labels[some], embed(owner[some], random))
            for values, ones in ((correct, measured.correct), (count, measured.count), (label, measured.label)):
                values[some.numpy()] = ones.numpy()
        return Predictions(correct, count, label)
