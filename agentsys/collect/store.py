"""The output folder of a run: append-only trace shards, failed records, the manifest, and one collector at a time."""

from __future__ import annotations

import errno
import hashlib
import logging
import os
from collections import Counter
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO, Final

import orjson
from filelock import FileLock, Timeout

from agentsys import traces
from agentsys.collect.manifest import MANIFEST, MANIFEST_COPY, read_manifest
from agentsys.display import plain
from agentsys.paths import make_private_folder, replace_file, sync_file
from agentsys.records import record_id
from agentsys.shards import compress_shard, compressed, is_compressed, shard_number, shard_path
from agentsys.traces import RunFolderError as RunFolderError

SHARD_BYTES: Final = 256 * 2**20
"""A shard of this many bytes is closed and compressed, and the next one opened."""
_LOG: Final = logging.getLogger(__name__)
_FULL: Final = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


def id_hash(record_id: str) -> int:
    """A 64-bit digest of an id. Ten million of them take about 0.7 GB; two collide in one of 370,000 such runs."""
    return int.from_bytes(hashlib.blake2b(record_id.encode("utf-8", "surrogatepass"), digest_size=8).digest(), "big")


@dataclass
class Finished:
    """The records that earlier runs finished in this folder; ids and contents as `id_hash`.

    A record that failed in the graph has its content by its id. Of a refused input, whose record has none, the content
    is counted, and known by its source too; an entry of an earlier version has none (0).
    """

    ids: set[int] = field(default_factory=set)
    outcomes: dict[str, int] = field(default_factory=lambda: {"kept": 0, "dropped": 0})
    failed: int = 0
    failed_ids: dict[int, int] = field(default_factory=dict)
    failed_inputs: Counter[int] = field(default_factory=Counter)
    failed_sources: dict[str, int] = field(default_factory=dict)
    corrected: set[int] = field(default_factory=set)
    replaced_inputs: set[tuple[str, int]] = field(default_factory=set)

    def take_input(self, source: str, content: str) -> bool:
        """Whether a refused input is one that failed before; each entry is taken once."""
        number = id_hash(content) if self.failed_sources.get(source) != 0 else 0
        if self.failed_inputs[number] <= 0:
            return False
        self.failed_inputs[number] -= 1
        return True

    def replace_input(self, source: str) -> int:
        """Note that there is a record now in the place of a refused input. Returns how many entries it replaces.

        None if the refused content was met elsewhere in the input: lines move when others are added or removed.
        """
        number = self.failed_sources.pop(source, None)
        if number is None or self.failed_inputs[number] <= 0:
            return 0
        self.failed_inputs[number] -= 1
        self.replaced_inputs.add((source, number))
        return 1

    def has(self, number: int, content: str) -> bool:
        """Whether a record (its id hash) is finished, or failed with this content; else it is due."""
        if number in self.ids:
            return True
        if number not in self.failed_ids:
            return False
        if self.failed_ids[number] == id_hash(content):
            return True
        self.corrected.add(number)
        return False

    def add(self, trace: Mapping[str, Any]) -> bool:
        """Count a kept or dropped record by its trace. Returns False if it has been counted before."""
        number = id_hash(trace["id"])
        if number in self.ids:
            return False
        self.ids.add(number)
        self.outcomes[trace["outcome"]] += 1
        return True

    def add_failed(self, entry: Mapping[str, Any]) -> None:
        """Note a failed record: its trace if it failed in the graph, otherwise its input was refused."""
        number = content_hash(entry)
        if "calls" in entry:
            self.failed_ids[id_hash(entry["id"])] = number
        else:
            self.failed += 1
            self.failed_sources[entry["source"]] = number
            self.failed_inputs[number] += 1

    def forget_failed(self) -> set[int]:
        """Make all failed records due again. Returns the id hashes of those that failed in the graph."""
        failed_ids = set(self.failed_ids)
        self.failed = 0
        self.failed_ids, self.failed_inputs, self.failed_sources = {}, Counter(), {}
        return failed_ids

    def finish(self, record_id: str, *, is_failed: bool) -> int:
        """Note that a record is finished. Returns how many failures of an earlier run it replaces."""
        if not self.corrected or (number := id_hash(record_id)) not in self.corrected:
            return 0
        if not is_failed:
            self.ids.add(number)
        return 1


