"""A run's request cache: calls are paid for once, and its size stays within the limit."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from langgraph.graph import START, StateGraph

from agentsys.collect import RunOptions, Summary, collect
from agentsys.collect.fingerprint import changed_settings
from agentsys.graphs.drt.system import Context as DrtContext
from agentsys.graphs.drt.system import graph as drt
from agentsys.traces import read_traces
from tests.support.greeter import Context, greet
from tests.support.toys import Input, State, call_drt, outcomes, read_manifest, sentences, write_lines


def test_a_second_run_pays_for_nothing(tmp_path: Path, model: str, calls: Callable[[], int]) -> None:
    def run(name: str, cache: Path | None) -> Summary:
        options = RunOptions(cache=cache, no_cache=cache is None)
        return collect(drt, sentences(20, 7), tmp_path / name, context=DrtContext(model), options=options)

    first = run("one", tmp_path / "shared.sqlite")
    paid = calls()
    assert first.calls == paid > 100
    second = run("two", tmp_path / "shared.sqlite")
    assert calls() == paid
    assert (second.calls, second.cache_hits, second.completion_tokens) == (0, paid, 0)
    third = run("three", None)
    assert calls() == 2 * paid
    assert (third.calls, third.cache_hits) == (paid, 0)
    assert outcomes(tmp_path / "one") == outcomes(tmp_path / "two") == outcomes(tmp_path / "three")


def test_no_cache_reads_and_writes_none(
    tmp_path: Path, model: str, capsys: pytest.CaptureFixture[str], calls: Callable[[], int]
) -> None:
    records = write_lines(tmp_path / "in.jsonl", sentences(3))
    cache = tmp_path / "cache.sqlite"
    arguments = ["--model", model, "--input", records, "--cache", cache]
    assert call_drt(capsys, *arguments, "--out", tmp_path / "one", "--no-cache")[0] == 0
    assert not cache.exists()
    paid = calls()
    assert call_drt(capsys, *arguments, "--out", tmp_path / "two")[0] == 0
    assert cache.exists()
    assert call_drt(capsys, *arguments, "--out", tmp_path / "three", "--no-cache")[0] == 0
    assert calls() == 3 * paid


def test_an_edited_graph_is_another_run_and_pays_for_nothing(
    tmp_path: Path, model: str, calls: Callable[[], int]
) -> None:
    """Calls are identified by their requests, not by the code around them."""

    async def loudly(state: Any) -> dict[str, Any]:
        return {"reply": state["reply"].upper()}

    def run(*nodes: Any) -> Summary:
        builder = StateGraph(State, input_schema=Input).add_sequence(nodes)
        graph = builder.add_edge(START, nodes[0].__name__).compile(name="toy")
        options = RunOptions(cache=tmp_path / "shared.sqlite")
        return collect(graph, ["Ann", "Bob"], tmp_path / f"{len(nodes)}", context=Context(model), options=options)

    first, edited = run(greet), run(greet, loudly)
    assert calls() == first.calls == edited.cache_hits == 2
    assert (first.cache_hits, edited.calls, edited.kept) == (0, 0, 2)
    assert first.run != edited.run
    old, new = (read_manifest(tmp_path / name)["fingerprint"] for name in "12")
    assert [".".join(path) for path, *_ in changed_settings(old, new)] == ["topology.edges", "topology.nodes"]
    assert [(trace.result or {})["reply"] for trace in read_traces(tmp_path / "2")] == ["GOOD DAY"] * 2


def test_the_cache_stays_within_its_limit_while_a_run_fills_it(
    tmp_path: Path,
    model: str,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    calls: Callable[[], int],
) -> None:
    monkeypatch.setattr("agentsys.models.cache.TRIM_COMMITS", 1)  # the size is checked after each commit
    records = write_lines(tmp_path / "in.jsonl", [{**row, "id": f"s{row['id']}"} for row in sentences(30, 31)])
    cache = tmp_path / "cache.sqlite"
    arguments = ["--model", model, "--input", records, "--cache", cache]

    def size(name: str, *options: object) -> int:
        code = call_drt(capsys, *arguments, "--out", tmp_path / name, *options)[0]
        assert code in (0, 3), "a record without a usable score fails"
        return sum(file.stat().st_size for file in tmp_path.glob("cache.sqlite*"))

    full_size, paid = size("one"), calls()
    limit = full_size // 3
    assert size("two", "--cache-limit", limit / 1e9) <= limit
    assert paid < calls() <= 2 * paid  # the removed calls are paid for again
    assert outcomes(tmp_path / "one") == outcomes(tmp_path / "two")
