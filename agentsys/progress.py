"""Progress of a long task on stderr: a bar on a terminal and in a notebook, elsewhere a line every LINE_SECONDS.

    with Progress("rows", total=1000) as progress:
        for done, row in enumerate(rows, 1):
            ...
            progress.update(done)

`update` may be called for every item: it draws at most REFRESHES times per second.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Final, Protocol

from agentsys.display import plain

if TYPE_CHECKING:
    from rich.live import Live

    from agentsys.console import Console

__all__ = ["Progress", "describe_duration"]

LINE_SECONDS: Final = 10.0
"""Seconds between two lines where stderr is not a terminal."""
REFRESHES: Final = 10
"""Drawings of the bar per second on a terminal."""
NOTEBOOK_SECONDS: Final = 0.5
"""Seconds between two drawings in a notebook, which keeps the last one."""
BAR_WIDTH: Final = 40
"""Characters of the bar, less on a narrow terminal."""
_live_consoles: Final[list[Console]] = []
"""The consoles that have a bar now: another one is drawn below it, as that of weights while a model starts."""
_OTHER_COLUMNS: Final = 50
"""Characters that the counts and the times beside the bar take at most."""


class Progress:
    """How much of a task is done, with the remaining time and the rate.

    `unit` is what is counted, as "records"; `total` is their number, None if it is unknown. `details` returns lines
    of further text, by default the rate. The remaining time is that of the mean speed since `begin`.
    """

    def __init__(
        self,
        unit: str,
        total: float | None = None,
        *,
        done: float = 0,
        step: str = "",
        details: Callable[[], Sequence[str]] | None = None,
        console: Console | None = None,
    ) -> None:
        """`done` are finished already; `step` is the name of what is done, before the counts."""
        from agentsys.console import Console

        self.unit, self.total, self.step = unit, total, step
        self.done = self.skipped = done
        if console is None and _live_consoles:
            console = _live_consoles[-1]
        self.console = console or Console(stderr=True, force_terminal=sys.stderr.isatty())  # whatever FORCE_COLOR says
        self._details = details or self._describe_rate
        self._created = self._begun = time.perf_counter()
        self._surface = _choose_surface(self)

    @property
    def is_live(self) -> bool:
        """Whether what is shown is drawn again and again, in place."""
        return not isinstance(self._surface, _Lines)

    @property
    def seconds(self) -> float:
        """Seconds since `begin`, at least a nanosecond."""
        return max(time.perf_counter() - self._begun, 1e-9)

    def __enter__(self) -> Progress:
        self._surface.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self._surface.stop()

    def begin(self, unit: str = "", total: float | None = None, *, step: str = "") -> None:
        """The work begins now: rates and the remaining time count from here. With `unit`, it is a new step."""
        self._begun = time.perf_counter()
        if unit:
            self.unit, self.total, self.step, self.done, self.skipped = unit, total, step, 0, 0

    def update(self, done: float, *, skipped: float | None = None) -> None:
        """Set how many are done; `skipped` of them took no time, as those of an earlier run."""
        self.done = done
        if skipped is not None:
            self.skipped = skipped
        self._surface.draw()

    def describe_left(self) -> str:
        """The remaining time at the mean speed; "" if it is unknown."""
        worked = self.done - self.skipped
        if self.total is None or worked <= 0:
            return ""
        return f"about {describe_duration(self.seconds / worked * max(0, self.total - self.done))} left"

    def describe_count(self) -> str:
        """What is done: "3 of 20 records"."""
        total = "" if self.total is None else f" of {self.total:,.0f}"
        return f"{self.done:,.0f}{total} {self.unit}"

    def describe(self) -> str:
        """All of it in one line."""
        step = f"{plain(self.step)}: " if self.step else ""
        left = self.describe_left()
        texts = [f"{self.describe_count()} done", *([left] if left else []), "; ".join(filter(None, self._details()))]
        return f"{time.perf_counter() - self._created:.0f} s: {step}{', '.join(filter(None, texts))}"

    def _describe_rate(self) -> list[str]:
        rate = (self.done - self.skipped) / self.seconds
        return [f"{rate:,.{0 if rate >= 10 else 1}f} {self.unit}/s"] if rate > 0 else []

    def describe_times(self) -> str:
        """The time since the beginning, and the remaining one."""
        return ", ".join(filter(None, (describe_duration(time.perf_counter() - self._created), self.describe_left())))

    def lines(self) -> list[str]:
        """The lines below the bar."""
        return [plain(line) for line in self._details() if line]


class _Surface(Protocol):
    """Where progress is shown."""

    def start(self) -> None: ...

    def draw(self) -> None:
        """Show what is done now, if it is time to; called after every item."""

    def stop(self) -> None: ...


class _Lines:
    """A log: a line every LINE_SECONDS, so that a short task has none."""

    def __init__(self, progress: Progress) -> None:
        self._progress = progress
        self._printed = time.perf_counter()

    def start(self) -> None:
        pass

    def draw(self) -> None:
        now = time.perf_counter()
        if now - self._printed > LINE_SECONDS:
            self._printed = now
            self._progress.console.print(self._progress.describe(), soft_wrap=True)

    def stop(self) -> None:
        pass


class _Terminal:
    """A bar at the end of the terminal, which a thread of rich draws again; it is gone when the task is done."""

    def __init__(self, progress: Progress) -> None:
        from rich.spinner import Spinner

        self._progress = progress
        self._spinner = Spinner("dots")
        self._live: Live | None = None

    def start(self) -> None:
        from rich.live import Live

        console = self._progress.console
        self._live = Live(console=console, refresh_per_second=REFRESHES, transient=True, get_renderable=self._render)
        self._live.start(refresh=True)
        _live_consoles.append(console)

    def draw(self) -> None:
        pass

    def stop(self) -> None:
        if self._live is not None:
            self._live.stop()
            _live_consoles.remove(self._progress.console)

    def _render(self) -> Any:
        from rich.progress_bar import ProgressBar
        from rich.table import Table

        progress = self._progress
        texts = [text for text in (progress.step, progress.describe_count(), progress.describe_times()) if text]
        width = max(4, min(BAR_WIDTH, progress.console.width - _OTHER_COLUMNS))
        first = Table.grid(padding=(0, 1))
        for _ in range(2 + len(texts)):
            first.add_column(no_wrap=True, overflow="ellipsis")
        first.add_row(self._spinner, ProgressBar(progress.total, progress.done, width=width), *texts)
        rows = Table.grid()
        rows.add_column(no_wrap=True, overflow="ellipsis")
        rows.add_row(first)
        for line in progress.lines():
            rows.add_row(line)
        return rows


class _Notebook:
    """An output of the cell that is replaced, and stays. It needs no widgets, which rich's own display does."""

    def __init__(self, progress: Progress) -> None:
        self._progress = progress
        self._handle: Any = None
        self._drawn = 0.0

    def start(self) -> None:
        from IPython.display import display

        show: Any = display  # it has no types
        self._handle = show({"text/plain": self._text()}, raw=True, display_id=True)

    def draw(self) -> None:
        now = time.perf_counter()
        if now - self._drawn > NOTEBOOK_SECONDS:
            self._drawn = now
            self._replace()

    def stop(self) -> None:
        self._replace()

    def _replace(self) -> None:
        if self._handle is not None:
            self._handle.update({"text/plain": self._text()}, raw=True)

    def _text(self) -> str:
        progress = self._progress
        share = min(1.0, progress.done / progress.total) if progress.total else 0.0
        bar = "█" * round(share * BAR_WIDTH)
        texts = (plain(progress.step), f"{bar:░<{BAR_WIDTH}}", progress.describe_count(), progress.describe_times())
        return "\n".join([" ".join(filter(None, texts)), *progress.lines()])


def _choose_surface(progress: Progress) -> _Surface:
    console = progress.console
    if console.is_jupyter:
        return _Notebook(progress)
    return _Terminal(progress) if console.is_terminal and not console.is_dumb_terminal else _Lines(progress)


def describe_duration(seconds: float) -> str:
    """Seconds as "45 s", "12 min" or "2 h 05 min"."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 90 else f"{minutes // 60} h {minutes % 60:02} min"
