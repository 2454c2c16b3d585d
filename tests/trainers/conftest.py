"""Fixtures of the trainers' tests."""

from __future__ import annotations

import pytest


@pytest.fixture
def without_plots(monkeypatch: pytest.MonkeyPatch) -> None:
    """Skip curves.png, which takes a second, longer than a tiny training."""
    from agentsys.trainers import reporting

    monkeypatch.setattr(reporting, "plot_curves", lambda metrics, file: None)
