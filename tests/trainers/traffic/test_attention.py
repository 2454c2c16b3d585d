"""Global-Local attention: its definition, its fused form, and what it costs."""

from __future__ import annotations

import math
from typing import get_args

import pytest
import torch
from torch import Tensor

from agentsys.trainers.traffic.attention import Attention, Layer
from agentsys.trainers.traffic.config import Scope


def road(tokens: int) -> Tensor:
    """A road with tokens in a row: each sees itself and the next ones."""
    steps = torch.arange(tokens)
    return (steps[:, None] - steps).abs() <= 1


@pytest.fixture(autouse=True)
def seed() -> None:
    torch.manual_seed(0)


def test_the_output_is_the_mean_of_global_and_local_softmax_of_one_score_matrix() -> None:
    """The formula, written out for one head."""
    attention, mask, x = Attention(6, 1, road(5), fused=False), road(5), torch.randn(2, 5, 6)
    query, key, value = attention.query(x), attention.key(x), attention.value(x)
    scores = query @ key.transpose(1, 2) / math.sqrt(6)
    total, local = scores.exp(), scores.exp() * mask
    weights = (total / total.sum(-1, keepdim=True) + local / local.sum(-1, keepdim=True)) / 2
    torch.testing.assert_close(attention(x), attention.output(weights @ value), atol=1e-6, rtol=1e-5)
    torch.testing.assert_close(attention.weights(x)[:, 0], weights, atol=1e-6, rtol=1e-5)


def test_both_halves_use_one_score_matrix(monkeypatch: pytest.MonkeyPatch) -> None:
    attention, calls = Attention(8, 2, road(4), fused=False), []
    scores = attention.scores
    monkeypatch.setattr(attention, "scores", lambda *parts: calls.append(1) or scores(*parts))
    attention(torch.randn(1, 4, 8))
    assert calls == [1]


@pytest.mark.parametrize("scope", get_args(Scope))
@pytest.mark.parametrize("masked", [True, False])
def test_the_fused_kernel_gives_the_same_output_and_gradients(scope: Scope, masked: bool) -> None:
    mask = road(33) if masked else None
    plain, fused = Attention(24, 4, mask, scope, fused=False), Attention(24, 4, mask, scope)
    fused.load_state_dict(plain.state_dict())
    x = torch.randn(3, 33, 24)
    inputs = [x.clone().requires_grad_() for _ in range(2)]
    outputs = [attention(one) for attention, one in zip((plain, fused), inputs, strict=True)]
    torch.testing.assert_close(*outputs, atol=1e-5, rtol=1e-5)
    for output in outputs:
        output.square().sum().backward()
    torch.testing.assert_close(inputs[0].grad, inputs[1].grad, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(plain.query.weight.grad, fused.query.weight.grad, atol=1e-4, rtol=1e-4)


def test_local_attention_sees_neighbors_alone_and_both_halves_see_all() -> None:
    weights = {scope: Attention(8, 2, road(6), scope).weights(torch.randn(1, 6, 8))[0] for scope in get_args(Scope)}
    assert (weights["local"][:, ~road(6)] == 0).all() and (weights["local"][:, road(6)] > 0).all()
    assert (weights["global"] > 0).all()
    assert (weights["both"][:, ~road(6)] < 0.5).all() and (weights["both"] > 0).all()
    for one in weights.values():
        torch.testing.assert_close(one.sum(-1), torch.ones(2, 6))


def test_a_layer_has_the_parameters_of_the_papers_formula() -> None:
    d, f = 12, 20
    layer = Layer(Attention(d, 3, road(4)), d, f)
    assert sum(weight.numel() for weight in layer.parameters()) == 4 * d * d + 2 * d * f + 9 * d + f
    output = layer(torch.randn(2, 4, d))
    torch.testing.assert_close(output.mean(-1), torch.zeros(2, 4), atol=1e-5, rtol=0)  # the norm comes last


def test_what_cannot_attend_is_refused() -> None:
    with pytest.raises(ValueError, match="3 heads do not divide a width of 8"):
        Attention(8, 3)
    with pytest.raises(ValueError, match="attend to itself"):
        Attention(8, 2, torch.zeros(4, 4, dtype=torch.bool))
