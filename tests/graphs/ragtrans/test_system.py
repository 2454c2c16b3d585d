"""RAGtrans with scripted models: the four settings, retrieval, targets."""

from __future__ import annotations

import json
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
from langgraph.checkpoint.memory import InMemorySaver

from agentsys.graphs.ragtrans.documents import JOIN, count_tokens
from agentsys.graphs.ragtrans.system import Context, RAGtrans, builder, graph
from agentsys.graphs.ragtrans.tasks import TasksContext
from agentsys.graphs.ragtrans.tasks import graph as tasks_graph
from tests.support.extras import skip_without
from tests.support.ragtrans import (
    DOCUMENT,
    REFERENCE,
    REPLY,
    RULES,
    TEXT,
    Runner,
    request_of,
    result,
)


@pytest.mark.parametrize(("setting", "has"), [("none", False), ("golden", True), ("noisy", True)])
def test_the_setting_decides_whether_the_document_is_shown(run: Runner, setting: str, has: bool) -> None:
    trace = run.translate(setting=setting)
    output = result(trace)
    assert (output["translation"], output["setting"], output["without"]) == (REPLY, setting, "")
    assert (DOCUMENT in request_of(trace), output["used"] == DOCUMENT) == (has, has)
    assert TEXT in request_of(trace)
    assert REFERENCE not in str(trace.calls)
    assert "golden" not in str(trace.calls) and "noisy" not in str(trace.calls)  # the model is not told which


@pytest.mark.parametrize("document", ["", " \n ", None])
def test_an_empty_document_is_recorded_as_missing(run: Runner, document: str | None) -> None:
    trace = run.translate({"text": TEXT, "document": document})
    assert result(trace)["without"] == "no document"
    assert result(trace)["used"] == ""
    assert request_of(trace) == request_of(run.translate(setting="none"))


def test_a_text_alone_is_enough(run: Runner) -> None:
    output = result(run.translate({"text": TEXT}))
    assert (output["translation"], output["without"]) == (REPLY, "no document")


def test_a_long_document_is_truncated_at_a_paragraph_and_recorded(run: Runner) -> None:
    document = "\n\n".join(f"Paragraph {i}: " + "long " * 190 for i in range(100))
    assert len(document) > 96_000
    output = result(run.translate({"text": TEXT, "document": document}, document_tokens=768))
    cut = output["cut"]
    assert (cut["paragraphs"], cut["of_paragraphs"]) == (3, 100)
    assert cut["tokens"] == sum(map(count_tokens, output["used"].split(JOIN))) <= 768 < cut["of_tokens"]
    assert output["used"].endswith("long")


def test_a_document_that_is_not_a_text_fails(run: Runner) -> None:
    trace = run.translate({"text": TEXT, "document": 7})
    assert (trace.outcome, trace.calls) == ("failed", [])
    assert "document: of type int; give a text" in str(trace.reason)


@pytest.mark.parametrize(
    ("setting", "tag", "style", "outcome"),
    [
        ("golden", "clean_zh", "plain", "kept"),
        ("golden", "noisy_zh", "plain", "failed"),
        ("noisy", "noisy_zh", "plain", "kept"),
        ("noisy", "clean_zh", "plain", "failed"),
        ("golden", "noisy_zh", "rated", "kept"),
        ("none", "noisy_zh", "plain", "kept"),
    ],
)
def test_a_published_record_s_tag_must_fit_the_setting(
    run: Runner, setting: str, tag: str, style: str, outcome: str
) -> None:
    """A record of train.jsonl has one document, clean or noisy; only a rated translation tells them apart itself."""
    trace = run.translate({"text": TEXT, "document": DOCUMENT, "tag": tag}, setting=setting, style=style)
    assert trace.outcome == outcome, trace.reason
    if outcome == "failed":
        assert f"its document is {tag[:5]}, which is not setting {setting}" in str(trace.reason) and not trace.calls


