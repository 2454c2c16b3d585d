"""RAGtrans: a translation with unstructured knowledge, a document in any language.

"Retrieval-Augmented Machine Translation with Unstructured Knowledge" (Wang et al., Findings of EMNLP 2025). Four
settings: no document, a relevant one (golden), one of another page (noisy), or what a retriever finds. The model is not
told which. graphs/ragtrans/tasks.py makes the training rows, docs/ragtrans.md says where this departs from the paper.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Annotated, Any, Final, Literal, NotRequired

from langgraph.graph import END, START, StateGraph
from langgraph.runtime import Runtime
from pydantic import BaseModel, Field
from pydantic.json_schema import SkipJsonSchema
from typing_extensions import TypedDict

from agentsys.graphs.ragtrans.documents import JOIN, Reference, fit, paragraphs_of, without_leaks
from agentsys.knowledge.context import Knowledge
from agentsys.roles import Answer, Role, load_prompt
from agentsys.systems import LanguagePair, System, ask, knob, role_options
from agentsys.traces import Segment, Target, masked

STUDENT: Final = load_prompt("ragtrans/translator")
"""What a student is given: the translator's own prompt."""
OVERFETCH: Final = 8
"""Passages in other languages than the wanted one are left out, of so many times as many as are wanted."""


class Labeled(BaseModel):
    """A training target as the paper makes it: the document's relevance is rated before the translation."""

    relevance: Annotated[int, Field(ge=1, le=5)]
    found: str
    translation: Annotated[str, Field(min_length=1)]


class Passage(TypedDict):
    """A passage that was found."""

    id: str
    title: str
    text: str
    score: float


class Input(TypedDict):
    """What a person types. With a `reference` the translation is scored, and passages must not give it away.

    A record may have several that are equally good, in a list. `tag` is a published record's: the kind of its document.
    """

    text: str
    document: NotRequired[str]
    tag: NotRequired[str]
    reference: NotRequired[str | SkipJsonSchema[list[str]]]


class Used(TypedDict):
    """What the translator was given: the document as it was cut, how it was cut, and why there is none.

    `leaks` counts paragraphs of passages that were taken out because they gave the reference away.
    """

    setting: NotRequired[str]
    used: NotRequired[str]
    cut: NotRequired[dict[str, int]]
    passages: NotRequired[list[Passage]]
    leaks: NotRequired[int]
    without: NotRequired[str]


class Output(Used):
    """The translation; `relevance` (1-5) and `found` where the document was rated first."""

    text: str
    translation: NotRequired[str]
    relevance: NotRequired[int | None]
    found: NotRequired[str]
    targets: NotRequired[list[dict[str, Any]]]


class State(Output, Input):
    """The input and what comes of it."""


@dataclass(frozen=True)
class RAGtrans(System):
    """The roles and nodes. A translation may be cut off by the token limit: what is there is what counts."""

    translator: Role[str] = Role(
        "ragtrans/translator", allow_truncated=True, sampling={"temperature": 0.0, "max_tokens": 1024}
    )
    labeller: Role[Labeled] = Role("ragtrans/labeller", Labeled, sampling={"temperature": 0.0, "max_tokens": 1500})

    async def find(self, state: State, runtime: Runtime[Context]) -> dict[str, Any]:
        """The document of the setting, cut to what fits. Raises ValueError for input that is no text."""
        context, text = runtime.context, state.get("text")
        if not isinstance(text, str) or not text.strip():
            raise ValueError("text: empty; give a text to translate")
        references = references_of(state)
        begun: dict[str, Any] = {"setting": context.setting, "passages": [], "leaks": 0, "relevance": None, "found": ""}
        paragraphs: list[str] = []
        if context.setting == "retrieved":
            passages, leaks = await self._retrieve(context, text, references)
            paragraphs = [paragraph for passage in passages for paragraph in _titled(passage)]
            begun |= {"passages": passages, "leaks": leaks}
        elif context.setting != "none":
            paragraphs = paragraphs_of(_document(state, context))
        fitted = fit(paragraphs, context.document_tokens)
        missing = "no passage" if context.setting == "retrieved" else "no document"
        without = "" if fitted.paragraphs or context.setting == "none" else missing
        return {**begun, "used": JOIN.join(fitted.paragraphs), "cut": fitted.as_json(), "without": without}

    async def _retrieve(self, context: Context, text: str, references: Sequence[str]) -> tuple[list[Passage], int]:
        """Passages for s, without the paragraphs that give a reference away, and how many those were."""
        secrets = [Reference(reference) for reference in references]
        found: list[Passage] = []
        leaks = 0
        for passage in await context.passages(text):
            clean, taken = without_leaks(paragraphs_of(passage["text"]), secrets)
            leaks += taken
            if clean:
                found.append({**passage, "text": JOIN.join(clean)})
        return found, leaks

    async def translate(self, state: State, runtime: Runtime[Context]) -> dict[str, Any]:
        """p(t | d, s), or p(t | s) without a document; the target is what a student is to write."""
        context, document = runtime.context, state["used"]
        asked = {"text": state["text"], "document": document, **context.languages}
        if context.style == "rated" and document:
            labeled = await ask(context, self.labeller, key="label", **asked)
            value = labeled.value
            scores = {"relevance": float(value.relevance), **await _score(state, value.translation, context)}
            target = lesson(asked, Segment("assistant", True, text=value.translation.strip()), scores)
            return {**_done(), **value.model_dump(), "targets": [asdict(target)]}
        answer = await ask(context, self.translator, key="translate", **asked)
        scores = await _score(state, answer.value, context)
        return {**_done(), "translation": answer.value, "targets": [asdict(t) for t in _written(answer, scores)]}

    def builder(self) -> StateGraph[State, Context, Input, Output]:
        """find -> translate."""
        builder = StateGraph(State, context_schema=Context, input_schema=Input, output_schema=Output)
        builder.add_node("find", self.find)
        builder.add_node("translate", self.translate)
        builder.add_edge(START, "find")
        builder.add_edge("find", "translate")
        builder.add_edge("translate", END)
        return builder


