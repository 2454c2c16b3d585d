"""A run's traces as one Parquet file: scalar columns for filters, the rest as JSON."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any, Final

import orjson

from agentsys.collect.store import RunFolderError
from agentsys.traces import Trace, read_traces, shards

ROW_GROUP: Final = 1000
"""Rows of one row group; at most these are in memory."""
JSON_COLUMNS: Final = ("input", "result", "targets", "calls", "tree", "measured")
"""Columns whose structure differs between records; each value is a JSON text."""


def to_parquet(folder: str | Path, path: str | Path) -> int:
    """Write all traces of a run to `path` and return their number. Raises RunFolderError if there are none, OSError."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    if not shards(folder):
        raise RunFolderError(f"{folder}: no traces-*.jsonl here; name the output folder of a collect run")
    texts = [(name, pa.string()) for name in ("id", "system", "run", "outcome", "reason", "source", *JSON_COLUMNS)]
    numbers = [(name, pa.int64()) for name in ("version", "n_calls", "prompt_tokens", "completion_tokens")]
    schema = pa.schema([*texts, *numbers])
    path = Path(path)
    temporary = path.with_name(f".{path.name}.tmp")
    count = 0
    with pq.ParquetWriter(temporary, schema, compression="zstd") as writer:
        for rows in _row_groups(_row(trace) for trace in read_traces(folder)):
            writer.write_table(pa.Table.from_pylist(rows, schema))
            count += len(rows)
    os.replace(temporary, path)
    return count


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
