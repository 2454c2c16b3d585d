"""From rows as they are in a file to an equidistant series: clock changes, duplicates, order, gaps, intervals.

Nothing is changed silently: every step returns the sentences that `Series.corrections` lists.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np

from agentsys.trainers.traffic.series import DAY, Floats, Ints, Series, SeriesError, Times
from agentsys.trainers.traffic.timestamps import NEVER, TWICE, YEARS, Bools, Stamps, to_utc

Aggregate = Literal["sum", "mean"]

SPARSE = 0.15
"""Share of missing values from which a sensor is named in the report."""

FEWEST_TOTALS = 6
"""Totals of a longer interval on one day, at least, for a sensor to be known to report them."""

LARGEST = 2**31
"""Values of the largest series (8 GB); beyond it a time in the file is most likely wrong."""

SPARSEST = 20
"""Steps per row of the file; beyond it a time in the file is most likely wrong."""


@dataclass(frozen=True, slots=True)
class Rows:
    """A table as it was read, one row per time (and per sensor, in a long table)."""

    stamps: Stamps
    """Times of the R rows."""
    values: Floats
    """(R, M, C) values: M is N in a wide table and 1 in a long one."""
    sensors: tuple[str, ...]
    """(N,) names."""
    sensor_of_row: Ints | None = None
    """(R,) the sensor of each row of a long table; None for a wide one."""
    notes: tuple[str, ...] = ()


def to_series(
    rows: Rows,
    *,
    step: int | None = None,
    zone: str = "UTC",
    aggregate: Aggregate = "sum",
    missing: float | None = None,
) -> Series:
    """The series of rows on a grid of `step` seconds (default: their own interval), in UTC, with its corrections.

    `aggregate` is how values of shorter intervals become one of a step; `missing` is a value that stands for none.
    Raises SeriesError.
    """
    notes = [*rows.notes, *rows.stamps.notes]
    rows, clock_notes = _in_utc(rows, zone)
    rows, value_notes = _drop_wrong_values(rows, missing)
    rows, order_notes = _sort(rows)
    base = find_interval(rows, step)
    series, grid_notes = _place(rows, base, zone)
    notes += clock_notes + value_notes + order_notes + grid_notes
    if step and step != base:
        series, aggregate_notes = resample(series, step, aggregate)
    else:
        series, aggregate_notes = _drop_totals(series) if aggregate == "sum" else (series, [])
    return series.corrected(*notes, *aggregate_notes)


def _in_utc(rows: Rows, zone: str) -> tuple[Rows, list[str]]:
    """The rows with UTC times. Values of an hour that the clock shows twice and the file once are made missing."""
    stamps = rows.stamps
    times, values, notes = stamps.times.copy(), rows.values, []
    years = times.astype("datetime64[Y]").astype(np.int64) + 1970
    if not len(times) or years.min() < YEARS[0] or years.max() > YEARS[1]:
        raise SeriesError(f"times must lie in the years {YEARS[0]} to {YEARS[1]}: correct the wrong ones")
    if stamps.is_utc.all() or zone == "UTC":
        if stamps.is_utc.any() and zone == "UTC":
            notes.append("times have an offset from UTC and no --zone is given: days and weeks follow UTC's clock")
        return replace(rows, stamps=replace(stamps, times=times, is_utc=np.ones_like(stamps.is_utc))), notes
    local = np.flatnonzero(~stamps.is_utc)
    first, second, count = to_utc(times[local], zone)
    twice = local[count == TWICE]
    sensor = np.zeros(len(times), np.int64) if rows.sensor_of_row is None else rows.sensor_of_row
    again, alone = _occurrences(times[twice], sensor[twice])
    times[local] = first
    times[twice[again]] = second[count == TWICE][again]
    if alone.any():
        values = values.copy()
        values[twice[alone]] = np.nan
        notes.append(
            f"{int(alone.sum()):,} rows lie in an hour that the clock of {zone} shows twice, and are there once: "
            "they may hold one hour or both, and count as missing"
        )
    if again.any():
        notes.append(f"{int(again.sum()):,} rows are the second pass of an hour that the clock of {zone} shows twice")
    keep = np.ones(len(times), bool)
    never = local[count == NEVER]
    if len(never):
        keep[never] = False
        filled = int((~np.isnan(values[never]).all(axis=(1, 2))).sum())
        notes.append(
            f"dropped {len(never):,} rows ({filled:,} with values) in an hour that the clock of {zone} skips"
            + (": are the times on another clock?" if filled else "")
        )
    rows = replace(rows, stamps=Stamps(times, np.ones(len(times), bool)), values=values)
    return _take(rows, np.flatnonzero(keep)), notes


def _occurrences(times: Times, sensors: Ints) -> tuple[Bools, Bools]:
    """Where a time of a sensor occurs for the second time in the order of the file, and where it occurs only once."""
    order = np.lexsort((np.arange(len(times)), times, sensors))
    again, alone = np.zeros(len(times), bool), np.ones(len(times), bool)
    same = (times[order][1:] == times[order][:-1]) & (sensors[order][1:] == sensors[order][:-1])
    again[order[1:][same]] = True
    alone[order[1:][same]] = False
    alone[order[:-1][same]] = False
    return again, alone


def _drop_wrong_values(rows: Rows, missing: float | None) -> tuple[Rows, list[str]]:
    """Make infinite, negative and stand-in values missing. Raises SeriesError if most values are negative."""
    values, notes = rows.values, []
    present = int((~np.isnan(values)).sum())
    wrong = {"infinite": np.isinf(values), "negative": values < 0}
    if missing is not None:
        wrong[f"equal to {missing:g}"] = values == missing
    if wrong["negative"].sum() > present / 2:
        raise SeriesError("most values are negative: counts and speeds are 0 or more; check the columns that are read")
    for name, where in wrong.items():
        if count := int(where.sum()):
            values = np.where(where, np.float32(np.nan), values)
            notes.append(f"{count:,} values are {name} and count as missing")
    return replace(rows, values=values), notes


def _sort(rows: Rows) -> tuple[Rows, list[str]]:
    """Sort the rows by sensor and time, keeping the file's order of equal ones."""
    times = rows.stamps.times
    sensors = np.zeros(len(times), np.int64) if rows.sensor_of_row is None else rows.sensor_of_row
    order = np.lexsort((np.arange(len(times)), times, sensors))
    back = (np.diff(times) < np.timedelta64(0, "s")) & (np.diff(sensors) == 0)
    notes = [f"rows were not in order of time ({int(back.sum()):,} go back): sorted"] if back.any() else []
    return _take(rows, order), notes


