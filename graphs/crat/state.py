"""What CRAT's roles answer, what its graph holds, and its settings. graphs/crat/system.py is the system."""

from __future__ import annotations

import asyncio
import hashlib
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any, Final, Literal, NotRequired, TypeVar

from pydantic import BaseModel, Field
from pydantic.json_schema import SkipJsonSchema
from typing_extensions import TypedDict

from agentsys.knobs import listed
from agentsys.knowledge import index_digest
from agentsys.prompt import one_line
from agentsys.systems import BaseContext, LanguagePair, knob
from agentsys.terms.item import Kind
from agentsys.terms.sources import load_sources

CHANGING: Final = ("polysemy", "low_conf")
"""Kinds of terms that can mean something else in another sentence of one document."""

UNPLACED: Final = "substitution"
"""`rejected_by` of a candidate without which the sentence was translated: it is put aside, to be the last choice."""


class FoundTerm(BaseModel):
    """A term as the identifier writes it, without its place."""

    term: str
    kind: Literal["polysemy", "proper", "acronym", "new", "domain"]


class FoundTerms(BaseModel):
    """The identifier's reply."""

    terms: Annotated[list[FoundTerm], Field(max_length=8)]


class Relation(BaseModel):
    """Something that the text says of a term."""

    term: str
    relation: str
    object: str


class Relations(BaseModel):
    """The grapher's reply."""

    relations: Annotated[list[Relation], Field(max_length=8)]


class Sense(BaseModel):
    """What a term can mean, and how it is then translated."""

    meaning: str
    translation: str


class Senses(BaseModel):
    """The informant's reply: another model as a source."""

    senses: Annotated[list[Sense], Field(min_length=1, max_length=3)]


class Names(BaseModel):
    """The searcher's reply: what else to look a term up under."""

    names: Annotated[list[str], Field(max_length=3)]


class Relevance(BaseModel):
    """Check 1: is this what the term means here? Before the verdict: what it is here, what the entry speaks of."""

    here: str
    entry: str
    relevant: bool

    @property
    def reason(self) -> str:
        """Why, in one line."""
        return f"here it is {one_line(self.here)}, in the entry {one_line(self.entry)}"


class Invariance(BaseModel):
    """Check 2: does the concept stay the same? Before the verdict: what the term was, what came back."""

    first: str
    last: str
    same: bool

    @property
    def reason(self) -> str:
        """Why, in one line."""
        return f"it was {one_line(self.first)}, it came back as {one_line(self.last)}"


class Counterfactual(BaseModel):
    """Check 3: what if the strongest rival were used instead?"""

    reason: str
    changes: bool
    better: Literal["entry", "rival", "equal"]


class Mention(TypedDict):
    """A term in a sentence: characters `start` to `end` of sentence number `sentence`.

    `confidence` is there where the translator's own probabilities named it (kind low_conf); `node` is the term's node
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
    """A sentence and what was found out about it before anything is looked up.

    `gap` is the white space behind it in the text. `invented` are terms that are not in the sentence, `nested` those
    that stand only inside longer ones; `faults` say what failing roles and sources left out.
    """

    text: str
    gap: str
    already: bool
    mentions: list[Mention]
    invented: list[str]
    nested: list[str]
    faults: list[str]


class Candidate(TypedDict):
    """An item of knowledge and the judge's verdicts on it, with their reasons.

    `item` is the first item with this translation that has a meaning, else the first; `sources` are all that told it.
    A check that was not needed is None. `rejected_by` is the check that it failed, "failed call", "substitution" where
    the sentence was translated without it and another was accepted, "a better one" of those that passed, or "" where it
    was accepted or not judged.
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
    """What is known of a term, judged in sentence number `sentence`; `number` is the mention's place among its terms.

    `node` is the term's node in the graph, "" without one: then nothing is shared. `retrievals` is 1, or 2 where the
    first brought nothing that could be accepted. `reused` marks the decision of an earlier sentence that was found to
    hold here too. `faults` say what a failing role left out of the second retrieval, or of the look at an earlier
    decision.
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


class Rendered(TypedDict):
    """A sentence's translation. `key` is the call that wrote it, `asked` the translator's own call.

    `status`: "entries" (translated with knowledge), "no entry" (terms, but nothing accepted), "no term", "already in
    the target language" (returned as it is). `checked` are the accepted translations, `missing` those that the first
    translation lacked, `left` those that the final one lacks.
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
    """A text, which is cut into sentences, or the sentences of a document, which are left out of Studio's form."""

    text: NotRequired[str]
    sentences: NotRequired[SkipJsonSchema[list[str]]]


