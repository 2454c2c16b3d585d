"""Ctrl-C, with real processes: the first finishes the calls in progress and says how many, the second stops at once."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from agentsys.paths import cache_folder
from tests.support.paths import ROOT
from tests.support.toys import COMMAND, RULES, environment, outcomes, paid_calls, sentences, start_drt, write_lines

EMBEDDED = pytest.mark.needs("local", "weights-small")
READY = 60.0
AT_ONCE = 10.0
"""Seconds after which a process that should have ended at once counts as stuck."""


def wait_for(condition: Callable[[], bool], process: subprocess.Popen[str]) -> None:
    deadline = time.monotonic() + READY
    while not condition():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.05)


def start(folder: Path, records: int, seconds: float, *more: object) -> subprocess.Popen[str]:
    """A run whose calls take so many seconds, once its first call is in progress."""
    script, log = write_lines(folder / "replies.jsonl", RULES), folder / "calls.log"
    model = f"langchain:tests.support.toys:LoggedChatModel?script={script}&log={log}&seconds={seconds}"
    options = ("--input", write_lines(folder / "in.jsonl", sentences(records)), "--out", folder / "run", "--no-cache")
    process = start_drt(folder, "--model", model, *options, *more)
    calls = min(records, 12)  # records in progress with 8 requests
    wait_for(lambda: log.exists() and len(paid_calls(log)) >= calls, process)
    return process


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize(("records", "said"), [(1, "1 call"), (3, "3 calls"), (40, "12 calls")])
def test_two_signals(tmp_path: Path, records: int, said: str, number: int) -> None:
    process = start(tmp_path, records, 600, "--in-flight", 8)
    assert process.stderr is not None
    process.send_signal(number)
    line = process.stderr.readline()
    while "finishing" not in line:
        assert line, "it ended without the line"
        line = process.stderr.readline()
    assert line == f"finishing {said}, press Ctrl-C again to stop\n"
    assert process.poll() is None
    process.send_signal(number)
    _, err = process.communicate(timeout=AT_ONCE)
    assert process.returncode == 130
    assert err.splitlines() == [
        "error: stopped immediately; finished calls are saved: rerun the same command to resume"
    ]
    assert not outcomes(tmp_path / "run")


def test_one_signal_waits_for_what_it_said(tmp_path: Path) -> None:
    process = start(tmp_path, 3, 2)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=READY)
    assert process.returncode == 130
    assert "finishing 3 calls, press Ctrl-C again to stop\n" in err
    assert "stopped: interrupted; rerun the same command to resume\n" in err
    assert "Traceback" not in err
    assert len(paid_calls(tmp_path / "calls.log")) == 3


IMPORT = """
import os, signal, sys, threading, time

class Slow:
    def find_spec(self, name, path=None, target=None):
        if name == {module!r}:
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(5)

sys.meta_path.insert(0, Slow())
"""


@pytest.mark.parametrize("module", ["langgraph", "pydantic", "langchain_core", "agentsys.collect.runner"])
@pytest.mark.parametrize("way", ["script", "module", "command"])
def test_a_signal_while_it_loads(tmp_path: Path, module: str, way: str) -> None:
    """At most one line, and no traceback. Python imports sitecustomize before anything else."""
    (tmp_path / "sitecustomize.py").write_text(IMPORT.format(module=module))
    ways = {
        "script": [str(COMMAND)],
        "module": ["-m", "agentsys", "collect", "drt"],
        "command": [str(Path(sys.executable).parent / "agentsys"), "collect", "drt"],
    }
    env = environment(tmp_path / "cache")
    env["PYTHONPATH"] = f"{tmp_path}{os.pathsep}{env['PYTHONPATH']}"
    options = ["--model", "scripted:none.jsonl", "--input", "none.jsonl", "--out", str(tmp_path / "run")]
    done = subprocess.run(
        [sys.executable, *ways[way], *options], env=env, cwd=tmp_path, capture_output=True, text=True, timeout=READY
    )
    assert done.returncode == 130, done.stderr
    assert "Traceback" not in done.stderr
    assert re.fullmatch("(error: stopped .*\n)?", done.stderr)


def test_other_programs_keep_their_hook(tmp_path: Path) -> None:
    program = "import sys; hook = sys.excepthook; import agentsys; assert sys.excepthook is hook"
    subprocess.run([sys.executable, "-c", program], check=True, cwd=ROOT, timeout=READY)
    (tmp_path / "own.py").write_text(program)
    subprocess.run([sys.executable, tmp_path / "own.py"], check=True, env=environment(tmp_path), timeout=READY)


@EMBEDDED
@pytest.mark.parametrize("seconds", [0.0, 2.0])
def test_the_embedded_engine(tmp_path: Path, seconds: float) -> None:
    """llama.cpp's threads neither hold the process up nor crash it. It used to end in a segmentation fault."""
    records = write_lines(tmp_path / "in.jsonl", sentences(4))
    options = ("--input", records, "--out", tmp_path / "run", "--no-cache")
    env = {"AGENTSYS_CACHE": str(cache_folder())}  # where the weights are
    process = start_drt(tmp_path, "--model", "embedded:qwen2.5-coder-0.5b?max_tokens=2000", *options, env=env)
    wait_for(lambda: (tmp_path / "run" / "manifest.json").exists(), process)
    time.sleep(seconds)
    assert process.stderr is not None
    process.send_signal(signal.SIGINT)
    line = process.stderr.readline()
    while not re.match("finishing|error: stopped", line):
        assert line, "it ended without the line"
        line = process.stderr.readline()
    if line.startswith("finishing"):  # else the signal came between the manifest and the first record
        process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=AT_ONCE)
    assert process.returncode == 130
    assert "Traceback" not in err and "fault" not in err
