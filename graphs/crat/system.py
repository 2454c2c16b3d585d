"""CRAT as a graph: its agents, its nodes, and the order in which a sentence or a document goes through them.

Unknown terms are identified in all sentences first; the knowledge graph (TransKG) is built from the text and from
external sources; a causal judge accepts or rejects each candidate; the translator sees the accepted ones, and a check
makes sure that it used them. A single sentence goes through one node per step. The sentences of a document go through
the same steps concurrently: a sentence waits for another only where that one decides a term of both. docs/crat.md says
what the paper leaves open and what was chosen.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Mapping, Sequence
from dataclasses import asdict, dataclass
from difflib import SequenceMatcher
from typing import Any, Final, Literal, TypeVar, cast

from langgraph.graph import END, START, StateGraph
from langgraph.runtime import Runtime

from agentsys.graphs.crat.candidates import accept_last_choice, accepted_candidate, blank_candidate, prompt_entry
from agentsys.graphs.crat.document import (
    add_mentions,
    add_relations,
    add_verdicts,
    facts_by_node,
    find_decisions,
    find_new_terms,
    make_decisions,
    may_differ,
    select_decisions,
    sentence_facts,
)
from agentsys.graphs.crat.judge import CausalJudge
from agentsys.graphs.crat.retrieval import Retrieval
from agentsys.graphs.crat.state import (
    Candidate,
    Decision,
    FoundTerms,
    Input,
    Knobs,
    Mention,
    Output,
    Relations,
    Sentence,
    SentenceTranslation,
    State,
)
from agentsys.graphs.crat.targets import make_targets
from agentsys.graphs.crat.terms import (
    TermGuess,
    gloss_confidences,
    has_term,
    is_in_target_language,
    join_translations,
    low_confidence_terms,
    place_terms,
    read_sentences,
)
from agentsys.graphs.crat.transkg import TransKG
from agentsys.models.errors import ModelError
from agentsys.roles import Role
from agentsys.search import settled
from agentsys.systems import System, ask, knob, role_options
from agentsys.terms.index import term_key
from agentsys.terms.item import Item
from agentsys.text.languages import language

__all__ = ["CRAT", "Context", "builder", "graph"]

T = TypeVar("T")

MIN_REPAIR_SIMILARITY: Final = 0.5
"""A repair must be at least this similar to the translation it repairs: 2 x equal characters / all characters."""


@dataclass(frozen=True)
class CRAT(System):
    """The agents and nodes of CRAT.

    `CRAT(retrieval=Retrieval(sources=(mine,)), causal_judge=CausalJudge(relevance=Role(...)))` adds a source and
    replaces a role of the judge.
    """

    identifier: Role[FoundTerms] = Role("crat/identifier", FoundTerms, sampling={"temperature": 0.0, "max_tokens": 400})
    glosser: Role[str] = Role(
        "crat/glosser", allow_truncated=True, sampling={"temperature": 0.0, "max_tokens": 400, "logprobs": 1}
    )
    kg_constructor: Role[Relations] = Role(
        "crat/kg_constructor", Relations, sampling={"temperature": 0.0, "max_tokens": 500}
    )
    retrieval: Retrieval = Retrieval()
    causal_judge: CausalJudge = CausalJudge()
    translator: Role[str] = Role("crat/translator", sampling={"temperature": 0.0, "max_tokens": 1000})
    repairer: Role[str] = Role("crat/repairer", sampling={"temperature": 0.0, "max_tokens": 1000})

    async def identify(self, state: State, runtime: Runtime[Context]) -> dict[str, Any]:
        """Unknown terms of all sentences.

        The input is cleared, because a thread's next one may have the other form; and so are a thread's old results.
        Raises InputError for an empty text, KnowledgeError for a source that cannot be used.
        """
        context = runtime.context
        sentences = read_sentences(state.get("text"), state.get("sentences"), context.source_language)
        await self.retrieval.open_sources(context)  # an unusable source ends the run before the first call
        work = (self._find_terms(context, i, text, gap) for i, (text, gap) in enumerate(sentences))
        document = _all(await settled(*work))
        cleared: dict[str, Any] = {"graph": None, "decisions": [], "rendered": [], "targets": []}
        return {**cleared, "document": document, "text": "", "sentences": []}

    async def _find_terms(self, context: Context, i: int, text: str, gap: str) -> Sentence:
        """One sentence with the terms that the identifier lists and those that the translator is unsure of."""
        sentence = Sentence(text=text, gap=gap, already=False, mentions=[], invented=[], nested=[], faults=[])
        if is_in_target_language(text, context.source_language, context.target_language):
            return {**sentence, "already": True}
        work = [self._list_terms(context, i, text)] if context.signals != "confidence" else []
        work += [self._find_unsure_words(context, i, text)] if context.signals != "identifier" else []
        results = await settled(*work)
        guesses = [guess for result in results if not isinstance(result, ModelError) for guess in result[0]]
        faults = [fault for r in results for fault in ([str(r)] if isinstance(r, ModelError) else r[1])]
        mentions, invented, nested = place_terms(text, i, guesses)
        return {**sentence, "mentions": mentions, "invented": invented, "nested": nested, "faults": faults}

    async def _list_terms(self, context: Context, i: int, text: str) -> tuple[list[TermGuess], list[str]]:
        """The identifier's terms. Raises RoleError."""
        answer = await ask(context, self.identifier, key=f"identify/{i}", text=text, **context.languages)
        return [(item.term, item.kind, None) for item in answer.value.terms], []

    async def _find_unsure_words(self, context: Context, i: int, text: str) -> tuple[list[TermGuess], list[str]]:
        """Source words whose glosses are the least probable under the translator's model. Raises RoleError."""
        answer = await ask(context, self.glosser, key=f"gloss/{i}", text=text, **context.languages)
        confidences = await gloss_confidences(context, self.glosser, answer.call)
        if confidences is None:
            return [], ["glosser: the model returns no log-probabilities"]
        mentions, _, _ = place_terms(text, i, [(word, "low_conf", None) for word, _ in confidences])
        in_sentence = {term_key(mention["surface"]) for mention in mentions}  # glosses of other words do not count
        confidences = [pair for pair in confidences if term_key(pair[0]) in in_sentence]
        return low_confidence_terms(confidences, context.confidence), []

    async def build(self, state: State, runtime: Runtime[Context]) -> dict[str, Any]:
        """TransKG: relations from the text and items from the sources, in the order of the sentences.

        A term is looked up for the first sentence that has it. Raises ValueError for a source that cannot be used.
        """
        context, document = runtime.context, list(state["document"])
        source_tag = language(context.source_language)
        graph = TransKG(source_tag.primary if source_tag else "") if context.graph else None
        if graph is not None:
            document = [{**sentence, "mentions": add_mentions(graph, sentence["mentions"])} for sentence in document]
        new_terms = find_new_terms(document)
        work = (self._gather_knowledge(context, document, i, terms) for i, terms in enumerate(new_terms))
        results = await settled(*work)
        decisions: list[Decision] = []
        for i, (relations, (items_by_term, faults)) in enumerate(_all(results)):
            if graph is not None:
                faults = [*add_relations(graph, document[i], relations), *faults]
            document[i] = {**document[i], "faults": [*document[i]["faults"], *faults]}
            decisions += make_decisions(graph, new_terms[i], items_by_term)
        return {"document": document, "graph": graph.as_json() if graph else None, "decisions": decisions}

    async def _gather_knowledge(
        self, context: Context, document: Sequence[Sentence], i: int, new_terms: Sequence[tuple[int, Mention]]
    ) -> tuple[Relations | ModelError, tuple[list[list[Item]], list[str]]]:
        """Internal knowledge about all terms of a sentence, and external knowledge about its new ones."""
        surfaces = [mention["surface"] for _, mention in new_terms]
        keys = [f"{i}/{number}" for number, _ in new_terms]
        work: list[Any] = [self.retrieval.retrieve(context, document[i]["text"], surfaces, keys)]
        work += [self._extract_relations(context, document, i)] if context.graph and document[i]["mentions"] else []
        external, *internal = cast("list[Any]", await settled(*work))
        return (internal or [Relations(relations=[])])[0], external

    async def _extract_relations(self, context: Context, document: Sequence[Sentence], i: int) -> Relations:
        """Internal knowledge: what a sentence and its neighbors state about its terms. Raises RoleError."""
        sentence = document[i]
        before, after = (document[j]["text"] if 0 <= j < len(document) else "" for j in (i - 1, i + 1))
        inputs = {"text": sentence["text"], "before": before, "after": after, **context.languages}
        terms = [mention["surface"] for mention in sentence["mentions"]]
        return (await ask(context, self.kg_constructor, key=f"graph/{i}", terms=terms, **inputs)).value

    async def judge(self, state: State, runtime: Runtime[Context]) -> dict[str, Any]:
        """Decisions on the terms of one sentence."""
        text, facts = state["document"][0]["text"], facts_by_node(state)
        work = (self.decide(runtime.context, text, d, facts.get(d["node"], [])) for d in state["decisions"])
        decisions = _all(await settled(*work))
        return {"decisions": decisions, "graph": add_verdicts(state, decisions, runtime.context)}

    async def translate(self, state: State, runtime: Runtime[Context]) -> dict[str, Any]:
        """The translation of one sentence with the accepted entries. Raises RoleError."""
        facts = facts_by_node(state)
        rendered = await self.translate_sentence(runtime.context, state["document"][0], 0, state["decisions"], facts)
        return {"rendered": [rendered]}

    async def check(self, state: State, runtime: Runtime[Context]) -> dict[str, Any]:
        """Check that the translation has every accepted term; repair it once otherwise."""
        rendered = [await self.repair_sentence(runtime.context, state["document"][0], 0, state["rendered"][0])]
        return _results(runtime.context, state["document"], rendered)

    async def document(self, state: State, runtime: Runtime[Context]) -> dict[str, Any]:
        """Judge, translate and check many sentences. A sentence waits only for the decisions on its own terms."""
        context, document, facts = runtime.context, state["document"], facts_by_node(state)
        deciding = [
            asyncio.ensure_future(
                self.decide(context, document[d["sentence"]]["text"], d, facts.get(d["node"], []))
            )
            for d in state["decisions"]
        ]  # fmt: skip

        async def finish(i: int) -> tuple[list[Decision], SentenceTranslation]:
            shared = [await deciding[index] for index in find_decisions(document[i], state["decisions"])]
            own = await self._adapt_decisions(context, document[i], shared, facts)
            rendered = await self.translate_sentence(context, document[i], i, [*own, *shared], facts)
            return own, await self.repair_sentence(context, document[i], i, rendered)

        # The decisions too: if a sentence fails early, those that only it waited for still have to end.
        work: list[Awaitable[Any]] = [*(finish(i) for i in range(len(document))), *deciding]
        results = _all(await settled(*work))
        finished, decisions = results[: len(document)], results[len(document) :]
        graph = add_verdicts(state, decisions, context)
        return {
            "decisions": [*decisions, *(decision for own, _ in finished for decision in own)],
            "graph": graph,
            **_results(context, document, [rendered for _, rendered in finished]),
        }

    async def decide(self, context: Context, text: str, decision: Decision, facts: Sequence[str]) -> Decision:
        """Judge a term's candidates in a sentence; if none is accepted, retrieve once more. Raises no RoleError.

        Candidates that are rejected already stay rejected.
        """
        if not context.judge:
            return decision
        rejected = [candidate for candidate in decision["candidates"] if candidate["rejected_by"]]
        waiting = [candidate for candidate in decision["candidates"] if not candidate["rejected_by"]]
        judged = await self._judge_some(context, text, decision, waiting[: context.candidates], facts, len(rejected))
        first, rest = [*rejected, *judged], waiting[context.candidates :]
        decision = {**decision, "candidates": [*first, *rest]}
        if not context.retrieve_again or accepted_candidate(decision):
            return accept_last_choice(decision)
        if len(rest) < context.candidates:  # otherwise the candidates left over fill the second round
            key = f"{decision['sentence']}/{decision['number']}/again"
            decision, new = await self.retrieval.retrieve_more(context, text, decision, key)
            rest = [*rest, *new]
        more = await self._judge_some(context, text, decision, rest[: context.candidates], facts, len(first))
        return accept_last_choice({**decision, "candidates": [*first, *more, *rest[context.candidates :]]})

    async def _judge_some(
        self,
        context: Context,
        text: str,
        decision: Decision,
        candidates: Sequence[Candidate],
        facts: Sequence[str],
        start: int,
    ) -> list[Candidate]:
        """Some candidates of a term with their verdicts; `start` is the number of the first, for the calls' keys."""
        keys = [f"judge/{decision['sentence']}/{decision['number']}/{start + i}" for i in range(len(candidates))]
        inputs = {"text": text, "term": decision["surface"], **context.languages}
        return await self.causal_judge.judge_candidates(context, inputs, candidates, facts, keys)

    async def _adapt_decisions(
        self, context: Context, sentence: Sentence, shared: Sequence[Decision], facts: dict[str, list[str]]
    ) -> list[Decision]:
        """A sentence's own decisions on terms that may have another meaning here than where they were decided."""
        by_node = {decision["node"]: decision for decision in shared}
        work = [
            self._judge_in_sentence(context, sentence["text"], by_node[node], mention, number, facts.get(node, []))
            for number, mention in enumerate(sentence["mentions"])
            if context.judge and may_differ(by_node.get(node := mention.get("node", "")), mention)
        ]
        return _all(await settled(*work))

    async def _judge_in_sentence(
        self, context: Context, text: str, decision: Decision, mention: Mention, number: int, facts: Sequence[str]
    ) -> Decision:
        """Another sentence's accepted candidate if it is relevant here too; otherwise the others are judged here."""
        accepted = accepted_candidate(decision)
        others = [blank_candidate(c["item"], c["sources"]) for c in decision["candidates"] if c is not accepted]
        own: Decision = {
            **decision,
            "surface": mention["surface"], "kind": mention["kind"], "sentence": mention["sentence"], "number": number,
            "candidates": others, "retrievals": 1, "faults": [],
        }  # fmt: skip
        if accepted is None:
            return await self.decide(context, text, own, facts)
        inputs = {"text": text, "term": mention["surface"], **context.languages}
        blank = blank_candidate(accepted["item"], accepted["sources"])
        key = f"judge/{mention['sentence']}/{number}/shared"
        [result] = await settled(self.causal_judge.check_relevance(context, inputs, blank, facts, key))
        if isinstance(result, ModelError):  # the document's decision then holds here
            return {**own, "candidates": [accepted], "reused": True, "faults": [str(result)]}
        if result["relevant"]:
            return {**own, "candidates": [{**result, "accepted": True}], "reused": True}
        return await self.decide(context, text, {**own, "candidates": [result, *others]}, facts)

    async def translate_sentence(
        self,
        context: Context,
        sentence: Sentence,
        i: int,
        decisions: Sequence[Decision],
        facts: Mapping[str, Sequence[str]],
    ) -> SentenceTranslation:
        """Translate sentence i with its terms' accepted entries, or with all if the judge is off. Raises RoleError.

        `facts` is internal knowledge by node, which the option `relations` adds.
        """
        if sentence["already"]:
            return _translation(sentence["text"], "already in the target language")
        own_decisions = select_decisions(sentence, decisions)
        entries = [entry for decision in own_decisions for entry in _entries(context, decision)]
        relations = sentence_facts(sentence, facts) if context.relations else []
        inputs = {"text": sentence["text"], "entries": entries, "relations": relations, **context.languages}
        answer = await ask(context, self.translator, key=f"translate/{i}", **inputs)
        accepted = [candidate for decision in own_decisions if (candidate := accepted_candidate(decision))]
        targets = [str(candidate["item"]["target"]).strip() for candidate in accepted]
        checked = list(dict.fromkeys(target for target in targets if target))
        missing = [target for target in checked if not has_term(target, answer.value)]
        status: Any = "entries" if entries else "no entry" if sentence["mentions"] else "no term"
        rendered = _translation(answer.value, status, answer.call.key)
        return {**rendered, "checked": checked, "missing": missing, "left": missing}

    async def repair_sentence(
        self, context: Context, sentence: Sentence, i: int, rendered: SentenceTranslation
    ) -> SentenceTranslation:
        """Repair a translation that lacks accepted terms, once.

        A repair is refused if it lacks as many terms, or is a different text, such as a list of the terms.
        """
        if not rendered["missing"] or not context.repair:
            return rendered
        texts = {"text": sentence["text"], "translation": rendered["translation"], "missing": rendered["missing"]}
        [answer] = await settled(ask(context, self.repairer, key=f"repair/{i}", **texts, **context.languages))
        if isinstance(answer, ModelError):
            return rendered
        left = [target for target in rendered["checked"] if not has_term(target, answer.value)]
        similarity = SequenceMatcher(None, rendered["translation"], answer.value, autojunk=False).ratio()
        if len(left) >= len(rendered["missing"]) or similarity < MIN_REPAIR_SIMILARITY:
            return rendered
        return {**rendered, "translation": answer.value, "key": answer.call.key, "left": left, "repaired": True}

    def builder(self) -> StateGraph[State, Context, Input, Output]:
        """identify -> build -> judge -> translate -> check for a sentence, identify -> build -> document for many."""
        builder = StateGraph(State, context_schema=Context, input_schema=Input, output_schema=Output)
        for node in (self.identify, self.build, self.judge, self.translate, self.check, self.document):
            builder.add_node(node.__name__, node)
        builder.add_edge(START, "identify")
        builder.add_edge("identify", "build")
        builder.add_conditional_edges("build", _after_build, ["judge", "document"])
        builder.add_edge("judge", "translate")
        builder.add_edge("translate", "check")
        builder.add_edge("check", END)
        builder.add_edge("document", END)
        return builder


