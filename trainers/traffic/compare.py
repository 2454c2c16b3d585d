"""A trained model beside all baselines: same windows, same mask. `run` is the command `agentsys train extralonger`."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from agentsys.config import save_config
from agentsys.display import show
from agentsys.trainers.output import check_folder, check_resumed, find_start, write_settings
from agentsys.trainers.traffic.baselines import make_baselines
from agentsys.trainers.traffic.calendar import CalendarOptions
from agentsys.trainers.traffic.config import QUANTILES
from agentsys.trainers.traffic.experiment import Data, collect_settings, describe, options_to_compare, prepare, train
from agentsys.trainers.traffic.fit import State, memory_errors, predict
from agentsys.trainers.traffic.folder import TrafficModel, save_latest, save_model
from agentsys.trainers.traffic.forecast import forecast_window, naive_forecast, sensor_attention, trim_end, verdict
from agentsys.trainers.traffic.formats import DataOptions, read_series
from agentsys.trainers.traffic.metrics import Scores, evaluate_forecaster
from agentsys.trainers.traffic.model import Extralonger
from agentsys.trainers.traffic.options import FitOptions, GraphOptions, ModelOptions, TableOptions
from agentsys.trainers.traffic.report import (
    Row,
    make_rows,
    model_card,
    plot_attention,
    plot_forecast,
    plot_lead_times,
    print_table,
    rows_to_json,
)
from agentsys.trainers.traffic.scaling import median_of, spread_origins
from agentsys.trainers.traffic.splits import Windows
from agentsys.trainers.traffic.zero_shot import check_fracast, fracast_forecaster

SCRATCH = ".compare-"
"""Prefix of the folders in which networks of the table are trained."""
PICTURE_WINDOWS = 32
"""Test windows over which the attention of the picture is averaged."""


def run(
    data_options: DataOptions,
    model_options: ModelOptions,
    calendar_options: CalendarOptions,
    graph_options: GraphOptions,
    training: FitOptions,
    table_options: TableOptions,
) -> list[Row]:
    """Train, write the model folder, and print the table. Raises TrainerError, SeriesError among them."""
    out, paper = model_options.out, training.paper
    config, kind, networks = model_options.config(paper), model_options.input_kind(paper), table_options.networks
    check_folder(out)
    checkpoint, before = find_start(out, training.resume)
    series = read_series(data_options)
    data = prepare(series, data_options, model_options, calendar_options, graph_options, training)
    if table_options.fracast_python:
        check_fracast(table_options.fracast_python)
    options = (data_options, model_options, calendar_options, graph_options, training, table_options)
    settings = collect_settings(data, options)
    if checkpoint:
        check_resumed(before, settings, {item.name for group in options for item in fields(group)})
    for line in (*series.corrections, *data.graph.notes, describe(data)):
        show(line)
    out.mkdir(parents=True, exist_ok=True)
    for left in out.glob(f"{SCRATCH}*"):  # of a killed training
        shutil.rmtree(left)
    write_settings(out / "settings.json", settings)
    save_config(out)
    with memory_errors(training.batch):
        model, state = train(data, model_options.network, kind, config, training, out, checkpoint)
        save_model(out, model)
        save_latest(out, trim_end(series)[0], data.shape.steps_in)
        scorer = Scorer(data, table_options.test_windows, zeros=not paper)
        scorer.add_model(model, state.seconds)
        for network, input_kind in networks:
            if (network, input_kind) != (model.info.network, model.info.input):
                limited = options_to_compare(training, network, state.seconds)
                with tempfile.TemporaryDirectory(dir=out, prefix=SCRATCH) as folder:
                    other, ended = train(data, network, input_kind, config, limited, Path(folder))
                scorer.add_model(other, ended.seconds)
        for name, baseline in make_baselines(data.parts, data.holidays).items():
            scorer.add(name, baseline)
        if table_options.fracast_python:
            scorer.add(
                "fracast (zero-shot)",
                fracast_forecaster(table_options.fracast_python, series, scorer.origins, data.shape.steps_out),
                QUANTILES,
            )
        rows = make_rows(model.name, scorer.scores, scorer.seconds, scorer.parameters)
        write_results(data, model, state, rows, settings, out, scorer.origins)
    return rows


class Scorer:
    """Scores models on the same test windows, at most `most` of them (0: all)."""

    def __init__(self, data: Data, most: int, zeros: bool) -> None:
        self.data, self.zeros = data, zeros
        self.windows: Windows = data.parts.test
        self.origins = spread_origins(self.windows, most or len(self.windows))
        self.scores: dict[str, Scores] = {}
        self.seconds: dict[str, float] = {}
        self.parameters: dict[str, int] = {}

    def add_model(self, model: TrafficModel, seconds: float) -> None:
        """Score a trained model with its bands."""

        def forecast(origins: Tensor) -> Tensor:
            time_out = self.windows.batch(origins).time_out
            return model.with_bands(predict(model.forecaster, self.windows, origins), time_out)

        self.add(model.name, forecast, QUANTILES)
        self.seconds[model.name] = seconds
        self.parameters[model.name] = sum(weight.numel() for weight in model.forecaster.network.parameters())

    def add(self, name: str, forecast: Callable[[Tensor], Tensor], quantiles: tuple[float, ...] = ()) -> None:
        """Score a function of origins (B,)."""
        steps_out = self.data.shape.steps_out
        scores = Scores(self.data.series, steps_out, quantiles, special=self.data.holidays, zeros=self.zeros)
        self.scores[name] = evaluate_forecaster(forecast, self.windows.with_origins(self.origins), scores)


def write_results(
    data: Data,
    model: TrafficModel,
    state: State,
    rows: Sequence[Row],
    settings: Mapping[str, Any],
    out: Path,
    origins: Tensor,
) -> None:
    """Write report.json, pictures and README.md, and print the table and which forecast to use."""
    from agentsys.trainers.reporting import plot_curves, read_metrics  # it imports transformers

    line = verdict(model.info)
    overlap = describe_overlap(data, model, settings["split"], origins)
    report = {
        "verdict": line,
        "published_split": overlap,
        "validation_mae": model.info.validation,
        "band_factor": model.info.band_factor,
        "corrections": list(data.series.corrections),
        "graph": data.graph.source,
        "data": describe(data),
        "test_windows": len(origins),
        "epochs": state.epoch,
        "best_epoch": state.best_epoch,
        "steps": state.step,
        "seconds": state.seconds,
        "validation_loss_after": state.best_loss,
        "device": "cuda" if torch.cuda.is_available() else f"cpu, {torch.get_num_threads()} threads",
        "table": rows_to_json(rows),
    }
    write_settings(out / "report.json", report)
    plot_curves(read_metrics(out / "metrics.jsonl"), out / "curves.png")
    pictures = ["curves.png", "week.png", "lead.png"]
    middle = origins[len(origins) // 2 : len(origins) // 2 + 1]
    forecast = forecast_window(model, data.parts.test, int(middle))
    actual = data.series.between(int(middle), int(middle) + data.shape.steps_out)
    plot_forecast(forecast, out / "week.png", actual)
    plot_lead_times(rows, out / "lead.png", data.series.step)
    if isinstance(model.forecaster.network, Extralonger) and "spatial" in model.info.config.routes:
        some = origins[:: max(1, len(origins) // PICTURE_WINDOWS)]
        plot_attention(sensor_attention(model, data.parts.test, some), model.info.sensors, out / "attention.png")
        pictures.append("attention.png")
    facts = [describe(data), *data.series.corrections, line, *filter(None, [overlap])]
    (out / "README.md").write_text(model_card(settings, facts, rows, pictures), encoding="utf-8")
    print_table(rows, f"{len(origins)} test windows, {data.parts.test.series.local[int(origins[0])]} on")
    for text in filter(None, (overlap, line)):
        show(text)
    show(f"{out}: model.safetensors, report.json, README.md, {', '.join(pictures)}")


def describe_overlap(data: Data, model: TrafficModel, split: str, origins: Tensor) -> str:
    """By how much the published split flatters: the model on all test windows, and on those that share no step.

    The first test windows of that split read, and are scored on, steps that training and validation have used as
    targets. Empty for the gapped split.
    """
    if split != "published":
        return ""
    seen = int(data.parts.validation.origins[-1]) + data.shape.steps_out
    apart = origins[origins - data.shape.steps_in >= seen]
    if not len(apart):
        return "published split: every test window shares steps with the validation part: nothing to compare"
    ratios = []
    for some in (origins, apart):
        window = data.parts.test.batch(some)
        forecast = predict(model.forecaster, data.parts.test, some)
        naive = naive_forecast(model, data.parts.test, some)
        errors = [float((one - window.y).abs()[window.mask].mean()) for one in (median_of(forecast), naive)]
        ratios.append(errors[0] / errors[1])
    return (
        f"published split: MAE over that of the scaled profile {ratios[0]:.3f} on all test windows, {ratios[1]:.3f} on "
        f"the {len(apart)} of {len(origins)} that share no step with training or validation"
    )
