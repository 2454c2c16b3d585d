"""The manifest of an index, `manifest.json`: its settings, embedding model and digest. It is replaced atomically."""

from __future__ import annotations

import hashlib
import os
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import ClassVar, Final, Literal

import orjson
from pydantic import BaseModel, ConfigDict, ValidationError

from agentsys.knobs import knob
from agentsys.knowledge.passages import OFFSETS_FILE, PASSAGES_FILE, KnowledgeError, damaged
from agentsys.paths import replace_file, sync_file

Kind = Literal["bm25", "dense", "hybrid"]

VERSION: Final = 1
_FILE: Final = "manifest.json"
_BLOCK: Final = 1 << 20


@dataclass(frozen=True)
class IndexSettings:
    """Settings of an index, which later additions share. Raises KnowledgeError for an invalid value."""

    panel: ClassVar[str] = "Index"
    kind: Kind = knob("bm25", "bm25 (words), dense (vectors of an embedding model) or hybrid (both)")
    embedding: str = knob("", "for dense and hybrid: sentence-transformers folder or hub name, or http://host/v1#MODEL")
    chunk_words: int = knob(0, "split texts into chunks of this many words (characters in Chinese); 0: no splitting")
    overlap_words: int = knob(0, "words at the start of a chunk that repeat the end of the previous one")
    k1: float = knob(0.9, "BM25's k1, at least 0: a higher value gives repeated words more weight")
    b: float = knob(0.4, "BM25's b, 0 to 1: a higher value penalizes long passages more")

    def __post_init__(self) -> None:
        if self.kind not in ("bm25", "dense", "hybrid"):
            raise KnowledgeError(f"--kind {self.kind}: must be bm25, dense or hybrid")
        if self.chunk_words < 0:
            raise KnowledgeError(f"--chunk-words {self.chunk_words}: must be at least 1, or 0 for no splitting")
        if not 0 <= self.overlap_words <= max(self.chunk_words - 1, 0):
            raise KnowledgeError(
                f"--overlap-words {self.overlap_words}: must be less than --chunk-words {self.chunk_words}"
            )
        if self.k1 < 0 or not 0 <= self.b <= 1:
            raise KnowledgeError(f"--k1 {self.k1} --b {self.b}: k1 must be at least 0, and b from 0 to 1")

    @property
    def parts(self) -> tuple[Kind, ...]:
        """The kinds of search that the index supports, best first."""
        return ("hybrid", "bm25", "dense") if self.kind == "hybrid" else (self.kind,)


class Embedding(BaseModel):
    """The embedding model of an index."""

    model_config = ConfigDict(frozen=True)
    name: str
    dimension: int


class FileStamp(BaseModel):
    """A finished file of an index: its size, its time of change, and its SHA-256, which is compared if these differ."""

    model_config = ConfigDict(frozen=True)
    bytes: int
    mtime_ns: int
    sha256: str


class Manifest(BaseModel):
    """Content of manifest.json."""

    model_config = ConfigDict(frozen=True)
    version: int = VERSION
    complete: bool
    settings: IndexSettings
    embedding: Embedding | None
    passages: int = 0
    sha256: str = ""
    """Of the file of passages."""
    files: dict[str, FileStamp] = {}
    """The files of passages and words by their path in the folder; empty in an index of before they were recorded."""

    @property
    def digest(self) -> str:
        """16 hex digits that identify the passages, the settings and the embedding model."""
        settings = asdict(self.settings) | {"embedding": self.embedding and self.embedding.model_dump()}
        facts = {"version": self.version, "sha256": self.sha256, "settings": settings}
        return hashlib.sha256(orjson.dumps(facts, option=orjson.OPT_SORT_KEYS)).hexdigest()[:16]


def read_manifest(folder: str | Path) -> Manifest | None:
    """Read the manifest of a folder, or None if it has none. Raises KnowledgeError for an invalid one."""
    path = Path(folder) / _FILE
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
        raise KnowledgeError(
            f"{path} is not the manifest of an index, or is damaged; name an index folder, or remove the folder and "
            "build it again"
        ) from None


def read_complete_manifest(folder: str | Path) -> Manifest:
    """Read the manifest of an index that can be searched. Raises KnowledgeError if it is missing or incomplete."""
    manifest = read_manifest(folder)
    if manifest is None:
        raise KnowledgeError(
            f"{folder} is not an index; build one with: python -m agentsys.knowledge build PASSAGES --out {folder}"
        )
    if not manifest.complete:
        raise KnowledgeError(f"{folder} is incomplete; rerun its build command to resume")
    return manifest


def stamp_files(folder: Path) -> dict[str, FileStamp]:
    """The stamps of the passages and of the BM25 part, once the disk holds them."""
    stamps: dict[str, FileStamp] = {}
    for path in [folder / PASSAGES_FILE, folder / OFFSETS_FILE, *sorted(folder.glob("bm25/*"))]:
        with path.open("rb+") as file:
            sync_file(file)
            status = os.fstat(file.fileno())
        sha256 = _sha256(path, status.st_size)
        name = path.relative_to(folder).as_posix()
        stamps[name] = FileStamp(bytes=status.st_size, mtime_ns=status.st_mtime_ns, sha256=sha256)
    return stamps


def check_files(folder: Path, manifest: Manifest) -> None:
    """Raises KnowledgeError for a file that is not as it was built.

    A file is read (1.3 GB per second) only if its time of change is another, as that of a copy.
    """
    for name, stamp in manifest.files.items():
        path = folder / name
        try:
            if fault := _find_change(path, stamp):
                raise damaged(path, fault)
        except OSError as err:
            raise damaged(path, err.strerror or str(err)) from None


def _find_change(path: Path, stamp: FileStamp) -> str:
    """What is not as it was built; "" if all is. A build in progress appends passages. Raises OSError."""
    status = path.stat()
    grows = path.name == PASSAGES_FILE
    if status.st_size < stamp.bytes or (status.st_size > stamp.bytes and not grows):
        return f"it has {status.st_size:,} bytes, not {stamp.bytes:,}"
    if (status.st_size, status.st_mtime_ns) == (stamp.bytes, stamp.mtime_ns):
        return ""
    return "" if _sha256(path, stamp.bytes) == stamp.sha256 else "its bytes are not those that were built (SHA-256)"


def _sha256(path: Path, size: int) -> str:
    """The digest of the first `size` bytes of a file."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while size > 0 and (block := file.read(min(size, _BLOCK))):
            digest.update(block)
            size -= len(block)
    return digest.hexdigest()


def write_manifest(folder: Path, manifest: Manifest) -> None:
    """Replace the manifest atomically: a reader sees the old or the new one."""
    data = manifest.model_dump() | {"digest": manifest.digest}
    replace_file(folder / _FILE, orjson.dumps(data, option=orjson.OPT_INDENT_2))
