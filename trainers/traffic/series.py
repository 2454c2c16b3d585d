"""A table of sensor values over time, on an equidistant grid, with everything that was corrected on the way there."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from zoneinfo import ZoneInfo

import numpy as np
import numpy.typing as npt

from agentsys.trainers.loading import TrainerError

Floats = npt.NDArray[np.float32]
Ints = npt.NDArray[np.int64]
Times = npt.NDArray[np.datetime64]

DAY = 86_400
"""Seconds of a day."""


class SeriesError(TrainerError):
    """User-fixable error in a table of values: one line that names the fix."""


@dataclass(frozen=True, slots=True)
class Series:
    """Values of N sensors at T equidistant times, with C channels. The first channel is what is forecast."""

    values: Floats
    """(T, N, C); NaN where a value is missing."""
    times: Times
    """(T,) start of each step, UTC, datetime64[s], `step` seconds apart."""
    step: int
    """Seconds between two steps; divides a day."""
    sensors: tuple[str, ...]
    """(N,) names."""
    zone: str = "UTC"
    """Time zone of the sensors, such as Europe/Berlin: daily and weekly patterns follow its clock."""
    corrections: tuple[str, ...] = ()
    """Everything that was changed in the data, one sentence each."""

    def __post_init__(self) -> None:
        """Raises SeriesError for a step that does not divide a day, and for shapes that do not fit together."""
        if self.step < 1 or DAY % self.step:
            raise SeriesError(f"a step of {self.step} s does not divide a day: give one such as 5min, 15min or 1h")
        if self.values.ndim != 3 or self.values.shape[:2] != (len(self.times), len(self.sensors)):
            raise SeriesError(
                f"values of shape {self.values.shape} do not fit {len(self.times)} times and {len(self.sensors)} "
                "sensors: they must be (times, sensors, channels)"
            )

    def __len__(self) -> int:
        """Number of steps, T."""
        return len(self.times)

    @property
    def target(self) -> Floats:
        """(T, N) the channel that is forecast."""
        return self.values[:, :, 0]

    @property
    def steps_per_day(self) -> int:
        """Steps of a day of 24 hours."""
        return DAY // self.step

    @property
    def steps_per_week(self) -> int:
        """Steps of seven days of 24 hours."""
        return 7 * self.steps_per_day

    @property
    def local(self) -> Times:
        """(T,) wall-clock time of each step in `zone`: an hour is missing in spring and appears twice in autumn."""
        return to_local(self.times, self.zone)

    @property
    def time_of_day(self) -> Ints:
        """(T,) index of each step in its local day, from 0 to steps_per_day - 1."""
        seconds = self.local.astype("datetime64[s]").astype(np.int64)
        return seconds % DAY // self.step

    @property
    def day_of_week(self) -> Ints:
        """(T,) local day of the week, Monday 0 to Sunday 6."""
        return weekdays(self.local)

    @property
    def time_of_week(self) -> Ints:
        """(T,) index of each step in its local week, from 0 (Monday 00:00) to steps_per_week - 1."""
        return self.day_of_week * self.steps_per_day + self.time_of_day

    def between(self, start: int, end: int) -> Series:
        """The steps from `start` up to `end`, without `end`; values are views."""
        return replace(self, values=self.values[start:end], times=self.times[start:end])

    def select(self, sensors: Sequence[str]) -> Series:
        """Only these sensors, in this order. Raises SeriesError for one that is not there."""
        positions = {name: index for index, name in enumerate(self.sensors)}
        if unknown := [name for name in sensors if name not in positions]:
            raise SeriesError(f"there is no sensor {', '.join(unknown)}: the sensors are {', '.join(self.sensors)}")
        return replace(self, values=self.values[:, [positions[name] for name in sensors]], sensors=tuple(sensors))

    def extended(self, steps: int) -> Series:
        """With `steps` more steps after the last, all values missing: the times of a forecast."""
        more = self.times[-1] + np.arange(1, steps + 1) * np.timedelta64(self.step, "s")
        empty = np.full((steps, *self.values.shape[1:]), np.nan, np.float32)
        return replace(self, values=np.concatenate([self.values, empty]), times=np.concatenate([self.times, more]))

    def corrected(self, *sentences: str) -> Series:
        """With more entries in `corrections`."""
        return replace(self, corrections=(*self.corrections, *sentences))


def weekdays(local: Times | np.datetime64) -> Ints:
    """Days of the week of local times, Monday 0 to Sunday 6."""
    days: Ints = local.astype("datetime64[D]").astype(np.int64)
    return (days + 3) % 7  # 1970-01-01 was a Thursday


def to_local(times: Times, zone: str) -> Times:
    """Wall-clock times in `zone` of UTC times, datetime64[s]. Raises SeriesError for an unknown zone."""
    seconds: Times = times.astype("datetime64[s]")
    local: Times = seconds + utc_offsets(seconds, zone).astype("timedelta64[s]")
    return local


def utc_offsets(times: Times, zone: str) -> Ints:
    """Seconds by which the clock of `zone` is ahead of UTC at each UTC time. Raises SeriesError for an unknown zone."""
    from datetime import UTC, datetime

    clock = find_zone(zone)
    quarters, inverse = np.unique(times.astype("datetime64[s]").astype(np.int64) // 900, return_inverse=True)
    # Offsets change at full quarters of an hour. Only where two days differ are the quarters between them looked up.
    days = np.unique(quarters // 96)

    def offset(quarter: int) -> int:
        moment = datetime.fromtimestamp(quarter * 900, UTC).astimezone(clock)
        return int(moment.utcoffset().total_seconds())  # type: ignore[union-attr]

    starts = {day: offset(int(day) * 96) for day in np.union1d(days, days + 1)}
    offsets = np.empty(len(quarters), np.int64)
    of_day = np.searchsorted(days, quarters // 96)
    same = np.array([starts[day] == starts[day + 1] for day in days])
    first = np.array([starts[day] for day in days])
    offsets[:] = first[of_day]
    for index in np.flatnonzero(~same[of_day]):
        offsets[index] = offset(int(quarters[index]))
    return offsets[inverse]


def find_zone(zone: str) -> ZoneInfo:
    """A time zone by its name in the IANA database. Raises SeriesError."""
    try:
        return ZoneInfo(zone)
    except (KeyError, ValueError, OSError):
        raise SeriesError(f"--zone {zone}: no such time zone; give a name such as Europe/Berlin") from None
