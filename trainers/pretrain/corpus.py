"""A corpus for pre-training: documents from files, and folders of chunks.

A chunk folder has `chunks-00000.parquet`, ... and `manifest.json`, which is written last: a folder without it is
unfinished. A scorer can process each shard of chunks on its own.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any, Final

import numpy as np
import orjson

from agentsys.paths import replace_file
from agentsys.trainers.loading import TrainerError, tokenizer_digest
from agentsys.trainers.pretrain.chunks import Chunk, Document, Encoder

Numbers = np.ndarray[Any, np.dtype[Any]]

SHARD_CHUNKS: Final = 10_000
"""Chunks per file: at most ten million tokens at a length of 1,024."""

FORMAT_KEYS: Final = ("tokenizer", "tokenizer_sha256", "end_id", "end_token", "bos_id", "max_length")
"""Keys of a corpus's manifest that also hold for every selection from it."""

DEFAULT_DOMAIN: Final = "corpus"
_MANIFEST: Final = "manifest.json"


def read_documents(files: Sequence[str | Path]) -> Iterator[Document]:
    """The documents of `files`, in order: a .txt file is one document, other formats have one per record, in `text`.

    `domain` is a field of the record; without it, the whole corpus is one domain. Raises TrainerError at the first
    record without text, and InputError (agentsys.records) for a file that cannot be read.
    """
    from agentsys.records import BadRecord, read_records

    for file in map(Path, files):
        if file.suffix.lower() == ".txt":
            yield Document(_read_text(file), DEFAULT_DOMAIN)
            continue
        for record in read_records(file):
            if isinstance(record, BadRecord):
                raise TrainerError(f"{record.source}: {record.reason}")
            text, domain = record.data.get("text"), record.data.get("domain")
            if not isinstance(text, str):
                raise TrainerError(f"{record.source}: no text in the field 'text', which every record needs")
            if not isinstance(domain, str | None):
                raise TrainerError(f"{record.source}: the field 'domain' is not a string; give the name of the domain")
            yield Document(text, domain or DEFAULT_DOMAIN)


def _read_text(file: Path) -> str:
    try:
        return file.read_bytes().decode()  # read_text would change line ends
    except OSError as err:
        raise TrainerError(f"--corpus {file}: {err.strerror}; check the path") from None
    except UnicodeDecodeError as err:
        raise TrainerError(f"--corpus {file}: byte {err.start + 1} is not UTF-8; convert the file to UTF-8") from None


def chunk_schema(*more: tuple[str, Any]) -> Any:
    """The Arrow schema of a shard, with `more` columns appended."""
    import pyarrow as pa

    columns = [
        ("id", pa.string()),
        ("domain", pa.string()),
        ("input_ids", pa.list_(pa.int32())),
        ("text", pa.large_string()),
        ("document_ends", pa.list_(pa.int32())),
    ]
    return pa.schema([*columns, *more])


@dataclass
class ChunkWriter:
    """Writes a chunk folder shard by shard; `finish` completes it.

    Raises TrainerError if the folder is complete already. Shards of a killed run are removed.
    """

    folder: Path
    shard_chunks: int = SHARD_CHUNKS
    domains: dict[str, dict[str, int]] = field(default_factory=dict)
    _pending: list[Chunk] = field(default_factory=list)
    _shards: list[dict[str, Any]] = field(default_factory=list)

    def __post_init__(self) -> None:
        """Create the folder."""
        self.folder.mkdir(parents=True, exist_ok=True)
        if (self.folder / _MANIFEST).exists():
            raise TrainerError(f"{self.folder} already has a corpus; remove it, or give another --out")
        for shard in self.folder.glob("chunks-*.parquet"):
            shard.unlink()

    def add(self, chunk: Chunk) -> None:
        """Add the next chunk."""
        self._pending.append(chunk)
        if len(self._pending) == self.shard_chunks:
            self._flush()

    def _flush(self) -> None:
        import pyarrow as pa

        self.add_shard(pa.Table.from_pylist([asdict(chunk) for chunk in self._pending], schema=chunk_schema()))
        self._pending.clear()

    def add_shard(self, table: Any) -> None:
        """Write the next shard, a table with at least the columns of `chunk_schema`."""
        name = f"chunks-{len(self._shards):05d}.parquet"
        write_table(table, self.folder / name)
        values, bounds = flatten_lists(table.column("input_ids"))
        self._shards.append({"file": name, "chunks": table.num_rows, "sha256": _digest(table, values, bounds)})
        for domain, tokens in zip(table.column("domain").to_pylist(), np.diff(bounds).tolist(), strict=True):
            counts = self.domains.setdefault(domain, {"chunks": 0, "tokens": 0})
            counts["chunks"] += 1
            counts["tokens"] += tokens

    def finish(self, **facts: Any) -> ChunkFolder:
        """Write the manifest, with `facts` in it, and open the folder. Raises TrainerError if there is no chunk."""
        if self._pending:
            self._flush()
        chunks = sum(shard["chunks"] for shard in self._shards)
        if not chunks:
            raise TrainerError(f"{self.folder}: the corpus has no text; check its files")
        digest = hashlib.sha256("".join(shard["sha256"] for shard in self._shards).encode()).hexdigest()
        tokens = sum(counts["tokens"] for counts in self.domains.values())
        counts = {"chunks": chunks, "tokens": tokens, "domains": self.domains}
        write_json(self.folder / _MANIFEST, {**facts, **counts, "sha256": digest, "shards": self._shards})
        return ChunkFolder(self.folder)


