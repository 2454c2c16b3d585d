"""CRAT's knowledge graph over the sentences of a document, and which decision on a term holds in which sentence."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import zip_longest
from typing import Any, Final, Literal

from agentsys.graphs.crat.candidates import make_candidates
from agentsys.graphs.crat.state import CONTEXT_DEPENDENT, UNPLACED, Decision, Knobs, Mention, Relations, Sentence, State
from agentsys.graphs.crat.transkg import TransKG
from agentsys.models.errors import ModelError
from agentsys.terms.item import Item, Term

MAX_FACTS: Final = 8
"""Lines of internal knowledge about a term that a prompt shows."""


def add_mentions(graph: TransKG, mentions: Sequence[Mention]) -> list[Mention]:
    """Add mentions to the graph; returns them with their nodes."""
    names = ("surface", "kind", "start", "end", "sentence")
    return [{**m, "node": graph.add_term(Term(**{name: m[name] for name in names}))} for m in mentions]  # type: ignore


def find_new_terms(document: Sequence[Sentence]) -> list[list[tuple[int, Mention]]]:
    """For each sentence the terms that no earlier sentence has, with their positions among its terms."""
    seen: set[str] = set()
    new: list[list[tuple[int, Mention]]] = []
    for sentence in document:
        new.append([])
        for number, mention in enumerate(sentence["mentions"]):
            node = mention.get("node", "")
            if not node or node not in seen:
                new[-1].append((number, mention))
            seen.add(node)
    return new


def add_relations(graph: TransKG, sentence: Sentence, reply: Relations | ModelError) -> list[str]:
    """Add a sentence's relations to the graph; returns the errors."""
    if isinstance(reply, ModelError):
        return [str(reply)]
    mentions = {mention["surface"].casefold(): mention for mention in sentence["mentions"]}
    unusable = 0
    for relation in reply.relations:
        mention = mentions.get(" ".join(relation.term.split()).casefold())
        if mention is None or not relation.relation.strip() or not relation.object.strip():
            unusable += 1
            continue
        kind: Literal["term", "concept"] = "term" if relation.object.strip().casefold() in mentions else "concept"
        graph.relate(
            mention["node"], relation.relation.strip(), relation.object.strip(), kind, sentence["text"],
            mention["sentence"],
        )  # fmt: skip
    return [f"kg_constructor: {unusable} relations about no term of the sentence"] if unusable else []


def make_decisions(
    graph: TransKG | None, terms: Sequence[tuple[int, Mention]], items_by_term: Sequence[Sequence[Item]]
) -> list[Decision]:
    """Decisions not yet judged, on terms with the items retrieved for them; the items are added to the graph."""
    decisions = []
    for (number, mention), items in zip(terms, items_by_term, strict=True):
        if graph is not None:
            for item in items:
                graph.add_item(item, mention["surface"])
        decision = Decision(
            surface=mention["surface"], kind=mention["kind"], node=mention.get("node", ""),
            sentence=mention["sentence"], number=number, candidates=make_candidates(items), retrievals=1, reused=False,
            faults=[],
        )  # fmt: skip
        decisions.append(decision)
    return decisions


def facts_by_node(state: State) -> dict[str, list[str]]:
    """Internal knowledge by the term's node, at most MAX_FACTS lines each; empty without a graph."""
    if not (data := state.get("graph")):
        return {}
    graph = TransKG.from_json(data)
    return {decision["node"]: graph.facts(decision["surface"])[:MAX_FACTS] for decision in state["decisions"]}


def sentence_facts(sentence: Sentence, facts: Mapping[str, Sequence[str]]) -> list[str]:
    """Internal knowledge about all terms of a sentence, at most MAX_FACTS lines: of each term the first, and so on."""
    lists = [facts.get(mention.get("node", ""), []) for mention in sentence["mentions"]]
    lines = (line for row in zip_longest(*lists) for line in row if line)
    return list(dict.fromkeys(lines))[:MAX_FACTS]


def find_decisions(sentence: Sentence, decisions: Sequence[Decision]) -> list[int]:
    """Indices of the decisions that hold in a sentence: its own on a term, else that of the first sentence with it."""
    own = {(decision["sentence"], decision["number"]): i for i, decision in enumerate(decisions)}
    first = {decision["node"]: i for i, decision in reversed(list(enumerate(decisions))) if decision["node"]}
    indices = [
        own.get((mention["sentence"], number), first.get(mention.get("node", "")))
        for number, mention in enumerate(sentence["mentions"])
    ]
    return list(dict.fromkeys(i for i in indices if i is not None))


def select_decisions(sentence: Sentence, decisions: Sequence[Decision]) -> list[Decision]:
    """The decisions that hold in a sentence, in the order of its terms."""
    return [decisions[i] for i in find_decisions(sentence, decisions)]


def may_differ(decision: Decision | None, mention: Mention) -> bool:
    """Whether a term that was decided in another sentence may have another meaning in this one."""
    if decision is None or decision["sentence"] == mention["sentence"]:
        return False
    return bool({decision["kind"], mention["kind"]} & set(CONTEXT_DEPENDENT))


def add_verdicts(state: State, decisions: Sequence[Decision], context: Knobs) -> dict[str, Any] | None:
    """The state's graph with the items of second retrievals and the judge's verdicts."""
    data = state.get("graph")
    if not data or not context.judge:
        return data
    graph = TransKG.from_json(data)
    for decision in decisions:
        for candidate in decision["candidates"]:
            item, surface = Item(**candidate["item"]), decision["surface"]
            graph.add_item(item, surface)
            if candidate["accepted"]:
                graph.accept(surface, item)
            elif candidate["rejected_by"] not in ("", "a better one", UNPLACED):
                graph.reject(surface, item)
    return graph.as_json()
