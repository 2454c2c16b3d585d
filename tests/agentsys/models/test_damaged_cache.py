"""The request cache damaged, foreign or shared: an entry is a miss, a file ends the run in one line."""

from __future__ import annotations

import os
import sqlite3
import threading
from collections.abc import Callable
from pathlib import Path

import orjson
import pytest

from agentsys.cli import main
from agentsys.collect import RunOptions, collect
from agentsys.graphs.drt.system import Context, graph
from agentsys.models.cache import CacheError, RequestCache
from agentsys.models.wire import Reply, load_reply
from tests.support.toys import RULES, call_drt, one_error, outcomes, paid_calls, read_manifest, sentences, write_lines

GOOD = Reply("text", "stop", 3, 4, prompt_ids=[1], ids=[2], logprobs=[-0.5], measured={"seconds": 1.0})

REPLIES: dict[str, object] = {
    "not JSON": b"\xff\x00\xff", "empty": b"", "cut off": b'{"text": "a', "zeros": bytes(50), "list": [], "number": 3,
    "null": None, "text": "hello", "no field": {}, "other fields": {"nope": 1}, "more": {"nope": 1},
    "text a number": {"text": 5}, "text null": {"text": None}, "finish null": {"finish": None},
    "counts a text": {"prompt_tokens": "3"}, "counts true": {"completion_tokens": True},
    "ids of texts": {"ids": ["a"]}, "ids an object": {"ids": {}}, "ids null inside": {"prompt_ids": [1, None]},
    "logprobs of texts": {"logprobs": ["-0.5"]}, "rows that are none": {"top_logprobs": [1.0]},
    "stop_ids null": {"stop_ids": None}, "measured a list": {"measured": []}, "sent a text": {"sent": "x"},
    "reasoning a number": {"reasoning": 1}, "cached_tokens a text": {"cached_tokens": "1"},
}  # fmt: skip


def stored(kind: str) -> bytes:
    value = REPLIES[kind]
    if isinstance(value, bytes):
        return value
    whole = isinstance(value, dict) and value and kind != "other fields"
    return orjson.dumps(orjson.loads(orjson.dumps(GOOD)) | value if whole else value)


def test_a_whole_reply_is_read() -> None:
    assert load_reply(orjson.dumps(GOOD)) == GOOD
    assert load_reply(orjson.dumps(Reply("", "length"))) == Reply("", "length")


@pytest.mark.parametrize("kind", REPLIES)
def test_a_damaged_reply_is_none(kind: str) -> None:
    assert load_reply(stored(kind)) is None


@pytest.fixture
def script(tmp_path: Path) -> Path:
    return write_lines(tmp_path / "replies.jsonl", RULES)


@pytest.fixture
def run(tmp_path: Path, script: Path) -> Callable[[str], tuple[int, list[bytes]]]:
    """Collects 12 records with one cache into a folder; the number of paid calls so far, and the outcomes."""
    model = f"langchain:tests.support.toys:LoggedChatModel?script={script}&log={tmp_path / 'calls.log'}"

    def collect_records(name: str) -> tuple[int, list[bytes]]:
        options = RunOptions(cache=tmp_path / "cache.sqlite")
        collect(graph, sentences(12, 5), tmp_path / name, context=Context(model), options=options)
        return len(paid_calls(tmp_path / "calls.log")), outcomes(tmp_path / name)

    return collect_records


@pytest.mark.parametrize("value", ["blob", "text", "number", "not UTF-8", "wrong types"])
def test_damaged_entries_are_asked_for_again_and_overwritten(
    tmp_path: Path, run: Callable[[str], tuple[int, list[bytes]]], value: str
) -> None:
    paid, before = run("one")
    reply = {
        "blob": "x'ff00ff'", "text": "'hello'", "number": "3", "not UTF-8": "CAST(x'ff22' AS TEXT)",
        "wrong types": "CAST('{\"text\": 5, \"finish\": \"stop\"}' AS BLOB)",
    }[value]  # fmt: skip
    with sqlite3.connect(tmp_path / "cache.sqlite") as connection:
        connection.execute(f"UPDATE calls SET reply = {reply} WHERE rowid % 3 = 0")
    connection.close()
    paid_again, after = run("two")
    assert paid < paid_again < 1.5 * paid
    assert after == before
    assert run("three") == (paid_again, before)