class Found(TypedDict):
    """What the nodes find out. `graph` is TransKG.as_json(), None where the graph is switched off."""

    document: NotRequired[list[Sentence]]
    graph: NotRequired[dict[str, Any] | None]
    decisions: NotRequired[list[Decision]]
    rendered: NotRequired[list[Rendered]]
    translation: NotRequired[str]
    translations: NotRequired[list[str]]
    targets: NotRequired[list[dict[str, Any]]]


class State(Input, Found):
    """A document on its way."""


class Output(Found):
    """The translation, a list of it by sentence, and everything behind it."""


@dataclass(frozen=True)
class Knobs(BaseContext, LanguagePair):
    """The knobs of a run; graphs/crat/system.py adds the models and prompts of the roles."""

    source_language: str = knob("English", "language of the texts")
    target_language: str = knob("Chinese", "language of the translations")
    sources: str = knob("", "where knowledge comes from: specs as terms:FILE.csv, separated by commas")
    sources_digest: SkipJsonSchema[str] = knob(
        "", "stands for the sources' content; the command fills it in", hidden=True
    )
    informed: bool = knob(True, "whether a model is asked as a source too")
    signals: Literal["both", "identifier", "confidence"] = knob(
        "both", "what finds unknown terms: a role, the translator's own token probabilities, or both"
    )
    confidence: float = knob(0.5, "a gloss less probable than this (mean of its tokens, 0-1) is an unknown term")
    judge: bool = knob(True, "whether knowledge is judged; without the judge all of it reaches the translator")
    graph: bool = knob(True, "whether there is a knowledge graph: relations in the text, terms shared by sentences")
    candidates: int = knob(3, "candidates of a term that are judged at most")
    again: bool = knob(True, "whether to look once more, under other names, where nothing was accepted")
    repair: bool = knob(True, "whether a translation that lacks an accepted term is repaired, once")

    def __post_init__(self) -> None:
        """Raises ValueError for a knob of the wrong type or out of range."""
        super().__post_init__()
        self.at_least(candidates=1)
        if not 0 <= self.confidence <= 1:
            raise ValueError(f"confidence: {self.confidence:g} is not from 0 to 1")
        for name in ("source_language", "target_language"):
            if not getattr(self, name).strip():
                raise ValueError(f"{name}: it is empty; name a language, such as English")

    @property
    def specs(self) -> list[str]:
        """The specs in `sources`."""
        return listed(self.sources)

    async def aclose(self) -> None:
        """Close the connections of passages' embedding endpoints; `collect` does at its end."""
        from agentsys.knowledge.passages import KnowledgeError
        from agentsys.terms.sources import PassageSource, load_sources

        specs = [spec for spec in self.specs if spec.startswith("passages:")]
        with suppress(KnowledgeError):  # what cannot be opened has nothing to close
            for source in await asyncio.to_thread(load_sources, specs, self.source_language, self.target_language):
                if isinstance(source, PassageSource):
                    await source.aclose()


K = TypeVar("K", bound=Knobs)


def with_digest(context: K) -> K:
    """The context with a digest of what its sources hold, which becomes part of the run's fingerprint.

    Raises KnowledgeError, before anything is asked, for a source that cannot be used.
    """
    if not context.specs:
        return context
    load_sources(context.specs, context.source_language, context.target_language)
    digest = hashlib.sha256()
    for spec in context.specs:
        kind, _, rest = spec.partition(":")
        path = Path(rest.partition("?")[0]).expanduser()
        digest.update(index_digest(path).encode() if kind == "passages" else path.read_bytes())
    return replace(context, sources_digest=digest.hexdigest()[:16])
