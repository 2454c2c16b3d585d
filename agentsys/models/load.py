"""How many cores the other processes of this machine keep busy."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Final

SECONDS: Final = 0.4
"""Seconds over which the load is measured."""
_STAT: Final = Path("/proc/stat")
_BUSY: Final = (0, 1, 2, 5, 6)
"""Columns of /proc/stat without waiting and stolen time: user, nice, system, irq, softirq."""


def measure_other_load(
    stat: Path = _STAT,
    own_seconds: Callable[[], float] = time.process_time,
    sleep: Callable[[float], None] = time.sleep,
) -> float | None:
    """Cores that other processes used in the last SECONDS, at least 0; None where there is no /proc/stat (not Linux).

    `own_seconds` returns the CPU seconds of this process, which do not count.
    """
    before = _busy_seconds(stat)
    if before is None:
        return None
    own, started = own_seconds(), time.perf_counter()
    sleep(SECONDS)
    elapsed = max(time.perf_counter() - started, SECONDS)
    after = _busy_seconds(stat)
    return None if after is None else max(0.0, (after - before - (own_seconds() - own)) / elapsed)


def _busy_seconds(stat: Path) -> float | None:
    """CPU seconds of all processes since the start of the machine."""
    try:
        name, *ticks = stat.read_text().split("\n", 1)[0].split()
        return sum(int(ticks[column]) for column in _BUSY) / os.sysconf("SC_CLK_TCK") if name == "cpu" else None
    except (OSError, ValueError, IndexError):
        return None
