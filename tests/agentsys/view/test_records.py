"""One record as the page has it: the line of the index, shared texts, tokens, targets with the calls they come from."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from agentsys.traces import Segment, Target, Trace, read_finished
from agentsys.view.records import COLUMNS, index_row, record_data, refused_row, token_data
from agentsys.view.vocabulary import Vocabulary


def no_vocabulary(model: str) -> None:
    return None


@pytest.fixture
def traces(runs: dict[str, Path]) -> dict[str, Trace]:
    return {trace.id: trace for name in ("first", "searched") for trace in read_finished(runs[name])}


def as_dict(row: list[Any]) -> dict[str, Any]:
    return dict(zip(COLUMNS, row, strict=True))


def test_a_line_of_the_index(runs: dict[str, Path]) -> None:
    trace = next(trace for trace in read_finished(runs["first"]) if trace.outcome == "kept")
    row = as_dict(index_row(trace, 1_000))
    assert trace.result is not None
    assert row["text"] == trace.input["text"] and row["output"] == trace.result["trans"]
    assert row["rounds"] == len(trace.result["steps"]) and row["score"] == trace.result["steps"][-1]["score"]
    assert row["calls"] == len(trace.calls) and row["again"] == sum(call.error is not None for call in trace.calls)
    assert row["completion_tokens"] == sum(call.completion_tokens for call in trace.calls)
    assert as_dict(index_row(trace, 3))["text"] == trace.input["text"][:3]


def test_a_refused_input_has_a_line() -> None:
    row = as_dict(refused_row({"id": None, "source": "in.jsonl:3", "reason": "no text"}, 100))
    assert (row["id"], row["outcome"], row["reason"], row["text"]) == (None, "failed", "no text", "in.jsonl:3")


def test_texts_that_occur_twice_are_stored_once(runs: dict[str, Path]) -> None:
    for trace in read_finished(runs["searched"]):
        data = record_data(trace, no_vocabulary, {})
        contents = [message["content"] for call in data["calls"] for message in call["messages"]]
        assert len(set(data["texts"])) == len(data["texts"])
        whole = [data["texts"][content] if isinstance(content, int) else content for content in contents]
        assert whole == [message["content"] for call in trace.calls for message in call.messages]
        long = [content for content in contents if isinstance(content, str) and len(content) >= 80]
        assert len(long) == len(set(long))


def test_tokens_that_share_a_character_have_a_joint_probability() -> None:
    vocabulary = Vocabulary(["a", "\u00e4\u00bd", "\u0142"], is_byte_level=True)
    assert token_data([0, 1, 2], [-0.5, -1.0, -2.0], vocabulary) == [["a", -0.5], ["你", -3.0]]
    assert token_data([0, 1, 2], None, vocabulary) == [["a", None], ["你", None]]
    assert token_data([0], [-1.0], None) is None and token_data(None, None, vocabulary) is None


def test_targets_name_the_calls_that_wrote_them(runs: dict[str, Path]) -> None:
    trace = next(trace for trace in read_finished(runs["searched"]) if trace.targets)
    data = record_data(trace, no_vocabulary, {0: {"kind": "step", "tokens": 12}})
    pair = data["targets"][0]
    texts = {call.key: call.text for call in trace.calls}
    for side in ("segments", "rejected"):
        learned = [segment for segment in pair[side] if segment["learned"]]
        assert learned and all(segment["text"] == texts[segment["call"]] for segment in learned)
    assert pair["row"] == {"kind": "step", "tokens": 12} and all(
        target["row"] is None for target in data["targets"][1:]
    )


def test_a_target_of_a_missing_node_says_so(runs: dict[str, Path]) -> None:
    trace = next(iter(read_finished(runs["searched"])))
    trace.targets = [Target("sft", (Segment("user", False, text="q"), Segment("assistant", True, node="gone")))]
    segment = record_data(trace, no_vocabulary, {})["targets"][0]["segments"][1]
    assert segment["fault"] == "the trace has no tree node gone"
