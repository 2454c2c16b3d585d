"""agentsys/collect/run_report.py: the report of any run, its files, and the command `agentsys report`."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from typing import Any

import orjson
import pytest

from agentsys.cli import main
from agentsys.collect import RunOptions, collect
from agentsys.collect.run_report import Panel, _places, file_line, make_report, print_report, write_report
from agentsys.collect.statistics import Section
from agentsys.console import Console
from agentsys.traces import RunFolderError
from tests.support.drt_report import DRAFTS, TEXT, steps_of, thought_of, trace, write_run
from tests.support.toys import one_error, one_node, write_lines


async def choosy(state: Any) -> dict[str, Any]:
    if state["text"].startswith("fail"):
        raise LookupError("no such word")
    return {"dropped": "too dull"} if state["text"].startswith("drop") else {"reply": "fine"}


@pytest.fixture
def toy_run(tmp_path: Path) -> Path:
    """A run of a graph of the user's: two records kept, one dropped, one failed, one without a text."""
    records = [{"text": text} for text in ("a", "b", "drop", "fail")]
    collect(one_node(choosy), [*records, {"other": "x"}], tmp_path / "toy", options=RunOptions(no_cache=True))
    return tmp_path / "toy"


@pytest.fixture
def drt_run(tmp_path: Path) -> Path:
    return write_run(
        tmp_path / "run", [trace("a", steps_of(60, 70, 92))], {"score": "stated"}, {"seconds": 2.0, "calls": 1}
    )


def test_any_run_has_a_report(toy_run: Path) -> None:
    report = write_report(toy_run)
    assert [section.title for section in report.sections] == ["Records", "Calls and tokens", "Roles"]
    data = orjson.loads((toy_run / "report.json").read_bytes())
    assert (data["version"], data["system"]) == (1, "toy")
    assert data["records"] == {"kept": 2, "dropped": 1, "failed": 2}
    assert data["reasons"]["dropped"] == {"too dull": 1}
    assert sorted(data["reasons"]["failed"].values()) == [1, 1]
    assert "drt" not in data and data["totals"]["seconds"] > 0


def test_the_papers_folder_of_the_system_adds_its_own(drt_run: Path) -> None:
    data = make_report(drt_run).data
    assert (data["system"], data["run"]) == ("drt", "f00")
    assert data["drt"]["settings"]["score"] == "stated"


@pytest.mark.parametrize("system", ["no_such_paper", "a.b", "crat", "drt_mine"])
def test_a_system_without_a_report_has_the_general_part(system: str, tmp_path: Path) -> None:
    record = trace("a", steps_of(60))
    record.system = system
    report = make_report(write_run(tmp_path / "run", [record]))
    assert [section.title for section in report.sections] == ["Records", "Calls and tokens", "Roles"]


def test_a_projection_is_a_table_and_numbers(drt_run: Path) -> None:
    report = make_report(drt_run, total=500)
    assert "Projection for 500 records, from 1" in [section.title for section in report.sections]
    assert report.data["projection"]["calls"] == 500
    assert report.data["projection"]["seconds"] == 1000


def test_a_report_replaces_the_one_before(drt_run: Path) -> None:
    write_report(drt_run)
    first = (drt_run / "report.json").read_bytes()
    write_report(drt_run)
    assert (drt_run / "report.json").read_bytes() == first
    assert {path.name for path in drt_run.iterdir()} <= {
        "manifest.json", "report.json", "report.png", "traces-00000.jsonl"
    }  # fmt: skip


def test_the_png(drt_run: Path) -> None:
    pytest.importorskip("matplotlib")
    report = write_report(drt_run)
    assert (drt_run / "report.png").read_bytes().startswith(b"\x89PNG")
    assert file_line(report) == f"report: {drt_run}/report.json and report.png"


def test_without_matplotlib_one_line_says_how_to_get_it(drt_run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr(
        "agentsys.collect.run_report.find_spec", lambda name: None if name == "matplotlib" else find(name)
    )
    report = write_report(drt_run)
    assert not (drt_run / "report.png").exists()
    assert file_line(report) == f"report: {drt_run}/report.json; pip install matplotlib adds report.png"


def test_wide_figures_go_to_the_next_row() -> None:
    widths = (1, 1, 1, 1, 2, 2, 1)
    places = _places([Panel("", lambda axes: None, width) for width in widths])
    assert places == [(0, 0), (0, 1), (0, 2), (1, 0), (1, 1), (2, 0), (2, 2)]


def test_texts_of_others_are_printed_as_they_are(capsys: pytest.CaptureFixture[str]) -> None:
    print_report([Section("A [bold]title[/]", ("", "n"), [("[red]x\x1b", "1")], "a note")], Console(width=80), "run")
    printed = capsys.readouterr().out
    assert "A [bold]title[/]" in printed and "[red]x\\x1b" in printed
    assert printed.startswith("run\n") and printed.endswith("a note\n")


def test_a_folder_without_records(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(
        RunFolderError, match=r"empty: no finished record here; name the output folder of a collect run"
    ):
        make_report(tmp_path / "empty")


def test_a_damaged_run_is_named(drt_run: Path) -> None:
    shard = drt_run / "traces-00000.jsonl"
    shard.write_bytes(shard.read_bytes() + b"no trace\n")
    with pytest.raises(RunFolderError, match=r"traces-00000.jsonl:2: not JSON .* run `agentsys check"):
        make_report(drt_run)


def test_the_command(drt_run: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    assert main(["report", str(drt_run), "--total", "10"]) == 0
    printed = capsys.readouterr().out
    for title in ("Records", "Projection for 10 records", "Steps per kept record (figure 3)", "Shape of 1 thoughts"):
        assert title in printed
    assert f"report: {drt_run}/report.json" in printed


def test_the_command_over_a_file_of_thoughts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    record = {"text": TEXT, "trans": DRAFTS[2], "thought": thought_of(DRAFTS[:3])}
    path = write_lines(tmp_path / "thoughts.jsonl", [record])
    assert main(["report", "--thoughts", str(path)]) == 0
    printed = capsys.readouterr().out
    assert "Percentiles of 1 thoughts" in printed and "Shape of 1 thoughts" in printed


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "give the folder of a run, or --thoughts FILE; not both"),
        (["run", "--thoughts", "a.jsonl"], "give the folder of a run, or --thoughts FILE; not both"),
        (["nowhere"], "nowhere: no such folder"),
        (["--thoughts", "nowhere.jsonl"], "nowhere.jsonl"),
        (["--thoughts", "wrong.jsonl"], "wrong.jsonl:1"),
        (["run", "--total", "0"], "--total"),
    ],
)
def test_a_mistake_is_one_line(
    arguments: list[str],
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "wrong.jsonl").write_text(json.dumps({"text": "a"}) + "\n")
    assert main(["report", *arguments]) == 2
    assert message in one_error(capsys.readouterr().err)
