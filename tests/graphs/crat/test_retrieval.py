"""CRAT's retrieval with scripted models: the order of sources, the second retrieval, failures."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest

from agentsys.graphs.crat.system import Context
from agentsys.graphs.crat.transkg import TransKG
from agentsys.knowledge.passages import KnowledgeError
from agentsys.terms.item import Item
from tests.support.crat import (
    MONEY,
    Lists,
    Runner,
    Script,
    find_decision,
    make_item,
    verdicts,
    with_source,
)


async def test_where_nothing_is_accepted_there_is_one_more_retrieval(run: Runner) -> None:
    irrelevant = {("steep", "银行"), ("steep", "河岸")}
    source = Lists(slope=[make_item("slope", "斜坡")])
    script = Script(irrelevant=irrelevant, more={"bank": [("a slope", "岸坡"), MONEY]}, names=["slope", "bank"])
    result = await run(script, crat=with_source(source))
    decision = find_decision(result, "bank")
    assert decision["retrievals"] == 2
    assert verdicts(decision) == {
        "银行": "relevance", "河岸": "relevance", "斜坡": "accepted", "岸坡": "a better one",
    }  # fmt: skip
    assert source.lookups == [("bank", "Scotia"), ("slope",)], "the same name is not looked up again"
    assert "- 银行: here it is the word, in the entry 银行" in script.request("inform/0/0/again")
    transkg = TransKG.from_json(result["graph"])
    assert {item.target for item in transkg.items("bank")} == {"银行", "河岸", "斜坡", "岸坡"}
    assert transkg.items("slope") == []


async def test_the_best_of_each_source_comes_first_and_equal_translations_are_one(run: Runner) -> None:
    source = Lists(bank=[make_item("bank", "河 岸"), make_item("bank", "銀行"), make_item("bank", "", "a passage")])
    result = await run(Script(terms=[("bank", "polysemy")]), crat=with_source(source))
    sources_by_target = [(c["item"]["target"], c["sources"]) for c in find_decision(result, "bank")["candidates"]]
    assert sources_by_target[0] in [("河岸", ["list:1", "model"]), ("河 岸", ["list:1", "model"])]
    assert sources_by_target[1:] == [("银行", ["model", "list:1"]), ("", ["list:1"])]


async def test_all_sources_of_an_equal_translation_are_kept_with_and_without_the_graph(run: Runner) -> None:
    source = Lists(bank=[Item("bank", "河岸", "", "one", "a:1"), Item("bank", "河岸", "", "two", "b:1")])
    for knobs in ({}, {"graph": False}):
        result = await run(Script(terms=[("bank", "polysemy")]), crat=with_source(source), **knobs)
        assert find_decision(result, "bank")["candidates"][0]["sources"] == ["a:1", "b:1", "model"]


async def test_both_sides_of_a_long_memory_pair_reach_the_translator(run: Runner) -> None:
    pair = f"The bank {'lent money and ' * 25}closed. = 银行关门了。"
    source = Lists(bank=[Item("bank", "", pair, pair, "tm.tmx:D:1")])
    script = Script(terms=[("bank", "polysemy")])
    await run(script, crat=with_source(source), judge=False, llm_source=False)
    assert "银行关门了" in script.request("translate/0") and len(pair) > 300


async def test_the_llm_source_sees_why_each_candidate_was_rejected(run: Runner) -> None:
    script = Script(terms=[("bank", "polysemy")], irrelevant={("steep", "河岸")}, changed={"银行"})
    assert verdicts(find_decision(await run(script), "bank")) == {"银行": "invariance", "河岸": "relevance"}
    request = script.request("inform/0/0/again")
    assert (
        "- 银行: it was the word, it came back as lost" in request
        and "- 河岸: here it is the word, in the entry 河岸" in request
    )
    broken = Script(terms=[("bank", "polysemy")], irrelevant={("steep", "河岸")}, broken="judge/0/0/0/relevance.*")
    await run(broken)
    assert "- 银行\n" in broken.request("inform/0/0/again"), "a failed call is not a reason"


async def test_a_failed_source_is_reported_once_and_not_for_other_terms(run: Runner) -> None:
    result = await run(Script(broken="inform/0/0.*"))
    assert [fault.split(":")[0] for fault in result["document"][0]["faults"]] == [
        "kg_constructor",
        "llm_source (inform/0/0)",
    ]
    assert find_decision(result, "Scotia")["faults"] == []


async def test_an_unknown_source_is_one_line(run: Runner) -> None:
    with pytest.raises(ValueError, match="is not a term source"):
        await run(Script(), sources="nonsense")


@pytest.mark.parametrize(
    ("count", "reply", "message"), [(2, [[]], "2 lists, got 1"), (2, None, "NoneType"), (1, [], "1 lists, got 0")]
)
async def test_a_source_must_return_a_list_for_each_term(run: Runner, count: int, reply: Any, message: str) -> None:
    """The first retrieval looks up two terms, the second one other name."""

    class Short(Lists):
        async def look_up(self, terms: Sequence[str], sentence: str) -> list[list[Item]]:
            lists: list[list[Item]] = reply if len(terms) == count else [[] for _ in terms]
            return lists

    unfit = Script(irrelevant={("steep", "银行"), ("steep", "河岸")}, names=["slope"])
    with pytest.raises(
        ValueError, match=f"^source lists: look_up must return a list of items for each term.*{message}"
    ):
        await run(unfit, crat=with_source(Short()))


async def test_a_run_closes_its_passage_sources(monkeypatch: pytest.MonkeyPatch) -> None:
    class Remote:
        closed = 0

        async def aclose(self) -> None:
            self.closed += 1

    remote = Remote()
    monkeypatch.setattr("agentsys.terms.sources.load_retriever", lambda folder: remote)
    await Context(sources="passages:index, terms:nowhere.csv").aclose()
    assert remote.closed == 1
    await Context(sources="terms:nowhere.csv", source_language="nonsense").aclose()


@pytest.mark.parametrize(
    ("returned", "kind"), [([["河岸"], []], "str"), ([{"target": "河岸"}, []], "dict"), ([[], [None]], "NoneType")]
)
async def test_a_source_that_returns_other_objects_is_one_line(run: Runner, returned: Any, kind: str) -> None:
    class Wrong:
        name = "wrong"

        async def look_up(self, terms: Any, sentence: str) -> Any:
            return returned

    with pytest.raises(KnowledgeError, match=f"source wrong: look_up must return lists .* an object of type {kind}"):
        await run(Script(), crat=with_source(Wrong()))
