"""The attacks reach what theory says they must, and chance where there is nothing to find."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import stats

from agentsys.trainers.idfree.attacks import (
    ATTACKS,
    Users,
    attack,
    attribute,
    bootstrap,
    cluster,
    draw,
    link_known,
    link_unknown,
    log_likelihoods,
    make_sets,
    simulate_users,
)
from agentsys.trainers.idfree.device import Design


def attribution(users: Users, size: int, sets: int, seed: int = 0) -> float:
    uploads = make_sets(users, size, sets, np.random.default_rng(seed))
    return float(attribute(log_likelihoods(users, uploads.statistics, size)).mean())


@pytest.mark.parametrize(("shift", "size"), [(0.001, 1), (0.005, 1), (0.01, 1), (0.001, 10), (0.005, 10)])
def test_attribution_of_two_gaussian_users_is_the_optimum(shift: float, size: int) -> None:
    """Phi(sqrt(n) |difference of the means| / (2 sigma)), the Bayes accuracy of two users."""
    width, sigma, sets = 768, 0.2, 2_000
    means = np.zeros((2, width), np.float32)
    means[1] = shift
    users = Users("gauss", means, np.full_like(means, sigma))
    theory = stats.norm.cdf(math.sqrt(size * width) * shift / (2 * sigma))
    error = math.sqrt(theory * (1 - theory) / (2 * sets))
    assert attribution(users, size, sets) == pytest.approx(theory, abs=4 * error)


@pytest.mark.parametrize(("spread", "low", "high"), [(0.005, 0.005, 0.02), (0.05, 0.08, 0.14), (0.2, 0.92, 0.98)])
def test_attribution_of_a_hundred_beta_users(spread: float, low: float, high: float) -> None:
    """One upload of width 768: near 1, 11 and 95 %."""
    assert low < attribution(simulate_users("beta", 100, 768, spread), 1, 30) < high


def test_likelihoods_are_those_of_the_distributions() -> None:
    """Differences between users: what all users share is left out."""
    random = np.random.default_rng(0)
    first, second = (random.uniform(0.5, 3, (3, 4)).astype(np.float32) for _ in range(2))
    for design, density in (("beta", stats.beta.logpdf), ("gauss", stats.norm.logpdf)):
        users = Users(design, first, second)
        values = draw(users, 6, random).reshape(3, 2, 3, 4)
        parts = (np.log(values), np.log1p(-values)) if design == "beta" else (values, values**2)
        sums = np.concatenate([part.sum(2, dtype=np.float64) for part in parts], -1)
        found = log_likelihoods(users, sums, 3)
        right = density(values[:, :, None].astype(np.float64), first[:, None], second[:, None]).sum((-1, -2))
        np.testing.assert_allclose(found - found[..., :1], right - right[..., :1], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("design", ["beta", "gauss"])
def test_draws_have_the_moments_of_their_user(design: Design) -> None:
    users = simulate_users(design, 3, 2, 0.3, seed=1)
    values = draw(users, 40_000, np.random.default_rng(0))
    distribution = stats.beta if design == "beta" else stats.norm
    np.testing.assert_allclose(values.mean(1), distribution.mean(users.first, users.second), atol=0.005)
    np.testing.assert_allclose(values.std(1), distribution.std(users.first, users.second), atol=0.005)


@pytest.mark.parametrize("design", ["beta", "gauss"])
def test_users_with_one_distribution_cannot_be_told_apart(design: Design) -> None:
    scores = attack(simulate_users(design, 60, 64, 0.0), [1, 10])
    assert tuple(scores) == ATTACKS
    for name, chance in zip(ATTACKS, (1 / 60, 0.5, 0.5, 4 / 299), strict=True):
        for size in (1, 10):
            assert scores[name][size].value == pytest.approx(chance, abs=0.1 if "linkage" in name else 0.04), name


@pytest.mark.parametrize("design", ["beta", "gauss"])
def test_users_far_apart_are_told_apart_by_every_attack(design: Design) -> None:
    scores = attack(simulate_users(design, 30, 256, 1.0), [3])
    assert {name: scores[name][3].value for name in ATTACKS} == pytest.approx(dict.fromkeys(ATTACKS, 1.0), abs=0.02)


def test_more_linked_uploads_and_more_spread_help_the_attacker() -> None:
    users = simulate_users("beta", 50, 256, 0.1)
    scores = attack(users, [1, 10, 100])
    for name in ATTACKS:
        assert scores[name][1].value < scores[name][10].value <= scores[name][100].value, name
    prior = simulate_users("beta", 1, 256, 0.0)
    closer = users.within(prior, 0.01)
    assert abs(closer.first - 2).max() <= 0.01 + 1e-6 and abs(closer.second - 5).max() <= 0.01 + 1e-6
    assert attack(closer, [10])["attribution"][10].value < scores["attribution"][10].value / 2


def test_linkage_and_clustering_by_hand() -> None:
    """Two users, two sets each; with known parameters the second user's sets fit either user: a tie."""
    likelihoods = np.log([[[0.9, 0.1], [0.8, 0.2]], [[0.5, 0.5], [0.5, 0.5]]])
    np.testing.assert_allclose(link_known(likelihoods), [1.0, 0.5])
    means = np.array([[[1.0, 1.0], [1.0, 0.9]], [[-1.0, -1.0], [-1.0, -0.9]]])
    np.testing.assert_allclose(link_unknown(means), [1.0, 1.0])
    np.testing.assert_allclose(cluster(means), [1.0, 1.0])
    crossed = means[:, ::-1].copy()
    crossed[:, 1] = crossed[::-1, 1]
    np.testing.assert_allclose(cluster(crossed), [0.0, 0.0])


def test_the_interval_is_over_users() -> None:
    score = bootstrap(np.array([0.0, 1.0] * 50))
    assert (
        score.value == 0.5 and score.low == pytest.approx(0.4, abs=0.03) and score.high == pytest.approx(0.6, abs=0.03)
    )
    assert bootstrap(np.ones(7)).to_json() == [1.0, 1.0, 1.0]
