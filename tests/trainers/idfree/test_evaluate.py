"""Accuracy over users: intervals, the paired test, entropy, and other users' embeddings."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest

from agentsys.trainers.idfree.baselines import majorities
from agentsys.trainers.idfree.data import Data, Examples
from agentsys.trainers.idfree.evaluate import (
    CENTRAL,
    OTHER,
    OWN,
    Results,
    UserSums,
    entropy_of,
    gains_by_entropy,
    load_predictions,
    other_users,
    save_predictions,
    score_systems,
)
from agentsys.trainers.idfree.predict import Predictions


def predictions(correct: list[int]) -> Predictions:
    return Predictions(np.array(correct), np.ones(len(correct), np.int64), np.array(correct))


def make_data() -> Data:
    users = np.arange(6).repeat(4)
    train = Examples(np.tile([0, 1, 2, 3], 6), np.where(users % 2 == 0, 1, 0), users)
    return Data(list("abcd"), None, ("no", "yes"), 6, np.array([5]), train, train, train)


def test_majorities_of_all_of_the_text_and_of_the_user() -> None:
    data = make_data()
    labels = majorities(data)
    assert (labels["user alone"] == data.test.label).all()
    assert (labels["majority"] == labels["majority"][0]).all() and (labels["text alone"] == labels["majority"]).all()


def test_another_user_is_never_the_own_one_and_has_a_device() -> None:
    data = make_data()
    for seed in range(20):
        others = other_users(data, seed).numpy()
        assert (others != data.test.user).all() and (others != 5).all()
    assert len(set(others.tolist())) > 2


def test_a_system_that_is_right_more_often_for_every_user_is_significant() -> None:
    user = np.arange(20).repeat(10)
    better, worse = np.ones(200, np.int64), (np.arange(200) % 10 < 6).astype(np.int64)
    systems = {"worse": predictions(worse.tolist()), "better": predictions(better.tolist())}
    results = Results(user, better, np.ones(200, bool), systems, np.zeros((0, 200), np.int64))
    one, other = score_systems(results, results.known, "worse", 500, 0)
    assert one.accuracy == 0.6 and one.gain == 0 and one.p == 1.0
    assert other.gain == pytest.approx(0.4) and other.gain_low == pytest.approx(0.4) and other.p < 0.001


def test_noise_of_few_users_is_not_significant_and_users_are_what_is_resampled() -> None:
    user = np.arange(6).repeat(100)
    right = (user % 2 == 0).astype(np.int64)  # three users always right, three never: 600 texts, but 6 users
    sums = UserSums(user, 2_000, 0)
    accuracy, samples = sums.accuracy(right, np.ones(600, np.int64))
    low, high = np.percentile(samples, [2.5, 97.5])
    assert accuracy == 0.5 and low < 0.2 and high > 0.8
    assert sums.paired_test(right, 1 - right) == 1.0


def test_the_entropy_of_texts_that_readers_agree_and_disagree_on() -> None:
    labels = np.array([[0, 0], [0, 1], [0, 0], [0, 1]])
    assert entropy_of(labels, 2).tolist() == pytest.approx([0.0, math.log(2)])


def test_gains_by_entropy_are_those_of_the_bins() -> None:
    others = np.array([[0, 0, 0], [0, 0, 1], [0, 0, 0], [0, 1, 1]])
    systems = {CENTRAL: predictions([1, 1, 0]), OWN: predictions([1, 1, 1]), OTHER: predictions([1, 0, 0])}
    results = Results(np.arange(3), np.ones(3, np.int64), np.ones(3, bool), systems, others)
    gains = gains_by_entropy(results, 2)
    assert [(one[CENTRAL], one[OWN], one[OTHER]) for one in gains["thirds"]] == [(1, 1, 1), (1, 1, 0), (0, 1, 0)]
    assert sum(int(one["texts"]) for one in gains["bins"]) == 3 and gains["bins"][-1]["to"] == pytest.approx(
        math.log(2)
    )


def test_saved_predictions_are_read_again(tmp_path: Path) -> None:
    save_predictions(tmp_path / "p.npz", {"a system, with a name": predictions([1, 0])}, user=np.arange(2))
    read = load_predictions(tmp_path / "p.npz")
    assert list(read) == ["a system, with a name"] and read["a system, with a name"].correct.tolist() == [1, 0]
