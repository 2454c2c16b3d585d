"""fracast (github.com/ztxtech/fracast-0), a zero-shot forecaster of 85,001 parameters: a row of the table.

It runs in a Python of its own (`--fracast-python`), so that its dependencies are nobody else's. It reads the 2,048
steps before a window, also those of the parts before, one sensor at a time, without a calendar.
"""

from __future__ import annotations

import subprocess
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Final

import numpy as np
import torch
from torch import Tensor

from agentsys.display import show
from agentsys.trainers.loading import TrainerError
from agentsys.trainers.traffic.series import Series

SCRIPT: Final = """
import sys
import numpy as np
from fracast import FracastModel
values, origins, steps, result = np.load(sys.argv[1]), np.load(sys.argv[2]), int(sys.argv[3]), sys.argv[4]
model = FracastModel.from_pretrained()
levels = [model.quantiles.index(level) for level in (0.1, 0.5, 0.9)]
forecasts = np.zeros((len(origins), steps, values.shape[1], 3), np.float32)
for i, origin in enumerate(origins):
    context = values[max(0, origin - model.context_length):origin].T
    known = np.flatnonzero(np.isfinite(context).sum(1) >= 8)
    if len(known):
        forecasts[i][:, known] = model.forecast(context[known], horizon=steps)[:, :, levels].transpose(1, 0, 2)
np.save(result, forecasts)
"""
"""Forecasts (W, O, N, 3) of the steps after each origin; 0 for a sensor with fewer than 8 values before it."""


def check_fracast(python: Path) -> None:
    """Raises TrainerError if that interpreter cannot import fracast."""
    try:
        tried = subprocess.run([python, "-c", "import fracast"], capture_output=True, text=True, check=False)
    except OSError as err:
        raise TrainerError(f"--fracast-python {python}: {err.strerror}; give a Python that has fracast") from None
    if tried.returncode:
        raise TrainerError(f"--fracast-python {python}: fracast cannot be imported: {_last_line(tried.stderr)}")


def fracast_forecaster(python: Path, series: Series, origins: Tensor, steps: int) -> Callable[[Tensor], Tensor]:
    """A function from origins (B,), which must be among `origins`, to forecasts (B, O, N, 3). Raises TrainerError."""
    show(f"fracast forecasts {len(origins):,} windows of {len(series.sensors)} sensors")
    with tempfile.TemporaryDirectory() as folder:
        files = [Path(folder) / name for name in ("values.npy", "origins.npy", "forecasts.npy")]
        np.save(files[0], series.target)
        np.save(files[1], origins.numpy())
        command: list[str | Path] = [python, "-c", SCRIPT, files[0], files[1], str(steps), files[2]]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            raise TrainerError(f"fracast failed: {_last_line(done.stderr)}: leave --fracast-python out")
        forecasts = torch.from_numpy(np.load(files[2]))
    positions = {int(origin): index for index, origin in enumerate(origins)}
    return lambda chosen: forecasts[[positions[int(origin)] for origin in chosen]]


def _last_line(output: str) -> str:
    return (output.strip().splitlines() or ["no message"])[-1]
