"""The options of `agentsys train extralonger`, besides those of the data and of the calendar."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import ClassVar, Final, Literal

from agentsys.commands import knob
from agentsys.trainers.loading import TrainerError
from agentsys.trainers.traffic.config import (
    INPUTS,
    NETWORKS,
    QUANTILES,
    ROUTES,
    SIZES,
    ExtralongerConfig,
    InputKind,
    Loss,
    NetworkName,
    Scope,
    Size,
    SplitKind,
)
from agentsys.trainers.traffic.series import SeriesError


@dataclass(frozen=True)
class ModelOptions:
    """The model, its horizons, and how the data is split."""

    panel: ClassVar[str] = "Model"
    out_horizon: str = knob("week", "how far to forecast: week, day, a duration such as 12h, or a number of steps")
    in_horizon: str = knob("", "how much of the past to read, in the same way; default: as far as the forecast")
    split: SplitKind = knob("gapped", "gapped: no step is in two parts; published: the released code's windows")
    network: NetworkName = knob("extralonger", "network to train; the others are for comparison")
    size: Size = knob("small", "widths: small, or those of the paper for pems04, pems08 or seattle")
    layers: int = knob(1, "layers of each route")
    input: InputKind | None = knob(
        None,
        "plain; revin: each window normalized; profile: the residual of the scaled weekly profile; ridge: that of a "
        "ridge regression on it, the default; plain with --paper",
    )
    routes: list[str] = knob((), "routes to use: mixed, spatial, temporal; repeatable; default all")
    attention: Scope = knob("both", "halves of Global-Local attention")
    fusion: Literal["fixed", "learned"] = knob("fixed", "weights of the routes: 2:1:1, or learned from there")
    dropout: float | None = knob(None, "dropout; default 0.1, with --paper 0")
    out: Path = knob(Path("model"), "output folder")

    def __post_init__(self) -> None:
        """Raises TrainerError for a dropout or a number of layers that cannot be."""
        if self.dropout is not None and not 0 <= self.dropout < 1:
            raise TrainerError(f"--dropout {self.dropout}: give a number from 0 to below 1")
        if self.layers < 1:
            raise TrainerError(f"--layers {self.layers}: give at least 1")

    def config(self, paper: bool) -> ExtralongerConfig:
        """The configuration of the network. Raises TrainerError for an unknown route."""
        dropout = self.dropout if self.dropout is not None else 0.0 if paper else 0.1
        config = replace(
            SIZES[self.size], layers=self.layers, dropout=dropout, fusion=self.fusion, attention=self.attention
        )
        if unknown := [route for route in self.routes if route not in ROUTES]:
            raise TrainerError(f"--routes {unknown[0]}: the routes are {', '.join(ROUTES)}")
        return replace(config, routes=tuple(r for r in ROUTES if r in self.routes)) if self.routes else config

    def input_kind(self, paper: bool) -> InputKind:
        """What the network reads and what its output is added to."""
        return self.input or ("plain" if paper else "ridge")


@dataclass(frozen=True)
class TableOptions:
    """The table of models."""

    panel: ClassVar[str] = "Table"
    compare: str = knob(
        "dlinear,stid,itransformer",
        "networks to train as long as the model, each as NAME or NAME:INPUT (default input plain); empty: none",
    )
    fracast_python: Path | None = knob(
        None, "a Python that has the package fracast: a row of its zero-shot forecasts; without it no such row"
    )
    test_windows: int = knob(1_000, "test windows at most, spread over the part; 0: all")

    @property
    def networks(self) -> list[tuple[NetworkName, InputKind]]:
        """Networks and their inputs. Raises TrainerError for an unknown one."""
        networks: list[tuple[NetworkName, InputKind]] = []
        for entry in filter(None, (part.strip() for part in self.compare.split(","))):
            text, _, kind_text = entry.partition(":")
            name = next((name for name in NETWORKS if name == text), None)
            kind = next((kind for kind in INPUTS if kind == (kind_text or "plain")), None)
            if name is None or kind is None:
                raise TrainerError(
                    f"--compare {entry}: give NAME or NAME:INPUT with a name of {', '.join(NETWORKS)} and an input of "
                    f"{', '.join(INPUTS)}"
                )
            networks.append((name, kind))
        return networks


@dataclass(frozen=True)
class GraphOptions:
    """Which sensors are neighbors."""

    panel: ClassVar[str] = "Graph"
    edges: str = knob("", "CSV file of edges (from, to), CSV matrix, or JSON data set; default: by correlation")
    coordinates: str = knob("", "CSV file with columns sensor, latitude, longitude: the nearest are neighbors")

    def __post_init__(self) -> None:
        """Raises SeriesError for two sources."""
        if self.edges and self.coordinates:
            raise SeriesError("--edges and --coordinates: give one of them")


_DEFAULTS: Final = {"learning_rate": 3e-4, "loss": "quantile", "windows": 2_000}


@dataclass(frozen=True)
class FitOptions:
    """The training loop."""

    panel: ClassVar[str] = "Training"
    paper: bool = knob(
        False,
        "the paper's setting: --input plain, Huber loss, rate 1e-4, no dropout, all windows, values alone as input",
    )
    epochs: int = knob(50, "epochs at most")
    patience: int = knob(5, "epochs without a lower validation loss after which the training ends")
    batch: int = knob(16, "windows per optimizer step")
    learning_rate: float | None = knob(None, "learning rate of Adam; default 3e-4, with --paper 1e-4")
    milestones: list[int] = knob((), "epoch after which the learning rate is divided by 10; repeatable")
    loss: Loss | None = knob(
        None, "quantile: pinball loss of 10, 50 and 90 %, the default; huber (delta 1, default with --paper); mae"
    )
    windows: int | None = knob(
        None, "training windows per epoch, drawn anew in each; 0: all; default 2,000, with --paper 0"
    )
    validation_windows: int = knob(500, "validation windows at most, spread over the part; 0: all")
    seconds: float = knob(0.0, "time limit of the training in seconds; 0: none")
    seed: int = knob(0, "seed of the weights and of the order of windows")
    bf16: bool = knob(False, "compute in bfloat16; the weights stay in float32")
    resume: bool = knob(False, "continue from the last checkpoint in --out", once=True)

    def __post_init__(self) -> None:
        """Fill in the defaults of the setting. Raises TrainerError for numbers that cannot train."""
        defaults = {"learning_rate": 1e-4, "loss": "huber", "windows": 0} if self.paper else _DEFAULTS
        for name, value in defaults.items():
            if getattr(self, name) is None:
                object.__setattr__(self, name, value)
        for name in ("epochs", "patience", "batch"):
            if getattr(self, name) < 1:
                raise TrainerError(f"--{name} {getattr(self, name)}: give at least 1")
        if not self.rate > 0:
            raise TrainerError(f"--learning-rate {self.rate}: give a positive number")
        if not all(value >= 0 for value in (self.windows or 0, self.validation_windows, self.seconds)):
            raise TrainerError("--windows, --validation-windows and --seconds: give 0 or more")

    @property
    def rate(self) -> float:
        """The first learning rate."""
        return self.learning_rate or 0.0

    @property
    def outputs(self) -> int:
        """Outputs per sensor and step of the forecast."""
        return len(QUANTILES) if self.loss == "quantile" else 1
