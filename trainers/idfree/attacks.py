"""How well an attacker tells users apart by the embeddings that they upload.

Three attacks. Each sees sets of n uploads that are known to come from one user each ("linked": same connection, same
day, same conversation), and the first and the second know more than a server should:

1. attribution: whose set is this? The attacker knows every user's parameters; the likelihood ratio is then optimal.
2. linkage: do two sets come from the same user? With all parameters known (the posteriors of the two sets), and with
   none (the correlation of the two means).
3. clustering: which sets belong together? No parameters, only the number of users.

That a family of mixtures is not identifiable (arXiv 2501.06062) bounds none of them: it says that the pooled uploads
of all users do not determine the users' parameters within the family, not that an upload does not fit one user better.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import repeat
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from agentsys.trainers.idfree.device import Design, FloatArray

Floats = npt.NDArray[np.floating[Any]]

CLUSTERED: Final = 200
"""Users at most whose uploads are clustered: the time grows with the square of the number of sets."""

CHUNK: Final = 2**22
"""Drawn values that a thread holds at once."""


@dataclass(frozen=True, slots=True)
class Users:
    """The parameters of all users, (users, entries) each; entries are tokens times width."""

    design: Design
    first: FloatArray
    second: FloatArray

    def __len__(self) -> int:
        return len(self.first)

    def within(self, prior: Users, spread: float) -> Users:
        """The users with their parameters moved to at most `spread` from those of the prior, (1, entries)."""
        pairs = ((self.first, prior.first), (self.second, prior.second))
        first, second = (np.clip(own, shared - spread, shared + spread) for own, shared in pairs)
        return Users(self.design, first, second)

    def some(self, rows: npt.NDArray[np.intp] | slice) -> Users:
        """Some of the users."""
        return Users(self.design, self.first[rows], self.second[rows])


def simulate_users(design: Design, count: int, width: int, spread: float, seed: int = 0) -> Users:
    """Users around Beta(2, 5) or N(0, 0.2): parameters normal with standard deviation `spread` per coordinate."""
    random = np.random.default_rng(seed)
    if design == "beta":
        first, second = (random.normal(center, spread, (count, width)) for center in (2.0, 5.0))
        return Users(design, _floor(first), _floor(second))
    means = random.normal(0.0, spread, (count, width)).astype(np.float32)
    return Users(design, means, np.full_like(means, 0.2))


def _floor(values: Floats) -> FloatArray:
    return np.maximum(values, 0.01).astype(np.float32)


def draw(users: Users, count: int, random: np.random.Generator) -> FloatArray:
    """`count` uploads of each user: (users, count, entries)."""
    shape = (len(users), count, users.first.shape[1])
    first, second = users.first[:, None], users.second[:, None]
    if users.design == "gauss":
        return first + second * random.standard_normal(shape, dtype=np.float32)
    # Beta as a ratio of gammas: in float32 this takes two thirds of the time of Generator.beta.
    ones, zeros = (np.broadcast_to(one, shape).ravel() for one in (first, second))
    gammas = random.standard_gamma(ones, dtype=np.float32)
    values = gammas / (gammas + random.standard_gamma(zeros, dtype=np.float32))
    return np.clip(values, 1e-30, 1 - 2**-24).reshape(shape)


@dataclass(frozen=True, slots=True)
class UploadSets:
    """Sets of n linked uploads, the same number of sets for each user."""

    size: int
    statistics: Floats
    """(users, sets, 2 entries): sums over the uploads of log x and log(1 - x), or of x and x squared."""
    means: Floats
    """(users, sets, entries): the mean upload."""


def make_sets(users: Users, size: int, sets: int, random: np.random.Generator) -> UploadSets:
    """Draw `sets` sets of `size` uploads for each user, in as many threads as there are CPUs."""
    step = max(1, CHUNK // (size * sets * users.first.shape[1]))
    starts = range(0, len(users), step)
    chunks = [users.some(slice(start, start + step)) for start in starts]
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        # A generator for each chunk: the draws do not depend on the number of threads.
        parts = list(pool.map(_summarize, chunks, repeat(size), repeat(sets), random.spawn(len(chunks))))
    statistics, means = (np.concatenate(arrays) for arrays in zip(*parts, strict=True))
    return UploadSets(size, statistics, means)


def _summarize(users: Users, size: int, sets: int, random: np.random.Generator) -> tuple[Floats, Floats]:
    """Statistics and means of some users' sets, see UploadSets."""
    entries = users.first.shape[1]
    values = draw(users, size * sets, random).reshape(len(users), sets, size, entries)
    parts = (np.log(values), np.log1p(-values)) if users.design == "beta" else (values, values**2)
    return np.concatenate([part.sum(2, dtype=np.float64) for part in parts], axis=-1), values.mean(2)


