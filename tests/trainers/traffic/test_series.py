"""Series: local clocks, the grid, and that every correction is reported."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from agentsys.trainers.traffic.grid import describe_seconds, parse_duration
from agentsys.trainers.traffic.series import SeriesError, to_local, utc_offsets
from tests.support.traffic import make_series, read_text


def utc(*times: str) -> np.ndarray:
    return np.array(times, "datetime64[s]")


def test_the_local_clock_skips_an_hour_in_spring_and_repeats_one_in_autumn() -> None:
    spring = utc("2024-03-31T00:45", "2024-03-31T01:00")
    assert list(to_local(spring, "Europe/Berlin")) == list(utc("2024-03-31T01:45", "2024-03-31T03:00"))
    autumn = utc("2024-10-27T00:30", "2024-10-27T01:30")
    assert list(to_local(autumn, "Europe/Berlin")) == list(utc("2024-10-27T02:30", "2024-10-27T02:30"))


def test_offsets_of_a_long_series_are_those_of_each_time() -> None:
    from datetime import UTC
    from zoneinfo import ZoneInfo

    times = np.datetime64("2023-01-01", "s") + np.arange(0, 2 * 365 * 96, 7) * np.timedelta64(900, "s")
    for zone in ("Europe/Berlin", "America/New_York", "Asia/Kolkata", "Australia/Lord_Howe"):
        expected = [
            t.replace(tzinfo=UTC).astimezone(ZoneInfo(zone)).utcoffset().total_seconds() for t in times.tolist()
        ]
        assert utc_offsets(times, zone).tolist() == expected


def test_time_of_day_and_week_are_local() -> None:
    series = make_series(np.zeros(48), zone="America/New_York")
    assert series.time_of_day[:6].tolist() == [19, 20, 21, 22, 23, 0]
    assert series.day_of_week[[0, 5]].tolist() == [6, 0]  # 2024-01-01 is a Monday; in New York it is still Sunday
    assert series.time_of_week[[0, 5]].tolist() == [6 * 24 + 19, 0]


def test_extended_adds_missing_steps_and_select_orders_sensors() -> None:
    series = make_series([[1, 2], [3, 4]])
    longer = series.extended(3)
    assert len(longer) == 5 and np.isnan(longer.values[2:]).all()
    assert str(longer.times[-1]) == "2024-01-01T04:00:00"
    assert series.select(["b", "a"]).target.tolist() == [[2, 1], [4, 3]]
    with pytest.raises(SeriesError, match="no sensor x: the sensors are a, b"):
        series.select(["x"])


def test_a_step_must_divide_a_day() -> None:
    with pytest.raises(SeriesError, match="7 s does not divide a day"):
        make_series(np.zeros(3), step=7)


def test_durations() -> None:
    seconds = [parse_duration(text, "--step") for text in ("15min", "1h", "week", "3 days", "30s", "2w")]
    assert seconds == [900, 3600, 604_800, 259_200, 30, 1_209_600]
    assert [describe_seconds(s) for s in (900, 3600, 86_400, 30)] == ["15min", "1h", "1d", "30s"]
    for text in ("", "h1", "0h", "15", "1 month"):
        with pytest.raises(SeriesError, match="--step"):
            parse_duration(text, "--step")


def rows(*lines: str) -> str:
    return "\n".join(["time,a,b", *lines]) + "\n"


def test_autumn_hour_that_is_in_the_file_twice(tmp_path: Path) -> None:
    text = rows("2024-10-27 01:00,1,1", "2024-10-27 02:00,2,2", "2024-10-27 02:00,3,3", "2024-10-27 03:00,4,4")
    series = read_text(tmp_path, text, zone="Europe/Berlin")
    assert series.target[:, 0].tolist() == [1, 2, 3, 4]
    assert str(series.times[0]) == "2024-10-26T23:00:00"
    assert series.time_of_day.tolist() == [1, 2, 2, 3]
    assert any("second pass" in note for note in series.corrections)


def test_autumn_hour_that_is_in_the_file_once_is_missing(tmp_path: Path) -> None:
    text = rows("2024-10-27 01:00,1,1", "2024-10-27 02:00,50,50", "2024-10-27 03:00,4,4", "2024-10-27 04:00,5,5")
    series = read_text(tmp_path, text, zone="Europe/Berlin")
    assert np.nan_to_num(series.target[:, 0], nan=-1).tolist() == [1, -1, -1, 4, 5]
    assert any("1 rows lie in an hour that the clock of Europe/Berlin shows twice" in s for s in series.corrections)


def test_spring_hour_that_does_not_exist_is_dropped(tmp_path: Path) -> None:
    text = rows("2024-03-31 01:00,1,1", "2024-03-31 02:00,,", "2024-03-31 03:00,3,3", "2024-03-31 04:00,4,4")
    series = read_text(tmp_path, text, zone="Europe/Berlin")
    assert series.target[:, 0].tolist() == [1, 3, 4]
    assert "dropped 1 rows (0 with values) in an hour that the clock of Europe/Berlin skips" in series.corrections


def test_without_a_zone_the_clock_never_changes(tmp_path: Path) -> None:
    text = rows("2024-03-31 01:00,1,1", "2024-03-31 02:00,2,2", "2024-03-31 03:00,3,3")
    series = read_text(tmp_path, text)
    assert series.target[:, 0].tolist() == [1, 2, 3] and series.corrections == ()


def test_unsorted_duplicate_and_absent_rows(tmp_path: Path) -> None:
    lines = ["2024-01-01 02:00,3,9", "2024-01-01 00:00,1,7", "2024-01-01 01:00,2,8", "2024-01-01 01:00,2,8"]
    series = read_text(tmp_path, rows(*lines, "2024-01-01 02:00,4,", "2024-01-01 04:00,5,9"))
    assert np.nan_to_num(series.target, nan=-1).tolist() == [[1, 7], [2, 8], [4, 9], [-1, -1], [5, 9]]
    report = " | ".join(series.corrections)
    assert "sorted" in report and "2 duplicate rows (1 with other values)" in report
    assert "1 of 5 steps have no row" in report


def test_negative_and_infinite_values_count_as_missing(tmp_path: Path) -> None:
    series = read_text(tmp_path, rows("2024-01-01 00:00,1,-1", "2024-01-01 01:00,inf,2", "2024-01-01 02:00,3,0"))
    assert np.isnan(series.target).sum() == 2 and series.target[2, 1] == 0
    assert {"1 values are infinite and count as missing", "1 values are negative and count as missing"} <= set(
        series.corrections
    )
    series = read_text(
        tmp_path, rows("2024-01-01 00:00,1,0", "2024-01-01 01:00,0,2", "2024-01-01 02:00,3,4"), missing=0.0
    )
    assert np.isnan(series.target).sum() == 2
    with pytest.raises(SeriesError, match="most values are negative"):
        read_text(tmp_path, rows("2024-01-01 00:00,-1,-1", "2024-01-01 01:00,-1,2"))


def quarter_hours(days: int, coarse_from: int) -> str:
    """A sensor with 1 per quarter of an hour; b has from a day on one row per hour, a total of 4."""
    first = np.datetime64("2024-01-01T00:00", "m")
    lines = []
    for step in range(days * 96):
        b = "1" if step < coarse_from * 96 else "4" if step % 4 == 0 else ""
        lines.append(f"{str(first + step * 15).replace('T', ' ')},1,{b}")
    return rows(*lines)


def test_a_sensor_that_changes_to_hourly_totals(tmp_path: Path) -> None:
    text = quarter_hours(4, coarse_from=2)
    hourly = read_text(tmp_path, text, step="1h")
    assert (hourly.target == 4).all() and hourly.values.shape == (96, 2, 1)
    assert "48 values of b report every 1h: taken as they are" in hourly.corrections
    quarters = read_text(tmp_path, text)
    assert (quarters.target[: 2 * 96] == 1).all() and np.isnan(quarters.target[2 * 96 :, 1]).all()
    assert any("report totals of 1h on some days" in note for note in quarters.corrections)


def test_a_file_that_changes_its_interval_keeps_the_shorter_one(tmp_path: Path) -> None:
    hours = [f"2024-01-0{day} {hour:02}:00,4,4" for day in (1, 2, 3) for hour in range(24)]
    quarters = [f"2024-01-04 {step // 4:02}:{step % 4 * 15:02},1,1" for step in range(48)]
    series = read_text(tmp_path, rows(*hours, *quarters), step="1h")
    assert (series.target == 4).all() and len(series) == 3 * 24 + 12


def test_sums_need_every_value_and_means_half(tmp_path: Path) -> None:
    quarters = ["2024-01-01 00:00,1,1", "2024-01-01 00:15,2,", "2024-01-01 00:30,3,3", "2024-01-01 00:45,4,"]
    text = rows(*quarters, "2024-01-01 01:00,5,", "2024-01-01 01:15,5,", "2024-01-01 01:30,5,", "2024-01-01 01:45,5,1")
    total = read_text(tmp_path, text, step="1h")
    assert total.sensors == ("a",) and total.target.tolist() == [[10], [20]]  # b has no complete hour
    assert any("2 steps have too few values for a sum" in note for note in total.corrections)
    mean = read_text(tmp_path, text, step="1h", aggregate="mean")
    assert np.nan_to_num(mean.target, nan=-1).tolist() == [[2.5, 2.0], [5.0, -1.0]]


def test_late_stopped_constant_and_empty_sensors_are_named(tmp_path: Path) -> None:
    lines = []
    for hour in range(24 * 20):
        time = np.datetime64("2024-01-01T00", "h") + hour
        late, stopped = ("" if hour < 48 else str(hour)), (str(hour) if hour < 240 else "")
        lines.append(f"{str(time).replace('T', ' ')}:00,{late},{stopped},7,")
    series = read_text(tmp_path, "time,late,stopped,constant,empty\n" + "\n".join(lines))
    assert series.sensors == ("late", "stopped", "constant")
    assert set(series.corrections) == {
        "dropped empty: no value at all",
        "sensors that start late: late (2024-01-03)",
        "sensors that stop before the data ends: stopped (2024-01-10)",
        "sensors that never change: constant",
        "sensors that miss many values: stopped (50%)",
    }


def test_times_that_jitter_are_moved_to_the_nearest_step(tmp_path: Path) -> None:
    text = rows(
        "2024-01-01 00:00:02,1,1", "2024-01-01 00:59:58,2,2", "2024-01-01 02:00:01,3,3", "2024-01-01 03:00:00,4,4"
    )
    series = read_text(tmp_path, text, step="1h")
    assert series.target[:, 0].tolist() == [1, 2, 3, 4]
    assert any("3 times lie between two steps of 1h" in note for note in series.corrections)


@pytest.mark.parametrize(
    ("lines", "options", "error"),
    [
        (["2024-01-01 00:00,1,1", "2024-01-01 00:07,1,1"], {}, "7min, which does not divide a day"),
        (["2024-01-01 00:00,1,1"], {}, "fewer than two times"),
        (["2024-01-01 00:00,1,1", "2024-01-01 01:00,1,1"], {"step": "15min"}, "every 1h, which does not divide --step"),
        (["2024-01-01 00:00,,", "2024-01-01 01:00,,"], {}, "counts.csv: the data has no value"),
        (["2024-01-01 00:00,1,1", "2024-01-01 01:00,1,1"], {"zone": "Europe/Muenster"}, "--zone Europe/Muenster"),
        (["1024-01-01 00:00,1,1", "2024-01-01 01:00,1,1"], {}, "row 1: there is no time 1024-01-01 00:00: correct it"),
        (["2004-01-01 00:00,1,1", "2024-01-01 00:00,1,1", "2024-01-01 01:00,1,1"], {}, "correct the wrong times"),
    ],
)  # fmt: skip
def test_errors_name_the_fix(tmp_path: Path, lines: list[str], options: dict[str, str], error: str) -> None:
    with pytest.raises(SeriesError, match=error):
        read_text(tmp_path, rows(*lines), **options)
