"""TransKG: shared nodes, items, verdicts, JSON, GraphML, the picture, and Chinese scripts."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import networkx as nx
import pytest
from matplotlib.figure import Figure

from agentsys.graphs.crat.transkg import TransKG
from agentsys.graphs.crat.transkg_figure import _places
from agentsys.knowledge import KnowledgeError
from agentsys.terms.item import Item, Term, require_modules
from tests.support.pictures import only_dejavu, texts_of

BANK = "a place that keeps money"
SHORE = "the side of a river"


def item(term: str, target: str = "", meaning: str = "", source: str = "terms.csv:2", **more: Any) -> Item:
    return Item(term, target, meaning, f"{term} = {target}", source, **more)


def example() -> TransKG:
    graph = TransKG()
    graph.add_term(Term("bank", "polysemy", 4, 8, 0))
    graph.add_term(Term("Scotia", "proper", 0, 6, 1))
    graph.relate("Scotia", "is the name of", "bank", "term", "Scotia, a bank", 1)
    graph.relate("bank", "takes", "deposits", "concept", "It takes deposits.", 0)
    for entry in (
        item("bank", "银行", BANK),
        item("bank", "河岸", SHORE),
        item("Scotia", "丰业"),
        item("Scotia", "", "a region of Canada"),
    ):
        graph.add_item(entry)
    return graph


def kinds(graph: TransKG) -> dict[str, str]:
    return {data["label"]: data["kind"] for _, data in graph.graph.nodes(data=True)}


def relations(graph: TransKG) -> set[tuple[str, str, str]]:
    label = dict(graph.graph.nodes(data="label"))
    return {(label[a], edge["relation"], label[b]) for a, b, edge in graph.graph.edges(data=True)}


def test_facts_are_in_the_order_of_the_sentences() -> None:
    graph = TransKG()
    graph.relate("Scotia", "cut", "APR", "term", "Scotia cut its APR.", 2)
    graph.relate("APR", "means", "a rate", "concept", "The APR is a rate.", 1)
    graph.relate("bank", "has", "APR", "term", "The bank has an APR.", 0)
    assert graph.facts("APR") == ["bank - has - APR", "APR - means - a rate", "Scotia - cut - APR"]


def test_nodes_and_edges_are_typed() -> None:
    graph = example()
    assert kinds(graph) == {
        "bank": "term", "Scotia": "term", "deposits": "concept", BANK: "concept", "银行": "translation",
        SHORE: "concept", "河岸": "translation", "丰业": "translation", "a region of Canada": "concept",
    }  # fmt: skip
    assert relations(graph) == {
        ("Scotia", "is the name of", "bank"),
        ("bank", "takes", "deposits"),
        ("bank", "means", BANK),
        (BANK, "rendered_as", "银行"),
        ("bank", "means", SHORE),
        (SHORE, "rendered_as", "河岸"),
        ("Scotia", "translates", "丰业"),
        ("Scotia", "means", "a region of Canada"),
    }


def test_every_edge_has_evidence_source_and_origin() -> None:
    for _, _, edge in example().graph.edges(data=True):
        assert edge["evidence"] and edge["source"]
        assert edge["origin"] == ("external" if "item" in edge else "internal")
    origins = dict(example().graph.nodes(data="origin"))
    assert origins["concept:deposits"] == "internal" and origins["translation:银行"] == "external"


@pytest.mark.parametrize("surface", ["bank", "Bank", "banks", "BANKS"])
def test_a_term_is_one_node_in_any_case_and_number(surface: str) -> None:
    graph = TransKG()
    first = graph.add_term(Term("bank", "polysemy", 0, 4, 0))
    assert graph.add_term(Term(surface, "polysemy", 9, 13, 3)) == first
    graph.add_item(item("bank", "银行"))
    assert [entry.target for entry in graph.items(surface)] == ["银行"]
    assert [term.sentence for term in graph.terms()] == [0, 3]


@pytest.mark.parametrize(
    ("language", "one", "other", "same"),
    [
        ("en", "aids", "AIDS", False),
        ("en", "us", "US", False),
        ("en", "ICU", "ICUs", True),
        ("en", "ICUs", "ICU", True),
        ("fr", "fil", "fils", False),
        ("fr", "Fils", "fils", True),
    ],
)
def test_an_acronym_is_not_a_word_and_only_english_has_plurals(language: str, one: str, other: str, same: bool) -> None:
    graph = TransKG(language)
    first = graph.add_term(Term(one, "domain", 0, 4, 0))
    restored = TransKG.from_json(graph.as_json())
    for transkg in (graph, restored):
        assert (transkg.add_term(Term(other, "domain", 0, 4, 1)) == first) is same


def test_the_same_occurrence_is_kept_once() -> None:
    graph = TransKG()
    for _ in range(2):
        graph.add_term(Term("bank", "polysemy", 0, 4, 0))
    assert graph.terms() == [Term("bank", "polysemy", 0, 4, 0)]


def test_an_item_can_be_added_to_another_term() -> None:
    graph = TransKG()
    graph.add_term(Term("COVID-19", "new", 0, 8, 0))
    graph.add_item(item("Coronavirus disease 2019", "新冠肺炎"), "covid-19")
    assert [entry.term for entry in graph.items("COVID-19")] == ["Coronavirus disease 2019"]
    assert not graph.items("Coronavirus disease 2019")


def test_items_come_in_order_and_the_same_content_once() -> None:
    graph = TransKG()
    items = [
        item("virus", "病毒", source="a.csv:2"),
        item("virus", "毒", source="a.csv:3"),
        item("Virus", "病毒", source="b.csv:9"),
    ]
    for entry in (*items, *items):
        graph.add_item(entry)
    assert graph.items("virus") == items[:2]
    # The second source is kept as evidence.
    assert sorted(edge["source"] for _, _, edge in graph.graph.edges(data=True)) == ["a.csv:2", "a.csv:3", "b.csv:9"]


def test_traditional_and_simplified_translations_are_one_node_with_the_first_spelling() -> None:
    graph = TransKG()
    graph.add_item(item("quarantine", "隔離"))
    graph.add_item(item("quarantine", "隔离", source="other.csv:2"))
    assert [entry.target for entry in graph.items("quarantine")] == ["隔離"]
    assert len(graph.graph) == 2
    graph.accept("quarantine", item("quarantine", "隔离"))
    assert graph.accepted("quarantine") == item("quarantine", "隔離")


def test_an_item_without_content_is_refused() -> None:
    with pytest.raises(KnowledgeError, match="neither a target nor a meaning"):
        TransKG().add_item(item("bank", " "))


def test_facts_are_the_internal_relations_of_a_term() -> None:
    assert example().facts("Bank") == ["bank - takes - deposits", "Scotia - is the name of - bank"]
    assert example().facts("scotia") == ["Scotia - is the name of - bank"]
    assert example().facts("unknown") == []


def test_a_relation_is_kept_once_and_not_of_a_term_to_itself() -> None:
    graph = example()
    edges = graph.graph.number_of_edges()
    graph.relate("bank", "takes", "Deposits", "concept", "again", 5)
    graph.relate("bank", "is", "Banks", "term", "again", 5)
    assert graph.graph.number_of_edges() == edges
    graph.relate(graph.add_term(Term("bank", "polysemy", 4, 8, 0)), "lends", "money", "concept", "It lends money.", 5)
    assert "bank - lends - money" in graph.facts("bank")


def test_verdicts() -> None:
    graph = example()
    money, shore = graph.items("bank")
    assert graph.accepted("bank") is None and graph.accepted("unknown") is None
    graph.accept("banks", money)
    graph.reject("bank", shore)
    assert graph.accepted("Bank") == money and graph.rejected("bank") == [shore]
    graph.accept("bank", shore)
    assert graph.accepted("bank") == shore and graph.rejected("bank") == []
    graph.reject("bank", shore)
    assert graph.accepted("bank") is None


def test_a_verdict_holds_for_all_edges_of_the_item_and_for_no_other_term() -> None:
    graph = example()
    graph.add_item(item("trust", "信托", BANK))
    graph.accept("bank", graph.items("bank")[0])
    accepted = {(a, b) for a, b, edge in graph.graph.edges(data=True) if edge.get("verdict") == "accepted"}
    concept = f"concept:{BANK}"
    assert accepted == {("term:bank", concept), (concept, "translation:银行")}
    assert graph.accepted("trust") is None


def test_accepting_a_new_item_adds_it() -> None:
    graph = TransKG()
    graph.accept("bank", item("bank", "银行"))
    assert graph.accepted("bank") == item("bank", "银行") and graph.items("bank") == [item("bank", "银行")]


def test_a_graph_restored_from_json_can_grow() -> None:
    graph = example()
    graph.accept("bank", graph.items("bank")[0])
    data = json.loads(json.dumps(graph.as_json()))
    restored = TransKG.from_json(data)
    assert restored.as_json() == graph.as_json() == data
    assert restored.accepted("bank") == graph.accepted("bank") and restored.terms() == graph.terms()
    restored.add_item(item("bank", "库"))
    restored.add_term(Term("bank", "polysemy", 1, 5, 7))
    assert [entry.target for entry in restored.items("bank")] == ["银行", "河岸", "库"]
    assert data == graph.as_json()
    assert TransKG.from_json(TransKG().as_json()).as_json() == {"language": "en", "nodes": [], "edges": []}


def test_graphml_can_be_read_back(tmp_path: Path) -> None:
    graph = example()
    graph.add_item(item("odd\x00\x0b", "<&>\x1f", 'a "quoted" gloss'))
    graph.write_graphml(tmp_path / "graph.graphml")
    read = nx.read_graphml(tmp_path / "graph.graphml", force_multigraph=True)
    assert read.number_of_edges() == graph.graph.number_of_edges() and len(read) == len(graph.graph)
    assert read.nodes["term:bank"] == {"label": "bank", "kind": "term", "origin": "internal", "found": "0:4-8"}
    edge = read.get_edge_data("term:scotia", "translation:丰业")
    assert next(iter(edge.values()))["evidence"] == "Scotia = 丰业"
    TransKG().write_graphml(tmp_path / "empty.graphml")
    assert len(nx.read_graphml(tmp_path / "empty.graphml")) == 0


@pytest.mark.filterwarnings("error")
def test_the_picture(tmp_path: Path) -> None:
    graph = example()
    graph.accept("bank", graph.items("bank")[0])
    graph.add_item(item("odd\x00", "<&>\x1f"))
    graph.add_item(item("$x", "$y_", "a gloss far longer than a box is wide " * 9))
    graph.draw(tmp_path / "graph.png")
    assert (tmp_path / "graph.png").read_bytes().startswith(b"\x89PNG")
    TransKG().draw(tmp_path / "empty.png")
    positions = _places(graph.graph)
    assert {position[0] for node, position in positions.items() if node.startswith("concept:")} == {1}
    assert len(set(positions.values())) == len(positions) == len(graph.graph)


@pytest.mark.filterwarnings("error")
def test_the_picture_names_the_script_that_has_no_font(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    drawn: list[str] = []
    monkeypatch.setattr(Figure, "savefig", lambda figure, *_, **__: drawn.extend(texts_of(figure)))
    with only_dejavu():
        example().draw(tmp_path / "graph.png")
    assert {"bank", "[Chinese]", "No font for Chinese: pip install noto-cjk-sans-otc"} <= {*drawn}
    assert not any("银" in text for text in drawn)


def test_a_missing_library_is_one_line() -> None:
    with pytest.raises(KnowledgeError, match=r"no_such_module is not installed; pip install"):
        require_modules("networkx", "no_such_module")
