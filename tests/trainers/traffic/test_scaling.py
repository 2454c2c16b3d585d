"""Scaling: what the network's output is added to is the scaled profile, a ridge regression, or the mean."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from agentsys.trainers.traffic.baselines import make_baselines
from agentsys.trainers.traffic.config import INPUTS, NETWORKS, InputKind, NetworkName, Shape
from agentsys.trainers.traffic.experiment import calibrate
from agentsys.trainers.traffic.fit import forward, predict
from agentsys.trainers.traffic.folder import make_forecaster
from agentsys.trainers.traffic.options import FitOptions
from agentsys.trainers.traffic.scaling import Forecaster, best_lead_weights, window_level
from agentsys.trainers.traffic.splits import split_windows
from tests.support.traffic import make_series, weekly
from tests.support.traffic_models import TINY, Zeros, make_zeros, noisy_week

WEEK = 168


def test_the_naive_forecast_is_the_scaled_profile_of_the_baselines() -> None:
    """With a week of input both have the same level."""
    model, parts = make_zeros(noisy_week(days=70), "profile", WEEK)
    origins = parts.test.origins[::5]
    expected = make_baselines(parts)["scaled profile"](origins)
    forecast = predict(model.forecaster, parts.test, origins)
    torch.testing.assert_close(forecast[..., 1], expected, atol=1e-2, rtol=1e-4)


def test_a_level_that_doubles_doubles_the_forecast() -> None:
    series = weekly(WEEK * 10)
    values = series.values.copy()
    values[WEEK * 8 :] *= 2
    model, parts = make_zeros(make_series(values), "profile", WEEK)
    origin = torch.tensor([WEEK * 9])
    forecast = predict(model.forecaster, parts.test, origin)[..., 1]
    torch.testing.assert_close(forecast[0], torch.from_numpy(values[WEEK * 9 :, :, 0]), atol=1e-2, rtol=1e-4)


def test_quantiles_are_in_units_of_level_times_sigma() -> None:
    model, parts = make_zeros(noisy_week(days=70), "profile", WEEK)
    origins = parts.test.origins[:1]
    low, median, high = predict(model.forecaster, parts.test, origins).unbind(-1)
    x, _, _, time_in, _ = parts.test.batch(origins)
    level = window_level(
        x[..., 0], model.forecaster.profile[time_in[..., 1] * 24 + time_in[..., 0]], x[..., -1] == 0, WEEK
    )
    torch.testing.assert_close(high - median, (level * model.forecaster.sigma).expand_as(high), atol=1e-3, rtol=1e-4)
    torch.testing.assert_close(median - low, high - median, atol=1e-3, rtol=1e-4)


def test_sigma_is_the_deviation_from_the_scaled_profile() -> None:
    """Noise of 30 on counts of some 500 to 700: more than the bound of residuals, if that were in counts."""
    noise = 30 * np.random.default_rng(2).standard_normal((WEEK * 12, 3)) * [1, 2, 3]
    series = make_series(weekly(WEEK * 12, sensors=3).target + 500 + noise)
    model, _ = make_zeros(series, "profile", WEEK)
    torch.testing.assert_close(model.forecaster.sigma, torch.tensor([30.0, 60.0, 90.0]), atol=0, rtol=0.1)


def test_the_ridge_forecasts_a_residual_that_lasts() -> None:
    """Sensors whose deviation decays by 0.9 each hour: the ridge regression halves the error of the profile alone."""
    generator = np.random.default_rng(1)
    noise = generator.standard_normal((24 * 70, 4)) * 6
    rest = np.zeros_like(noise)
    for step in range(1, len(rest)):
        rest[step] = 0.95 * rest[step - 1] + noise[step]
    series = make_series(weekly(24 * 70, sensors=4).target + 100 + rest)
    errors = {}
    for kind in ("profile", "ridge"):
        model, parts = make_zeros(series, kind, steps=12, outputs=1)  # type: ignore[arg-type]
        origins = parts.test.origins
        window = parts.test.batch(origins)
        errors[kind] = float((predict(model.forecaster, parts.test, origins) - window.y)[:, 0].abs().mean())
    assert errors["ridge"] < 0.7 * errors["profile"]
    assert errors["ridge"] == pytest.approx(6 * 0.8, rel=0.25)  # the mean of |noise|: nobody can do better


@pytest.mark.parametrize("network", NETWORKS)
@pytest.mark.parametrize("steps_out", [12, 8])
def test_a_new_network_starts_from_the_forecast_that_it_corrects(network: NetworkName, steps_out: int) -> None:
    """With `profile` and `ridge`, the median is theirs before the training, and it can be learned from there."""
    parts = split_windows(noisy_week(days=20), 12, steps_out)
    shape = Shape(3, 12, steps_out, 24, channels=2, outputs=3)
    mask = torch.eye(3, dtype=torch.bool)
    model = make_forecaster(network, shape, mask, TINY, "profile", False)
    model.fit_scaling(parts.train, parts.validation, parts.train_steps)
    x, _, _, time_in, time_out = parts.test.batch(parts.test.origins[:4])
    forecast = model(x, time_in, time_out)
    if network != "itransformer":  # it adds the mean of its input back
        naive = model.naive_forecast(x, time_in, time_out, None, None)
        torch.testing.assert_close(forecast[..., 1], naive, atol=1e-3, rtol=1e-4)
    assert (forecast.diff(dim=-1) > 0).all()
    forecast.square().sum().backward()
    assert all(layer.weight.grad.abs().sum() > 0 for layer in model.network.last_layers())  # type: ignore[operator, union-attr]
    plain = make_forecaster(network, shape, mask, TINY, "plain", False)
    assert all(layer.weight.abs().sum() > 0 for layer in plain.network.last_layers())  # type: ignore[operator, union-attr]


def test_plain_is_the_papers_scaler() -> None:
    series = noisy_week()
    model, parts = make_zeros(series, "plain", outputs=1)
    values = series.target[: parts.train_steps]
    forecast = predict(model.forecaster, parts.test, parts.test.origins[:2])
    torch.testing.assert_close(forecast, torch.full_like(forecast, float(values.mean())))
    assert float(model.forecaster.std) == pytest.approx(float(values.std()), rel=1e-5)


def test_revin_gives_the_mean_of_each_window_and_sensor() -> None:
    model, parts = make_zeros(noisy_week(), "revin", outputs=1)
    origins = parts.test.origins[:2]
    forecast = predict(model.forecaster, parts.test, origins)
    means = parts.test.batch(origins).x[..., 0].mean(1, keepdim=True)
    torch.testing.assert_close(forecast, means.expand_as(forecast))


def test_missing_values_count_as_the_profile() -> None:
    """What a gap is filled with changes neither level nor residual."""
    model, parts = make_zeros(noisy_week(days=70), "profile", WEEK)
    origins = parts.test.origins[:1]
    x, _, _, time_in, time_out = parts.test.batch(origins)
    x[:, 20:60, 1, 0], x[:, 20:60, 1, -1] = 9999.0, 1.0
    other = x.clone()
    other[:, 20:60, 1, 0] = -50.0
    results = [model.forecaster.network_input(one, time_in, time_out, None, None)[..., 0] for one in (x, other)]
    torch.testing.assert_close(*results)
    assert (results[0][:, 20:60, 1] == 0).all()
    torch.testing.assert_close(model.forecaster(x, time_in, time_out), model.forecaster(other, time_in, time_out))


def test_a_public_holiday_has_the_profile_of_a_sunday() -> None:
    series = weekly(WEEK * 12)
    values, holidays = series.values.copy(), np.zeros((len(series), 1), np.float32)
    for day in (10, 39, 78):  # two in the training part, one in the test part: a Thursday, a Friday, a Tuesday
        holidays[24 * day : 24 * day + 24] = 1
        sunday = 24 * (day + 6 - day % 7)
        values[24 * day : 24 * day + 24] = series.values[sunday : sunday + 24]
    series = make_series(values)
    parts = split_windows(series, WEEK, WEEK, covariates=holidays)
    errors = {}
    for known in (True, False):
        shape = Shape(1, WEEK, WEEK, 24, channels=2)
        forecaster = Forecaster(Zeros(shape), "profile", 1, 24, (WEEK, WEEK), holidays=known)
        forecaster.fit_scaling(parts.train, parts.validation, parts.train_steps)
        forecast, y, _ = forward(forecaster, parts.test, torch.tensor([24 * 77]))
        errors[known] = float((forecast - y).abs().max())
    assert errors[True] < 1e-3 and errors[False] > 50


@pytest.mark.parametrize("kind", INPUTS)
def test_constant_empty_and_dead_sensors_give_finite_forecasts(kind: InputKind) -> None:
    values = noisy_week(days=70, sensors=4).target.copy()
    values[:, 1] = 7
    values[: len(values) * 7 // 10, 2] = np.nan
    values[len(values) * 7 // 10 :, 3] = 0
    model, parts = make_zeros(make_series(values), kind, WEEK)
    for part in (parts.train, parts.test):
        assert predict(model.forecaster, part, part.origins[-3:]).isfinite().all()
    x, _, _, time_in, time_out = parts.test.batch(parts.test.origins[:2])
    assert model.forecaster.network_input(x, time_in, time_out, None, None).isfinite().all()


def test_with_less_than_two_weeks_of_training_the_profile_is_that_of_a_day() -> None:
    model, parts = make_zeros(noisy_week(days=12, noise=0), "profile", 6)
    profile = model.forecaster.profile.unflatten(0, (7, 24))
    assert parts.train_steps < 14 * 24 and (profile == profile[:1]).all() and profile[0].std() > 0


def test_the_weight_of_each_lead_time_is_the_best_one() -> None:
    """The truth is 30 % of the way, all of it, beyond it, on the other side; and nothing is observed."""
    base, corrected = torch.zeros(2, 5, 1), torch.full((2, 5, 1), 10.0)
    y = torch.tensor([3.0, 10, 14, -2, 7]).view(1, 5, 1).expand(2, 5, 1)
    mask = torch.tensor([True, True, True, True, False]).view(1, 5, 1).expand(2, 5, 1)
    torch.testing.assert_close(best_lead_weights(base, corrected, y, mask), torch.tensor([0.3, 1, 1, 0, 0]))


@pytest.mark.parametrize("outputs", [1, 3])
def test_a_correction_that_harms_the_first_hours_is_left_out_there(outputs: int) -> None:
    """The network shifts the first 6 steps by ten sigma and leaves the others: those 6 get the weight 0."""
    model, parts = make_zeros(noisy_week(days=70), "profile", 24, outputs)
    before = predict(model.forecaster, parts.test, parts.test.origins[:3])
    harm = torch.zeros(24)
    harm[:6] = 10

    def shift(module: object, inputs: object, output: torch.Tensor) -> torch.Tensor:
        return output + harm.view(1, 24, *[1] * (output.ndim - 2))

    model.forecaster.network.register_forward_hook(shift)
    shifted = predict(model.forecaster, parts.test, parts.test.origins[:3])
    assert not torch.allclose(shifted, before)
    calibrated = calibrate(model, parts.validation, FitOptions())
    assert (calibrated.forecaster.lead_weights[:6] == 0).all()
    after = predict(calibrated.forecaster, parts.test, parts.test.origins[:3])
    torch.testing.assert_close(after, before)


def test_covariates_that_are_no_marks_are_standardized() -> None:
    """By the training part; marks of a calendar, 0 and 1, stay as they are."""
    series = noisy_week(days=70)
    marks = (np.arange(len(series)) % 48 < 24).astype(np.float32)
    covariates = np.stack([marks, 20 + 5 * np.sin(np.arange(len(series)))], axis=1).astype(np.float32)
    parts = split_windows(series, 24, 24, "gapped", covariates)
    forecaster = make_forecaster(
        "dlinear", Shape(3, 24, 24, 24, known=2), torch.ones(3, 3).bool(), TINY, "plain", False
    )
    forecaster.fit_scaling(parts.train, parts.validation, parts.train_steps)
    torch.testing.assert_close(forecaster.known_mean, torch.tensor([0.0, 20.0]), atol=0.1, rtol=0)
    torch.testing.assert_close(forecaster.known_std, torch.tensor([1.0, 5 / 2**0.5]), atol=0.1, rtol=0)
    seen: list[torch.Tensor] = []
    forecaster.network.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[3]))
    forward(forecaster, parts.train, parts.train.origins[:64])
    assert set(seen[0][..., 0].unique().tolist()) == {0.0, 1.0} and abs(float(seen[0][..., 1].std()) - 1) < 0.1


def test_a_level_of_a_few_hours_leans_on_the_profile_if_validation_says_so() -> None:
    """Bursts of some hours say nothing about the next day; a level that lasts for weeks is used as it is."""
    series = noisy_week(days=70, noise=0.0)
    bursts = series.values.copy()
    bursts[np.random.default_rng(3).random(len(series) // 6).repeat(6) < 0.3] *= 3
    lasting = series.values * np.linspace(1, 3, len(series))[:, None, None].round(1).astype(np.float32)
    priors = []
    for values in (bursts, lasting):
        model, _ = make_zeros(make_series(values), "profile", 12)
        priors.append(float(model.forecaster.level_prior))
    assert priors[0] > 0.0 == priors[1]
    week, _ = make_zeros(noisy_week(days=70), "profile", WEEK)
    assert float(week.forecaster.level_prior) == 0.0, "a week needs no prior"


def test_the_prior_is_the_profile_of_the_rest_of_the_week() -> None:
    value, profile, seen = torch.full((1, 2, 1), 30.0), torch.full((1, 2, 1), 10.0), torch.ones(1, 2, 1).bool()
    assert float(window_level(value, profile, seen, 168)) == 3
    assert float(window_level(value, profile, seen, 168, torch.tensor([[[20.0]]]))) == 2
