"""Extralonger is the paper's: parameters, routes and fusion; odd and different horizons work, and one of anything."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from agentsys.trainers.loading import TrainerError
from agentsys.trainers.traffic.attention import Layer
from agentsys.trainers.traffic.config import ROUTES, SIZES, ExtralongerConfig, Shape
from agentsys.trainers.traffic.model import CalendarHead, Extralonger

TINY = ExtralongerConfig(value_dim=8, time_dim=4, day_dim=4, sensor_dim=6, feed_forward=10, heads=2)


@pytest.fixture(autouse=True)
def seed() -> None:
    torch.manual_seed(0)


def inputs(shape: Shape, batch: int = 2) -> tuple[Tensor, Tensor, Tensor]:
    def times(steps: int) -> Tensor:
        index = torch.arange(steps).expand(batch, -1) + torch.arange(batch)[:, None]
        return torch.stack([index % shape.steps_per_day, index // shape.steps_per_day % 7], -1)

    x = torch.randn(batch, shape.steps_in, shape.sensors, shape.channels)
    return x, times(shape.steps_in), times(shape.steps_out)


def ring(sensors: int) -> Tensor:
    eye = torch.eye(sensors, dtype=torch.bool)
    return eye | eye.roll(1, 0) | eye.roll(-1, 0)


COUNTS = {
    ("pems04", 307, 288): {12: "6.84", 48: "6.96", 288: "8.12", 2016: "33.4"},
    ("pems08", 170, 288): {12: "0.863", 48: "0.910", 288: "1.556", 2016: "23.2"},
    ("seattle", 323, 24): {24: "6.89", 168: "7.48"},
}
"""Millions of parameters for T = O, as the papers file prints them (section 3.3)."""


@pytest.mark.parametrize(
    ("size", "sensors", "per_day", "steps", "millions"),
    [(*key, steps, millions) for key, row in COUNTS.items() for steps, millions in row.items()],
)
def test_the_parameters_are_those_of_the_papers_table(
    size: str, sensors: int, per_day: int, steps: int, millions: str
) -> None:
    count = parameters(Shape(sensors, steps, steps, per_day), SIZES[size])  # type: ignore[index]
    assert f"{count / 1e6:.{len(millions.partition('.')[2])}f}" == millions


def parameters(shape: Shape, config: ExtralongerConfig) -> int:
    with torch.device("meta"):
        model = Extralonger(shape, None, config)
    return sum(weight.numel() for weight in model.parameters())


@pytest.mark.parametrize(("steps_in", "steps_out", "layers"), [(12, 12, 1), (12, 30, 2)])
def test_the_parameters_are_those_of_the_papers_formula(steps_in: int, steps_out: int, layers: int) -> None:
    e, a, w, s, f, n, spd = 8, 4, 4, 6, 10, 5, 24
    config = ExtralongerConfig(e, a, w, s, f, 2, layers)
    d, t, o = e + a + w, steps_in, steps_out

    def layer(width: int) -> int:
        return 4 * width**2 + 2 * width * f + 9 * width + f

    expected = spd * a + 7 * w + n * s + t * n + layers * (3 * layer(d) + layer(t)) + (n + 1) * e
    expected += (d + 1) * n + ((t + 1) * o if t != o else 0) + (t + 1) * (d - s) + (d + 1) * o
    expected += (d + 1) * n + (t + 1) * o
    assert parameters(Shape(n, t, o, spd), config) == expected


def test_the_fusion_is_two_to_one_to_one() -> None:
    shape = Shape(5, 12, 12, 24)
    whole = Extralonger(shape, ring(5), TINY)
    data, parts = inputs(shape), {}
    for route in ROUTES:
        alone = Extralonger(shape, ring(5), ExtralongerConfig(8, 4, 4, 6, 10, 2, routes=(route,)))
        assert not alone.load_state_dict(whole.state_dict(), strict=False).missing_keys
        parts[route] = alone(*data)
    expected = (2 * parts["mixed"] + parts["spatial"] + parts["temporal"]) / 4
    torch.testing.assert_close(whole(*data), expected, atol=1e-6, rtol=1e-5)


def test_learned_fusion_starts_at_the_fixed_one_and_has_a_gradient() -> None:
    shape = Shape(4, 6, 6, 24)
    fixed, learned = (
        Extralonger(shape, ring(4), ExtralongerConfig(8, 4, 4, 6, 10, 2, fusion=fusion))
        for fusion in ("fixed", "learned")
    )
    learned.load_state_dict(fixed.state_dict(), strict=False)
    data = inputs(shape)
    torch.testing.assert_close(learned(*data), fixed(*data))
    learned(*data).square().mean().backward()
    assert learned.fusion.grad is not None and learned.fusion.grad.abs().sum() > 0


@pytest.mark.parametrize(("batch", "sensors"), [(1, 3), (2, 1), (1, 1)])
@pytest.mark.parametrize(("steps_in", "steps_out"), [(8, 8), (7, 7), (7, 12), (8, 3)])
@pytest.mark.parametrize("outputs", [1, 3])
def test_one_window_one_sensor_odd_and_different_horizons(
    batch: int, sensors: int, steps_in: int, steps_out: int, outputs: int
) -> None:
    """The released code squeezes batch 1 and one sensor away, and needs an even number of input steps."""
    shape = Shape(sensors, steps_in, steps_out, 24, channels=2, outputs=outputs)
    output = Extralonger(shape, ring(sensors), TINY)(*inputs(shape, batch))
    assert output.shape == (batch, steps_out, sensors, *([3] if outputs == 3 else []))
    assert output.isfinite().all()


@pytest.mark.parametrize(("steps", "heads"), [(8, 2), (7, 1)])
def test_layers_over_features_have_two_heads_or_one_where_the_width_is_odd(steps: int, heads: int) -> None:
    layer = Extralonger(Shape(3, steps, steps, 24), ring(3), TINY).mixed.feature_layers[0]
    assert isinstance(layer, Layer) and layer.attention.heads == heads and layer.attention.mask is None


def test_the_mask_is_that_of_the_spatial_route_alone() -> None:
    """With local attention alone, a sensor's spatial forecast depends on its neighbors and on no other."""
    shape = Shape(6, 8, 8, 24)
    config = ExtralongerConfig(8, 4, 4, 6, 10, 2, routes=("spatial",), attention="local")
    model = Extralonger(shape, ring(6), config)
    x, *times = inputs(shape)
    changed = x.clone()
    changed[:, :, 3] += 1
    difference = (model(x, *times) - model(changed, *times)).abs().amax((0, 1))
    assert (difference[[2, 3, 4]] > 0).all() and (difference[[0, 1, 5]] == 0).all()
    assert model.sensor_attention(x)[0, 3] == 0 and model.sensor_attention(x)[0, 1] > 0


