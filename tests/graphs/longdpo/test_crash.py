"""kill -9 in the middle of LongDPO's trees: the resumed run gives the same trees from the request cache."""

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
from tests.support.paths import ROOT
from tests.support.toys import environment, outcomes, paid_calls, write_lines

KILLS = 5
REQUESTS = 6
WIDTH = PARALLEL = 3
SEARCH = ["--width", WIDTH, "--depth", 3, "--eta", 1, "--simulations", 10, "--parallel", PARALLEL, "--lookahead", 2]
JUDGE = ["--weights", "stated"]


Start = Callable[[str], subprocess.Popen[str]]


@pytest.fixture
def start_run(tmp_path: Path) -> Iterator[Start]:
    """Starts a collect run in the folder of this name, with its own request cache and log."""
    processes: list[subprocess.Popen[str]] = []

    def start(name: str) -> subprocess.Popen[str]:
        requests = tmp_path / "requests.jsonl"
        files = ["--input", requests, "--out", tmp_path / name, "--cache", tmp_path / f"{name}.sqlite"]
        model = f"langchain:tests.support.toys:TreeChatModel?log={tmp_path / name}.log"
        command = [sys.executable, ROOT / "graphs" / "longdpo_collect.py", "--model", model, *files, *SEARCH, *JUDGE]
        process = subprocess.Popen(
            [*map(str, command)],
            env=environment(tmp_path / "cache"),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        )
        processes.append(process)
        return process

    yield start
    for process in processes:
        process.kill()
        process.communicate()


def wait_for_success(process: subprocess.Popen[str]) -> None:
    _, stderr = process.communicate(timeout=120)
    assert process.returncode == 0, stderr


def test_killed_trees_come_back_as_they_were(start_run: Start, tmp_path: Path) -> None:
    requests = [{"id": f"r{i}", "prompt": f"Request {i}", "length": 300} for i in range(REQUESTS)]
    write_lines(tmp_path / "requests.jsonl", requests)
    wait_for_success(start_run("whole"))
    calls_needed = len(paid_calls(tmp_path / "whole.log"))

    log = tmp_path / "killed.log"
    for moment in sorted(random.Random(9).sample(range(1, calls_needed - 100), KILLS)):
        process = start_run("killed")
        while len(paid_calls(log)) < moment and process.poll() is None:
            time.sleep(0.002)
        process.kill()
        assert process.wait(60) == -signal.SIGKILL, process.communicate()
    wait_for_success(start_run("killed"))

    assert outcomes(tmp_path / "killed") == outcomes(tmp_path / "whole")
    trees = [trace.tree or [] for trace in read_traces(tmp_path / "killed")]
    assert len(trees) == REQUESTS and all(node["visits"] for tree in trees for node in tree[:1])
    calls = paid_calls(log)
    lost = Counter(process for i, (process, call) in enumerate(calls) if call in {c for _, c in calls[i + 1 :]})
    assert {call for _, call in calls} == {call for _, call in paid_calls(tmp_path / "whole.log")}
    assert 0 < lost.total() == len(calls) - calls_needed, "no finished call is paid for twice"
    assert max(lost.values()) <= REQUESTS * PARALLEL * WIDTH, "only what was in flight"