@dataclass(frozen=True)
@role_options(
    CRAT,
    shared_models={"glosser": "translator", "repairer": "translator"},
    old_names={
        "llm_source": "informant", "query_expander": "searcher", "kg_constructor": "grapher", "back_translator": "back",
    },
)  # fmt: skip
class Context(Knobs):
    """Models, prompts and options of a run. The translator's model also glosses (for its probabilities) and repairs."""

    translator_model: str = knob("", "model spec of the translator, of glosses and of repairs; empty: `model`")


def _after_build(state: State) -> Literal["judge", "document"]:
    return "judge" if len(state["document"]) == 1 else "document"


def _all(results: Sequence[T | ModelError]) -> list[T]:
    """The results. Raises the first error: without this piece the record cannot be finished."""
    for result in results:
        if isinstance(result, ModelError):
            raise result
    return [result for result in results if not isinstance(result, ModelError)]


def _entries(context: Context, decision: Decision) -> list[dict[str, str]]:
    """The entries of a term that the translator sees."""
    accepted = accepted_candidate(decision)
    candidates = ([accepted] if accepted else []) if context.judge else decision["candidates"]
    return [{"term": decision["surface"], **prompt_entry(candidate["item"])} for candidate in candidates]


def _translation(translation: str, status: Any, key: str = "") -> SentenceTranslation:
    return SentenceTranslation(
        translation=translation, status=status, key=key, asked=key, checked=[], missing=[], left=[], repaired=False
    )


def _results(context: Context, document: Sequence[Sentence], rendered: list[SentenceTranslation]) -> dict[str, Any]:
    """The translations, as a list and as one text, and their training targets."""
    translations = [item["translation"] for item in rendered]
    text = join_translations(translations, [sentence["gap"] for sentence in document], context.target_language)
    pairs = zip(document, rendered, strict=True)
    targets = [t for sentence, item in pairs if item["key"] for t in make_targets(context, sentence["text"], item)]
    return {
        "rendered": rendered,
        "translations": translations,
        "translation": text,
        "targets": [asdict(target) for target in targets],
    }


builder = CRAT().builder()
graph = builder.compile(name="crat")
