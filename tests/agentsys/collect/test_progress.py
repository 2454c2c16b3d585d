"""Progress of a run: a bar on a terminal, lines elsewhere, and a line for each finished record."""

from __future__ import annotations

import io
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from langgraph.graph import START, StateGraph
from typing_extensions import TypedDict

from agentsys import progress
from agentsys.collect import RunOptions, Summary, collect, report
from agentsys.collect.command import CollectOptions, run_with_view
from agentsys.collect.limits import Price
from agentsys.collect.report import ProgressView
from agentsys.console import Console
from agentsys.records import Record
from tests.support.calls import make_call, make_trace
from tests.support.toys import sentences, write_lines

OPTIONS = RunOptions(no_cache=True, in_flight=1)


@pytest.fixture(autouse=True)
def one_record_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("agentsys.collect.runner.RECORDS_PER_REQUEST", 1)


class State(TypedDict, total=False):
    text: str
    dropped: str
    trans: str
    steps: list[Any]


def translator(node: Any) -> Any:
    """A graph of one node, whose result is that of a system with scored steps."""
    builder = StateGraph(State)
    builder.add_node("node", node)
    builder.add_edge(START, "node")
    return builder.compile(name="toy")


async def echo(state: Mapping[str, Any]) -> dict[str, Any]:
    text = str(state["text"])
    return {"dropped": "dull"} if "dull" in text else {"trans": text.upper(), "steps": [{"score": len(text)}]}


def terminal(width: int = 60) -> Console:
    return Console(file=io.StringIO(), force_terminal=True, width=width, color_system=None)


def screen(console: Console) -> list[str]:
    """What was written, without the codes that move the cursor."""
    assert isinstance(console.file, io.StringIO)
    return re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", console.file.getvalue().replace("\r", "\n")).split("\n")


