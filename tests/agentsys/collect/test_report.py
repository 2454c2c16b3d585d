"""The end of a run: the table with each outcome's reasons, and one line where nothing was processed."""

from __future__ import annotations

import asyncio
import io
import os
import signal
import warnings
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from agentsys.collect import RunOptions, Summary, collect
from agentsys.collect.command import CollectOptions, finish, run_with_view
from agentsys.collect.report import describe_nothing, print_summary
from agentsys.commands import command, run_app
from agentsys.graphs.crat.measures import summarize
from agentsys.traces import read_traces
from tests.support.calls import make_call
from tests.support.greeter import UNCACHED
from tests.support.toys import one_error, one_node, write_lines

Command = Callable[..., tuple[int, str, str]]


async def choosy(state: Any) -> dict[str, Any]:
    if state["text"] == "stop":
        os.kill(os.getpid(), signal.SIGINT)
        await asyncio.sleep(0.05)
        from agentsys.recorder import Stopped

        raise Stopped
    if state["text"].startswith("fail"):
        raise LookupError(f"[bold]{state['text']}\x1b")
    return {"dropped": "too dull"} if state["text"].startswith("drop") else {"reply": "fine"}


@pytest.fixture
def call(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Command:
    """A command of the user's over a file in.jsonl with these texts. Returns exit code, stdout and stderr."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "200")

    def main(run: CollectOptions) -> None:
        run = replace(run, no_cache=True, in_flight=1)
        summary = run_with_view(one_node(choosy), run.input, run, None)
        finish(summary, run, summarize(read_traces(summary.out)))

    def run_command(*texts: str, arguments: tuple[str, ...] = ("--input", "in.jsonl")) -> tuple[int, str, str]:
        write_lines(tmp_path / "in.jsonl", [{"id": text, "text": text} for text in texts])
        code = run_app(command(main), [*arguments, "--out", "run"])
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return run_command


def cells(out: str) -> list[list[str]]:
    """The rows of the printed table."""
    return [[cell.rstrip() for cell in line.split("│")[1:-1]] for line in out.splitlines() if line.startswith("│")]


def test_each_outcome_has_its_reasons_below_it(call: Command) -> None:
    code, out, _ = call("keep", "drop 1", "drop 2", "fail 1", "fail 2")
    assert code == 3
    rows = [(name[1:], value.strip()) for name, value in cells(out)]
    assert rows[:3] == [("kept", "1"), ("dropped", "2"), ("  too dull", "2")]
    assert rows[3] == ("failed", "2")
    assert rows[4][0].startswith("  LookupError: [bold]fail ")  # no markup, no control characters
    assert "\\x1b" in rows[4][0] and rows[4][1] == "1"
    assert "\nfailed records, with reasons: run/failed.jsonl\n" in out


def test_a_short_run_ends_with_a_kept_record_and_the_data_card(call: Command) -> None:
    _, out, _ = call("drop", "keep \x1b[2Jthis", "keep that")
    _, _, end = out.partition("└")
    assert end.splitlines()[1:] == [
        "",
        "record keep \\x1b[2Jthis (kept)",
        "",
        "text: keep \\x1b[2Jthis",
        "",
        "reply: fine",
        "",
        "data card: run/README.md",
        "page: run/view.html",
    ]


def test_a_long_run_or_one_without_kept_records_shows_none(call: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    _, out, _ = call("drop")
    assert "record " not in out and out.endswith("data card: run/README.md\npage: run/view.html\n")
    monkeypatch.setattr("agentsys.collect.report.SHOW_RECORD_BELOW", 2)
    _, out, _ = call("keep", "keep 2")
    assert "record keep" not in out and out.endswith("data card: run/README.md\npage: run/view.html\n")


def test_a_record_is_shown_on_a_console_without_its_characters(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    monkeypatch.setattr("sys.stdout", file)
    summary = collect(one_node(choosy), ["月"], tmp_path / "run", options=UNCACHED)
    print_summary(summary, None)
    file.flush()
    assert b"text: \\u6708" in file.buffer.getvalue()  # type: ignore[attr-defined]


def test_the_rates_of_the_engine_are_beside_those_of_the_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    summary = Summary(tmp_path, "id", processed=1, dropped=1, seconds=10.0)
    times = {"prompt_seconds": 2.0, "generation_seconds": 4.0}
    for measured in ({**times, "cached_tokens": 50}, {}, {**times, "cache_hit": True}):
        summary.add_call(make_call("k", prompt_tokens=150, completion_tokens=60, measured=measured))
    print_summary(summary, None)
    rows = {name.strip(): value.strip() for name, value in cells(capsys.readouterr().out)}
    assert rows["tokens per second"] == "12.0 generated, 25.0 prompt read"
    assert rows["per sequence, by the engine"] == "15.0 generated, 50.0 prompt read"


def test_without_times_of_the_engine_there_is_no_row_of_them(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    print_summary(Summary(tmp_path, "id", processed=1, dropped=1, seconds=10.0), None)
    out = capsys.readouterr().out
    assert "tokens per second" in out and "per sequence" not in out


def test_reasons_are_counted_by_outcome_and_together(tmp_path: Path) -> None:
    summary = Summary(tmp_path, "id")
    for outcome, reason in (("kept", None), ("dropped", "dull"), ("failed", "dull"), ("failed", "bad")):
        summary.add_record(outcome, reason)  # type: ignore[arg-type]
    assert (summary.processed, summary.kept, summary.dropped, summary.failed) == (4, 1, 1, 2)
    assert (summary.dropped_reasons, summary.failed_reasons) == ({"dull": 1}, {"dull": 1, "bad": 1})
    assert summary.reasons == {"dull": 2, "bad": 1}


def test_an_empty_file_is_one_line(call: Command) -> None:
    assert call() == (0, "no records in in.jsonl: nothing was run; check the file\n", "")


def test_a_run_that_was_finished_before_shows_only_what_the_folder_has(call: Command) -> None:
    call("keep", "drop")
    code, out, err = call("keep", "drop")
    line, _, table = out.partition("\n")
    assert (code, err) == (0, "")
    assert line == "nothing to do: all records of in.jsonl were finished before (1 kept, 1 dropped, 0 failed)"
    assert "tokens per second" not in table and "sentences" in table  # the figures of the system's finished records


def test_a_failed_run_that_is_repeated_names_the_retry(call: Command) -> None:
    call("fail")
    code, out, _ = call("fail")
    assert code == 3
    assert out.splitlines() == [
        "nothing to do: all records of in.jsonl were finished before (0 kept, 0 dropped, 1 failed); --retry-failed "
        "runs the failed ones again",
        "failed records, with reasons: run/failed.jsonl",
    ]


def test_a_run_that_is_stopped_before_its_first_record_is_one_line(call: Command) -> None:
    code, out, err = call("stop")
    assert code == 130
    assert out == "stopped before a record was finished (0 kept, 0 dropped, 0 failed in earlier runs)\n"
    assert err == "stopped: interrupted; rerun the same command to resume\n"


def test_the_figures_of_a_system_are_left_out_without_finished_records(call: Command) -> None:
    code, out, _ = call("fail")
    assert code == 3
    assert "failed" in out and "sentences" not in out


def test_where_the_records_came_from_can_be_left_out(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    summary = collect(one_node(choosy), [], tmp_path / "run", options=UNCACHED)
    print_summary(summary, None, [("rows", "0")])
    assert capsys.readouterr().out == "no records in the input: nothing was run; check the file\n"
    assert describe_nothing(replace(summary, skipped=2, kept=2), "a.csv").startswith(
        "nothing to do: all records of a.csv"
    )


def test_a_command_without_input_asks_for_it(call: Command) -> None:
    code, out, err = call(arguments=())
    assert (code, out) == (2, "")
    assert one_error(err) == "--input: give a file of records, such as records.jsonl"
    assert not Path("run").exists()


async def test_collect_in_a_running_event_loop_says_what_to_await(tmp_path: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(RuntimeError, match=r"an event loop runs already.*`await agentsys\.acollect\(\.\.\.\)`"):
            collect(one_node(choosy), ["keep"], tmp_path / "run", options=RunOptions(no_cache=True))
    assert not (tmp_path / "run").exists()
