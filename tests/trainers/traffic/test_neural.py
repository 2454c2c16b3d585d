"""The networks to compare with do what their papers say."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from agentsys.trainers.traffic.config import Shape
from agentsys.trainers.traffic.neural import STID, DLinear, ITransformer

SHAPE = Shape(4, 30, 6, 24)
KINDS = [DLinear, STID, ITransformer]


@pytest.fixture(autouse=True)
def seed() -> None:
    torch.manual_seed(0)


def times(steps: int = 30, batch: int = 2) -> Tensor:
    return torch.stack([torch.arange(steps) % 24, torch.arange(steps) // 24], -1).expand(batch, -1, -1).clone()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("batch", "sensors", "outputs"), [(2, 4, 3), (1, 1, 1)])
def test_shapes(kind: type[nn.Module], batch: int, sensors: int, outputs: int) -> None:
    shape = Shape(sensors, 30, 6, 24, channels=2, outputs=outputs, known=1)
    output = kind(shape)(torch.randn(batch, 30, sensors, 2), times(30, batch), times(6, batch), torch.ones(batch, 6, 1))
    assert output.shape == (batch, 6, sensors, *([3] if outputs == 3 else []))


def test_dlinear_maps_trend_and_remainder_apart() -> None:
    """The trend is the mean over 25 steps, with the ends repeated; here only the trend's map is not zero."""
    model = DLinear(SHAPE)
    nn.init.zeros_(model.remainder.weight)
    nn.init.zeros_(model.remainder.bias)
    x = torch.randn(2, 30, 4, 1)
    padded = torch.cat([x[:, :1].expand(-1, 12, -1, -1), x, x[:, -1:].expand(-1, 12, -1, -1)], 1)[..., 0]
    trend = torch.stack([padded[:, step : step + 25].mean(1) for step in range(30)], 1)
    expected = model.trend(trend.transpose(1, 2)).transpose(1, 2)
    torch.testing.assert_close(model(x, times(), times(6)), expected, atol=1e-5, rtol=1e-5)


def test_dlinear_shares_its_maps_between_sensors() -> None:
    model, x = DLinear(SHAPE), torch.randn(2, 30, 4, 1)
    order = [2, 0, 3, 1]
    torch.testing.assert_close(model(x[:, :, order], times(), times(6)), model(x, times(), times(6))[..., order])


def test_stid_tells_sensors_and_times_apart_by_the_last_step() -> None:
    model = STID(SHAPE).eval()
    x = torch.randn(1, 30, 1, 1).expand(1, 30, 4, 1)
    output = model(x, times(batch=1), times(6, 1))
    assert len({round(value, 4) for value in output[0, 0].tolist()}) == 4
    earlier, last = times(batch=1), times(batch=1)
    earlier[:, :-1, 0] = 3
    last[:, -1, 0] = (last[:, -1, 0] + 1) % 24
    torch.testing.assert_close(model(x, earlier, times(6, 1)), output)
    assert (model(x, last, times(6, 1)) - output).abs().min() > 0


def test_itransformer_normalizes_each_window_and_sensor() -> None:
    """A history of a x + b gives a times the forecast plus b, per sensor."""
    model, x = ITransformer(SHAPE).eval(), torch.randn(2, 30, 4, 1)
    scale, shift = torch.tensor([1.0, 5.0, 20.0, 3.0]), torch.tensor([0.0, -50.0, 7.0, 100.0])
    moved = model(x * scale[:, None] + shift[:, None], times(), times(6))
    torch.testing.assert_close(moved, model(x, times(), times(6)) * scale + shift, atol=1e-3, rtol=1e-3)


def test_itransformer_attends_between_sensors() -> None:
    model = ITransformer(SHAPE).eval()
    x = torch.randn(1, 30, 4, 1, requires_grad=True)
    model(x, times(batch=1), times(6, 1))[..., 0].sum().backward()
    assert x.grad is not None and (x.grad.abs().sum((0, 1, 3)) > 0).all()
