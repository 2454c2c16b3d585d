"""graphs/punchbench/answering.py: conversations with the model's own replies, pictures shown once, scores."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from typing import Any

import pytest
from langgraph.checkpoint.memory import InMemorySaver

from agentsys.graphs.punchbench.answering import AnswerContext, builder, graph, option_probabilities
from agentsys.graphs.punchbench.chains import OTHER
from agentsys.models.scripted import ScriptedChatModel
from tests.support.images import data_url, png

QUESTIONS: dict[str, Any] = {
    "perception/yes_no": {"task": "perception", "format": "yes_no", "caption": "So quiet", "answer": "Yes"},
    "perception/matching": {
        "task": "perception", "format": "matching", "options": ["So quiet", "A drum"], "answer": "A",
    },
    "perception/multi_option": {
        "task": "perception", "format": "multi_option", "caption": "So quiet", "options": ["w", "x", "y", "z"],
        "answer": "C",
    },
    "reasoning/yes_no": {
        "task": "reasoning", "format": "yes_no", "caption": "So quiet", "sentence": "A drum is loud.", "answer": "Yes",
    },
    "reasoning/matching": {
        "task": "reasoning", "format": "matching", "caption": "So quiet", "options": ["A drum.", "A hat."],
        "answer": "B",
    },
    "reasoning/generation": {
        "task": "reasoning", "format": "generation", "caption": "So quiet", "answer": "A drum is loud.",
    },
    OTHER: {
        "task": "reasoning", "format": "yes_no", "caption": "Nice hat", "sentence": "A pot.", "answer": "No",
        "image": "other",
    },
}  # fmt: skip
for question in QUESTIONS.values():
    question.update({"caption": "", "sentence": "", "options": [], **question})
RECORD: dict[str, Any] = {"questions": QUESTIONS, "image": data_url(png(0)), "other_image": data_url(png(1))}


class Answerer(ScriptedChatModel):
    """Yes, A or an explanation; remembers what it was asked by call."""

    asked: dict[str, list[Any]] = {}  # noqa: RUF012 (pydantic copies it)

    @classmethod
    def of(cls, **replies: str) -> Answerer:
        model = cls(respond=lambda messages, call: "", asked={})

        def respond(messages: Sequence[Mapping[str, Any]], call: dict[str, Any]) -> str:
            model.asked[call["key"]] = [(m["role"], m["content"]) for m in messages]
            if call["role"] in replies:
                return replies[call["role"]]
            last = call["key"].rpartition("+")[2]
            if call["role"] == "explanation_judge":
                return json.dumps({"answer": "Yes"})
            if call["role"] == "thinker":
                return "I think. Answer: Yes" if "yes_no" in last else "I think. Answer: A"
            return json.dumps({"answer": "Yes" if "yes_no" in last else "A"}) if "generation" not in last else "A drum"

        model.respond = respond
        return model


async def answer(
    monkeypatch: pytest.MonkeyPatch, record: dict[str, Any] = RECORD, model: Answerer | None = None, **knobs: Any
) -> tuple[dict[str, Any], Answerer]:
    model = model or Answerer.of()
    monkeypatch.setattr("agentsys.systems.load_model", lambda *spec, **settings: model)
    return await graph.ainvoke(record, context=AnswerContext(**knobs)), model


def images(content: Any) -> int:
    return sum(block["type"] == "image" for block in content) if isinstance(content, list) else 0


def text(content: Any) -> str:
    return content if isinstance(content, str) else "".join(block.get("text", "") for block in content)


async def test_zero_shot_and_sc_coq_are_18_calls(monkeypatch: pytest.MonkeyPatch) -> None:
    result, model = await answer(monkeypatch)
    assert len([key for key in model.asked if not key.startswith("judge")]) == 18 == len(result["replies"])
    judged = [key for key in model.asked if key.startswith("judge")]
    assert len(judged) == 2, "two explanations: zero-shot's and the chain's"
    right = {(p["strategy"], p["question"]): p["right"] for p in result["predictions"]}
    expected = {name: q["answer"] in ("Yes", "A") for name, q in QUESTIONS.items() if name != OTHER}
    expected["reasoning/generation"] = True
    assert right == {(s, name): value for s in ("zero_shot", "sc_coq") for name, value in expected.items()}


async def test_the_last_question_stands_after_the_earlier_ones_and_the_replies(monkeypatch: pytest.MonkeyPatch) -> None:
    _, model = await answer(monkeypatch)
    messages = model.asked["plain/perception_yes_no+reasoning_yes_no+perception_matching+reasoning_matching"]
    assert [role for role, _ in messages] == ["system", *["user", "assistant"] * 3, "user"]
    assert [content for role, content in messages if role == "assistant"] == ["Yes", "Yes", "A"]
    assert [images(content) for role, content in messages if role == "user"] == [1, 0, 0, 0], "the picture once"
    assert "Which sentence explains" in text(messages[-1][1]) and "A. A drum.\nB. A hat." in text(messages[-1][1])
    messages = model.asked["plain/other_yes_no+perception_yes_no"]
    assert [images(content) for role, content in messages if role == "user"] == [1, 1], "two pairs, two pictures"
    assert messages[1][1][0]["sha256"] != messages[3][1][0]["sha256"]
    assert "Nice hat" in text(messages[1][1]) and "So quiet" in text(messages[3][1])


async def test_few_shot_and_thinking(monkeypatch: pytest.MonkeyPatch) -> None:
    exemplar = {"question": {**QUESTIONS["perception/yes_no"], "caption": "Nice hat", "answer": "No"}, "image": 0}
    record = {
        "questions": {"perception/yes_no": QUESTIONS["perception/yes_no"]}, "image": data_url(png(0)),
        "exemplars": {"perception/yes_no": [exemplar] * 4}, "exemplar_images": [data_url(png(2))],
    }  # fmt: skip
    result, model = await answer(monkeypatch, record, strategies="few_shot,cot", shots=2)
    messages = model.asked["few_shot/perception_yes_no"]
    assert [content for role, content in messages if role == "assistant"] == ["No", "No"]
    assert [images(content) for role, content in messages if role == "user"] == [1, 1, 1]
    assert {p["strategy"]: p["answer"] for p in result["predictions"]} == {"few_shot": "Yes", "cot": "Yes"}
    assert "step by step" in text(model.asked["cot/perception_yes_no"][0][1])


async def test_a_withheld_picture_is_text_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    result, model = await answer(monkeypatch, {"questions": QUESTIONS})
    assert len(result["replies"]) == 18
    assert all(isinstance(content, str) for messages in model.asked.values() for _, content in messages)


async def test_an_unusable_reply_is_wrong_and_the_chain_goes_on(monkeypatch: pytest.MonkeyPatch) -> None:
    result, model = await answer(monkeypatch, model=Answerer.of(answerer="no JSON"))
    by_question = {p["question"]: p for p in result["predictions"] if p["strategy"] == "sc_coq"}
    assert by_question["perception/yes_no"]["right"] is False and by_question["perception/yes_no"]["answer"] == ""
    messages = model.asked["plain/perception_yes_no+reasoning_yes_no"]
    assert messages[2] == ("assistant", "(no answer)")
    assert by_question["reasoning/generation"]["answer"] == "no JSON"


async def test_replies_without_a_schema_are_read(monkeypatch: pytest.MonkeyPatch) -> None:
    result, _ = await answer(monkeypatch, model=Answerer.of(answerer="I say Yes, or A"), constrained=False, judge=False)
    found = {p["question"]: (p["answer"], p["right"]) for p in result["predictions"] if p["strategy"] == "zero_shot"}
    assert found["perception/yes_no"] == ("Yes", True) and found["perception/matching"] == ("A", True)
    assert found["reasoning/generation"] == ("I say Yes, or A", None), "not judged"


async def test_questions_without_gold_answers(monkeypatch: pytest.MonkeyPatch) -> None:
    record = {**RECORD, "questions": {name: {**q, "answer": ""} for name, q in QUESTIONS.items()}}
    result, model = await answer(monkeypatch, record)
    assert {p["right"] for p in result["predictions"]} == {None}
    assert not [key for key in model.asked if key.startswith("judge")]


async def test_a_thread_answers_a_second_pair(monkeypatch: pytest.MonkeyPatch) -> None:
    model = Answerer.of()
    monkeypatch.setattr("agentsys.systems.load_model", lambda *spec, **settings: model)
    thread = builder.compile(checkpointer=InMemorySaver())
    config: Any = {"configurable": {"thread_id": "one"}, "recursion_limit": 100}
    for _ in range(2):
        result = await thread.ainvoke(RECORD, config, context=AnswerContext())
        assert len(result["replies"]) == 18


async def test_the_wording_can_be_set(monkeypatch: pytest.MonkeyPatch) -> None:
    _, model = await answer(monkeypatch, questions_prompt="# user\nMARK {{ format }}: {{ caption }}")
    assert text(model.asked["plain/perception_yes_no"][-1][1]) == "MARK yes_no: So quiet"


def test_option_probabilities() -> None:
    tokens = [['{"'], ["answer"], ['"Yes', '"No', "Maybe"]]
    logprobs = [[0.0], [0.0], [math.log(0.6), math.log(0.2), math.log(0.2)]]
    assert option_probabilities(tokens, logprobs, ["Yes", "No"]) == pytest.approx({"Yes": 0.75, "No": 0.25})
    assert option_probabilities(None, None, ["Yes", "No"]) is None
    assert option_probabilities([["x"]], [[0.0]], ["Yes", "No"]) is None


@pytest.mark.parametrize("strategies", ["", "magic", "zero_shot,magic"])
def test_unknown_strategies(strategies: str) -> None:
    with pytest.raises(ValueError, match="strategies: "):
        AnswerContext(strategies=strategies)
