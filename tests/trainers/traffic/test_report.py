"""The table and the pictures of a training."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
import torch
from markdown_it import MarkdownIt
from torch import Tensor

from agentsys.trainers.traffic.forecast import forecast_window
from agentsys.trainers.traffic.metrics import Scores, evaluate_forecaster
from agentsys.trainers.traffic.report import (
    Row,
    make_rows,
    markdown_table,
    model_card,
    number,
    plot_attention,
    plot_forecast,
    plot_lead_times,
    rows_to_json,
    table_cells,
)
from agentsys.trainers.traffic.splits import Parts
from tests.support.traffic_models import make_zeros, noisy_week


@pytest.fixture(scope="module")
def parts() -> Parts:
    return make_zeros(noisy_week(days=90), "profile")[1]


@pytest.fixture(scope="module")
def rows(parts: Parts) -> list[Row]:
    """A model that is 2 off, with bands of 1, and a baseline that is 4 off."""
    series, windows = parts.test.series, parts.test
    holidays = np.zeros(len(series), bool)
    holidays[-30:] = True

    def off_by(error: float, bands: tuple[float, ...] = ()) -> Scores:
        def forecast(origins: Tensor) -> Tensor:
            point = windows.batch(origins).y + error
            return torch.stack([point + band for band in bands], -1) if bands else point

        scores = Scores(series, 24, (0.1, 0.5, 0.9) if bands else (), special=holidays)
        return evaluate_forecaster(forecast, windows, scores)

    scores = {"half | pipe": off_by(4.0), "ours": off_by(2.0, (-1.0, 0.0, 1.0))}
    return make_rows("ours", scores, {"ours": 12.5}, {"ours": 1000})


def test_rows_are_sorted_and_compared_with_the_model(rows: list[Row]) -> None:
    assert [row.name for row in rows] == ["ours", "half | pipe"]
    assert rows[0].comparison is None and rows[1].comparison is not None
    assert rows[1].comparison.ratio == pytest.approx(0.5) and rows[1].comparison.difference.value == pytest.approx(-2)


def test_the_table_has_pooled_and_lead_time_errors_holidays_and_coverage(rows: list[Row]) -> None:
    header, cells = table_cells(rows)
    ours, other = (dict(zip(header, line, strict=True)) for line in cells)
    assert header[5:10] == ["1 h", "3 h", "12 h", "1 d", "MAE holidays"]
    assert ours["MAE (95 %)"] == "2 (2-2)" and ours["12 h"] == "2" and ours["MAE holidays"] == "2"
    assert ours["80 % band covers %"] == "0" and other["80 % band covers %"] == ""
    assert (ours["train s"], other["ours / its MAE"], ours["ours / its MAE"]) == ("12.5", "0.500", "")


def test_the_markdown_table_is_one_whatever_the_names_are(rows: list[Row]) -> None:
    blocks = MarkdownIt("commonmark").enable("table").parse("\n".join(markdown_table(rows)))
    assert [block.type for block in blocks].count("tr_open") == 3
    card = model_card({"data": "a | b", "network": "<b>"}, ["a fact", "# no heading"], rows, ["week.png"])
    assert "<b>" not in re.sub(r"`[^`]*`", "", card) and "\n- `# no heading`" in card
    assert "![week.png](week.png)" in card


def test_the_report_has_no_nan(rows: list[Row]) -> None:
    ours, other = rows_to_json(rows)
    assert ours["pooled"]["mae"] == pytest.approx(2) and ours["by_sensor"].keys() == {"a", "b", "c"}
    assert other["pooled"]["coverage"] is None and other["seconds"] is None and len(other["by_hour_of_week"]) == 168
    assert ours["on_holidays"]["mae"] == pytest.approx(2) and ours["p"] is None


def test_numbers_are_short() -> None:
    assert [number(value) for value in (1234.5678, 45.678, 4.5678, 0.00123456, float("nan"))] == [
        "1234.6", "45.7", "4.57", "0.00123", "",
    ]  # fmt: skip


def test_pictures_are_written(rows: list[Row], tmp_path: Path) -> None:
    model, parts = make_zeros(noisy_week(days=60, sensors=6), "profile")
    origin = int(parts.test.origins[0])
    actual = parts.test.series.between(origin, origin + 24)
    plot_forecast(forecast_window(model, parts.test, origin), tmp_path / "deep" / "week.png", actual)
    plot_lead_times(rows, tmp_path / "lead.png", 3600)
    weights = np.random.default_rng(0).random((6, 6)).astype(np.float32)
    plot_attention(weights, model.info.sensors, tmp_path / "attention.png")
    assert weights.diagonal().all()  # the picture leaves out the diagonal, not the caller's array
    for name in ("deep/week.png", "lead.png", "attention.png"):
        assert (tmp_path / name).read_bytes().startswith(b"\x89PNG")
