"""TransKG: a knowledge graph of the unknown terms of a text (CRAT, Chen et al. 2024).

Nodes are terms, concepts and translations; the same term, meaning or translation is one node for the whole document.
Internal knowledge (from the text) is an edge between terms and concepts with a relation of any name. External
knowledge comes as items, whose edges are

    term -means-> concept -rendered_as-> translation      an item with a meaning and a translation
    term -means-> concept                                 an item with a meaning only
    term -translates-> translation                        an item with a translation only

Every edge has its evidence, source and origin. The edges of an item also have the item's fields, its number and the
judge's verdict. The graph is thus self-contained; it can be written as JSON and GraphML.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any, Final, Literal, Self

from agentsys.knowledge.passages import KnowledgeError
from agentsys.metrics.terms import normalize_text
from agentsys.terms.index import forms, is_acronym, name_key, term_key
from agentsys.terms.item import Item, Origin, Term, require_modules

Verdict = Literal["accepted", "rejected"]

_INVALID_IN_XML: Final = {code: " " for code in (*range(9), 11, 12, *range(14, 32), 0xFFFE, 0xFFFF)}
"""Characters that are not allowed in XML."""


class TransKG:
    """The graph of one document; it grows sentence by sentence. `graph` is a networkx.MultiDiGraph.

    A term is identified by its surface without case (an acronym with its capitals), in English also by its singular or
    regular plural. Translations and meanings that differ only in case, white space or Chinese script are the same node;
    the first spelling is kept.
    """

    def __init__(self, language: str = "en") -> None:
        """`language` is the terms', a primary subtag. Raises KnowledgeError if networkx or OpenCC is not installed."""
        require_modules("networkx", "opencc")
        import networkx as nx

        self.graph: Any = nx.MultiDiGraph(language=language)
        self._item_count = 0

    def add_term(self, term: Term) -> str:
        """Add an occurrence of a term in the text; returns the id of its node."""
        node = self._term(term.surface, "internal")
        data, occurrence = self.graph.nodes[node], asdict(term)
        data["origin"] = "internal"
        if occurrence not in data.setdefault("found", []):
            data["found"].append(occurrence)
        return node

    def terms(self) -> list[Term]:
        """All occurrences of the terms in the text, in insertion order."""
        return [Term(**item) for _, data in self.graph.nodes(data=True) for item in data.get("found", ())]

    def relate(
        self,
        src: str,
        relation: str,
        dst_label: str,
        dst_kind: Literal["term", "concept"],
        evidence: str,
        sentence: int,
    ) -> None:
        """Add a relation that sentence number `sentence` states about a term, given by its surface or its node's id.

        The same relation between the same two nodes is kept once, with the first evidence; a relation of a node to
        itself is left out.
        """
        start = src if src in self.graph else self._term(src, "internal")
        end = self._term(dst_label, "internal") if dst_kind == "term" else self._node("concept", dst_label, "internal")
        edges = self.graph.get_edge_data(start, end, default={}).values()
        if start != end and not any(edge["relation"] == relation and "item" not in edge for edge in edges):
            self.graph.add_edge(
                start, end, relation=relation, evidence=evidence, origin="internal", source="context", sentence=sentence
            )

    def add_item(self, item: Item, surface: str = "") -> None:
        """Add an item about the term with this surface, by default the item's own term.

        The same content from another source is kept as further evidence; the same item is not added twice. Raises
        KnowledgeError for an item with neither a translation nor a meaning.
        """
        node = self._term(surface or item.term, item.origin)
        if item not in self._items_of(node):
            self._add_edges(node, item)

    def items(self, surface: str) -> list[Item]:
        """The items of a term in insertion order; of items with the same translation and meaning the first."""
        return _distinct(self._items_of(self._find(surface)))

    def facts(self, surface: str) -> list[str]:
        """Internal knowledge about a term, as lines "term - relation - other", in the order of the sentences."""
        node = self._find(surface)
        if node is None:
            return []
        label = self.graph.nodes(data="label")
        edges = [*self.graph.out_edges(node, data=True), *self.graph.in_edges(node, data=True)]
        internal = sorted((edge for edge in edges if "item" not in edge[2]), key=lambda edge: edge[2]["sentence"])
        return [f"{label[start]} - {edge['relation']} - {label[end]}" for start, end, edge in internal]

    def accept(self, surface: str, item: Item) -> None:
        """Mark an item as the term's accepted one, in place of an earlier one; the item is added if it is new."""
        self._set_verdict(self._term(surface, item.origin), item, "accepted")

    def reject(self, surface: str, item: Item) -> None:
        """Mark an item, and those with the same content, as rejected; the item is added if it is new."""
        self._set_verdict(self._term(surface, item.origin), item, "rejected")

    def accepted(self, surface: str) -> Item | None:
        """The accepted item of a term, None if there is none."""
        node = self._find(surface)
        accepted = self._with_verdict(node, "accepted") if node else []
        return accepted[0] if accepted else None

    def rejected(self, surface: str) -> list[Item]:
        """The rejected items of a term, in insertion order."""
        node = self._find(surface)
        return self._with_verdict(node, "rejected") if node else []

    def as_json(self) -> dict[str, Any]:
        """{"language", "nodes": [{"id", "label", "kind", "origin", "found"?}], "edges": [{"src", "dst", ...}]}."""
        return {
            "language": self.graph.graph["language"],
            "nodes": [
                {"id": node, **data, **({"found": [dict(item) for item in data["found"]]} if "found" in data else {})}
                for node, data in self.graph.nodes(data=True)
            ],
            "edges": [{"src": start, "dst": end, **edge} for start, end, edge in self.graph.edges(data=True)],
        }

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> Self:
        """The graph that `as_json` returned."""
        transkg = cls(data["language"])
        for node in data["nodes"]:
            transkg.graph.add_node(node["id"], **{name: value for name, value in node.items() if name != "id"})
            if "found" in node:
                transkg.graph.nodes[node["id"]]["found"] = [dict(item) for item in node["found"]]
        for edge in data["edges"]:
            attributes = {name: value for name, value in edge.items() if name not in ("src", "dst")}
            transkg.graph.add_edge(edge["src"], edge["dst"], **attributes)
        transkg._item_count = 1 + max((edge["item"] for edge in data["edges"] if "item" in edge), default=-1)
        return transkg

    def write_graphml(self, path: str | Path) -> None:
        """Write the graph as GraphML, which yEd, Gephi, Cytoscape and networkx read."""
        import networkx as nx

        plain = nx.MultiDiGraph()
        for node, data in self.graph.nodes(data=True):
            spans = ", ".join(f"{item['sentence']}:{item['start']}-{item['end']}" for item in data.get("found", ()))
            plain.add_node(_xml(node), label=_xml(data["label"]), kind=data["kind"], origin=data["origin"], found=spans)
        for start, end, edge in self.graph.edges(data=True):
            plain.add_edge(_xml(start), _xml(end), **{name: _xml(value) for name, value in edge.items()})
        nx.write_graphml(plain, path)

    def draw(self, path: str | Path) -> None:
        """Draw the graph as a PNG: terms, concepts and translations from left to right; accepted edges are bold."""
        from agentsys.graphs.crat.transkg_figure import draw

        draw(self.graph, path)

    def _node(self, kind: str, label: str, origin: Origin) -> str:
        label = " ".join(label.split())
        node = f"{kind}:{name_key(label) if kind == 'term' else normalize_text(label)}"
        if node not in self.graph:
            self.graph.add_node(node, label=label, kind=kind, origin=origin)
        return node

    def _find(self, surface: str) -> str | None:
        """The node of a term, also of its plural or singular; None if there is none."""
        term_forms = forms(surface, self.graph.graph["language"])
        keys = [name_key(form) for form in term_forms]
        if not is_acronym(surface):  # "BANKS" is also a plural of "bank"
            keys += [term_key(form) for form in term_forms]
        return next((f"term:{key}" for key in keys if f"term:{key}" in self.graph), None)

    def _term(self, surface: str, origin: Origin) -> str:
        return self._find(surface) or self._node("term", surface, origin)

    def _add_edges(self, node: str, item: Item) -> None:
        if not (item.target.strip() or item.meaning.strip()):
            raise KnowledgeError(f"an item about '{item.term}' has neither a target nor a meaning; give one of them")
        attributes = {**asdict(item), "item": self._item_count, "verdict": ""}
        self._item_count += 1
        relation = "translates"
        if item.meaning.strip():
            concept = self._node("concept", item.meaning, item.origin)
            self.graph.add_edge(node, concept, relation="means", **attributes)
            node, relation = concept, "rendered_as"
        if item.target.strip():
            translation = self._node("translation", item.target, item.origin)
            self.graph.add_edge(node, translation, relation=relation, **attributes)

    def _numbered_items(self, node: str) -> list[tuple[int, Item, Verdict | Literal[""]]]:
        """(number, item, verdict) of each item of a term, in insertion order."""
        names = [field.name for field in fields(Item)]
        return sorted(
            (
                (edge["item"], Item(**{name: edge[name] for name in names}), edge["verdict"])
                for _, _, edge in self.graph.out_edges(node, data=True)
                if "item" in edge
            ),
            key=lambda numbered: numbered[0],
        )

    def _items_of(self, node: str | None) -> list[Item]:
        return [item for _, item, _ in self._numbered_items(node)] if node else []

    def _set_verdict(self, node: str, item: Item, verdict: Verdict) -> None:
        if not any(_content(other) == _content(item) for other in self._items_of(node)):
            self._add_edges(node, item)
        verdicts: dict[int, str] = {}
        for number, other, old_verdict in self._numbered_items(node):
            if _content(other) == _content(item):
                verdicts[number] = verdict
            elif verdict == old_verdict == "accepted":
                verdicts[number] = ""
        neighbors = {end for _, end in self.graph.out_edges(node)}
        for _, _, edge in self.graph.out_edges([node, *neighbors], data=True):
            edge_number = edge.get("item")
            if edge_number in verdicts:
                edge["verdict"] = verdicts[edge_number]

    def _with_verdict(self, node: str, verdict: Verdict) -> list[Item]:
        return _distinct(item for _, item, own_verdict in self._numbered_items(node) if own_verdict == verdict)


def _content(item: Item) -> tuple[str, str]:
    return normalize_text(item.target), normalize_text(item.meaning)


def _distinct(items: Iterable[Item]) -> list[Item]:
    """The items, of those with the same translation and meaning only the first."""
    first: dict[tuple[str, str], Item] = {}
    for item in items:
        first.setdefault(_content(item), item)
    return list(first.values())


def _xml(value: Any) -> Any:
    return value.translate(_INVALID_IN_XML) if isinstance(value, str) else value
