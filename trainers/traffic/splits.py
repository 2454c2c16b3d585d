"""Windows of a series, and their split into training, validation and test part.

A window has an *origin*: the step where its forecast begins. Its input are the `t_in` steps before the origin, its
target the `t_out` steps from the origin on. Windows are cut out of the series in batches; never are all of them in
memory at once.

- `gapped`: the series is cut by time in three parts, and a window lies wholly inside its part, so that no step is in
  two parts.
- `published`: the released code of Extralonger (papers file, section 3.2) cuts the list of windows, 60/20/20 by window
  index. Neighboring parts share t_in + t_out - 1 steps: training targets appear again as inputs and targets of the
  validation, which flatters every model that can remember them.
"""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from agentsys.trainers.traffic.config import SplitKind
from agentsys.trainers.traffic.series import Floats, Ints, Series, SeriesError

SHARES = (60, 20, 20)
"""Percent of the training, validation and test part (papers file, section 3.2)."""


class Batch(NamedTuple):
    """Windows as tensors."""

    x: Tensor
    """(B, T_in, N, C + 1) input: the channels with gaps filled, then a flag that is 1 where channel 0 was missing."""
    y: Tensor
    """(B, T_out, N) target; 0 where it is missing."""
    mask: Tensor
    """(B, T_out, N) bool: where the target was observed."""
    time_in: Tensor
    """(B, T_in, 2) long: time of day (0 to steps_per_day - 1) and day of week (Monday 0), local time."""
    time_out: Tensor
    """(B, T_out, 2) long: the same of the target's steps."""


@dataclass(frozen=True, slots=True)
class Windows:
    """Windows over one series: `origins` are those of one part; the tensors are shared by all parts."""

    series: Series
    filled: Tensor
    """(T, N, C + 1) float32: values with gaps filled from the past, and the flag of missing values."""
    target: Tensor
    """(T, N) float32: channel 0, 0 where missing."""
    observed: Tensor
    """(T, N) bool: where channel 0 was observed."""
    clock: Tensor
    """(T, 2) long: time of day and day of week."""
    covariates: Tensor | None
    """(T, K) float32: what is known of the future too, such as holidays; None without."""
    t_in: int
    t_out: int
    origins: Tensor
    """(W,) long: steps at which the forecasts of this part begin, ascending."""

    def __len__(self) -> int:
        """Number of windows, W."""
        return len(self.origins)

    @property
    def independent(self) -> float:
        """How many forecasts of this length would fit side by side, without a step in common."""
        return (int(self.origins[-1] - self.origins[0]) + self.t_out) / self.t_out

    def batch(self, origins: Tensor) -> Batch:
        """The windows with these origins (steps of the series, usually some of `self.origins`), (B,) long."""
        before, after = self._steps(origins)
        return Batch(
            self.filled[before], self.target[after], self.observed[after], self.clock[before], self.clock[after]
        )

    def batch_covariates(self, origins: Tensor) -> tuple[Tensor, Tensor]:
        """Covariates of the windows: (B, T_in, K) and (B, T_out, K). K is 0 without covariates."""
        before, after = self._steps(origins)
        known = self.filled.new_zeros(len(self.filled), 0) if self.covariates is None else self.covariates
        return known[before], known[after]

    def _steps(self, origins: Tensor) -> tuple[Tensor, Tensor]:
        """(B, T_in) and (B, T_out): the steps of input and target."""
        first = origins.to(self.clock.device)[:, None]
        before = first + torch.arange(-self.t_in, 0, device=first.device)
        return before, first + torch.arange(self.t_out, device=first.device)

    def with_origins(self, origins: Tensor) -> Windows:
        """Other windows of the same series."""
        return replace(self, origins=origins)

    def every(self, stride: int) -> Windows:
        """Each `stride`-th window; the stride is raised until it has no factor in common with the steps of a day.

        Otherwise a model would see only some of the day's starting times: every third hourly window starts at 8 of the
        24 hours, which made the error of a STID model 45 % higher.
        """
        return self.with_origins(self.origins[:: coprime_stride(stride, self.series.steps_per_day)])

    def to(self, device: str | torch.device) -> Windows:
        """The same windows with their tensors on a device."""
        known = None if self.covariates is None else self.covariates.to(device)
        return replace(
            self,
            filled=self.filled.to(device),
            target=self.target.to(device),
            observed=self.observed.to(device),
            clock=self.clock.to(device),
            covariates=known,
        )


@dataclass(frozen=True, slots=True)
class Parts:
    """Training, validation and test windows, and the steps from which statistics may be taken."""

    train: Windows
    validation: Windows
    test: Windows
    train_steps: int
    """The training part is the steps from 0 up to this one, without it."""


def coprime_stride(stride: int, steps_per_day: int) -> int:
    """The smallest stride from `stride` on that shares no factor with the steps of a day; 1 stays 1."""
    while math.gcd(stride, steps_per_day) > 1:
        stride += 1
    return stride


