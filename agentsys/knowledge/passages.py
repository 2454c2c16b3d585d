"""Passages, hits, the retriever protocol, and memory-mapped passages on disk.

An index keeps its passages in `passages.jsonl`, one flat JSON object per line, and the offsets of the lines in
`offsets.npy`, int64 (passages + 1,). Both are memory-mapped, so that a million passages take no memory until they are
read. A passage's *position* is its line number from 0: indexes refer to it, and it breaks ties.
"""

from __future__ import annotations

import mmap
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, Protocol

import orjson

PASSAGES_FILE: Final = "passages.jsonl"
OFFSETS_FILE: Final = "offsets.npy"


class KnowledgeError(ValueError):
    """An index, a passage source or a setting that cannot be used; the message is one line that names the fix."""


@dataclass(frozen=True, slots=True)
class Passage:
    """A piece of text that can be retrieved. Its JSON form is {"id", "title", "text"} plus the entries of `meta`."""

    id: str
    text: str
    title: str = ""
    meta: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Passage:
        """Return the passage of a JSON object."""
        meta = {name: value for name, value in data.items() if name not in ("id", "title", "text")}
        return cls(data["id"], data["text"], data["title"], meta)

    def to_line(self) -> bytes:
        """Return the passage as a line of JSON."""
        data = {"id": self.id, "title": self.title, "text": self.text, **self.meta}
        return orjson.dumps(data, option=orjson.OPT_APPEND_NEWLINE)

    @property
    def indexed_text(self) -> str:
        """The text that is indexed: the title, if there is one, and the text."""
        return f"{self.title}\n{self.text}" if self.title else self.text


@dataclass(frozen=True, slots=True)
class Hit:
    """A retrieved passage and its score: higher is better; scores of different queries are not comparable."""

    passage: Passage
    score: float


class Retriever(Protocol):
    """Retrieves passages: an index (load_retriever), or any object with this method."""

    async def search(self, queries: Sequence[str], k: int) -> list[list[Hit]]:
        """Return at most `k` hits per query, best first, ties in the order of the passages."""
        ...


class Passages:
    """The passages of an index folder by position. Raises KnowledgeError if the files cannot be read."""

    def __init__(self, folder: str | Path, count: int | None = None) -> None:
        """`count`: the number of passages that the folder must have."""
        self._file = Path(folder) / PASSAGES_FILE
        self._offsets = _load_offsets(Path(folder))
        try:
            with self._file.open("rb") as file:
                self._text = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        except (OSError, ValueError) as err:
            raise damaged(self._file, getattr(err, "strerror", None) or str(err)) from None
        if count not in (None, len(self)) or self._offsets[-1] > len(self._text):
            fault = f"it is of {len(self):,} passages up to byte {self._offsets[-1]:,}, which the index does not have"
            raise damaged(self._file.with_name(OFFSETS_FILE), fault)

    def __len__(self) -> int:
        return len(self._offsets) - 1

    def __getitem__(self, position: int) -> Passage:
        start, end = self._offsets[position : position + 2].tolist()
        try:
            return read_passage(self._text[start:end])
        except ValueError as err:
            raise damaged(self._file, str(err), position + 1) from None

    def __iter__(self) -> Iterator[Passage]:
        return (self[position] for position in range(len(self)))


def _load_offsets(folder: Path) -> Any:
    """Rising offsets, int64 (passages + 1,). Raises KnowledgeError."""
    import numpy as np

    path = folder / OFFSETS_FILE
    try:
        offsets = np.load(path, mmap_mode="r")
        is_whole = offsets.dtype == np.int64 and offsets.ndim == 1 and len(offsets) > 1
        is_rising = is_whole and offsets[0] == 0 and bool((np.diff(offsets) > 0).all())
    except Exception as err:  # a damaged header can raise nearly anything: EOFError, SyntaxError, TypeError ...
        raise damaged(path, getattr(err, "strerror", None) or f"{type(err).__name__}: {err}") from None
    if not is_rising:
        raise damaged(path, "it does not hold rising offsets")
    return offsets


def read_passage(line: bytes) -> Passage:
    """The passage of a line. Raises ValueError for another content."""
    data = orjson.loads(line)
    if not isinstance(data, dict) or not all(isinstance(data.get(name), str) for name in ("id", "title", "text")):
        raise ValueError("not a passage, which is an object with the texts id, title and text")
    return Passage.from_json(data)


def damaged(path: Path, fault: str, line: int | None = None) -> KnowledgeError:
    """The error for a damaged file of an index, in one line."""
    place = f"{path}:{line}" if line else f"{path}"
    return KnowledgeError(f"{place} is damaged: {' '.join(fault.split())[:200]}; remove the folder and build it again")
