"""The control: separate attention over time and over sensors, at the cost of STAEformer (papers file, section 3.1).

Every sensor at every step is a token, (B, T, N, d). One layer attends over the T steps of each sensor, one over the N
sensors at each step: scores of B h (N T^2 + T N^2) values, where Extralonger needs B (2 h T^2 + 2 d^2 + h N^2). Layers
and embeddings are those of `model.py`, so that a comparison measures the attention and nothing else.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from agentsys.trainers.traffic.config import ExtralongerConfig, Shape
from agentsys.trainers.traffic.model import CalendarHead, make_layers


class SeparateAttention(nn.Module):
    """(x (B, T, N, C), time_in (B, T, 2), time_out (B, O, 2)) -> (B, O, N), or (B, O, N, Q) with Q > 1.

    A token is [Linear(C -> e - s)(x) | time of day (a) | day of the week (w) | sensor at this step (s)], of width d.
    The embedding of a sensor at a step is learned, as STAEformer's. The output is Linear(T -> O), then Linear(d -> Q).
    """

    def __init__(self, shape: Shape, config: ExtralongerConfig | None = None, fused: bool = True) -> None:
        super().__init__()
        self.shape, self.config = shape, config or ExtralongerConfig()
        config = self.config
        adaptive = max(config.value_dim // 2, 1)
        self.value = nn.Linear(shape.channels, config.value_dim - adaptive)
        self.time_of_day = nn.Embedding(shape.steps_per_day, config.time_dim)
        self.day_of_week = nn.Embedding(7, config.day_dim)
        self.adaptive = nn.Parameter(nn.init.xavier_uniform_(torch.empty(shape.steps_in, shape.sensors, adaptive)))
        self.temporal = make_layers(config.layers, config.dim, config.heads, config, fused=fused)
        self.spatial = make_layers(config.layers, config.dim, config.heads, config, fused=fused)
        self.project = nn.Linear(shape.steps_in, shape.steps_out)
        self.output = nn.Linear(config.dim, shape.outputs)
        if shape.known:
            self.calendar = CalendarHead(shape, config.calendar_dim)

    def last_layers(self) -> list[nn.Linear]:
        """With this map at zero, the forecast is zero."""
        return [self.output]

    def forward(self, x: Tensor, time_in: Tensor, time_out: Tensor, known: Tensor | None = None) -> Tensor:
        """Attend over time, then over sensors."""
        time = torch.cat([self.time_of_day(time_in[..., 0]), self.day_of_week(time_in[..., 1])], -1)
        shared = time[:, :, None].expand(-1, -1, x.shape[2], -1)
        tokens = torch.cat([self.value(x), shared, self.adaptive.expand(len(x), -1, -1, -1)], -1)
        tokens = self.temporal(tokens.transpose(1, 2)).transpose(1, 2)
        tokens = self.spatial(tokens)
        output = self.output(self.project(tokens.transpose(1, -1)).transpose(1, -1))
        if known is not None and self.shape.known:
            output = output + self.calendar(time_out, known)
        return output if self.shape.outputs > 1 else output.squeeze(-1)
