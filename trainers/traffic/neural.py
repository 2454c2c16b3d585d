"""Compact forms of three networks to compare with: DLinear, STID and iTransformer.

Each takes what Extralonger takes, (x (B, T, N, C), time_in (B, T, 2), time_out (B, O, 2)), and gives (B, O, N), or
(B, O, N, Q) with Q > 1 outputs. With covariates that are known beforehand they get the same calendar head.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from agentsys.trainers.traffic.attention import Attention, Layer
from agentsys.trainers.traffic.config import Shape
from agentsys.trainers.traffic.model import CalendarHead

CALENDAR_DIM = 32
"""Width of the calendar head."""


class _Network(nn.Module):
    """Adds the calendar, and drops the axis of outputs if there is one."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.shape = shape
        if shape.known:
            self.calendar = CalendarHead(shape, CALENDAR_DIM)

    def forward(self, x: Tensor, time_in: Tensor, time_out: Tensor, known: Tensor | None = None) -> Tensor:
        output = self.forecast(x, time_in).unflatten(-1, (self.shape.steps_out, self.shape.outputs)).transpose(1, 2)
        if known is not None and self.shape.known:
            output = output + self.calendar(time_out, known)
        return output if self.shape.outputs > 1 else output.squeeze(-1)

    def forecast(self, x: Tensor, time_in: Tensor) -> Tensor:
        """(B, N, O Q)."""
        raise NotImplementedError

    def last_layers(self) -> list[nn.Linear]:
        """The last linear maps: with these at zero, the forecast is zero (iTransformer's the mean of its input)."""
        return [self.output]


class DLinear(_Network):
    """Zeng et al. (arXiv 2205.13504), section 4: linear maps of trend and remainder, shared by the sensors.

    The trend is a moving average over `kernel` steps, 25 as in the paper, with the ends repeated. Only channel 0 is
    read.
    """

    def __init__(self, shape: Shape, kernel: int = 25) -> None:
        super().__init__(shape)
        self.kernel = kernel
        outputs = shape.steps_out * shape.outputs
        self.trend, self.remainder = (nn.Linear(shape.steps_in, outputs) for _ in range(2))

    def last_layers(self) -> list[nn.Linear]:
        return [self.trend, self.remainder]

    def forecast(self, x: Tensor, time_in: Tensor) -> Tensor:
        series = x[..., 0].transpose(1, 2)
        left = (self.kernel - 1) // 2
        padded = functional.pad(series, (left, self.kernel - 1 - left), mode="replicate")
        trend = functional.avg_pool1d(padded, self.kernel, stride=1)
        output: Tensor = self.trend(trend) + self.remainder(series - trend)
        return output


class STID(_Network):
    """Shao et al. (arXiv 2208.05233), section 3: a perceptron on history and identities of sensor, time and day.

    The time is that of the last input step. Widths and number of blocks are those of the released code.
    """

    def __init__(self, shape: Shape, dim: int = 32, blocks: int = 3) -> None:
        super().__init__(shape)
        self.history = nn.Linear(shape.steps_in * shape.channels, dim)
        self.sensor = nn.Parameter(nn.init.xavier_uniform_(torch.empty(shape.sensors, dim)))
        self.time_of_day = nn.Embedding(shape.steps_per_day, dim)
        self.day_of_week = nn.Embedding(7, dim)
        width = 4 * dim
        self.blocks = nn.ModuleList(
            nn.Sequential(nn.Linear(width, width), nn.ReLU(), nn.Dropout(0.15), nn.Linear(width, width))
            for _ in range(blocks)
        )
        self.output = nn.Linear(width, shape.steps_out * shape.outputs)

    def forecast(self, x: Tensor, time_in: Tensor) -> Tensor:
        size = (len(x), x.shape[2], -1)
        last = time_in[:, -1]
        token = torch.cat(
            [
                self.history(x.transpose(1, 2).flatten(-2)),
                self.sensor.expand(size),
                self.time_of_day(last[:, 0])[:, None].expand(size),
                self.day_of_week(last[:, 1])[:, None].expand(size),
            ],
            -1,
        )
        for block in self.blocks:
            token = token + block(token)
        output: Tensor = self.output(token)
        return output


class ITransformer(_Network):
    """Liu et al. (arXiv 2310.06625), section 3: attention over sensors, each token the history of one.

    Every window and sensor is normalized to mean 0 and variance 1 and mapped back after it, as in the released code.
    """

    def __init__(self, shape: Shape, dim: int = 128, heads: int = 8, layers: int = 2, dropout: float = 0.1) -> None:
        super().__init__(shape)
        self.history = nn.Linear(shape.steps_in * shape.channels, dim)
        self.layers = nn.Sequential(*(Layer(Attention(dim, heads), dim, dim, dropout) for _ in range(layers)))
        self.output = nn.Linear(dim, shape.steps_out * shape.outputs)

    def forecast(self, x: Tensor, time_in: Tensor) -> Tensor:
        value = x[..., 0]
        mean, std = value.mean(1, keepdim=True), value.std(1, correction=0, keepdim=True) + 1e-5
        x = torch.cat([((value - mean) / std)[..., None], x[..., 1:]], -1)
        output: Tensor = self.output(self.layers(self.history(x.transpose(1, 2).flatten(-2))))
        return output * std.transpose(1, 2) + mean.transpose(1, 2)
