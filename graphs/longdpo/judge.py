"""LongDPO's judge: seven principles, each with five soft weights over the scores 1 to 5.

The weights are the probabilities of the score's token (ours), or the judge states them, as in the paper. Small models
that are asked for a distribution state five equal weights or five scores.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Final

from pydantic import BaseModel, Field

from agentsys.logprobs import expected_digits
from agentsys.roles import Answer, Role
from agentsys.systems import ask

PRINCIPLES: Final = ("accuracy", "purpose", "safety", "logic", "variety", "reading", "insight")
WEIGHT_SUMS: Final = (0.8, 1.25)
"""The accepted sums of five stated weights, which are then normalized."""

Weights = Annotated[list[Annotated[float, Field(ge=0)]], Field(min_length=5, max_length=5)]
Score = Annotated[int, Field(ge=1, le=5)]


class Judgment(BaseModel):
    """The judge's reply: five soft weights per principle, for the scores 1 to 5."""

    analysis: str
    accuracy: Weights
    purpose: Weights
    safety: Weights
    logic: Weights
    variety: Weights
    reading: Weights
    insight: Weights

    def scores(self) -> list[float]:
        """The expected score of each principle, 1-5."""
        rows = [getattr(self, name) for name in PRINCIPLES]
        return [sum(w * score for score, w in enumerate(row, 1)) / sum(row) for row in rows]


class Grades(BaseModel):
    """The grader's reply: one score per principle and no analysis, which small judges write until the token limit."""

    accuracy: Score
    purpose: Score
    safety: Score
    logic: Score
    variety: Score
    reading: Score
    insight: Score


def check_weights(judgment: Judgment, inputs: Mapping[str, Any]) -> str | None:
    """Return why stated weights are invalid, or None: they are no distribution, or prefer no score to another.

    Such a principle has no score, and none is invented: five equal weights would mean a score of 3 without evidence.
    """
    for name in PRINCIPLES:
        row = getattr(judgment, name)
        if not WEIGHT_SUMS[0] <= sum(row) <= WEIGHT_SUMS[1]:
            return f"{name}: its five weights make {sum(row):g}, not 1"
        if len(set(row)) == 1:
            return f"{name}: five equal weights prefer no score; give the scores that fit more than the others"
    return None


async def score_by_stated_weights(
    context: Any, judge: Role[Judgment], key: str, inputs: Mapping[str, Any]
) -> list[float]:
    """The score of each principle, 1-5, from the weights in the reply. Raises RoleError, ModelError."""
    return (await ask(context, judge, key=key, **inputs)).value.scores()


async def score_by_probabilities(
    context: Any, grader: Role[Grades], key: str, inputs: Mapping[str, Any]
) -> list[float]:
    """The score of each principle, 1-5: the expectation over its token, from the log-probabilities of 1 to 5.

    The stated scores if the server returns no log-probabilities. Raises RoleError, ModelError.
    """
    answer: Answer[Grades] = await ask(context, grader, key=key, **inputs)
    scores = [getattr(answer.value, name) for name in PRINCIPLES]
    return await expected_digits(context, grader, answer.call, scores, range(1, 6))
