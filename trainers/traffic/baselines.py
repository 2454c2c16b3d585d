"""Forecasts without a network, on the same windows as every model: what a model has to beat.

    last value          the last value before the forecast, repeated
    yesterday           the last day, repeated
    last week           the same time a week before
    4-week mean         the mean of the same time in the last four weeks
    weekly profile      the mean of each time of the week in the training part
    scaled profile      the profile times last week's level: the sum of last week's values over that of its profile
    ridge               ridge regression from the input to the forecast, shared by the sensors
    ridge on residual   the same on what the scaled profile leaves

Levels and weeks before look at the data before the forecast's origin, even beyond the model's input: that is past too.
With `holidays`, the last two and the profile read a public holiday as a Sunday, on both sides of the origin.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from agentsys.trainers.traffic.calendar import holidays_as_sundays
from agentsys.trainers.traffic.series import Ints
from agentsys.trainers.traffic.splits import Parts, Windows, steps_before

Bools = npt.NDArray[np.bool_]
Forecaster = Callable[[Tensor], Tensor]
"""Origins (B,) -> forecasts (B, T_out, N)."""


def make_baselines(parts: Parts, holidays: Bools | None = None) -> dict[str, Forecaster]:
    """All baselines by name, fitted on the training part; those that the data is too short for are left out.

    `holidays` (T,) marks the steps on public holidays; with it two rows more read them as Sundays.
    """
    windows, series = parts.train, parts.train.series
    history = int(parts.test.origins[0])
    week = series.steps_per_week
    rows: dict[str, Forecaster] = {"last value": LastValue(windows)}
    if history >= series.steps_per_day:
        rows["yesterday"] = Repeat(windows, days=1)
    if history >= week:
        rows["last week"] = Repeat(windows, days=7)
    if history >= 4 * week:
        rows["4-week mean"] = WeeksMean(windows)
    profile = ScaledProfile.fit(parts)
    name = "weekly profile" if profile.is_weekly else "daily profile"
    rows[name] = profile.plain
    rows["scaled profile"] = profile
    rows["ridge"] = Ridge.fit(parts)
    rows["ridge on residual"] = Ridge.fit(parts, profile)
    if holidays is not None:
        profile = ScaledProfile.fit(parts, holidays)
        rows["scaled profile, holidays as Sundays"] = profile
        rows["ridge on residual, holidays as Sundays"] = Ridge.fit(parts, profile)
    return rows


@dataclass(frozen=True, slots=True)
class LastValue:
    """The last value before the origin; gaps before it were filled from their past."""

    windows: Windows

    def __call__(self, origins: Tensor) -> Tensor:
        """Forecasts (B, T_out, N) of origins (B,)."""
        return self.windows.filled[origins - 1, :, 0][:, None].expand(-1, self.windows.t_out, -1)


class Repeat:
    """The last day (`days` = 1) or week (7), repeated to the end of the forecast, by local time."""

    def __init__(self, windows: Windows, days: int) -> None:
        self.windows = windows
        self.days = days
        self.period = days * windows.series.steps_per_day
        self.before = torch.from_numpy(steps_before(windows.series, days))

    def sources(self, origins: Tensor) -> Tensor:
        """(B, T_out) the step that each step of the forecast repeats: the last at the same time before the origin."""
        steps = origins[:, None] + torch.arange(self.windows.t_out)
        while (late := steps >= origins[:, None]).any():
            steps = torch.where(late, self.before[steps], steps)
        return steps.clamp(min=0)

    def __call__(self, origins: Tensor) -> Tensor:
        """Forecasts (B, T_out, N) of origins (B,)."""
        return self.windows.filled[..., 0][self.sources(origins)]


class WeeksMean:
    """The mean of the observed values at the same time in the last four weeks; without any, last week's filled one."""

    def __init__(self, windows: Windows, weeks: int = 4) -> None:
        self.windows = windows
        self.last = Repeat(windows, days=7)
        self.weeks = weeks

    def __call__(self, origins: Tensor) -> Tensor:
        """Forecasts (B, T_out, N) of origins (B,)."""
        steps = self.last.sources(origins)
        fallback = self.windows.filled[..., 0][steps]
        total, count = torch.zeros_like(fallback), torch.zeros_like(fallback)
        for _ in range(self.weeks):
            inside = (steps >= 0)[..., None]
            steps_inside = steps.clamp(min=0)
            total += self.windows.target[steps_inside] * inside
            count += self.windows.observed[steps_inside] & inside
            steps = torch.where(steps >= 0, self.last.before[steps_inside], steps)
        return torch.where(count > 0, total / count.clamp(min=1), fallback)


