"""A trained model's folder: how it is written and read, and the networks by name.

model.safetensors   weights, scaling, local mask and bands
model.json          what is needed to build the network, to read its data, and to say how good it is
latest.npz          the last steps of the training's data: what the model forecasts from if no other data is given
"""

from __future__ import annotations

import json
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from agentsys.trainers.loading import TrainerError
from agentsys.trainers.output import write_settings
from agentsys.trainers.traffic.config import ExtralongerConfig, InputKind, NetworkName, Shape
from agentsys.trainers.traffic.control import SeparateAttention
from agentsys.trainers.traffic.model import Extralonger
from agentsys.trainers.traffic.neural import STID, DLinear, ITransformer
from agentsys.trainers.traffic.scaling import Forecaster
from agentsys.trainers.traffic.series import Series

FILE: Final = "model.json"
_WEIGHTS: Final = "model.safetensors"
_LATEST: Final = "latest.npz"


@dataclass(frozen=True, slots=True)
class ModelInfo:
    """What a model folder says of its model."""

    network: NetworkName
    shape: Shape
    config: ExtralongerConfig
    input: InputKind
    sensors: tuple[str, ...]
    step: int
    """Seconds of a step."""
    zone: str
    data: Mapping[str, Any]
    """Options with which a file is read."""
    calendar: Mapping[str, Any]
    """Options of the calendar; empty without one."""
    holidays: bool = False
    """Whether column 0 of the known covariates marks public holidays."""
    nonnegative: bool = False
    """Whether forecasts below 0 become 0, as for counts."""
    band_factor: float = 1.0
    """Factor of the quantiles' distances from the median (`coverage_factor`)."""
    validation: Mapping[str, float] | None = None
    """MAE on the validation part: `model` and `naive` (the scaled weekly profile)."""


@dataclass(frozen=True, slots=True)
class TrafficModel:
    """A trained model with the bands of its forecasts."""

    info: ModelInfo
    forecaster: Forecaster
    mask: Tensor
    """(N, N) bool, the road graph of local attention."""
    bands: Tensor
    """(steps_per_day, N, 2) what is added to a forecast without quantiles for its band; empty with quantiles."""

    @property
    def name(self) -> str:
        """Network and input, as in tables."""
        return f"{self.info.network} ({self.info.input})"

    def with_bands(self, forecast: Tensor, time_out: Tensor) -> Tensor:
        """(W, O, N, 3) low, forecast and high, of (W, O, N) or (W, O, N, 3) from `predict` and the times (W, O, 2)."""
        if forecast.ndim == 4:
            low, median, high = forecast.unbind(-1)
            factor = self.info.band_factor
            low, high = median - factor * (median - low), median + factor * (high - median)
        else:
            median = forecast
            band = self.bands[time_out[..., 0]]
            low, high = median + band[..., 0].clamp(max=0), median + band[..., 1].clamp(min=0)
        stacked = torch.stack([low, median, high], -1)
        return stacked.clamp(min=0) if self.info.nonnegative else stacked


def make_network(name: NetworkName, shape: Shape, mask: Tensor, config: ExtralongerConfig) -> nn.Module:
    """A network with new weights; `mask` and `config` are those of the attention models."""
    if name == "extralonger":
        return Extralonger(shape, mask, config)
    if name == "separate":
        return SeparateAttention(shape, config)
    return {"dlinear": DLinear, "stid": STID, "itransformer": ITransformer}[name](shape)


def make_forecaster(
    name: NetworkName, shape: Shape, mask: Tensor, config: ExtralongerConfig, kind: InputKind, holidays: bool
) -> Forecaster:
    """A network with new weights and the scaling around it, not fitted yet."""
    return Forecaster(
        make_network(name, shape, mask, config),
        kind,
        shape.sensors,
        shape.steps_per_day,
        (shape.steps_in, shape.steps_out),
        flag=shape.channels > 1,
        holidays=holidays,
        known=shape.known,
    )


def save_model(folder: Path, model: TrafficModel) -> None:
    """Write a model's folder; model.json is written last."""
    folder.mkdir(parents=True, exist_ok=True)
    tensors = {f"forecaster.{name}": value.contiguous().cpu() for name, value in model.forecaster.state_dict().items()}
    save_file(tensors | {"mask": model.mask.cpu(), "bands": model.bands.cpu()}, folder / _WEIGHTS)
    write_settings(folder / FILE, asdict(model.info))


def load_model(folder: Path) -> TrafficModel:
    """A model from its folder. Raises TrainerError for a folder without a model, and for a damaged one."""
    file = folder / FILE
    if not file.is_file():
        raise TrainerError(f"{folder} has no {FILE}: give the output folder of `agentsys train extralonger`")
    try:
        values = json.loads(file.read_text(encoding="utf-8"))
        values["shape"] = Shape(**values["shape"])
        config = values["config"]
        values["config"] = ExtralongerConfig(**config | {"routes": tuple(config["routes"])})
        info = ModelInfo(**values | {"sensors": tuple(values["sensors"])})
        tensors = load_file(folder / _WEIGHTS)
        mask, bands = tensors.pop("mask"), tensors.pop("bands")
        forecaster = make_forecaster(info.network, info.shape, mask, info.config, info.input, info.holidays)
        forecaster.load_state_dict({name.removeprefix("forecaster."): value for name, value in tensors.items()})
    except (ValueError, KeyError, TypeError, OSError, RuntimeError) as err:
        reason = " ".join(str(err).split())[:150]
        raise TrainerError(f"{folder} is damaged or of another version ({reason}): train it again") from None
    except Exception as err:  # safetensors has its own class, which is no ValueError
        if type(err).__name__ != "SafetensorError":
            raise
        raise TrainerError(f"{folder / _WEIGHTS} is damaged: train the model again") from None
    forecaster.eval()
    return TrafficModel(info, forecaster, mask, bands)


def save_latest(folder: Path, series: Series, steps: int) -> None:
    """Write the last `steps` steps of a series."""
    last = series.between(max(len(series) - steps, 0), len(series))
    np.savez_compressed(folder / _LATEST, values=last.values, times=last.times.astype(np.int64))


def load_latest(folder: Path, info: ModelInfo) -> Series:
    """The last steps of the training's data. Raises TrainerError if the folder has none, or damaged ones."""
    file = folder / _LATEST
    if not file.is_file():
        raise TrainerError(f"{folder} has no {_LATEST}: give the latest values with --data")
    try:
        with np.load(file, allow_pickle=False) as arrays:
            times = arrays["times"].astype("datetime64[s]")
            return Series(arrays["values"], times, info.step, info.sensors, info.zone)
    except (OSError, EOFError, KeyError, ValueError, zipfile.BadZipFile) as err:
        raise TrainerError(f"{file} is damaged ({' '.join(str(err).split())[:100]}): give the latest values") from None


def check_sensors(info: ModelInfo, sensors: Sequence[str], name: str) -> None:
    """Raises TrainerError if the data lacks a sensor of the model."""
    missing = [sensor for sensor in info.sensors if sensor not in sensors]
    if missing:
        shown = ", ".join(missing[:5]) + (f" and {len(missing) - 5} more" if len(missing) > 5 else "")
        raise TrainerError(
            f"{name} has no sensor {shown}: the model was trained on {len(info.sensors)} sensors and needs all of them"
        )
