"""CRAT: a translation whose unknown terms are looked up, put into a knowledge graph, judged, and only then used.

"A Multi-Agent Framework for Causality-Enhanced Reflective and Retrieval-Augmented Translation with Large Language
Models" (Chen et al. 2024). Unknown terms are found for all sentences at once; the graph (TransKG) grows over them
from the text itself and from external sources; a causal judge accepts or rejects each candidate; the translator sees
what was accepted, and a check makes sure that it used it. One sentence goes through nodes that a person can step
through. The sentences of a document go through the same methods side by side: one waits for an earlier one only where
that one decides a term of both. docs/crat.md says what the paper leaves open and what was chosen.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Sequence
from dataclasses import asdict, dataclass
from difflib import SequenceMatcher
from typing import Any, Final, TypeVar, cast

from langgraph.graph import END, START, StateGraph
from langgraph.runtime import Runtime

from agentsys.graphs.crat.document import facts as facts_of
from agentsys.graphs.crat.document import known, may_differ, needed, relate, rooted, undecided, valid, with_verdicts
from agentsys.graphs.crat.judge import Judge, accepted, blank, shown
from agentsys.graphs.crat.state import (
    Decision,
    FoundTerms,
    Input,
    Knobs,
    Mention,
    Output,
    Relations,
    Rendered,
    Sentence,
    State,
)
from agentsys.graphs.crat.terms import confidences, doubtful, has_term, is_already, joined, place, sentences_of
from agentsys.graphs.crat.transkg import TransKG
from agentsys.models.errors import ModelError
from agentsys.roles import Role, load_prompt
from agentsys.search import settled
from agentsys.systems import ask, role_options
from agentsys.terms.index import term_key
from agentsys.terms.item import Item, Kind
from agentsys.text.languages import language
from agentsys.traces import Segment, Target, masked

__all__ = ["CRAT", "Context", "builder", "graph"]

T = TypeVar("T")

STUDENT = load_prompt("evaluate/translator")
"""The plain translator's prompt, which a student learns to answer without any knowledge in it."""
ALIKE: Final = 0.5
"""A repair is as similar as this at least to the translation that it repairs: 2 x equal characters / all characters."""


