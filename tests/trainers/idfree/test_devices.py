"""The batched pass over all users equals a loop over them, and each user depends on itself alone."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from agentsys.trainers.idfree.backbone import load_backbone
from agentsys.trainers.idfree.data import Examples
from agentsys.trainers.idfree.designs import Design, Family, UserParameters, draw, draw_per_user, mean
from agentsys.trainers.idfree.devices import (
    BestOfUsers,
    Devices,
    clip_per_user,
    group_users,
    linear_schedule,
    seeded,
    train_devices,
)
from agentsys.trainers.idfree.options import FitOptions

OPTIONS = FitOptions(device_steps=8, device_rate=0.05, device_batch=4, micro_batch=16)
WORDS = [f"{color} {animal}" for color in ("red", "blue", "old") for animal in ("cat", "dog", "owl", "fox")]


def examples(users: int, texts: int, seed: int) -> Examples:
    random = np.random.default_rng(seed)
    user = np.arange(users).repeat(texts)
    return Examples(random.integers(0, len(WORDS), len(user)), random.integers(0, 2, len(user)), user)


def fit(folder: Path, family: Family, users: list[int], *, whole: bool = False, group: int = 512) -> Devices:
    backbone = load_backbone(str(folder), "classify", 1, 2, max_length=16)
    backbone.whole = whole
    tokens = backbone.tokenize(WORDS, 16)
    design = Design(family, "classify", 1, backbone.width, 1.0)
    train, validation = examples(5, 6, 0), examples(4, 2, 1)  # user 4 has nothing to validate on
    return train_devices(backbone, tokens, train, validation, users, design, OPTIONS, group=group)


@pytest.mark.parametrize("family", ["beta", "gauss"])
@pytest.mark.parametrize("kind", ["encoder", "decoder"])
def test_a_batched_pass_equals_a_loop_over_users_that_computes_the_whole_input(
    kind: str, family: Family, request: pytest.FixtureRequest
) -> None:
    folder = request.getfixturevalue(kind)
    batched = fit(folder, family, [0, 1, 2, 3, 4])
    looped = fit(folder, family, [0, 1, 2, 3, 4], whole=True, group=1)
    start = Design(family, "classify", 1, batched.first.shape[2], 1.0).prior_parameters(5)
    assert (batched.first - start[0]).abs().max() > 0.05
    assert torch.allclose(batched.first, looped.first, atol=1e-5)
    assert torch.allclose(batched.second, looped.second, atol=1e-5)


def test_a_user_does_not_depend_on_the_others(encoder: Path) -> None:
    alone, among = fit(encoder, "beta", [2]), fit(encoder, "beta", [0, 1, 2, 3])
    assert torch.allclose(alone.first[0], among.first[2], atol=1e-5)


def test_a_user_without_texts_keeps_the_prior_and_one_with_one_text_learns(encoder: Path) -> None:
    backbone = load_backbone(str(encoder), "classify", 1, 2, max_length=16)
    design = Design("beta", "classify", 1, backbone.width, 1.0)
    train = Examples(np.array([3]), np.array([1]), np.array([1]))
    nothing = train.take(np.zeros(0, np.int64))
    devices = train_devices(backbone, backbone.tokenize(WORDS, 16), train, nothing, [0, 1], design, OPTIONS)
    assert (devices.first[0] == 2).all() and (devices.second[0] == 5).all() and (devices.first[1] != 2).any()
    assert all(weight.grad is None for weight in backbone.parameters())


def test_parameters_stay_positive_and_within_the_spread(encoder: Path) -> None:
    backbone = load_backbone(str(encoder), "classify", 1, 2, max_length=16)
    tokens, train = backbone.tokenize(WORDS, 16), examples(3, 6, 0)
    for spread in (0.01, 3.0):
        design = Design("beta", "classify", 1, backbone.width, spread)
        options = replace(OPTIONS, device_rate=3.0)
        devices = train_devices(backbone, tokens, train, train, [0, 1, 2], design, options)
        assert devices.first.min() > 0 and devices.second.min() > 0
        assert ((devices.first - 2).abs().max() <= spread + 1e-4) and (
            (devices.second - 5).abs().max() <= spread + 1e-4
        )
        assert (devices.first - 2).abs().max() > 0.9 * min(spread, 1)


def test_draws_have_the_mean_of_their_distribution_and_gradients() -> None:
    for family, first, second in (("beta", 2.0, 5.0), ("gauss", 0.1, 0.2), ("static", 0.3, 0.0)):
        one, other = torch.full((4_000, 1, 2), first, requires_grad=True), torch.full((4_000, 1, 2), second)
        drawn = draw(family, one, other, torch.Generator().manual_seed(0))  # type: ignore[arg-type]
        assert float(drawn.mean()) == pytest.approx(float(mean(family, one, other).mean()), abs=0.01)  # type: ignore[arg-type]
        drawn.sum().backward()
        assert one.grad is not None and float(one.grad.mean()) > 0
    shape = (2, 1, 3)
    randoms = [seeded(0, 1), seeded(0, 2)]
    fresh = draw_per_user("beta", torch.full(shape, 2.0), torch.full(shape, 5.0), 4, randoms)
    assert fresh.shape == (2, 4, 1, 3) and fresh.unique().numel() == 24 and fresh.min() > 0 and fresh.max() < 1


def test_the_standard_deviation_is_trained_for_generation_only() -> None:
    assert len(UserParameters(Design("gauss", "classify", 1, 4, 1.0), 2).trained) == 1
    generation = UserParameters(Design("gauss", "generate", 5, 4, 1.0), 2)
    assert len(generation.trained) == 2 and torch.allclose(generation.values()[1], torch.tensor(1.375), atol=1e-5)


def test_each_user_keeps_its_best_check() -> None:
    tensor = torch.zeros(3, 1)
    best = BestOfUsers([tensor], [True, True, False])
    for value, losses in ((1.0, [1.0, 2.0, np.nan]), (2.0, [3.0, 1.0, np.nan])):
        tensor.fill_(value)
        best.update([tensor], np.array(losses))
    best.restore([tensor])
    assert tensor.ravel().tolist() == [1.0, 2.0, 2.0]


def test_gradients_are_clipped_user_by_user() -> None:
    gradients = [torch.tensor([[30.0], [3.0]]), torch.tensor([[40.0], [0.0]])]
    clip_per_user(gradients)
    assert torch.allclose(gradients[0].ravel(), torch.tensor([3.0, 3.0])) and gradients[1][0, 0] == pytest.approx(4.0)


def test_users_are_grouped_by_the_memory_of_their_distinct_texts() -> None:
    texts = [np.arange(3), np.arange(3, 6), np.arange(10), *[np.arange(3)] * 3]
    assert [list(range(6))[part] for part in group_users(texts, 100, 600, 2)] == [[0, 1], [2], [3, 4], [5]]
    assert [list(range(6))[part] for part in group_users(texts, 100, 600, 9)] == [[0, 1], [2], [3, 4, 5]]


def test_the_learning_rate_rises_and_falls() -> None:
    rates = [linear_schedule(step, 100) for step in range(100)]
    assert (
        rates[9] == 1.0
        and rates[0] == 0.1
        and rates[99] < 0.02
        and rates == sorted(rates[:10]) + sorted(rates[10:], reverse=True)
    )