async def test_studio_gets_one_line_for_an_empty_text(run: Runner) -> None:
    with pytest.raises(ValueError, match="text: empty; give a text to translate"):
        await graph.ainvoke({"text": ""}, context=Context(model=f"scripted:{run.script}"))
    with pytest.raises(ValueError, match="text: empty; give a text"):
        await tasks_graph.ainvoke({"task": "clic", "text": " "}, context=TasksContext())


@pytest.fixture
def index(tmp_path: Path) -> Path:
    from agentsys.knowledge import IndexSettings, build_index

    passages = [
        {"id": "en/0", "title": "Harbour", "text": "The harbour of the islands is old.  Ships call.", "lang": "en"},
        {"id": "en/1", "title": "", "text": "Fishermen built the harbour.", "lang": "en"},
        {"id": "zh/0", "title": "港口", "text": f"{REFERENCE}  港口 harbour 很旧。", "lang": "zh"},
        {"id": "zh/1", "title": "", "text": REFERENCE + " harbour fishermen islands", "lang": "zh"},
        {"id": "en/2", "title": "", "text": "A recipe for bread.", "lang": "en"},
    ]
    return build_index(passages, tmp_path / "index", IndexSettings(kind="bm25")).folder


def test_passages_of_the_document_language_become_the_document(run: Runner, index: Path) -> None:
    trace = run.translate(setting="retrieved", index=str(index), document_language="en", k=2)
    output = result(trace)
    assert sorted(passage["id"] for passage in output["passages"]) == ["en/0", "en/1"]
    assert "【Harbour】The harbour of the islands is old.  Ships call." in output["used"]
    assert output["used"] in request_of(trace)
    assert DOCUMENT not in request_of(trace)
    assert output["passages"][0]["score"] >= output["passages"][1]["score"] > 0


@pytest.mark.parametrize("retriever", ["dense", "hybrid"])
def test_an_index_is_searched_by_meaning_too(run: Runner, tmp_path: Path, retriever: str) -> None:
    """With a real embedding model, a query that shares no word with the passage."""
    from agentsys.knowledge import IndexSettings, build_index

    skip_without("dense", "weights-embedding")
    passages = [
        {"id": "port", "title": "", "text": "Ships call at a haven of fishermen.", "lang": "en"},
        {"id": "bread", "title": "", "text": "Flour, water, salt and yeast make a loaf.", "lang": "en"},
    ]
    folder = tmp_path / "index"
    build_index(passages, folder, IndexSettings("hybrid", "all-MiniLM-L6-v2"))
    record = {"text": "Many boats were moored by the docks"}
    trace = run.translate(record, setting="retrieved", index=str(folder), retriever=retriever, k=1)
    assert [passage["id"] for passage in result(trace)["passages"]] == ["port"]
    assert "haven" in request_of(trace)
    bm25_trace = run.translate(record, setting="retrieved", index=str(folder), retriever="bm25", k=1)
    assert result(bm25_trace)["without"] == "no passage"


def test_passages_that_leak_the_reference_are_removed(run: Runner, index: Path) -> None:
    knobs: dict[str, Any] = {"setting": "retrieved", "index": str(index), "document_language": "zh", "k": 2}
    output = result(run.translate(**knobs))
    assert output["leaks"] == 2
    assert output["used"] == "【港口】港口 harbour 很旧。"
    assert [passage["id"] for passage in output["passages"]] == ["zh/0"]
    unreferenced = result(run.translate({"text": TEXT}, **knobs))  # without a reference leaks are unknown
    assert unreferenced["leaks"] == 0
    assert REFERENCE in unreferenced["used"]


def test_none_of_several_references_may_leak(run: Runner, index: Path) -> None:
    record = {"text": TEXT, "reference": [REPLY, REFERENCE]}
    trace = run.translate(record, setting="retrieved", index=str(index), document_language="zh", k=2)
    assert (result(trace)["leaks"], result(trace)["used"]) == (2, "【港口】港口 harbour 很旧。")
    assert trace.targets[0].scores["score"] == 100, "the best-matching reference is used"
    assert graph.get_input_jsonschema()["properties"]["reference"]["type"] == "string"
    wrong = run.translate({"text": TEXT, "reference": {"zh": REFERENCE}})
    assert "reference: of type dict; give a text, or a list of texts" in str(wrong.reason) and not wrong.calls


