"""Traces: one JSON object per line, equal after a round trip, sorted, comparable, readable by other tools."""

from __future__ import annotations

import json
import random
import shutil
import subprocess
from copy import deepcopy
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

import numpy as np
import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from agentsys.traces import (
    VERSION,
    Call,
    Segment,
    Target,
    Trace,
    dump,
    load,
    read_finished,
    read_traces,
    shards,
    sort_key,
    strip_measured,
    target_from,
)
from tests.support.calls import make_call, make_trace

FULL = make_call(
    "judge/1#1",
    mode="token",
    revision="r1",
    sampling={"temperature": 0.0, "logprobs": 2, "stop": ["\n"]},
    seed=2**31 - 1,
    schema_sha256="cd" * 32,
    messages=[{"role": "system", "content": "A\nB"}, {"role": "user", "content": "他说：“好”。\u2028 \x00 \U0001f600"}],
    prompt_ids=[1, 2, 3],
    ids=[4, 2],
    stop_ids=1,
    logprobs=[-0.5, 0.0],
    top_logprobs=[[-0.5, -1.25], [0.0, -9.0]],
    top_ids=[[4, 5], [2, 0]],
    reasoning="because",
    error="not the JSON that was asked for",
    measured={"seconds": 1.5, "address": "http://a", "retries": 0},
)
TEXTS = make_call("judge/2", top_logprobs=[[-0.5]], top_tokens=[["9"]], logprobs=[-0.5])


TARGETS = [
    Target("sft", (Segment("user", False, text="Hi"), Segment("assistant", True, call="judge/1#1")), None, {"s": 92.0}),
    Target(
        "step",
        (Segment("user", False, prompt="judge/2"), Segment("assistant", True, node="root:0")),
        (Segment("user", False, prompt="judge/2"), Segment("assistant", True, node="root:1")),
        {"margin": 1.0},
    ),
]


@pytest.mark.parametrize(
    "original",
    [
        make_trace(),
        make_trace(make_call("a"), FULL, TEXTS, targets=TARGETS, measured={"seconds": 2.0}),
        make_trace(outcome="failed", reason="RoleError: no", result=None),
        make_trace(tree=[{"id": "root", "value": 0.5, "measured": {"seconds": 1}}]),
    ],
    ids=["bare", "full", "failed", "tree"],
)
def test_a_trace_survives_a_round_trip(original: Trace) -> None:
    line = dump(original)
    assert load(line) == original
    assert load(line.decode()) == original
    assert dump(load(line)) == line


@given(st.text())
def test_any_text_stays_on_its_line(text: str) -> None:
    original = make_trace(make_call("a", text=text), input={"text": text})
    line = dump(original)
    assert line.count(b"\n") == 1
    assert line.endswith(b"}\n")
    assert load(line) == original


def test_a_line_is_one_json_object_with_every_field() -> None:
    raw = json.loads(dump(make_trace(FULL, targets=TARGETS)))
    assert list(raw)[:2] == ["version", "id"]
    assert set(raw) == {field.name for field in fields(Trace)}
    assert set(raw["calls"][0]) == {field.name for field in fields(Call)}
    assert raw["version"] == VERSION


@pytest.mark.parametrize(("outcome", "expected"), [("kept", "kept"), ("dropped", "dropped"), ("rejected", "failed")])
def test_a_version_1_line_is_read(outcome: str, expected: str) -> None:
    raw = json.loads(dump(make_trace(FULL, targets=TARGETS, reason="because"))) | {"version": 1, "outcome": outcome}
    loaded = load(json.dumps(raw))
    assert loaded == make_trace(FULL, targets=TARGETS, reason="because", outcome=expected, version=1)


def test_numbers_of_numpy_are_numbers() -> None:
    original = make_trace(result={"score": np.float64(0.5), "ids": np.array([1, 2])})
    assert json.loads(dump(original))["result"] == {"score": 0.5, "ids": [1, 2]}


KEYS = ["draft", "refine/1", "refine/1#1", "refine/1#2", "refine/2", "refine/9", "refine/10", "refine/10#1", "refine/x"]


def test_calls_are_sorted_by_key_and_numbers_count() -> None:
    assert sorted(reversed(KEYS), key=sort_key) == KEYS
    assert sort_key("root:0:12:3") > sort_key("root:0:9:30")
    assert sorted(["b", "a/2", "a", "10", "9", ""], key=sort_key) == ["", "9", "10", "a", "a/2", "b"]


def test_the_order_in_which_calls_ended_does_not_matter() -> None:
    keys = [*KEYS, "refine/01", "refine/٣", "x²", "²"]
    expected = dump(make_trace(*map(make_call, keys)))
    chance = random.Random(0)
    for _ in range(20):
        chance.shuffle(keys)
        assert dump(make_trace(*map(make_call, keys))) == expected


