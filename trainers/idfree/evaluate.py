"""Accuracy of the systems on the test, with bootstrap intervals and a paired test over users, and gains by entropy.

A user's texts are not independent: users are what is resampled. The entropy of a text with respect to users (papers
file, section 4.5) is that of the classes that it gets under the embeddings of random users: where it is low the text
decides, where it is high the reader does.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from agentsys.trainers.idfree.central import constant_embed
from agentsys.trainers.idfree.cloud import draw_embeddings
from agentsys.trainers.idfree.data import Data, IntArray
from agentsys.trainers.idfree.designs import Design
from agentsys.trainers.idfree.devices import Devices
from agentsys.trainers.idfree.network import Backbone, Tokens
from agentsys.trainers.idfree.options import FitOptions
from agentsys.trainers.idfree.predict import Predictions, predict

FloatArray = npt.NDArray[np.float64]
CENTRAL: Final = "central"
OWN: Final = "own embedding"
OTHER: Final = "another user's embedding"
PRIOR: Final = "the prior's embedding"
DEVICE: Final = "central, own embedding"
FLIPS: Final = 10_000
"""Random signs in the paired test."""
BINS: Final = 6
"""Entropy bins of equal width, as in the released code."""


@dataclass(frozen=True, slots=True)
class Results:
    """Predictions of the systems for the test rows."""

    user: IntArray
    label: IntArray
    known: npt.NDArray[np.bool_]
    """Which rows are of users with a device."""
    systems: dict[str, Predictions]
    other_labels: IntArray
    """(draws, rows) classes under the embeddings of random other users; no draws for generation."""


def predict_central(
    backbone: Backbone, tokens: Tokens, data: Data, design: Design, devices: Devices, options: FitOptions
) -> dict[str, Predictions]:
    """The central model with the prior's mean, and with the users' own embeddings, as on a device."""
    prior = design.prior_mean()
    return {
        CENTRAL: predict(backbone, tokens, data.test, constant_embed(prior), options),
        DEVICE: predict(backbone, tokens, data.test, draw_embeddings(devices), options),
    }


def predict_cloud(
    backbone: Backbone, tokens: Tokens, data: Data, design: Design, devices: Devices, options: FitOptions, draws: int
) -> tuple[dict[str, Predictions], IntArray]:
    """The personalized model with own, other and new users' embeddings, and the classes under `draws` other users'."""
    embed = draw_embeddings(devices)
    first, second = design.prior_parameters(1)
    new = Devices(devices.family, first, second, [])
    nobody = torch.zeros(len(data.test), dtype=torch.long)
    systems = {
        OWN: predict(backbone, tokens, data.test, embed, options),
        OTHER: predict(backbone, tokens, data.test, embed, options, other_users(data, options.seed)),
        PRIOR: predict(backbone, tokens, data.test, draw_embeddings(new), options, nobody),
    }
    labels = [
        predict(backbone, tokens, data.test, embed, options, other_users(data, options.seed + 1 + number)).label
        for number in range(draws if data.labels and design.task == "classify" else 0)
    ]
    return systems, np.array(labels, np.int64).reshape(len(labels), len(data.test))


def other_users(data: Data, seed: int) -> Tensor:
    """For each test row a random user with a device who is not its own."""
    known = np.setdiff1d(np.arange(data.users), data.new_users)
    random = np.random.default_rng([seed, 7])
    if len(known) < 2:
        return torch.as_tensor(data.test.user)
    drawn = random.integers(0, len(known), len(data.test))
    same = known[drawn] == data.test.user
    drawn[same] = (drawn[same] + random.integers(1, len(known), int(same.sum()))) % len(known)
    return torch.as_tensor(known[drawn])


@dataclass(frozen=True, slots=True)
class Score:
    """Accuracy of a system, and its difference from another one; intervals are 95 % bootstrap intervals over users."""

    system: str
    accuracy: float
    low: float
    high: float
    gain: float
    gain_low: float
    gain_high: float
    p: float
    """Of the paired test against the other system, two-sided."""


class UserSums:
    """Correct predictions per user, and samples of users."""

    def __init__(self, user: IntArray, samples: int, seed: int) -> None:
        numbers, self.index = np.unique(user, return_inverse=True)
        self.users = len(numbers)
        random = np.random.default_rng(seed)
        self.weights = random.multinomial(self.users, np.full(self.users, 1 / self.users), samples).astype(float)
        self.signs = random.integers(0, 2, (FLIPS, self.users), np.int8) * 2 - 1

    def sums(self, values: npt.NDArray[Any]) -> FloatArray:
        """(users,) the sum of each user's values."""
        return np.bincount(self.index, values, self.users).astype(float)

    def accuracy(self, correct: IntArray, count: IntArray) -> tuple[float, FloatArray]:
        """The accuracy, and that of each sample."""
        right, total = self.sums(correct), self.sums(count)
        return float(right.sum() / total.sum()), (self.weights @ right) / (self.weights @ total)

    def paired_test(self, one: IntArray, other: IntArray) -> float:
        """The share of random signs of the users' differences whose sum is as large as the one seen (sign flips)."""
        difference = self.sums(one) - self.sums(other)
        flipped = np.abs(self.signs @ difference)
        return float((1 + (flipped >= abs(difference.sum()) - 1e-9).sum()) / (1 + FLIPS))


