"""Read a table of traffic values: wide or long CSV, Parquet, npz, h5, and the JSON of PyTorch Geometric Temporal.

A wide table has a row per time and a column per sensor; a long one has a row per time and sensor. `read_series` reads
any of them and returns a series with a report of everything that was corrected.
"""

from __future__ import annotations

import gzip
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from agentsys.commands import knob
from agentsys.trainers.traffic.grid import Aggregate, Rows, describe_sensors, drop_sensors, parse_duration, to_series
from agentsys.trainers.traffic.numbers import to_numbers
from agentsys.trainers.traffic.series import Series, SeriesError, find_zone
from agentsys.trainers.traffic.timestamps import Stamps, count_times, is_time, parse_times

TIME_NAMES = {"time", "times", "timestamp", "datetime", "date", "date_time", "zeit", "datum", "zeitstempel"}
DATE_NAMES = {"date", "day", "datum", "tag"}
CLOCK_NAMES = {"time", "hour", "clock", "zeit", "uhrzeit", "stunde"}
SENSOR_NAMES = {
    "sensor",
    "station",
    "detector",
    "node",
    "location",
    "segment",
    "sensor_id",
    "station_id",
    "detector_id",
}
VALUE_NAMES = {"value", "count", "counts", "flow", "speed", "volume", "traffic", "total", "wert", "anzahl"}


@dataclass(frozen=True)
class DataOptions:
    """The table of values."""

    panel: ClassVar[str] = "Data"
    data: Path = knob(Path(""), "CSV (also .gz), Parquet, npz, h5 or JSON file")
    step: str = knob("", "length of a step, such as 15min or 1h; default: the data's own")
    zone: str = knob("UTC", "time zone of the sensors, such as Europe/Berlin; UTC leaves times as they are")
    aggregate: Aggregate = knob("sum", "how values become one of a longer step: sum (counts) or mean (speeds)")
    start: str = knob("", "time of the first row, for files without times")
    time_column: str = knob("", "column of times; default: by its name or type")
    sensor_column: str = knob("", "column of sensors, for a table with one row per time and sensor")
    value_columns: str = knob("", "columns of values, separated by commas; the first is forecast")
    missing: float | None = knob(None, "a value that stands for a missing one, such as 0 in speeds of METR-LA")
    since: str = knob("", "leave out what lies before this local time, such as 2024-02-05")
    leave_out: str = knob("", "sensors to leave out, separated by commas")
    most_missing: float = knob(1.0, "leave out sensors that miss more than this share of their values, such as 0.15")

    def __post_init__(self) -> None:
        """Raises SeriesError for a share that is none."""
        if not 0 <= self.most_missing <= 1:
            raise SeriesError(f"--most-missing {self.most_missing}: give a share from 0 to 1, such as 0.15")


ONE_FILE = ("data", "start", "since", "leave_out", "most_missing")
"""Options that hold for the file of a training alone, and not for later files of the same sensors."""


def read_series(options: DataOptions, keep: Sequence[str] = ()) -> Series:
    """The series of a file. Raises SeriesError for what it cannot read, naming file, row, column and fix.

    Sensors without any value are left out, but for those to `keep`: a model can forecast a sensor that is down.
    """
    from agentsys.trainers.traffic.arrays import read_h5, read_json, read_npz

    path = options.data
    if not path.is_file():
        raise SeriesError(f"--data {path}: no such file")
    find_zone(options.zone)
    step = parse_duration(options.step, "--step") if options.step else None
    suffix = Path(path.name.removesuffix(".gz")).suffix.lower()
    readers = {".npz": read_npz, ".h5": read_h5, ".hdf5": read_h5, ".json": read_json}
    if suffix in readers:
        rows = readers[suffix](path, options.start, step)
    elif suffix in (".csv", ".tsv", ".txt"):
        table, notes = read_csv(path)
        rows = read_table(table, path.name, options, step, notes)
    elif suffix in (".parquet", ".pq"):
        rows = read_table(read_parquet(path), path.name, options, step, [])
    else:
        raise SeriesError(f"--data {path}: give a .csv, .csv.gz, .parquet, .npz, .h5 or .json file")
    try:
        series = to_series(rows, step=step, zone=options.zone, aggregate=options.aggregate, missing=options.missing)
        return select_series(series, options, keep)
    except SeriesError as err:
        raise SeriesError(f"{path.name}: {err}") from None