def test_measured_values_can_be_stripped() -> None:
    first = make_trace(
        FULL, make_call("a"), measured={"seconds": 1.0}, tree=[{"id": "root", "measured": {"seconds": 3}}]
    )
    second = deepcopy(first)
    second.measured = {"seconds": 9.0, "hits": 3}
    second.calls[0].measured = {"cache_hit": True}
    second.tree[0]["measured"] = {}
    assert dump(first) != dump(second)
    bare = strip_measured(json.loads(dump(first)))
    assert bare == strip_measured(json.loads(dump(second)))
    assert "measured" not in json.dumps(bare)
    second.calls[0].text = "something else"
    assert bare != strip_measured(json.loads(dump(second)))


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        ({"version": VERSION + 1}, f"version {VERSION + 1} is newer than {VERSION}; update agentsys"),
        ({"version": None}, "no version field"),
        ({"version": "1"}, "no version field"),
        ({"calls": None}, "not a trace"),
        ({"calls": [{"key": "a"}]}, "not a trace"),
        ({"targets": [{"kind": "sft"}]}, "not a trace"),
        ({"unknown": 1}, "not a trace"),
    ],
)
def test_a_line_that_is_not_a_trace(change: dict[str, Any], complaint: str) -> None:
    raw = json.loads(dump(make_trace(FULL)))
    with pytest.raises(ValueError, match=complaint):
        load(json.dumps(raw | change))


@pytest.mark.parametrize("line", ["", "[]", "5", '"x"', "{}", '{"version": 1}', '{"version": 1, "id"'])
def test_a_line_that_is_something_else(line: str) -> None:
    with pytest.raises(ValueError):
        load(line)


def test_a_segment_has_one_source() -> None:
    for wrong in ({}, {"text": "a", "call": "b"}, {"text": "a", "call": "b", "node": "c"}):
        with pytest.raises(ValueError, match="exactly one"):
            Segment("user", False, **wrong)
    assert Segment("user", False, text="").text == ""
    for target in TARGETS:
        assert target_from(json.loads(orjson.dumps(asdict(target)))) == target


# Shards


VARIED = [
    make_trace(make_call("a"), id="bare"),
    make_trace(FULL, TEXTS, id="full", targets=TARGETS, measured={"seconds": 2.0}),
    make_trace(id="nothing", outcome="dropped", reason="too low", result=None),
    make_trace(make_call("a", sampling={"top_k": 5}, seed=7, measured={"cached_tokens": 3}), id="others"),
]


def write(folder: Path, *numbered: list[Trace]) -> Path:
    for number, traces in enumerate(numbered):
        (folder / f"traces-{number:05}.jsonl").write_bytes(b"".join(map(dump, traces)))
    return folder


def test_the_traces_of_a_folder_in_order(tmp_path: Path) -> None:
    write(tmp_path, VARIED[:2], [], VARIED[2:])
    (tmp_path / "failed.jsonl").write_text("{}\n")
    assert [path.name for path in shards(tmp_path)] == [f"traces-0000{i}.jsonl" for i in range(3)]
    assert list(read_traces(tmp_path)) == VARIED
    with (tmp_path / "traces-00002.jsonl").open("ab") as shard:
        shard.write(dump(VARIED[0])[:50])  # a run in progress, or a killed one
    assert list(read_traces(tmp_path)) == VARIED


@pytest.mark.parametrize(("name", "version", "outcome"), [("failed", 2, "failed"), ("rejected", 1, "rejected")])
def test_finished_traces_include_failed_records_but_no_refused_inputs(
    tmp_path: Path, name: str, version: int, outcome: str
) -> None:
    write(tmp_path, VARIED[:2])
    failure = dump(
        make_trace(make_call("a"), id="lost", outcome=outcome, reason="RoleError: no", result=None, version=version)
    )
    refused = [
        {"id": None, "source": "a.jsonl:3", "reason": "not JSON"},
        {"id": "r", "source": "a.jsonl:4", "reason": "x"},
    ]
    lines = [orjson.dumps(refused[0]) + b"\n", failure, orjson.dumps(refused[1]) + b"\n", failure[:80]]  # torn last
    (tmp_path / f"{name}.jsonl").write_bytes(b"".join(lines))
    assert [(t.id, t.outcome) for t in read_finished(tmp_path)] == [
        ("bare", "kept"),
        ("full", "kept"),
        ("lost", "failed"),
    ]
    assert list(read_traces(tmp_path)) == VARIED[:2]


@pytest.mark.skipif(shutil.which("jq") is None, reason="jq is not installed")
def test_jq_reads_a_shard(tmp_path: Path) -> None:
    write(tmp_path, VARIED)
    result = subprocess.run(
        ["jq", "-r", "[.id, (.calls | length)] | @tsv", tmp_path / "traces-00000.jsonl"],
        capture_output=True,
        text=True,
        check=True,
    )
    assert result.stdout.splitlines() == [f"{t.id}\t{len(t.calls)}" for t in VARIED]


@pytest.mark.needs("train")
@pytest.mark.parametrize("order", [1, -1], ids=["forward", "backward"])
def test_datasets_loads_a_shard_with_varied_calls(tmp_path: Path, isolated_cache: Path, order: int) -> None:
    import datasets

    varied = VARIED[::order]
    write(tmp_path, varied)
    files = [str(path) for path in shards(tmp_path)]
    loaded = datasets.load_dataset("json", data_files=files, split="train", cache_dir=str(isolated_cache))
    assert loaded["id"][:] == [t.id for t in varied]
    assert [[c["text"] for c in row["calls"]] for row in loaded] == [
        [c.text for c in sorted(t.calls, key=lambda c: c.key)] for t in varied
    ]
    full = next(row for row in loaded if row["id"] == "full")
    judged = next(c for c in full["calls"] if c["key"] == "judge/1#1")
    assert judged["top_ids"] == FULL.top_ids
    assert judged["top_logprobs"] == FULL.top_logprobs
    assert judged["messages"] == FULL.messages