def test_no_passage_is_recorded(run: Runner, index: Path) -> None:
    output = result(run.translate({"text": "xyzzy"}, setting="retrieved", index=str(index)))
    assert (output["without"], output["used"], output["passages"]) == ("no passage", "", [])


def test_retrieval_needs_an_index(run: Runner) -> None:
    trace = run.translate(setting="retrieved")
    assert trace.outcome == "failed"
    assert "index: name the folder of an index" in str(trace.reason)


def test_the_translators_call_is_a_role_target_with_its_score(run: Runner) -> None:
    trace = run.translate()
    [target] = trace.targets
    assert target.kind == "role"
    assert [segment.prompt or segment.call for segment in target.segments] == ["translate", "translate"]
    assert 0 < target.scores["score"] < 100
    perfect = run.translate({"text": TEXT, "reference": REPLY}, setting="none")
    assert perfect.targets[0].scores["score"] == 100
    assert "score" not in run.translate({"text": TEXT}).targets[0].scores


def test_a_rated_translation_is_learned_without_the_rating(run: Runner) -> None:
    trace = run.translate(style="rated")
    output = result(trace)
    assert (output["relevance"], output["found"], output["translation"]) == (4, "港口", REPLY)
    [target] = trace.targets
    *prompt, answer = target.segments
    assert target.kind == "sft"
    assert target.scores["relevance"] == 4
    assert (answer.text, answer.learned) == (REPLY, True)
    plain = run.translate()
    assert [segment.text for segment in prompt] == [message["content"] for message in plain.calls[0].messages]
    assert not any(segment.learned for segment in prompt)


def test_without_a_document_there_is_nothing_to_rate(run: Runner) -> None:
    trace = run.translate({"text": TEXT}, style="rated")
    assert [call.role for call in trace.calls] == ["translator"]
    assert result(trace)["relevance"] is None


@pytest.mark.parametrize("reply", [{"relevance": 6}, {"relevance": 0}, {"translation": ""}])
def test_an_invalid_rating_is_asked_for_again(run: Runner, reply: dict[str, Any]) -> None:
    wrong = {"relevance": 3, "found": "", "translation": "译文", **reply}
    rule = {"role": "labeler", "key": "label", "replies": [json.dumps(wrong)]}
    trace = run.translate(rules=[rule, *RULES], style="rated")
    assert result(trace)["relevance"] == 4
    assert trace.calls[0].error


async def test_a_thread_starts_again(run: Runner) -> None:
    """A second text on the same thread of Studio keeps nothing of the first."""
    checkpointed = builder.compile(checkpointer=InMemorySaver())
    config: Any = {"configurable": {"thread_id": "1"}}
    context = Context(model=f"scripted:{run.script}", style="rated")
    first = await checkpointed.ainvoke(
        {"text": TEXT, "document": DOCUMENT, "reference": REFERENCE}, config, context=context
    )
    assert (first["relevance"], "score" in first["targets"][0]["scores"]) == (4, True)
    second = await checkpointed.ainvoke({"text": TEXT}, config, context=context)
    assert (second["relevance"], second["found"], second["used"]) == (None, "", "")
    assert "score" not in second["targets"][0]["scores"]


def test_the_context_has_a_model_and_a_prompt_for_each_role() -> None:
    names = {field.name for field in fields(Context)}
    roles = [field.name for field in fields(RAGtrans)]
    assert {f"{role}_{what}" for role in roles for what in ("model", "prompt")} < names
    assert all(field.metadata["description"] for field in fields(Context))
    with pytest.raises(ValueError, match="document_tokens: 0 is below 1"):
        Context(document_tokens=0)
    with pytest.raises(ValueError, match="k: 0 is below 1"):
        Context(k=0)


def test_languages_are_variables(run: Runner) -> None:
    for style in ("plain", "rated"):
        [call] = run.translate(style=style, source_language="French", target_language="German").calls
        messages = str(call.messages)
        assert "French" in messages and "German" in messages
        assert "Chinese" not in messages and "English" not in messages
