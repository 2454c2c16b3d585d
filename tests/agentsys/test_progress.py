"""One display of progress: a bar on a terminal and in a notebook, a line now and then elsewhere."""

from __future__ import annotations

import io
import os
import pty
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from agentsys import progress
from agentsys.console import Console
from agentsys.progress import Progress, describe_duration
from tests.support.paths import ROOT


class Clock:
    """A clock that a test moves."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 100.0
        monkeypatch.setattr("time.perf_counter", lambda: self.now)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    return Clock(monkeypatch)


def log() -> Console:
    return Console(file=io.StringIO(), width=60)


def written(console: Console) -> list[str]:
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue().splitlines()


def test_a_log_has_a_line_every_ten_seconds(clock: Clock) -> None:
    console = log()
    with Progress("rows", 100_000, console=console) as view:
        for done in range(500, 35_001, 500):
            clock.now += 0.5
            view.update(done)
    assert written(console) == [
        "10 s: 10,500 of 100,000 rows done, about 90 s left, 1,000 rows/s",
        "21 s: 21,000 of 100,000 rows done, about 79 s left, 1,000 rows/s",
        "32 s: 31,500 of 100,000 rows done, about 68 s left, 1,000 rows/s",
    ]


def test_a_short_task_has_no_line(clock: Clock) -> None:
    console = log()
    with Progress("rows", 10, console=console) as view:
        for done in range(1, 11):
            clock.now += 0.9
            view.update(done)
    assert written(console) == []


def test_what_was_done_before_takes_no_time(clock: Clock, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(progress, "LINE_SECONDS", 0)
    console = log()
    with Progress("tokens", 1000, done=900, step="scoring", console=console) as view:
        clock.now += 10
        view.update(920)
    assert written(console) == ["10 s: scoring: 920 of 1,000 tokens done, about 40 s left, 2.0 tokens/s"]


def test_without_a_total_nothing_is_left(clock: Clock, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(progress, "LINE_SECONDS", 0)
    console = log()
    with Progress("rows", console=console) as view:
        clock.now += 2
        view.update(0)
        clock.now += 2
        view.update(8)
    assert written(console) == ["2 s: 0 rows done", "4 s: 8 rows done, 2.0 rows/s"]


def test_a_step_begins_anew(clock: Clock, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(progress, "LINE_SECONDS", 0)
    console = log()
    with Progress("documents", 10, console=console) as view:
        clock.now += 100
        view.update(10)
        view.begin("passages", 40, step="embedding")
        clock.now += 1
        view.update(20)
    assert written(console)[1] == "101 s: embedding: 20 of 40 passages done, about 1 s left, 20 passages/s"


def test_texts_of_others_are_escaped(clock: Clock, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(progress, "LINE_SECONDS", 0)
    console = log()
    with Progress("rows", step="[b]a\x1b[2J", details=lambda: ["\x07[/b]"], console=console) as view:
        clock.now += 1
        view.update(1)
    assert written(console) == [r"1 s: [b]a\x1b[2J: 1 rows done, \x07[/b]"]


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0, "0 s"), (89.4, "89 s"), (90, "2 min"), (3600, "60 min"), (5400, "1 h 30 min"), (7260, "2 h 01 min")],
)
def test_durations_are_rounded(seconds: float, text: str) -> None:
    assert describe_duration(seconds) == text


def test_a_terminal_has_a_bar_of_its_width() -> None:
    console = Console(file=io.StringIO(), force_terminal=True, width=70, color_system=None)
    with Progress("rows", 4, step="reading", details=lambda: ["x" * 99], console=console) as view:
        view.update(2)
        assert view.is_live
        view._surface._live.refresh()  # type: ignore[attr-defined]
    assert isinstance(console.file, io.StringIO)
    text = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", console.file.getvalue().replace("\r", "\n"))
    assert re.search(r"^. ━{10} +reading 2 of 4 rows 0 s, about 0 s left *$", text, re.MULTILINE)
    assert max(map(len, text.split("\n"))) == 70 and "x…" in text
    assert console.file.getvalue().endswith("\x1b[2K"), "the bar is gone at the end"


def test_a_bar_within_another_is_below_it() -> None:
    """Weights are copied while a run's display says that the model starts; one console draws both."""
    console = Console(file=io.StringIO(), force_terminal=True, width=70, color_system=None)
    with Progress("records", 4, console=console) as outer:
        with Progress("MB", 20, step="joining") as inner:
            assert inner.console is console
            inner.update(10)
            outer._surface._live.refresh()  # type: ignore[attr-defined]
        outer.update(1)
        outer._surface._live.refresh()  # type: ignore[attr-defined]
    assert isinstance(console.file, io.StringIO)
    text = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", console.file.getvalue().replace("\r", "\n"))
    assert re.search(r" 0 of 4 records .*\n.* joining 10 of 20 MB ", text)
    assert text.rindex(" joining ") < text.rindex(" 1 of 4 records ")
    assert Progress("MB").console is not console


