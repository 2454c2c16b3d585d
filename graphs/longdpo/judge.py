"""LongDPO's judge: seven principles, each with five soft weights over the scores 1 to 5.

The weights are the probabilities of the score's token (ours), or they are stated, as in the paper: small models state
five equal weights, or five scores, where they are asked for a distribution.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Final

from pydantic import BaseModel, Field

from agentsys.logprobs import expected_digits
from agentsys.roles import Answer, Role
from agentsys.systems import ask

PRINCIPLES: Final = ("accuracy", "purpose", "safety", "logic", "variety", "reading", "insight")
SUM: Final = (0.8, 1.25)
"""What five stated weights may make instead of 1; they are divided by it."""

Weights = Annotated[list[Annotated[float, Field(ge=0)]], Field(min_length=5, max_length=5)]
Score = Annotated[int, Field(ge=1, le=5)]


class Judgement(BaseModel):
    """Five soft weights a principle, for the scores 1 to 5."""

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
    """One score a principle, and nothing before them: a small judge that may explain itself does not come to an end."""

    accuracy: Score
    purpose: Score
    safety: Score
    logic: Score
    variety: Score
    reading: Score
    insight: Score


def fault(judgement: Judgement, inputs: Mapping[str, Any]) -> str | None:
    """What is wrong with stated weights: they are no distribution, or they prefer no score to another.

    Such a principle has no score, and none is made up: five equal weights would be a 3 that nobody gave.
    """
    for name in PRINCIPLES:
        row = getattr(judgement, name)
        if not SUM[0] <= sum(row) <= SUM[1]:
            return f"{name}: its five weights make {sum(row):g}, not 1"
        if len(set(row)) == 1:
            return f"{name}: five equal weights prefer no score; give the scores that fit more than the others"
    return None


async def stated(context: Any, judge: Role[Judgement], key: str, inputs: Mapping[str, Any]) -> list[float]:
    """The score of each principle, 1-5, from the weights in the reply. Raises RoleError, ModelError."""
    return (await ask(context, judge, key=key, **inputs)).value.scores()


async def probable(context: Any, grader: Role[Grades], key: str, inputs: Mapping[str, Any]) -> list[float]:
    """The score of each principle, 1-5: the expectation over its token, from the log-probabilities of 1 to 5.

    The stated scores where the reply came without alternatives. Raises RoleError, ModelError.
    """
    answer: Answer[Grades] = await ask(context, grader, key=key, **inputs)
    written = [getattr(answer.value, name) for name in PRINCIPLES]
    return await expected_digits(context, grader, answer.call, written, range(1, 6))
