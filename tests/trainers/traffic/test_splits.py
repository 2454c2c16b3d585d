"""Windows and splits: no step in two parts, or exactly the overlap of the released code; gaps filled from the past."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from agentsys.trainers.traffic.series import SeriesError
from agentsys.trainers.traffic.splits import (
    coprime_stride,
    fill_gaps,
    make_windows,
    split_origins,
    split_windows,
    steps_before,
)
from tests.support.traffic import make_series, weekly


def steps_of(origins: range, t_in: int, t_out: int) -> set[int]:
    return set(range(origins[0] - t_in, origins[-1] + t_out))


@pytest.mark.parametrize(("t_in", "t_out"), [(168, 168), (12, 48), (48, 12), (1, 1)])
def test_gapped_parts_share_no_step(t_in: int, t_out: int) -> None:
    parts, train_steps = split_origins(2000, t_in, t_out)
    steps = [steps_of(part, t_in, t_out) for part in parts]
    assert steps == [set(range(1200)), set(range(1200, 1600)), set(range(1600, 2000))]
    assert train_steps == 1200


def test_the_test_windows_of_the_measured_file() -> None:
    """22,176 hours, 168 to 168: 4,101 test windows (papers file, section 3.9)."""
    assert len(split_origins(22_176, 168, 168)[0][2]) == 4101


@pytest.mark.parametrize(("n", "windows"), [(12, 1993), (48, 1921), (144, 1729), (288, 1441)])
def test_published_windows_are_those_of_the_released_code(n: int, windows: int) -> None:
    """Windows i = [i, i + T_in), 60/20/20 by index, no gap (papers file, sections 3.2 and 3.7)."""
    parts, train_steps = split_origins(2016, n, n, "published")
    assert sum(len(part) for part in parts) == windows
    assert [*parts[0], *parts[1], *parts[2]] == list(range(n, 2016 - n + 1))
    train, validation, _ = (steps_of(part, n, n) for part in parts)
    assert len(train & validation) == 2 * n - 1 and max(train) + 1 == train_steps


@pytest.mark.parametrize("kind", ["gapped", "published"])
def test_too_few_steps_says_how_many_are_needed(kind: str) -> None:
    with pytest.raises(
        SeriesError, match=r"the data has 300 steps; 168 steps of input .* need at least ([\d,]+)"
    ) as error:
        split_origins(300, 168, 168, kind)  # type: ignore[arg-type]
    needed = int(str(error.value).split("need at least ")[1].split(":")[0].replace(",", ""))
    assert all(split_origins(needed, 168, 168, kind)[0])  # type: ignore[arg-type]
    with pytest.raises(SeriesError):
        split_origins(needed - 1, 168, 168, kind)  # type: ignore[arg-type]


def test_a_batch_is_input_target_mask_and_clock() -> None:
    values = np.arange(60.0).reshape(30, 2)
    values[7, 1] = np.nan
    windows = make_windows(make_series(values), 4, 3, train_steps=20)
    assert len(windows) == 30 - 4 - 3 + 1
    assert windows.independent == pytest.approx(26 / 3)  # the steps from 4 to 29 are forecast, three at a time
    x, y, mask, time_in, time_out = windows.batch(torch.tensor([6, 8]))
    assert x.shape == (2, 4, 2, 2) and time_in.shape == (2, 4, 2) and time_out.shape == (2, 3, 2)
    assert x[0, :, 0, 0].tolist() == [4, 6, 8, 10] and not x[0, :, :, 1].any()
    assert y[0].tolist() == [[12, 13], [14, 0], [16, 17]]
    assert mask[0].tolist() == [[True, True], [True, False], [True, True]]
    assert x[1, -1, 1, 1] == 1 and x[1, :, :, 1].sum() == 1
    assert time_out[1].tolist() == [[8, 0], [9, 0], [10, 0]] and time_in.dtype == torch.long


def test_windows_are_views_of_one_series() -> None:
    """17,856 steps of 307 sensors with windows of 2,016 steps would take 80 TB as one array."""
    series = make_series(np.ones((400, 10)))
    windows = make_windows(series, 100, 100, 200)
    assert windows.batch(windows.origins[:1]).x.shape == (1, 100, 10, 2)
    tensors = (windows.filled, windows.target, windows.observed, windows.clock, windows.origins)
    assert sum(tensor.numel() for tensor in tensors) < 4 * 400 * 10 + 2 * 400 + 400
    assert windows.with_origins(windows.origins[:3]).filled.data_ptr() == windows.filled.data_ptr()


def test_covariates_are_known_on_both_sides() -> None:
    known = np.arange(30.0)[:, None]
    windows = make_windows(make_series(np.ones(30)), 4, 3, 20, known.astype(np.float32))
    before, after = windows.batch_covariates(torch.tensor([10]))
    assert before[0, :, 0].tolist() == [6, 7, 8, 9] and after[0, :, 0].tolist() == [10, 11, 12]
    empty, _ = make_windows(make_series(np.ones(30)), 4, 3, 20).batch_covariates(torch.tensor([10]))
    assert empty.shape == (1, 4, 0)


def test_thinned_windows_begin_at_every_hour() -> None:
    windows = make_windows(weekly(24 * 60), 24, 24, 24 * 30)
    assert coprime_stride(3, 24) == 5 and coprime_stride(1, 24) == 1 and coprime_stride(96, 96) == 97
    hours = windows.clock[windows.every(3).origins, 0]
    assert sorted(set(hours.tolist())) == list(range(24))


def test_gaps_are_filled_from_the_week_before() -> None:
    series = weekly(24 * 35)
    values = series.values.copy()
    values[400:700] = np.nan
    values[:5] = np.nan
    holes = make_series(values)
    filled = fill_gaps(holes, 200)
    assert np.array_equal(filled[400:700], series.values[400:700])
    assert np.allclose(filled[:5], np.nanmean(values[:200])) and not np.isnan(filled).any()


def test_filling_uses_no_value_of_the_future() -> None:
    values = np.random.default_rng(0).random((24 * 35, 3)).astype(np.float32)
    values[300:500, 1] = np.nan
    values[600:620] = np.nan
    values[:50, 2] = np.nan
    before = fill_gaps(make_series(values), 200)[:700]
    values[700:] = 99
    assert np.array_equal(fill_gaps(make_series(values), 200)[:700], before)


def test_sensors_without_training_values_are_filled_with_the_mean_of_all() -> None:
    values = np.full((400, 3), [2.0, 4.0, 9.0])
    values[:300, 2] = np.nan
    filled = fill_gaps(make_series(values), 200)
    assert (filled[:300, 2] == 3).all() and (filled[300:, 2] == 9).all()


def test_a_week_before_is_the_same_local_time_when_the_clock_changes() -> None:
    series = weekly(24 * 30, zone="Europe/Berlin", start=np.datetime64("2024-03-18T00:00:00", "s"))
    for days in (1, 7):
        before = steps_before(series, days)
        known = np.flatnonzero(before >= 0)
        shift = np.timedelta64(days, "D")
        nonexistent = (series.local[known] - shift).astype("datetime64[h]") == np.datetime64("2024-03-31T02")
        assert (series.local[before[known]] == series.local[known] - shift)[~nonexistent].all()
        assert nonexistent.sum() == 1 and (before < np.arange(len(series))).all()


def test_a_part_without_values_is_an_error() -> None:
    values = np.ones(1000)
    values[600:800] = np.nan
    with pytest.raises(SeriesError, match=r"all values of the validation part \(2024-01-27T00:00:00 to "):
        split_windows(make_series(values), 24, 24)


def test_one_sensor_and_windows_of_odd_length() -> None:
    parts = split_windows(make_series(np.arange(100.0)), 7, 5)
    batch = parts.test.batch(parts.test.origins[-1:])
    assert batch.x.shape == (1, 7, 1, 2) and batch.y[0, :, 0].tolist() == [95, 96, 97, 98, 99]
