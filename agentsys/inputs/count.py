"""Counts the records of an input before it is read, where that takes a fraction of a second."""

from __future__ import annotations

from collections.abc import Iterator, Sized
from itertools import islice
from pathlib import Path
from typing import Any, Final

from agentsys.inputs.files import InputFile, find_address, find_files
from agentsys.inputs.lines import InputError

MAX_COUNTED_BYTES: Final = 2**28
"""Size of the files whose lines are counted, all together."""
MAX_READ_BYTES: Final = 2**24
"""Size of the files that are read to be counted, as a line of CSV may be a part of a record."""
_LINE_FORMATS: Final = (".jsonl", ".ndjson", ".txt")


def count_records(records: Any, limit: int | None = None) -> int | None:
    """How many records a run reads, at most `limit`. `limit` if counting them is expensive or impossible.

    Lists, tables in memory and local files that are not packed are counted; Parquet files of any size, CSV and JSON
    files up to MAX_READ_BYTES. A record that cannot be used counts too.
    """
    if isinstance(records, Sized) and not isinstance(records, str):
        return len(records) if limit is None else min(len(records), limit)
    place = str(records)
    if not isinstance(records, str | Path) or place == "-" or place.startswith("hf:") or find_address(place):
        return limit
    try:
        total = _count(find_files(place), limit)
    except (InputError, OSError):  # the run itself says why a file cannot be read
        return limit
    if total is None or limit is None:
        return limit if total is None else total
    return min(total, limit)


def _count(files: list[InputFile], limit: int | None) -> int | None:
    """The records of files, counted until there are `limit`. None if one of them cannot be counted."""
    size = sum(Path(file.name).stat().st_size for file in files if file.suffix != ".parquet")
    total = 0
    for file in files:
        left = None if limit is None else limit - total
        if file.suffix == ".parquet":
            count = _count_parquet(file)
        elif file.suffix in _LINE_FORMATS and not file.packing and (left is not None or size <= MAX_COUNTED_BYTES):
            count = _count_lines(file, left)
        elif not file.packing and size <= MAX_READ_BYTES:
            count = _length(islice(file.read("text"), left))
        else:
            return None
        if count is None:
            return None
        total += count
        if limit is not None and total >= limit:
            break
    return total


def _count_parquet(file: InputFile) -> int | None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        return int(pq.read_metadata(file.name).num_rows)
    except pa.ArrowException:
        return None


def _count_lines(file: InputFile, limit: int | None) -> int:
    with file.open() as lines:
        return _length(islice((line for line in lines if not line.isspace()), limit))


def _length(items: Iterator[Any]) -> int:
    return sum(1 for _ in items)
