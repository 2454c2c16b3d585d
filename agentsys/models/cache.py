"""The request cache: replies of finished calls in one SQLite file, so that no call is paid for twice.

The key of an entry is the call's identity (model and revision, messages, sampling, schema, record, key), so it does not
depend on the calling code. A call is finished when its entry is committed. A writer thread commits all entries that
arrived during the previous commit, so that hundreds of calls in flight share one commit.
"""

from __future__ import annotations

import asyncio
import sqlite3
import threading
from contextlib import suppress
from pathlib import Path
from typing import Any, Final

from tenacity import Retrying, retry_if_exception, stop_after_delay, wait_random

from agentsys.paths import cache_folder, make_private_file, make_private_folder

DEFAULT_LIMIT: Final = 20 * 2**30
"""Maximum size of the cache file in bytes; beyond it the oldest entries are dropped."""

LOCK_SECONDS: Final = 60.0
"""Seconds for which another process may hold the file."""
TRIM_COMMITS: Final = 1000
"""The writer checks the file size every so many commits."""
VACUUM: Final = "PRAGMA incremental_vacuum"
"""For `executescript`: `execute` frees only one page."""
_VERSION: Final = 1
"""Version of the table's layout, which the file has as `user_version`; 0 in files of before it was written."""
_COLUMNS: Final = [("identity", "BLOB"), ("reply", "BLOB")]
_SCHEMA: Final = "CREATE TABLE IF NOT EXISTS calls (identity BLOB PRIMARY KEY, reply BLOB NOT NULL)"


class CacheError(ValueError):
    """The cache cannot be opened or written; the message names the file and the fix."""


def default_path() -> Path:
    """Return the path of the cache file in the user's cache folder."""
    return cache_folder() / "requests.sqlite"


def _code(err: sqlite3.Error) -> int:
    """SQLite's primary result code."""
    return (getattr(err, "sqlite_errorcode", None) or 0) & 0xFF


