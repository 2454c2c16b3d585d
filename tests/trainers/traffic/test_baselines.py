"""Baselines: exact on series that they describe, and blind to the future."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from agentsys.trainers.traffic.baselines import LastValue, Repeat, Ridge, ScaledProfile, WeeksMean, make_baselines
from agentsys.trainers.traffic.metrics import Scores, evaluate_forecaster
from agentsys.trainers.traffic.series import Series
from agentsys.trainers.traffic.splits import Parts, split_windows
from tests.support.traffic import make_series, weekly

HOURS = 24 * 7 * 20


def parts_of(series: Series, t_in: int = 168, t_out: int = 168) -> Parts:
    return split_windows(series, t_in, t_out)


def noisy(seed: int = 0, sensors: int = 2, steps: int = HOURS) -> Series:
    """Weekly counts with a level that changes, noise, and gaps."""
    rng = np.random.default_rng(seed)
    base = weekly(steps, sensors=sensors)
    level = 1 + 0.3 * np.sin(np.arange(steps) / 700)[:, None]
    values = base.target * level + rng.normal(0, 3, (steps, sensors))
    values[rng.random(values.shape) < 0.02] = np.nan
    values[700:800, 0] = np.nan
    return make_series(np.maximum(values, 0))


def mae(forecaster: object, parts: Parts) -> float:
    scores = Scores(parts.test.series, parts.test.t_out)
    return evaluate_forecaster(forecaster, parts.test, scores).pooled().mae  # type: ignore[arg-type]


def test_all_rows_on_a_weekly_series() -> None:
    parts = parts_of(weekly(HOURS, sensors=2))
    rows = make_baselines(parts)
    assert list(rows) == [
        *("last value", "yesterday", "last week", "4-week mean", "weekly profile", "scaled profile"),
        *("ridge", "ridge on residual"),
    ]
    errors = {name: mae(row, parts) for name, row in rows.items()}
    for name in ("last week", "4-week mean", "weekly profile", "scaled profile", "ridge on residual"):
        assert errors[name] == pytest.approx(0, abs=1e-3), name
    assert errors["last value"] > errors["yesterday"] > 1 > errors["ridge"]


def test_last_value_and_yesterday_by_hand() -> None:
    values = np.arange(24.0 * 40)
    windows = parts_of(make_series(values), 24, 60).train
    origins = torch.tensor([48, 100])
    assert LastValue(windows)(origins)[:, :, 0].tolist() == [[47.0] * 60, [99.0] * 60]
    day = list(range(76, 100))
    assert Repeat(windows, 1)(origins)[1, :, 0].tolist() == [*day, *day, *day[:12]]


def test_four_week_mean_skips_missing_values() -> None:
    values = np.repeat([1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0, 9.0, 10.0], 168)
    values[2 * 168 + 5] = np.nan
    values[[168 * week + 7 for week in range(4)]] = np.nan
    windows = parts_of(make_series(values), 24, 24).train
    forecast = WeeksMean(windows)(torch.tensor([4 * 168]))[0, :, 0]
    assert forecast[0] == pytest.approx(2.5) and forecast[5] == pytest.approx((1 + 2 + 4) / 3)
    assert forecast[7] == pytest.approx(float(windows.filled[3 * 168 + 7, 0, 0]))
    early = WeeksMean(windows)(torch.tensor([2 * 168]))[0, 0, 0]
    assert early == pytest.approx(1.5)


def test_the_level_is_that_of_the_last_week() -> None:
    series = weekly(HOURS)
    values = series.target.copy()
    values[2500:] *= 3
    parts = parts_of(make_series(values))
    profile = ScaledProfile.fit(parts)
    after = torch.tensor([2500 + 168, 2500])
    assert profile.level[after][:, 0].tolist() == pytest.approx([3, 1], rel=1e-3)
    week = values[2600 - 168 : 2600, 0]
    assert float(profile.level[2600, 0]) == pytest.approx(week.sum() / series.target[2600 - 168 : 2600].sum(), rel=1e-3)
    forecast = profile(after[:1])[0, :, 0]
    assert forecast.tolist() == pytest.approx(values[2668:2836, 0].tolist(), rel=1e-3)
    assert profile.plain(after[:1])[0, :, 0].tolist() == pytest.approx((values[2668:2836, 0] / 3).tolist(), rel=1e-3)


def test_the_level_ignores_missing_hours_and_holds_through_an_outage() -> None:
    values = weekly(HOURS).target.copy()
    values[2016:] *= 2  # from the end of the training part on
    values[2900:2960] = np.nan
    values[3100:] = np.nan
    values[3300:] = 1.0
    profile = ScaledProfile.fit(parts_of(make_series(values)))
    assert float(profile.level[2961, 0]) == pytest.approx(2, rel=1e-3)
    assert float(profile.level[3290, 0]) == pytest.approx(2, rel=1e-3)  # no value for a week


def test_a_sensor_without_training_values_has_the_shape_of_the_others() -> None:
    values = weekly(HOURS, sensors=3).target.copy()
    values[:2200, 2] = np.nan
    parts = parts_of(make_series(values))
    assert parts.train_steps < 2200
    assert mae(ScaledProfile.fit(parts), parts) == pytest.approx(0, abs=1e-2)


def test_a_short_series_has_a_daily_profile_and_no_weekly_rows() -> None:
    series = weekly(24 * 9)
    parts = parts_of(make_series(10.0 + series.time_of_day), 12, 12)
    rows = make_baselines(parts)
    assert list(rows) == [
        "last value",
        "yesterday",
        "last week",
        "daily profile",
        "scaled profile",
        "ridge",
        "ridge on residual",
    ]
    assert mae(rows["daily profile"], parts) == pytest.approx(0, abs=1e-4)


def test_a_holiday_as_a_sunday() -> None:
    series = weekly(HOURS, sensors=2)
    days = np.arange(HOURS) // 24
    holidays = np.isin(days, [3, 30, 58, 100, 120, 134])  # Thursdays and others, all parts
    assert not (holidays & (series.day_of_week == 6)).any()
    cells = np.where(holidays, 144 + series.time_of_day, series.time_of_week)
    parts = parts_of(make_series((10.0 + cells)[:, None] * [1.0, 2.0]))
    rows = make_baselines(parts, holidays)
    with_holidays = [name for name in rows if name.endswith("holidays as Sundays")]
    assert with_holidays == ["scaled profile, holidays as Sundays", "ridge on residual, holidays as Sundays"]
    for name in with_holidays:
        assert mae(rows[name], parts) == pytest.approx(0, abs=1e-3)
        assert mae(rows[name.split(",")[0]], parts) > 1


def test_baselines_follow_the_local_clock_through_its_change() -> None:
    """The test part holds the end of October, when 168 hours before is another local hour for a week."""
    start = np.datetime64("2024-06-30T22:00:00", "s")
    parts = parts_of(weekly(HOURS, zone="Europe/Berlin", start=start))
    assert len({int(o) for o in (parts.test.series.local - parts.test.series.times).astype(int)[-900:]}) == 2
    rows = make_baselines(parts)
    for name in ("last week", "weekly profile", "scaled profile"):
        assert mae(rows[name], parts) == pytest.approx(0, abs=0.02), name


def test_ridge_learns_what_the_profile_leaves() -> None:
    """Deviations from the profile that repeat after a day are forecast by the ridge alone."""
    rng = np.random.default_rng(0)
    rest = np.zeros(HOURS)
    shocks = rng.normal(0, 5, HOURS)
    for step in range(24, HOURS):
        rest[step] = 0.9 * rest[step - 24] + shocks[step]
    parts = parts_of(make_series(np.maximum(weekly(HOURS).target[:, 0] + 100 + rest, 0)), 48, 24)
    profile = ScaledProfile.fit(parts)
    ridge = Ridge.fit(parts, profile)
    assert mae(ridge, parts) < 0.6 * mae(profile, parts)
    expected = np.abs(shocks[-len(parts.test) :]).mean()
    assert mae(ridge, parts) < 1.25 * expected


def test_ridge_is_least_squares_where_the_penalty_is_small() -> None:
    rng = np.random.default_rng(0)
    values = rng.random(9000)
    for step in range(2, len(values)):
        values[step] = 0.5 * values[step - 1] + 0.3 * values[step - 2] + rng.random()
    ridge = Ridge.fit(parts_of(make_series(values), 2, 1))
    assert ridge.weight[:2, 0].tolist() == pytest.approx([0.3, 0.5], abs=0.05)


@pytest.mark.parametrize("missing", [0.3, 0.6])
def test_ridge_with_many_scattered_gaps(missing: float) -> None:
    series = noisy()
    values = series.target.copy()
    values[np.random.default_rng(2).random(values.shape) < missing] = np.nan
    parts = parts_of(make_series(values))
    profile = ScaledProfile.fit(parts)
    assert mae(Ridge.fit(parts, profile), parts) < 1.1 * mae(profile, parts)


def test_no_baseline_sees_the_future() -> None:
    series = noisy()
    parts = parts_of(series)
    origin = int(parts.test.origins[50])
    values = series.values.copy()
    values[origin:] = 1e4
    other = parts_of(make_series(values))
    holidays = series.day_of_week == 2
    rows, changed = make_baselines(parts, holidays), make_baselines(other, holidays)
    for name, row in rows.items():
        origins = torch.tensor([origin])
        assert torch.equal(row(origins), changed[name](origins)), name
        assert row(origins).isfinite().all() and row(origins).shape == (1, 168, 2)


def test_constant_and_empty_sensors_have_finite_forecasts() -> None:
    values = noisy(sensors=4).target.copy()
    values[:, 1] = 5
    values[:, 2] = 0
    values[:3000, 3] = np.nan
    parts = parts_of(make_series(values))
    for name, row in make_baselines(parts).items():
        for part in (parts.train, parts.test):
            forecast = row(part.origins[::40])
            assert forecast.isfinite().all(), name
    constant = make_baselines(parts)["ridge on residual"](parts.test.origins[:5])
    assert constant[..., 1].numpy() == pytest.approx(5, abs=1e-2) and constant[..., 2].abs().max() < 1e-3


def test_a_few_hours_after_an_outage_are_no_level() -> None:
    values = weekly(HOURS).target.copy()
    values[3000:3300] = np.nan
    values[3200:3205] = 5000
    profile = ScaledProfile.fit(parts_of(make_series(values)))
    assert float(profile.level[3220, 0]) == pytest.approx(1, rel=1e-3)


def test_ridge_reads_a_missing_value_as_the_profile() -> None:
    values = noisy().target.copy()
    parts = parts_of(make_series(values))
    ridge = Ridge.fit(parts, ScaledProfile.fit(parts))
    missing = np.isnan(values[700:868]).T
    inputs = ridge._inputs(torch.tensor([868]))[0, :, :-1].numpy()
    assert missing.sum() > 100 and (inputs[missing] == 0).all() and (inputs[~missing] != 0).all()
