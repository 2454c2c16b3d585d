"""What the user sees of a run: its progress, and a table at the end."""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any, Final

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn
from rich.table import Table

from agentsys.collect.runner import Summary
from agentsys.records import Record
from agentsys.traces import Call, Trace

LINE_SECONDS: Final = 10.0
"""Seconds between two progress lines where stderr is not a terminal."""


def pair_rows(margins: Sequence[float], calls: int, tokens: int) -> list[tuple[str, str]]:
    """Rows for `print_summary`: the mean margin of preference pairs, and the cost of a pair. Empty without pairs.

    `tokens` are completion tokens.
    """
    if not margins:
        return []
    return [
        ("  mean margin", f"{fmean(margins):.2f}"),
        ("  calls and tokens per pair", f"{calls / len(margins):.1f} and {tokens / len(margins):,.0f}"),
    ]


class ProgressView:
    """A watcher for `collect`: a progress bar on a terminal, elsewhere a line every LINE_SECONDS."""

    def __init__(self, total: int | None = None) -> None:
        self._console = Console(stderr=True)
        self._bar = Progress(
            SpinnerColumn(),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[line]}"),
            TimeElapsedColumn(),
            console=self._console,
            disable=not self._console.is_terminal,
            transient=True,
        )
        self._task = self._bar.add_task("", total=total, line="starting the model")
        self._started_records = self._finished_records = 0
        self._start_time = self._last_line_time = time.perf_counter()

    def __enter__(self) -> ProgressView:
        self._bar.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self._bar.stop()

    def __call__(self, summary: Summary, event: Trace | Call | Record | None) -> None:
        """See runner.Watcher."""
        self._started_records += isinstance(event, Record)
        self._finished_records += isinstance(event, Trace)
        now = time.perf_counter()
        elapsed = now - self._start_time
        rate = summary.completion_tokens / max(elapsed, 1e-9)
        line = (
            f"{self._started_records - self._finished_records} in progress, {summary.kept} kept, "
            f"{summary.dropped} dropped, {summary.failed} failed, {summary.calls + summary.cache_hits} calls, "
            f"{summary.completion_tokens} tokens, {rate:.0f}/s"
        )
        if not self._bar.disable:
            self._bar.update(self._task, completed=self._finished_records + summary.skipped, line=line)
        elif now - self._last_line_time > LINE_SECONDS:
            self._last_line_time = now
            self._console.print(f"{elapsed:.0f} s: {self._finished_records} records done, {line}", soft_wrap=True)


def print_summary(summary: Summary, cache: Path | None, extra: Iterable[tuple[str, str]] = ()) -> None:
    """Print the table at the end of a run. `extra` are further rows (label, value) of the system."""
    tokens = summary.completion_tokens
    rows: list[tuple[str, Any]] = [
        ("kept", summary.kept),
        ("dropped", summary.dropped),
        ("failed", summary.failed),
        *((f"  {reason}", count) for reason, count in sorted(summary.reasons.items(), key=lambda r: -r[1])[:10]),
        *([("finished before this run", summary.skipped)] if summary.skipped else []),
        *extra,
        ("calls", f"{summary.calls} paid, {summary.cache_hits} from the request cache"),
        (
            "tokens",
            f"{summary.prompt_tokens:,} prompt ({summary.cached_tokens:,} prefix-cached), {tokens:,} completion",
        ),
        ("tokens per second", f"{tokens / max(summary.seconds, 1e-9):.1f}"),
        ("seconds", f"{summary.seconds:.1f}"),
    ]
    if cache is not None and cache.exists():
        rows.append(("request cache", f"{cache.stat().st_size / 1e6:.1f} MB in {cache}"))
    table = Table(show_header=False, title=f"run {summary.run}", title_justify="left")
    table.add_column(overflow="fold")
    table.add_column(justify="right", overflow="fold")
    for name, value in rows:
        table.add_row(name, str(value))
    console = Console()
    console.print(table)
    if summary.failed:
        console.print(f"failed records, with reasons: {summary.out / 'failed.jsonl'}", soft_wrap=True)
