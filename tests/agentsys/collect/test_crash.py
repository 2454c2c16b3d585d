"""Crashes of a collect run, against the real thing: kill -9, torn lines, full disks, Ctrl-C, two collectors."""

from __future__ import annotations

import os
import random
import re
import signal
import subprocess
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import orjson
import pytest

from agentsys.collect.store import RunFolder, RunFolderError
from tests.support.shards import unpack_shards
from tests.support.toys import (
    RULES,
    call_drt,
    fork_drt,
    one_error,
    outcomes,
    paid_calls,
    run_drt,
    sentences,
    start_drt,
    write_lines,
)

KILLS = 20
RECORDS = 200
IN_FLIGHT = 8
WORKERS = 12
"""Records in progress with IN_FLIGHT requests; each has at most one call in flight."""


@pytest.fixture
def records(tmp_path: Path) -> Path:
    return write_lines(tmp_path / "in.jsonl", sentences(RECORDS))


@pytest.fixture
def few_records(tmp_path: Path) -> Path:
    return write_lines(tmp_path / "few.jsonl", sentences(30))


@pytest.fixture
def script(tmp_path: Path) -> Path:
    return write_lines(tmp_path / "replies.jsonl", RULES)


@pytest.fixture
def options(tmp_path: Path, script: Path, few_records: Path) -> Callable[..., list[object]]:
    """The options of a run in the folder `name`, with its own request cache and log."""

    def make(name: str, records: Path = few_records, seconds: float = 0.0) -> list[object]:
        model = (
            f"langchain:tests.support.toys:LoggedChatModel?script={script}&log={tmp_path / name}.log&seconds={seconds}"
        )
        paths = ["--out", tmp_path / name, "--cache", tmp_path / f"{name}.sqlite", "--in-flight", IN_FLIGHT]
        return ["--model", model, "--input", records, "--min-steps", 2, *paths]

    return make


def wait_for(condition: Callable[[], bool], process: object = None) -> None:
    """Raises AssertionError after a minute, or once the process has ended."""
    end = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < end
        if isinstance(process, subprocess.Popen):
            assert process.poll() is None, process.communicate()
        time.sleep(0.002)


def files_of(folder: Path) -> dict[str, bytes]:
    """Every file in a folder with its bytes, the lock aside."""
    return {
        str(path): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file() and path.name != ".lock"
    }


def test_twenty_kills_lose_nothing(tmp_path: Path, records: Path, options: Callable[..., list[object]]) -> None:
    whole = fork_drt(*options("whole", records), output=tmp_path / "whole.txt")
    whole.join(120)
    assert whole.exitcode == 3, (tmp_path / "whole.txt").read_text()
    calls_needed = len(paid_calls(tmp_path / "whole.log"))

    rng = random.Random(20)
    log = tmp_path / "killed.log"
    arguments = options("killed", records, 0.003)
    moments = sorted(rng.sample(range(1, calls_needed - 200), KILLS))
    for moment in moments:
        process = fork_drt(*arguments, output=tmp_path / "killed.txt")
        wait_for(lambda: len(paid_calls(log)) >= moment or not process.is_alive())  # noqa: B023
        time.sleep(rng.uniform(0, 0.05))
        process.kill()
        process.join(60)
        assert process.exitcode == -signal.SIGKILL, (tmp_path / "killed.txt").read_text()
    last = fork_drt(*arguments, output=tmp_path / "killed.txt")
    last.join(120)
    assert last.exitcode == 3, (tmp_path / "killed.txt").read_text()

    kept = [orjson.loads(line)["id"] for line in outcomes(tmp_path / "killed")]
    assert sorted(kept) == sorted(f"r{i}" for i in range(RECORDS))  # each exactly once
    assert outcomes(tmp_path / "killed") == outcomes(tmp_path / "whole")
    manifest = orjson.loads((tmp_path / "killed" / "manifest.json").read_bytes())
    assert manifest["counts"] == orjson.loads((tmp_path / "whole" / "manifest.json").read_bytes())["counts"]
    assert all(manifest["counts"].values())  # all three outcomes occur

    calls = paid_calls(log)
    assert {call for _, call in calls} == {call for _, call in paid_calls(tmp_path / "whole.log")}
    repeated = Counter(process for i, (process, call) in enumerate(calls) if call in {c for _, c in calls[i + 1 :]})
    assert 0 < len(calls) - calls_needed == repeated.total()
    assert max(repeated.values()) <= WORKERS