@dataclass(frozen=True)
class CRAT(Judge):
    """The roles and nodes of CRAT. `CRAT(back=Role(...), sources=(mine,))` replaces a role and adds a source."""

    identifier: Role[FoundTerms] = Role("crat/identifier", FoundTerms, sampling={"temperature": 0.0, "max_tokens": 400})
    glosser: Role[str] = Role(
        "crat/glosser", allow_truncated=True, sampling={"temperature": 0.0, "max_tokens": 400, "logprobs": 1}
    )
    grapher: Role[Relations] = Role("crat/grapher", Relations, sampling={"temperature": 0.0, "max_tokens": 500})
    translator: Role[str] = Role("crat/translator", sampling={"temperature": 0.0, "max_tokens": 1000})
    repairer: Role[str] = Role("crat/repairer", sampling={"temperature": 0.0, "max_tokens": 1000})

    async def identify(self, state: State, runtime: Runtime[Context]) -> dict[str, Any]:
        """Unknown terms of all sentences. The input leaves the state: a thread's next one may be of the other form.

        Raises InputError for an empty text, KnowledgeError for a source that cannot be used.
        """
        context = runtime.context
        pieces = sentences_of(state.get("text"), state.get("sentences"), context.source_language)
        await self.opened(context)  # what may not be read ends the run before anything is asked
        found = await settled(*(self._look_at(context, i, text, gap) for i, (text, gap) in enumerate(pieces)))
        begun: dict[str, Any] = {"graph": None, "decisions": [], "rendered": [], "targets": []}  # a thread goes on
        return {**begun, "document": _all(found), "text": "", "sentences": []}

    async def _look_at(self, context: Context, i: int, text: str, gap: str) -> Sentence:
        """One sentence: what the identifier names and what the translator doubts, placed in the text."""
        sentence = Sentence(text=text, gap=gap, already=False, mentions=[], invented=[], nested=[], faults=[])
        if is_already(text, context.source_language, context.target_language):
            return {**sentence, "already": True}
        work = [self._named(context, i, text)] if context.signals != "confidence" else []
        work += [self._doubted(context, i, text)] if context.signals != "identifier" else []
        found = await settled(*work)
        terms = [term for part in found if not isinstance(part, ModelError) for term in part[0]]
        faults = [fault for part in found for fault in ([str(part)] if isinstance(part, ModelError) else part[1])]
        mentions, invented, nested = place(text, i, terms)
        return {**sentence, "mentions": mentions, "invented": invented, "nested": nested, "faults": faults}

    async def _named(
        self, context: Context, i: int, text: str
    ) -> tuple[list[tuple[str, Kind, float | None]], list[str]]:
        answer = await ask(context, self.identifier, key=f"identify/{i}", text=text, **context.languages)
        return [(found.term, found.kind, None) for found in answer.value.terms], []

    async def _doubted(
        self, context: Context, i: int, text: str
    ) -> tuple[list[tuple[str, Kind, float | None]], list[str]]:
        """The model-free signal: source words whose glosses the translator's own probabilities hold least likely."""
        answer = await ask(context, self.glosser, key=f"gloss/{i}", text=text, **context.languages)
        found = await confidences(context, self.glosser, answer.call)
        if found is None:
            return [], ["glosser: the model tells no log-probabilities"]
        mentions, _, _ = place(text, i, [(word, "low_conf", None) for word, _ in found])
        placed = {term_key(mention["surface"]) for mention in mentions}  # a gloss of another word is no doubt of ours
        return doubtful([pair for pair in found if term_key(pair[0]) in placed], context.confidence), []

    async def build(self, state: State, runtime: Runtime[Context]) -> dict[str, Any]:
        """TransKG: relations from the text and items from the sources, in the order of the sentences.

        A term is looked up for the first sentence that has it. Raises ValueError for a source that cannot be used.
        """
        context, document = runtime.context, list(state["document"])
        spoken = language(context.source_language)
        graph = TransKG(spoken.primary if spoken else "") if context.graph else None
        if graph is not None:
            document = [{**sentence, "mentions": rooted(graph, sentence["mentions"])} for sentence in document]
        due = undecided(document)
        pairs = await settled(*(self._knowledge(context, document, i, due[i]) for i in range(len(document))))
        decisions: list[Decision] = []
        for i, (related, (looked, faults)) in enumerate(_all(pairs)):
            if graph is not None:
                faults = [*relate(graph, document[i], related), *faults]
            document[i] = {**document[i], "faults": [*document[i]["faults"], *faults]}
            decisions += known(graph, due[i], looked)
        return {"document": document, "graph": graph.as_json() if graph else None, "decisions": decisions}

    async def _knowledge(
        self, context: Context, document: Sequence[Sentence], i: int, due: Sequence[tuple[int, Mention]]
    ) -> tuple[Relations | ModelError, tuple[list[list[Item]], list[str]]]:
        """Internal knowledge about a sentence's terms, and external knowledge about those it is the first to have."""
        terms = [mention["surface"] for _, mention in due]
        keys = [f"{i}/{number}" for number, _ in due]
        work: list[Any] = [self.retrieve(context, document[i]["text"], terms, keys)]
        work += [self._relations(context, document, i)] if context.graph and document[i]["mentions"] else []
        looked, *related = cast("list[Any]", await settled(*work))
        return (related or [Relations(relations=[])])[0], looked

    async def _relations(self, context: Context, document: Sequence[Sentence], i: int) -> Relations:
        """Internal knowledge: what a sentence and its neighbours say of its terms. Raises RoleError."""
        sentence = document[i]
        before, after = (document[j]["text"] if 0 <= j < len(document) else "" for j in (i - 1, i + 1))
        about = {"text": sentence["text"], "before": before, "after": after, **context.languages}
        terms = [mention["surface"] for mention in sentence["mentions"]]
        return (await ask(context, self.grapher, key=f"graph/{i}", terms=terms, **about)).value

    async def judge_node(self, state: State, runtime: Runtime[Context]) -> dict[str, Any]:
        """The terms of one sentence, judged."""
        text, facts = state["document"][0]["text"], facts_of(state)
        work = (self.decide(runtime.context, text, d, facts.get(d["node"], [])) for d in state["decisions"])
        decisions = _all(await settled(*work))
        return {"decisions": decisions, "graph": with_verdicts(state, decisions, runtime.context)}

    async def translate_node(self, state: State, runtime: Runtime[Context]) -> dict[str, Any]:
        """One sentence with what was accepted. Raises RoleError."""
        rendered = await self.translate(runtime.context, state["document"][0], 0, state["decisions"])
        return {"rendered": [rendered]}

    async def check_node(self, state: State, runtime: Runtime[Context]) -> dict[str, Any]:
        """Every accepted term is in the translation, or it is repaired once."""
        rendered = [await self.check(runtime.context, state["document"][0], 0, state["rendered"][0])]
        return _result(runtime.context, state["document"], rendered)

    async def document_node(self, state: State, runtime: Runtime[Context]) -> dict[str, Any]:
        """Judge, translate and check many sentences. A sentence waits for the decisions on its own terms alone."""
        context, document, facts = runtime.context, state["document"], facts_of(state)
        deciding = [
            asyncio.ensure_future(
                self.decide(context, document[d["sentence"]]["text"], d, facts.get(d["node"], []))
            )
            for d in state["decisions"]
        ]  # fmt: skip

        async def one(i: int) -> tuple[list[Decision], Rendered]:
            shared = [await deciding[at] for at in needed(document[i], state["decisions"])]
            own = await self._adapted(context, document[i], shared, facts)
            rendered = await self.translate(context, document[i], i, [*own, *shared])
            return own, await self.check(context, document[i], i, rendered)

        # The decisions too: where a sentence ends early, those that only it waited for still have to end.
        work: list[Awaitable[Any]] = [*(one(i) for i in range(len(document))), *deciding]
        results = _all(await settled(*work))
        found, decisions = results[: len(document)], results[len(document) :]
        graph = with_verdicts(state, decisions, context)
        more = [decision for own, _ in found for decision in own]
        return {
            "decisions": [*decisions, *more],
            "graph": graph,
            **_result(context, document, [rendered for _, rendered in found]),
        }

    async def _adapted(
        self, context: Context, sentence: Sentence, shared: Sequence[Decision], facts: dict[str, list[str]]
    ) -> list[Decision]:
        """Decisions of this sentence's own on terms that may mean something else here than where they were decided."""
        by_node = {decision["node"]: decision for decision in shared}
        work = [
            self._again_here(context, sentence["text"], by_node[node], mention, number, facts.get(node, []))
            for number, mention in enumerate(sentence["mentions"])
            if context.judge and may_differ(by_node.get(node := mention.get("node", "")), mention)
        ]
        return _all(await settled(*work))

    async def _again_here(
        self, context: Context, text: str, decision: Decision, mention: Mention, number: int, told: Sequence[str]
    ) -> Decision:
        """What was accepted elsewhere, if it is relevant here too; else the other candidates are judged here."""
        chosen = accepted(decision)
        anew = [blank(c["item"], c["sources"]) for c in decision["candidates"] if c is not chosen]
        about = {"text": text, "term": mention["surface"], **context.languages}
        here: Decision = {
            **decision,
            "surface": mention["surface"], "kind": mention["kind"], "sentence": mention["sentence"], "number": number,
            "candidates": anew, "retrievals": 1, "faults": [],
        }  # fmt: skip
        if chosen is None:
            return await self.decide(context, text, here, told)
        key = f"judge/{mention['sentence']}/{number}/shared"
        [looked] = await settled(self.relevant(context, about, blank(chosen["item"], chosen["sources"]), told, key))
        if isinstance(looked, ModelError):  # then what holds for the document holds here
            return {**here, "candidates": [chosen], "reused": True, "faults": [str(looked)]}
        if looked["relevant"]:
            return {**here, "candidates": [{**looked, "accepted": True}], "reused": True}
        return await self.decide(context, text, {**here, "candidates": [looked, *anew]}, told)

    async def translate(self, context: Context, sentence: Sentence, i: int, decisions: Sequence[Decision]) -> Rendered:
        """Sentence i with the entries of its terms: accepted ones, or without the judge all. Raises RoleError."""
        if sentence["already"]:
            return _rendered(sentence["text"], "already in the target language")
        known = valid(sentence, decisions)
        entries = [entry for decision in known for entry in _entries(context, decision)]
        inputs = {"text": sentence["text"], "entries": entries, **context.languages}
        answer = await ask(context, self.translator, key=f"translate/{i}", **inputs)
        wanted = [str(c["item"]["target"]).strip() for decision in known if (c := accepted(decision))]
        checked = list(dict.fromkeys(target for target in wanted if target))
        missing = [target for target in checked if not has_term(target, answer.value)]
        rendered = _rendered(
            answer.value, "entries" if entries else "no entry" if sentence["mentions"] else "no term", answer.call.key
        )
        return {**rendered, "checked": checked, "missing": missing, "left": missing}

    async def check(self, context: Context, sentence: Sentence, i: int, rendered: Rendered) -> Rendered:
        """A translation that lacks accepted terms is repaired, once.

        A repair is not taken if it lacks as many, or is another text, such as a list of the terms.
        """
        if not rendered["missing"] or not context.repair:
            return rendered
        texts = {"text": sentence["text"], "translation": rendered["translation"], "missing": rendered["missing"]}
        [answer] = await settled(ask(context, self.repairer, key=f"repair/{i}", **texts, **context.languages))
        if isinstance(answer, ModelError):
            return rendered
        left = [target for target in rendered["checked"] if not has_term(target, answer.value)]
        alike = SequenceMatcher(None, rendered["translation"], answer.value, autojunk=False).ratio()
        if len(left) >= len(rendered["missing"]) or alike < ALIKE:
            return rendered
        return {**rendered, "translation": answer.value, "key": answer.call.key, "left": left, "repaired": True}

    def builder(self) -> StateGraph[State, Context, Input, Output]:
        """identify -> build -> judge -> translate -> check for a sentence, identify -> build -> document for many."""
        builder = StateGraph(State, context_schema=Context, input_schema=Input, output_schema=Output)
        builder.add_node("identify", self.identify)
        builder.add_node("build", self.build)
        for name in ("judge", "translate", "check", "document"):
            builder.add_node(name, getattr(self, f"{name}_node"))
        builder.add_edge(START, "identify")
        builder.add_edge("identify", "build")
        builder.add_conditional_edges(
            "build", lambda state: "judge" if len(state["document"]) == 1 else "document", ["judge", "document"]
        )
        builder.add_edge("judge", "translate")
        builder.add_edge("translate", "check")
        builder.add_edge("check", END)
        builder.add_edge("document", END)
        return builder


