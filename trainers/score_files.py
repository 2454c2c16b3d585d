"""The scores of a chunk folder as files: one Parquet file a shard, and beside it what an unfinished shard has so far.

`scores-00000.part` is a row of RECORDs, one for each chunk in the order in which their batches finished.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import numpy as np

from trainers.corpus import ChunkFolder, Shard, read_json, read_table
from trainers.students import TrainerError

RECORD: Final = np.dtype([("place", "<i4"), ("nll", "<f4"), ("tokens", "<i4")])
"""A chunk's place in its shard, its mean NLL in nats a token, and how many tokens that is the mean of."""


def kept_records(part: Path) -> np.ndarray[Any, Any]:
    """The records of finished batches (n,); a torn one at the end is cut off."""
    if not part.exists():
        return np.zeros(0, RECORD)
    size = part.stat().st_size
    os.truncate(part, size - size % RECORD.itemsize)
    return np.fromfile(part, RECORD)


def result_file(out: Path, shard: Shard) -> Path:
    """Where the scores of a shard are once all are there."""
    return out / f"{shard.path.stem.replace('chunks', 'scores')}.parquet"


def part_file(out: Path, shard: Shard) -> Path:
    """Where they are until then."""
    return result_file(out, shard).with_suffix(".part")


def scored_chunks(out: Path, folder: ChunkFolder) -> int:
    """How many chunks have a score, read from the sizes of files that any process may be writing."""
    return sum(_scored(out, shard) for shard in folder.shards)


def finished(out: Path, folder: ChunkFolder) -> bool:
    """Whether every shard is scored."""
    return all(result_file(out, shard).exists() for shard in folder.shards)


def _scored(out: Path, shard: Shard) -> int:
    if result_file(out, shard).exists():
        return shard.chunks
    part = part_file(out, shard)
    try:
        return min(shard.chunks, part.stat().st_size // RECORD.itemsize)
    except FileNotFoundError:
        return 0


def read_scores(out: Path, folder: ChunkFolder) -> Iterator[tuple[Shard, Any]]:
    """The finished scores of a folder shard by shard: a table (id, nll, tokens), one row a chunk, in its order.

    Raises TrainerError unless every chunk of `folder` has its score here, under its own id.
    """
    manifest = read_json(out / "manifest.json", f"{out} has no scores; make them with the step score")
    if manifest.get("chunks_sha256") != folder.manifest["sha256"]:
        raise TrainerError(f"{out} has the scores of other chunks than those in {folder.folder}; score these")
    for shard in folder.shards:
        if not result_file(out, shard).exists():
            have = scored_chunks(out, folder)
            raise TrainerError(f"{out} has scores for {have} of {folder.chunks} chunks; let the step score finish")
        table = read_table(result_file(out, shard))
        if table.num_rows != shard.chunks or table.column("id") != shard.read("id").column("id"):
            raise TrainerError(
                f"{result_file(out, shard)} has {table.num_rows} scores for the {shard.chunks} chunks of {shard.path}, "
                "or in another order; remove it and run the step score again"
            )
        yield shard, table
