"""CRAT's knowledge graph over the sentences of a document, and which decision on a term holds in which sentence."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

from agentsys.graphs.crat.judge import candidates_of
from agentsys.graphs.crat.state import CHANGING, UNPLACED, Decision, Knobs, Mention, Relations, Sentence, State
from agentsys.graphs.crat.transkg import TransKG
from agentsys.models.errors import ModelError
from agentsys.terms.item import Item, Term

FACTS = 8
"""Lines of internal knowledge about a term that a prompt shows."""


def rooted(graph: TransKG, mentions: Sequence[Mention]) -> list[Mention]:
    """The mentions with their nodes in the graph."""
    names = ("surface", "kind", "start", "end", "sentence")
    return [{**m, "node": graph.add_term(Term(**{name: m[name] for name in names}))} for m in mentions]  # type: ignore


def undecided(document: Sequence[Sentence]) -> list[list[tuple[int, Mention]]]:
    """For each sentence its terms that no earlier one has, with their places among its terms."""
    seen: set[str] = set()
    due: list[list[tuple[int, Mention]]] = []
    for sentence in document:
        due.append([])
        for number, mention in enumerate(sentence["mentions"]):
            node = mention.get("node", "")
            if not node or node not in seen:
                due[-1].append((number, mention))
            seen.add(node)
    return due


def relate(graph: TransKG, sentence: Sentence, related: Relations | ModelError) -> list[str]:
    """Put a sentence's relations into the graph; what could not be used."""
    if isinstance(related, ModelError):
        return [str(related)]
    own = {mention["surface"].casefold(): mention for mention in sentence["mentions"]}
    strange = 0
    for relation in related.relations:
        mention = own.get(" ".join(relation.term.split()).casefold())
        if mention is None or not relation.relation.strip() or not relation.object.strip():
            strange += 1
            continue
        kind: Literal["term", "concept"] = "term" if relation.object.strip().casefold() in own else "concept"
        graph.relate(
            mention["node"], relation.relation.strip(), relation.object.strip(), kind, sentence["text"],
            mention["sentence"],
        )  # fmt: skip
    return [f"grapher: {strange} relations about no term of the sentence"] if strange else []


def known(
    graph: TransKG | None, due: Sequence[tuple[int, Mention]], looked: Sequence[Sequence[Item]]
) -> list[Decision]:
    """Terms to be decided with what was retrieved about them, which goes into the graph."""
    decisions = []
    for (number, mention), items in zip(due, looked, strict=True):
        if graph is not None:
            for item in items:
                graph.add_item(item, mention["surface"])
        decision = Decision(
            surface=mention["surface"], kind=mention["kind"], node=mention.get("node", ""),
            sentence=mention["sentence"], number=number, candidates=candidates_of(items), retrievals=1, reused=False,
            faults=[],
        )  # fmt: skip
        decisions.append(decision)
    return decisions


def facts(state: State) -> dict[str, list[str]]:
    """Internal knowledge by the node of the term, at most FACTS lines of each; empty without a graph."""
    if not (data := state.get("graph")):
        return {}
    graph = TransKG.from_json(data)
    return {decision["node"]: graph.facts(decision["surface"])[:FACTS] for decision in state["decisions"]}


def needed(sentence: Sentence, decisions: Sequence[Decision]) -> list[int]:
    """Which decisions a sentence needs: on each of its terms its own, else that of the first sentence with it."""
    own = {(decision["sentence"], decision["number"]): at for at, decision in enumerate(decisions)}
    first = {decision["node"]: at for at, decision in reversed(list(enumerate(decisions))) if decision["node"]}
    found = [
        own.get((mention["sentence"], number), first.get(mention.get("node", "")))
        for number, mention in enumerate(sentence["mentions"])
    ]
    return list(dict.fromkeys(at for at in found if at is not None))


def valid(sentence: Sentence, decisions: Sequence[Decision]) -> list[Decision]:
    """The decisions that hold in a sentence, in the order of its terms."""
    return [decisions[at] for at in needed(sentence, decisions)]


def may_differ(decision: Decision | None, mention: Mention) -> bool:
    """Whether a term that another sentence decided may mean something else in this one."""
    if decision is None or decision["sentence"] == mention["sentence"]:
        return False
    return bool({decision["kind"], mention["kind"]} & set(CHANGING))


def with_verdicts(state: State, decisions: Sequence[Decision], context: Knobs) -> dict[str, Any] | None:
    """The graph with what a further retrieval brought and with the judge's verdicts."""
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