def log_likelihoods(users: Users, statistics: Floats, size: int | Floats) -> Floats:
    """Log-likelihood of each set under each user, but for what all users share: (..., users).

    Both designs are exponential families: the sums over a set's uploads are sufficient, and all likelihoods are one
    matrix product. `size` is the number of uploads, for all sets or for each.
    """
    from scipy.special import betaln

    first, second = users.first.astype(np.float64), users.second.astype(np.float64)
    if users.design == "beta":
        natural, normalizer = np.concatenate([first - 1, second - 1], 1), betaln(first, second).sum(1)
    else:
        natural = np.concatenate([first / second**2, -0.5 / second**2], 1)
        normalizer = (0.5 * (first / second) ** 2 + np.log(second)).sum(1)
    likelihoods: Floats = statistics @ natural.T - np.asarray(size)[..., None] * normalizer
    return likelihoods


def attribute(likelihoods: Floats) -> Floats:
    """Attack 1: each user's share of sets that are attributed to that user; `likelihoods` are (users, sets, users)."""
    own = np.arange(len(likelihoods))[:, None]
    shares: Floats = (likelihoods.argmax(-1) == own).mean(1)
    return shares


def link_known(likelihoods: Floats) -> Floats:
    """Attack 2 with all parameters: each user's AUC. The score of two sets is the probability of the same user."""
    from scipy.special import softmax

    first, second = softmax(likelihoods[:, 0], axis=-1), softmax(likelihoods[:, 1], axis=-1)
    return _areas(first @ second.T)


def link_unknown(means: Floats) -> Floats:
    """Attack 2 without parameters: each user's AUC. The score is the correlation of the standardized mean uploads."""
    pooled = means.reshape(-1, means.shape[-1])
    scaled = (means - pooled.mean(0)) / (pooled.std(0) + 1e-12)
    scaled /= np.linalg.norm(scaled, axis=-1, keepdims=True) + 1e-12
    return _areas(scaled[:, 0] @ scaled[:, 1].T)


def _areas(scores: Floats) -> Floats:
    """For each user, how often the own second set scores higher than another user's; ties count one half."""
    own = np.diagonal(scores)[:, None]
    higher = (own > scores).sum(1) + 0.5 * ((own == scores).sum(1) - 1)
    areas: Floats = higher / (len(scores) - 1)
    return areas


def cluster(means: Floats) -> Floats:
    """Attack 3: each user's F1 of pairs of sets in one cluster, after Ward clustering into as many as there are users.

    Chance is near 0. The first CLUSTERED users take part.
    """
    from sklearn.cluster import AgglomerativeClustering

    users, sets = means[:CLUSTERED].shape[:2]
    points = means[:CLUSTERED].reshape(users * sets, -1)
    points = (points - points.mean(0)) / (points.std(0) + 1e-12)
    clusters = AgglomerativeClustering(n_clusters=users).fit_predict(points).reshape(users, sets)
    counts = np.zeros((users, users))
    np.add.at(counts, (np.arange(users)[:, None], clusters), 1)
    right = (counts * (counts - 1)).sum(1)
    together = (counts * (counts.sum(0) - 1)).sum(1)
    scores: Floats = 2 * right / (together + sets * (sets - 1))
    return scores


@dataclass(frozen=True, slots=True)
class Score:
    """A mean over users with a 95 % interval by bootstrap over users."""

    value: float
    low: float
    high: float

    def to_json(self) -> list[float]:
        """[value, low, high], rounded to four digits."""
        return [round(one, 4) for one in (self.value, self.low, self.high)]


def bootstrap(by_user: Floats, seed: int = 0, resamples: int = 1000) -> Score:
    """The mean over users, and the 2.5 and 97.5 % quantiles of the means of resampled users."""
    rows = np.random.default_rng(seed).integers(len(by_user), size=(resamples, len(by_user)))
    low, high = np.quantile(by_user[rows].mean(1), (0.025, 0.975))
    return Score(float(by_user.mean()), float(low), float(high))


ATTACKS: Final = ("attribution", "linkage (known)", "linkage (unknown)", "clustering")
"""In parentheses: whether the attacker knows the users' parameters."""


def attack(users: Users, sizes: Sequence[int], sets: int = 5, seed: int = 0) -> dict[str, dict[int, Score]]:
    """The three attacks at each number of linked uploads: name -> number -> score.

    Each user has `sets` sets, and two where they hold more than 10 uploads each.
    """
    # SFC64 takes three fifths of the time of the default generator here.
    random = np.random.Generator(np.random.SFC64(seed))
    curves: dict[str, dict[int, Score]] = {name: {} for name in ATTACKS}
    for size in sizes:
        uploads = make_sets(users, size, sets if size <= 10 else 2, random)
        likelihoods = log_likelihoods(users, uploads.statistics, size)
        by_user = (
            attribute(likelihoods), link_known(likelihoods), link_unknown(uploads.means), cluster(uploads.means)
        )  # fmt: skip
        for name, values in zip(ATTACKS, by_user, strict=True):
            curves[name][size] = bootstrap(values, seed)
    return curves
