"""The output folder of a run: append-only trace shards, failed records, the manifest, and one collector at a time."""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO, Final

import orjson
from filelock import FileLock, Timeout

from agentsys import traces

SHARD_BYTES: Final = 256 * 2**20
"""A shard of this many bytes is closed and the next one opened."""

_HEAD: Final = re.compile(rb'\{"version":\d+,"id":("(?:[^"\\]|\\.)*"),.{0,400}?"outcome":"(\w+)"', re.DOTALL)


class RunFolderError(ValueError):
    """The output folder cannot be used, or holds another run's records. The message is one line that names the fix.

    `detail` has further lines, such as the differences between two prompts; a traceback shows them as a note.
    """

    def __init__(self, message: str, detail: str = "") -> None:
        super().__init__(message)
        self.detail = detail
        if detail:
            self.add_note(detail)


def id_hash(record_id: str) -> int:
    """A 64-bit digest of an id. Ten million of them take about 0.7 GB; two collide in one of 370,000 such runs."""
    return int.from_bytes(hashlib.blake2b(record_id.encode("utf-8", "surrogatepass"), digest_size=8).digest(), "big")


@dataclass
class Finished:
    """The records that earlier runs finished in this folder; ids as `id_hash`."""

    ids: set[int] = field(default_factory=set)
    outcomes: dict[str, int] = field(default_factory=lambda: {"kept": 0, "dropped": 0})
    failed: int = 0
    failed_ids: set[int] = field(default_factory=set)
    failed_sources: set[str] = field(default_factory=set)


class RunFolder:
    """The folder of one run, held for writing. Raises RunFolderError if it cannot be written or is in use."""

    def __init__(self, folder: str | Path) -> None:
        self.folder = folder = Path(folder)
        try:
            folder.mkdir(parents=True, exist_ok=True)
            self._lock = FileLock(folder / ".lock")
            self._lock.acquire(blocking=False)
            self._failed = traces.failed_file(folder).open("ab", buffering=0)
        except Timeout:
            raise RunFolderError(
                f"{folder}: another run is writing to this folder; wait for it or choose another --out"
            ) from None
        except OSError as err:
            raise RunFolderError(f"{folder}: {err.strerror}; choose another --out") from None
        self._shard: BinaryIO | None = None
        self._number = 0

    def manifest(self) -> dict[str, Any]:
        """The content of manifest.json, {} for a new folder. Raises RunFolderError if it is not JSON."""
        path = self.folder / "manifest.json"
        try:
            return dict(orjson.loads(path.read_bytes())) if path.exists() else {}
        except orjson.JSONDecodeError:
            raise RunFolderError(f"{path} is not JSON; move it away or choose another --out") from None

    def rename_rejected(self) -> None:
        """Rename rejected.jsonl, the file of failed records of trace version 1, to failed.jsonl."""
        path = traces.failed_file(self.folder)
        if path.name != "failed.jsonl":
            self._failed.close()
            self._failed = path.rename(self.folder / "failed.jsonl").open("ab", buffering=0)

    def has_records(self) -> bool:
        """Whether the folder holds any finished record."""
        files = [*traces.shards(self.folder), traces.failed_file(self.folder)]
        return any(file.stat().st_size for file in files if file.exists())

    def write_manifest(self, manifest: dict[str, Any]) -> None:
        """Replace the manifest. Raises RunFolderError if the disk is full."""
        self.write("manifest.json", orjson.dumps(manifest, option=orjson.OPT_INDENT_2))

    def write(self, name: str, data: bytes) -> None:
        """Replace a small file atomically: a reader sees the old or the new content. Raises RunFolderError."""
        path = self.folder / name
        temporary = path.with_name(f".{path.name}.tmp")
        try:
            path.parent.mkdir(exist_ok=True)
            temporary.write_bytes(data)
            os.replace(temporary, path)
        except OSError as err:
            raise _cannot_write(path, err) from None

    def scan(self) -> Finished:
        """Repair torn last lines and read which records are finished (ids and outcomes only: 1 GB in a few seconds).

        Raises RunFolderError for a line that is not a trace.
        """
        done = Finished()
        for shard in traces.shards(self.folder):
            repair_tail(shard)
            for line in _lines(shard):
                head = _HEAD.match(line)
                if head is None:
                    raise RunFolderError(f"{shard}: a line is not a trace; move the file away or choose another --out")
                done.ids.add(id_hash(orjson.loads(head[1])))
                done.outcomes[head[2].decode()] += 1
            self._number = int(shard.stem.split("-")[1])
        failed = traces.failed_file(self.folder)
        repair_tail(failed)
        for line in _lines(failed):
            entry = orjson.loads(line)
            done.failed += 1
            if "calls" in entry:  # it failed in the graph; otherwise its input was refused
                done.failed_ids.add(id_hash(entry["id"]))
            else:
                done.failed_sources.add(entry["source"])
        return done

    def forget_failed(self) -> set[int]:
        """Empty failed.jsonl for a retry and return the id hashes of the records that failed in the graph."""
        failed_ids = self.scan().failed_ids
        self._failed.truncate(0)
        return failed_ids

    def add(self, trace: traces.Trace) -> None:
        """Append a finished trace to the current shard, that of a failed record to failed.jsonl.

        Raises TypeError if it cannot be written as JSON, RunFolderError if the disk is full.
        """
        line = traces.dump(trace)
        if trace.outcome == "failed":
            _append(self._failed, line)
            return
        if self._shard is None or self._shard.tell() > SHARD_BYTES:
            self._next_shard()
        assert self._shard is not None
        _append(self._shard, line)

    def _next_shard(self) -> None:
        if self._shard is not None:
            self._shard.close()
            self._number += 1
        path = self.folder / f"traces-{self._number:05d}.jsonl"
        try:
            self._shard = path.open("ab", buffering=0)
        except OSError as err:
            raise _cannot_write(path, err) from None

    def add_bad_input(self, source: str, reason: str, record_id: str | None = None) -> None:
        """Append an unusable input to failed.jsonl: broken line, missing field, duplicate id."""
        entry = {"id": record_id, "source": source, "reason": reason}
        _append(self._failed, orjson.dumps(entry, option=orjson.OPT_APPEND_NEWLINE))

    def close(self) -> None:
        """Close the files and release the folder's lock."""
        if self._shard is not None:
            self._shard.close()
        self._failed.close()
        self._lock.release()


def _append(file: BinaryIO, line: bytes) -> None:
    """Append a whole line or nothing: if the disk is full, what was written of it is truncated again."""
    start = file.seek(0, os.SEEK_END)
    view = memoryview(line)
    try:
        while view:
            view = view[file.write(view) :]
    except OSError as err:
        file.truncate(start)
        raise _cannot_write(file.name, err) from None


def _cannot_write(path: Path | str, err: OSError) -> RunFolderError:
    return RunFolderError(
        f"{path}: {err.strerror}; finished records are saved: free some space and rerun the same command to resume"
    )


def repair_tail(path: Path) -> None:
    """Remove a last line without newline, which kill -9 interrupted."""
    if not path.exists():
        return
    with path.open("r+b") as file:
        end = file.seek(0, os.SEEK_END)
        keep = end
        while keep > 0:
            start = max(0, keep - 2**16)
            file.seek(start)
            newline = file.read(keep - start).rfind(b"\n")
            keep = start + newline + 1 if newline >= 0 else start
            if newline >= 0:
                break
        if keep < end:
            file.truncate(keep)


def _lines(path: Path) -> Iterator[bytes]:
    if not path.exists():
        return
    with path.open("rb") as file:
        lines: Iterable[bytes] = file
        yield from lines
