"""The targets of CSC's tasks, with scripted models."""

from __future__ import annotations

from typing import Any

import pytest

from agentsys.graphs.ragtrans.tasks import language_name
from tests.support.ragtrans import (
    DOCUMENT,
    REFERENCE,
    TEXT,
    Runner,
    learned_text,
    result,
)
from tests.support.toys import write_lines


def test_language_names() -> None:
    assert language_name("zh") == "Chinese"
    with pytest.raises(ValueError, match="'xq' is not a language"):
        language_name("xq")


@pytest.mark.parametrize(
    ("task", "answer", "instruction"),
    [
        ("ragtrans", REFERENCE, "Translate the text into Chinese."),
        ("clic", REFERENCE, "Complete the summary in Chinese"),
        ("clrd", "false", "true or false"),
    ],
)
def test_a_task_without_a_model(run: Runner, task: str, answer: str, instruction: str) -> None:
    trace = run.teach(task=task, text=TEXT, document=DOCUMENT, answer=answer, language="zh")
    assert trace.outcome == "kept"
    assert trace.calls == []
    prompt, learned = learned_text(trace)
    assert learned == answer
    assert all(text in prompt for text in (TEXT, DOCUMENT, instruction))
    assert answer not in prompt or task == "clrd"


def test_sket_translates_with_the_models_knowledge(run: Runner) -> None:
    trace = run.teach(task="sket", text=TEXT, answer=REFERENCE, language="de")
    [call] = trace.calls
    assert (call.role, call.key) == ("knowledge", "knowledge")
    assert "in German" in call.messages[0]["content"]
    assert REFERENCE not in str(call.messages)
    prompt, learned = learned_text(trace)
    assert (learned, result(trace)["knowledge"]) == (REFERENCE, call.text)
    assert call.text in prompt and TEXT in prompt
    plain = run.translate({"text": TEXT, "document": call.text})
    assert prompt == "\n".join(str(message["content"]) for message in plain.calls[0].messages)
    assert learned_text(trace, "role") == ("None", "knowledge")


def test_knowledge_that_leaks_the_translation_is_dropped(run: Runner) -> None:
    run.script = write_lines(run.folder / "leak.jsonl", [{"replies": [f"译文：{REFERENCE}"]}])
    trace = run.teach(task="sket", text=TEXT, answer=REFERENCE, language="zh")
    assert (trace.outcome, trace.reason) == ("dropped", "the knowledge leaks the translation")
    assert trace.targets == []
    run.script = write_lines(run.folder / "half.jsonl", [{"replies": [f"港口城市。\n\n译文：{REFERENCE}"]}])
    trace = run.teach(task="sket", text=TEXT, answer=REFERENCE, language="zh")
    assert (result(trace)["knowledge"], result(trace)["leaks"]) == ("港口城市。", 1)
    assert [target.kind for target in trace.targets] == ["sft"], "the call itself leaks the translation"


@pytest.mark.parametrize(
    ("record", "outcome", "reason"),
    [
        ({"task": "ragtrans", "text": TEXT}, "dropped", "no reference to learn"),
        ({"task": "sket", "text": TEXT, "answer": " "}, "dropped", "no reference to learn"),
        ({"task": "other", "text": TEXT, "answer": "x"}, "failed", "task: 'other' is none of ragtrans, sket, clic"),
        ({"task": "clic", "text": TEXT, "answer": "x", "language": "xq"}, "failed", "'xq' is not a language"),
        ({"task": "clic", "text": TEXT, "answer": ["x"]}, "failed", "answer: of type list; give a text"),
        ({"task": "clrd", "text": TEXT, "answer": "x", "document": 7}, "failed", "document: of type int; give a"),
    ],
)
def test_unusable_records_of_tasks(run: Runner, record: dict[str, Any], outcome: str, reason: str) -> None:
    trace = run.teach(**record)
    assert (trace.outcome, trace.targets, trace.calls) == (outcome, [], [])
    assert reason in str(trace.reason)
