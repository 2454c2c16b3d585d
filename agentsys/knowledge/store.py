"""Adding passages to an index folder: each id once, a torn last line cut off, what cannot be used written down."""

from __future__ import annotations

import hashlib
from array import array
from collections.abc import Sequence
from pathlib import Path
from typing import Final

import orjson

from agentsys.knowledge.passages import OFFSETS_FILE, PASSAGES_FILE, KnowledgeError, Passage

REJECTED_FILE: Final = "failed.jsonl"
_BUFFER: Final = 1 << 20


def _hash(data: bytes) -> int:
    return int.from_bytes(hashlib.blake2b(data, digest_size=8).digest(), "big")


class Store:
    """The passages of a folder, for adding; 0.2 GB of memory for a million. A line that a kill tore is cut off."""

    def __init__(self, folder: Path) -> None:
        self._path = folder / PASSAGES_FILE
        self._contents: dict[int, int] = {}
        self._documents: set[int] = set()
        end = 0
        self._file = self._path.open("ab+", buffering=_BUFFER)
        self._file.seek(0)
        for line in self._file:
            if line.endswith(b"\n"):
                self._contents[_hash(orjson.loads(line)["id"].encode())] = _hash(line)
                end += len(line)
        self._file.truncate(end)
        self._rejected = (folder / REJECTED_FILE).open("wb")
        self.rejected = 0

    def __len__(self) -> int:
        return len(self._contents)

    def add(self, document: str, parts: Sequence[Passage], source: str) -> int:
        """Append the parts of a document that are not there yet; how many. A document that cannot be added is rejected:
        its id came before in this build, or is in the index with another content.
        """
        key = _hash(document.encode())
        if key in self._documents:
            self.reject(source, "the id came before in this input; give every passage an id of its own", document)
            return 0
        self._documents.add(key)
        lines = {_hash(part.id.encode()): part.line() for part in parts}
        if any(self._contents.get(part, _hash(line)) != _hash(line) for part, line in lines.items()):
            reason = "the id is in the index with another content; give it another id, or build a new index"
            self.reject(source, reason, document)
            return 0
        new = {part: line for part, line in lines.items() if part not in self._contents}
        for part, line in new.items():
            self._file.write(line)
            self._contents[part] = _hash(line)
        return len(new)

    def reject(self, source: str, reason: str, record_id: str | None = None) -> None:
        """Write down a record that cannot be used."""
        entry = {"id": record_id, "source": source, "reason": reason}
        self._rejected.write(orjson.dumps(entry, option=orjson.OPT_APPEND_NEWLINE))
        self.rejected += 1

    def close(self) -> None:
        """Write what is held back."""
        self._file.close()
        self._rejected.close()


def write_offsets(folder: Path) -> str:
    """Write where each passage begins, and return the SHA-256 of the passages' file."""
    import numpy as np

    digest, offsets = hashlib.sha256(), array("q", [0])
    with (folder / PASSAGES_FILE).open("rb") as file:
        for line in file:
            digest.update(line)
            offsets.append(offsets[-1] + len(line))
    if len(offsets) == 1:
        raise KnowledgeError(f"{folder}: none of the records is a passage; {folder / REJECTED_FILE} says why")
    temporary = folder / f".{OFFSETS_FILE}"
    np.save(temporary, np.frombuffer(offsets, dtype=np.int64))
    temporary.replace(folder / OFFSETS_FILE)
    return digest.hexdigest()
