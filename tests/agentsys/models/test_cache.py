"""The request cache under real conditions: kills, two processes, a full disk."""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
import sqlite3
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from typer.testing import CliRunner

from agentsys.cli import app
from agentsys.commands import run_app
from agentsys.models.cache import CacheError, RequestCache, default_path


@pytest.fixture
def open_cache(tmp_path: Path) -> Iterator[Callable[..., RequestCache]]:
    """`open_cache()` opens one file per test; the fixture closes every cache."""
    caches: list[RequestCache] = []

    def make(cache_class: type[RequestCache] = RequestCache, **settings: int) -> RequestCache:
        caches.append(cache_class(tmp_path / "deep" / "requests.sqlite", **settings))
        return caches[-1]

    yield make
    for cache in caches:
        cache.close()


def key(i: int) -> bytes:
    return i.to_bytes(32, "big")


async def fill(cache: RequestCache, numbers: range, size: int = 1000) -> None:
    await asyncio.gather(*(cache.put(key(i), b"%d " % i + b"x" * size) for i in numbers))


async def test_get_and_put(open_cache) -> None:
    cache = open_cache()
    assert cache.get(key(1)) is None
    await cache.put(key(1), b"one")
    await cache.put(key(2), b"two")
    await cache.put(key(2), b"two, later")
    assert [cache.get(key(i)) for i in range(4)] == [None, b"one", b"two, later", None]
    stats = cache.stats()
    assert (stats["path"], stats["entries"]) == (str(cache.path), 2)
    assert stats["bytes"] > 0


async def test_entries_outlive_the_object_that_wrote_them(open_cache) -> None:
    first = open_cache()
    await first.put(key(1), b"one")
    first.close()
    assert open_cache().get(key(1)) == b"one"


async def test_closing_commits_pending_entries(open_cache) -> None:
    cache = open_cache()
    puts = [asyncio.ensure_future(cache.put(key(i), b"x")) for i in range(50)]
    await asyncio.sleep(0)
    cache.close()
    await asyncio.gather(*puts)
    assert open_cache().stats()["entries"] == 50
    with pytest.raises(CacheError, match="closed"):
        await cache.put(key(99), b"x")


class Counting(RequestCache):
    """Counts commits, and blocks them until `go` is set."""

    def _connect(self) -> sqlite3.Connection:
        connection = super()._connect()
        self.commits = 0
        self.go = threading.Event()

        def trace(statement: str) -> None:
            if statement == "COMMIT":
                self.commits += 1
                self.go.wait(10)

        connection.set_trace_callback(trace)
        return connection


async def test_calls_in_flight_share_a_commit(open_cache) -> None:
    cache = open_cache(Counting)
    first = asyncio.ensure_future(cache.put(key(0), b"x"))
    while cache.commits == 0:  # noqa: ASYNC110
        await asyncio.sleep(0.001)
    others = asyncio.gather(*(cache.put(key(i), b"x") for i in range(1, 200)))
    await asyncio.sleep(0)
    assert not first.done()
    assert cache.get(key(1)) is None
    cache.go.set()
    await asyncio.gather(first, others)
    assert cache.commits == 2
    assert cache.stats()["entries"] == 200


WRITER = """
import asyncio, sys
from pathlib import Path
from agentsys.models.cache import RequestCache

async def main(path, start):
    cache = RequestCache(Path(path))
    print("open", flush=True)
    async def put(i):
        await cache.put(i.to_bytes(32, "big"), b"%d" % i)
        print(i, flush=True)
    for first in range(start, start + 100_000, 20):
        await asyncio.gather(*(put(i) for i in range(first, first + 20)))

asyncio.run(main(sys.argv[1], int(sys.argv[2])))
"""


def start_writer(path: Path, start: int) -> subprocess.Popen[str]:
    return subprocess.Popen([sys.executable, "-c", WRITER, str(path), str(start)], stdout=subprocess.PIPE, text=True)


def kill_after(writer: subprocess.Popen[str], count: int) -> list[int]:
    """Kill a writer after it has stored at least `count` entries; return those that it reported as stored."""
    assert writer.stdout is not None
    assert writer.stdout.readline() == "open\n"
    lines = [writer.stdout.readline() for _ in range(count)]
    os.kill(writer.pid, signal.SIGKILL)
    rest, _ = writer.communicate()
    assert writer.returncode == -signal.SIGKILL
    return [int(line) for line in "".join([*lines, rest]).splitlines(keepends=True) if line.endswith("\n")]