def select_series(series: Series, options: DataOptions, keep: Sequence[str] = ()) -> Series:
    """The steps and sensors that the options leave, with sentences on what is left. Raises SeriesError."""
    if options.since:
        since = parse_times(pa.array([options.since]), "--since").times[0]
        first = int(np.searchsorted(series.local, since))
        if first >= len(series) - 1:
            raise SeriesError(f"--since {options.since}: the data ends at {series.local[-1]}: give an earlier time")
        series = series.between(first, len(series))
    names = [name.strip() for name in options.leave_out.split(",") if name.strip()]
    if names:
        series.select(names)  # raises SeriesError for an unknown one
        series = drop_sensors(series, np.isin(series.sensors, names), "as --leave-out says")
    empty = np.isnan(series.target).all(axis=0)
    if empty.all():
        raise SeriesError("the data has no value: check which columns are read as time, sensor and value")
    series = drop_sensors(series, empty & ~np.isin(series.sensors, list(keep)), "no value at all")
    share = np.isnan(series.target).mean(axis=0)
    series = drop_sensors(series, share > options.most_missing, f"more than {options.most_missing:.0%} missing")
    return series.corrected(*describe_sensors(series))


def read_csv(path: Path) -> tuple[pa.Table, list[str]]:
    """All cells of a CSV file as text, and notes. The separator is the most frequent one of the header."""
    from pyarrow import csv

    try:
        raw = path.read_bytes()
        raw = gzip.decompress(raw) if path.suffix == ".gz" else raw
    except (OSError, EOFError, zlib.error) as err:
        raise SeriesError(f"{path.name}: cannot be read: {err}") from None
    if not raw.strip():
        raise SeriesError(f"{path.name}: the file is empty")
    notes = []
    try:
        raw.decode("utf-8")
    except UnicodeDecodeError:
        raw = raw.decode("cp1252", errors="replace").encode()
        notes.append(f"{path.name}: not UTF-8, read as Windows-1252")
    header = raw.removeprefix(b"\xef\xbb\xbf").split(b"\n", 1)[0].decode("utf-8", errors="replace")
    separator = max(",;\t|", key=header.count)
    parse = csv.ParseOptions(delimiter=separator)
    try:
        names = csv.read_csv(pa.BufferReader(header.encode() + b"\n"), parse_options=parse).column_names
        convert = csv.ConvertOptions(column_types=dict.fromkeys(names, pa.string()), strings_can_be_null=False)
        table = csv.read_csv(pa.BufferReader(raw), parse_options=parse, convert_options=convert)
    except pa.ArrowInvalid as err:
        raise SeriesError(f"{path.name}: {' '.join(str(err).split())[:200]}: correct the row") from None
    if len(names) < 2:
        raise SeriesError(f"{path.name}: found one column: give a table with a header and commas between its columns")
    if twice := {name for name in names if names.count(name) > 1}:
        raise SeriesError(f"{path.name}: the header has {sorted(twice)[0]!r} twice: rename a column")
    if table.column_names != names:
        raise SeriesError(f"{path.name}: its header has a line break: write the names of columns in one line")
    return table, notes


def read_parquet(path: Path) -> pa.Table:
    """A Parquet file as a table. Raises SeriesError."""
    from pyarrow import parquet

    try:
        return parquet.read_table(path)
    except (pa.ArrowInvalid, OSError) as err:
        raise SeriesError(f"{path.name}: cannot be read: {' '.join(str(err).split())[:200]}") from None


def read_table(table: pa.Table, name: str, options: DataOptions, step: int | None, notes: list[str]) -> Rows:
    """The rows of a wide or long table. Raises SeriesError."""
    if not table.num_rows:
        raise SeriesError(f"{name}: no rows below the header: give a file with data")
    if not options.time_column:
        table = join_date_and_time(table, notes)
    time_column = find_time_column(table, name, options)
    stamps = _read_times(table, time_column, name, options.start, step)
    others = [column for column in table.column_names if column != time_column]
    sensor_column = options.sensor_column or _find(others, SENSOR_NAMES)
    _check_column(sensor_column, others, name, "--sensor-column")
    value_columns = [part.strip() for part in options.value_columns.split(",") if part.strip()]
    for column in value_columns:
        _check_column(column, others, name, "--value-columns")
    if not sensor_column:
        columns = value_columns or others
        values = np.stack([to_numbers(table[column], name, column, notes) for column in columns], axis=1)
        return Rows(stamps, values[:, :, None], tuple(columns), None, tuple(notes))
    rest = [column for column in others if column != sensor_column]
    columns = value_columns or [_find(rest, VALUE_NAMES) or (rest[0] if len(rest) == 1 else "")]
    if not columns[0]:
        raise SeriesError(f"{name}: which of {', '.join(rest)} is the value? Give --value-columns")
    values = np.stack([to_numbers(table[column], name, column, notes) for column in columns], axis=1)
    sensors, positions = _encode(table[sensor_column], name, sensor_column)
    return Rows(stamps, values[:, None, :], sensors, positions, tuple(notes))


