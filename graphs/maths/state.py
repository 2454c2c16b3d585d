"""The input, the state and the output of the two graphs of stepwise maths: tree search and independent samples."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, NotRequired

from langgraph.channels import EphemeralValue
from pydantic.json_schema import SkipJsonSchema
from typing_extensions import TypedDict


class Input(TypedDict):
    """A record of GSM8K (question, answer) or of MATH (problem, solution, answer); Studio's form has GSM8K's fields."""

    question: NotRequired[str]
    problem: NotRequired[SkipJsonSchema[str]]
    answer: NotRequired[str]
    solution: NotRequired[SkipJsonSchema[str]]
    tests: NotRequired[SkipJsonSchema[str | list[str]]]


class Solution(TypedDict):
    """A finished solution that the model wrote, and how its answer compares with the reference.

    `score` is V in [-1, 1]. `tokens` counts all completion tokens of the question up to and including this solution.
    `group` is the index of the first solution with an equal answer. `how` is that of agentsys.metrics.maths.Verdict.
    """

    call: str
    right: bool
    answer: str
    how: str
    score: float
    tokens: int
    group: int


class Output(TypedDict):
    """The best solution, all finished solutions, the search tree and the pairs."""

    question: NotRequired[str]
    response: NotRequired[str]
    answer: NotRequired[str]
    right: NotRequired[bool]
    solutions: NotRequired[list[Solution]]
    dropped: NotRequired[str | None]
    tree: NotRequired[list[dict[str, Any]]]
    targets: NotRequired[list[dict[str, Any]]]


class State(Input, Output):
    """Input and output. Input fields are cleared after each run, so an earlier answer is not reused."""

    question: NotRequired[Annotated[str, EphemeralValue]]
    problem: NotRequired[Annotated[str, EphemeralValue]]
    answer: NotRequired[Annotated[str, EphemeralValue]]
    solution: NotRequired[Annotated[str, EphemeralValue]]
    tests: NotRequired[Annotated[str | list[str], EphemeralValue]]


def question_of(record: Mapping[str, Any]) -> str:
    """The question of a record. Raises ValueError."""
    for name in ("question", "problem"):
        if isinstance(text := record.get(name), str) and text.strip():
            return text
    raise ValueError("no question: a record needs `question` or `problem`; --field question=COLUMN names the column")
