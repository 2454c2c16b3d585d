"""The log file of a run, and what a program sees of the package's messages."""

from __future__ import annotations

import asyncio
import logging
import subprocess
import sys
from pathlib import Path

import pytest

from agentsys import logs
from agentsys.display import note, say
from agentsys.logs import RunLog
from agentsys.models.access import mask_key
from tests.support.paths import ROOT


def lines_of(path: Path) -> list[str]:
    """The lines of a log file without their times."""
    return [line.partition(" ")[2] for line in path.read_text().splitlines()]


def test_a_line_has_its_time(tmp_path: Path) -> None:
    log = RunLog(mask_key)
    log.open(tmp_path / "run.log")
    note("hello\x1b[2J\nworld")
    log.close()
    time, _, text = (tmp_path / "run.log").read_text().partition(" ")
    assert len(time) == len("2026-01-31T12:00:00+00:00") and time[10] == "T"
    assert text == "hello\\x1b[2J world\n"


def test_lines_before_the_file_is_open_are_not_lost(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "run.log").write_text("t earlier\n")
    log = RunLog(mask_key)
    say("the model starts")
    log.open(tmp_path / "run.log")
    note("the run starts")
    log.close()
    say("after")
    note("after")
    assert lines_of(tmp_path / "run.log") == ["earlier", "the model starts", "the run starts"]
    assert capsys.readouterr().err == "the model starts\nafter\n"


def test_a_key_is_never_in_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AGENTSYS_API_KEY", "sk-very-secret-12345")
    log = RunLog(mask_key)
    log.open(tmp_path / "run.log")
    note("refused: sk-very-secret-12345 and very-secret")
    log.close()
    assert lines_of(tmp_path / "run.log") == ["refused: *** and ***"]


def test_it_does_not_grow_without_bound(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(logs, "MAX_BYTES", 1000)
    for _ in range(2):
        log = RunLog(mask_key)
        log.open(tmp_path / "run.log")
        for _ in range(100):
            note("x" * 50)
        log.close()
    data = (tmp_path / "run.log").read_bytes()
    assert 900 < len(data) < 1100
    assert data.endswith(b"the log is full: nothing more is written to it\n")


def test_two_runs_of_a_process_do_not_share_a_file(tmp_path: Path) -> None:
    """Threads and tasks of a run write to its file."""

    async def run(name: str) -> None:
        log = RunLog(mask_key)
        log.open(tmp_path / name)
        for number in range(3):
            await asyncio.gather(asyncio.to_thread(note, f"{name} thread {number}"), asyncio.sleep(0.001))
            note(f"{name} {number}")
        log.close()

    async def main() -> None:
        await asyncio.gather(run("a"), run("b"))

    asyncio.run(main())
    for name in "ab":
        assert lines_of(tmp_path / name) == [f"{name}{kind} {n}" for n in range(3) for kind in (" thread", "")]


def test_notices_are_messages_of_the_logger_agentsys(
    caplog: pytest.LogCaptureFixture, capsys: pytest.CaptureFixture[str]
) -> None:
    say("100% ready")
    note("hidden")
    assert capsys.readouterr().err == "100% ready\n" and caplog.messages == []
    with caplog.at_level(logging.INFO, logger="agentsys"):
        say("a", "b")
        note("c")
    assert caplog.record_tuples == [("agentsys", logging.INFO, text) for text in "abc"]
    assert capsys.readouterr().err == "", "the program's handlers show them"


@pytest.mark.parametrize(
    ("setup", "output"),
    [
        ("", "notice\n"),
        ("logging.basicConfig()", "notice\n"),
        ("logging.basicConfig(level=logging.INFO)", "INFO:agentsys:notice\nINFO:agentsys:event\n"),
        ("logging.getLogger().setLevel(logging.INFO)", "notice\n"),
        (
            "logger = logging.getLogger('agentsys'); logger.setLevel(20); logger.addHandler(logging.NullHandler())",
            "",
        ),
    ],
)
def test_a_program_sees_a_notice_once(setup: str, output: str) -> None:
    code = f"import logging; from agentsys.display import note, say; {setup or 'pass'}\nsay('notice'); note('event')"
    run = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert (run.stdout, run.stderr) == ("", output)