def test_torn_last_lines_are_repaired(
    tmp_path: Path, options: Callable[..., list[object]], capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "run"
    assert call_drt(capsys, *options("run"))[0] == 3
    before, calls = outcomes(folder), len(paid_calls(tmp_path / "run.log"))
    unpack_shards(folder)
    for path in (folder / "traces-00000.jsonl", folder / "failed.jsonl"):
        lines = path.read_bytes().splitlines(keepends=True)
        path.write_bytes(b"".join(lines[:-1]) + lines[-1][: len(lines[-1]) // 2])
    assert call_drt(capsys, *options("run"))[0] == 3
    assert outcomes(folder) == before
    assert len(paid_calls(tmp_path / "run.log")) == calls  # torn records come back from the request cache
    assert all(path.read_bytes().endswith(b"\n") for path in folder.glob("*.jsonl"))


def test_a_file_that_is_one_torn_line_becomes_empty(
    tmp_path: Path, options: Callable[..., list[object]], capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "run"
    assert call_drt(capsys, *options("run"))[0] == 3
    before = outcomes(folder)
    (unpack_shards(folder) / "traces-00000.jsonl").write_bytes(b'{"version":1,"id":"r1","system":"' + b"x" * 200_000)
    assert call_drt(capsys, *options("run"))[0] == 3
    assert outcomes(folder) == before


def test_a_folder_with_a_line_that_is_not_a_trace_is_refused(
    tmp_path: Path, options: Callable[..., list[object]], capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "run"
    assert call_drt(capsys, *options("run"))[0] == 3
    with (unpack_shards(folder) / "traces-00000.jsonl").open("ab") as file:
        file.write(b'{"what": "is this"}\n')
    code, _, err = call_drt(capsys, *options("run"))
    assert code == 2
    assert "traces-00000.jsonl:30: not a trace: no version field; run `agentsys check " in one_error(err)


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 256 KB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", str(folder)], capture_output=True, check=False
    )
    if mounted.returncode:
        pytest.skip("mounting a file system is not permitted")
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True)


def remount(folder: Path, settings: str) -> None:
    subprocess.run(["mount", "-o", f"remount,{settings}", str(folder)], check=True)


@pytest.mark.parametrize("what", ["traces", "cache"])
def test_a_full_disk_is_one_error_and_the_resume_completes(
    tmp_path: Path, small_disk: Path, options: Callable[..., list[object]], records: Path, what: str
) -> None:
    place = ["--out", small_disk / "run"] if what == "traces" else ["--cache", small_disk / "requests.sqlite"]
    arguments = [*options("run", records), *place]
    folder = small_disk / "run" if what == "traces" else tmp_path / "run"
    if what == "cache":
        remount(small_disk, "size=1m")
    code, _, err = run_drt(tmp_path, *arguments)
    assert code == 2, err
    line = one_error(err)
    assert str(small_disk) in line
    assert "free some space" in line
    finished = len(outcomes(folder))
    assert 0 < finished < RECORDS
    assert all(path.read_bytes()[-1:] in (b"", b"\n") for path in folder.glob("*.jsonl"))  # no torn line

    remount(small_disk, "size=64m")
    assert run_drt(tmp_path, *arguments)[0] == 3
    ids = [orjson.loads(line)["id"] for line in outcomes(folder)]
    assert sorted(ids) == sorted(f"r{i}" for i in range(RECORDS))
    manifest = orjson.loads((folder / "manifest.json").read_bytes())
    assert sum(manifest["counts"].values()) == RECORDS


def test_a_disk_that_is_full_from_the_start_is_one_error(
    tmp_path: Path, small_disk: Path, options: Callable[..., list[object]], capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = [*options("run"), "--out", small_disk / "run"]
    remount(small_disk, "size=4k")
    code, _, err = call_drt(capsys, *arguments)
    assert code == 2
    line = one_error(err)
    assert str(small_disk / "run") in line
    assert "No space left" in line
    assert not paid_calls(tmp_path / "run.log")
    remount(small_disk, "size=64m")
    assert call_drt(capsys, *arguments)[0] == 3
    assert len(outcomes(small_disk / "run")) == 30


def test_a_disk_that_others_fill_is_one_error(
    tmp_path: Path, small_disk: Path, options: Callable[..., list[object]]
) -> None:
    arguments = [*options("run", seconds=0.05), "--out", small_disk / "run"]
    process = start_drt(tmp_path, *arguments)
    wait_for(lambda: len(paid_calls(tmp_path / "run.log")) >= WORKERS, process)
    with pytest.raises(OSError, match="No space left"), (small_disk / "other").open("wb", buffering=0) as other:
        while True:
            other.write(b"x" * 4096)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 2, err
    line = one_error(err)
    assert str(small_disk / "run") in line
    assert "No space left" in line
    (small_disk / "other").unlink()
    remount(small_disk, "size=64m")
    assert run_drt(tmp_path, *arguments)[0] == 3
    assert len(outcomes(small_disk / "run")) == 30


def test_a_read_only_folder_is_one_line(
    tmp_path: Path, small_disk: Path, options: Callable[..., list[object]], capsys: pytest.CaptureFixture[str]
) -> None:
    remount(small_disk, "ro")
    code, _, err = call_drt(capsys, *options("run"), "--out", small_disk / "run")
    remount(small_disk, "rw")
    assert code == 2
    line = one_error(err)
    assert str(small_disk / "run") in line
    assert "Read-only" in line
    assert "--out" in line
    assert not list(small_disk.iterdir())
    assert not paid_calls(tmp_path / "run.log")


@pytest.mark.parametrize("option", ["--out", "--cache"])
def test_a_place_below_a_file_is_one_line(
    tmp_path: Path, options: Callable[..., list[object]], capsys: pytest.CaptureFixture[str], option: str
) -> None:
    (tmp_path / "file").write_text("in the way")
    code, _, err = call_drt(capsys, *options("run"), option, tmp_path / "file" / "below")
    assert code == 2
    line = one_error(err)
    assert str(tmp_path / "file" / "below") in line
    assert option in line
    assert (tmp_path / "file").read_text() == "in the way"
    assert not paid_calls(tmp_path / "run.log")


def test_the_second_collector_on_a_folder_is_refused(
    tmp_path: Path, options: Callable[..., list[object]], capsys: pytest.CaptureFixture[str]
) -> None:
    first = fork_drt(*options("run", seconds=0.05), output=tmp_path / "output.txt")
    wait_for(lambda: len(paid_calls(tmp_path / "run.log")) > 0)
    code, _, err = call_drt(capsys, *options("run"))
    assert code == 2
    assert "another run is writing to this folder" in one_error(err)
    first.join(60)
    assert first.exitcode == 3  # the first run goes on undisturbed
    assert len(outcomes(tmp_path / "run")) == 30
    assert len({call for _, call in paid_calls(tmp_path / "run.log")}) == len(paid_calls(tmp_path / "run.log"))


def test_a_folder_is_free_again_once_it_is_closed(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path / "run")
    with pytest.raises(RunFolderError, match="another run is writing"):
        RunFolder(tmp_path / "run")
    folder.close()
    RunFolder(tmp_path / "run").close()


@pytest.mark.parametrize(
    ("changed", "difference"),
    [
        (["--threshold", 70], r"knobs\.threshold: 90\.0 -> 70\.0"),
        (["--target-language", "German"], r"knobs\.target_language: Chinese -> German"),
        (
            ["--draft-model", "scripted:first.jsonl?temperature=0.1"],
            r"models\.draft_model\.sampling\.temperature: None -> 0\.1",
        ),
        (["--refiner-model", "scripted:other.jsonl"], r"models\.refiner_model\.revision: \w+ -> \w+"),
        (["--model", "scripted:other.jsonl"], r"models\.\w+\.revision: \w+ -> \w+"),
    ],
)
def test_a_changed_setting_is_refused_with_its_name(
    tmp_path: Path,
    few_records: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    changed: list[object],
    difference: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.md").write_text("# user\nHow is {{ translation }} for {{ text }}?")
    write_lines(tmp_path / "first.jsonl", RULES)
    write_lines(tmp_path / "other.jsonl", RULES[::-1])
    arguments = ["--model", "scripted:first.jsonl", "--input", few_records, "--out", "run", "--cache", "cache.sqlite"]
    assert call_drt(capsys, *arguments, "--limit", 3)[0] == 0
    before = files_of(tmp_path / "run")
    code, _, err = call_drt(capsys, *arguments, *changed)
    assert code == 2
    line = one_error(err)
    assert re.search(difference, line), line
    assert "--out" in line
    assert files_of(tmp_path / "run") == before


def test_ctrl_c_drains_and_the_resume_completes(
    tmp_path: Path, options: Callable[..., list[object]], capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = options("run", seconds=0.1)
    process = start_drt(tmp_path, *arguments)
    wait_for(lambda: len(paid_calls(tmp_path / "run.log")) >= 2 * WORKERS, process)
    os.kill(process.pid, signal.SIGINT)
    before = len(paid_calls(tmp_path / "run.log"))
    _, err = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "Traceback" not in err
    assert "stopped: interrupted; rerun the same command to resume" in err
    calls = paid_calls(tmp_path / "run.log")
    assert len(calls) <= before + WORKERS  # no call starts after those in flight
    assert len(outcomes(tmp_path / "run")) < 30

    assert call_drt(capsys, *options("run"))[0] == 3
    assert len(outcomes(tmp_path / "run")) == 30
    again = [call for _, call in paid_calls(tmp_path / "run.log")]
    assert len(set(again)) == len(again)  # calls in flight were awaited, so none is paid for twice
    assert len(again) > len(calls)


def test_a_second_ctrl_c_stops_immediately(tmp_path: Path, options: Callable[..., list[object]]) -> None:
    process = start_drt(tmp_path, *options("run", seconds=3600))
    wait_for(lambda: len(paid_calls(tmp_path / "run.log")) >= 1, process)
    os.kill(process.pid, signal.SIGINT)
    time.sleep(0.3)
    assert process.poll() is None  # it waits for the calls in flight
    os.kill(process.pid, signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "Traceback" not in err
    assert "stopped immediately" in err
    assert not outcomes(tmp_path / "run")
