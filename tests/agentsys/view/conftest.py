"""Runs and a browser that the viewer's tests share."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.support.pages import hostile_run, open_browser, refined_run, searched_run


@pytest.fixture(scope="module")
def browser(runs: dict[str, Path]) -> Iterator[Any]:
    """A headless Chromium. It comes after the runs: while it is open, this thread has an event loop."""
    with open_browser() as browser:
        yield browser


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Folders of finished runs by name; tests do not change them."""
    folder = tmp_path_factory.mktemp("runs")
    return {
        "hostile": hostile_run(folder / "hostile", folder / "cache1"),
        "first": refined_run(folder / "first", folder / "cache2"),
        "second": refined_run(folder / "second", folder / "cache3", max_rounds=2),
        "searched": searched_run(folder / "searched", folder / "cache4"),
    }
