"""What the tests of several evaluations share: the report, and what ends a run."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from agentsys.models import EndpointDown

ENDINGS = pytest.mark.parametrize(
    ("error", "code", "words"),
    [
        (EndpointDown("no server answers at http://nobody"), 1, "http://nobody"),
        (KeyboardInterrupt(), 130, "the same command goes on"),
    ],
)


def breaking(error: BaseException) -> Callable[..., None]:
    """A `collect` that ends so."""

    def broken(*_: Any, **__: Any) -> None:
        raise error

    return broken


def read(out: Path) -> dict[str, Any]:
    """evaluation.json."""
    report: dict[str, Any] = json.loads((out / "evaluation.json").read_text())
    return report
