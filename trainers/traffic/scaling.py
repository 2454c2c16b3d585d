"""From the unit of the data to that of a network, and back: four ways to take the level out of a window.

    plain     (x - mean) / std over the training part: the paper's setting
    revin     (x - mean) / std of each window and sensor
    profile   forecast = level * (profile + sigma * network): the network learns the residual of the scaled profile
    ridge     forecast = level * (profile + sigma * (ridge + network)): the residual of a ridge regression on that

The *profile* is the mean of each sensor at each step of the week in the training part. The *level* of a window is the
sum of its last week over the sum of the profile there, per sensor. Of the part of a week that a shorter window does not
reach, a share that validation chooses counts as the profile: a few hours say little about the level. *sigma* is the
standard deviation of x / level - profile, per sensor. Missing values count as the profile. With these two, the
network's last layers begin at zero, and the outer quantiles one sigma away from the median: training starts from the
scaled profile or the ridge regression. After training, the median's correction at each lead time gets the weight from
0 to 1 that is best on the validation part: where the network adds nothing, as often in the first hours, the forecast
stays what it corrects.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

import torch
from torch import Tensor, nn

from agentsys.trainers.traffic.baselines import make_profile
from agentsys.trainers.traffic.calendar import holidays_as_sundays
from agentsys.trainers.traffic.config import InputKind
from agentsys.trainers.traffic.splits import Windows

SUNDAY: Final = 6
"""The day whose profile a public holiday gets."""
SMALLEST_LEVEL: Final = 0.05
"""Levels below it are raised to it where something is divided by them."""
LARGEST_RESIDUAL: Final = 20.0
"""Residuals beyond it, in units of sigma, are those of outages; they would drown all other sensors."""
LAMBDAS: Final = (500.0, 2_000.0, 8_000.0, 32_000.0)
"""Ridge penalties, in rows of weight 1, of which validation takes the best."""
RIDGE_ROWS: Final = 60_000
"""Rows (window and sensor) of the ridge regression, at most."""


class Forecaster(nn.Module):
    """A network with the scaling around it: values and forecasts are in the unit of the data.

    `network` takes (x, time_in, time_out, known) as Extralonger does. With `holidays`, column 0 of the known
    covariates marks public holidays, whose profile is that of a Sunday.
    """

    mean: Tensor
    std: Tensor
    profile: Tensor
    sigma: Tensor
    ridge: Tensor
    level_prior: Tensor
    lead_weights: Tensor
    known_mean: Tensor
    known_std: Tensor

    def __init__(
        self,
        network: nn.Module,
        kind: InputKind,
        sensors: int,
        steps_per_day: int,
        steps: tuple[int, int],
        *,
        flag: bool = True,
        holidays: bool = False,
        known: int = 0,
    ) -> None:
        """`steps` are T and O, `known` is K.

        Without `flag` the network gets channel 0 alone, without the flag of missing values.
        """
        super().__init__()
        self.network, self.kind, self.flag, self.holidays = network, kind, flag, holidays
        self.steps_per_day = steps_per_day
        self.register_buffer("mean", torch.zeros(()))
        self.register_buffer("std", torch.ones(()))
        self.register_buffer("profile", torch.zeros(7 * steps_per_day, sensors))
        self.register_buffer("sigma", torch.ones(sensors))
        self.register_buffer("level_prior", torch.zeros(()))
        if self.corrects and hasattr(network, "last_layers"):
            for layer in network.last_layers():
                nn.init.zeros_(layer.weight)
                nn.init.zeros_(layer.bias)
        self.register_buffer("ridge", torch.zeros(steps if kind == "ridge" else (0, 0)))
        self.register_buffer("known_mean", torch.zeros(known))
        self.register_buffer("known_std", torch.ones(known))
        self.register_buffer("lead_weights", torch.ones(steps[1]))

    def forward(
        self,
        x: Tensor,
        time_in: Tensor,
        time_out: Tensor,
        known_in: Tensor | None = None,
        known_out: Tensor | None = None,
    ) -> Tensor:
        """x (B, T, N, C) -> (B, O, N), or (B, O, N, Q) with the quantiles ascending only after training."""
        scaled, base, scale = self._scale(x, time_in, time_out, known_in, known_out)
        if known_out is not None:
            known_out = (known_out - self.known_mean) / self.known_std
        output = self.network(self._channels(scaled, x), time_in, time_out, known_out)
        weights = self.lead_weights[:, None]
        if output.ndim > base.ndim:
            base, scale, weights = base[..., None], scale[..., None], weights[..., None]
        if self.corrects:
            output = output - (1 - weights) * median_of(output, keep=True)
            if output.ndim == 4:
                output = output + torch.linspace(-1, 1, output.shape[-1], device=output.device)
        return base + scale * output.float()

    @property
    def corrects(self) -> bool:
        """Whether the network's output is the correction of a forecast."""
        return self.kind in ("profile", "ridge")

    def network_input(
        self, x: Tensor, time_in: Tensor, time_out: Tensor, known_in: Tensor | None, known_out: Tensor | None
    ) -> Tensor:
        """(B, T, N, C) what the network reads."""
        return self._channels(self._scale(x, time_in, time_out, known_in, known_out)[0], x)

    def _channels(self, scaled: Tensor, x: Tensor) -> Tensor:
        """The scaled values, and with `flag` all other channels as they are."""
        return torch.cat([scaled[..., None], x[..., 1:]], -1) if self.flag else scaled[..., None]

    def naive_forecast(
        self, x: Tensor, time_in: Tensor, time_out: Tensor, known_in: Tensor | None, known_out: Tensor | None
    ) -> Tensor:
        """(B, O, N) the weekly profile scaled by the last week's level, whatever the kind of input."""
        level, _ = self._residual(x, self._profile_at(time_in, known_in))
        return level * self._profile_at(time_out, known_out)

    def _scale(
        self, x: Tensor, time_in: Tensor, time_out: Tensor, known_in: Tensor | None, known_out: Tensor | None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Scaled values (B, T, N), and base and scale of the forecast, broadcastable to (B, O, N)."""
        value = x[..., 0]
        if self.kind == "plain":
            return (value - self.mean) / self.std, self.mean.expand(1, 1, 1), self.std.expand(1, 1, 1)
        if self.kind == "revin":
            mean = value.mean(1, keepdim=True)
            std = value.std(1, keepdim=True, correction=0) + 1e-2 * self.std
            return (value - mean) / std, mean, std
        level, residual = self._residual(x, self._profile_at(time_in, known_in))
        shape = self._profile_at(time_out, known_out)
        if self.kind == "ridge":
            shape = shape + self.sigma * torch.einsum("btn,to->bon", residual, self.ridge)
        return residual, level * shape, level.clamp(min=SMALLEST_LEVEL) * self.sigma

    def _residual(self, x: Tensor, profile: Tensor) -> tuple[Tensor, Tensor]:
        """Level (B, 1, N) and (x / level - profile) / sigma (B, T, N), 0 where x is missing."""
        level, observed = self._level(x, profile)
        residual = (x[..., 0] / level.clamp(min=SMALLEST_LEVEL) - profile) / self.sigma
        return level, residual.clamp(-LARGEST_RESIDUAL, LARGEST_RESIDUAL) * observed

    def _level(self, x: Tensor, profile: Tensor) -> tuple[Tensor, Tensor]:
        """Level (B, 1, N) of each window, and where its input is observed (B, T, N)."""
        observed = x[..., -1] == 0
        week = len(self.profile)
        beyond = self.profile.sum(0) - profile.sum(1, keepdim=True) if x.shape[1] < week else torch.zeros(())
        return window_level(x[..., 0], profile, observed, week, self.level_prior * beyond.clamp(min=0)), observed

    def _profile_at(self, time: Tensor, known: Tensor | None) -> Tensor:
        """(B, steps, N) the profile at these times."""
        day = time[..., 1]
        if self.holidays and known is not None:
            day = torch.where(known[..., 0] > 0, SUNDAY, day)
        return self.profile[day * self.steps_per_day + time[..., 0]]

    def fit_scaling(self, train: Windows, validation: Windows, train_steps: int) -> None:
        """Take mean, std, profile, sigma and the ridge regression from the training part, its penalty by validation."""
        target, observed = train.target[:train_steps], train.observed[:train_steps]
        values = target[observed].double()
        self.mean.copy_(values.mean())
        self.std.copy_(values.std(correction=0).clamp(min=1e-6))
        self.profile.copy_(self._weekly_profile(train, train_steps))
        if train.covariates is not None:
            self._scale_known(train.covariates[:train_steps])
        if not self.corrects:
            return
        priors = LEVEL_PRIORS if train.t_in < len(self.profile) else (0.0,)
        errors = [self._fit_residual(train, validation, prior) for prior in priors]
        if len(priors) > 1:
            self._fit_residual(train, validation, priors[errors.index(min(errors))])

    def _fit_residual(self, train: Windows, validation: Windows, prior: float) -> float:
        """Take sigma and the ridge regression with this prior of the level. Returns the MAE on the validation part."""
        self.level_prior.fill_(prior)
        squares, weights = torch.zeros_like(self.sigma), torch.zeros_like(self.sigma)
        for window in _spread_batches(train):
            x, profile = window[0], self._profile_at(window[1], window[3])
            level, observed = self._level(x, profile)
            squares += ((x[..., 0] - level * profile) * observed).square().sum((0, 1))
            weights += (level.square() * observed).sum((0, 1))  # so that weeks of an outage hardly count
        sigma = (squares / weights.clamp(min=1)).sqrt()
        known = sigma > 1e-3 * self.std  # not so for constant sensors, and those without a value in training
        self.sigma.copy_(torch.where(known, sigma, sigma[known].median() if known.any() else self.std))
        if self.kind == "ridge":
            self._fit_ridge(train, validation)
        error = count = 0.0
        for x, time_in, time_out, known_in, known_out, y, mask in _spread_batches(validation):
            base = self._scale(x, time_in, time_out, known_in, known_out)[1]
            error += float((base - y).abs()[mask].sum())
            count += float(mask.sum())
        return error / max(count, 1.0)

    def _scale_known(self, covariates: Tensor) -> None:
        """Mean and deviation of covariates (T, K) that are not 0 or 1, as those of the calendar are."""
        measured = ((covariates != 0) & (covariates != 1)).any(0)
        self.known_mean.copy_(torch.where(measured, covariates.mean(0), 0.0))
        std = covariates.std(0, correction=0).clamp(min=1e-6)
        self.known_std.copy_(torch.where(measured, std, 1.0))

    def _weekly_profile(self, train: Windows, train_steps: int) -> Tensor:
        """(7 * steps_per_day, N); with less than two weeks of training the same day seven times."""
        series = train.series
        if train_steps < 2 * series.steps_per_week:
            return make_profile(train, series.time_of_day, train_steps).repeat(7, 1)
        cells = series.time_of_week
        if self.holidays and train.covariates is not None:
            cells = holidays_as_sundays(series, train.covariates[:, 0].cpu().numpy() > 0)
        return make_profile(train, cells, train_steps)

    def _fit_ridge(self, train: Windows, validation: Windows) -> None:
        """Weighted least squares with penalty: rows are windows and sensors, weighted by (level sigma)^2."""
        t_in, t_out = self.ridge.shape
        gram, moments = torch.zeros(t_in, t_in), torch.zeros(t_in, t_out)
        for rows, targets, weights in self._ridge_rows(train):
            gram += (rows * weights).T @ rows
            moments += (rows * weights).T @ targets
        best = torch.inf
        for penalty in LAMBDAS:
            candidate = torch.linalg.solve(gram + penalty * torch.eye(t_in), moments)
            error = sum(
                float((weights.sqrt() * (targets - rows @ candidate)).abs().sum())
                for rows, targets, weights in self._ridge_rows(validation)
            )
            if error < best:
                best = error
                self.ridge.copy_(candidate)

    def _ridge_rows(self, windows: Windows) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        """(B N, T) scaled input, (B N, O) scaled target, 0 where it is missing, (B N, 1) weights with mean about 1."""
        mean_scale = (self.sigma * self.profile.mean(0)).mean() / self.profile.mean()
        for x, time_in, time_out, known_in, known_out, y, mask in _spread_batches(windows):
            level, residual = self._residual(x, self._profile_at(time_in, known_in))
            scale = level.clamp(min=SMALLEST_LEVEL)
            target = (y / scale - self._profile_at(time_out, known_out)) / self.sigma * mask
            weights = (scale * self.sigma / mean_scale).square().clamp(max=100)
            yield (
                residual.transpose(1, 2).flatten(0, 1),
                target.transpose(1, 2).flatten(0, 1),
                weights.transpose(1, 2).flatten(0, 1),
            )


LEVEL_PRIORS: Final = (0.0, 0.1, 1.0)
"""Shares of the profile in the level of a window of less than a week, from which validation takes the best."""
LEAD_WEIGHTS: Final = tuple(step / 10 for step in range(11))
"""Weights of the network's correction from which validation takes the best at each lead time."""


def best_lead_weights(base: Tensor, corrected: Tensor, y: Tensor, mask: Tensor) -> Tensor:
    """(O,) the weight w of each lead time with the lowest MAE of base + w (corrected - base); all are (W, O, N).

    The lower of two that are equal, also where nothing is observed.
    """
    errors = [((base + w * (corrected - base) - y).abs() * mask).sum((0, 2)) for w in LEAD_WEIGHTS]
    return torch.tensor(LEAD_WEIGHTS)[torch.stack(errors).argmin(0)]


def median_of(output: Tensor, keep: bool = False) -> Tensor:
    """The median (B, O, N) of quantiles (B, O, N, Q), or with `keep` (B, O, N, 1); an output without Q as it is."""
    if output.ndim < 4:
        return output
    median = output[..., output.shape[-1] // 2]
    return median[..., None] if keep else median


def window_level(value: Tensor, profile: Tensor, observed: Tensor, steps: int, prior: Tensor | float = 0.0) -> Tensor:
    """(B, 1, N) sum of the last `steps` observed values over the sum of the profile there; 1 where both are missing.

    `prior` (B, 1, N) is added to both sums.
    """
    value, profile, observed = value[:, -steps:], profile[:, -steps:], observed[:, -steps:]
    total = (profile * observed).sum(1, keepdim=True) + prior
    level = ((value * observed).sum(1, keepdim=True) + prior) / total
    return torch.where(total > 0, level, torch.ones_like(level)).clamp(0.0, 100.0)


def spread_origins(windows: Windows, most: int) -> Tensor:
    """Up to `most` origins at equal distances that share no factor with a day: every starting time is among them."""
    stride = -(-len(windows) // most)
    return windows.every(stride).origins if stride > 1 else windows.origins


def _spread_batches(windows: Windows, size: int = 64) -> Iterator[tuple[Tensor, ...]]:
    """x, time_in, time_out, known_in, known_out, y, mask of windows spread over the part, about RIDGE_ROWS rows."""
    most = max(RIDGE_ROWS // windows.target.shape[1], 1)
    for origins in spread_origins(windows, most).split(size):
        x, y, mask, time_in, time_out = windows.batch(origins)
        known_in, known_out = windows.batch_covariates(origins)
        yield x, time_in, time_out, known_in, known_out, y, mask
