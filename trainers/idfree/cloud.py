"""Personalized training on the cloud (papers file, section 4.3, step 4).

The whole model is trained on the pooled texts. Each row comes with a fresh draw from its user's distribution, to which
no gradient goes: what the cloud sees of a user is text, class and draw. (The released code draws one embedding per user
and forward pass.)
"""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor

from agentsys.trainers.idfree.central import Embed, Loop, Losses, fit_pooled
from agentsys.trainers.idfree.data import Data
from agentsys.trainers.idfree.designs import draw
from agentsys.trainers.idfree.devices import Devices
from agentsys.trainers.idfree.network import Backbone, Tokens
from agentsys.trainers.idfree.options import FitOptions


def draw_embeddings(devices: Devices) -> Embed:
    """A fresh embedding for each row from the distribution of its user."""

    def embed(users: Tensor, random: torch.Generator) -> Tensor:
        with torch.no_grad():
            return draw(devices.family, *devices.of(users), random)

    return embed


def train_cloud(
    backbone: Backbone, tokens: Tokens, data: Data, embed: Embed, options: FitOptions, lora: int, label: str = "cloud"
) -> Losses:
    """Train the central model further on texts with embeddings. Returns the losses."""
    steps = math.ceil(options.cloud_epochs * len(data.train) / options.cloud_batch)
    loop = Loop(label, steps, options.cloud_batch, options.cloud_rate, lora)
    weights = np.ones(len(data.train), np.int64)
    return fit_pooled(backbone, tokens, data.train, weights, data.validation, embed, loop, options)
