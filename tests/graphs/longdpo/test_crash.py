"""kill -9 in the middle of LongDPO's trees: they come back from the request cache as the same trees."""

from __future__ import annotations

import random
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from agentsys.traces import read_traces
from tests.support.toys import ROOT, environment, outcomes, paid, write_lines

KILLS = 5
REQUESTS = 6
WIDTH = PARALLEL = 3
SEARCH = ["--width", WIDTH, "--depth", 3, "--eta", 1, "--simulations", 10, "--parallel", PARALLEL, "--lookahead", 2]
JUDGE = ["--weights", "stated"]


Begin = Callable[[str], subprocess.Popen[str]]


@pytest.fixture
def begin(tmp_path: Path) -> Iterator[Begin]:
    """Starts a collect run in the folder of that name, with a request cache and a log of its own; none outlives us."""
    begun: list[subprocess.Popen[str]] = []

    def start(name: str) -> subprocess.Popen[str]:
        asked = tmp_path / "asked.jsonl"
        here = ["--input", asked, "--out", tmp_path / name, "--cache", tmp_path / f"{name}.sqlite"]
        model = f"langchain:toys:TreeChatModel?log={tmp_path / name}.log"
        command = [sys.executable, ROOT / "graphs" / "longdpo_collect.py", "--model", model, *here, *SEARCH, *JUDGE]
        process = subprocess.Popen(
            [*map(str, command)],
            env=environment(tmp_path / "cache"),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        )
        begun.append(process)
        return process

    yield start
    for process in begun:
        process.kill()
        process.communicate()


def succeeds(process: subprocess.Popen[str]) -> None:
    _, said = process.communicate(timeout=120)
    assert process.returncode == 0, said


def test_killed_trees_come_back_as_they_were(begin: Begin, tmp_path: Path) -> None:
    requests = [{"id": f"r{i}", "prompt": f"Request {i}", "length": 300} for i in range(REQUESTS)]
    write_lines(tmp_path / "asked.jsonl", requests)
    succeeds(begin("whole"))
    needed = len(paid(tmp_path / "whole.log"))

    log = tmp_path / "killed.log"
    for moment in sorted(random.Random(9).sample(range(1, needed - 100), KILLS)):
        process = begin("killed")
        while len(paid(log)) < moment and process.poll() is None:
            time.sleep(0.002)
        process.kill()
        assert process.wait(60) == -signal.SIGKILL, process.communicate()
    succeeds(begin("killed"))

    assert outcomes(tmp_path / "killed") == outcomes(tmp_path / "whole")
    trees = [trace.tree or [] for trace in read_traces(tmp_path / "killed")]
    assert len(trees) == REQUESTS and all(node["visits"] for tree in trees for node in tree[:1])
    calls = paid(log)
    lost = Counter(process for i, (process, call) in enumerate(calls) if call in {c for _, c in calls[i + 1 :]})
    assert {call for _, call in calls} == {call for _, call in paid(tmp_path / "whole.log")}
    assert 0 < lost.total() == len(calls) - needed, "no finished call is paid for twice"
    assert max(lost.values()) <= REQUESTS * PARALLEL * WIDTH, "only what was in flight"