class RunFolder:
    """The folder of one run, held for writing. Raises RunFolderError if it cannot be written or is in use.

    A folder that does not exist is created, readable by its user only.
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder = folder = Path(folder)
        _refuse_other_content(folder)
        try:
            make_private_folder(folder)
            self._lock = FileLock(folder / ".lock")
            self._lock.acquire(blocking=False)
            self._failed = traces.failed_file(folder).open("ab", buffering=0)
            self._place = _identity(folder.stat())
        except Timeout:
            raise RunFolderError(
                f"{folder}: another run is writing to this folder; wait for it or choose another --out"
            ) from None
        except OSError as err:
            path = err.filename if Path(err.filename or "").is_relative_to(folder) else folder
            raise RunFolderError(f"{path}: {err.strerror}; choose another --out") from None
        self._shard: BinaryIO | None = None
        self._number = 0
        self._compressor = ThreadPoolExecutor(1, "compress")
        self._has_copy = False

    def manifest(self) -> dict[str, Any]:
        """The content of manifest.json, or of its copy if a power cut tore it; {} for a new folder.

        Raises RunFolderError if both are damaged.
        """
        return read_manifest(self.folder)

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
        """Replace the manifest, once the records that it counts are on disk, and at first its copy.

        Raises RunFolderError.
        """
        self._check_place()
        self._sync()
        content = orjson.dumps(manifest, option=orjson.OPT_INDENT_2)
        if not self._has_copy:
            self.write(MANIFEST_COPY, content, durable=True)
            self._has_copy = True
        self.write(MANIFEST, content, durable=True)

    def write(self, name: str, data: bytes, *, durable: bool = False) -> None:
        """Replace a small file atomically: a reader sees the old or the new content. Raises RunFolderError.

        With `durable`, it is on disk before the old one is gone.
        """
        path = self.folder / name
        try:
            path.parent.mkdir(exist_ok=True)
            replace_file(path, data, durable=durable)
        except OSError as err:
            raise self._cannot_write(path, err) from None

    def _sync(self) -> None:
        """Have the disk hold what was appended. Raises RunFolderError."""
        for file in filter(None, (self._shard, self._failed)):
            try:
                sync_file(file)
            except OSError as err:
                raise self._cannot_write(Path(file.name), err) from None

    def _check_place(self) -> None:
        """Raises RunFolderError if the folder, or a file that is written, is no longer where it was opened."""
        files = [Path(file.name) for file in filter(None, (self._shard, self._failed))]
        places = [self._place, *(_identity(os.fstat(file.fileno())) for file in (self._shard, self._failed) if file)]
        for path, place in zip([self.folder, *files], places, strict=True):
            try:
                is_same = _is_at(path, place)
            except OSError as err:
                raise RunFolderError(f"{path}: {err.strerror}; rerun the same command to resume") from None
            if not is_same:
                raise RunFolderError(
                    f"{path} was deleted, moved or replaced during the run, and the records that it had are not there; "
                    "rerun the same command: finished calls come from the request cache"
                )

    def scan(self) -> Finished:
        """Repair torn last lines, check all others, and read which records are finished (1 GB takes 5 seconds).

        What a kill left of compressing a shard is removed.

        Raises RunFolderError, which names file and line, for a damaged line.
        """
        done = Finished()
        self._finish_compressing()
        for shard in traces.shards(self.folder):
            if not is_compressed(shard):
                repair_tail(shard)
            for line, (_, trace) in enumerate(traces.read_lines(shard, traces.parse_finished), 1):
                if not done.add(trace):
                    raise traces.damage(shard, second_trace(trace), line)
            self._number = (shard_number(shard) or 0) + is_compressed(shard)
        failed = traces.failed_file(self.folder)
        repair_tail(failed)
        for _, entry in traces.read_lines(failed, traces.parse_failed):
            done.add_failed(entry)
        # An entry of a record that was corrected and run again is removed at the end of a run, if that is reached.
        done.failed += len(done.failed_ids.keys() - done.ids)
        return done

    def _finish_compressing(self) -> None:
        left = [path for path in self.folder.glob("traces-*.jsonl") if compressed(path).exists()]
        for path in (*left, *self.folder.glob(".traces-*.zst.tmp")):
            path.unlink()

    def remove_corrected(self, done: Finished) -> None:
        """Remove from failed.jsonl the failures that a corrected input has replaced. Raises RunFolderError."""
        if not done.corrected and not done.replaced_inputs:
            return
        path = traces.failed_file(self.folder)
        entries = (entry for _, entry in traces.read_lines(path, traces.parse_failed))
        last = {id_hash(entry["id"]): place for place, entry in enumerate(entries) if "calls" in entry}
        temporary = path.with_name(f".{path.name}.tmp")
        try:
            with temporary.open("wb") as file:
                for place, (line, entry) in enumerate(traces.read_lines(path, traces.parse_failed)):
                    if "calls" in entry:
                        number = id_hash(entry["id"])
                        is_replaced = number in done.ids or last[number] != place
                    else:
                        is_replaced = (entry["source"], content_hash(entry)) in done.replaced_inputs
                    if not is_replaced:
                        file.write(line)
                sync_file(file)
            self._failed.close()
            os.replace(temporary, path)
            self._failed = path.open("ab", buffering=0)
        except OSError as err:
            raise self._cannot_write(path, err) from None

    def forget_failed(self, done: Finished) -> set[int]:
        """Empty failed.jsonl for a retry and return the id hashes of the records that failed in the graph."""
        self._failed.truncate(0)
        return done.forget_failed()

    def add(self, trace: traces.Trace) -> None:
        """Append a finished trace to the current shard, that of a failed record to failed.jsonl.

        Raises TypeError if it cannot be written as JSON, RunFolderError if the disk is full.
        """
        line = traces.dump(trace)
        if trace.outcome == "failed":
            self._append(self._failed, line)
            return
        if self._shard is None or self._shard.tell() > SHARD_BYTES:
            self._next_shard()
        assert self._shard is not None
        self._append(self._shard, line)

    def _next_shard(self) -> None:
        if self._shard is not None:
            self._sync()
            self._close_shard()
        path = shard_path(self.folder, self._number)
        try:
            self._shard = path.open("ab", buffering=0)
        except OSError as err:
            raise self._cannot_write(path, err) from None

    def _close_shard(self) -> None:
        """Close the shard that is written, if there is one, and start to compress it."""
        if self._shard is None:
            return
        path, place = Path(self._shard.name), _identity(os.fstat(self._shard.fileno()))
        self._shard.close()
        self._shard = None
        self._number += 1
        self._compressor.submit(_compress, path, place)

    def add_bad_input(self, source: str, reason: str, record_id: str | None = None, content: str = "") -> None:
        """Append an unusable input to failed.jsonl: broken line, missing field, duplicate id."""
        entry = {"id": record_id, "source": source, "reason": reason, "content": content or None}
        self._append(self._failed, orjson.dumps(entry, option=orjson.OPT_APPEND_NEWLINE))

    def _append(self, file: BinaryIO, line: bytes) -> None:
        """Append a whole line or nothing: if the disk is full, what was written of it is truncated again."""
        start = file.seek(0, os.SEEK_END)
        view = memoryview(line)
        try:
            while view:
                view = view[file.write(view) :]
        except OSError as err:
            with suppress(OSError):  # a torn line is removed at the next start too
                file.truncate(start)
            raise self._cannot_write(Path(file.name), err) from None

    def _cannot_write(self, path: Path, err: OSError) -> RunFolderError:
        self._check_place()
        fix = "free some space" if err.errno in _FULL else "make the folder writable"
        return RunFolderError(
            f"{path}: {err.strerror}; finished records are saved: {fix} and rerun the same command to resume"
        )

    def close(self) -> None:
        """Close and compress the shard, close the other files, and release the folder's lock."""
        self._close_shard()
        self._compressor.shutdown()
        self._failed.close()
        self._lock.release()


