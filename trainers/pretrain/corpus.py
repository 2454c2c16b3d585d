"""A corpus for pre-training: documents from files, and the folder that its chunks are kept in.

A chunk folder holds `chunks-00000.parquet`, ... and `manifest.json`, which is written last: a folder without one is not
finished. A shard of chunks is a complete job for a scorer.
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

from agentsys.trainers.loading import TrainerError, tokenizer_digest
from agentsys.trainers.pretrain.chunks import Chunk, Document, Encoder

Numbers = np.ndarray[Any, np.dtype[Any]]

SHARD_CHUNKS: Final = 10_000
"""Chunks in a file: ten million tokens at most, of a length of 1,024."""

FORMAT_FACTS: Final = ("tokenizer", "tokenizer_sha256", "end_id", "end_token", "bos_id", "max_length")
"""What of a corpus's manifest holds for every selection from it."""

DEFAULT_DOMAIN: Final = "corpus"
_MANIFEST: Final = "manifest.json"


def read_documents(files: Sequence[Path]) -> Iterator[Document]:
    """The documents of `files`, in order: a .txt file is one, every other format has one in each record's `text`.

    `domain` is taken from the record; without it, all of a corpus is one domain. Raises TrainerError at the first
    record that has no text, and InputError (agentsys.records) for a file that cannot be read.
    """
    from agentsys.records import BadRecord, read_records

    for file in files:
        if file.suffix.lower() == ".txt":
            yield Document(_whole(file), DEFAULT_DOMAIN)
            continue
        for record in read_records(file):
            if isinstance(record, BadRecord):
                raise TrainerError(f"{record.source}: {record.reason}")
            text, domain = record.data.get("text"), record.data.get("domain")
            if not isinstance(text, str):
                raise TrainerError(f"{record.source}: no text in the field 'text'; every record of a corpus needs one")
            if not isinstance(domain, str | None):
                raise TrainerError(f"{record.source}: the field 'domain' is no string; write its name")
            yield Document(text, domain or DEFAULT_DOMAIN)


def _whole(file: Path) -> str:
    try:
        return file.read_bytes().decode()  # not read_text: it would turn the line ends of other systems into ours
    except OSError as err:
        raise TrainerError(f"--corpus {file}: {err.strerror}; check the path") from None
    except UnicodeDecodeError as err:
        raise TrainerError(f"--corpus {file}: byte {err.start + 1} is not UTF-8; convert the file to UTF-8") from None


def chunk_schema(*more: tuple[str, Any]) -> Any:
    """The Arrow schema of a shard, with further columns behind."""
    import pyarrow as pa

    known = [
        ("id", pa.string()),
        ("domain", pa.string()),
        ("input_ids", pa.list_(pa.int32())),
        ("text", pa.large_string()),
        ("document_ends", pa.list_(pa.int32())),
    ]
    return pa.schema([*known, *more])


@dataclass
class Writer:
    """Writes a chunk folder shard by shard; `finish` makes it one that can be read.

    Raises TrainerError where a finished one is already. Shards of a run that was killed are removed.
    """

    folder: Path
    shard_chunks: int = SHARD_CHUNKS
    domains: dict[str, dict[str, int]] = field(default_factory=dict)
    _held: list[Chunk] = field(default_factory=list)
    _shards: list[dict[str, Any]] = field(default_factory=list)

    def __post_init__(self) -> None:
        """Make the folder."""
        self.folder.mkdir(parents=True, exist_ok=True)
        if (self.folder / _MANIFEST).exists():
            raise TrainerError(f"{self.folder} has a corpus already; choose another --out or remove it")
        for left in self.folder.glob("chunks-*.parquet"):
            left.unlink()

    def add(self, chunk: Chunk) -> None:
        """Take the next chunk."""
        self._held.append(chunk)
        if len(self._held) == self.shard_chunks:
            self._flush()

    def _flush(self) -> None:
        import pyarrow as pa

        self.add_shard(pa.Table.from_pylist([asdict(chunk) for chunk in self._held], schema=chunk_schema()))
        self._held.clear()

    def add_shard(self, table: Any) -> None:
        """Write a table with at least the columns of `chunk_schema` as the next shard."""
        name = f"chunks-{len(self._shards):05d}.parquet"
        write_table(table, self.folder / name)
        values, bounds = lists_of(table.column("input_ids"))
        self._shards.append({"file": name, "chunks": table.num_rows, "sha256": _digest(table, values, bounds)})
        for domain, tokens in zip(table.column("domain").to_pylist(), np.diff(bounds).tolist(), strict=True):
            counts = self.domains.setdefault(domain, {"chunks": 0, "tokens": 0})
            counts["chunks"] += 1
            counts["tokens"] += tokens

    def finish(self, **facts: Any) -> ChunkFolder:
        """Write the manifest with `facts` in it, and open the folder. Raises TrainerError if there is no chunk."""
        if self._held:
            self._flush()
        chunks = sum(shard["chunks"] for shard in self._shards)
        if not chunks:
            raise TrainerError(f"{self.folder}: the corpus has no text; check the files")
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
        """The shard as an Arrow table, all columns or those named. Raises TrainerError for a damaged file."""
        return read_table(self.path, *columns)


