"""Small series of made-up counts for tests of the traffic trainer."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from agentsys.trainers.traffic.formats import DataOptions, read_series
from agentsys.trainers.traffic.series import Series

MONDAY = np.datetime64("2024-01-01T00:00:00", "s")


def make_series(values: object, *, step: int = 3600, zone: str = "UTC", start: np.datetime64 = MONDAY) -> Series:
    """A series of values (T,), (T, N) or (T, N, C), whose sensors are called a, b, c, ..."""
    array = np.asarray(values, np.float32)
    array = array.reshape(*array.shape, *[1] * (3 - array.ndim))
    times = start + np.arange(len(array)) * np.timedelta64(step, "s")
    return Series(array, times, step, tuple("abcdefghij"[: array.shape[1]]), zone)


def weekly(steps: int, *, zone: str = "UTC", sensors: int = 1, start: np.datetime64 = MONDAY) -> Series:
    """An hourly series whose value is 10 + its local hour of the week, times 1, 2, 3, ... for the sensors."""
    empty = make_series(np.zeros((steps, sensors)), zone=zone, start=start)
    return make_series((10 + empty.time_of_week)[:, None] * np.arange(1, sensors + 1), zone=zone, start=start)


def read_text(folder: Path, text: str, name: str = "counts.csv", **options: object) -> Series:
    """Write a file and read it."""
    path = folder / name
    path.write_text(text, encoding="utf-8")
    return read_series(DataOptions(data=path, **options))  # type: ignore[arg-type]
