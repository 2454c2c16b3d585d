"""graphs/punchbench/system.py: the builder's steps, its checks, and what the input spares a model."""

from __future__ import annotations

import json
from typing import Any

import pytest
from langgraph.checkpoint.memory import InMemorySaver

from agentsys.graphs.punchbench import Context, builder, graph
from agentsys.graphs.punchbench.system import FAULTS
from tests.support.punchbench import CAPTION, GIVEN, STATEMENTS, BuilderModel, Respond, pair


async def build(
    monkeypatch: pytest.MonkeyPatch, record: dict[str, Any], respond: Respond = lambda role, key: None, **knobs: Any
) -> tuple[dict[str, Any], BuilderModel]:
    model = BuilderModel.of(respond)
    monkeypatch.setattr("agentsys.systems.load_model", lambda *spec, **settings: model)
    return await graph.ainvoke(record, context=Context(**knobs)), model


def faults_of(result: dict[str, Any]) -> dict[str, str]:
    return {fault["item"]: fault["reason"] for name in FAULTS for fault in result[name]}


async def test_every_part_is_made_and_judged(monkeypatch: pytest.MonkeyPatch) -> None:
    result, model = await build(monkeypatch, pair())
    assert result["has_punchline"] is True and not result["dropped"] and faults_of(result) == {}
    names = ("synonymous_caption", "antonymous_caption", "distractor_caption", "reasoning_sentence")
    assert [result[name] for name in names] == [
        GIVEN["synonymous"], GIVEN["antonymous"], GIVEN["distractor"], GIVEN["reasoning"],
    ]  # fmt: skip
    assert result["distractor_sentence"] == GIVEN["distractor_reasoning"]
    assert result["options"] == {kind: STATEMENTS for kind in "osa"}
    sees = {role: picture for role, _, picture in model.seen}
    assert sees == {
        "filter_judge": True, "splitter": False, "substituter": False, "inverter": False, "punchline_judge": True,
        "captioner": True, "explainer": True, "misexplainer": False, "optioner": False,
    }  # fmt: skip
    assert sorted(key for role, key, _ in model.seen if role == "punchline_judge") == [
        "antonymous_caption/0/judge", "distractor_caption/0/judge", "synonymous_caption/0/judge",
    ]  # fmt: skip


async def test_what_the_input_has_is_not_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    result, model = await build(monkeypatch, pair(**GIVEN))
    assert {role for role, _, _ in model.seen} == {"filter_judge", "optioner"}
    assert result["reasoning_sentence"] == GIVEN["reasoning"] and faults_of(result) == {}


async def test_the_filter_asks_in_order_and_stops(monkeypatch: pytest.MonkeyPatch) -> None:
    def blurred(role: str, key: str) -> str | None:
        return '{"answer": "No"}' if key == "filter/picture" else None

    result, model = await build(monkeypatch, pair(), blurred)
    assert result["dropped"] == "filter: picture"
    assert [key for _, key, _ in model.seen] == ["filter/ethics", "filter/picture"]
    result, model = await build(monkeypatch, pair(**GIVEN), blurred, filter=False)
    assert not result["dropped"] and {role for role, _, _ in model.seen} == {"optioner"}


@pytest.mark.parametrize(
    ("fields", "dropped"),
    [
        ({"label": None}, "label: no label; give the field label (1 or 0), or votes"),
        ({"label": None, "votes": {"yes": 10, "no": 0}}, "label: 10 votes, and more than 10 are needed"),
        ({"label": None, "votes": {"yes": 8, "no": 4}}, "label: 8 of 12 votes agree, and more than 80% are needed"),
        ({"label": 1, "votes": {"yes": 0, "no": 12}}, "label: the label is 1, and the votes say 0"),
        ({"label": "maybe"}, "label: the label 'maybe' is neither 1 nor 0"),
        ({"label": None, "votes": "many"}, 'label: the votes are not {"yes": number, "no": number}'),
        ({"caption": "x " * 5000}, "filter: the caption has 10,000 characters, and 2,000 are allowed"),
    ],
)
async def test_pairs_that_are_dropped(monkeypatch: pytest.MonkeyPatch, fields: dict[str, Any], dropped: str) -> None:
    result, _ = await build(monkeypatch, pair(**fields))
    assert result["dropped"] == dropped


@pytest.mark.parametrize(
    ("votes", "label"), [({"yes": 10, "no": 1}, True), ([0] * 11, False), ([1] * 9 + [0] * 2, True)]
)
async def test_valid_votes_are_the_label(monkeypatch: pytest.MonkeyPatch, votes: Any, label: bool) -> None:
    """More than 10 votes, of which more than 80 % agree."""
    result, _ = await build(monkeypatch, pair(label=None, votes=votes, **GIVEN))
    assert result["has_punchline"] is label