@dataclass(frozen=True, slots=True)
class ScaledProfile:
    """The training part's mean at each time of the week, times last week's level."""

    windows: Windows
    shape: Tensor
    """(T, N) float32: the profile at every step of the series."""
    level: Tensor
    """(T + 1, N) float32: the level at an origin: the sum of last week's observed values over that of the profile."""
    is_weekly: bool
    """Whether the profile has a value per time of the week; with less than two weeks of training, per time of day."""

    @staticmethod
    def fit(parts: Parts, holidays: Bools | None = None) -> ScaledProfile:
        """The profile of the training part. `holidays` (T,) marks steps that are read as those of a Sunday."""
        windows, series = parts.train, parts.train.series
        is_weekly = parts.train_steps >= 2 * series.steps_per_week
        cells = series.time_of_week if is_weekly else series.time_of_day
        if is_weekly and holidays is not None:
            cells = holidays_as_sundays(series, holidays)
        shape = make_profile(windows, cells, parts.train_steps)[torch.from_numpy(cells)]
        return ScaledProfile(windows, shape, make_levels(windows, shape), is_weekly)

    def expected(self, steps: Tensor, origins: Tensor) -> Tensor:
        """(B, S, N) the scaled profile at steps (B, S), with the level at origins (B,)."""
        return self.shape[steps] * self.level[origins][:, None]

    def plain(self, origins: Tensor) -> Tensor:
        """Forecasts (B, T_out, N) of the profile alone, without the level."""
        return self.shape[origins[:, None] + torch.arange(self.windows.t_out)]

    def __call__(self, origins: Tensor) -> Tensor:
        """Forecasts (B, T_out, N) of origins (B,)."""
        return self.expected(origins[:, None] + torch.arange(self.windows.t_out), origins)


