"""RAGtrans's replies and state. graphs/ragtrans/system.py is the system."""

from __future__ import annotations

from typing import Annotated, Any, NotRequired

from pydantic import BaseModel, Field
from pydantic.json_schema import SkipJsonSchema
from typing_extensions import TypedDict


class Labeled(BaseModel):
    """The labeler's reply, as the paper makes training targets: the document's relevance before the translation."""

    relevance: Annotated[int, Field(ge=1, le=5)]
    found: str
    translation: Annotated[str, Field(min_length=1)]


class ScoredPassage(TypedDict):
    """A retrieved passage."""

    id: str
    title: str
    text: str
    score: float


class Input(TypedDict):
    """Graph input. With a `reference` the translation is scored, and passages that leak it are removed.

    A record may have a list of equally good references. `tag` is a published record's: the kind of its document.
    """

    text: str
    document: NotRequired[str]
    tag: NotRequired[str]
    reference: NotRequired[str | SkipJsonSchema[list[str]]]


class DocumentUse(TypedDict):
    """The document shown to the translator (`used`), how it was truncated (`cut`), and why there is none (`without`).

    `leaks` counts the paragraphs of passages that were removed because they leak the reference.
    """

    setting: NotRequired[str]
    used: NotRequired[str]
    cut: NotRequired[dict[str, int]]
    passages: NotRequired[list[ScoredPassage]]
    leaks: NotRequired[int]
    without: NotRequired[str]


class Output(DocumentUse):
    """Graph output: the translation; `relevance` (1-5) and `found` where the document was rated first."""

    text: str
    translation: NotRequired[str]
    relevance: NotRequired[int | None]
    found: NotRequired[str]
    targets: NotRequired[list[dict[str, Any]]]


class State(Output, Input):
    """Graph state: the input and the output."""
