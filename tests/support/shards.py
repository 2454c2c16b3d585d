"""The lines of a run's shards, whether they are compressed or not."""

from __future__ import annotations

from pathlib import Path

from agentsys.shards import find_shards, is_compressed, open_shard


def shard_lines(folder: Path) -> list[bytes]:
    """Every line of a run's shards, in order, with its newline."""
    lines: list[bytes] = []
    for path in find_shards(folder):
        with open_shard(path) as shard:
            lines += list(shard)
    return lines


def unpack_shards(folder: Path) -> Path:
    """Leave a run's shards as a run that was killed does: not compressed. Returns the folder."""
    for path in find_shards(folder):
        if is_compressed(path):
            with open_shard(path) as shard:
                path.with_suffix("").write_bytes(shard.read())
            path.unlink()
    return folder
