"""Masked errors by lead time, sensor, hour of the week and day; bootstrap intervals and the paired test."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from agentsys.trainers.traffic.metrics import Scores, compare, evaluate_forecaster, mae_interval
from agentsys.trainers.traffic.series import SeriesError
from agentsys.trainers.traffic.splits import Windows, make_windows
from tests.support.traffic import make_series


def random_windows(steps: int = 24 * 60, sensors: int = 3, t_out: int = 24, missing: float = 0.1) -> Windows:
    rng = np.random.default_rng(1)
    values = rng.integers(0, 20, (steps, sensors)).astype(np.float32)
    values[rng.random(values.shape) < missing] = np.nan
    return make_windows(make_series(values, zone="Europe/Berlin"), 24, t_out, steps // 2)


def test_measures_by_hand() -> None:
    series = make_series(np.zeros(10))
    scores = Scores(series, 2)
    forecast = torch.tensor([[[1.0], [5.0]], [[2.0], [7.0]]])
    target = torch.tensor([[[2.0], [0.0]], [[4.0], [100.0]]])
    mask = torch.tensor([[[True], [True]], [[True], [False]]])
    scores.add(torch.tensor([1, 2]), forecast, target, mask)
    pooled = scores.pooled()
    assert pooled.count == 3 and pooled.mae == pytest.approx((1 + 5 + 2) / 3)
    assert pooled.rmse == pytest.approx(math.sqrt((1 + 25 + 4) / 3))
    assert pooled.wape == pytest.approx(100 * 8 / 6)
    assert pooled.mape == pytest.approx(100 * (0.5 + 0.5) / 2)  # the target of 0 is left out
    assert math.isnan(pooled.pinball) and math.isnan(pooled.coverage)


def test_without_zeros_as_in_the_released_code() -> None:
    scores = Scores(make_series(np.zeros(10)), 2, zeros=False)
    scores.add(
        torch.tensor([1]), torch.tensor([[[1.0], [5.0]]]), torch.tensor([[[3.0], [0.0]]]), torch.ones(1, 2, 1).bool()
    )
    assert scores.pooled().count == 1 and scores.pooled().mae == 2


def test_pinball_and_coverage() -> None:
    scores = Scores(make_series(np.zeros(10)), 1, quantiles=(0.1, 0.5, 0.9))
    forecast = torch.tensor([[[[1.0, 2.0, 4.0]]], [[[1.0, 2.0, 4.0]]]])
    scores.add(torch.tensor([1, 2]), forecast, torch.tensor([[[3.0]], [[5.0]]]), torch.ones(2, 1, 1).bool())
    pooled = scores.pooled()
    assert pooled.mae == 2 and pooled.coverage == 50
    inside = (0.1 * 2 + 0.5 * 1 + 0.1 * 1) / 3
    outside = (0.1 * 4 + 0.5 * 3 + 0.9 * 1) / 3
    assert pooled.pinball == pytest.approx((inside + outside) / 2)
    with pytest.raises(SeriesError, match=r"the median, 0.5, must be among them"):
        Scores(make_series(np.zeros(10)), 1, quantiles=(0.1, 0.9))


def test_every_grouping_is_the_mean_over_its_targets() -> None:
    windows = random_windows()
    series = windows.series
    special = series.day_of_week == 6
    scores = evaluate_forecaster(
        lambda o: torch.full((len(o), 24, 3), 7.0), windows, Scores(series, 24, special=special)
    )
    steps = windows.origins.numpy()[:, None] + np.arange(24)
    errors = np.abs(series.target[steps] - 7)
    assert scores.pooled().mae == pytest.approx(np.nanmean(errors), rel=1e-6)
    assert scores.by_lead().keys() == {"1 h", "3 h", "12 h", "1 d"}
    for name, lead in (("1 h", 1), ("3 h", 3), ("12 h", 12), ("1 d", 24)):
        assert scores.by_lead()[name].mae == pytest.approx(np.nanmean(errors[:, lead - 1]), rel=1e-6)
    assert [one.mae for one in scores.by_step()] == pytest.approx(np.nanmean(errors, axis=(0, 2)), rel=1e-6)
    assert scores.by_sensor()["b"].mae == pytest.approx(np.nanmean(errors[..., 1]), rel=1e-6)
    hour = series.time_of_week[steps]
    for cell in (0, 57, 167):
        assert scores.by_hour_of_week()[cell].mae == pytest.approx(np.nanmean(errors[hour == cell]), rel=1e-6)
    on, off = scores.on_special()
    assert on.mae == pytest.approx(np.nanmean(errors[special[steps]]), rel=1e-6)
    assert on.count + off.count == scores.pooled().count == int((~np.isnan(errors)).sum())
    days, sums, counts = scores.days()
    first_day = series.local[windows.origins.numpy()].astype("datetime64[D]").astype(int) == days[3]
    assert sums[3] / counts[3] == pytest.approx(np.nanmean(errors[first_day]), rel=1e-6)


def test_lead_times_of_quarter_hours() -> None:
    values = np.zeros((2000, 1), np.float32)
    windows = make_windows(make_series(values, step=900), 4, 100, 1000)
    lead = torch.arange(1.0, 101)[None, :, None]
    scores = evaluate_forecaster(lambda o: lead.expand(len(o), -1, -1), windows, Scores(windows.series, 100))
    assert {name: one.mae for name, one in scores.by_lead().items()} == {"1 h": 4, "3 h": 12, "12 h": 48, "1 d": 96}


def score_pair(windows: Windows, better: float) -> tuple[Scores, Scores]:
    """Two forecasts: noise around the truth, and the same noise with `better` times its size."""
    generator = torch.Generator().manual_seed(0)
    noise = torch.randn(windows.target.shape, generator=generator)
    daily = torch.rand(len(windows.target) // 24 + 1, 1, generator=generator).repeat_interleave(24, 0)

    def forecast(size: float, shift: float) -> Scores:
        def predict(origins: Tensor) -> Tensor:
            steps = origins[:, None] + torch.arange(windows.t_out)
            return (windows.target + size * daily[: len(noise)] * noise + shift)[steps]

        return evaluate_forecaster(predict, windows, Scores(windows.series, windows.t_out))

    return forecast(better, 0.0), forecast(1.0, 0.0)


def test_the_paired_test_sees_a_small_steady_difference() -> None:
    first, second = score_pair(random_windows(), 0.95)
    result = compare(first, second)
    assert result.ratio == pytest.approx(0.95, abs=1e-3) and result.p < 0.01
    assert result.difference.low < result.difference.value < result.difference.high < 0
    back = compare(second, first)
    assert back.difference.value == pytest.approx(-result.difference.value) and back.difference.low > 0
    # unpaired, the same difference is far inside the interval
    interval = mae_interval(first)
    assert interval.low < second.pooled().mae < interval.high


def test_the_paired_test_of_equal_models() -> None:
    first, second = score_pair(random_windows(), 1.0)
    result = compare(first, second)
    assert result.difference.value == 0 and result.p == 1.0


def test_the_paired_test_needs_the_same_windows() -> None:
    windows = random_windows()
    first, _ = score_pair(windows, 0.9)
    _, second = score_pair(windows.with_origins(windows.origins[:500]), 0.9)
    with pytest.raises(SeriesError, match="not scored on the same windows"):
        compare(first, second)


def test_intervals_are_wider_with_blocks_than_without() -> None:
    """Days of one week have one error here: drawn singly, 70 days look like 70 results, though they are 10."""
    windows = random_windows(steps=24 * 80, missing=0.0)
    weeks = (windows.origins // 168).float()

    def predict(origins: Tensor) -> Tensor:
        steps = origins[:, None] + torch.arange(windows.t_out)
        return windows.target[steps] + ((origins // 168) * 37 % 11)[:, None, None].float()

    scores = evaluate_forecaster(predict, windows, Scores(windows.series, 24))
    interval = mae_interval(scores)
    _, errors, counts = scores.days()
    single = np.std(errors / counts) / math.sqrt(len(errors))
    assert interval.high - interval.low > 1.5 * 2 * 1.96 * single and len(weeks.unique()) > 10


def test_too_few_days_have_no_interval() -> None:
    windows = random_windows(steps=24 * 10)
    first, second = score_pair(windows, 0.9)
    assert math.isnan(mae_interval(first).low) and not math.isnan(mae_interval(first).value)
    assert math.isnan(compare(first, second).p)