def make_profile(windows: Windows, cells: Ints, train_steps: int) -> Tensor:
    """(K, N) mean of each sensor's observed values in each of the K cells (times of the week) of the training part.

    A cell without a value has the sensor's mean at that time of day, and otherwise the sensor's mean. A sensor without
    any value in training has the mean shape of the others, so that its level alone is needed.
    """
    per_day = windows.series.steps_per_day
    cell = torch.from_numpy(cells[:train_steps])
    values, observed = windows.target[:train_steps].double(), windows.observed[:train_steps].double()
    sizes = (int(cells.max()) // per_day + 1) * per_day
    total, count = (torch.zeros(sizes, values.shape[1], dtype=torch.float64) for _ in range(2))
    total.index_add_(0, cell, values)
    count.index_add_(0, cell, observed)
    by_day = [part.view(-1, per_day, part.shape[1]).sum(dim=0) for part in (total, count)]
    means = (total.sum(dim=0) / count.sum(dim=0).clamp(min=1)).expand(per_day, -1)
    daily = torch.where(by_day[1] > 0, by_day[0] / by_day[1].clamp(min=1), means)
    profile = torch.where(count > 0, total / count.clamp(min=1), daily.repeat(sizes // per_day, 1))
    known = (count.sum(dim=0) > 0) & (profile.sum(dim=0) > 0)
    if known.any() and not known.all():
        common = (profile[:, known] / profile[:, known].mean(dim=0)).mean(dim=1) * profile[:, known].mean()
        profile[:, ~known & (count.sum(dim=0) == 0)] = common[:, None]
    return profile.float()


def make_levels(windows: Windows, shape: Tensor) -> Tensor:
    """(T + 1, N) sum of the observed values of the week before each step over that of the profile at the same steps.

    With less than a day of observed values in that week the last level holds, and 1 before there is any.
    """
    week = windows.series.steps_per_week
    level = torch.ones(len(shape) + 1, shape.shape[1], dtype=torch.float64)
    observed = windows.observed.double()
    sums = [_sum_before(part, week) for part in (windows.target.double(), shape * observed, observed)]
    known = (sums[2] > windows.series.steps_per_day - 0.5) & (sums[1] > 1e-6)
    level = torch.where(known, sums[0] / sums[1].clamp(min=1e-6), level)
    steps = torch.arange(len(level))[:, None].expand(level.shape)
    last = torch.where(known, steps, torch.full_like(steps, -1)).cummax(dim=0).values
    return torch.where(last >= 0, level.gather(0, last.clamp(min=0)), torch.ones_like(level)).float()


def _sum_before(values: Tensor, steps: int) -> Tensor:
    """(T + 1, N) sum of the last `steps` rows before each position."""
    total = torch.cat([torch.zeros(1, values.shape[1], dtype=values.dtype), values.cumsum(dim=0)])
    first = (torch.arange(len(total)) - steps).clamp(min=0)
    return total - total[first]


ALPHAS = (0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1.0, 3.0)
"""Strengths of the ridge penalty to choose from, in units of the mean variance of an input."""

MOST_ROWS = 60_000
"""Rows (window and sensor) of a ridge regression at most; windows are thinned at a stride that keeps all hours."""


@dataclass(frozen=True, slots=True)
class Ridge:
    """Linear regression (T_in) -> (T_out) shared by all sensors, with a penalty chosen on the validation part."""

    windows: Windows
    profile: ScaledProfile | None
    """What is taken out of input and target first, and added again."""
    center: Tensor
    """(N,) mean of each sensor in the training part; 0 with a profile."""
    scale: Tensor
    """(N,) standard deviation of what is regressed, per sensor."""
    weight: Tensor
    """(T_in + 1, T_out); the last row is the intercept."""
    alpha: float

    @staticmethod
    def fit(parts: Parts, profile: ScaledProfile | None = None) -> Ridge:
        """Fit on thinned training windows; the penalty with the lowest MAE on thinned validation windows is taken."""
        windows, steps = parts.train, parts.train_steps
        target, observed = windows.target[:steps], windows.observed[:steps]
        count = observed.sum(dim=0)
        center = torch.zeros(target.shape[1]) if profile else target.sum(dim=0) / count.clamp(min=1)
        rest = target - (profile.shape[:steps] * profile.level[:steps] if profile else center)
        scale = ((rest * observed).square().sum(dim=0) / count.clamp(min=1)).sqrt()
        typical = scale[scale > 0].median() if (scale > 0).any() else torch.tensor(1.0)
        scale = torch.where(count > 0, scale.clamp(min=1e-3 * typical), typical)  # a constant sensor gets no intercept
        model = Ridge(windows, profile, center, scale, torch.zeros(windows.t_in + 1, windows.t_out), 0.0)
        origins = thin(parts.train)
        weights = next(found for share in (0.9, 0.5, 0.0) if (found := model._solve(origins, share)))
        errors = [model.with_weight(weight)._error(thin(parts.validation, MOST_ROWS // 4)) for weight in weights]
        best = int(np.argmin(errors))
        return model.with_weight(weights[best], ALPHAS[best])

    def with_weight(self, weight: Tensor, alpha: float = 0.0) -> Ridge:
        """The same regression with another weight."""
        return Ridge(self.windows, self.profile, self.center, self.scale, weight, alpha)

    def _inputs(self, origins: Tensor) -> Tensor:
        """(B, N, T_in + 1) scaled inputs, 0 where they are missing, and a 1 for the intercept."""
        before = origins[:, None] + torch.arange(-self.windows.t_in, 0)
        rest = self.windows.target[before] - self._expected(before, origins)
        rest = rest * self.windows.observed[before] / self.scale
        return torch.cat([rest, torch.ones_like(rest[:, :1])], dim=1).transpose(1, 2)

    def _expected(self, steps: Tensor, origins: Tensor) -> Tensor:
        return self.profile.expected(steps, origins) if self.profile else self.center

    def _solve(self, origins: Tensor, share: float) -> list[Tensor]:
        """A weight per penalty, from the normal equations over rows of which at least `share` is observed.

        With fewer rows than inputs, and a share above 0, there is none.
        """
        size, count = self.windows.t_in + 1, 0
        gram = torch.zeros(size, size, dtype=torch.float64)
        cross = torch.zeros(size, self.windows.t_out, dtype=torch.float64)
        for part in origins.split(64):
            inputs, targets, shares = self._rows(part)
            used = shares >= share
            count += int(used.sum())
            gram += inputs[used].double().T @ inputs[used].double()
            cross += inputs[used].double().T @ targets[used].double()
        if count < size and share:
            return []
        values, vectors = torch.linalg.eigh(gram)
        turned = vectors.T @ cross
        unit = gram.diagonal()[:-1].mean().clamp(min=1e-9)
        return [(vectors @ (turned / (values.clamp(min=0) + alpha * unit)[:, None])).float() for alpha in ALPHAS]

    def _rows(self, origins: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Inputs (B, N, T_in + 1), scaled targets (B, N, T_out), and the share of both that is observed, (B, N)."""
        windows = self.windows
        after = origins[:, None] + torch.arange(windows.t_out)
        before = origins[:, None] + torch.arange(-windows.t_in, 0)
        rest = (windows.target[after] - self._expected(after, origins)) * windows.observed[after] / self.scale
        shares = [windows.observed[steps].float().mean(dim=1) for steps in (before, after)]
        return self._inputs(origins), rest.transpose(1, 2), torch.minimum(*shares)

    def _error(self, origins: Tensor) -> float:
        total = count = 0.0
        for part in origins.split(64):
            after = part[:, None] + torch.arange(self.windows.t_out)
            mask = self.windows.observed[after]
            total += float(((self(part) - self.windows.target[after]).abs() * mask).sum())
            count += float(mask.sum())
        return total / max(count, 1.0)

    def __call__(self, origins: Tensor) -> Tensor:
        """Forecasts (B, T_out, N) of origins (B,)."""
        after = origins[:, None] + torch.arange(self.windows.t_out)
        rest = (self._inputs(origins) @ self.weight).transpose(1, 2) * self.scale
        return rest + self._expected(after, origins)


def thin(windows: Windows, most: int = MOST_ROWS) -> Tensor:
    """Origins of the windows, so many that there are about `most` rows of window and sensor; see `Windows.every`."""
    stride = max(1, len(windows) * windows.target.shape[1] // most)
    return windows.every(stride).origins
