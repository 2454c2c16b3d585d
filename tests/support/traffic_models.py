"""Counts with noise, and small models on them, for tests of the traffic trainer."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from agentsys.trainers.traffic.config import ExtralongerConfig, InputKind, Shape
from agentsys.trainers.traffic.folder import ModelInfo, TrafficModel, make_forecaster, save_latest, save_model
from agentsys.trainers.traffic.scaling import Forecaster
from agentsys.trainers.traffic.series import Series
from agentsys.trainers.traffic.splits import Parts, split_windows
from tests.support.traffic import make_series, weekly

TINY = ExtralongerConfig(value_dim=8, time_dim=4, day_dim=4, sensor_dim=6, feed_forward=16, heads=2)


def noisy_week(days: int = 35, sensors: int = 3, *, seed: int = 0, noise: float = 0.1) -> Series:
    """Hourly counts of a daily and weekly rhythm with noise; sensor k counts k + 1 times as much as the first."""
    hours = np.arange(24 * days)
    daily = 60 + 50 * np.sin(2 * np.pi * hours / 24)
    rhythm = daily * np.where(hours // 24 % 7 >= 5, 0.5, 1.0)
    generator = np.random.default_rng(seed)
    values = (
        rhythm[:, None] * np.arange(1, sensors + 1) * (1 + noise * generator.standard_normal((len(hours), sensors)))
    )
    return make_series(values.clip(0).round())


def write_counts(file: Path, series: Series) -> Path:
    """Write a series as a wide CSV file."""
    lines = [",".join(["time", *series.sensors])]
    for time, row in zip(series.times, series.target, strict=True):
        lines.append(",".join([str(time), *("" if np.isnan(value) else f"{value:g}" for value in row)]))
    file.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return file


class Zeros(nn.Module):
    """A network whose output is 0: with `profile` or `ridge`, quantiles are one scale away from the median."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.shape = shape
        self.unused = nn.Parameter(torch.zeros(()))

    def forward(self, x: Tensor, time_in: Tensor, time_out: Tensor, known: Tensor | None = None) -> Tensor:
        size = (len(x), self.shape.steps_out, self.shape.sensors)
        return x.new_zeros(size if self.shape.outputs == 1 else (*size, self.shape.outputs))


def make_zeros(series: Series, kind: InputKind, steps: int = 24, outputs: int = 3) -> tuple[TrafficModel, Parts]:
    """A fitted model whose network adds nothing, and the windows that it was fitted on."""
    parts = split_windows(series, steps, steps)
    shape = Shape(len(series.sensors), steps, steps, series.steps_per_day, channels=2, outputs=outputs)
    forecaster = Forecaster(Zeros(shape), kind, shape.sensors, shape.steps_per_day, (steps, steps))
    forecaster.fit_scaling(parts.train, parts.validation, parts.train_steps)
    info = ModelInfo(
        "extralonger", shape, TINY, kind, series.sensors, series.step, series.zone, {}, {}, nonnegative=True,
        validation={"model": 9.0, "naive": 10.0},
    )  # fmt: skip
    mask = torch.ones(shape.sensors, shape.sensors, dtype=torch.bool)
    return TrafficModel(info, forecaster, mask, torch.zeros(0)), parts


def write_profile_model(folder: Path) -> Path:
    """A model folder whose forecast is the scaled profile: the last layers of a new network are zero.

    Two sensors, a and b, in Berlin's time; `weekly` counts of 56 days from 2024-01-01T00:00 UTC; it forecasts a day.
    """
    series = weekly(24 * 56, zone="Europe/Berlin", sensors=2)
    zeros, parts = make_zeros(series, "profile", steps=24)
    info = replace(zeros.info, config=TINY)
    forecaster = make_forecaster("extralonger", info.shape, zeros.mask, TINY, "profile", False)
    forecaster.fit_scaling(parts.train, parts.validation, parts.train_steps)
    save_model(folder, TrafficModel(info, forecaster, zeros.mask, zeros.bands))
    save_latest(folder, series, 24)
    return folder
