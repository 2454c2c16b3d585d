"""Forecasts of a trained model: what follows the last value of a series, with bands, beside the naive forecast.

The naive forecast is the weekly profile of the training data, scaled per sensor by the level of the last week.
"""

from __future__ import annotations

import csv
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch

from agentsys.trainers.loading import TrainerError
from agentsys.trainers.traffic.calendar import CalendarOptions, calendar_covariates
from agentsys.trainers.traffic.fit import known_of, predict
from agentsys.trainers.traffic.folder import ModelInfo, TrafficModel, check_sensors, load_latest
from agentsys.trainers.traffic.formats import DataOptions, read_series
from agentsys.trainers.traffic.model import Extralonger
from agentsys.trainers.traffic.series import Floats, Series, Times, utc_offsets
from agentsys.trainers.traffic.splits import Windows, make_windows


@dataclass(frozen=True, slots=True)
class Forecast:
    """The O steps after the last value of a series, for N sensors."""

    times: Times
    """(O,) start of each step, UTC."""
    zone: str
    sensors: tuple[str, ...]
    values: Floats
    """(O, N) the median."""
    low: Floats
    """(O, N) 10 % quantile."""
    high: Floats
    """(O, N) 90 % quantile."""
    naive: Floats
    """(O, N) the scaled weekly profile."""
    history: Series
    """The steps that the forecast was made from."""
    notes: tuple[str, ...] = ()
    """What a reader of the forecast must know of the data's end, one sentence each."""

    @property
    def starts(self) -> str:
        """Local time of the first step, with its offset from UTC."""
        return local_texts(self.times[:1], self.zone)[0]

    def at(self, sensor: str, time: np.datetime64) -> tuple[float, float, float]:
        """Forecast, low and high of the step that holds a UTC time. Raises TrainerError outside the forecast."""
        index, column = self.find(sensor, time)
        return tuple(float(table[index, column]) for table in (self.values, self.low, self.high))  # type: ignore[return-value]

    def find(self, sensor: str, time: np.datetime64) -> tuple[int, int]:
        """The step that holds a UTC time, and the column of a sensor. Raises TrainerError outside the forecast."""
        if sensor not in self.sensors:
            raise TrainerError(f"there is no sensor {sensor}: the sensors are {', '.join(self.sensors)}")
        step = np.timedelta64(self.history.step, "s")
        index = int((time - self.times[0]) // step)
        if not 0 <= index < len(self.times):
            asked, first, end = local_texts(np.array([time, self.times[0], self.times[-1] + step]), self.zone)
            raise TrainerError(f"{asked} is outside the forecast, which is from {first} to {end}")
        return index, self.sensors.index(sensor)


def read_latest(folder: Path, info: ModelInfo, data: Path | None = None, start: str = "") -> Series:
    """The latest values: those of a file in a format of the training's data, or without one the end of that data.

    Raises TrainerError, SeriesError among them.
    """
    if data is None:
        return load_latest(folder, info)
    options = DataOptions(**{**info.data, "data": data, "start": start})
    return read_series(options, keep=info.sensors)


def make_forecast(model: TrafficModel, series: Series, name: str = "the data") -> Forecast:
    """Forecast the steps after the last value of a series. Raises TrainerError if the series does not fit the model."""
    info = model.info
    shape = info.shape
    check_series(info, series, name)
    series, notes = trim_end(series.select(info.sensors))
    if len(series) < shape.steps_in:
        raise TrainerError(
            f"{name} has {len(series):,} steps up to its last value: the model needs {shape.steps_in:,} of "
            f"{info.step / 60:g} minutes; give a file that begins earlier"
        )
    notes += describe_gaps(series, shape.steps_in)
    future = series.extended(shape.steps_out)
    calendar = calendar_covariates(future, CalendarOptions(**info.calendar))
    known = calendar[0] if calendar else None
    windows = make_windows(future, shape.steps_in, shape.steps_out, len(series), known)
    return replace(forecast_window(model, windows, len(series)), notes=notes)


def forecast_window(model: TrafficModel, windows: Windows, origin: int) -> Forecast:
    """The forecast of the window with this origin. Its target may be missing."""
    origins = torch.tensor([origin])
    time_out = windows.batch(origins).time_out
    bands = model.with_bands(predict(model.forecaster, windows, origins), time_out)[0]
    low, values, high = (part.numpy() for part in bands.unbind(-1))
    naive = naive_forecast(model, windows, origins)[0].numpy()
    series, info = windows.series, model.info
    times = series.times[origin : origin + windows.t_out]
    history = series.between(origin - windows.t_in, origin)
    return Forecast(times, info.zone, info.sensors, values, low, high, naive, history)


def naive_forecast(model: TrafficModel, windows: Windows, origins: torch.Tensor) -> torch.Tensor:
    """(W, O, N) the scaled weekly profile."""
    x, _, _, time_in, time_out = windows.batch(origins)
    with torch.no_grad():
        naive = model.forecaster.naive_forecast(x, time_in, time_out, *known_of(windows, origins))
    return naive.clamp(min=0) if model.info.nonnegative else naive


def sensor_attention(model: TrafficModel, windows: Windows, origins: torch.Tensor) -> Floats:
    """(N, N) attention from sensor to sensor, the mean over heads and windows. Raises TrainerError for another network.

    It is that of the first layer of the spatial route.
    """
    network = model.forecaster.network
    if not isinstance(network, Extralonger):
        raise TrainerError(f"{model.name} has no attention between sensors: give an Extralonger model")
    x, _, _, time_in, time_out = windows.batch(origins)
    with torch.no_grad():
        inputs = model.forecaster.network_input(x, time_in, time_out, *known_of(windows, origins))
        weights: Floats = network.sensor_attention(inputs).numpy()
    return weights


def check_series(info: ModelInfo, series: Series, name: str) -> None:
    """Raises TrainerError if a series has another step than the model, lacks a sensor, or lacks channels."""
    check_sensors(info, series.sensors, name)
    if series.step != info.step:
        raise TrainerError(
            f"{name} has steps of {series.step / 60:g} minutes and the model {info.step / 60:g}: give --step "
            f"{info.step // 60}min if the data is finer, else data with these steps"
        )
    channels = series.values.shape[2] + 1
    if channels < info.shape.channels:
        raise TrainerError(
            f"{name} has {channels - 1} columns of values per sensor and the model was trained on "
            f"{info.shape.channels - 1}: give the same columns as in the training"
        )


def trim_end(series: Series) -> tuple[Series, tuple[str, ...]]:
    """The series up to the last step at which any sensor has a value. Raises TrainerError if there is none."""
    with_value = np.flatnonzero(~np.isnan(series.target).all(axis=1))
    if not len(with_value):
        raise TrainerError("no sensor of the model has a value in the data: give the latest counts")
    end = int(with_value[-1]) + 1
    missing = len(series) - end
    if not missing:
        return series, ()
    return series.between(0, end), (f"the last {missing} steps have no values: the forecast begins before them",)


def describe_gaps(series: Series, steps_in: int) -> tuple[str, ...]:
    """A sentence for each sensor without a value on the last day, whose forecast rests on what is left."""
    notes = []
    for column, sensor in enumerate(series.sensors):
        observed = ~np.isnan(series.target[-steps_in:, column])
        if not observed.any():
            notes.append(f"{sensor} has no value in the model's input: its forecast is that of an average week")
        elif not observed[-series.steps_per_day :].any():
            gap = int(np.argmax(observed[::-1]))
            notes.append(f"{sensor} has no value in the last {gap} steps: its forecast rests on those before")
    return tuple(notes)


def verdict(info: ModelInfo) -> str:
    """Which of model and naive forecast was better on the validation part, by how much, and so which one to use."""
    if not info.validation or not info.validation["naive"] > 0:
        return "the model was not compared with the naive forecast: look at both"
    model, naive = info.validation["model"], info.validation["naive"]
    share = 1 - model / naive
    facts = f"MAE on validation: model {model:.4g}, naive forecast (scaled weekly profile) {naive:.4g}"
    if abs(share) < 0.005:
        return f"{facts}: no difference; use either"
    better, column = ("model", "forecast") if share > 0 else ("naive forecast", "naive")
    margin = abs(share) if share > 0 else 1 - naive / model
    return f"{facts}: the {better} was better by {margin:.1%}; use the column `{column}`"


def write_csv(forecast: Forecast, file: Path) -> None:
    """Write one row per step and sensor: local time with its offset from UTC, forecast, low, high, naive."""
    file.parent.mkdir(parents=True, exist_ok=True)
    texts = local_texts(forecast.times, forecast.zone)
    with file.open("w", newline="", encoding="utf-8") as stream:
        writer = csv.writer(stream)
        writer.writerow(["time", "sensor", "forecast", "low_10", "high_90", "naive"])
        for step, time in enumerate(texts):
            for column, sensor in enumerate(forecast.sensors):
                tables = (forecast.values, forecast.low, forecast.high, forecast.naive)
                writer.writerow([time, sensor, *(f"{table[step, column]:.4g}" for table in tables)])


def local_texts(times: Times, zone: str) -> list[str]:
    """ISO texts such as 2026-07-01T08:00:00+02:00."""
    offsets = utc_offsets(times, zone)
    texts = []
    for time, offset in zip(times, offsets, strict=True):
        hours, minutes = divmod(abs(int(offset)) // 60, 60)
        local = (time + np.timedelta64(int(offset), "s")).astype("datetime64[s]")
        texts.append(f"{local}{'-' if offset < 0 else '+'}{hours:02}:{minutes:02}")
    return texts