@pytest.mark.parametrize("count", [1, 137, 900])
def test_entries_that_were_awaited_survive_a_kill(tmp_path: Path, count: int) -> None:
    path = tmp_path / "requests.sqlite"
    stored = kill_after(start_writer(path, 0), count)
    assert len(stored) >= count
    cache = RequestCache(path)
    assert [i for i in stored if cache.get(key(i)) != b"%d" % i] == []
    assert cache.stats()["entries"] <= len(stored) + 40  # no more than were in flight
    cache.close()


async def test_two_processes_share_the_file(tmp_path: Path) -> None:
    path = tmp_path / "requests.sqlite"
    mine = RequestCache(path)
    writers = [start_writer(path, start) for start in (0, 1_000_000)]
    await fill(mine, range(5_000_000, 5_000_100))
    stored = [i for writer in writers for i in await asyncio.to_thread(kill_after, writer, 200)]
    assert len(stored) >= 400
    assert [i for i in stored if mine.get(key(i)) != b"%d" % i] == []
    assert all(mine.get(key(i)) for i in range(5_000_000, 5_000_100))
    mine.close()


async def test_the_limit_drops_the_oldest(open_cache) -> None:
    cache = open_cache()
    await fill(cache, range(500))
    await fill(cache, range(500, 1000))
    size = cache.stats()["bytes"]
    cache.close()
    limit = size // 2
    cache = open_cache(limit=limit)
    stats = cache.stats()
    assert stats["bytes"] <= limit
    assert 300 < stats["entries"] < 700
    left = [i for i in range(1000) if cache.get(key(i))]
    assert left == list(range(1000 - len(left), 1000))
    cache.close()
    assert open_cache(limit=limit).stats()["entries"] == stats["entries"]  # nothing more to drop
    assert open_cache(limit=0).stats()["entries"] == 0


async def test_clear_frees_the_disk_space(open_cache) -> None:
    cache = open_cache()
    await fill(cache, range(500))
    before = cache.stats()["bytes"]
    cache.clear()
    assert cache.stats()["entries"] == 0
    assert cache.stats()["bytes"] < before / 10
    assert cache.get(key(1)) is None
    await cache.put(key(1), b"again")
    assert cache.get(key(1)) == b"again"


def bytes_on_disk(path: Path) -> int:
    """Return the size of the file, with its write-ahead log if it has one."""
    return sum(file.stat().st_size for file in path.parent.glob(f"{path.name}*"))


def test_the_command_shows_and_shrinks_the_cache(open_cache) -> None:
    cache = open_cache()
    asyncio.run(fill(cache, range(1000)))
    cache.close()

    def command(*options: str) -> str:
        done = CliRunner().invoke(app, ["cache", "--path", str(cache.path), *options])
        assert done.exit_code == 0, done.output
        path, _, summary = done.stdout.partition(": ")
        assert path == str(cache.path)
        assert summary.endswith(f" calls, {bytes_on_disk(cache.path) / 1e6:.1f} MB\n")
        return summary.partition(" ")[0]

    assert bytes_on_disk(cache.path) > 1_000_000
    assert [command(), command("--limit", "1")] == ["1,000", "1,000"]
    entries = int(command("--limit", "0.0005"))
    assert bytes_on_disk(cache.path) <= 500_000
    left = open_cache()
    assert [i for i in range(1000) if left.get(key(i))] == list(range(1000 - entries, 1000))
    assert 200 < entries < 500
    left.close()
    assert CliRunner().invoke(app, ["cache", "--path", str(cache.path), "--limit", "-1"]).exit_code == 2
    assert command() == str(entries)  # a limit below zero removes nothing
    assert command("--clear") == "0"
    assert bytes_on_disk(cache.path) < 50_000