def truncated(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def noise(path: Path) -> None:
    data = path.read_bytes()
    path.write_bytes(data[:4096] + bytes(i * 7 % 256 for i in range(len(data) - 4096)))


def header(path: Path) -> None:
    path.write_bytes(b"\xa5" * 100 + path.read_bytes()[100:])


def zeros(path: Path) -> None:
    path.write_bytes(bytes(path.stat().st_size))


def in_sql(statements: str) -> Callable[[Path], None]:
    def change(path: Path) -> None:
        with sqlite3.connect(path) as connection:
            connection.executescript(statements)
        connection.close()

    return change


def folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


FILES: dict[str, Callable[[Path], None]] = {
    "truncated": truncated, "noise": noise, "header": header, "zeros": zeros, "folder": folder,
    "other columns": in_sql("DROP TABLE calls; CREATE TABLE calls (identity BLOB PRIMARY KEY, other TEXT)"),
    "fewer columns": in_sql("DROP TABLE calls; CREATE TABLE calls (identity BLOB PRIMARY KEY)"),
    "other tables": in_sql("DROP TABLE calls; CREATE TABLE places (url TEXT); INSERT INTO places VALUES ('a')"),
    "one more table": in_sql("CREATE TABLE places (url TEXT)"),
    "later version": in_sql("PRAGMA user_version = 7"),
    "view": in_sql("DROP TABLE calls; CREATE VIEW calls AS SELECT 1 AS identity, 2 AS reply"),
}  # fmt: skip


@pytest.mark.parametrize("kind", FILES)
def test_a_damaged_or_foreign_file_is_one_line_and_no_record_fails(
    tmp_path: Path, script: Path, capsys: pytest.CaptureFixture[str], kind: str
) -> None:
    path, records = tmp_path / "cache.sqlite", write_lines(tmp_path / "in.jsonl", sentences(30, 50))
    arguments = ["--model", f"scripted:{script}", "--input", records, "--cache", path]
    assert call_drt(capsys, *arguments, "--out", tmp_path / "one")[0] == 0
    FILES[kind](path)
    before = path.read_bytes() if path.is_file() else b""
    code, _, err = call_drt(capsys, *arguments, "--out", tmp_path / "two")
    line = one_error(err)
    assert (code, str(path) in line, "--cache" in line) == (2, True, True), line
    if (tmp_path / "two" / "manifest.json").exists():
        assert read_manifest(tmp_path / "two")["counts"]["failed"] == 0
    assert not (tmp_path / "two" / "failed.jsonl").read_bytes()
    if kind not in ("noise", "truncated"):  # nothing is written into what is no cache
        assert (path.read_bytes() if path.is_file() else b"") == before
    code = main(["cache", "--path", str(path)])
    captured = capsys.readouterr()
    assert code == 0 or (code == 2 and str(path) in one_error(captured.err))


def test_a_file_of_before_versions_is_used(tmp_path: Path, run: Callable[[str], tuple[int, list[bytes]]]) -> None:
    first = run("one")
    in_sql("PRAGMA user_version = 0")(tmp_path / "cache.sqlite")
    assert run("two") == first
    with sqlite3.connect(tmp_path / "cache.sqlite") as connection:
        assert connection.execute("PRAGMA user_version").fetchone() == (1,)
    connection.close()


def test_a_file_that_is_damaged_while_it_is_used_ends_the_put(tmp_path: Path) -> None:
    import asyncio

    async def fill() -> None:
        cache = RequestCache(tmp_path / "cache.sqlite")
        try:
            await cache.put(bytes(32), b"x")
            in_sql("PRAGMA wal_checkpoint(TRUNCATE); DROP TABLE calls")(tmp_path / "cache.sqlite")
            await asyncio.wait_for(cache.put(bytes(31) + b"1", b"x"), 20)
        finally:
            cache.close()

    with pytest.raises(CacheError, match=r"cache\.sqlite: no such table.*delete the file"):
        asyncio.run(fill())


async def test_a_reply_that_cannot_be_stored_is_an_error_and_the_cache_goes_on(tmp_path: Path) -> None:
    cache = RequestCache(tmp_path / "cache.sqlite")
    with pytest.raises(Exception, match="type"):
        await cache.put(bytes(32), object())  # type: ignore[arg-type]
    await cache.put(bytes(32), b"x")
    assert cache.get(bytes(32)) == b"x"
    cache.close()


@pytest.mark.skipif(os.name == "nt", reason="Windows has other permissions")
async def test_a_new_cache_is_private_and_an_old_one_keeps_its_mode(tmp_path: Path) -> None:
    previous = os.umask(0o022)
    try:
        cache = RequestCache(tmp_path / "deep" / "folder" / "cache.sqlite")
        await cache.put(bytes(32), b"x")
        files = sorted((tmp_path / "deep" / "folder").iterdir())
        assert [path.name for path in files] == ["cache.sqlite", "cache.sqlite-shm", "cache.sqlite-wal"]
        assert {path.stat().st_mode & 0o777 for path in files} == {0o600}
        for path in (tmp_path / "deep", tmp_path / "deep" / "folder"):
            assert path.stat().st_mode & 0o777 == 0o700
        cache.close()
        files[0].chmod(0o640)
        files[0].parent.chmod(0o750)
        RequestCache(files[0]).close()
        assert (files[0].stat().st_mode & 0o777, files[0].parent.stat().st_mode & 0o777) == (0o640, 0o750)
    finally:
        os.umask(previous)


def test_a_file_that_is_locked_at_once_is_tried_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """SQLite does so without waiting where two processes change the mode of a new file."""
    busy = sqlite3.OperationalError("database is locked")
    busy.sqlite_errorcode = sqlite3.SQLITE_BUSY
    original, refusals = RequestCache._connect_once, [busy, busy]

    def connect(cache: RequestCache) -> sqlite3.Connection:
        if refusals:
            raise refusals.pop()
        return original(cache)

    monkeypatch.setattr(RequestCache, "_connect_once", connect)
    RequestCache(tmp_path / "cache.sqlite").close()
    assert not refusals


def test_many_threads_create_one_file(tmp_path: Path) -> None:
    errors: list[Exception] = []

    def create() -> None:
        try:
            RequestCache(tmp_path / "cache.sqlite").close()
        except Exception as err:
            errors.append(err)

    threads = [threading.Thread(target=create) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == []
