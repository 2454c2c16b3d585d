"""Progress of a run: lines where there is no terminal."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from agentsys.collect import RunOptions, collect
from agentsys.collect.report import ProgressView
from tests.support.toys import call_drt, one_node, sentences, write_lines


def test_progress_is_written_while_a_run_works(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Not on a terminal: lines on stderr, which the node of the next record reads here."""
    lines: list[str] = []

    async def listen(state: Any) -> dict[str, Any]:
        lines.append(capsys.readouterr().err)
        return {"reply": "fine"}

    def run(name: str) -> str:
        lines.clear()
        options = RunOptions(no_cache=True, in_flight=1)
        with ProgressView() as view:
            collect(one_node(listen), [f"t{i}" for i in range(6)], tmp_path / name, options=options, watch=view)
        return "".join(lines)

    assert run("short") + capsys.readouterr().err == ""  # it ends before the first line
    monkeypatch.setattr("agentsys.collect.report.LINE_SECONDS", 0)
    assert re.search(r"^\d+ s: 1 records done, 1 in progress, 1 kept, ", run("long"), re.MULTILINE)
    last = capsys.readouterr().err.splitlines()[-1]
    assert re.fullmatch(r"\d+ s: 6 records done, 0 in progress, 6 kept, 0 dropped, 0 failed, 0 calls, .*/s", last)


def test_a_command_shows_its_progress(
    tmp_path: Path, model: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("agentsys.collect.report.LINE_SECONDS", 0)
    records = write_lines(tmp_path / "in.jsonl", sentences(2))
    code, out, err = call_drt(capsys, "--model", model, "--input", records, "--out", tmp_path / "run", "--no-cache")
    assert code == 0
    assert "1 records done" in err and "2 records done" in err
    assert "records done" not in out
