"""What a run writes to its run.log, and logs for debugging."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from langgraph.graph import START, StateGraph
from typing_extensions import TypedDict

from agentsys.collect import RunFolderError, RunOptions, acollect, collect, events
from agentsys.collect.damage import find_damage
from agentsys.collect.limits import TooManyFailures
from agentsys.collect.repair import repair_run
from agentsys.display import say
from tests.support.greeter import Context, greet
from tests.support.shards import unpack_shards

OPTIONS = RunOptions(no_cache=True, in_flight=1)


class State(TypedDict, total=False):
    text: str
    reply: str


def graph_of(node: Any, context: Any = None) -> Any:
    builder = StateGraph(State, context_schema=context)
    builder.add_node("node", node)
    builder.add_edge(START, "node")
    return builder.compile(name="toy")


async def echo(state: Mapping[str, Any]) -> dict[str, Any]:
    if "bad" in state["text"]:
        raise ValueError(f"bad text {state['text']}")
    return {"reply": state["text"]}


def log_lines(folder: Path) -> list[str]:
    """The lines of run.log without their times."""
    return [line.partition(" ")[2] for line in (folder / "run.log").read_text().splitlines()]


def test_a_library_call_has_a_log_file_and_changes_no_level(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    out = tmp_path / "run"
    collect(graph_of(echo), ["a", "bad b"], out, options=OPTIONS)
    start, failure, end = log_lines(out)
    assert start.endswith(" of toy: input items, models none; 0 kept, 0 dropped, 0 failed before; no request cache")
    assert "failed: ValueError: bad text bad b (" in failure
    assert ": 1 kept, 0 dropped, 1 failed; 2 records now, in " in end and "; 1 failed with: ValueError: bad" in end
    assert caplog.messages == []
    assert logging.getLogger("agentsys").level == logging.NOTSET


def test_a_resumed_run_appends(tmp_path: Path) -> None:
    out = tmp_path / "run"
    collect(graph_of(echo), ["a"], out, options=OPTIONS)
    collect(graph_of(echo), ["a", "b"], out, options=OPTIONS)
    starts = [line for line in log_lines(out) if line.startswith("start of run")]
    assert ["1 kept, 0 dropped, 0 failed before" in line for line in starts] == [False, True]
    assert find_damage(out) == []
    (unpack_shards(out) / "traces-00000.jsonl").open("ab").write(b"torn")
    assert repair_run(out)[1]
    assert len(log_lines(out)) == 4, "a repair leaves it as it is"


def test_it_does_not_grow_with_the_records(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(events, "FIRST_FAILURES", 3)
    records = [f"bad {number}" for number in range(12)] + [f"good {number}" for number in range(50)]
    options = RunOptions(no_cache=True, max_failures="none")
    collect(graph_of(echo), records, tmp_path / "run", options=options)
    lines = log_lines(tmp_path / "run")
    assert len(lines) == 6
    assert lines[4] == "more records failed: failed.jsonl has all of them, with the reasons"


def test_a_run_that_is_stopped_says_why(tmp_path: Path) -> None:
    options = RunOptions(no_cache=True, max_failures="2", in_flight=1)
    with pytest.raises(TooManyFailures):
        collect(graph_of(echo), ["bad 1", "bad 2", "c"], tmp_path / "run", options=options)
    *_, end, stop = log_lines(tmp_path / "run")
    assert " (too many failures): " in end
    assert stop.startswith("the run is stopped by TooManyFailures: 2 records failed (--max-failures 2)")


def test_a_refused_folder_gets_no_log_file(tmp_path: Path) -> None:
    (tmp_path / "README.md").write_text("mine")
    with pytest.raises(RunFolderError):
        collect(graph_of(echo), ["a"], tmp_path, options=OPTIONS)
    assert not (tmp_path / "run.log").exists()


async def test_notices_of_a_run_are_in_its_own_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Also those of a graph's node, which runs in a task of its own."""

    async def speak(state: Mapping[str, Any]) -> dict[str, Any]:
        say(f"notice {state['text']}")
        return {"reply": ""}

    for name in "ab":
        await acollect(graph_of(speak), [name], tmp_path / name, options=OPTIONS)
    assert [line for line in log_lines(tmp_path / "a") if "notice" in line] == ["notice a"]
    assert [line for line in log_lines(tmp_path / "b") if "notice" in line] == ["notice b"]
    assert capsys.readouterr().err == "notice a\nnotice b\n"


def test_calls_and_records_are_logged_for_debugging(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "replies.jsonl").write_text('{"replies": ["hello"]}')
    context = Context(f"scripted:{tmp_path / 'replies.jsonl'}")
    records = [{"id": "r", "text": "a"}]
    with caplog.at_level(logging.DEBUG, logger="agentsys.collect.events"):
        collect(graph_of(greet, Context), records, tmp_path / "run", context=context, options=OPTIONS)
    call, record = (message for message in caplog.messages if message.startswith("record"))
    assert call.startswith("record r: call greet of greeter: ") and call.endswith(" completion tokens")
    assert record.startswith("record r: kept, 1 calls, ")
    assert len(log_lines(tmp_path / "run")) == 2, "not in the file"