def test_the_order_of_windows_does_not_matter() -> None:
    shape = Shape(3, 6, 4, 24)
    model, data = Extralonger(shape, ring(3), TINY), inputs(shape, 3)
    torch.testing.assert_close(model(*data)[2], model(*(part[2:] for part in data))[0], atol=1e-6, rtol=1e-5)


def test_the_calendar_adds_nothing_at_first_and_later_on_marked_steps_alone() -> None:
    shape = Shape(3, 6, 4, 24, known=2)
    model, data = Extralonger(shape, ring(3), TINY), inputs(shape)
    known = torch.zeros(2, 4, 2)
    known[:, 1, 0] = 1
    torch.testing.assert_close(model(*data, known), model(*data))
    assert isinstance(model.calendar, CalendarHead)
    torch.nn.init.normal_(model.calendar.output.weight)
    added = (model(*data, known) - model(*data)).abs().amax((0, 2))
    assert added[1] > 0 and (added[[0, 2, 3]] < 1e-6).all()


def test_wrong_widths_are_refused() -> None:
    with pytest.raises(TrainerError, match="--heads 3 must divide the width 16"):
        ExtralongerConfig(8, 4, 4, 6, 10, 3)
    with pytest.raises(TrainerError, match="--sensor-dim 16: give a width between 1 and 15"):
        ExtralongerConfig(8, 4, 4, 16, 10, 2)
    with pytest.raises(TrainerError, match="at least one of mixed, spatial, temporal"):
        ExtralongerConfig(8, 4, 4, 6, 10, 2, routes=())
    with pytest.raises(TrainerError, match="no spatial route"):
        Extralonger(Shape(2, 4, 4, 24), None, ExtralongerConfig(routes=("mixed",))).sensor_attention(
            torch.zeros(1, 4, 2, 1)
        )