@dataclass(frozen=True, slots=True)
class Shard:
    """One file of a chunk folder."""

    path: Path
    chunks: int

    def read(self, *columns: str) -> Any:
        """The shard as an Arrow table, with all or the named columns. Raises TrainerError for a damaged file."""
        return read_table(self.path, *columns)


class ChunkFolder:
    """Reads a complete chunk folder. Raises TrainerError for anything else."""

    def __init__(self, folder: str | Path) -> None:
        self.folder = folder = Path(folder)
        self.manifest = read_json(
            folder / _MANIFEST, f"{folder} is not a finished corpus; make one with the command chunk"
        )
        try:
            self.shards = [Shard(folder / one["file"], one["chunks"]) for one in self.manifest["shards"]]
            self.chunks: int = self.manifest["chunks"]
            self.end_id: int = self.manifest["end_id"]
        except (KeyError, TypeError):
            raise TrainerError(f"{folder / _MANIFEST} is not the manifest of a corpus; give a chunk folder") from None


def flatten_lists(column: Any) -> tuple[Numbers, Numbers]:
    """Flatten a column of lists: all values (n,), and the bounds of each row's values (rows + 1,)."""
    lists = column.combine_chunks()
    lengths = lists.value_lengths().to_numpy(zero_copy_only=False)
    return lists.flatten().to_numpy(zero_copy_only=False), np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)


def _digest(table: Any, values: Numbers, bounds: Numbers) -> str:
    """SHA-256 of the ids of the chunks and of their tokens."""
    digest = hashlib.sha256("\n".join(table.column("id").to_pylist()).encode())
    digest.update(bounds.tobytes())
    digest.update(np.ascontiguousarray(values, dtype=np.int32).tobytes())
    return digest.hexdigest()


def write_table(table: Any, path: Path) -> None:
    """Write a Parquet file atomically."""
    import pyarrow.parquet as pq

    temporary = path.with_name(f".{path.name}.tmp")
    pq.write_table(table, temporary, compression="zstd")
    os.replace(temporary, path)


def read_table(path: Path, *columns: str) -> Any:
    """A Parquet file as an Arrow table. Raises TrainerError for a missing or damaged file."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        return pq.read_table(path, columns=list(columns) or None)
    except (OSError, pa.ArrowException) as err:
        raise TrainerError(f"{path} cannot be read: {' '.join(str(err).split())[:200]}; remove it and rerun") from None


def write_json(path: Path, value: Any) -> None:
    """Write a JSON file atomically."""
    replace_file(path, orjson.dumps(value, option=orjson.OPT_INDENT_2))


def read_json(path: Path, missing: str) -> dict[str, Any]:
    """A JSON object. Raises TrainerError with the message `missing` if there is no file."""
    try:
        return dict(orjson.loads(path.read_bytes()))
    except FileNotFoundError:
        raise TrainerError(missing) from None
    except (ValueError, TypeError):
        raise TrainerError(f"{path} is not a JSON object; remove it and rerun") from None


def write_chunks(chunks: Iterable[Chunk], writer: ChunkWriter, **facts: Any) -> ChunkFolder:
    """Write all chunks and complete the folder."""
    for chunk in chunks:
        writer.add(chunk)
    return writer.finish(**facts)


def read_chunks(folder: ChunkFolder) -> Iterator[Chunk]:
    """The chunks of a folder, in order, with one shard in memory at a time."""
    names = tuple(item.name for item in fields(Chunk))
    for shard in folder.shards:
        for row in shard.read(*names).to_pylist():
            yield Chunk(**row)


def describe_format(encoder: Encoder, tokenizer: Any, name: str, max_length: int) -> dict[str, Any]:
    """The manifest's facts on how chunks were made: FORMAT_KEYS and their values."""
    return {
        "tokenizer": name,
        "tokenizer_sha256": tokenizer_digest(tokenizer),
        "end_id": encoder.end_id,
        "end_token": encoder.end_token,
        "bos_id": encoder.bos_id,
        "max_length": max_length,
    }
