"""A line of the report, and facts from child processes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import dataclass
from typing import Any, Final, Literal

Status = Literal["ok", "warning", "problem"]

STYLES: Final[dict[Status, str]] = {"ok": "green", "warning": "yellow", "problem": "red"}
CHILD_SECONDS: Final = 60


@dataclass(frozen=True, slots=True)
class Finding:
    """One line of the report. `local` marks what only the embedded model needs: with a server it is no problem."""

    area: str
    status: Status
    text: str
    fix: str = ""
    local: bool = False

    @property
    def message(self) -> str:
        """The text and the fix; what is ok has a hint instead of a fix."""
        if not self.fix:
            return self.text
        return f"{self.text}: {self.fix}" if self.status == "ok" else f"{self.text}; fix: {self.fix}"


class ChildError(str):
    """Why a child process printed no result."""


def run_child(code: str, python: str = sys.executable) -> Any:
    """Return the JSON in the last line that Python code prints in a process of its own, or a ChildError."""
    environment = os.environ | {"PYTHONSAFEPATH": "1"}  # a torch.py in the working folder is not torch
    command = [python, "-c", code]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=CHILD_SECONDS, env=environment)
    except subprocess.TimeoutExpired:
        return ChildError(f"no result within {CHILD_SECONDS} s")
    except OSError as err:
        return ChildError(err.strerror or str(err))
    if done.returncode < 0:
        return ChildError(f"it ended by signal {-done.returncode}")
    if done.returncode:
        lines = done.stderr.strip().splitlines() or [f"exit code {done.returncode}"]
        return ChildError(lines[-1].strip()[:200])
    try:
        return json.loads(done.stdout.splitlines()[-1])
    except (IndexError, ValueError):
        return ChildError("it printed no result")


def gigabytes(size: int) -> str:
    """Return a size in bytes as text."""
    return f"{size / 1e9:.1f} GB"
