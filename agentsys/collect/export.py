"""A run's traces as one Parquet file: scalar columns for filters, the rest as JSON."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any, Final

import orjson

from agentsys.traces import RunFolderError, Trace, read_traces, shards

ROW_GROUP: Final = 1000
"""Rows of one row group; at most these are in memory."""
JSON_COLUMNS: Final = ("input", "result", "targets", "calls", "tree", "path", "measured")
"""Columns whose structure differs between records; each value is a JSON text."""


def to_parquet(folder: str | Path, path: str | Path) -> int:
    """Write all traces of a run to `path` and return their number. A failed or interrupted export leaves no file.

    Raises RunFolderError if there are no traces or `path` is no file in a folder, OSError if it cannot be written,
    ValueError for a line that is not a trace.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    if not shards(folder):
        raise RunFolderError(
            f"{folder}: no traces-*.jsonl here, compressed or not; name the output folder of a collect run"
        )
    texts = [(name, pa.string()) for name in ("id", "system", "run", "outcome", "reason", "source", *JSON_COLUMNS)]
    numbers = [(name, pa.int64()) for name in ("version", "n_calls", "prompt_tokens", "completion_tokens")]
    schema = pa.schema([*texts, *numbers])
    path = _check_file(Path(path))
    temporary = path.with_name(f".{path.name}.tmp")
    count = 0
    try:
        # opened here, because the message of an error of pyarrow is no user's line
        with temporary.open("wb") as file, pq.ParquetWriter(file, schema, compression="zstd") as writer:
            for rows in _row_groups(_row(trace) for trace in read_traces(folder)):
                writer.write_table(pa.Table.from_pylist(rows, schema))
                count += len(rows)
        os.replace(temporary, path)
    except OSError as err:
        if err.filename in (None, str(temporary)):  # else a shard cannot be read
            raise OSError(err.errno, err.strerror or str(err), str(path)) from err
        raise
    finally:
        temporary.unlink(missing_ok=True)
    return count


def _check_file(path: Path) -> Path:
    if not path.parent.is_dir():
        raise RunFolderError(f"{path}: there is no folder {path.parent}; create it, or name a file elsewhere")
    if path.is_dir():
        raise RunFolderError(f"{path} is a folder; name a file in it, such as {path / 'traces.parquet'}")
    return path


def _row(trace: Trace) -> dict[str, Any]:
    row = {name: getattr(trace, name) for name in ("version", "id", "system", "run", "outcome", "reason", "source")}
    row |= {name: orjson.dumps(getattr(trace, name)).decode() for name in JSON_COLUMNS}
    row["n_calls"] = len(trace.calls)
    row["prompt_tokens"] = sum(call.prompt_tokens for call in trace.calls)
    row["completion_tokens"] = sum(call.completion_tokens for call in trace.calls)
    return row


def _row_groups(rows: Iterable[dict[str, Any]]) -> Iterator[list[dict[str, Any]]]:
    rows = iter(rows)
    while group := list(islice(rows, ROW_GROUP)):
        yield group
