"""Rows of Parquet files, and of tables in memory: pandas, polars, Arrow and what else speaks Arrow's C interface."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from agentsys.inputs.csv_text import find_duplicate
from agentsys.inputs.lines import MAX_LINE, Fault, InputError, Raw
from agentsys.inputs.parquet_size import find_oversized, rows_per_batch
from agentsys.inputs.plain import Unreadable


def read_parquet(file: Any) -> Iterator[Raw]:
    """One record per row of a file (a path or an open file). A cell that cannot be read becomes `Unreadable`."""
    import pyarrow
    import pyarrow.parquet

    number = 0
    try:
        with pyarrow.parquet.ParquetFile(file) as table:
            if fault := find_duplicate(table.schema_arrow.names):
                yield 1, Fault(fault)
                return
            for group in range(table.num_row_groups):
                for row in _read_group(file, table, group):
                    number += 1
                    yield number, row
    except (pyarrow.ArrowException, OSError) as error:
        reason = " ".join(str(error).split())
        what = f"the parquet file is broken from here on: {reason}; write it again (the records before were read)"
        yield number + 1, Fault(what)


def _read_group(file: Any, table: Any, group: int) -> Iterator[dict[str, Any]]:
    """The rows of a row group. If a column cannot be read, the others are read on without it.

    Raises ArrowException or OSError if there is no other.
    """
    import pyarrow

    metadata = table.metadata.row_group(group)
    names = list(table.schema_arrow.names)
    oversized = find_oversized(metadata, names)
    columns = [name for name in names if name not in oversized]
    broken: dict[str, Any] = {name: Unreadable(fault) for name, fault in oversized.items()}
    if not columns:
        yield from (dict(broken) for _ in range(metadata.num_rows))
        return
    size = rows_per_batch(file, metadata)
    count = 0
    while True:
        try:
            for number, row in enumerate(_batch_rows(table, group, columns, size)):
                if number >= count:
                    yield broken | row
                    count += 1
            return
        except (pyarrow.ArrowException, OSError):
            faults = {name: fault for name in columns if (fault := _column_fault(table, group, name, size))}
            if not faults or len(faults) == len(columns):
                raise
            broken |= {name: Unreadable(fault) for name, fault in faults.items()}
            columns = [name for name in columns if name not in faults]


def _batch_rows(table: Any, group: int, columns: list[str], size: int) -> Iterator[dict[str, Any]]:
    for batch in table.iter_batches(batch_size=size, row_groups=[group], columns=columns):
        yield from batch_rows(batch)


def _column_fault(table: Any, group: int, name: str, size: int) -> str:
    import pyarrow

    try:
        for _ in table.iter_batches(batch_size=size, row_groups=[group], columns=[name]):
            pass
    except (pyarrow.ArrowException, OSError) as error:
        return " ".join(str(error).split())
    return ""


def batch_rows(batch: Any) -> Iterator[dict[str, Any]]:
    """The rows of an Arrow record batch."""
    names = batch.schema.names
    columns = [_column_values(batch.column(place)) for place in range(len(names))]
    for cells in zip(*columns, strict=True):
        yield dict(zip(names, cells, strict=True))


def _column_values(column: Any) -> list[Any]:
    try:
        values: list[Any] = column.to_pylist()
    except (ValueError, OverflowError, NotImplementedError, TypeError):  # UnicodeDecodeError is a ValueError
        values = [_value(cell) for cell in column]
    if column.nbytes > MAX_LINE:
        values = [_without_oversized(value) for value in values]
    return values


def _without_oversized(value: Any) -> Any:
    if isinstance(value, str | bytes) and len(value) > MAX_LINE:
        return Unreadable(f"a cell is longer than {MAX_LINE // 2**20} MiB")
    return value


def _value(cell: Any) -> Any:
    try:
        return cell.as_py()
    except (ValueError, OverflowError, NotImplementedError, TypeError) as error:
        return _time_text(cell) or Unreadable(f"a value cannot be read: {error}")


def _time_text(cell: Any) -> str:
    """A time that Python has no object for (nanoseconds, the year 12000), as Arrow writes it; "" for another value."""
    import pyarrow

    if not pyarrow.types.is_temporal(cell.type):
        return ""
    try:
        text = str(cell.cast(pyarrow.string()).as_py())
    except pyarrow.ArrowException:
        return ""
    return "" if text.startswith("<") else text.replace(" ", "T", 1)  # "<value out of range: ...>"


def read_table(table: Any) -> Iterator[Raw] | None:
    """The rows of a table in memory, or None if the object is no table. Raises InputError for an unusable header."""
    if hasattr(table, "itertuples") and hasattr(table, "columns"):  # pandas and its kin
        return _read_frame(table)
    reader = _arrow_reader(table)
    if reader is None:
        return None
    if fault := find_duplicate(reader.schema.names):
        raise InputError(fault)
    return enumerate((row for batch in reader for row in batch_rows(batch)), start=1)


def _arrow_reader(table: Any) -> Any:
    if type(table).__module__.partition(".")[0] == "datasets":  # its features decode values: it is read as rows
        return None
    if hasattr(table, "__arrow_c_array__") and hasattr(table, "schema"):
        import pyarrow

        return pyarrow.RecordBatchReader.from_batches(table.schema, [pyarrow.record_batch(table)])
    if not hasattr(table, "__arrow_c_stream__") or (not hasattr(table, "columns") and not hasattr(table, "schema")):
        return None
    import pyarrow

    try:
        return pyarrow.RecordBatchReader.from_stream(table)
    except pyarrow.ArrowException as error:
        raise InputError(
            f"the {type(table).__name__} cannot be read as a table: {' '.join(str(error).split())}"
        ) from None


def _read_frame(frame: Any) -> Iterator[Raw]:
    """The rows of a DataFrame; a named index is a column, as it holds ids often."""
    if any(name is not None for name in getattr(frame.index, "names", ())):
        try:
            frame = frame.reset_index()
        except ValueError as error:
            raise InputError(f"the DataFrame's index cannot be read: {error}; rename it") from None
    names = list(frame.columns)
    if odd := [name for name in names if not isinstance(name, str)]:
        raise InputError(f"the DataFrame has the column {odd[0]!r}, which is no text; rename its columns")
    if fault := find_duplicate(names):
        raise InputError(f"the DataFrame cannot be read: {fault}")
    return enumerate((dict(zip(names, row, strict=True)) for row in frame.itertuples(index=False, name=None)), start=1)