def join_date_and_time(table: pa.Table, notes: list[str]) -> pa.Table:
    """The table with a column `datetime` in place of one of dates and one of times of day or hours, if it has both.

    Adds a note if they were joined.
    """
    date, clock = _find(table.column_names, DATE_NAMES), _find(table.column_names, CLOCK_NAMES)
    if not date or not clock:
        return table
    dates, clocks = (_texts(table[column]) for column in (date, clock))
    is_hour = pc.match_substring_regex(clocks, r"^\d{1,2}$")
    is_clock = pc.match_substring_regex(clocks, r"^\d{1,2}:\d{2}(:\d{2}([.,]\d+)?)?(\s*[AaPp][Mm])?$")
    if not pc.all(pc.or_(is_hour, is_clock)).as_py() or pc.any(pc.match_substring(dates, ":")).as_py():
        return table
    clocks = pc.if_else(is_hour, pc.binary_join_element_wise(clocks, "00", ":"), clocks)
    joined = pc.binary_join_element_wise(dates, clocks, " ")
    notes.append(f"columns {date} and {clock} are read as date and time of day")
    return table.drop_columns([date, clock]).add_column(0, "datetime", joined)


def _texts(column: pa.ChunkedArray) -> pa.Array:
    return pc.utf8_trim_whitespace(pc.fill_null(column.combine_chunks().cast(pa.string()), ""))


def find_time_column(table: pa.Table, name: str, options: DataOptions) -> str | None:
    """The column of times, or None for a file without times, whose first row is at --start. Raises SeriesError."""
    _check_column(options.time_column, table.column_names, name, "--time-column")
    typed = [field.name for field in table.schema if pa.types.is_timestamp(field.type) or pa.types.is_date(field.type)]
    column = options.time_column or _find(table.column_names, TIME_NAMES) or (typed[0] if typed else "")
    if column or options.start:
        return column or None
    first = str(table.column_names[0])
    if is_time(first):
        raise SeriesError(f"{name}: the first row is no header, it begins with the time {first}: add names of columns")
    if pa.types.is_string(table.schema.field(first).type) and is_time(table[first][0].as_py()):
        return first
    raise SeriesError(f"{name}: no column of times: give --time-column, or --start and --step for rows without times")


def _read_times(table: pa.Table, column: str | None, name: str, start: str, step: int | None) -> Stamps:
    if column is None:
        return count_times(table.num_rows, start, step, name)
    times = table[column].combine_chunks()
    if pa.types.is_date(times.type):
        times = times.cast(pa.timestamp("s"))
    if not pa.types.is_timestamp(times.type):
        return parse_times(times, f"{name}, column {column}")
    seconds = times.cast(pa.timestamp("s", times.type.tz), safe=False).cast(pa.int64())
    if times.null_count:
        row = pc.index(pc.is_null(times), True).as_py()
        raise SeriesError(f"{name}, column {column}, row {row + 1}: the time is missing: remove the row")
    is_utc = np.full(len(times), times.type.tz is not None)
    return Stamps(seconds.to_numpy().astype("datetime64[s]"), is_utc)


def _encode(column: Any, name: str, label: str) -> tuple[tuple[str, ...], Any]:
    """Names of sensors, sorted, and the position of each row's sensor."""
    texts = pc.utf8_trim_whitespace(column.combine_chunks().cast(pa.string()))
    if texts.null_count or pc.any(pc.equal(texts, "")).as_py():
        row = pc.index(pc.fill_null(pc.equal(texts, ""), True), True).as_py()
        raise SeriesError(f"{name}, column {label}, row {row + 1}: the sensor is missing: name it or remove the row")
    sensors, positions = np.unique(texts.to_numpy(zero_copy_only=False).astype(str), return_inverse=True)
    return tuple(str(sensor) for sensor in sensors), positions.astype(np.int64)


def _find(columns: list[str], names: set[str]) -> str:
    return next((column for column in columns if column.strip().lower() in names), "")


def _check_column(column: str, columns: list[str], name: str, option: str) -> None:
    if column and column not in columns:
        shown = ", ".join(columns[:8]) + (" ..." if len(columns) > 8 else "")
        raise SeriesError(f"{option} {column}: {name} has no such column; it has {shown}")