def test_the_command_creates_no_cache_at_a_mistyped_path(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run_app(app, ["cache", "--path", str(tmp_path / "reqests.sqlite")]) == 2
    assert "no such file" in capsys.readouterr().err and not list(tmp_path.iterdir())


def test_the_command_uses_the_users_cache_by_default(isolated_cache: Path) -> None:
    assert CliRunner().invoke(app, ["cache"]).stdout.startswith(f"{isolated_cache / 'requests.sqlite'}: 0 calls, ")


class Small(RequestCache):
    """A cache on a disk that has 20 pages."""

    pages = 20

    def _connect(self) -> sqlite3.Connection:
        connection = super()._connect()
        connection.execute(f"PRAGMA max_page_count = {self.pages}")
        return connection


async def test_a_full_disk_is_an_error_that_names_the_fix(open_cache) -> None:
    cache = open_cache(Small)
    await cache.put(key(0), b"small")
    with pytest.raises(CacheError, match=r"requests\.sqlite: database or disk is full; .*--cache") as caught:
        for i in range(1, 100):
            await cache.put(key(i), b"x" * 4000)
    assert "\n" not in str(caught.value)
    assert cache.get(key(0)) == b"small"
    cache.clear()
    await cache.put(key(1), b"room again")
    assert cache.get(key(1)) == b"room again"


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A real file system of 1 MiB."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(disk)]
    if shutil.which("mount") is None or subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("only root on Linux mounts a small disk")
    yield disk
    subprocess.run(["umount", "-l", disk], check=True)


async def test_a_disk_that_is_really_full(small_disk: Path) -> None:
    cache = RequestCache(small_disk / "requests.sqlite")
    await cache.put(key(0), b"small")
    with pytest.raises(CacheError, match=r"full; .*--cache"):
        await fill(cache, range(1, 400), size=10_000)
    assert cache.get(key(0)) == b"small"
    cache.close()
    free = os.statvfs(small_disk)
    (small_disk / "filler").write_bytes(b"x" * (free.f_bavail * free.f_bsize))
    with pytest.raises(CacheError, match="--cache"):
        RequestCache(small_disk / "other.sqlite")


async def test_every_waiting_put_raises_on_a_full_disk(open_cache) -> None:
    cache = open_cache(Small)
    results = await asyncio.gather(*(cache.put(key(i), b"x" * 9000) for i in range(100)), return_exceptions=True)
    failed = [i for i, result in enumerate(results) if isinstance(result, CacheError)]
    assert failed
    assert [i for i in range(100) if cache.get(key(i)) is None] == failed


@pytest.mark.parametrize("obstacle", ["file in the way", "folder", "no database"])
def test_a_path_that_cannot_be_written(tmp_path: Path, obstacle: str) -> None:
    blocker = tmp_path / "blocker"
    if obstacle == "folder":
        blocker.mkdir()
    else:
        blocker.write_bytes(b"this is no SQLite file at all, whatever its name says" * 100)
    path = blocker / "requests.sqlite" if obstacle == "file in the way" else blocker
    with pytest.raises(CacheError, match="--cache, or --no-cache") as caught:
        RequestCache(path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)
    if obstacle == "no database":
        assert blocker.read_bytes().startswith(b"this is no SQLite")


@pytest.mark.skipif(os.name == "nt" or os.geteuid() == 0, reason="permissions do not bind this user")
def test_a_read_only_folder(tmp_path: Path) -> None:
    folder = tmp_path / "locked"
    folder.mkdir(mode=0o500)
    with pytest.raises(CacheError, match="--cache"):
        RequestCache(folder / "requests.sqlite")


async def test_a_cancelled_put_does_not_disturb_others(open_cache) -> None:
    cache = open_cache()
    task = asyncio.ensure_future(cache.put(key(1), b"x"))
    await asyncio.sleep(0)
    task.cancel()
    await cache.put(key(2), b"y")
    assert cache.get(key(2)) == b"y"


def test_a_closed_loop_does_not_disturb_others(open_cache) -> None:
    cache = open_cache()

    async def leave() -> None:
        task = asyncio.ensure_future(cache.put(key(1), b"x"))
        await asyncio.sleep(0)
        task.cancel()

    for _ in range(30):
        asyncio.run(leave())
    asyncio.run(cache.put(key(2), b"y"))
    assert (cache.get(key(1)), cache.get(key(2))) == (b"x", b"y")


def test_the_default_is_in_the_users_cache_folder(isolated_cache: Path) -> None:
    assert default_path() == isolated_cache / "requests.sqlite"
    assert not isolated_cache.exists()
