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
"""A shard is closed and the next one begun once it is this large."""

_HEAD: Final = re.compile(rb'\{"version":\d+,"id":("(?:[^"\\]|\\.)*"),.{0,400}?"outcome":"(\w+)"', re.DOTALL)


class RunFolderError(ValueError):
    """The output folder cannot be used, or another run's records are in it. One line that names the fix."""


def id_hash(record_id: str) -> int:
    """A 64-bit digest of an id: ten million of them take about 0.7 GB, and meet by chance in one run out of 370,000."""
    return int.from_bytes(hashlib.blake2b(record_id.encode("utf-8", "surrogatepass"), digest_size=8).digest(), "big")


@dataclass
class Finished:
    """What earlier runs have left in the folder."""

    ids: set[int] = field(default_factory=set)
    outcomes: dict[str, int] = field(default_factory=lambda: {"kept": 0, "dropped": 0})
    failed: int = 0
    failed_ids: set[int] = field(default_factory=set)
    failed_sources: set[str] = field(default_factory=set)


class RunFolder:
    """The folder of one run, held for writing. Raises RunFolderError if it cannot be written or is in use."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        try:
            folder.mkdir(parents=True, exist_ok=True)
            self._lock = FileLock(folder / ".lock")
            self._lock.acquire(blocking=False)
            if (old := traces.failed_file(folder)) != (path := folder / "failed.jsonl"):
                os.replace(old, path)  # a run begun with trace version 1
            self._failed = path.open("ab", buffering=0)
        except Timeout:
            raise RunFolderError(
                f"{folder}: another collector is writing here; wait for it or choose another --out"
            ) from None
        except OSError as err:
            raise RunFolderError(f"{folder}: {err.strerror}; choose another --out") from None
        self._shard: BinaryIO | None = None
        self._number = 0

    def manifest(self) -> dict[str, Any]:
        """The manifest of the run so far; empty for a new folder."""
        path = self.folder / "manifest.json"
        try:
            return dict(orjson.loads(path.read_bytes())) if path.exists() else {}
        except orjson.JSONDecodeError:
            raise RunFolderError(f"{path} is not JSON; move it away or choose another --out") from None

    def has_records(self) -> bool:
        """Whether any record is finished here."""
        files = [*traces.shards(self.folder), self.folder / "failed.jsonl"]
        return any(file.stat().st_size for file in files if file.exists())

    def write_manifest(self, manifest: dict[str, Any]) -> None:
        """Replace the manifest; a reader sees the old one or the new one, never a part."""
        self.write("manifest.json", orjson.dumps(manifest, option=orjson.OPT_INDENT_2))

    def write(self, name: str, data: bytes) -> None:
        """Replace a small file of the folder in one step."""
        temporary = self.folder / f".{name}.tmp"
        try:
            temporary.write_bytes(data)
            os.replace(temporary, self.folder / name)
        except OSError as err:
            raise _cannot_write(self.folder / name, err) from None

    def scan(self) -> Finished:
        """Repair torn tails and read which records are finished; ids and outcomes only, 1 GB in a few seconds."""
        done = Finished()
        for shard in traces.shards(self.folder):
            repair_tail(shard)
            for line in _lines(shard):
                head = _HEAD.match(line)
                if head is None:
                    raise RunFolderError(f"{shard}: a line is no trace; move the file away or choose another --out")
                done.ids.add(id_hash(orjson.loads(head[1])))
                done.outcomes[head[2].decode()] += 1
            self._number = int(shard.stem.split("-")[1])
        repair_tail(self.folder / "failed.jsonl")
        for line in _lines(self.folder / "failed.jsonl"):
            entry = orjson.loads(line)
            done.failed += 1
            if "calls" in entry:  # the graph's failure; else the input's
                done.failed_ids.add(id_hash(entry["id"]))
            else:
                done.failed_sources.add(entry["source"])
        return done

    def forget_failed(self) -> set[int]:
        """Empty failed.jsonl, as its records are to be tried again; the hashes of those that failed in the graph."""
        again = self.scan().failed_ids
        self._failed.truncate(0)
        return again

    def add(self, trace: traces.Trace) -> None:
        """Append a finished trace, to the shards or, if its record failed, to failed.jsonl."""
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
        """Append a record that never became an input: broken line, missing field, duplicate id."""
        entry = {"id": record_id, "source": source, "reason": reason}
        _append(self._failed, orjson.dumps(entry, option=orjson.OPT_APPEND_NEWLINE))

    def close(self) -> None:
        """Close the files and let the next collector in."""
        if self._shard is not None:
            self._shard.close()
        self._failed.close()
        self._lock.release()


def _append(file: BinaryIO, line: bytes) -> None:
    """Append a line whole or not at all: what a full disk cut off is taken back."""
    start = file.seek(0, os.SEEK_END)
    view = memoryview(line)
    try:
        while view:
            view = view[file.write(view) :]
    except OSError as err:
        file.truncate(start)
        raise _cannot_write(file.name, err) from None


def _cannot_write(path: Path | str, err: OSError) -> RunFolderError:
    return RunFolderError(f"{path}: {err.strerror}; what is finished is on disk: free some space and run again")


def repair_tail(path: Path) -> None:
    """Cut off a last line without its newline: kill -9 came in the middle of writing it."""
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
