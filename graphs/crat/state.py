"""CRAT's replies, state and options. graphs/crat/system.py is the system."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Annotated, Any, Final, Literal, NotRequired, TypeVar

from pydantic import BaseModel, Field
from pydantic.json_schema import SkipJsonSchema
from typing_extensions import TypedDict

from agentsys.knobs import split_names
from agentsys.knowledge.passages import KnowledgeError
from agentsys.prompt import one_line
from agentsys.systems import BaseContext, LanguagePair, knob
from agentsys.terms.item import Kind
from agentsys.terms.sources import PassageSource, load_sources, sources_digest

CONTEXT_DEPENDENT: Final = ("polysemy", "low_conf")
"""Kinds of terms that can mean something else in another sentence of the same document."""

UNPLACED: Final = "substitution"
"""`rejected_by` of a candidate that the substituted translation lacks: it is put aside as the last choice."""


class FoundTerm(BaseModel):
    """A term as the identifier lists it, without its position."""

    term: str
    kind: Literal["polysemy", "proper", "acronym", "new", "domain"]


class FoundTerms(BaseModel):
    """The identifier's reply."""

    terms: Annotated[list[FoundTerm], Field(max_length=8)]


class Relation(BaseModel):
    """A relation that the text states about a term."""

    term: str
    relation: str
    object: str


class Relations(BaseModel):
    """The knowledge-graph constructor's reply."""

    relations: Annotated[list[Relation], Field(max_length=8)]


class Sense(BaseModel):
    """One meaning of a term and its translation."""

    meaning: str
    translation: str


class Senses(BaseModel):
    """The reply of the LLM that is asked as a source."""

    senses: Annotated[list[Sense], Field(min_length=1, max_length=3)]


class Names(BaseModel):
    """The query expander's reply: other names under which to look a term up."""

    names: Annotated[list[str], Field(max_length=3)]


class Relevance(BaseModel):
    """Check 1: does the entry have the term's meaning here? The verdict follows what the term and the entry mean."""

    here: str
    entry: str
    relevant: bool

    @property
    def reason(self) -> str:
        """The reason, in one line."""
        return f"here it is {one_line(self.here)}, in the entry {one_line(self.entry)}"


class Invariance(BaseModel):
    """Check 2: does the concept stay the same? The verdict follows the concept before and after back-translation."""

    first: str
    last: str
    same: bool

    @property
    def reason(self) -> str:
        """The reason, in one line."""
        return f"it was {one_line(self.first)}, it came back as {one_line(self.last)}"


class Counterfactual(BaseModel):
    """Check 3: what if the strongest rival were used instead?"""

    reason: str
    changes: bool
    better: Literal["entry", "rival", "equal"]


class Mention(TypedDict):
    """A term in a sentence: characters `start` to `end` of sentence number `sentence`.

    `confidence` is set where the translator's own probabilities flagged it (kind low_conf); `node` is the term's node
    in the graph, which its other mentions share.
    """

    surface: str
    kind: Kind
    start: int
    end: int
    sentence: int
    confidence: NotRequired[float]
    node: NotRequired[str]


class Sentence(TypedDict):
    """A sentence and its terms, before retrieval.

    `gap` is the white space after it in the text; `already` marks a sentence in the target language. `invented` terms
    are not in the sentence, `nested` ones only inside longer terms; `faults` are the errors of failed roles and
    sources.
    """

    text: str
    gap: str
    already: bool
    mentions: list[Mention]
    invented: list[str]
    nested: list[str]
    faults: list[str]


class Candidate(TypedDict):
    """An item of knowledge with the judge's verdicts and their reasons.

    `item` is the first item with this translation that has a meaning, else the first; `sources` are all that returned
    it. A check that was not needed is None. `rejected_by` is the check that it failed, "failed call", "substitution"
    where the substituted translation lacks it and another was accepted, "a better one" where it passed but another was
    accepted, or "" where it was accepted or not judged.
    """

    item: dict[str, Any]
    sources: list[str]
    relevant: bool | None
    substituted: str
    back_translation: str
    invariant: bool | None
    rival: str
    counterfactual: dict[str, Any] | None
    reasons: dict[str, str]
    accepted: bool
    rejected_by: str


class Decision(TypedDict):
    """The candidates of a term, judged in sentence number `sentence`; `number` is the mention's place in it.

    `node` is the term's node in the graph, "" without one: then nothing is shared. `retrievals` is 1, or 2 where
    nothing of the first was accepted. `reused` marks another sentence's decision that holds here too. `faults` are the
    errors of failed roles in the second retrieval or in the check of another sentence's decision.
    """

    surface: str
    kind: Kind
    node: str
    sentence: int
    number: int
    candidates: list[Candidate]
    retrievals: int
    reused: bool
    faults: list[str]


