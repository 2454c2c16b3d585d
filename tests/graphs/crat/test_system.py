"""CRAT with scripted models: a sentence through all nodes, repairs, switches and inputs."""

from __future__ import annotations

from typing import Any

import pytest

from agentsys.graphs.crat.system import CRAT, Context, graph
from agentsys.graphs.crat.terms import (
    is_in_target_language,
    read_sentences,
)
from agentsys.graphs.crat.transkg import TransKG
from tests.support.crat import (
    SENTENCE,
    Lists,
    Runner,
    Script,
    find_decision,
    make_item,
    verdicts,
    with_source,
)


async def test_a_sentence_from_its_terms_to_its_translation(run: Runner) -> None:
    script = Script()
    result = await run(script)
    [sentence] = result["document"]
    assert [(m["surface"], m["kind"], SENTENCE[m["start"] : m["end"]]) for m in sentence["mentions"]] == [
        ("bank", "polysemy", "bank"),
        ("Scotia", "proper", "Scotia"),
    ]
    assert verdicts(find_decision(result, "bank")) == {"银行": "relevance", "河岸": "accepted"}
    assert result["translation"] == "译文河岸斯科舍。" and result["translations"] == [result["translation"]]
    assert result["rendered"][0]["status"] == "entries" and result["rendered"][0]["checked"] == ["河岸", "斯科舍"]
    request = script.request("translate/0")
    assert "- bank = 河岸\n" in request and "银行" not in request
    assert "- bank - is near - Scotia" in script.request("judge/0/0/0/relevance") and "is near" not in request
    transkg = TransKG.from_json(result["graph"])
    accepted = transkg.accepted("bank")
    assert accepted is not None and accepted.target == "河岸"
    assert [item.target for item in transkg.rejected("bank")] == ["银行"]
    assert sentence["faults"] == ["kg_constructor: 1 relations about no term of the sentence"]


def test_an_entry_without_a_translation_is_explained_to_the_translator() -> None:
    entries = [
        {"term": "bank", "target": "河岸", "meaning": "land"},
        {"term": "APR", "target": "", "meaning": "a rate"},
    ]
    inputs = {
        "source_language": "English",
        "target_language": "Chinese",
        "text": "The bank cut its APR.",
        "entries": entries,
        "relations": [],
    }
    request = CRAT().translator.prompt.render(inputs)[-1]["content"]
    assert "- bank = 河岸\n- APR: a rate\n" in request


async def test_when_nothing_is_accepted_at_all_the_translator_works_without(run: Runner) -> None:
    script = Script(terms=[("bank", "polysemy")], irrelevant={("steep", "银行"), ("steep", "河岸")})
    result = await run(script)
    assert result["rendered"][0]["status"] == "no entry" and "Entries" not in script.request("translate/0")
    assert find_decision(result, "bank")["retrievals"] == 2 and result["translation"] == "译文。"
    assert TransKG.from_json(result["graph"]).accepted("bank") is None
    once = Script(terms=[("bank", "polysemy")], irrelevant={("steep", "银行"), ("steep", "河岸")})
    assert find_decision(await run(once, retrieve_again=False), "bank")["retrievals"] == 1
    assert once.keys("query_expander") == [] and once.keys("llm_source") == ["inform/0/0"]


async def test_an_accepted_term_that_is_missing_is_repaired_once(run: Runner) -> None:
    script = Script(translations={SENTENCE: "斯科舍附近的岸很陡。"}, repaired="斯科舍附近的河岸很陡。")
    result = await run(script)
    assert result["translation"] == script.repaired
    rendered = result["rendered"][0]
    assert (rendered["missing"], rendered["left"], rendered["repaired"]) == (["河岸"], [], True)
    assert (rendered["asked"], rendered["key"]) == ("translate/0", "repair/0")
    sft, role = result["targets"]
    assert [s["call"] or s["prompt"] for s in role["segments"]] == ["translate/0", "repair/0"]
    assert [s["learned"] for s in sft["segments"]] == [False, False, True] and SENTENCE in sft["segments"][1]["text"]
    assert sft["scores"] == {"score": 100.0, "terms": 2.0, "repaired": 1.0}


@pytest.mark.parametrize(
    "repaired", ["还是没有。", " ", "河岸、斯科舍", f"斯科舍附近的河岸很陡。{'这里的词条都已经按照要求放进去了。' * 2}"]
)
async def test_a_repair_that_adds_no_term_or_is_another_text_is_refused(run: Runner, repaired: str) -> None:
    script = Script(translations={SENTENCE: "斯科舍附近的岸很陡。"}, repaired=repaired)
    result = await run(script)
    assert result["translation"] == "斯科舍附近的岸很陡。"
    assert result["rendered"][0]["left"] == ["河岸"] and not result["rendered"][0]["repaired"]
    assert result["targets"][0]["scores"]["score"] == 50.0
    assert not (await run(Script(translations={SENTENCE: "无"}), repair=False))["rendered"][0]["repaired"]


