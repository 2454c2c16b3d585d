"""DRT's state P(s), the replies of its roles, and the checks that those replies must pass."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Annotated, Any, Final, Literal, NotRequired

from pydantic import BaseModel, Field
from typing_extensions import TypedDict

ATTEMPT: Final = re.compile(r"[\"“「]?\[(\d+)\][\"”」]?")
"""How the narrator quotes an attempt: [1], with or without quotation marks."""


class Keyword(BaseModel):
    """One pair of (W_src, W_tgt)."""

    word: str
    translation: str


class Keywords(BaseModel):
    """Word-level translation, step B1."""

    keywords: Annotated[list[Keyword], Field(min_length=1, max_length=8)]


class Evaluation(BaseModel):
    """The evaluator's reply, step B3b: the reason comes before the score."""

    reason: str
    score: Annotated[int, Field(ge=0, le=100)]


class Comparison(BaseModel):
    """The comparer's reply: which of two translations is better."""

    reason: str
    better: Literal["first", "second"]


class RefinementStep(TypedDict):
    """One <t_k, f_k, s_k> of the trace P(s); `key` is the key of the call that wrote t_k."""

    translation: str
    feedback: str
    score: float
    reason: str
    key: str


class Input(TypedDict):
    """Graph input: one sentence s."""

    text: str


class State(Input):
    """P(s) as it grows (step B4)."""

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


def occurs_in(keyword: Keyword, text: str) -> bool:
    """Whether the sentence contains the key word, in upper or lower case."""
    return keyword.word.casefold() in text.casefold()


def check_keywords(reply: Keywords, inputs: Mapping[str, Any]) -> str | None:
    """Return why the key words are refused, or None: at least one must occur in the sentence."""
    if any(occurs_in(keyword, inputs["text"]) for keyword in reply.keywords):
        return None
    return "copy the words from the sentence"


def check_refinement(translation: str, inputs: Mapping[str, Any]) -> str | None:
    """Return why a refined translation is refused, or None: it must be new, and not only the part under criticism."""
    earlier = [step["translation"] for step in inputs["steps"]]
    if len(translation) < len(earlier[0]) / 2:
        return "it is not the whole sentence; translate all of it"
    return "it repeats an earlier version; change the words that were criticised" if translation in earlier else None


def check_thought(thought: str, inputs: Mapping[str, Any]) -> str | None:
    """Return why a thought is refused, or None: it quotes every attempt, ends with the decision, copies no notes."""
    if re.search(r"^\W*(\[\d+\] =|wrong with \[|decided on:)", thought, re.MULTILINE):
        return "retell the notes in sentences of your own, do not copy their lines"
    quotes = ATTEMPT.findall(thought)
    quoted = {int(number) for number in quotes}
    attempts = set(range(1, len(inputs["steps"]) + 1))
    if missing := sorted(attempts - quoted):
        return f"the attempts {', '.join(f'[{i}]' for i in missing)} are missing; quote each one in its place"
    if quoted - attempts:
        return f"there are only {len(attempts)} attempts"
    decision = inputs["decision"]
    return None if quotes[-1] == str(decision) else f"end with the decision, [{decision}]"