class RequestCache:
    """Maps a call's identity (32 bytes) to its reply (JSON bytes). Several processes may share one file."""

    def __init__(self, path: str | Path, *, limit: int = DEFAULT_LIMIT) -> None:
        """Open or create the file and drop the oldest entries beyond `limit` bytes. Raises CacheError."""
        self.path = path = Path(path)
        try:
            make_private_folder(path.parent)
            make_private_file(path)  # before SQLite does; its -wal and -shm files have the mode of the file
            self._reader = self._connect()
            self._limit = limit
            self._trim(self._reader)
            self._connection = self._connect()  # the writer's; opened here so that a failure raises here
        except OSError as err:
            fault = f"{err.strerror}; choose another file with --cache, or --no-cache"
            raise CacheError(f"request cache {path}: {fault}") from None
        except sqlite3.Error as err:
            raise self._error(err) from None
        self._pending: list[tuple[bytes, bytes, asyncio.AbstractEventLoop, asyncio.Future[None]]] = []
        self._wake = threading.Condition()
        self._closing = False
        self._writer = threading.Thread(target=self._write_entries, name="request-cache", daemon=True)
        self._writer.start()

    def _connect(self) -> sqlite3.Connection:
        """A connection. Where several processes create the file at once, SQLite refuses some at once, in spite of its
        timeout: they try again.
        """
        again = retry_if_exception(lambda err: isinstance(err, sqlite3.Error) and _code(err) == sqlite3.SQLITE_BUSY)
        retrying = Retrying(retry=again, stop=stop_after_delay(LOCK_SECONDS), wait=wait_random(0, 0.1), reraise=True)
        return retrying(self._connect_once)

    def _connect_once(self) -> sqlite3.Connection:
        connection = sqlite3.connect(self.path, timeout=LOCK_SECONDS, isolation_level=None, check_same_thread=False)
        try:
            version = self._check_layout(connection)
            connection.execute("PRAGMA auto_vacuum = INCREMENTAL")
            connection.execute("PRAGMA journal_mode = WAL")
            connection.execute("PRAGMA synchronous = NORMAL")  # survives kill -9; a power cut may lose recent commits
            connection.execute(_SCHEMA)
            if version != _VERSION:
                connection.execute(f"PRAGMA user_version = {_VERSION}")
        except BaseException:
            connection.close()
            raise
        connection.text_factory = bytes  # a damaged text is a value that is no reply, not an error
        return connection

    def _check_layout(self, connection: sqlite3.Connection) -> int:
        """Return the file's version. Raises CacheError for a database of something else, or of a later version."""
        version = int(connection.execute("PRAGMA user_version").fetchone()[0])
        tables = {name for (name,) in connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'")}
        columns = [tuple(row[1:3]) for row in connection.execute("PRAGMA table_info(calls)")]
        is_other = bool(tables - {"calls"}) or columns not in ([], _COLUMNS)
        if is_other or version > _VERSION:
            what = "this is a database of something else" if is_other else "this is of a later version of agentsys"
            fix = "choose another file with --cache, or --no-cache"
            raise CacheError(f"request cache {self.path}: {what}; {fix}")
        return version

    def _error(self, err: sqlite3.Error) -> CacheError:
        """The error of SQLite in one line with the fix."""
        match _code(err):
            case sqlite3.SQLITE_FULL:
                fix = "free some space, or move it with --cache"
            case sqlite3.SQLITE_BUSY | sqlite3.SQLITE_LOCKED:
                fix = "wait for the process that uses it, or name another with --cache"
            case sqlite3.SQLITE_CANTOPEN | sqlite3.SQLITE_READONLY | sqlite3.SQLITE_PERM:
                fix = "choose another file with --cache, or --no-cache"
            case _:  # damaged
                fix = "delete the file, or choose another with --cache, or --no-cache"
        return CacheError(f"request cache {self.path}: {err}; {fix}")

    def get(self, identity: bytes) -> bytes | None:
        """Return the reply stored under this identity (about 10 microseconds), or None. Raises CacheError."""
        try:
            row = self._reader.execute("SELECT reply FROM calls WHERE identity = ?", (identity,)).fetchone()
        except sqlite3.Error as err:
            raise self._error(err) from None
        return row[0] if row and isinstance(row[0], bytes) else None

    async def put(self, identity: bytes, reply: bytes) -> None:
        """Store a reply; returns once it is committed. Raises CacheError if it cannot be written, as on a full disk."""
        loop = asyncio.get_running_loop()
        done: asyncio.Future[None] = loop.create_future()
        with self._wake:
            if self._closing:
                raise CacheError(f"request cache {self.path} is closed")
            self._pending.append((identity, reply, loop, done))
            self._wake.notify()
        await done

    def _write_entries(self) -> None:
        """Commit pending entries until the cache is closed. Runs in the writer thread."""
        connection = self._connection
        commits = 0
        while True:
            with self._wake:
                while not self._pending and not self._closing:
                    self._wake.wait()
                batch, self._pending = self._pending, []
            if not batch:
                connection.close()
                return
            error: Exception | None = None
            try:
                connection.execute("BEGIN IMMEDIATE")
                connection.executemany("INSERT OR REPLACE INTO calls VALUES (?, ?)", [entry[:2] for entry in batch])
                connection.execute("COMMIT")
                commits += 1
                if commits % TRIM_COMMITS == 0:
                    self._trim(connection)
            except sqlite3.Error as err:
                if connection.in_transaction:
                    with suppress(sqlite3.Error):  # of a damaged file
                        connection.execute("ROLLBACK")
                error = self._error(err)
            except Exception as err:  # raised where the entry is awaited: without this thread, that would wait for ever
                error = err
            for loop in {entry[2] for entry in batch}:
                futures = [entry[3] for entry in batch if entry[2] is loop]
                with suppress(RuntimeError):  # the loop is closed, so nothing waits for the futures
                    loop.call_soon_threadsafe(_resolve, futures, error)

    def stats(self) -> dict[str, Any]:
        """Return {"path", "entries", "bytes"} of the cache file. Raises CacheError."""
        try:
            entries = self._reader.execute("SELECT count(*) FROM calls").fetchone()[0]
            return {"path": str(self.path), "entries": entries, "bytes": _size_in_bytes(self._reader)}
        except sqlite3.Error as err:
            raise self._error(err) from None

    def clear(self) -> None:
        """Remove every entry and free the disk space. Raises CacheError."""
        try:
            self._reader.execute("DELETE FROM calls")
            self._reader.executescript(VACUUM)
        except sqlite3.Error as err:
            raise self._error(err) from None

    def _trim(self, connection: sqlite3.Connection) -> None:
        while _size_in_bytes(connection) > self._limit:
            oldest = "SELECT identity FROM calls ORDER BY rowid LIMIT max(1, (SELECT count(*) / 10 FROM calls))"
            if connection.execute(f"DELETE FROM calls WHERE identity IN ({oldest})").rowcount == 0:
                return
            connection.executescript(VACUUM)

    def close(self) -> None:
        """Commit pending entries and close the file."""
        with self._wake:
            self._closing = True
            self._wake.notify()
        self._writer.join()
        self._reader.close()


def _size_in_bytes(connection: sqlite3.Connection) -> int:
    pages = connection.execute("PRAGMA page_count").fetchone()[0]
    return int(pages * connection.execute("PRAGMA page_size").fetchone()[0])


def _resolve(futures: list[asyncio.Future[None]], error: Exception | None) -> None:
    for future in futures:
        if future.done():
            continue
        if error is None:
            future.set_result(None)
        else:
            future.set_exception(error)
