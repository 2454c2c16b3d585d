"""Warmup-Distill's check and correct: find the tokens of a student's sample that the teacher finds unlikely, mend them.

Sun et al. 2025 (arXiv 2502.11766) do not publish the margin's formula, its threshold or how a token is replaced; the
modes here are the readings that are possible, and which is the default is our choice (docs/training.md).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    from agentsys.trainers.scorers import Scorer
    from agentsys.trainers.topk import TopK

Margin = Literal["teacher_prob", "gap_to_top", "p_minus_q", "log_ratio"]
Edit = Literal["replace_token", "replace_and_teacher_continue", "replace_and_student_continue"]
Pick = Literal["argmax", "sample"]
Floats = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Checked:
    """A student's sample y of T tokens after both models have scored it; log-probabilities are natural."""

    ids: list[int]
    log_p: Floats
    """(T,) teacher, of y_t"""
    log_q: Floats
    """(T,) student, of y_t"""
    top_ids: npt.NDArray[np.int32]
    """(T, k) the teacher's likeliest tokens, likeliest first"""
    top_log_p: Floats
    """(T, k)"""


def flagged(checked: Checked, margin: Margin, eta: float) -> npt.NDArray[np.bool_]:
    """(T,) which tokens the teacher finds too unlikely.

    teacher_prob  p(y_t) < eta
    gap_to_top    max_v p(v) - p(y_t) > eta
    p_minus_q     q(y_t) - p(y_t) > eta
    log_ratio     log p(y_t) - log q(y_t) < log eta

    In no mode is the teacher's own likeliest token flagged: there is nothing better to put in its place.
    """
    p, q, best = np.exp(checked.log_p), np.exp(checked.log_q), np.exp(checked.top_log_p[:, 0])
    found = {
        "teacher_prob": p < eta,
        "gap_to_top": best - p > eta,
        "p_minus_q": q - p > eta,
        "log_ratio": checked.log_p - checked.log_q < math.log(eta),
    }[margin]
    return np.asarray(found & (checked.top_ids[:, 0] != np.asarray(checked.ids)))


def replacement(checked: Checked, place: int, pick: Pick, rng: np.random.Generator) -> int:
    """The teacher's token for a place: its likeliest, or one drawn from its top k; never the one that stands there."""
    others = [j for j, token in enumerate(checked.top_ids[place]) if token != checked.ids[place]]
    if pick == "argmax":
        return int(checked.top_ids[place][others[0]])
    weights = np.exp(checked.top_log_p[place][others])
    return int(checked.top_ids[place][rng.choice(others, p=weights / weights.sum())])


def replaced(checked: Checked, places: Sequence[int], pick: Pick, rng: np.random.Generator) -> list[int]:
    """The sample with the teacher's tokens at these places and its own everywhere else."""
    ids = list(checked.ids)
    for place in places:
        ids[place] = replacement(checked, place, pick, rng)
    return ids


def begun_again(checked: Checked, place: int, pick: Pick, rng: np.random.Generator) -> list[int]:
    """The sample up to a place with the teacher's token there: what a model goes on from."""
    return [*checked.ids[:place], replacement(checked, place, pick, rng)]


def check(samples: Sequence[tuple[list[int], list[int]]], teacher: Scorer, student: Scorer) -> list[Checked]:
    """Score (prompt, sample) pairs with two scorers of trainers/scorers.py, the teacher's with k of 2 or more."""
    return [
        Checked(
            ids,
            p.token_logprob.astype(float),
            q.token_logprob.astype(float),
            p.ids,
            p.logprobs.astype(float),
        )
        for (_, ids), p, q in zip(samples, scores(samples, teacher), scores(samples, student), strict=True)
    ]


def scores(samples: Sequence[tuple[list[int], list[int]]], scorer: Scorer) -> list[TopK]:
    """What a scorer makes of the answers of (prompt, answer) pairs. Its weights are in memory only meanwhile."""
    from agentsys.trainers.scorers import Row

    rows = [Row(prompt + ids, [0] * len(prompt) + [1] * len(ids)) for prompt, ids in samples]
    scorer.load()
    try:
        return [score for group in scorer.score(rows) for score in group]
    finally:
        scorer.close()