def _all(results: Sequence[T | ModelError]) -> list[T]:
    """The results. Raises the first error: without this piece the record cannot be finished."""
    for result in results:
        if isinstance(result, ModelError):
            raise result
    return [result for result in results if not isinstance(result, ModelError)]


@dataclass(frozen=True)
@role_options(CRAT, shared_models={"glosser": "translator", "repairer": "translator"})
class Context(Knobs):
    """Models, prompts and knobs of a run. Glosses and repairs are the translator's: its own probabilities count."""


def _entries(context: Context, decision: Decision) -> list[dict[str, str]]:
    """What the translator is told of a term."""
    chosen = accepted(decision)
    used = ([chosen] if chosen else []) if context.judge else decision["candidates"]
    return [{"term": decision["surface"], **shown(candidate["item"])} for candidate in used]


def _rendered(translation: str, status: Any, key: str = "") -> Rendered:
    return Rendered(
        translation=translation, status=status, key=key, asked=key, checked=[], missing=[], left=[], repaired=False
    )


def _result(context: Context, document: Sequence[Sentence], rendered: list[Rendered]) -> dict[str, Any]:
    """The translations, as a list and as one text, and what is worth learning from them."""
    translations = [one["translation"] for one in rendered]
    text = joined(translations, [sentence["gap"] for sentence in document], context.target_language)
    pairs = zip(document, rendered, strict=True)
    learned = [target for sentence, one in pairs if one["key"] for target in targets(context, sentence["text"], one)]
    return {
        "rendered": rendered,
        "translations": translations,
        "translation": text,
        "targets": [asdict(target) for target in learned],
    }


def targets(context: Context, text: str, rendered: Rendered) -> list[Target]:
    """What is worth learning of a sentence: the final translation, from the source alone and from the entries.

    The `role` target shows what the translator was sent and the final translation, which a repair may have written.
    """
    checked = len(rendered["checked"])
    kept = 100.0 * (checked - len(rendered["left"])) / checked if checked else 100.0
    scores = {"score": kept, "terms": float(checked), "repaired": float(rendered["repaired"])}
    written = Segment("assistant", True, call=rendered["key"])
    asked = STUDENT.render({"text": text, **context.languages})
    prompt = masked(asked)
    sent = Segment("user", False, prompt=rendered["asked"])
    return [Target("sft", (*prompt, written), scores=scores), Target("role", (sent, written), scores=scores)]


builder = CRAT().builder()
graph = builder.compile(name="crat")
