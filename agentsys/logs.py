"""The log file of a run, which has the notices of the run in progress with their times.

`agentsys.display.say` and `note` write to it. It is apart from Python's logging, so that a library call records what
happened without a change of the program's log levels, and two runs of one process never share a file.
"""

from __future__ import annotations

import io
from collections.abc import Callable
from contextlib import suppress
from contextvars import ContextVar
from datetime import datetime
from pathlib import Path
from typing import Final

__all__ = ["FILE", "RunLog", "write"]

FILE: Final = "run.log"
"""The log file in a run's folder."""
MAX_BYTES: Final = 2**22
"""Size from which on nothing more is written to a log file."""

_current: ContextVar[RunLog | None] = ContextVar("agentsys_run_log", default=None)


class RunLog:
    """Appends the notices of this context, its tasks and its threads to a file, from now until `close`.

    Those before `open`, as of a model that starts, are kept until then.
    """

    def __init__(self, mask: Callable[[str], str]) -> None:
        """`mask` removes secrets from a line."""
        self._mask = mask
        self._lines: list[bytes] = []
        self._file: io.FileIO | None = None
        self._left = MAX_BYTES
        self._token = _current.set(self)

    def open(self, path: Path) -> None:
        """Append to this file. Raises OSError if it cannot be written."""
        self._file = io.FileIO(path, "a")
        self._left -= self._file.tell()
        lines, self._lines = self._lines, []
        for line in lines:
            self._append(line)

    def write(self, text: str) -> None:
        """Append a line with the time."""
        time = datetime.now().astimezone().isoformat(timespec="seconds")
        line = f"{time} {self._mask(text)}\n".encode(errors="backslashreplace")
        if self._file is None:
            self._lines.append(line)
        else:
            self._append(line)

    def _append(self, line: bytes) -> None:
        """Append a line. On a full disk it is lost: the run itself reports that."""
        if self._file is None or self._left <= 0:
            return
        self._left -= len(line)
        with suppress(OSError):
            self._file.write(line if self._left > 0 else b"the log is full: nothing more is written to it\n")

    def close(self) -> None:
        """Close the file. Nothing is written any more."""
        _current.reset(self._token)
        self._left = 0
        if self._file is not None:
            self._file.close()


def write(line: str) -> None:
    """Append a line to the log file of the run in progress; outside a run, nothing happens."""
    if (log := _current.get()) is not None:
        log.write(line)
