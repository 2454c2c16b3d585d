"""An image-caption pair, what the builder makes of it, and the replies of its roles (section 3)."""

from __future__ import annotations

from typing import Annotated, Any, Final, Literal, NotRequired

from pydantic import BaseModel, Field
from typing_extensions import TypedDict

from agentsys.pictures import PictureInput

CaptionType = Literal["o", "s", "a"]
CAPTION_TYPES: Final[dict[CaptionType, str]] = {"o": "original", "s": "synonymous", "a": "antonymous"}


class Input(TypedDict):
    """Graph input: a pair. The other fields are what is known of it; no model is asked for those that are given.

    `label` is 1 if the pair has a punchline and 0 if it has none; `votes` are {"yes": n, "no": n} of people who were
    asked whether it makes them laugh.
    """

    image: PictureInput
    caption: str
    label: NotRequired[Any]
    votes: NotRequired[Any]
    synonymous: NotRequired[Any]
    antonymous: NotRequired[Any]
    distractor: NotRequired[Any]
    reasoning: NotRequired[Any]
    distractor_reasoning: NotRequired[Any]
    domain: NotRequired[Any]


class Options(TypedDict):
    """The four statements of a multi-option question, of which one is correct."""

    correct: str
    wrong: list[str]


class Fault(TypedDict):
    """An item that was dropped, and why."""

    item: str
    reason: str


class Output(TypedDict):
    """Graph output: a pair, from which tasks.py makes questions.

    A text that could not be made is "", and the faults say why. `options` are by type of caption.
    """

    image: Any
    caption: str
    domain: NotRequired[Any]
    has_punchline: NotRequired[bool]
    synonymous_caption: NotRequired[str]
    antonymous_caption: NotRequired[str]
    distractor_caption: NotRequired[str]
    reasoning_sentence: NotRequired[str]
    distractor_sentence: NotRequired[str]
    options: NotRequired[dict[str, Options]]
    caption_faults: NotRequired[list[Fault]]
    distractor_faults: NotRequired[list[Fault]]
    reasoning_faults: NotRequired[list[Fault]]
    sentence_faults: NotRequired[list[Fault]]
    option_faults: NotRequired[list[Fault]]
    dropped: NotRequired[str]


class State(Output):
    """What the input says of the pair, and its parts as they are made; `dropped` is why the whole pair is."""

    label: NotRequired[Any]
    votes: NotRequired[Any]
    synonymous: NotRequired[Any]
    antonymous: NotRequired[Any]
    distractor: NotRequired[Any]
    reasoning: NotRequired[Any]
    distractor_reasoning: NotRequired[Any]
    parts: NotRequired[list[str]]
    """The two parts of a caption that contradict each other; empty for any other caption."""


class Verdict(BaseModel):
    """A role's answer to a question."""

    answer: Literal["Yes", "No"]


class Parts(BaseModel):
    """Whether a caption has two parts that contradict each other, and these parts."""

    contradict: bool
    first: str = Field(description="the first part, word for word; empty if there are not two")
    second: str = Field(description="the second part, word for word; empty if there are not two")


class Statements(BaseModel):
    """Four statements about a pair, of which one is correct."""

    correct: str
    wrong: Annotated[list[str], Field(min_length=3, max_length=3)]


def captions_of(pair: Any) -> dict[CaptionType, tuple[str, int]]:
    """The captions C^x of a pair with their labels L^x: an antonymous one has the other label."""
    label = int(pair["has_punchline"])
    found: dict[CaptionType, tuple[str, int]] = {"o": (pair["caption"], label)}
    if pair.get("synonymous_caption"):
        found["s"] = (pair["synonymous_caption"], label)
    if pair.get("antonymous_caption"):
        found["a"] = (pair["antonymous_caption"], 1 - label)
    return found