class SentenceTranslation(TypedDict):
    """A sentence's translation. `key` is the call that wrote it, `asked` the translator's own call.

    `status`: "entries" (translated with knowledge), "no entry" (terms, but nothing accepted), "no term", "already in
    the target language" (returned unchanged). `checked` are the accepted translations, `missing` those that the first
    translation lacks, `left` those that the final one lacks.
    """

    translation: str
    status: Literal["entries", "no entry", "no term", "already in the target language"]
    key: str
    asked: str
    checked: list[str]
    missing: list[str]
    left: list[str]
    repaired: bool


class Input(TypedDict):
    """Graph input: a text, which is split into sentences, or a document's sentences (not in Studio's form)."""

    text: NotRequired[str]
    sentences: NotRequired[SkipJsonSchema[list[str]]]


class Results(TypedDict):
    """What the nodes write. `graph` is TransKG.as_json(), None where the graph is off."""

    document: NotRequired[list[Sentence]]
    graph: NotRequired[dict[str, Any] | None]
    decisions: NotRequired[list[Decision]]
    rendered: NotRequired[list[SentenceTranslation]]
    translation: NotRequired[str]
    translations: NotRequired[list[str]]
    targets: NotRequired[list[dict[str, Any]]]


class State(Input, Results):
    """Graph state: the input and the results."""


class Output(Results):
    """Graph output: the translation as a text and by sentence, and how it came about."""


@dataclass(frozen=True)
class Knobs(BaseContext, LanguagePair):
    """The options of a run; graphs/crat/system.py adds the roles' models and prompts."""

    source_language: str = knob("English", "language of the texts", required=True)
    target_language: str = knob("Chinese", "language of the translations", required=True)
    sources: str = knob(
        "",
        "knowledge sources, separated by commas: terms:FILE, dictionary:FILE, tmx:FILE, wiki:PATH, "
        "passages:FOLDER, python:MODULE:CLASS",
    )
    sources_digest: SkipJsonSchema[str] = knob("", "digest of the sources' content; set by the command", hidden=True)
    llm_source: bool = knob(True, "ask a model as a source too", old_name="informed")
    signals: Literal["both", "identifier", "confidence"] = knob(
        "both", "how unknown terms are found: a role, the translator's token probabilities, or both"
    )
    confidence: float = knob(
        0.5, "glosses less probable than this (geometric mean over tokens, 0-1) are unknown terms", highest=1
    )
    judge: bool = knob(True, "judge the retrieved knowledge; otherwise all of it reaches the translator")
    graph: bool = knob(True, "build a knowledge graph: relations in the text, terms shared by sentences")
    candidates: int = knob(3, "maximum number of candidates judged per term and retrieval", highest_in_studio=32)
    retrieve_again: bool = knob(
        True, "retrieve once more, under other names, if no candidate is accepted", old_name="again"
    )
    relations: bool = knob(False, "show the translator what the text states about its terms, with the graph on")
    repair: bool = knob(True, "repair a translation that lacks an accepted term, once")

    def __post_init__(self) -> None:
        """Raises ValueError for an option of the wrong type or out of range."""
        super().__post_init__()
        self.at_least(candidates=1, confidence=0)
        if self.relations and not self.graph:
            raise ValueError("relations: they are in the knowledge graph, which is off; turn graph on or relations off")

    @property
    def specs(self) -> list[str]:
        """The specs in `sources`."""
        return split_names(self.sources)

    async def aclose(self) -> None:
        """Close the connections of the passage indexes' embedding endpoints; `collect` calls it at the end of a run."""
        specs = [spec for spec in self.specs if spec.startswith("passages:")]
        with suppress(KnowledgeError):  # a source that cannot be opened has no connection
            for source in await asyncio.to_thread(load_sources, specs, self.source_language, self.target_language):
                if isinstance(source, PassageSource):
                    await source.aclose()


K = TypeVar("K", bound=Knobs)


def with_digest(context: K) -> K:
    """The context with a digest of its sources' content, which becomes part of the run's fingerprint.

    Raises KnowledgeError, before any model is called, for a source that cannot be used.
    """
    if not context.specs:
        return context
    load_sources(context.specs, context.source_language, context.target_language)
    return replace(context, sources_digest=sources_digest(context.specs))
