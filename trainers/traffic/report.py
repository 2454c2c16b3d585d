"""What a training leaves for its reader: the table of all models, pictures, and the model card."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np

from agentsys.display import markdown
from agentsys.fonts import fit_fonts
from agentsys.trainers.traffic.forecast import Forecast
from agentsys.trainers.traffic.metrics import Comparison, Measures, Scores, compare, mae_interval
from agentsys.trainers.traffic.series import Floats, Series, to_local

SHOWN: Final = 4
"""Sensors of the picture of a week: those with the highest mean."""


@dataclass(frozen=True, slots=True)
class Row:
    """One model of the table."""

    name: str
    scores: Scores
    comparison: Comparison | None
    """The trained model against this one; None for the trained model itself."""
    seconds: float = math.nan
    """Training time, NaN for a baseline without one."""
    parameters: int = 0


def make_rows(
    model: str, scores: Mapping[str, Scores], seconds: Mapping[str, float], parameters: Mapping[str, int]
) -> list[Row]:
    """Rows by ascending MAE, each with the paired comparison of `model` against it."""
    rows = [
        Row(
            name,
            one,
            compare(scores[model], one) if name != model else None,
            seconds.get(name, math.nan),
            parameters.get(name, 0),
        )
        for name, one in scores.items()
    ]
    return sorted(rows, key=lambda row: row.scores.pooled().mae)


def table_cells(rows: Sequence[Row]) -> tuple[list[str], list[list[str]]]:
    """Header and cells: pooled errors, MAE at each lead time, on public holidays, coverage, and the paired test."""
    leads = list(rows[0].scores.by_lead())
    has_holidays = rows[0].scores.special is not None
    holidays = ["MAE holidays"] if has_holidays else []
    header = ["model", "MAE (95 %)", "RMSE", "WAPE %", "MAPE %", *leads, *holidays, "80 % band covers %", "pinball"]
    header += ["ours / its MAE", "p", "train s"]
    return header, [_cells(row, leads, has_holidays) for row in rows]


def _cells(row: Row, leads: Sequence[str], has_holidays: bool) -> list[str]:
    pooled, by_lead, interval = row.scores.pooled(), row.scores.by_lead(), mae_interval(row.scores)
    spread = "" if math.isnan(interval.low) else f" ({number(interval.low)}-{number(interval.high)})"
    return [
        row.name,
        number(pooled.mae) + spread,
        *(number(value) for value in (pooled.rmse, pooled.wape, pooled.mape)),
        *(number(by_lead[lead].mae) for lead in leads),
        *([number(row.scores.on_special()[0].mae)] if has_holidays else []),
        number(pooled.coverage),
        number(pooled.pinball),
        f"{row.comparison.ratio:.3f}" if row.comparison else "",
        number(row.comparison.p) if row.comparison else "",
        number(row.seconds),
    ]


def rows_to_json(rows: Sequence[Row]) -> list[dict[str, Any]]:
    """The table for report.json, with errors per lead time, sensor and hour of the week."""
    return [
        {
            "model": row.name,
            "pooled": _values(row.scores.pooled()),
            "by_lead": {lead: _values(one) for lead, one in row.scores.by_lead().items()},
            "by_sensor": {sensor: _finite(one.mae) for sensor, one in row.scores.by_sensor().items()},
            "by_hour_of_week": [_finite(one.mae) for one in row.scores.by_hour_of_week()],
            "on_holidays": _values(row.scores.on_special()[0]) if row.scores.special is not None else None,
            "ratio_of_mae": row.comparison.ratio if row.comparison else None,
            "p": _finite(row.comparison.p) if row.comparison else None,
            "seconds": _finite(row.seconds),
            "parameters": row.parameters,
        }
        for row in rows
    ]


def _values(measures: Measures) -> dict[str, float | None]:
    names = ("count", "mae", "rmse", "wape", "mape", "pinball", "coverage")
    return {name: _finite(getattr(measures, name)) for name in names}


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None


def number(value: float) -> str:
    """Three or four digits; nothing for NaN."""
    if not math.isfinite(value):
        return ""
    return f"{value:.1f}" if abs(value) >= 10 else f"{value:.3g}"


def print_table(rows: Sequence[Row], title: str) -> None:
    """Print the main columns: MAE, pooled and at each lead time, coverage, and the paired comparison."""
    from rich.table import Table

    from agentsys.console import Console

    leads = list(rows[0].scores.by_lead())
    has_holidays = rows[0].scores.special is not None
    names = ["model", "MAE", *leads, *(["holidays"] if has_holidays else []), "covers", "ours/its"]
    table = Table(*names, title=title, box=None, padding=(0, 1, 0, 0))
    for column in table.columns[1:]:
        column.justify = "right"
    for column in table.columns:
        column.no_wrap = True
    for row in rows:
        measures, by_lead = row.scores.pooled(), row.scores.by_lead()
        table.add_row(
            row.name,
            number(measures.mae),
            *(number(by_lead[lead].mae) for lead in leads),
            *([number(row.scores.on_special()[0].mae)] if has_holidays else []),
            f"{measures.coverage:.0f} %" if math.isfinite(measures.coverage) else "",
            f"{row.comparison.ratio:.3f}" if row.comparison else "",
        )
    Console().print(table)


def markdown_table(rows: Sequence[Row]) -> list[str]:
    """The table as lines of Markdown."""
    header, cells = table_cells(rows)
    lines = [header, ["---"] * len(header), *([markdown(line[0]), *line[1:]] for line in cells)]
    return ["| " + " | ".join(line) + " |" for line in lines]


def model_card(settings: Mapping[str, Any], facts: Sequence[str], rows: Sequence[Row], pictures: Sequence[str]) -> str:
    """README.md of a model folder: what was trained on what, the table, pictures, settings."""
    return "\n".join(
        [
            "---",
            "tags: [agentsys, time-series-forecasting]",
            "---",
            f"# {markdown(settings.get('network'))} on {markdown(settings.get('data'))}",
            "",
            "Trained by agentsys. The license and terms of the data are those of its owner; state them here.",
            "",
            *(f"- {markdown(fact)}" for fact in facts),
            "",
            *markdown_table(rows),
            "",
            "MAE, RMSE and WAPE are of all observed values of the test windows; columns named after a time are the MAE "
            "at that lead time alone. *ours / its MAE* is the trained model's MAE over that of the row, with the p of "
            "a paired block bootstrap over the days on which forecasts begin.",
            "",
            *(f"![{picture}]({picture})" for picture in pictures),
            "",
            "| setting | value |",
            "|---|---|",
            *(f"| {markdown(name)} | {markdown(value)} |" for name, value in settings.items()),
            "",
        ]
    )


def plot_forecast(forecast: Forecast, file: Path, actual: Series | None = None) -> None:
    """Plot up to four sensors: what came before, the forecast with its band, the naive one, and what came after."""
    from matplotlib.dates import ConciseDateFormatter
    from matplotlib.figure import Figure

    means = np.nan_to_num(_column_means(forecast.history.target))
    columns = sorted(np.argsort(-means, kind="stable")[:SHOWN].tolist())
    figure = Figure(figsize=(11, 2.5 * len(columns)), layout="constrained")
    past, times = to_local(forecast.history.times, forecast.zone), to_local(forecast.times, forecast.zone)
    for row, column in enumerate(columns, 1):
        axes = figure.add_subplot(len(columns), 1, row)
        axes.plot(past, forecast.history.target[:, column], color="0.5", linewidth=0.8, label="before")
        if actual is not None:
            axes.plot(times, actual.target[:, column], color="black", linewidth=0.8, label="observed")
        axes.fill_between(
            times, forecast.low[:, column], forecast.high[:, column], alpha=0.25, color="C0", label="10-90 %"
        )
        axes.plot(times, forecast.values[:, column], color="C0", label="forecast")
        axes.plot(times, forecast.naive[:, column], color="C1", linewidth=0.8, linestyle="--", label="naive")
        axes.set_title(forecast.sensors[column], loc="left", fontsize=9)
        axes.xaxis.set_major_formatter(ConciseDateFormatter(axes.xaxis.get_major_locator()))
    figure.legend(*axes.get_legend_handles_labels(), loc="outside upper right", ncols=5, fontsize=8)
    _save(figure, file)


def _column_means(values: Floats) -> Floats:
    counts = (~np.isnan(values)).sum(0)
    means: Floats = np.nansum(values, axis=0) / np.maximum(counts, 1)
    return means


def plot_lead_times(rows: Sequence[Row], file: Path, step: int) -> None:
    """Plot the MAE of each model over the lead time in days."""
    from matplotlib import colormaps
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 4.5), layout="constrained")
    axes = figure.add_subplot()
    axes.set_prop_cycle(color=[colormaps["tab20"](index) for index in range(20)])
    for row in rows:
        errors = [one.mae for one in row.scores.by_step()]
        days = (np.arange(len(errors)) + 1) * step / 86_400
        own = row.comparison is None
        axes.plot(days, errors, label=row.name, linewidth=2 if own else 1, color="black" if own else None)
    axes.set_xlabel("lead time in days")
    axes.set_ylabel("MAE")
    best = rows[0].scores.pooled().mae
    axes.set_ylim(0, 3 * best)
    figure.legend(loc="outside right upper", fontsize=7)
    _save(figure, file)


def plot_attention(weights: Floats, sensors: Sequence[str], file: Path) -> None:
    """Plot the attention from each sensor (row) to each sensor (column), (N, N), without that to itself."""
    from matplotlib.figure import Figure

    shown = weights.copy()
    np.fill_diagonal(shown, np.nan)
    size = min(3 + 0.25 * len(sensors), 14)
    figure = Figure(figsize=(size + 1, size), layout="constrained")
    axes = figure.add_subplot()
    image = axes.imshow(shown, cmap="viridis")
    figure.colorbar(image, label="attention, mean over heads and windows")
    if len(sensors) <= 60:
        axes.set_xticks(range(len(sensors)), sensors, rotation=90, fontsize=7)
        axes.set_yticks(range(len(sensors)), sensors, fontsize=7)
    axes.set_xlabel("attends to")
    _save(figure, file)


def _save(figure: Any, file: Path) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    fit_fonts(figure)
    figure.savefig(file, dpi=110)
