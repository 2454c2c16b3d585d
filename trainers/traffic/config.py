"""Names and sizes that the options and the networks share. It imports no torch: commands show their help without it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final, Literal, get_args

from agentsys.trainers.loading import TrainerError

NetworkName = Literal["extralonger", "separate", "dlinear", "stid", "itransformer"]
NETWORKS: Final[tuple[NetworkName, ...]] = get_args(NetworkName)

InputKind = Literal["plain", "revin", "profile", "ridge"]
INPUTS: Final[tuple[InputKind, ...]] = get_args(InputKind)

SplitKind = Literal["gapped", "published"]

Loss = Literal["quantile", "huber", "mae"]
QUANTILES: Final = (0.1, 0.5, 0.9)
"""The quantiles of the quantile loss: the band and the median, which is the forecast."""

Scope = Literal["both", "global", "local"]
"""Which halves of Global-Local attention are used; one alone is an ablation."""

Route = Literal["mixed", "spatial", "temporal"]
ROUTES: Final[tuple[Route, ...]] = get_args(Route)
FUSION: Final[dict[Route, float]] = {"mixed": 2.0, "spatial": 1.0, "temporal": 1.0}
"""The fixed weights of the routes, to be divided by their sum (step 5)."""


@dataclass(frozen=True, slots=True)
class Shape:
    """What a network must know of its data."""

    sensors: int
    steps_in: int
    steps_out: int
    steps_per_day: int
    channels: int = 1
    """Input channels C: the value, then what is not known in the future. The paper's setting has the value alone."""
    outputs: int = 1
    """Outputs per sensor and step: 1, or one for each quantile."""
    known: int = 0
    """Covariates K of each forecast step that are known beforehand, such as holidays. The paper has none."""


@dataclass(frozen=True, slots=True)
class ExtralongerConfig:
    """Widths of the paper's configuration for PEMS04; `calendar_dim` and what follows are additions to it."""

    value_dim: int = 128
    time_dim: int = 192
    day_dim: int = 192
    sensor_dim: int = 256
    feed_forward: int = 1024
    heads: int = 8
    layers: int = 1
    dropout: float = 0.0
    fusion: Literal["fixed", "learned"] = "fixed"
    routes: tuple[Route, ...] = ROUTES
    attention: Scope = "both"
    calendar_dim: int = 32

    def __post_init__(self) -> None:
        """Raises TrainerError for widths that do not fit together, and for no route."""
        if self.dim % self.heads:
            raise TrainerError(f"--heads {self.heads} must divide the width {self.dim} (value + time + day)")
        if not 0 < self.sensor_dim < self.dim:
            raise TrainerError(f"--sensor-dim {self.sensor_dim}: give a width between 1 and {self.dim - 1}")
        if not self.routes:
            raise TrainerError(f"--routes: give at least one of {', '.join(ROUTES)}")

    @property
    def dim(self) -> int:
        """Width d of a token."""
        return self.value_dim + self.time_dim + self.day_dim


Size = Literal["small", "pems04", "pems08", "seattle"]
SIZES: Final[Mapping[Size, ExtralongerConfig]] = {
    "small": ExtralongerConfig(64, 32, 32, 64, 256, 4),
    "pems04": ExtralongerConfig(128, 192, 192, 256, 1024, 8),
    "pems08": ExtralongerConfig(64, 64, 64, 64, 256, 4),
    "seattle": ExtralongerConfig(256, 128, 128, 256, 1024, 8),
}
"""Widths: small ones for few sensors, and those of the paper's three data sets (papers file, section 3.4)."""
