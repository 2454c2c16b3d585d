"""What an index says of itself: `manifest.json`, replaced in one step, and complete only when everything else is."""

from __future__ import annotations

import hashlib
import os
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import ClassVar, Final, Literal

import orjson
from pydantic import BaseModel, ConfigDict, ValidationError

from agentsys.knobs import knob
from agentsys.knowledge.passages import KnowledgeError

Kind = Literal["bm25", "dense", "hybrid"]

VERSION: Final = 1
_FILE: Final = "manifest.json"


@dataclass(frozen=True)
class Settings:
    """How an index is built; what is added later is built the same way. Raises KnowledgeError for a bad value."""

    panel: ClassVar[str] = "Index"
    kind: Kind = knob("bm25", "bm25 (words), dense (vectors of an embedding model) or hybrid (both)")
    embedding: str = knob("", "for dense and hybrid: sentence-transformers folder or hub name, or http://host/v1#MODEL")
    chunk_words: int = knob(
        0, "cut texts into chunks of so many words (in Chinese and the like: characters); 0: do not"
    )
    overlap_words: int = knob(0, "words that a chunk repeats of the one before")
    k1: float = knob(0.9, "BM25: how soon further occurrences of a word count less; at least 0")
    b: float = knob(0.4, "BM25: how much longer passages are held back; 0 to 1")

    def __post_init__(self) -> None:
        if self.kind not in ("bm25", "dense", "hybrid"):
            raise KnowledgeError(f"kind '{self.kind}': bm25, dense or hybrid is needed")
        if self.chunk_words < 0:
            raise KnowledgeError(f"--chunk-words {self.chunk_words}: at least 1, or 0 for whole texts")
        if not 0 <= self.overlap_words <= max(self.chunk_words - 1, 0):
            raise KnowledgeError(
                f"--overlap-words {self.overlap_words}: fewer than the {self.chunk_words} of --chunk-words are needed"
            )
        if self.k1 < 0 or not 0 <= self.b <= 1:
            raise KnowledgeError(f"--k1 {self.k1} --b {self.b}: k1 is at least 0, and b from 0 to 1")

    @property
    def parts(self) -> tuple[Kind, ...]:
        """The kinds of search that an index with these settings can do, the best first."""
        return ("hybrid", "bm25", "dense") if self.kind == "hybrid" else (self.kind,)


class Embedding(BaseModel):
    """The embedding model of an index."""

    model_config = ConfigDict(frozen=True)
    name: str
    dimension: int


class Manifest(BaseModel):
    """The facts of an index folder."""

    model_config = ConfigDict(frozen=True)
    version: int = VERSION
    complete: bool
    settings: Settings
    embedding: Embedding | None
    passages: int = 0
    sha256: str = ""
    """Of the passages' file."""

    @property
    def digest(self) -> str:
        """16 hex digits that stand for the passages, the settings and the embedding model wherever it lies."""
        settings = asdict(self.settings) | {"embedding": self.embedding and self.embedding.model_dump()}
        facts = {"version": self.version, "sha256": self.sha256, "settings": settings}
        return hashlib.sha256(orjson.dumps(facts, option=orjson.OPT_SORT_KEYS)).hexdigest()[:16]


def read_manifest(folder: Path) -> Manifest | None:
    """The manifest of a folder, or None if it has none. Raises KnowledgeError for one that is not ours."""
    path = folder / _FILE
    try:
        data = orjson.loads(path.read_bytes())
        if data.get("version") != VERSION:
            raise KnowledgeError(
                f"{path} has version {data.get('version')}, not {VERSION}; remove the folder and build it again"
            )
        return Manifest.model_validate(data)
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (orjson.JSONDecodeError, AttributeError, ValidationError):
        raise KnowledgeError(f"{path} is not the manifest of an index; name an index folder") from None


def finished(folder: Path) -> Manifest:
    """The manifest of an index that can be searched. Raises KnowledgeError if there is none, or it is half built."""
    manifest = read_manifest(folder)
    if manifest is None:
        raise KnowledgeError(
            f"{folder} is no index; make one with: python -m agentsys.knowledge build PASSAGES --out {folder}"
        )
    if not manifest.complete:
        raise KnowledgeError(f"{folder} is not finished; run its build command again, it goes on where it stopped")
    return manifest


def write_manifest(folder: Path, manifest: Manifest) -> None:
    """Replace the manifest; a reader sees the old one or the new one, never a part."""
    data = manifest.model_dump() | {"digest": manifest.digest}
    temporary = folder / f".{_FILE}.tmp"
    temporary.write_bytes(orjson.dumps(data, option=orjson.OPT_INDENT_2))
    os.replace(temporary, folder / _FILE)