COUNT = """
import time
from agentsys.progress import Progress
with Progress("rows", 20) as view:
    for done in range(1, 21):
        view.update(done)
        time.sleep(0.03)
print("done")
"""


def run_on_terminal(**variables: str) -> bytes:
    """What COUNT writes to a terminal."""
    ours, theirs = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, "-c", COUNT], cwd=ROOT, env=os.environ | variables, stderr=theirs, stdout=subprocess.DEVNULL
    )
    os.close(theirs)
    output = b""
    try:
        while chunk := os.read(ours, 65536):
            output += chunk
    except OSError:  # closed
        pass
    os.close(ours)
    assert process.wait() == 0
    return output


def test_a_real_terminal_is_drawn_a_few_times_per_second() -> None:
    output = run_on_terminal(TERM="xterm", COLUMNS="100")
    drawings = output.count(b"of 20 rows")
    assert 3 <= drawings <= 20


def test_a_terminal_that_cannot_go_back_has_no_bar() -> None:
    assert run_on_terminal(TERM="dumb") == b""


def test_a_log_has_no_bar_whatever_the_color_variables_say() -> None:
    variables = os.environ | {"FORCE_COLOR": "1", "TTY_COMPATIBLE": "1"}
    run = subprocess.run(
        [sys.executable, "-c", COUNT], cwd=ROOT, env=variables, capture_output=True, text=True, check=True
    )
    assert (run.stdout, run.stderr) == ("done\n", "")


CELL = """
from typing import TypedDict
from langgraph.graph import START, StateGraph
from agentsys import acollect
from agentsys.collect import RunOptions
from agentsys.collect.report import ProgressView

class State(TypedDict, total=False):
    text: str
    trans: str

builder = StateGraph(State)
builder.add_node("node", lambda state: {"trans": state["text"].upper()})
builder.add_edge(START, "node")
with ProgressView(total=3) as view:
    graph, options = builder.compile(name="toy"), RunOptions(no_cache=True)
    await acollect(graph, ["<b>a", "b", "c"], "run", options=options, watch=view)
"""


def test_a_notebook_has_a_bar_that_is_replaced(tmp_path: Path) -> None:
    """It needs no widgets, and stays as it was at the end."""
    nbformat: Any = pytest.importorskip("nbformat")
    nbclient: Any = pytest.importorskip("nbclient")
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(CELL)])
    nbclient.NotebookClient(notebook, timeout=120, resources={"metadata": {"path": str(tmp_path)}}).execute()
    bar, *records = notebook.cells[0].outputs
    assert [output.output_type for output in (bar, *records)] == ["display_data"] * 4
    text = bar.data["text/plain"]
    assert re.match(r"█{40} 3 of 3 records \d s, about 0 s left\n0 in progress, 3 kept, 0 dropped, 0 failed\n", text)
    assert "text/html" not in bar.data
    assert records[0].data["text/plain"] == "<b>a kept: <b>a → <B>A\n" or "&lt;b&gt;a" in records[0].data["text/html"]
