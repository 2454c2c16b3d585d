"""Errors of forecasts: masked, per lead time, sensor and hour of the week, and pooled; how sure a difference is.

Errors are added up batch by batch, so that the forecasts of all windows are never in memory at once. All sums are of
observed targets alone.

- MAE and RMSE in the unit of the data; WAPE is the sum of absolute errors over the sum of values; MAPE is the mean of
  relative errors where the value is not 0.
- Pinball loss: the mean over the quantile levels; coverage: the share of targets between the outermost levels.
- Confidence intervals are from a moving-block bootstrap over the days on which forecasts begin: windows of neighboring
  days overlap, so their errors are not independent.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from agentsys.trainers.traffic.series import DAY, Series, SeriesError
from agentsys.trainers.traffic.splits import Windows

Array = npt.NDArray[np.float64]

LEADS = {"1 h": 3600, "3 h": 3 * 3600, "12 h": 12 * 3600, "1 d": DAY, "3 d": 3 * DAY, "7 d": 7 * DAY}
"""Lead times of the tables, in seconds from the last observed step."""

_SUMS = ("count", "absolute", "squared", "value", "relative", "nonzero", "pinball", "covered")
"""What is added up per cell; `relative` and `nonzero` leave out targets of 0."""


@dataclass(frozen=True, slots=True)
class Measures:
    """Errors of a set of targets; NaN where there are none."""

    count: int
    """Observed targets."""
    mae: float
    rmse: float
    wape: float
    """Percent."""
    mape: float
    """Percent, of targets other than 0."""
    pinball: float
    """NaN for forecasts without quantiles."""
    coverage: float
    """Percent of targets between the outermost quantiles; NaN for forecasts without quantiles."""


@dataclass(slots=True)
class Scores:
    """Errors of one model, added up over its windows."""

    series: Series
    t_out: int
    quantiles: tuple[float, ...] = ()
    """Levels of the last dimension of the forecasts, ascending; the median is the point forecast. Empty: no bands."""
    special: npt.NDArray[np.bool_] | None = None
    """(T,) steps that are scored on their own too, such as public holidays."""
    zeros: bool = True
    """Whether targets of 0 count; the released code of Extralonger leaves them out (papers file, section 3.5)."""
    _by_lead_sensor: Array = field(init=False)
    _by_hour: Array = field(init=False)
    _by_day: dict[int, Array] = field(init=False, default_factory=dict)
    _by_special: Array = field(init=False)
    _hour: npt.NDArray[np.int64] = field(init=False)
    _day: npt.NDArray[np.int64] = field(init=False)

    def __post_init__(self) -> None:
        """Raises SeriesError for quantiles without a median."""
        if self.quantiles and 0.5 not in self.quantiles:
            raise SeriesError(f"quantiles {self.quantiles}: the median, 0.5, must be among them")
        self._by_lead_sensor = np.zeros((len(_SUMS), self.t_out, len(self.series.sensors)))
        self._by_hour = np.zeros((len(_SUMS), 7 * 24))
        self._by_special = np.zeros((len(_SUMS), 2))
        self._hour = self.series.time_of_week * self.series.step // 3600
        self._day = self.series.local.astype("datetime64[D]").astype(np.int64)

    def add(self, origins: Tensor, forecast: Tensor, target: Tensor, mask: Tensor) -> None:
        """Add windows: origins (B,), forecast (B, T_out, N) or (B, T_out, N, Q), target and mask (B, T_out, N)."""
        by_lead_sensor, by_step = self._sums(forecast.to(target), target, mask)
        first = origins.cpu().numpy()
        self._by_lead_sensor += by_lead_sensor
        steps = first[:, None] + np.arange(self.t_out)
        _add_at(self._by_hour, self._hour[steps], by_step)
        if self.special is not None:
            _add_at(self._by_special, self.special[steps].astype(np.int64), by_step)
        days = self._day[first]
        by_window = by_step.sum(axis=2)
        for day in np.unique(days):
            total = by_window[:, days == day].sum(axis=1)
            self._by_day[int(day)] = self._by_day.get(int(day), 0) + total

    def _sums(self, forecast: Tensor, target: Tensor, mask: Tensor) -> tuple[Array, Array]:
        """Sums over the windows, (8, T_out, N), and over the sensors, (8, B, T_out)."""
        point = forecast
        zero = torch.zeros_like(target)
        pinball, covered = zero, zero
        if self.quantiles:
            levels = torch.tensor(self.quantiles, device=forecast.device)
            point = forecast[..., self.quantiles.index(0.5)]
            over = target[..., None] - forecast
            pinball = torch.maximum(levels * over, (levels - 1) * over).mean(dim=-1)
            covered = ((target >= forecast[..., 0]) & (target <= forecast[..., -1])).float()
        nonzero = (target != 0).float()
        mask = mask if self.zeros else mask & (target != 0)
        error = point - target
        relative = error.abs() / torch.where(target == 0, torch.ones_like(target), target.abs()) * nonzero
        parts = (zero + 1, error.abs(), error**2, target.abs(), relative, nonzero, pinball, covered)
        masked = [torch.where(mask, part, zero) for part in parts]
        over_windows = torch.stack([part.sum(dim=0, dtype=torch.float64) for part in masked])
        over_sensors = torch.stack([part.sum(dim=2, dtype=torch.float64) for part in masked])
        return over_windows.cpu().numpy(), over_sensors.cpu().numpy()

    def pooled(self) -> Measures:
        """Errors of all targets."""
        return self._measures(self._by_lead_sensor.sum(axis=(1, 2)))

    def by_lead(self) -> dict[str, Measures]:
        """Errors at the lead times of `LEADS` that the forecast reaches: at that step alone, not up to it."""
        steps = {name: seconds // self.series.step - 1 for name, seconds in LEADS.items()}
        return {
            name: self._measures(self._by_lead_sensor[:, step].sum(axis=1))
            for name, step in steps.items()
            if 0 <= step < self.t_out and LEADS[name] % self.series.step == 0
        }

    def by_step(self) -> list[Measures]:
        """Errors at every step of the forecast, for a curve over lead time."""
        return [self._measures(sums) for sums in self._by_lead_sensor.sum(axis=2).T]

    def by_sensor(self) -> dict[str, Measures]:
        """Errors of each sensor."""
        sums = self._by_lead_sensor.sum(axis=1)
        return {name: self._measures(sums[:, index]) for index, name in enumerate(self.series.sensors)}

    def by_hour_of_week(self) -> list[Measures]:
        """Errors of targets in each of the 168 local hours of the week, from Monday 00:00."""
        return [self._measures(sums) for sums in self._by_hour.T]

    def on_special(self) -> tuple[Measures, Measures]:
        """Errors of the targets on special steps, and of all others."""
        return self._measures(self._by_special[:, 1]), self._measures(self._by_special[:, 0])

    def days(self) -> tuple[npt.NDArray[np.int64], Array, Array]:
        """Days on which forecasts begin (days since 1970), sum of absolute errors and number of targets of each."""
        days = np.array(sorted(self._by_day), np.int64)
        sums = np.array([self._by_day[int(day)] for day in days]).reshape(len(days), len(_SUMS))
        return days, sums[:, 1], sums[:, 0]

    def _measures(self, sums: Array) -> Measures:
        total: dict[str, Any] = dict(zip(_SUMS, sums.tolist(), strict=True))
        nan, count = float("nan"), total["count"]
        if not count:
            return Measures(0, nan, nan, nan, nan, nan, nan)
        return Measures(
            count=int(count),
            mae=total["absolute"] / count,
            rmse=float(np.sqrt(total["squared"] / count)),
            wape=100 * total["absolute"] / total["value"] if total["value"] else nan,
            mape=100 * total["relative"] / total["nonzero"] if total["nonzero"] else nan,
            pinball=total["pinball"] / count if self.quantiles else nan,
            coverage=100 * total["covered"] / count if self.quantiles else nan,
        )


def _add_at(sums: Array, cells: npt.NDArray[np.int64], parts: Array) -> None:
    """Add parts (8, B, T_out) to the columns `cells` (B, T_out) of sums (8, cells)."""
    flat = cells.ravel()
    for row, part in zip(sums, parts, strict=True):
        row += np.bincount(flat, weights=part.ravel(), minlength=len(row))


@dataclass(frozen=True, slots=True)
class Interval:
    """A value with its 95 % confidence interval."""

    value: float
    low: float
    high: float


@dataclass(frozen=True, slots=True)
class Comparison:
    """Two models on the same windows, paired by the days on which forecasts begin."""

    difference: Interval
    """MAE of the first less that of the second: below 0 the first is better."""
    ratio: float
    """MAE of the first over that of the second."""
    p: float
    """Two-sided p-value of the hypothesis that both have the same MAE."""


MOST_CELLS = 2**22
"""Targets of a batch that is scored, at most."""

BLOCK_DAYS = 7
"""Days of a bootstrap block at least: a block is never shorter than the forecast's horizon."""