async def test_a_pair_without_a_punchline_has_no_reasoning(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its synonymous caption has none either; its antonymous caption must have one."""

    def judge(role: str, key: str) -> str | None:
        return json.dumps({"answer": "Yes" if "antonymous" in key else "No"}) if role == "punchline_judge" else None

    result, model = await build(monkeypatch, pair(label=0), judge)
    assert result["has_punchline"] is False and result["reasoning_sentence"] == "" and faults_of(result) == {}
    assert {role for role, _, _ in model.seen} & {"explainer", "misexplainer"} == set()


async def test_a_caption_in_two_parts_is_substituted_and_inverted_part_by_part(monkeypatch: pytest.MonkeyPatch) -> None:
    parts = {"contradict": True, "first": "What a lovely quiet evening", "second": "at home with the neighbours"}
    replies = {"splitter": json.dumps(parts), "substituter": "other words", "inverter": "the opposite"}
    result, _ = await build(monkeypatch, pair(), lambda role, key: replies.get(role))
    assert result["synonymous_caption"] == "other words the opposite"
    assert result["antonymous_caption"] == "the opposite other words"
    wrong = replies | {"splitter": json.dumps(parts | {"first": "A text that is not in the caption"})}
    result, _ = await build(monkeypatch, pair(), lambda role, key: wrong.get(role))
    assert result["synonymous_caption"] == "other words", "parts that are not the caption's are not used"


async def test_a_failed_item_is_made_again_then_dropped_with_the_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    """The judge finds a punchline in the first two distractors, and in all synonymous captions none."""

    def judge(role: str, key: str) -> str | None:
        if key in ("distractor_caption/0/judge", "distractor_caption/1/judge"):
            return '{"answer": "Yes"}'
        return '{"answer": "No"}' if key.startswith("synonymous") and role == "punchline_judge" else None

    result, model = await build(monkeypatch, pair(), judge)
    assert result["distractor_caption"] == GIVEN["distractor"]
    assert sum(role == "captioner" for role, _, _ in model.seen) == 3
    assert result["synonymous_caption"] == ""
    assert faults_of(result) == {"synonymous_caption": "the judge finds no punchline"}
    assert set(result["options"]) == {"o", "a"}


async def test_the_checks_that_need_no_judge(monkeypatch: pytest.MonkeyPatch) -> None:
    replies = {
        "substituter": CAPTION.upper(),
        "captioner": "A man",
        "explainer": f"Because {CAPTION} is what he says.",
        "optioner": json.dumps({"correct": "It is a punchline.", "wrong": ["It is a punchline. Indeed", "b b", "c c"]}),
    }
    result, _ = await build(monkeypatch, pair(), lambda role, key: replies.get(role), tries=2)
    found = faults_of(result)
    assert found["synonymous_caption"] == "it repeats the caption"
    assert found["distractor_caption"].startswith("the longest option has 5.0 times as many words as the shortest")
    assert found["reasoning_sentence"] == "the reasoning quotes 6 words of the caption"
    assert found["options"] == "there is no distractor caption"
    assert result["distractor_sentence"] == "", "there is nothing to compare it with"
    result, _ = await build(monkeypatch, pair(**GIVEN), lambda role, key: replies.get(role), tries=1)
    assert faults_of(result) == {f"options_{kind}": "an option repeats another" for kind in "osa"}


async def test_an_unusable_reply_is_an_attempt(monkeypatch: pytest.MonkeyPatch) -> None:
    result, _ = await build(monkeypatch, pair(), lambda role, key: "" if role == "captioner" else None, tries=1)
    assert "captioner" in faults_of(result)["distractor_caption"]
    assert "no usable reply" in faults_of(result)["distractor_caption"]


async def test_a_thread_does_not_mix_two_pairs(monkeypatch: pytest.MonkeyPatch) -> None:
    """In Studio a thread keeps its state."""
    model = BuilderModel.of()
    monkeypatch.setattr("agentsys.systems.load_model", lambda *spec, **settings: model)
    thread = builder.compile(checkpointer=InMemorySaver())
    config: Any = {"configurable": {"thread_id": "one"}}
    blocked = {**pair(), "caption": "x" * 3000}
    assert (await thread.ainvoke(blocked, config, context=Context()))["dropped"]
    result = await thread.ainvoke(pair(1, label=1), config, context=Context())
    assert not result["dropped"] and result["caption"] == CAPTION and set(result["options"]) == set("osa")


@pytest.mark.parametrize("options", [{"tries": 0}, {"min_agreement": 0.2}, {"min_agreement": 1.5}, {"quoted_words": 1}])
def test_options_out_of_range(options: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=next(iter(options))):
        Context(**options)
