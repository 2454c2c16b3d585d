"""Warmup-Distill's check and correct: flag the tokens of a sample that the teacher finds unlikely, and replace them.

The formula and the threshold of the margin in Sun et al. 2025 (arXiv 2502.11766), and how a token is replaced, are not
reported by the paper. The modes are the possible readings; the defaults are our choice (docs/warmup_distill.md).
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
class CheckedSample:
    """A student's sample y of T tokens, scored by both models; natural log-probabilities."""

    ids: list[int]
    log_p: Floats
    """(T,) the teacher's, of y_t"""
    log_q: Floats
    """(T,) the student's, of y_t"""
    top_ids: npt.NDArray[np.int32]
    """(T, k) the teacher's likeliest tokens, likeliest first"""
    top_log_p: Floats
    """(T, k)"""


def flag_tokens(checked: CheckedSample, margin: Margin, eta: float) -> npt.NDArray[np.bool_]:
    """Flag the tokens that the teacher finds too unlikely: (T,).

    teacher_prob  p(y_t) < eta
    gap_to_top    max_v p(v) - p(y_t) > eta
    p_minus_q     q(y_t) - p(y_t) > eta
    log_ratio     log p(y_t) - log q(y_t) < log eta

    The teacher's likeliest token is never flagged: no better token could replace it.
    """
    p, q, best = np.exp(checked.log_p), np.exp(checked.log_q), np.exp(checked.top_log_p[:, 0])
    unlikely = {
        "teacher_prob": p < eta,
        "gap_to_top": best - p > eta,
        "p_minus_q": q - p > eta,
        "log_ratio": checked.log_p - checked.log_q < math.log(eta),
    }[margin]
    return np.asarray(unlikely & (checked.top_ids[:, 0] != np.asarray(checked.ids)))


def pick_replacement(checked: CheckedSample, position: int, pick: Pick, rng: np.random.Generator) -> int:
    """The teacher's likeliest token at a position, or one drawn from its top k; never the current token."""
    others = [j for j, token in enumerate(checked.top_ids[position]) if token != checked.ids[position]]
    if pick == "argmax":
        return int(checked.top_ids[position][others[0]])
    weights = np.exp(checked.top_log_p[position][others])
    return int(checked.top_ids[position][rng.choice(others, p=weights / weights.sum())])


def replace_tokens(checked: CheckedSample, positions: Sequence[int], pick: Pick, rng: np.random.Generator) -> list[int]:
    """The sample with the teacher's tokens at these positions."""
    ids = list(checked.ids)
    for position in positions:
        ids[position] = pick_replacement(checked, position, pick, rng)
    return ids


def replace_and_truncate(checked: CheckedSample, position: int, pick: Pick, rng: np.random.Generator) -> list[int]:
    """The sample up to a position, with the teacher's token there, for a model to continue."""
    return [*checked.ids[:position], pick_replacement(checked, position, pick, rng)]


def check_samples(
    samples: Sequence[tuple[list[int], list[int]]], teacher: Scorer, student: Scorer
) -> list[CheckedSample]:
    """Score (prompt, sample) pairs with both models; the teacher's scorer needs k of at least 2."""
    return [
        CheckedSample(
            ids,
            p.token_logprob.astype(float),
            q.token_logprob.astype(float),
            p.ids,
            p.logprobs.astype(float),
        )
        for (_, ids), p, q in zip(
            samples, score_answers(samples, teacher), score_answers(samples, student), strict=True
        )
    ]


def score_answers(samples: Sequence[tuple[list[int], list[int]]], scorer: Scorer) -> list[TopK]:
    """The scores of the answers of (prompt, answer) pairs. The scorer's weights are loaded for this call only."""
    from agentsys.trainers.scorers import Row

    rows = [Row(prompt + ids, [0] * len(prompt) + [1] * len(ids)) for prompt, ids in samples]
    scorer.load()
    try:
        return [score for group in scorer.score(rows) for score in group]
    finally:
        scorer.close()