def score_systems(results: Results, rows: npt.NDArray[np.bool_], against: str, samples: int, seed: int) -> list[Score]:
    """All systems on some rows, each beside the system `against`."""
    if not rows.any():
        return []
    sums = UserSums(results.user[rows], samples, seed)
    base = results.systems[against]
    base_accuracy, base_samples = sums.accuracy(base.correct[rows], base.count[rows])
    scores = []
    for name, predictions in results.systems.items():
        accuracy, drawn = sums.accuracy(predictions.correct[rows], predictions.count[rows])
        low, high = np.percentile(drawn, [2.5, 97.5])
        gain_low, gain_high = np.percentile(drawn - base_samples, [2.5, 97.5])
        p = sums.paired_test(predictions.correct[rows], base.correct[rows])
        gain = accuracy - base_accuracy
        scores.append(Score(name, accuracy, float(low), float(high), gain, float(gain_low), float(gain_high), p))
    return scores


def entropy_of(labels: IntArray, classes: int) -> FloatArray:
    """(rows,) the entropy in nats of the classes (draws, rows) that a text gets under random users' embeddings."""
    shares = np.stack([(labels == number).mean(0) for number in range(classes)])
    entropy: FloatArray = -(shares * np.log(np.where(shares > 0, shares, 1))).sum(0)
    return entropy


def gains_by_entropy(results: Results, classes: int) -> dict[str, list[dict[str, float]]]:
    """Accuracy of central, own and other embedding in bins of equal width and in thirds of the rows by entropy."""
    if not len(results.other_labels):
        return {}
    known = results.known
    entropy = entropy_of(results.other_labels, classes)[known]
    correct = {name: results.systems[name].correct[known] for name in (CENTRAL, OWN, OTHER)}
    edges = np.linspace(0, math.log(classes), BINS + 1)
    equal = np.clip(np.searchsorted(edges, entropy, side="right") - 1, 0, BINS - 1)
    rank = np.argsort(np.argsort(entropy, kind="stable"), kind="stable")
    thirds = rank * 3 // max(len(rank), 1)
    return {
        name: [
            {
                "from": float(entropy[chosen].min()),
                "to": float(entropy[chosen].max()),
                "texts": int(chosen.sum()),
                **{system: float(values[chosen].mean()) for system, values in correct.items()},
            }
            for number in range(count)
            if (chosen := bins == number).any()
        ]
        for name, bins, count in (("bins", equal, BINS), ("thirds", thirds, 3))
    }


def save_predictions(file: Path, systems: Mapping[str, Predictions], **more: npt.NDArray[Any]) -> None:
    """Write the predictions of systems to one .npz file."""
    arrays = {
        f"{part}/{name}": getattr(one, part) for name, one in systems.items() for part in ("correct", "count", "label")
    }
    with file.open("wb") as content:
        np.savez_compressed(content, **arrays, **more)  # type: ignore[arg-type]


def load_predictions(file: Path) -> dict[str, Predictions]:
    """The predictions that `save_predictions` wrote, by system."""
    with np.load(file, allow_pickle=False) as arrays:
        names = [name.partition("/")[2] for name in arrays.files if name.startswith("correct/")]
        return {n: Predictions(arrays[f"correct/{n}"], arrays[f"count/{n}"], arrays[f"label/{n}"]) for n in names}