def test_each_finished_record_is_a_line_while_a_run_works(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Not on a terminal: the node of the next record reads what was written so far."""
    seen: list[str] = []

    async def listen(state: Mapping[str, Any]) -> dict[str, Any]:
        seen.append(capsys.readouterr().err)
        return await echo(state)

    records = [{"id": "a", "text": "ox"}, {"id": "b", "text": "dull"}, {"id": "c", "text": "c" * 99}]
    with ProgressView() as view:
        collect(translator(listen), records, tmp_path / "run", options=OPTIONS, watch=view)
    assert seen == ["", "a kept, score 2: ox → OX\n", "b dropped (dull): dull\n"]
    assert capsys.readouterr().err == f"c kept, score 99: {'c' * 59}… → {'C' * 59}…\n"


def test_after_the_first_records_there_is_a_line_now_and_then(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(report, "FIRST_RECORDS", 2)
    with ProgressView() as view:
        collect(translator(echo), list("abcde"), tmp_path / "run", options=OPTIONS, watch=view)
    assert len(capsys.readouterr().err.splitlines()) == 2


def test_lines_have_counts_total_and_remaining_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(progress, "LINE_SECONDS", 0)
    with ProgressView(total=3) as view:
        collect(translator(echo), list("abc"), tmp_path / "run", options=OPTIONS, watch=view)
    lines = [line for line in capsys.readouterr().err.splitlines() if "records done" in line]
    assert re.match(r"\d+ s: 0 of 3 records done, 1 in progress, 0 kept, ", lines[0])
    assert re.match(r"\d+ s: 1 of 3 records done, about 0 s left, 0 in progress, 1 kept, ", lines[1])
    assert re.fullmatch(
        r"\d+ s: 3 of 3 records done, about 0 s left, 0 in progress, 3 kept, 0 dropped, 0 failed; 0 calls, 0 tokens, "
        r"0 tokens/s generated, 0 read",
        lines[-1],
    )


def test_a_terminal_shows_the_bar_the_record_and_its_result(tmp_path: Path) -> None:
    console = terminal()
    seen: list[str] = []

    async def listen(state: Mapping[str, Any]) -> dict[str, Any]:
        view._progress._surface._live.refresh()
        seen.append("\n".join(screen(console)))
        return await echo(state)

    records = [{"id": "a", "text": "ox"}, {"id": "b", "text": "long " * 50}]
    with ProgressView(total=2, console=console) as view:
        collect(translator(listen), records, tmp_path / "run", options=OPTIONS, watch=view)
    assert "0 of 2 records" in seen[0] and "now: ox" in seen[0] and "0 kept" in seen[0]
    assert "1 of 2 records" in seen[1] and "now: long long" in seen[1] and "a kept, score 2: ox → OX" in seen[1]
    assert "about" in seen[1] and "left" in seen[1]
    lines = screen(console)
    assert any("2 of 2 records" in line for line in lines)
    assert max(map(len, lines)) <= 60  # cut off, never wrapped
    assert any(line.startswith("now: long") and line.endswith("…") for line in lines)


def test_texts_cannot_control_the_terminal(tmp_path: Path) -> None:
    console = terminal()
    with ProgressView(total=1, console=console) as view:
        collect(translator(echo), ["[bold]a\x1b]0;title\x07"], tmp_path / "run", options=OPTIONS, watch=view)
    assert isinstance(console.file, io.StringIO)
    assert "\x1b]0;" not in console.file.getvalue() and "[bold]a\\x1b]0;title" in console.file.getvalue()


class Clock:
    """A clock that a test moves."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 100.0
        monkeypatch.setattr("time.perf_counter", lambda: self.now)


def test_the_rates_are_those_of_tokens_generated_and_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock(monkeypatch)
    console = Console(file=io.StringIO(), width=200)
    view = ProgressView(console=console)
    summary = Summary(tmp_path, "run", price=Price(1.0, 100.0))
    clock.now += 5
    view(summary, Record("a", {"text": "t"}, "item:1"))
    call = make_call("k", prompt_tokens=500, completion_tokens=30, measured={"cached_tokens": 100})
    summary.add_call(call)
    clock.now += 10
    view(summary, call)
    assert isinstance(console.file, io.StringIO)
    assert console.file.getvalue() == (
        "15 s: 0 records done, 1 in progress, 0 kept, 0 dropped, 0 failed; 1 calls, 30 tokens, "
        "3 tokens/s generated, 40 read, cost 0.0035\n"
    )


def test_the_remaining_time_is_that_of_the_records_of_this_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither the start of the model nor the records of earlier runs and refused ones make it shorter or longer."""
    clock = Clock(monkeypatch)
    console = Console(file=io.StringIO(), width=200)
    view = ProgressView(total=20, console=console)
    summary = Summary(tmp_path, "run", skipped=10)
    clock.now += 50
    view(summary, Record("a", {}, "item:1"))
    clock.now += 20
    summary.add_record("kept", None)
    summary.add_record("failed", "the line is not JSON")
    view(summary, make_trace(id="a"))
    assert isinstance(console.file, io.StringIO)
    assert "70 s: 12 of 20 records done, about 3 min left" in console.file.getvalue()  # 8 times 20 s


def test_the_most_frequent_failures_are_shown(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(progress, "LINE_SECONDS", 0)
    console = Console(file=io.StringIO(), width=500)
    view = ProgressView(console=console)
    summary = Summary(tmp_path, "run")
    for reason, count in {"a": 1, "bad \x1b[2J": 3, "c" * 99: 2, "d": 1}.items():
        for _ in range(count):
            summary.add_record("failed", reason)
    view(summary, None)
    assert isinstance(console.file, io.StringIO)
    assert console.file.getvalue().endswith(f"; failed: 3 x bad \\x1b[2J, 2 x {'c' * 59}…, 1 x a and 1 more\n")


def test_a_command_knows_the_total(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(progress, "LINE_SECONDS", 0)
    records = write_lines(tmp_path / "in.jsonl", sentences(2))
    options = CollectOptions(no_cache=True, input=records, out=tmp_path / "run")
    run_with_view(translator(echo), options.input, options, None)
    captured = capsys.readouterr()
    assert "1 of 2 records done" in captured.err and "2 of 2 records done" in captured.err
    assert captured.out == ""
