"""Public holidays and school terms follow the sensors' local days."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from agentsys.trainers.traffic.calendar import (
    CalendarOptions,
    calendar_covariates,
    holidays_as_sundays,
    known_values,
    public_holidays,
    school_holidays,
)
from agentsys.trainers.traffic.series import Series, SeriesError
from tests.support.traffic import weekly


def berlin(start: str, days: int) -> Series:
    return weekly(24 * days, zone="Europe/Berlin", start=np.datetime64(start, "s"))


@pytest.mark.needs("traffic")
def test_public_holidays_are_local_days() -> None:
    series = berlin("2024-05-27T22:00:00", 6)  # Tuesday 00:00 in Berlin
    free = public_holidays(series, "DE-NW")
    assert set(series.local[free].astype("datetime64[D]").astype(str)) == {"2024-05-30"}  # Corpus Christi
    assert free.sum() == 24 and not public_holidays(series, "de-BE").any()
    for wrong in ("XX", "DE-XX"):
        with pytest.raises(SeriesError, match=f"--country {wrong}: "):
            public_holidays(series, wrong)


@pytest.mark.needs("traffic")
def test_a_holiday_has_the_time_of_a_sunday() -> None:
    series = berlin("2024-05-27T22:00:00", 6)
    cells = holidays_as_sundays(series, public_holidays(series, "DE-NW"))
    assert cells[48:72].tolist() == list(range(6 * 24, 7 * 24))
    assert np.array_equal(np.delete(cells, range(48, 72)), np.delete(series.time_of_week, range(48, 72)))


@pytest.mark.needs("traffic")
def test_covariates_of_the_days_around_a_holiday(tmp_path: Path) -> None:
    (tmp_path / "school.csv").write_text("from,to\n2024-05-31,31.05.2024\n")
    series = berlin("2024-05-27T22:00:00", 6)  # Tuesday to Sunday, Thursday is a holiday
    options = CalendarOptions(country="DE-NW", school=str(tmp_path / "school.csv"))
    values, names = calendar_covariates(series, options) or (np.zeros(0), ())
    days = dict(zip(names, values.reshape(6, 24, -1)[:, 0].T.tolist(), strict=True))
    assert days == {
        "public holiday": [0, 0, 1, 0, 0, 0],
        "day before a holiday": [0, 1, 0, 0, 0, 0],
        "day after a holiday": [0, 0, 0, 1, 0, 0],
        "bridge day": [0, 0, 0, 1, 0, 0],
        "school holidays": [0, 0, 0, 1, 0, 0],
    }
    assert (values.reshape(6, 24, -1) == values.reshape(6, 24, -1)[:, :1]).all()
    assert calendar_covariates(series, CalendarOptions()) is None


@pytest.mark.parametrize(
    ("text", "error"),
    [
        ("start,end\n2024-05-28,2024-05-29\n", "it needs the columns from and to; it has start, end"),
        ("from,to\n2024-05-28,2024-05-27\n", "row 1: the holidays end before they begin"),
        ("from,to\n2020-05-28,2020-05-29\n", "no holiday in it lies within 2024-05-28 to 2024-06-02"),
        ("from,to\n2020-05-28,soon\n", "'soon' is no time"),
    ],
)
def test_bad_school_terms(tmp_path: Path, text: str, error: str) -> None:
    (tmp_path / "school.csv").write_text(text)
    with pytest.raises(SeriesError, match=error):
        school_holidays(berlin("2024-05-27T22:00:00", 6), tmp_path / "school.csv")
    with pytest.raises(SeriesError, match="no such file"):
        school_holidays(berlin("2024-05-27T22:00:00", 6), tmp_path / "absent.csv")


def write_weather(file: Path, start: str, hours: int, minutes: int = 60) -> Path:
    """A table of rain and wind in Berlin's time: rain is 1, 2, 3, ..., one more with every row."""
    times = np.datetime64(start) + np.arange(hours * 60 // minutes) * np.timedelta64(minutes, "m")
    rows = [f"{time},{i + 1},0.5" for i, time in enumerate(times)]
    file.write_text("\n".join(["time,rain,wind", *rows]) + "\n")
    return file


def test_values_known_of_the_future_by_step(tmp_path: Path) -> None:
    """In the local time of the sensors; finer tables by their mean, coarser ones by the step that holds the time."""
    series = berlin("2024-05-27T22:00:00", 1)  # Tuesday 00:00 in Berlin
    hourly = known_values(series, write_weather(tmp_path / "hourly.csv", "2024-05-27T23:00", 30))
    assert hourly["rain"].tolist() == list(range(2, 26)) and set(hourly["wind"]) == {0.5}
    finer = known_values(series, write_weather(tmp_path / "finer.csv", "2024-05-28T00:00", 30, 30))
    assert finer["rain"][:3].tolist() == [1.5, 3.5, 5.5]
    coarser = known_values(series, write_weather(tmp_path / "coarser.csv", "2024-05-27T22:00", 30, 120))
    assert coarser["rain"][:4].tolist() == [2, 2, 3, 3]


def test_a_table_of_known_values_covers_every_step(tmp_path: Path) -> None:
    series = berlin("2024-05-27T22:00:00", 2)
    with pytest.raises(SeriesError, match=r"short.csv: no value for 20 of 48 steps, the first at 2024-05-29T04"):
        known_values(series, write_weather(tmp_path / "short.csv", "2024-05-28T00:00", 28))
    with pytest.raises(SeriesError, match=r"no value for 2 of 48 steps, the first at 2024-05-28T00:00:00"):
        known_values(series, write_weather(tmp_path / "late.csv", "2024-05-28T02:00", 60))
    with pytest.raises(SeriesError, match=r"--known none.csv: no such file"):
        calendar_covariates(series, CalendarOptions(known="none.csv"))
