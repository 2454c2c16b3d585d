"""What texts alone give away, and what the embeddings add to that.

Attack 4 knows texts of every user (the training part) and attributes others: TF-IDF of character n-grams, reduced to
COMPONENTS dimensions, and logistic regression. Attack 5 also sees the embeddings and knows all parameters: the
log-likelihood of the embeddings is added to the classifier's log-probabilities, which is optimal where text and draw
are independent given the user and the probabilities are calibrated: a temperature is fitted on held-out texts. Attack 5
minus attack 4 is what the embeddings give away.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from agentsys.trainers.idfree.attacks import Floats, Score, Users, bootstrap, log_likelihoods, make_sets
from agentsys.trainers.loading import TrainerError

Index = npt.NDArray[np.int64]

CHARACTERS: Final = 2_000
"""Characters of a text that are looked at."""
COMPONENTS: Final = 300
ITERATIONS: Final = 25
"""Of the logistic regression, at most."""
REDUCED_ON: Final = 10_000
"""Distinct texts at most that the reduction is fitted on."""
LEARNED: Final = 20_000
"""Texts that the classifier learns from, in equal parts of the users, and at least 5 of each."""
SETS: Final = 5
"""Sets of linked texts of a user at most."""


@dataclass(frozen=True, slots=True)
class Texts:
    """Texts and the indices of their users, (N,)."""

    texts: Sequence[str]
    users: Index


def log_probabilities(train: Texts, held_out: Texts, test: Texts, count: int, seed: int = 0) -> Floats:
    """Attack 4 on single texts: log P(user | text) for each text of `test` under equal shares, (N, count users).

    The temperature is the one of the highest likelihood on `held_out`, which may be empty: then it is 1. Raises
    TrainerError where fewer than two users have texts to learn from.
    """
    from scipy.special import log_softmax
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.linear_model import LogisticRegression

    rows = _some_of_each(train.users, max(5, LEARNED // count), seed)
    if len(np.unique(train.users[rows])) < 2:
        raise TrainerError("the attack on texts needs at least two users with training texts")
    texts = [*held_out.texts, *test.texts]
    learned, asked = _features([train.texts[row] for row in rows], texts, seed)
    # "balanced": no user is likelier for having written more.
    # The tolerance is of the gradient of a mean over texts, which is small from the start where there are many users.
    classifier = LogisticRegression(C=10.0, class_weight="balanced", max_iter=ITERATIONS, tol=1e-7)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # the attacks are compared after the same iterations
        classifier.fit(learned, train.users[rows])
    logs = np.full((len(texts), count), -np.inf)
    logs[:, classifier.classes_] = classifier.predict_log_proba(asked)
    first = len(held_out.texts)
    result: Floats = log_softmax(_fit_sharpness(logs[:first], held_out.users) * logs[first:], axis=1)
    return result


def _fit_sharpness(logs: Floats, users: Index) -> float:
    """The factor of log-probabilities (an inverse temperature) with the highest likelihood of the true users."""
    from scipy.special import logsumexp

    rows = np.flatnonzero(np.isfinite(logs[np.arange(len(users)), users]))
    if not len(rows):
        return 1.0
    own = logs[rows, users[rows]]
    factors = np.geomspace(0.05, 20, 41)
    return float(max(factors, key=lambda one: (one * own - logsumexp(one * logs[rows], axis=1)).sum()))


def _features(learned: Sequence[str], asked: Sequence[str], seed: int) -> tuple[Any, Any]:
    """n-grams of both lists in COMPONENTS dimensions. Each distinct text is computed once."""
    from sklearn.decomposition import TruncatedSVD
    from sklearn.feature_extraction.text import TfidfVectorizer

    keys: dict[str, int] = {}
    known = [keys.setdefault(text[:CHARACTERS], len(keys)) for text in learned]
    count = len(keys)
    new = [keys.setdefault(text[:CHARACTERS], len(keys)) for text in asked]
    texts = list(keys)
    vectorizer = TfidfVectorizer(
        analyzer="char_wb", ngram_range=(2, 4), max_features=30_000, sublinear_tf=True, dtype=np.float32
    )
    vectorizer.fit(texts[:count])
    grams = vectorizer.transform(texts)
    size = min(COMPONENTS, count - 1, grams.shape[1] - 1)
    if size < 1:
        return grams[known], grams[new]
    some = np.random.default_rng(seed).permutation(count)[:REDUCED_ON]
    reduced = TruncatedSVD(size, n_iter=3, random_state=seed).fit(grams[some]).transform(grams)
    return reduced[known], reduced[new]


def _some_of_each(users: Index, most: int, seed: int) -> Index:
    """Indices of at most `most` random rows of each user."""
    order = np.random.default_rng(seed).permutation(len(users))
    order = order[np.argsort(users[order], kind="stable")]
    own = users[order]
    rank = np.arange(len(own)) - np.searchsorted(own, own)
    return order[rank < most]


def group_texts(users: Index, size: int, seed: int = 0) -> tuple[Index, Index]:
    """Disjoint sets of `size` texts of one user, SETS per user at most: the sets' users (S,), and rows (S, size).

    Users with fewer texts have none.
    """
    order = _some_of_each(users, size * SETS, seed)
    own = users[order]
    first = np.searchsorted(own, own)
    rank, total = np.arange(len(own)) - first, np.searchsorted(own, own, side="right") - first
    rows = order[rank < total // size * size].reshape(-1, size)
    return users[rows[:, 0]], rows


@dataclass(frozen=True, slots=True)
class TextScores:
    """Attacks 4 and 5 on the same sets, and their difference, paired by user."""

    users: int
    """Users with enough texts for a set."""
    text: Score
    both: Score
    difference: Score


def attack_texts(
    users: Users, probabilities: Floats, owners: Index, sizes: Sequence[int], seed: int = 0
) -> dict[int, TextScores]:
    """Attacks 4 and 5 at each number of linked uploads for which at least two users have enough texts.

    `probabilities` are those of `log_probabilities`, `owners` the users of their texts.
    """
    random = np.random.Generator(np.random.SFC64(seed))
    scores = {}
    for size in sizes:
        whose, rows = group_texts(owners, size, seed)
        known = np.unique(whose)
        if len(known) < 2:
            continue
        by_text = probabilities[rows].sum(1)
        uploads = make_sets(users.some(whose), size, 1, random)
        by_embedding = log_likelihoods(users, uploads.statistics[:, 0], size)
        text, both = (_mean_by_user(values.argmax(1) == whose, whose) for values in (by_text, by_text + by_embedding))
        scores[size] = TextScores(len(known), *(bootstrap(values, seed) for values in (text, both, both - text)))
    return scores


def _mean_by_user(right: npt.NDArray[np.bool_], whose: Index) -> Floats:
    counts = np.bincount(whose)
    means: Floats = np.bincount(whose, right)[counts > 0] / counts[counts > 0]
    return means
