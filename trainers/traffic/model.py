"""Extralonger: three routes over one unified representation (arXiv 2411.00844; papers file, section 3.3).

A time step is one token that holds all sensors, and a sensor is one token that holds all time steps, so attention costs
O(T^2 + N^2) instead of the O(N T^2 + T N^2) of models that attend over time for every sensor and over sensors for every
step (`control.py`).

    temporal route   T tokens of width d     attention over time steps
    mixed route      T tokens, then d feature tokens of width T
    spatial route    N tokens of width d     Global-Local attention over sensors, with the road graph as local mask
    output           (2 mixed + spatial + temporal) / 4

Symbols: B batch, T steps in, O steps out, N sensors, C input channels, Q outputs per step (quantiles), e, a, w and s
the widths of the embeddings of values, time of day, day of the week and sensors, d = e + a + w.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from agentsys.trainers.loading import TrainerError
from agentsys.trainers.traffic.attention import Attention, Layer
from agentsys.trainers.traffic.config import FUSION, ExtralongerConfig, Route, Shape


class Extralonger(nn.Module):
    """(x (B, T, N, C), time_in (B, T, 2), time_out (B, O, 2)) -> (B, O, N), or (B, O, N, Q) with Q > 1.

    `mask` (N, N) is true for a sensor itself and its neighbors in the road graph; without one, attention is global.
    The time index holds the step of the day and the day of the week; `known` (B, O, K) are the covariates of the
    forecast's steps.
    """

    def __init__(
        self, shape: Shape, mask: Tensor | None, config: ExtralongerConfig | None = None, fused: bool = True
    ) -> None:
        super().__init__()
        self.shape, self.config = shape, config or ExtralongerConfig()
        config = self.config
        self.input_noise = nn.Parameter(nn.init.xavier_uniform_(torch.empty(shape.steps_in, shape.sensors)))
        if {"temporal", "mixed"} & set(config.routes):
            self.temporal_embedding = TemporalEmbedding(shape, config)
        if "temporal" in config.routes:
            self.temporal = TemporalRoute(shape, config, fused)
        if "mixed" in config.routes:
            self.mixed = MixedRoute(shape, config, fused)
        if "spatial" in config.routes:
            self.spatial = SpatialRoute(shape, config, mask, fused)
        if config.fusion == "learned":
            self.fusion = nn.Parameter(torch.tensor([FUSION[route] for route in config.routes]).log())
        if shape.known:
            self.calendar = CalendarHead(shape, config.calendar_dim)

    def forward(self, x: Tensor, time_in: Tensor, time_out: Tensor, known: Tensor | None = None) -> Tensor:
        """Steps 0 to 5 of section 3.3."""
        x = torch.cat([x[..., :1] + self.input_noise[..., None], x[..., 1:]], -1)
        forecasts = self._run_routes(x, time_in)
        weights = self._weights()
        output = sum(weights[i] * forecasts[route] for i, route in enumerate(self.config.routes))
        assert isinstance(output, Tensor)
        if known is not None and self.shape.known:
            output = output + self.calendar(time_out, known)
        return output if self.shape.outputs > 1 else output.squeeze(-1)

    def _run_routes(self, x: Tensor, time_in: Tensor) -> dict[Route, Tensor]:
        """The forecast of each route, (B, O, N, Q)."""
        forecasts: dict[Route, Tensor] = {}
        routes = self.config.routes
        if {"temporal", "mixed"} & set(routes):
            z = self.temporal_embedding(x, time_in)
        if "temporal" in routes:
            forecasts["temporal"] = self.temporal(z)
        if "mixed" in routes:
            forecasts["mixed"] = self.mixed(z)
        if "spatial" in routes:
            forecasts["spatial"] = self.spatial(x)
        return forecasts

    def last_layers(self) -> list[nn.Linear]:
        """The last linear map of each route: with these at zero, the forecast is zero."""
        routes = [getattr(self, route) for route in self.config.routes]
        return [route.last_layer() for route in routes]

    def _weights(self) -> Tensor:
        """Weights of the routes in the order of the configuration, with sum 1."""
        if self.config.fusion == "learned":
            return self.fusion.softmax(0)
        fixed = torch.tensor([FUSION[route] for route in self.config.routes], device=self.input_noise.device)
        return fixed / fixed.sum()

    def sensor_attention(self, x: Tensor) -> Tensor:
        """Attention from sensor to sensor in the first layer, the mean over windows and heads (N, N), for a picture.

        Raises TrainerError for a model without the spatial route.
        """
        if "spatial" not in self.config.routes:
            raise TrainerError("the model has no spatial route, so there is no attention between sensors to show")
        x = torch.cat([x[..., :1] + self.input_noise[..., None], x[..., 1:]], -1)
        layer = self.spatial.layers[0]
        assert isinstance(layer, Layer)
        return layer.attention.weights(self.spatial.embed(x)).mean((0, 1))


def make_layers(count: int, dim: int, heads: int, config: ExtralongerConfig, **attention: object) -> nn.Sequential:
    """`count` layers of width `dim`; `attention` are further arguments of Attention."""
    return nn.Sequential(
        *(
            Layer(Attention(dim, heads, **attention), dim, config.feed_forward, config.dropout)  # type: ignore[arg-type]
            for _ in range(count)
        )
    )


class TemporalEmbedding(nn.Module):
    """Step 1: z = [Linear(N C -> e)(x) | time of day (a) | day of the week (w)] of each time step, (B, T, d)."""

    def __init__(self, shape: Shape, config: ExtralongerConfig) -> None:
        super().__init__()
        self.value = nn.Linear(shape.sensors * shape.channels, config.value_dim)
        self.time_of_day = nn.Embedding(shape.steps_per_day, config.time_dim)
        self.day_of_week = nn.Embedding(7, config.day_dim)

    def forward(self, x: Tensor, time: Tensor) -> Tensor:
        return torch.cat(
            [self.value(x.flatten(-2)), self.time_of_day(time[..., 0]), self.day_of_week(time[..., 1])], -1
        )


class TimeProjection(nn.Module):
    """Linear(T -> O) over the time axis of (B, T, N, Q)."""

    def __init__(self, steps_in: int, steps_out: int) -> None:
        super().__init__()
        self.linear = nn.Linear(steps_in, steps_out)

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(x.transpose(1, -1)).transpose(1, -1)


class TemporalRoute(nn.Module):
    """Step 2: attention over time steps; if T != O, a projection over time follows."""

    def __init__(self, shape: Shape, config: ExtralongerConfig, fused: bool) -> None:
        super().__init__()
        self.layers = make_layers(config.layers, config.dim, config.heads, config, fused=fused)
        self.output = nn.Linear(config.dim, shape.sensors * shape.outputs)
        same = shape.steps_in == shape.steps_out
        self.project = nn.Identity() if same else TimeProjection(shape.steps_in, shape.steps_out)
        self.size = (shape.sensors, shape.outputs)

    def forward(self, z: Tensor) -> Tensor:
        return self.project(self.output(self.layers(z)).unflatten(-1, self.size))

    def last_layer(self) -> nn.Linear:
        return self.project.linear if isinstance(self.project, TimeProjection) else self.output


class MixedRoute(nn.Module):
    """Step 3: layers of its own over T tokens, then over the d feature tokens of width T, without a mask.

    The layers of width T have two heads; the released code fails for an odd T, which has one head here.
    """

    def __init__(self, shape: Shape, config: ExtralongerConfig, fused: bool) -> None:
        super().__init__()
        self.layers = make_layers(config.layers, config.dim, config.heads, config, fused=fused)
        heads = 1 if shape.steps_in % 2 else 2
        self.feature_layers = make_layers(config.layers, shape.steps_in, heads, config, fused=fused)
        self.output = nn.Linear(config.dim, shape.sensors * shape.outputs)
        self.project = TimeProjection(shape.steps_in, shape.steps_out)
        self.size = (shape.sensors, shape.outputs)

    def forward(self, z: Tensor) -> Tensor:
        features = self.feature_layers(self.layers(z).transpose(1, 2))
        return self.project(self.output(features.transpose(1, 2)).unflatten(-1, self.size))

    def last_layer(self) -> nn.Linear:
        return self.project.linear


class SpatialRoute(nn.Module):
    """Step 4: Global-Local attention over sensors; a token is [Linear(T C -> d - s)(x) | sensor embedding (s)]."""

    def __init__(self, shape: Shape, config: ExtralongerConfig, mask: Tensor | None, fused: bool) -> None:
        super().__init__()
        self.history = nn.Linear(shape.steps_in * shape.channels, config.dim - config.sensor_dim)
        self.sensor = nn.Parameter(nn.init.xavier_uniform_(torch.empty(shape.sensors, config.sensor_dim)))
        self.layers = make_layers(
            config.layers, config.dim, config.heads, config, mask=mask, scope=config.attention, fused=fused
        )
        self.output = nn.Linear(config.dim, shape.steps_out * shape.outputs)
        self.size = (shape.steps_out, shape.outputs)

    def embed(self, x: Tensor) -> Tensor:
        """Tokens (B, N, d) of (B, T, N, C)."""
        history = self.history(x.transpose(1, 2).flatten(-2))
        return torch.cat([history, self.sensor.expand(len(x), -1, -1)], -1)

    def forward(self, x: Tensor) -> Tensor:
        return self.output(self.layers(self.embed(x))).unflatten(-1, self.size).transpose(1, 2)

    def last_layer(self) -> nn.Linear:
        return self.output


class CalendarHead(nn.Module):
    """Our own: what known covariates, such as a public holiday, add to a step of the forecast. It starts at zero.

    A step whose covariates are all zero gets nothing.
    """

    def __init__(self, shape: Shape, width: int) -> None:
        super().__init__()
        self.time_of_day = nn.Embedding(shape.steps_per_day, width)
        self.day_of_week = nn.Embedding(7, width)
        self.covariates = nn.Linear(shape.known, width, bias=False)
        self.hidden = nn.Linear(width, 2 * width)
        self.output = nn.Linear(2 * width, shape.sensors * shape.outputs)
        nn.init.zeros_(self.output.weight)
        nn.init.zeros_(self.output.bias)
        self.size = (shape.sensors, shape.outputs)

    def forward(self, time: Tensor, known: Tensor) -> Tensor:
        token = self.time_of_day(time[..., 0]) + self.day_of_week(time[..., 1]) + self.covariates(known)
        added = (known != 0).any(-1, keepdim=True) * self.output(self.hidden(token).relu())
        return added.unflatten(-1, self.size)
