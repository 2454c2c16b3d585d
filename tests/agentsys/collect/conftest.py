"""Fixtures of a run with a scripted model."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.support.toys import RULES, paid_calls, write_lines


@pytest.fixture
def script(tmp_path: Path) -> Path:
    return write_lines(tmp_path / "replies.jsonl", [{"role": "greeter", "replies": ["good day"]}, *RULES])


@pytest.fixture
def model(tmp_path: Path, script: Path) -> str:
    """A scripted model whose calls are counted in calls.log."""
    return f"langchain:tests.support.toys:LoggedChatModel?script={script}&log={tmp_path / 'calls.log'}"


@pytest.fixture
def calls(tmp_path: Path) -> Callable[[], int]:
    """The number of paid calls so far."""
    return lambda: len(paid_calls(tmp_path / "calls.log"))