@dataclass(frozen=True)
@role_options(RAGtrans)
class Context(Knowledge, LanguagePair):
    """Models, prompts and knobs of a run."""

    setting: Literal["none", "golden", "noisy", "retrieved"] = knob(
        "golden", "no document; the record's relevant one; its irrelevant one; or what the retriever finds"
    )
    style: Literal["plain", "rated"] = knob(
        "plain", "translate, or rate the document first as the paper makes its training targets"
    )
    document_language: str = knob(
        "", "code of the document's language: a record's zh_doc or noisy_zh_doc, passages in it; empty: doc, any"
    )
    document_tokens: int = knob(768, "cut a document after so many tokens (estimated), at the end of a paragraph")
    k: int = knob(3, "retrieved: passages, the best first")
    source_language: str = knob("English", "language of the texts")
    target_language: str = knob("Chinese", "language of the translations")

    def __post_init__(self) -> None:
        """Raises ValueError for a knob of the wrong type or out of range."""
        super().__post_init__()
        self.at_least(document_tokens=1)

    @property
    def document_column(self) -> str:
        """The column of a published record that holds the setting's document; "" where none does."""
        if self.setting not in ("golden", "noisy"):
            return ""
        noisy = "noisy_" if self.setting == "noisy" else ""
        return f"{noisy}{self.document_language}_doc" if self.document_language else "doc"

    async def passages(self, query: str) -> list[Passage]:
        """The k best passages in the wanted language. Raises ValueError where the index cannot be opened."""
        wanted = self.document_language
        hits = await self.hits(query, self.k * OVERFETCH if wanted else self.k)
        fitting = [hit for hit in hits if not wanted or hit.passage.meta.get("lang") == wanted]
        return [
            Passage(id=hit.passage.id, title=hit.passage.title, text=hit.passage.text, score=hit.score)
            for hit in fitting[: self.k]
        ]


def _document(state: State, context: Context) -> str:
    """The record's document. Raises ValueError for one that is no text, or whose tag is another setting's.

    A rated translation takes either kind: the rating tells them apart.
    """
    document, tag = state.get("document") or "", str(state.get("tag") or "")
    if not isinstance(document, str):
        raise ValueError(f"document: of type {type(document).__name__}; give a text")
    kind, other = ("clean", "noisy") if context.setting == "golden" else ("noisy", "clean")
    if context.style == "plain" and tag.startswith(f"{other}_"):
        raise ValueError(
            f"tag: its document is {other}, which is not setting {context.setting}; take records tagged {kind}, or "
            "test.jsonl, which has both kinds in columns"
        )
    return document


def references_of(state: State) -> list[str]:
    """The references that there are. Raises ValueError for what is neither a text nor a list of texts."""
    given: Any = state.get("reference") or []
    texts = given if isinstance(given, list) else [given]
    if not all(isinstance(text, str) for text in texts):
        raise ValueError(f"reference: of type {type(given).__name__}; give a text, or a list of texts")
    return [text for text in texts if text.strip()]


def lesson(asked: dict[str, str], answer: Segment, scores: dict[str, float]) -> Target:
    """An answer to the translator's prompt as something to learn; the rating before it is not learned (section 3)."""
    prompt = masked(STUDENT.render(asked))
    return Target("sft", (*prompt, answer), scores=scores)


def _written(answer: Answer[str], scores: dict[str, float]) -> Sequence[Target]:
    """The translator's own call, unless the token limit cut it off."""
    if answer.call.finish == "length":
        return []
    key = answer.call.key
    return [Target("role", (Segment("user", False, prompt=key), Segment("assistant", True, call=key)), scores=scores)]


async def _score(state: State, translation: str, context: Context) -> dict[str, float]:
    """chrF against the reference, 0-100, where there is one; of several against the nearest."""
    from agentsys.metrics.corpus import chrf

    if not (references := references_of(state)):
        return {}
    score = await asyncio.to_thread(chrf, [translation], [references], language=context.target_language)
    return {"score": round(score, 2)}


def _done() -> dict[str, str]:
    """What the next text of a thread must not find."""
    return {"document": "", "reference": ""}


def _titled(passage: Passage) -> list[str]:
    """The paragraphs of a passage, the first with its title in brackets as the published documents have it."""
    first, *rest = paragraphs_of(passage["text"])
    return [f"【{passage['title']}】{first}" if passage["title"] else first, *rest]


builder = RAGtrans().builder()
graph = builder.compile(name="ragtrans")
