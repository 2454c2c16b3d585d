"""kill -9 in the middle of each graph's collect command: the resumed run is the one that was never broken."""

from __future__ import annotations

import random
import signal
import sqlite3
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

import orjson
import pytest

from tests.support.extras import skip_without
from tests.support.kills import KILLED, Killed, Running, wait_for_end
from tests.support.toys import outcomes, paid_calls, read_manifest

MOMENTS = (0.03, 0.5, 0.9)
"""When a process is killed, as shares of all calls: in the first ones, in the middle, and near the end."""

Run = Callable[[str, int | None], int | None]


@pytest.fixture
def run(graph: Killed, tmp_path: Path) -> Iterator[Run]:
    """Runs the command, to its end, or until so many calls were made: then it is killed. Returns the exit code."""
    started: list[Running] = []
    orphans: list[int] = []

    def run_command(name: str, calls: int | None = None) -> int | None:
        log = tmp_path / f"{name}.log"
        process = Running(graph, graph.options(tmp_path, name), tmp_path / f"{name}.txt", log, calls)
        started.append(process)
        if calls is None:
            return process.wait()
        process.wait(until=lambda: len(paid_calls(log)) >= calls)
        orphans.extend(process.kill())
        return process.wait()

    yield run_command
    for process in started:
        process.kill()
    assert not wait_for_end(orphans), "no process outlives the one that started it"


def committed_calls(cache: Path) -> int:
    with closing(sqlite3.connect(cache)) as connection:
        (count,) = connection.execute("SELECT count(*) FROM calls").fetchone()
    return int(count)


def file_names(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))


@pytest.mark.timeout(300)
@pytest.mark.parametrize("graph", KILLED, ids=lambda graph: graph.name)
def test_a_killed_run_is_resumed_as_if_unbroken(graph: Killed, run: Run, tmp_path: Path) -> None:
    skip_without(*graph.extras)
    code = run("whole", None)
    assert code in (0, 3), (tmp_path / "whole.txt").read_text()
    needed = [call for _, call in paid_calls(tmp_path / "whole.log")]
    assert len(needed) == len(set(needed)) > 100

    log, cache = tmp_path / "killed.log", tmp_path / "killed.sqlite"
    rng = random.Random(graph.name)
    committed = [0]
    moments = MOMENTS[1:] if graph.has_pool else MOMENTS  # the libraries of a pool take seconds to load
    for share in moments:
        moment = 1 + round(len(needed) * share) + rng.randrange(5)
        assert run("killed", moment) == -signal.SIGKILL, (tmp_path / "killed.txt").read_text()
        committed.append(committed_calls(cache))
    assert run("killed", None) == code, (tmp_path / "killed.txt").read_text()

    lines = outcomes(tmp_path / "killed")
    assert lines == outcomes(tmp_path / "whole"), "byte for byte, the measured parts aside"
    ids = [orjson.loads(line)["id"] for line in lines]
    assert len(ids) == len(set(ids))
    counts = read_manifest(tmp_path / "killed")["counts"]
    assert counts == read_manifest(tmp_path / "whole")["counts"]
    assert Counter(counts) == Counter(orjson.loads(line)["outcome"] for line in lines)
    assert file_names(tmp_path / "killed") == file_names(tmp_path / "whole")

    calls = paid_calls(log)
    assert {call for _, call in calls} == set(needed)
    made = Counter(process for process, _ in calls)
    later = [{call for _, call in calls[i:]} for i in range(1, len(calls) + 1)]
    again = Counter(process for (process, call), rest in zip(calls, later, strict=True) if call in rest)
    processes = list(dict.fromkeys(process for process, _ in calls))
    assert len(processes) == len(moments) + 1
    for i, process in enumerate(processes[:-1]):
        lost = made[process] - (committed[i + 1] - committed[i])
        assert again[process] == lost <= graph.under_way, "no finished call is paid again"
    assert again[processes[-1]] == 0 < again.total()
