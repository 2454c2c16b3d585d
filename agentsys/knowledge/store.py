"""Adds passages to an index folder: each id once, without a torn last line, and with a list of failed documents."""

from __future__ import annotations

import hashlib
import logging
from array import array
from collections.abc import Sequence
from pathlib import Path
from typing import Final

import orjson

from agentsys.knowledge.passages import OFFSETS_FILE, PASSAGES_FILE, KnowledgeError, Passage, damaged, read_passage

FAILED_FILE: Final = "failed.jsonl"
_BUFFER: Final = 1 << 20
_LOG: Final = logging.getLogger(__name__)


def _hash(data: bytes) -> int:
    return int.from_bytes(hashlib.blake2b(data, digest_size=8).digest(), "big")


class Store:
    """Appends to the passages of a folder; takes 0.2 GB per million passages. A line torn by a kill is removed."""

    def __init__(self, folder: Path) -> None:
        self._path = folder / PASSAGES_FILE
        self._contents: dict[int, int] = {}
        self._documents: set[int] = set()
        end = 0
        self._file = self._path.open("ab+", buffering=_BUFFER)
        self._file.seek(0)
        for number, line in enumerate(self._file, 1):
            if line.endswith(b"\n"):
                self._contents[_hash(self._read_id(line, number))] = _hash(line)
                end += len(line)
        self._file.truncate(end)
        (folder / "rejected.jsonl").unlink(missing_ok=True)  # what earlier versions wrote
        self._failed = (folder / FAILED_FILE).open("wb")
        self.failed = 0

    def _read_id(self, line: bytes, number: int) -> bytes:
        try:
            return read_passage(line).id.encode()
        except ValueError as err:
            self._file.close()
            raise damaged(self._path, str(err), number) from None

    def __len__(self) -> int:
        return len(self._contents)

    def add(self, document: str, parts: Sequence[Passage], source: str) -> int:
        """Append the new parts of a document and return their number.

        A document fails if its id occurred before in this build, or is in the index with different content.
        """
        key = _hash(document.encode())
        if key in self._documents:
            self.add_failure(source, "the id occurs twice in this input; give every passage a unique id", document)
            return 0
        self._documents.add(key)
        lines = {_hash(part.id.encode()): part.to_line() for part in parts}
        if any(self._contents.get(part, _hash(line)) != _hash(line) for part, line in lines.items()):
            reason = "the id is in the index with different content; use another id, or build a new index"
            self.add_failure(source, reason, document)
            return 0
        new_lines = {part: line for part, line in lines.items() if part not in self._contents}
        for part, line in new_lines.items():
            self._file.write(line)
            self._contents[part] = _hash(line)
        return len(new_lines)

    def add_failure(self, source: str, reason: str, record_id: str | None = None) -> None:
        """Record a document that failed, with the reason."""
        entry = {"id": record_id, "source": source, "reason": reason}
        self._failed.write(orjson.dumps(entry, option=orjson.OPT_APPEND_NEWLINE))
        _LOG.debug("%s failed: %s", source, reason)
        self.failed += 1

    def close(self) -> None:
        """Write buffered lines and close the files."""
        self._file.close()
        self._failed.close()


def write_offsets(folder: Path) -> str:
    """Write the offsets of the passages, and return the SHA-256 of the file of passages."""
    import numpy as np

    digest, offsets = hashlib.sha256(), array("q", [0])
    with (folder / PASSAGES_FILE).open("rb") as file:
        for line in file:
            digest.update(line)
            offsets.append(offsets[-1] + len(line))
    if len(offsets) == 1:
        raise KnowledgeError(f"{folder}: all records failed; see the reasons in {folder / FAILED_FILE}")
    temporary = folder / f".{OFFSETS_FILE}"
    np.save(temporary, np.frombuffer(offsets, dtype=np.int64))
    temporary.replace(folder / OFFSETS_FILE)
    return digest.hexdigest()