def split_origins(length: int, t_in: int, t_out: int, kind: SplitKind = "gapped") -> tuple[list[range], int]:
    """Origins of the training, validation and test windows, and the number of steps of the training part.

    `length` is the number of steps of the series. Raises SeriesError if a part holds no window.
    """
    origins, train_steps = _cut(length, t_in, t_out, kind)
    if not all(origins):
        needed = next(steps for steps in itertools.count(length) if all(_cut(steps, t_in, t_out, kind)[0]))
        raise SeriesError(
            f"the data has {length:,} steps; {t_in:,} steps of input and {t_out:,} steps of forecast need at least "
            f"{needed:,}: give more data, or a shorter --in-horizon or --out-horizon"
        )
    return origins, train_steps


def _cut(length: int, t_in: int, t_out: int, kind: SplitKind) -> tuple[list[range], int]:
    windows = max(0, length - t_in - t_out + 1)
    total = windows if kind == "published" else length
    ends = [0, total * SHARES[0] // 100, total * (SHARES[0] + SHARES[1]) // 100, total]
    if kind == "published":
        return [range(start + t_in, end + t_in) for start, end in pairwise(ends)], ends[1] + t_in + t_out - 1
    return [range(start + t_in, end - t_out + 1) for start, end in pairwise(ends)], ends[1]


def make_windows(series: Series, t_in: int, t_out: int, train_steps: int, covariates: Floats | None = None) -> Windows:
    """Every window of the series. Gaps are filled by `fill_gaps`, with means of the first `train_steps` steps."""
    target = torch.from_numpy(np.ascontiguousarray(series.target))
    observed = ~torch.isnan(target)
    filled = torch.from_numpy(fill_gaps(series, train_steps))
    return Windows(
        series=series,
        filled=torch.cat([filled, (~observed)[..., None].float()], dim=2),
        target=torch.nan_to_num(target),
        observed=observed,
        clock=torch.from_numpy(np.stack([series.time_of_day, series.day_of_week], axis=1)),
        covariates=None if covariates is None else torch.from_numpy(np.asarray(covariates, np.float32)),
        t_in=t_in,
        t_out=t_out,
        origins=torch.arange(t_in, len(series) - t_out + 1),
    )


def split_windows(
    series: Series, t_in: int, t_out: int, kind: SplitKind = "gapped", covariates: Floats | None = None
) -> Parts:
    """Training, validation and test windows. `covariates` are (T, K), known of the future too.

    Raises SeriesError if a part has no window or no observed target.
    """
    origins, train_steps = split_origins(len(series), t_in, t_out, kind)
    windows = make_windows(series, t_in, t_out, train_steps, covariates)
    train, validation, test = (windows.with_origins(torch.arange(part.start, part.stop)) for part in origins)
    for name, part in (("training", train), ("validation", validation), ("test", test)):
        first, last = int(part.origins[0]), int(part.origins[-1]) + t_out
        if not part.observed[first:last].any():
            days = f"{series.local[first]} to {series.local[last - 1]}"
            raise SeriesError(f"all values of the {name} part ({days}) are missing: give data without this outage")
    return Parts(train, validation, test, train_steps)


def fill_gaps(series: Series, train_steps: int) -> Floats:
    """(T, N, C) values with every gap filled from its past.

    A missing value is that of the same local time a week before, filled itself if it must be. Before the first week of
    a sensor it is the mean of the sensor's first `train_steps` steps, of all sensors if it has none there, or 0.
    """
    values = series.values.copy()
    train = values[:train_steps]
    counts = (~np.isnan(train)).sum(axis=0)
    means = np.nansum(train, axis=0, dtype=np.float64) / np.maximum(counts, 1)
    overall = np.nansum(train, axis=(0, 1), dtype=np.float64) / np.maximum(counts.sum(axis=0), 1)
    means = np.where(counts > 0, means, overall)
    sources = week_before(series)
    block = 6 * series.steps_per_day  # shorter than the way to any source, so that a block's sources are complete
    for start in range(0, len(values), block):
        part, source = values[start : start + block], sources[start : start + block]
        fill = np.where((source >= 0)[:, None, None], values[np.maximum(source, 0)], means)
        np.copyto(part, fill, where=np.isnan(part))
    return values


def week_before(series: Series, weeks: int = 1) -> Ints:
    """(T,) the step with the same local time `weeks` weeks before each step; negative before the data begins.

    In the week after a change of the clock this is an hour more or less than 168 hours.
    """
    return steps_before(series, 7 * weeks)


def steps_before(series: Series, days: int) -> Ints:
    """(T,) the step with the same local time `days` days before each step; negative before the data begins."""
    steps = np.arange(len(series))
    before = steps - days * series.steps_per_day
    offsets = ((series.local - series.times).astype(np.int64)) // series.step
    return np.where(before < 0, before, before + offsets - offsets[np.maximum(before, 0)])
