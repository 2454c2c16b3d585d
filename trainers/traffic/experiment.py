"""From a table of values to a trained model: options, windows, network, training, bands."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import torch

from agentsys.trainers.loading import TrainerError
from agentsys.trainers.traffic.calendar import CalendarOptions, calendar_covariates
from agentsys.trainers.traffic.config import (
    ExtralongerConfig,
    InputKind,
    NetworkName,
    Shape,
)
from agentsys.trainers.traffic.fit import State, coverage_factor, fit, predict, residual_bands
from agentsys.trainers.traffic.folder import ModelInfo, TrafficModel, make_forecaster
from agentsys.trainers.traffic.forecast import naive_forecast
from agentsys.trainers.traffic.formats import ONE_FILE, DataOptions
from agentsys.trainers.traffic.graph import Graph, make_graph
from agentsys.trainers.traffic.grid import parse_duration
from agentsys.trainers.traffic.options import FitOptions, GraphOptions, ModelOptions
from agentsys.trainers.traffic.scaling import best_lead_weights, median_of, spread_origins
from agentsys.trainers.traffic.series import Series
from agentsys.trainers.traffic.splits import Parts, Windows, split_windows

RATES: Final[Mapping[NetworkName, float]] = {"dlinear": 1e-3, "stid": 2e-3, "itransformer": 1e-3}
"""Learning rates of small networks in the table, which train faster at higher rates than Extralonger."""


def options_to_compare(training: FitOptions, network: NetworkName, seconds: float) -> FitOptions:
    """How a network of the table is trained: as long as the model took, with early stopping, at its own rate."""
    rate = RATES.get(network, training.rate)
    return replace(training, learning_rate=rate, seconds=max(seconds, 1.0), epochs=10_000, resume=False)


@dataclass(frozen=True, slots=True)
class Data:
    """What all models of a table share."""

    series: Series
    parts: Parts
    shape: Shape
    graph: Graph
    """Who is a neighbor in local attention."""
    has_holidays: bool
    """Whether column 0 of the covariates marks public holidays."""
    data_options: DataOptions
    calendar_options: CalendarOptions

    @property
    def holidays(self) -> npt.NDArray[np.bool_] | None:
        """(T,) steps on public holidays; None without a calendar of them."""
        covariates = self.parts.train.covariates
        return covariates[:, 0].numpy() > 0 if self.has_holidays and covariates is not None else None


def prepare(
    series: Series,
    data_options: DataOptions,
    model_options: ModelOptions,
    calendar_options: CalendarOptions,
    graph_options: GraphOptions,
    training: FitOptions,
) -> Data:
    """Windows, covariates, local mask and shape of a series. Raises SeriesError if it is too short."""
    steps_out = parse_horizon(model_options.out_horizon, series.step, "--out-horizon")
    steps_in = parse_horizon(model_options.in_horizon, series.step, "--in-horizon") if model_options.in_horizon else 0
    calendar = calendar_covariates(series, calendar_options)
    known, names = calendar or (None, ())
    parts = split_windows(series, steps_in or steps_out, steps_out, model_options.split, known)
    shape = Shape(
        sensors=len(series.sensors),
        steps_in=steps_in or steps_out,
        steps_out=steps_out,
        steps_per_day=series.steps_per_day,
        channels=1 if training.paper else series.values.shape[2] + 1,
        outputs=training.outputs,
        known=len(names),
    )
    has_holidays = bool(calendar_options.country)
    return Data(series, parts, shape, make_graph(parts, graph_options), has_holidays, data_options, calendar_options)


def parse_horizon(text: str, step: int, option: str) -> int:
    """Steps of a horizon: week, day, a duration such as 12h, or a number of steps. Raises TrainerError."""
    if text.isdigit():
        steps = int(text)
    else:
        steps, rest = divmod(parse_duration(text, option), step)
        if rest:
            raise TrainerError(f"{option} {text}: give a multiple of the step of {step / 60:g} minutes")
    if steps < 1:
        raise TrainerError(f"{option} {text}: give at least one step of {step / 60:g} minutes")
    return steps


def describe(data: Data) -> str:
    """What is trained on, in one line."""
    parts, shape = data.parts, data.shape
    counts = " / ".join(f"{len(part):,}" for part in (parts.train, parts.validation, parts.test))
    return (
        f"{shape.sensors} sensors, {len(data.series):,} steps of {data.series.step / 60:g} minutes; {shape.steps_in} "
        f"steps in, {shape.steps_out} out; windows for training / validation / test: {counts}; local attention: "
        f"{data.graph.source}"
    )


def collect_settings(data: Data, options: Sequence[Any]) -> dict[str, Any]:
    """All options and a digest of the data: what a resumed training must share."""
    ignored = {"resume", "out"}
    settings: dict[str, Any] = {"method": "Extralonger"}
    for group in options:
        settings |= {
            name: str(value) if isinstance(value, Path) else value
            for name, value in asdict(group).items()
            if name not in ignored
        }
    values = np.ascontiguousarray(data.series.values)
    settings["data_sha256"] = hashlib.sha256(values.tobytes() + data.series.times.tobytes()).hexdigest()[:16]
    return settings


def train(
    data: Data,
    network: NetworkName,
    kind: InputKind,
    config: ExtralongerConfig,
    options: FitOptions,
    out: Path,
    checkpoint: Path | None = None,
) -> tuple[TrafficModel, State]:
    """Train one network and calibrate its bands on the validation part."""
    torch.manual_seed(options.seed)
    mask = torch.from_numpy(data.graph.mask)
    forecaster = make_forecaster(network, data.shape, mask, config, kind, data.has_holidays)
    forecaster.fit_scaling(data.parts.train, data.parts.validation, data.parts.train_steps)
    state = fit(forecaster, data.parts.train, data.parts.validation, options, out, checkpoint=checkpoint, label=network)
    forecaster.to("cpu")
    info = ModelInfo(
        network=network,
        shape=data.shape,
        config=config,
        input=kind,
        sensors=data.series.sensors,
        step=data.series.step,
        zone=data.series.zone,
        data={name: value for name, value in asdict(data.data_options).items() if name not in ONE_FILE},
        calendar=asdict(data.calendar_options),
        holidays=data.has_holidays,
        nonnegative=bool(data.parts.train.target[: data.parts.train_steps].min() >= 0),
    )
    model = TrafficModel(info, forecaster, mask, torch.zeros(0))
    return calibrate(model, data.parts.validation, options), state


def calibrate(model: TrafficModel, validation: Windows, options: FitOptions) -> TrafficModel:
    """The model with what validation decides: weights of lead times, bands, and its MAE beside the naive one."""
    origins = spread_origins(validation, min(options.validation_windows or 500, 500))
    forecast = predict(model.forecaster, validation, origins)
    window = validation.batch(origins)
    if model.forecaster.corrects:
        weights = model.forecaster.lead_weights
        weights.zero_()
        base = predict(model.forecaster, validation, origins)
        weights.copy_(best_lead_weights(median_of(base), median_of(forecast), window.y, window.mask))
        forecast = predict(model.forecaster, validation, origins)
    naive = naive_forecast(model, validation, origins)
    factor, bands = 1.0, model.bands
    if forecast.ndim == 4:
        factor = coverage_factor(forecast, window.y, window.mask, validation.independent)
    else:
        steps_per_day = model.info.shape.steps_per_day
        bands = residual_bands(forecast, window.y, window.mask, window.time_out[..., 0], steps_per_day)
    median = median_of(forecast)
    median = median.clamp(min=0) if model.info.nonnegative else median
    errors = [float((one - window.y).abs()[window.mask].mean()) for one in (median, naive)]
    info = replace(model.info, band_factor=factor, validation={"model": errors[0], "naive": errors[1]})
    return replace(model, info=info, bands=bands)
