"""The separate-attention control costs what STAEformer costs, and Extralonger what the paper says."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from agentsys.trainers.traffic.attention import Attention
from agentsys.trainers.traffic.config import ExtralongerConfig, Shape
from agentsys.trainers.traffic.control import SeparateAttention
from agentsys.trainers.traffic.model import Extralonger

B, T, N, HEADS = 2, 14, 9, 4
CONFIG = ExtralongerConfig(value_dim=8, time_dim=4, day_dim=4, sensor_dim=6, feed_forward=10, heads=HEADS)
SHAPE = Shape(N, T, T, 24)


def count_scores(model: nn.Module, monkeypatch: pytest.MonkeyPatch) -> int:
    """Values of all score matrices of a forward pass."""
    sizes: list[int] = []
    scores = Attention.scores

    def counted(self: Attention, *parts: torch.Tensor) -> torch.Tensor:
        result = scores(self, *parts)
        sizes.append(result.numel())
        return result

    monkeypatch.setattr(Attention, "scores", counted)
    time = torch.zeros(B, T, 2, dtype=torch.long)
    model(torch.randn(B, T, N, 1), time, time)
    return sum(sizes)


def test_the_control_has_n_t_squared_plus_t_n_squared_scores(monkeypatch: pytest.MonkeyPatch) -> None:
    model = SeparateAttention(SHAPE, CONFIG, fused=False)
    assert count_scores(model, monkeypatch) == B * HEADS * (N * T**2 + T * N**2)


def test_extralonger_has_t_squared_plus_n_squared_scores(monkeypatch: pytest.MonkeyPatch) -> None:
    """2 h T^2 + 2 d^2 + h N^2: two routes over time, two heads over features, one route over sensors."""
    model = Extralonger(SHAPE, torch.eye(N, dtype=torch.bool), CONFIG, fused=False)
    d = CONFIG.dim
    assert count_scores(model, monkeypatch) == B * (2 * HEADS * T**2 + 2 * d**2 + HEADS * N**2)


def test_every_sensor_and_step_is_a_token() -> None:
    """A sensor's forecast depends on every other sensor and step."""
    torch.manual_seed(0)
    model = SeparateAttention(Shape(3, 5, 4, 24, channels=2, outputs=3), CONFIG)
    x = torch.randn(1, 5, 3, 2, requires_grad=True)
    time_in, time_out = (torch.zeros(1, steps, 2, dtype=torch.long) for steps in (5, 4))
    output = model(x, time_in, time_out)
    assert output.shape == (1, 4, 3, 3)
    output[0, 0, 0].sum().backward()
    assert x.grad is not None and (x.grad.abs().sum(-1) > 0).all()


def test_one_sensor_and_one_window() -> None:
    time = torch.zeros(1, 5, 2, dtype=torch.long)
    assert SeparateAttention(Shape(1, 5, 5, 24), CONFIG)(torch.randn(1, 5, 1, 1), time, time).shape == (1, 5, 1)
