"""RAGtrans as a graph: translation with unstructured knowledge, a document in any language.

Four settings: no document, a relevant one (golden), one of another page (noisy), or
retrieved passages. The model is not told which. graphs/ragtrans/tasks.py makes the training targets of CSC;
docs/ragtrans.md lists the departures from the paper.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Final, Literal

from langgraph.graph import StateGraph
from langgraph.runtime import Runtime

from agentsys.graphs.ragtrans.documents import JOIN, Reference, fit, remove_leaks, split_paragraphs
from agentsys.graphs.ragtrans.state import Input, Labeled, Output, ScoredPassage, State
from agentsys.graphs.ragtrans.targets import rated_target, translator_targets
from agentsys.knowledge.context import Knowledge
from agentsys.roles import Role
from agentsys.systems import LanguagePair, System, ask, knob, role_options, sequence_graph

__all__ = ["Context", "RAGtrans", "builder", "graph"]

OVERFETCH: Final = 8
"""With a document language, this many times k passages are retrieved, and those in other languages are left out."""


@dataclass(frozen=True)
class RAGtrans(System):
    """The roles and nodes of RAGtrans. Truncated translations are accepted, but not learned."""

    translator: Role[str] = Role(
        "ragtrans/translator", allow_truncated=True, sampling={"temperature": 0.0, "max_tokens": 1024}
    )
    labeler: Role[Labeled] = Role("ragtrans/labeler", Labeled, sampling={"temperature": 0.0, "max_tokens": 1500})

    async def find(self, state: State, runtime: Runtime[Context]) -> dict[str, Any]:
        """The document of the setting, truncated to the token limit. Raises ValueError for input that is not text."""
        context, text = runtime.context, state.get("text")
        if not isinstance(text, str) or not text.strip():
            raise ValueError("text: empty; give a text to translate")
        references = read_references(state)
        update: dict[str, Any] = {"passages": [], "leaks": 0, "relevance": None, "found": ""}
        paragraphs: list[str] = []
        if context.setting == "retrieved":
            passages, leaks = await self._retrieve(context, text, references)
            paragraphs = [paragraph for passage in passages for paragraph in _titled_paragraphs(passage)]
            update |= {"passages": passages, "leaks": leaks}
        elif context.setting != "none":
            paragraphs = split_paragraphs(_document(state, context))
        fitted = fit(paragraphs, context.document_tokens)
        missing = "no passage" if context.setting == "retrieved" else "no document"
        without = "" if fitted.paragraphs or context.setting == "none" else missing
        document = {"used": JOIN.join(fitted.paragraphs), "cut": fitted.as_json(), "without": without}
        return {**update, "setting": context.setting, **document}

    async def _retrieve(
        self, context: Context, text: str, references: Sequence[str]
    ) -> tuple[list[ScoredPassage], int]:
        """Passages for s without the paragraphs that leak a reference, and the number of those paragraphs."""
        secrets = [Reference(reference) for reference in references]
        passages: list[ScoredPassage] = []
        leaks = 0
        for passage in await context.search_passages(text):
            clean, count = remove_leaks(split_paragraphs(passage["text"]), secrets)
            leaks += count
            if clean:
                passages.append({**passage, "text": JOIN.join(clean)})
        return passages, leaks

    async def translate(self, state: State, runtime: Runtime[Context]) -> dict[str, Any]:
        """p(t | d, s), or p(t | s) without a document, and the training targets. Raises RoleError.

        The input's other fields are cleared, because a thread's next input may lack them.
        """
        context, document = runtime.context, state["used"]
        inputs = {"text": state["text"], "document": document, **context.languages}
        cleared = {"document": "", "reference": ""}
        if context.style == "rated" and document:
            labeled = (await ask(context, self.labeler, key="label", **inputs)).value
            scores = {"relevance": float(labeled.relevance), **await _score(state, labeled.translation)}
            target = rated_target(inputs, labeled.translation, scores)
            return {**cleared, **labeled.model_dump(), "targets": [asdict(target)]}
        answer = await ask(context, self.translator, key="translate", **inputs)
        targets = translator_targets(answer, await _score(state, answer.value))
        return {**cleared, "translation": answer.value, "targets": [asdict(target) for target in targets]}

    def builder(self) -> StateGraph[State, Context, Input, Output]:
        """find -> translate."""
        return sequence_graph(self.find, self.translate, state=State, context=Context, input=Input, output=Output)


@dataclass(frozen=True)
@role_options(RAGtrans, old_names={"labeler": "labeller"})
class Context(Knowledge, LanguagePair):
    """Models, prompts and options of a run."""

    setting: Literal["none", "golden", "noisy", "retrieved"] = knob(
        "golden", "document: none, the record's relevant one, its irrelevant one, or retrieved passages"
    )
    style: Literal["plain", "rated"] = knob(
        "plain", "translate only, or rate the document first as in the paper's training targets"
    )
    document_language: str = knob(
        "", "language code of the document: column zh_doc or noisy_zh_doc, passages in it; empty: doc, any passages"
    )
    document_tokens: int = knob(
        768,
        "maximum tokens of a document (estimated); truncated at the end of a paragraph",
        highest_in_studio=1_000_000,
    )
    k: int = knob(3, "setting retrieved: number of passages", highest_in_studio=100)
    source_language: str = knob("English", "language of the texts", required=True)
    target_language: str = knob("Chinese", "language of the translations", required=True)

    def __post_init__(self) -> None:
        """Raises ValueError for an option of the wrong type or out of range."""
        super().__post_init__()
        self.at_least(document_tokens=1)

    @property
    def document_column(self) -> str:
        """The column of a published record that has the setting's document; "" for none and retrieved."""
        if self.setting not in ("golden", "noisy"):
            return ""
        noisy = "noisy_" if self.setting == "noisy" else ""
        return f"{noisy}{self.document_language}_doc" if self.document_language else "doc"

    async def search_passages(self, query: str) -> list[ScoredPassage]:
        """The k best passages in the document language. Raises ValueError if the index cannot be opened."""
        code = self.document_language
        hits = await self.hits(query, self.k * OVERFETCH if code else self.k)
        fitting = [hit for hit in hits if not code or hit.passage.meta.get("lang") == code]
        return [
            ScoredPassage(id=hit.passage.id, title=hit.passage.title, text=hit.passage.text, score=hit.score)
            for hit in fitting[: self.k]
        ]