class ChunkFolder:
    """A finished chunk folder, for reading. Raises TrainerError for anything else."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.manifest = read_json(folder / _MANIFEST, f"{folder} is no finished corpus; make it with the step chunk")
        try:
            self.shards = [Shard(folder / one["file"], one["chunks"]) for one in self.manifest["shards"]]
            self.chunks: int = self.manifest["chunks"]
            self.end_id: int = self.manifest["end_id"]
        except (KeyError, TypeError):
            raise TrainerError(f"{folder / _MANIFEST} is not a corpus's manifest; name a folder of chunks") from None


def lists_of(column: Any) -> tuple[Numbers, Numbers]:
    """A column of lists without copies for each row: all values (n,), and the bounds (rows + 1,) of each row's."""
    whole = column.combine_chunks()
    lengths = whole.value_lengths().to_numpy(zero_copy_only=False)
    return whole.flatten().to_numpy(zero_copy_only=False), np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)


def _digest(table: Any, values: Numbers, bounds: Numbers) -> str:
    """SHA-256 of the ids of the chunks and their tokens."""
    digest = hashlib.sha256("\n".join(table.column("id").to_pylist()).encode())
    digest.update(bounds.tobytes())
    digest.update(np.ascontiguousarray(values, dtype=np.int32).tobytes())
    return digest.hexdigest()


def write_table(table: Any, path: Path) -> None:
    """Write a Parquet file whole or not at all."""
    import pyarrow.parquet as pq

    temporary = path.with_name(f".{path.name}.tmp")
    pq.write_table(table, temporary, compression="zstd")
    os.replace(temporary, path)


def read_table(path: Path, *columns: str) -> Any:
    """A Parquet file as an Arrow table. Raises TrainerError for a missing or damaged one."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        return pq.read_table(path, columns=list(columns) or None)
    except (OSError, pa.ArrowException) as err:
        raise TrainerError(f"{path} cannot be read: {' '.join(str(err).split())[:200]}; make it again") from None


def write_json(path: Path, value: Any) -> None:
    """Write a JSON file whole or not at all."""
    temporary = path.with_name(f".{path.name}.tmp")
    temporary.write_bytes(orjson.dumps(value, option=orjson.OPT_INDENT_2))
    os.replace(temporary, path)


def read_json(path: Path, missing: str) -> dict[str, Any]:
    """A JSON object. Raises TrainerError with the words of `missing` if there is none."""
    try:
        return dict(orjson.loads(path.read_bytes()))
    except FileNotFoundError:
        raise TrainerError(missing) from None
    except (ValueError, TypeError):
        raise TrainerError(f"{path} is not a JSON object; make it again") from None


def write_chunks(chunks: Iterable[Chunk], writer: Writer, **facts: Any) -> ChunkFolder:
    """Write all chunks and finish the folder."""
    for chunk in chunks:
        writer.add(chunk)
    return writer.finish(**facts)


def chunks_of(folder: ChunkFolder) -> Iterator[Chunk]:
    """The chunks of a folder in order, one shard in memory at a time."""
    names = tuple(item.name for item in fields(Chunk))
    for shard in folder.shards:
        for row in shard.read(*names).to_pylist():
            yield Chunk(**row)


def facts_of(encoder: Encoder, tokenizer: Any, name: str, max_length: int) -> dict[str, Any]:
    """What a manifest says of how its chunks were made (FORMAT_FACTS)."""
    return {
        "tokenizer": name,
        "tokenizer_sha256": tokenizer_digest(tokenizer),
        "end_id": encoder.end_id,
        "end_token": encoder.end_token,
        "bos_id": encoder.bos_id,
        "max_length": max_length,
    }