def _refuse_other_content(folder: Path) -> None:
    """Raises RunFolderError for a folder of other things, whose README.md a run would replace."""
    own = (folder / MANIFEST, folder / MANIFEST_COPY, traces.failed_file(folder), *traces.shards(folder))
    if any(file.exists() for file in own):
        return
    for pattern in ("README*", "*.py", "*.toml", "*.ipynb", ".git"):
        if other := next(folder.glob(pattern), None):
            raise RunFolderError(f"{folder} holds {other.name} and no run: choose another --out, such as {folder}/run")


def _compress(path: Path, place: tuple[int, int]) -> None:
    """Compress a closed shard, unless another file is in its place. One that cannot be compressed stays as it is."""
    try:
        if _is_at(path, place):
            compress_shard(path)
    except OSError as err:
        _LOG.info("%s: not compressed (%s); it is read as it is", path, err.strerror)


def _is_at(path: Path, place: tuple[int, int]) -> bool:
    """Whether a file or folder is still where it was opened. Raises OSError."""
    try:
        return _identity(path.stat()) == place
    except FileNotFoundError:
        return False


def _identity(status: os.stat_result) -> tuple[int, int]:
    return status.st_dev, status.st_ino


def second_trace(trace: Mapping[str, Any]) -> str:
    """The fault of a line whose record is finished on an earlier line."""
    return f"a second trace of the record {plain(trace['id'])[:80]}"


def content_hash(entry: Mapping[str, Any]) -> int:
    """The content of an entry of failed.jsonl; 0 if an earlier version did not record it."""
    if "calls" not in entry:
        return id_hash(entry["content"]) if entry.get("content") else 0
    return id_hash(entry.get("measured", {}).get("content") or record_id(entry["input"]))


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