def _document(state: State, context: Context) -> str:
    """The record's document. Raises ValueError if it is not text, or its tag belongs to another setting.

    With style rated either kind is accepted: the rating tells them apart.
    """
    document, tag = state.get("document") or "", str(state.get("tag") or "")
    if not isinstance(document, str):
        raise ValueError(f"document: of type {type(document).__name__}; give a text")
    kind, other = ("clean", "noisy") if context.setting == "golden" else ("noisy", "clean")
    if context.style == "plain" and tag.startswith(f"{other}_"):
        raise ValueError(
            f"tag: its document is {other}, which is not setting {context.setting}; use records tagged {kind}, or "
            "test.jsonl, which has columns for both kinds"
        )
    return document


def read_references(state: State) -> list[str]:
    """The non-empty references. Raises ValueError if `reference` is neither a text nor a list of texts."""
    value: Any = state.get("reference") or []
    texts = value if isinstance(value, list) else [value]
    if not all(isinstance(text, str) for text in texts):
        raise ValueError(f"reference: of type {type(value).__name__}; give a text, or a list of texts")
    return [text for text in texts if text.strip()]


async def _score(state: State, translation: str) -> dict[str, float]:
    """Sentence chrF, 0-100, against the best-matching reference; empty without a reference."""
    from agentsys.metrics.corpus import chrf

    if not (references := read_references(state)):
        return {}
    score = await asyncio.to_thread(chrf, [translation], [references])
    return {"score": round(score, 2)}


def _titled_paragraphs(passage: ScoredPassage) -> list[str]:
    """The paragraphs of a passage, the first with its title in brackets as in the published documents."""
    first, *rest = split_paragraphs(passage["text"])
    return [f"【{passage['title']}】{first}" if passage["title"] else first, *rest]


builder = RAGtrans().builder()
graph = builder.compile(name="ragtrans")
