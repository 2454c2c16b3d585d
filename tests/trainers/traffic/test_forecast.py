"""Forecasts from the end of the data: what they are made of, what is said of gaps, and what does not fit."""

from __future__ import annotations

import csv
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from agentsys.trainers.loading import TrainerError
from agentsys.trainers.traffic.folder import TrafficModel
from agentsys.trainers.traffic.forecast import make_forecast, sensor_attention, verdict, write_csv
from agentsys.trainers.traffic.series import Series
from tests.support.traffic import make_series, weekly
from tests.support.traffic_models import make_zeros, noisy_week

DAY = 24


@pytest.fixture(scope="module")
def series() -> Series:
    return weekly(DAY * 7 * 8, sensors=3)


@pytest.fixture(scope="module")
def model(series: Series) -> TrafficModel:
    return make_zeros(series, "profile", steps=DAY)[0]


def test_the_forecast_begins_after_the_last_value(model: TrafficModel, series: Series) -> None:
    """On data that repeats every week it is the next day, for sensors in any order, at the right times."""
    latest = series.between(0, DAY * 30).select(["c", "a", "b"])
    forecast = make_forecast(model, latest)
    assert forecast.sensors == ("a", "b", "c")
    assert (forecast.times == series.times[DAY * 30 : DAY * 31]).all()
    expected = series.target[DAY * 30 : DAY * 31]
    np.testing.assert_allclose(forecast.values, expected, rtol=1e-4)
    np.testing.assert_allclose(forecast.naive, expected, rtol=1e-4)
    assert (forecast.low < forecast.values).all() and (forecast.values < forecast.high).all()
    assert forecast.notes == () and len(forecast.history) == DAY


def test_one_value_of_a_forecast(model: TrafficModel, series: Series) -> None:
    forecast = make_forecast(model, series.between(0, DAY * 30))
    time = series.times[DAY * 30 + 5] + np.timedelta64(59 * 60, "s")
    value, low, high = forecast.at("b", time)
    assert value == pytest.approx(series.target[DAY * 30 + 5, 1], rel=1e-4) and low < value < high
    with pytest.raises(TrainerError, match="there is no sensor x: the sensors are a, b, c"):
        forecast.at("x", time)
    for outside in (series.times[DAY * 30 - 1], series.times[DAY * 31]):
        with pytest.raises(TrainerError, match=r"is outside the forecast, which is from 2024-01-31T00:00:00"):
            forecast.at("a", outside)


def test_a_gap_at_the_end_of_all_sensors_moves_the_start(model: TrafficModel, series: Series) -> None:
    values = series.values[: DAY * 30].copy()
    values[-5:] = np.nan
    forecast = make_forecast(model, make_series(values))
    assert forecast.times[0] == series.times[DAY * 30 - 5]
    assert forecast.notes == ("the last 5 steps have no values: the forecast begins before them",)


def test_a_gap_at_the_end_of_one_sensor_is_named(series: Series) -> None:
    model = make_zeros(series, "profile", steps=2 * DAY)[0]
    values = series.values[: DAY * 30].copy()
    values[-30:, 1] = np.nan
    values[-60:, 2] = np.nan
    notes = make_forecast(model, make_series(values)).notes
    assert notes == (
        "b has no value in the last 30 steps: its forecast rests on those before",
        "c has no value in the model's input: its forecast is that of an average week",
    )


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda s: s.select(["a", "c"]), r"latest.csv has no sensor b: the model was trained on 3 sensors"),
        (lambda s: s.between(0, 20), r"has 20 steps up to its last value: the model needs 24 of 60 minutes"),
        (lambda s: replace(s, step=1800), r"steps of 30 minutes and the model 60: give --step 60min"),
        (lambda s: replace(s, values=s.values * np.nan), r"no sensor of the model has a value"),
    ],
)  # fmt: skip
def test_data_that_does_not_fit_is_refused(model: TrafficModel, series: Series, change: object, message: str) -> None:
    with pytest.raises(TrainerError, match=message):
        make_forecast(model, change(series), "latest.csv")  # type: ignore[operator]


def test_the_csv_has_local_times_with_their_offset(series: Series, tmp_path: Path) -> None:
    """Over the night in which the clock in Berlin is put forward."""
    berlin = replace(weekly(DAY * 7 * 14, zone="Europe/Berlin", start=np.datetime64("2024-01-01T00:00:00", "s")))
    model = make_zeros(berlin, "profile", steps=DAY)[0]
    end = int(np.flatnonzero(berlin.times == np.datetime64("2024-03-31T00:00:00"))[0])
    write_csv(make_forecast(model, berlin.between(0, end)), tmp_path / "deep" / "week.csv")
    rows = list(csv.DictReader((tmp_path / "deep" / "week.csv").open()))
    assert list(rows[0]) == ["time", "sensor", "forecast", "low_10", "high_90", "naive"]
    assert [row["time"] for row in rows[:2]] == ["2024-03-31T01:00:00+01:00", "2024-03-31T03:00:00+02:00"]
    assert len(rows) == DAY and float(rows[0]["naive"]) == pytest.approx(10 + 6 * 24 + 1, rel=1e-3)


@pytest.mark.parametrize(
    ("errors", "line"),
    [
        ((36.0, 40.0), "MAE on validation: model 36, naive forecast (scaled weekly profile) 40: the model was better "
         "by 10.0%; use the column `forecast`"),
        ((50.0, 40.0), "MAE on validation: model 50, naive forecast (scaled weekly profile) 40: the naive forecast was "
         "better by 20.0%; use the column `naive`"),
        ((40.1, 40.0), "MAE on validation: model 40.1, naive forecast (scaled weekly profile) 40: no difference; use "
         "either"),
    ],
)  # fmt: skip
def test_the_verdict_says_which_to_use(model: TrafficModel, errors: tuple[float, float], line: str) -> None:
    info = replace(model.info, validation=dict(zip(("model", "naive"), errors, strict=True)))
    assert verdict(info) == line


def test_attention_between_sensors_needs_extralonger() -> None:
    model, parts = make_zeros(noisy_week(), "plain")
    with pytest.raises(TrainerError, match="no attention between sensors"):
        sensor_attention(model, parts.test, parts.test.origins[:2])