def mae_interval(scores: Scores, draws: int = 1000, seed: int = 0) -> Interval:
    """MAE with an interval from the block bootstrap over origin days; the interval is NaN below two blocks of days."""
    days, errors, counts = scores.days()
    samples = _draw_days(days, scores, draws, seed)
    return _interval(errors.sum() / counts.sum(), _ratio_of_draws(samples, errors, counts))


def compare(first: Scores, second: Scores, draws: int = 1000, seed: int = 0) -> Comparison:
    """Paired test of two models that were scored on the same windows. Raises SeriesError if they were not."""
    days, errors, counts = first.days()
    other_days, other_errors, other_counts = second.days()
    if not np.array_equal(days, other_days) or not np.array_equal(counts, other_counts):
        raise SeriesError("the two models were not scored on the same windows: score them with one set of origins")
    value = (errors - other_errors).sum() / counts.sum()
    differences = _ratio_of_draws(_draw_days(days, first, draws, seed), errors - other_errors, counts)
    beyond = (np.abs(differences - value) >= abs(value)).sum()
    p = (beyond + 1) / (len(differences) + 1) if len(differences) else float("nan")
    return Comparison(_interval(value, differences), float(errors.sum() / other_errors.sum()), float(p))


def _draw_days(days: npt.NDArray[np.int64], scores: Scores, draws: int, seed: int) -> npt.NDArray[np.int64]:
    """(draws, D) indices of days, drawn in blocks of neighboring ones (circular moving blocks)."""
    block = max(BLOCK_DAYS, -(-scores.t_out * scores.series.step // DAY))
    if len(days) < 2 * block:
        return np.empty((0, len(days)), np.int64)
    starts = np.random.default_rng(seed).integers(len(days), size=(draws, -(-len(days) // block)))
    blocks = (starts[:, :, None] + np.arange(block)) % len(days)
    return blocks.reshape(draws, -1)[:, : len(days)]


def _ratio_of_draws(samples: npt.NDArray[np.int64], errors: Array, counts: Array) -> Array:
    ratios: Array = errors[samples].sum(axis=1) / np.maximum(counts[samples].sum(axis=1), 1)
    return ratios


def _interval(value: float, draws: Array) -> Interval:
    low, high = np.quantile(draws, [0.025, 0.975]) if len(draws) else (float("nan"), float("nan"))
    return Interval(float(value), float(low), float(high))


def evaluate_forecaster(predict: Callable[[Tensor], Tensor], windows: Windows, scores: Scores) -> Scores:
    """Score `predict(origins) -> (B, T_out, N[, Q])` on the windows, batch by batch, and return `scores`."""
    cells = windows.t_out * len(windows.series.sensors)
    for part in windows.origins.split(max(1, min(64, MOST_CELLS // cells))):
        window = windows.batch(part)
        scores.add(part, predict(part), window.y, window.mask)
    return scores