async def test_without_the_judge_every_item_reaches_the_translator(run: Runner) -> None:
    script = Script()
    result = await run(script, judge=False)
    request = script.request("translate/0")
    assert all(text in request for text in ("银行", "河岸", "斯科舍"))
    assert {role for role, _, _ in script.calls} == {"identifier", "kg_constructor", "llm_source", "translator"}
    assert result["rendered"][0]["checked"] == [] and result["rendered"][0]["status"] == "entries"


async def test_plain_retrieval_has_neither_judge_nor_graph(run: Runner) -> None:
    script = Script()
    result = await run(script, judge=False, graph=False)
    assert result["graph"] is None
    request = script.request("translate/0")
    assert "- bank = 银行" in request and "- bank = 河岸" in request
    assert {role for role, _, _ in script.calls} == {"identifier", "llm_source", "translator"}


async def test_without_the_graph_each_sentence_decides_alone(run: Runner) -> None:
    script = Script(terms=[("Scotia", "proper")], irrelevant=set())
    texts = ["Scotia is cold.", "Scotia is far."]
    result = await run(script, texts, graph=False)
    assert result["graph"] is None and script.keys("kg_constructor") == []
    assert script.keys("llm_source") == ["inform/0/0", "inform/1/0"]
    assert [r["checked"] for r in result["rendered"]] == [["斯科舍"]] * 2
    shared = Script(terms=[("Scotia", "proper")], irrelevant=set())
    assert len((await run(shared, texts))["decisions"]) == 1 and shared.keys("llm_source") == ["inform/0/0"]


async def test_without_the_llm_source_only_sources_are_asked(run: Runner) -> None:
    script = Script(terms=[("bank", "polysemy")])
    source = Lists(bank=[make_item("bank", "河岸")])
    result = await run(script, crat=with_source(source), llm_source=False)
    assert verdicts(find_decision(result, "bank")) == {"河岸": "accepted"} and script.keys("llm_source") == []


async def test_a_text_without_terms_is_translated_plainly(run: Runner) -> None:
    script = Script(terms=[])
    result = await run(script)
    assert result["rendered"][0]["status"] == "no term" and result["translation"] == "译文。"
    assert {role for role, _, _ in script.calls} == {"identifier", "translator"}


async def test_an_identifier_that_fails_leaves_a_plain_translation(run: Runner) -> None:
    result = await run(Script(broken="identify.*"))
    assert result["rendered"][0]["status"] == "no term"
    assert "no usable reply" in result["document"][0]["faults"][0]


async def test_a_text_in_the_target_language_is_returned_unchanged(run: Runner) -> None:
    script = Script()
    result = await run(script, "新冠肺炎 (COVID-19) 是传染病。")
    assert result["translation"] == "新冠肺炎 (COVID-19) 是传染病。"
    assert result["rendered"][0]["status"] == "already in the target language"
    assert script.calls == [] and result["targets"] == []
    assert not is_in_target_language("The word 新型冠状病毒肺炎 means it.", "English", "Chinese")
    assert not is_in_target_language("COVID-19 PCR检测", "Chinese", "English") and is_in_target_language(
        "A test.", "Chinese", "English"
    )
    assert not is_in_target_language("Das ist Deutsch.", "English", "German"), "both languages share a script"
    assert not is_in_target_language("漢字", "Japanese", "Chinese")


@pytest.mark.parametrize("source", ["", "  \n ", [], ["One.", " "], [1], {"sentences": 5}, {"sentences": {"a": "b"}}])
async def test_empty_input_is_one_clear_line(run: Runner, source: Any) -> None:
    with pytest.raises(ValueError, match=r"^(text|sentences): .*(give|fill)") as caught:
        await run(Script(), source)
    assert "\n" not in str(caught.value)
    with pytest.raises(ValueError, match="not both"):
        read_sentences("a", ["b"], "English")


@pytest.mark.parametrize(
    "knobs", [{"candidates": 0}, {"confidence": 1.5}, {"target_language": " "}, {"signals": "none"}, {"judge": "no"}]
)
def test_a_knob_out_of_range_is_named(knobs: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=next(iter(knobs))):
        Context(**knobs)


async def test_invented_terms_are_counted(run: Runner) -> None:
    result = await run(Script(terms=[("Atlantis", "proper"), ("bank", "polysemy")]))
    assert result["document"][0]["invented"] == ["Atlantis"] and len(result["decisions"]) == 1


async def test_a_thread_can_continue_with_the_other_form_of_input(run: Runner) -> None:
    from langgraph.checkpoint.memory import InMemorySaver

    await run(Script())  # sets the model
    checkpointed = CRAT().builder().compile(checkpointer=InMemorySaver())
    thread: Any = {"configurable": {"thread_id": "one"}}
    context = Context(signals="identifier")
    inputs: list[Any] = [{"sentences": ["Scotia is cold.", "It is."]}, {"text": "Scotia is cold."}]
    counts = [len((await checkpointed.ainvoke(item, thread, context=context))["rendered"]) for item in inputs]
    assert counts == [2, 1]


def test_the_graph_shows_its_steps() -> None:
    assert {"identify", "build", "judge", "translate", "check", "document"} <= set(graph.get_graph().nodes)