def _take(rows: Rows, index: Ints) -> Rows:
    sensors = None if rows.sensor_of_row is None else rows.sensor_of_row[index]
    stamps = Stamps(rows.stamps.times[index], rows.stamps.is_utc[index])
    return replace(rows, stamps=stamps, values=rows.values[index], sensor_of_row=sensors)


def find_interval(rows: Rows, step: int | None = None) -> int:
    """The shortest usual interval between two rows of a sensor, in seconds; `rows` are sorted. Raises SeriesError.

    Usual is what one gap in a hundred has, so that a part with longer intervals does not hide the shorter ones. Times
    that jitter by up to a tenth of `step` are read as `step` apart.
    """
    times = rows.stamps.times.astype(np.int64)
    gaps = np.diff(times)
    if rows.sensor_of_row is not None:
        gaps = gaps[np.diff(rows.sensor_of_row) == 0]
    gaps = gaps[gaps > 0]
    if not len(gaps):
        raise SeriesError("the data has fewer than two times: give a file with a row for every step")
    sizes, counts = np.unique(gaps, return_counts=True)
    interval = int(sizes[np.argmax(counts)])
    usual = sizes[(counts * 100 >= len(gaps)) & (DAY % sizes == 0) & (interval % sizes == 0)]
    interval = int(usual.min()) if len(usual) else interval
    if step and 0 < abs(interval - step) * 10 <= step:
        return step
    if step and step % interval:
        raise SeriesError(
            f"the data has a value every {describe_seconds(interval)}, which does not divide --step "
            f"{describe_seconds(step)}: give a multiple of it"
        )
    if DAY % interval:
        raise SeriesError(
            f"the most common interval between rows is {describe_seconds(interval)}, which does not divide a day: "
            "give data at fixed steps such as 5 or 15 minutes"
        )
    return interval


