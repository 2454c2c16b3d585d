"""What is known of the future: public holidays and school terms by the sensors' local days, and a table of values."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import ClassVar

import numpy as np
import numpy.typing as npt

from agentsys.commands import knob
from agentsys.installation import install_command
from agentsys.trainers.traffic.series import Floats, Ints, Series, SeriesError

Bools = npt.NDArray[np.bool_]


@dataclass(frozen=True)
class CalendarOptions:
    """Days that are known ahead."""

    panel: ClassVar[str] = "Calendar"
    country: str = knob("", "country of the public holidays, such as DE, or with a region DE-NW; none without")
    school: str = knob("", "CSV file of school holidays: columns from and to, both days included")
    known: str = knob(
        "", "table of values that are known of the future, such as a weather forecast, for data and forecast alike"
    )


def public_holidays(series: Series, country: str) -> Bools:
    """(T,) whether each step lies on a public holiday of `country`, such as DE or DE-NW. Raises SeriesError."""
    try:
        import holidays
    except ImportError:
        raise SeriesError(f"--country {country} needs the package holidays: {install_command('traffic')}") from None
    days = series.local.astype("datetime64[D]")
    years = sorted({int(str(day)[:4]) for day in (days.min(), days.max())})
    code, _, region = country.upper().partition("-")
    try:
        found = holidays.country_holidays(code, subdiv=region or None, years=range(years[0], years[-1] + 1))
    except NotImplementedError as err:
        raise SeriesError(f"--country {country}: {err}; give a code such as DE, US-CA or DE-NW") from None
    return np.isin(days, np.array(list(found), "datetime64[D]"))


def school_holidays(series: Series, file: Path) -> Bools:
    """(T,) whether each step lies in school holidays. The CSV has columns `from` and `to`. Raises SeriesError."""
    from agentsys.trainers.traffic.formats import read_csv
    from agentsys.trainers.traffic.timestamps import parse_times

    if not file.is_file():
        raise SeriesError(f"--school {file}: no such file")
    table, _ = read_csv(file)
    if not {"from", "to"} <= set(table.column_names):
        raise SeriesError(f"--school {file}: it needs the columns from and to; it has {', '.join(table.column_names)}")
    first, last = (
        parse_times(table[name].combine_chunks(), f"{file.name}, column {name}").times.astype("datetime64[D]")
        for name in ("from", "to")
    )
    if (wrong := np.flatnonzero(last < first)).size:
        raise SeriesError(f"--school {file}, row {int(wrong[0]) + 1}: the holidays end before they begin")
    days = series.local.astype("datetime64[D]")
    inside = np.zeros(len(days), bool)
    for start, end in zip(first, last, strict=True):
        inside |= (days >= start) & (days <= end)
    if days[-1] < first.min() or days[0] > last.max():  # a week of a forecast may well lie between two holidays
        raise SeriesError(f"--school {file}: no holiday in it lies within {days[0]} to {days[-1]}: give those years")
    return inside


def known_values(series: Series, file: Path) -> dict[str, Floats]:
    """(T,) each column of a table at the steps of a series: the value of a longer step, or the mean of shorter ones.

    Raises SeriesError for a table that does not have a value for every step.
    """
    from agentsys.trainers.traffic.formats import DataOptions, read_series

    if not file.is_file():
        raise SeriesError(f"--known {file}: no such file")
    options = DataOptions(file, zone=series.zone, aggregate="mean")
    table = read_series(options)
    if table.step < series.step:
        table = read_series(replace(options, step=f"{series.step}s"))
    positions = np.searchsorted(table.times, series.times, side="right") - 1
    inside = (positions >= 0) & (series.times - table.times[positions] < np.timedelta64(table.step, "s"))
    values = np.where(inside[:, None], table.target[positions], np.nan)
    if (missing := np.flatnonzero(np.isnan(values).any(axis=1))).size:
        raise SeriesError(
            f"--known {file}: no value for {missing.size:,} of {len(series):,} steps, the first at "
            f"{series.local[missing[0]]}: it must cover the data and the forecast"
        )
    return {name: values[:, index] for index, name in enumerate(table.sensors)}


def holidays_as_sundays(series: Series, holidays: Bools) -> Ints:
    """(T,) time of the week of each step, on a public holiday that of a Sunday."""
    return np.where(holidays, 6 * series.steps_per_day + series.time_of_day, series.time_of_week)


def calendar_covariates(series: Series, options: CalendarOptions) -> tuple[Floats, tuple[str, ...]] | None:
    """(T, K) covariates that are known of the future, and their names; None if no option is given.

    First those of public holidays: the day itself, the day before, the day after, and days between a holiday and a
    weekend.
    """
    columns: dict[str, Bools | Floats] = {}
    if options.country:
        columns |= _around(series, public_holidays(series, options.country))
    if options.school:
        columns["school holidays"] = school_holidays(series, Path(options.school))
    if options.known:
        columns |= known_values(series, Path(options.known))
    if not columns:
        return None
    return np.stack(list(columns.values()), axis=1).astype(np.float32), tuple(columns)


def _around(series: Series, holidays: Bools) -> dict[str, Bools]:
    """Public holidays, the days before and after, and bridge days: a Friday after one, or a Monday before one."""
    days = series.local.astype("datetime64[D]")
    free = np.unique(days[holidays])
    one = np.timedelta64(1, "D")
    before, after = np.isin(days, free - one), np.isin(days, free + one)
    weekday = series.day_of_week
    bridge = ((weekday == 4) & after) | ((weekday == 0) & before)
    return {
        "public holiday": holidays,
        "day before a holiday": before & ~holidays,
        "day after a holiday": after & ~holidays,
        "bridge day": bridge & ~holidays,
    }
