"""The load of other processes, and the number of threads that suits it."""

from __future__ import annotations

import os
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

_STAT: Final = Path("/proc/stat")
_BUSY: Final = (0, 1, 2, 5, 6)
"""Columns of /proc/stat without waiting and stolen time: user, nice, system, irq, softirq."""
_CPUS: Final = Path("/sys/devices/system/cpu")
START_SECONDS: Final = 0.4
"""Seconds for which the load is measured when the engine starts."""
BUSY_SECONDS: Final = 6.0
"""Seconds of load after which a running engine leaves a core to other processes."""
QUIET_SECONDS: Final = 20.0
"""Seconds without load after which it takes the core back."""
PAUSE_SECONDS: Final = 300.0
"""Seconds without another choice after one that could not be carried out."""
BUSY_CORES: Final = 0.6
"""Cores that other processes use from which on the engine leaves them one."""
QUIET_CORES: Final = 0.3
"""Cores that other processes use below which the engine takes all."""


@dataclass
class LoadMeter:
    """How many cores the other processes of this machine keep busy, as an average over the last seconds.

    It knows nothing where there is no /proc/stat (not Linux). `own_seconds` returns the CPU seconds of this process,
    which do not count.
    """

    stat: Path = _STAT
    own_seconds: Callable[[], float] = time.process_time
    clock: Callable[[], float] = time.monotonic
    _marks: deque[tuple[float, float]] = field(default_factory=lambda: deque(maxlen=120))
    """Times and the CPU seconds of all other processes until then."""

    def mark(self, after: float = 0.0) -> bool:
        """Read the counters, unless they were read less than `after` seconds ago. Returns whether that was done."""
        now = self.clock()
        if self._marks and now - self._marks[-1][0] < after:
            return False
        busy = _busy_seconds(self.stat)
        if busy is not None:
            self._marks.append((now, busy - self.own_seconds()))
        return busy is not None

    def load(self, seconds: float) -> float | None:
        """Cores in use between the last mark and the latest one at least `seconds` earlier; None without such a one."""
        last, others = self._marks[-1] if self._marks else (0.0, 0.0)
        earlier = next((mark for mark in reversed(self._marks) if last - mark[0] >= seconds), None)
        return None if earlier is None else max(0.0, (others - earlier[1]) / (last - earlier[0]))

    def clear(self) -> None:
        """Forget the marks."""
        self._marks.clear()


def _busy_seconds(stat: Path) -> float | None:
    """CPU seconds of all processes since the start of the machine."""
    try:
        name, *ticks = stat.read_text().split("\n", 1)[0].split()
        return sum(int(ticks[column]) for column in _BUSY) / os.sysconf("SC_CLK_TCK") if name == "cpu" else None
    except (OSError, ValueError, IndexError):
        return None


def count_cores(cpus: Path = _CPUS) -> int:
    """Physical cores, which is how many threads llama.cpp starts by itself; else what Python counts."""
    siblings = {path.read_text() for path in cpus.glob("cpu[0-9]*/topology/thread_siblings_list")}
    return len(siblings) or os.cpu_count() or 1


@dataclass
class ThreadChoice:
    """A thread for each core, or one thread fewer while other processes use a core or most of one.

    llama.cpp's threads wait for each other after every operation. One that shares its core holds up all of them: beside
    one busy process, two threads on two cores generate a fraction of what one thread does.
    """

    cores: int
    meter: LoadMeter = field(default_factory=LoadMeter)
    load: float = 0.0
    """Cores that other processes used at the last choice."""
    threads: int | None = None
    """None: one for each core, as llama.cpp does by itself."""
    _not_before: float = 0.0

    def start(self, sleep: Callable[[float], None] = time.sleep) -> None:
        """Choose by the load of the next START_SECONDS."""
        if self.meter.mark():
            sleep(START_SECONDS)
            self.meter.mark()
            self.load = self.meter.load(START_SECONDS / 2) or 0.0
        self.threads = self._fewer() if self.load >= BUSY_CORES else None

    def revise(self) -> bool:
        """Choose by the load of the last seconds. Returns whether the choice is another one. To be called often."""
        if self.meter.clock() < self._not_before:
            return False
        self.meter.mark(after=1.0)
        load = self.meter.load(BUSY_SECONDS if self.threads is None else QUIET_SECONDS)
        if load is None or (load < BUSY_CORES if self.threads is None else load >= QUIET_CORES):
            return False
        self.load, self.threads = load, self._fewer() if self.threads is None else None
        self.meter.clear()
        return True

    def take_back(self, threads: int | None) -> None:
        """Stay with so many threads for some minutes, because another choice could not be carried out."""
        self.threads = threads
        self._not_before = self.meter.clock() + PAUSE_SECONDS

    def _fewer(self) -> int:
        return max(self.cores - 1, 1)
