"""Shared by the tests of several evaluations: reading the report, running a command, and how a run can end."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from agentsys.commands import command, run_app
from agentsys.models import EndpointDown

COLLECT = "agentsys.evaluation.run.collect"
"""What `breaking` replaces."""
ENDINGS = pytest.mark.parametrize(
    ("error", "code", "words"),
    [
        (EndpointDown("no server is reachable at http://nobody"), 1, "http://nobody"),
        (KeyboardInterrupt(), 130, "the same command"),
    ],
)
Run = Callable[..., tuple[int, str, str]]
"""A command with options: its exit code, stdout and stderr."""


def breaking(error: BaseException) -> Callable[..., None]:
    """A `collect` that raises an error."""

    def broken(*_: Any, **__: Any) -> None:
        raise error

    return broken


def run_command(
    main: Callable[..., None], capsys: pytest.CaptureFixture[str], *options: object
) -> tuple[int, str, str]:
    """Run a command in this process: exit code, stdout and stderr."""
    code = run_app(command(main), [str(option) for option in options])
    output = capsys.readouterr()
    return code, output.out, output.err


def read_report(out: Path) -> dict[str, Any]:
    """evaluation.json."""
    report: dict[str, Any] = json.loads((out / "evaluation.json").read_text())
    return report


def read_lines(path: Path) -> list[dict[str, Any]]:
    """A file of JSON lines."""
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