def _place(rows: Rows, step: int, zone: str) -> tuple[Series, list[str]]:
    """The rows on a grid of `step` seconds from the first to the last time."""
    times, notes = rows.stamps.times.astype(np.int64), []
    cells = (times + (step - 1) // 2) // step
    if off_grid := int((times % step > 0).sum()):
        notes.append(f"{off_grid:,} times lie between two steps of {describe_seconds(step)}: moved to the nearest")
    start, length = int(cells.min()), int(cells.max() - cells.min()) + 1
    channels = rows.values.shape[2]
    if length > SPARSEST * (len(times) + 500) or length * len(rows.sensors) * channels > LARGEST:
        first, last = times.min().astype("datetime64[s]"), times.max().astype("datetime64[s]")
        raise SeriesError(
            f"the times go from {first} to {last}, {length:,} steps of {describe_seconds(step)}, for {len(times):,} "
            "rows: correct the wrong times"
        )
    values = np.full((length, len(rows.sensors), channels), np.nan, np.float32)
    grid_row = cells - start
    if rows.sensor_of_row is None:
        duplicates, conflicts = _fill_wide(values, grid_row, rows.values)
        present = np.zeros(length, bool)
        present[grid_row] = True
        if absent := length - int(present.sum()):
            notes.append(f"{absent:,} of {length:,} steps have no row: their values are missing")
    else:
        duplicates, conflicts = _fill_long(values, grid_row, rows.sensor_of_row, rows.values[:, 0])
    if duplicates:
        notes.append(f"{duplicates:,} duplicate rows ({conflicts:,} with other values): the last one counts")
    grid = ((start + np.arange(length)) * step).astype("datetime64[s]")
    return Series(values, grid, step, rows.sensors, zone), notes


def _fill_wide(values: Floats, grid_row: Ints, source: Floats) -> tuple[int, int]:
    """Write rows into the grid; of rows with one time, the last value of each sensor counts. Returns duplicates."""
    repeated = np.concatenate([[False], grid_row[1:] == grid_row[:-1]])
    values[grid_row[~repeated]] = source[~repeated]
    conflicts = 0
    for row in np.flatnonzero(repeated):
        cell, new = values[grid_row[row]], source[row]
        conflicts += bool(((cell != new) & ~np.isnan(cell) & ~np.isnan(new)).any())
        np.copyto(cell, new, where=~np.isnan(new))
    return int(repeated.sum()), conflicts


def _fill_long(values: Floats, grid_row: Ints, sensor: Ints, source: Floats) -> tuple[int, int]:
    """Write the rows of a long table, sorted by sensor and time, into the grid. Returns duplicates and conflicts."""
    repeated = (grid_row[1:] == grid_row[:-1]) & (sensor[1:] == sensor[:-1])
    changed = ((source[1:] != source[:-1]) & ~(np.isnan(source[1:]) & np.isnan(source[:-1]))).any(axis=1)
    present = ~np.isnan(source).all(axis=1)
    values[grid_row[present], sensor[present]] = source[present]  # of equal positions, numpy keeps the last
    return int(repeated.sum()), int((repeated & changed).sum())


def resample(series: Series, step: int, aggregate: Aggregate) -> tuple[Series, list[str]]:
    """The series at a longer step: a sum needs every value of the step, a mean half of them.

    A sensor that reports at the longer step already (one value at its beginning, all day long) keeps these values.
    """
    if step > 3600 and series.zone != "UTC":
        raise SeriesError(f"--step {describe_seconds(step)} with --zone: a clock that changes allows at most 1 h")
    size = step // series.step
    blocks, phase = _blocks(series, size)
    counts = (~np.isnan(blocks)).sum(axis=1)
    totals = np.nansum(blocks, axis=1, dtype=np.float64)
    needed = size if aggregate == "sum" else (size + 1) // 2
    means = totals if aggregate == "sum" else totals / np.maximum(counts, 1)
    values = np.where(counts >= needed, means, np.nan).astype(np.float32)
    first = series.times[0] - np.timedelta64(phase * series.step, "s")
    times = first + np.arange(len(blocks)) * np.timedelta64(step, "s")
    alone = _coarse_groups(~np.isnan(blocks[..., 0]), DAY // step)
    values = np.where(alone[:, :, None], blocks[:, 0], values)
    verb = "sums" if aggregate == "sum" else "means"
    notes = [f"{verb} of {size} values: from {describe_seconds(series.step)} to {describe_seconds(step)}"]
    part = int(((counts > 0) & (counts < needed))[:, :, 0][~alone].sum())
    if part:
        notes.append(f"{part:,} steps have too few values for a {aggregate} and are missing")
    series = replace(series, values=values, times=times, step=step)
    return series, notes + _name_coarse(series, alone, f"report every {describe_seconds(step)}: taken as they are")


def _blocks(series: Series, size: int) -> tuple[Floats, int]:
    """(G, size, N, C) values in groups of `size` steps, and how many steps of the first group lie before the data."""
    phase = int(series.times[0].astype(np.int64)) % (size * series.step) // series.step
    groups = -(-(phase + len(series)) // size)
    padded = np.full((groups * size, *series.values.shape[1:]), np.nan, np.float32)
    padded[phase : phase + len(series)] = series.values
    return padded.reshape(groups, size, *series.values.shape[1:]), phase


def _coarse_groups(present: Bools, groups_per_day: int) -> Bools:
    """(G, N) groups of a sensor that has, all day long, the first value of its groups and no other.

    `present` is (G, size, N). Such a sensor reports at the longer interval, and its value stands for the whole group.
    """
    groups, _, sensors = present.shape
    days = -(-groups // groups_per_day)
    first, other = (np.zeros((days * groups_per_day, sensors), bool) for _ in range(2))
    first[:groups], other[:groups] = present[:, 0], present[:, 1:].any(axis=1)
    by_day = (days, groups_per_day, sensors)
    count = first.reshape(by_day).sum(axis=1)
    size = np.minimum(groups_per_day, groups - np.arange(days) * groups_per_day)[:, None]
    coarse = (count * 4 >= size * 3) & (count >= FEWEST_TOTALS) & ~other.reshape(by_day).any(axis=1)
    alone: Bools = first[:groups] & np.repeat(coarse, groups_per_day, axis=0)[:groups]
    return alone


def _drop_totals(series: Series) -> tuple[Series, list[str]]:
    """Make the values of sensors missing on days on which they report a total of a longer interval, up to an hour."""
    notes = []
    for size in range(2, 3600 // series.step + 1):
        longer = size * series.step
        if 3600 % longer:
            continue
        blocks, phase = _blocks(series, size)
        alone = _coarse_groups(~np.isnan(blocks[..., 0]), DAY // longer)
        if not alone.any():
            continue
        blocks[:, 0][alone] = np.nan
        values = blocks.reshape(-1, *series.values.shape[1:])[phase : phase + len(series)]
        what = f"report totals of {describe_seconds(longer)} on some days, which count as missing at this --step"
        notes += _name_coarse(series, alone, what)
        series = replace(series, values=values)
    return series, notes


def _name_coarse(series: Series, alone: Bools, what: str) -> list[str]:
    names = [series.sensors[index] for index in np.flatnonzero(alone.any(axis=0))]
    return [f"{int(alone.sum()):,} values of {join_names(names)} {what}"] if names else []


def drop_sensors(series: Series, which: Bools, reason: str) -> Series:
    """Without the sensors `which` (N,), and a sentence with the reason. Raises SeriesError if none is left."""
    if which.all():
        raise SeriesError(f"no sensor is left ({reason}): leave out fewer")
    if not which.any():
        return series
    kept, dropped = ([series.sensors[index] for index in np.flatnonzero(some)] for some in (~which, which))
    return series.select(kept).corrected(f"dropped {join_names(dropped)}: {reason}")


def describe_sensors(series: Series) -> list[str]:
    """Sentences on sensors that start late, stop early, never change, or miss many values."""
    present = ~np.isnan(series.target)
    first, last = present.argmax(axis=0), len(series) - 1 - present[::-1].argmax(axis=0)
    days = series.local.astype("datetime64[D]")
    late = [f"{series.sensors[n]} ({days[first[n]]})" for n in np.flatnonzero(first > series.steps_per_day)]
    ended = len(series) - series.steps_per_week
    stopped = [f"{series.sensors[n]} ({days[last[n]]})" for n in np.flatnonzero(last < ended)]
    highest = np.where(present, series.target, -np.inf).max(axis=0)
    constant = np.flatnonzero(highest == np.where(present, series.target, np.inf).min(axis=0))
    share = 1 - present.mean(axis=0)
    sparse = [f"{series.sensors[n]} ({share[n]:.0%})" for n in np.flatnonzero(share > SPARSE)]
    sentences = {
        "start late": late,
        "stop before the data ends": stopped,
        "never change": [series.sensors[n] for n in constant],
        "miss many values": sparse,
    }
    return [f"sensors that {what}: {join_names(names)}" for what, names in sentences.items() if names]


def join_names(names: Sequence[str], most: int = 6) -> str:
    """Names with commas; beyond `most`, how many more there are."""
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more


def describe_seconds(seconds: int) -> str:
    """A duration such as 15min, 1h or 7d; `parse_duration` reads it."""
    for size, unit in ((DAY, "d"), (3600, "h"), (60, "min")):
        if seconds % size == 0:
            return f"{seconds // size}{unit}"
    return f"{seconds}s"


def parse_duration(text: str, option: str) -> int:
    """Seconds of a duration such as 30s, 15min, 1h, 7d, day or week. Raises SeriesError that names the option."""
    found = re.fullmatch(r"\s*(\d*)\s*(s|min|h|hour|d|days?|w|weeks?)\s*", text.lower())
    seconds = int(found[1] or 1) * _UNITS[found[2][0]] if found else 0
    if not seconds:
        raise SeriesError(f"{option} {text}: give a duration such as 15min, 1h, 3d or week")
    return seconds


_UNITS = {"s": 1, "m": 60, "h": 3600, "d": DAY, "w": 7 * DAY}
