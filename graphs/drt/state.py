"""DRT's state P(s) and the replies of its roles."""

from __future__ import annotations

from typing import Annotated, Any, Literal, NotRequired

from pydantic import BaseModel, Field
from typing_extensions import TypedDict


class Keyword(BaseModel):
    """One pair of (W_src, W_tgt)."""

    word: str
    translation: str


class Keywords(BaseModel):
    """Word-level translation, step B1."""

    keywords: Annotated[list[Keyword], Field(min_length=1)]


class Evaluation(BaseModel):
    """The evaluator's reply, step B3b: the reason comes before the score."""

    reason: str
    score: Annotated[int, Field(ge=0, le=100)]


class Comparison(BaseModel):
    """The comparer's reply: which of two translations is better."""

    reason: str
    better: Literal["first", "second"]


class Version(BaseModel):
    """What a short thought says before and after it quotes a translation."""

    lead: str
    judgement: str


class ShortThought(BaseModel):
    """The parts of a short thought between which the translations stand, in their order and once more at the end."""

    keywords: str
    versions: list[Version]
    decision: str


class RefinementStep(TypedDict):
    """One <t_k, f_k, s_k> of the trace P(s); `key` is the key of the call that wrote t_k.

    `score` is the one that was used: the stated or the expected score, both of which are kept where they are known.
    """

    translation: str
    feedback: str
    score: float
    stated: NotRequired[float]
    expected: NotRequired[float]
    reason: str
    key: str


class Input(TypedDict):
    """Graph input: one sentence s."""

    text: str


class State(Input):
    """P(s) as it grows (step B4); `refiner` is the run's, since the route through the graph depends on it."""

    refiner: NotRequired[str]
    keywords: NotRequired[list[dict[str, str]]]
    steps: NotRequired[list[RefinementStep]]
    kept: NotRequired[list[int]]
    thought: NotRequired[str]
    trans: NotRequired[str]
    stop: NotRequired[str]
    dropped: NotRequired[str | None]
    targets: NotRequired[list[dict[str, Any]]]


class Output(TypedDict):
    """Graph output: the published record (text, trans, thought), its trace P(s), and the training targets."""

    text: str
    trans: NotRequired[str]
    thought: NotRequired[str]
    keywords: NotRequired[list[dict[str, str]]]
    steps: NotRequired[list[RefinementStep]]
    kept: NotRequired[list[int]]
    stop: NotRequired[str]
    dropped: NotRequired[str | None]
    targets: NotRequired[list[dict[str, Any]]]
