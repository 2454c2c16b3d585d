"""Attacks on texts, alone and with embeddings."""

from __future__ import annotations

import numpy as np
import pytest

from agentsys.trainers.idfree.attacks import simulate_users
from agentsys.trainers.idfree.text_attacks import Texts, attack_texts, group_texts, log_probabilities
from agentsys.trainers.loading import TrainerError

NONE = Texts([], np.array([], np.int64))
HABITS = ("honestly, I reckon", "WOW!!! so cool", "the data indicate that", "och aye, ye ken", "well... hmm...")


def written(count: int, seed: int) -> Texts:
    """Texts of five users, each with an own habit of writing."""
    random = np.random.default_rng(seed)
    users = np.repeat(np.arange(5), count)
    things = ("film", "song", "book", "play")
    return Texts([f"{HABITS[user]} the {random.choice(things)} {random.integers(100)}" for user in users], users)


def test_habits_of_writing_give_their_user_away() -> None:
    test = written(6, seed=1)
    logs = log_probabilities(written(12, seed=0), NONE, test, 5)
    assert logs.shape == (30, 5) and (logs.argmax(1) == test.users).all()
    np.testing.assert_allclose(np.exp(logs).sum(1), 1, rtol=1e-5)


def test_many_users_are_still_told_apart() -> None:
    """300 users, each with an own word: the solver must not stop at its first step, where gradients are small."""
    random = np.random.default_rng(0)
    words = ["".join(random.choice(list("abcdefghijklmnopqrstuvwxyz"), 8)) for _ in range(300)]
    users = np.repeat(np.arange(300), 4)
    texts = Texts([f"{words[user]} text {number % 4}" for number, user in enumerate(users)], users)
    logs = log_probabilities(texts, NONE, texts, 300)
    assert (logs.argmax(1) == users).mean() > 0.9


def test_texts_that_all_users_share_give_nobody_away() -> None:
    texts = [f"item {number}" for number in range(20)]
    everyone = Texts(texts * 5, np.repeat(np.arange(5), 20))
    logs = log_probabilities(everyone, everyone, everyone, 5)
    np.testing.assert_allclose(np.exp(logs), 0.2, atol=0.02)


def test_embeddings_add_what_the_texts_do_not_say() -> None:
    owners = np.repeat(np.arange(5), 20)
    nothing = np.full((100, 5), np.log(0.2))
    far = attack_texts(simulate_users("beta", 5, 128, 0.5), nothing, owners, [1, 3])
    assert far[1].users == 5 and far[1].text.value == pytest.approx(0.2)
    assert far[3].both.value > 0.95 and far[3].difference.value == pytest.approx(far[3].both.value - 0.2)
    same = attack_texts(simulate_users("beta", 5, 128, 0.0), nothing, owners, [1])[1]
    assert same.difference.value == pytest.approx(0, abs=1e-9)


def test_texts_and_embeddings_together_are_not_below_the_texts_alone() -> None:
    """One text per user makes a timid classifier: without the temperature the embeddings' noise outweighs it."""
    test = written(20, seed=1)
    logs = log_probabilities(written(1, seed=0), written(5, seed=2), test, 5)
    assert np.exp(logs[np.arange(100), test.users]).mean() > 0.9
    for spread in (0.0, 0.02, 0.3):
        scores = attack_texts(simulate_users("beta", 5, 64, spread), logs, test.users, [1])[1]
        assert scores.both.value >= scores.text.value - 0.02


def test_sets_of_linked_texts_are_disjoint_and_of_one_user() -> None:
    owners = np.array([0] * 7 + [2] * 3 + [1] * 50)
    whose, rows = group_texts(owners, 3)
    assert np.bincount(whose).tolist() == [2, 5, 1] and rows.shape == (8, 3)
    assert len(np.unique(rows)) == rows.size and (owners[rows] == whose[:, None]).all()
    assert [len(group_texts(owners, size)[0]) for size in (10, 50, 51)] == [5, 1, 0]


def test_a_number_of_links_that_too_few_users_reach_is_left_out() -> None:
    owners = np.array([0] * 12 + [1] * 12 + [2] * 2)
    logs = np.zeros((26, 3))
    scores = attack_texts(simulate_users("gauss", 3, 8, 0.1), logs, owners, [1, 10, 30])
    assert {size: score.users for size, score in scores.items()} == {1: 3, 10: 2}


def test_one_user_one_text_and_very_long_texts() -> None:
    long = Texts(["a " * 5_000_000, "b " * 10], np.array([0, 1]))
    assert log_probabilities(long, NONE, long, 3).shape == (2, 3)
    with pytest.raises(TrainerError, match="needs at least two users with training texts"):
        log_probabilities(Texts(["a", "b"], np.array([1, 1])), NONE, long, 3)
