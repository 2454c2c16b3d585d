"""The row of fracast, with a stand-in for the package: what it gets, where its forecasts go, and what it says."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from agentsys.trainers.loading import TrainerError
from agentsys.trainers.traffic.zero_shot import check_fracast, fracast_forecaster
from tests.support.traffic import make_series

STAND_IN = """
import numpy as np
class FracastModel:
    context_length, quantiles = 12, [0.1, 0.3, 0.5, 0.7, 0.9]
    @classmethod
    def from_pretrained(cls):
        return cls()
    def forecast(self, context, *, horizon):
        assert context.shape[1] <= 12
        last = np.nanmax(context, axis=1)
        return last[:, None, None] + np.arange(horizon)[None, :, None] + 10 * np.array(self.quantiles)
"""


@pytest.fixture
def fracast(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "fracast.py").write_text(STAND_IN)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    return tmp_path / "fracast.py"


def test_each_window_gets_the_values_before_it(fracast: Path) -> None:
    values = np.stack([np.arange(40.0), np.full(40, np.nan)], axis=1)
    check_fracast(Path(sys.executable))
    forecast = fracast_forecaster(Path(sys.executable), make_series(values), torch.tensor([15, 20, 30]), steps=3)
    table = forecast(torch.tensor([30, 15]))
    assert table.shape == (2, 3, 2, 3)
    np.testing.assert_allclose(table[0, :, 0], 29 + np.arange(3)[:, None] + np.array([1.0, 5, 9]))
    np.testing.assert_allclose(table[1, 0, 0], 14 + np.array([1.0, 5, 9]))
    assert (table[:, :, 1] == 0).all(), "a sensor without values"


def test_what_goes_wrong_is_one_line(fracast: Path) -> None:
    fracast.write_text("raise ImportError('no torch here')")
    with pytest.raises(TrainerError, match="fracast cannot be imported: ImportError: no torch here"):
        check_fracast(Path(sys.executable))
    with pytest.raises(TrainerError, match="no-python: No such file or directory; give a Python that has fracast"):
        check_fracast(Path("no-python"))
    fracast.write_text(STAND_IN.replace("return cls()", "raise RuntimeError('bad weights')"))
    with pytest.raises(TrainerError, match="fracast failed: RuntimeError: bad weights: leave --fracast-python out"):
        fracast_forecaster(Path(sys.executable), make_series(np.arange(40.0)), torch.tensor([20]), steps=3)
