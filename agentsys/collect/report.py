"""What the user sees of a run: its progress, and a table at the end."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any, Final

from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn
from rich.table import Table

from agentsys.collect.summary import Summary
from agentsys.console import Console
from agentsys.display import plain
from agentsys.records import Record
from agentsys.traces import Call, Trace

LINE_SECONDS: Final = 10.0
"""Seconds between two progress lines where stderr is not a terminal."""
MAX_REASONS: Final = 10
"""Reasons that the table shows below each outcome."""


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
            TextColumn("{task.fields[line]}", markup=False),
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


def print_summary(
    summary: Summary, cache: Path | None, extra: Iterable[tuple[str, str]] = (), source: str = "the input"
) -> None:
    """Print the table at the end of a run; of a run that processed no record, one line says so.

    `extra` are further rows (label, value) of the system, about all finished records of the folder; `source` is where
    the records came from.
    """
    console = Console()
    extra = list(extra) if summary.kept + summary.dropped else []
    if summary.processed:
        _print_table(console, summary, _rows(summary, cache, extra))
    else:
        console.print(describe_nothing(summary, source), soft_wrap=True)
        if extra and not summary.stopped:
            _print_table(console, summary, extra)
    if summary.failed:
        console.print(f"failed records, with reasons: {summary.out / 'failed.jsonl'}", soft_wrap=True)


def describe_nothing(summary: Summary, source: str) -> str:
    """Why a run processed no record, in one line."""
    counts = f"{summary.kept} kept, {summary.dropped} dropped, {summary.failed} failed"
    if summary.stopped:
        return f"stopped before a record was finished ({counts} in earlier runs)"
    if summary.skipped or summary.failed:
        again = "; --retry-failed runs the failed ones again" if summary.failed else ""
        return f"nothing to do: all records of {source} were finished before ({counts}){again}"
    return f"no records in {source}: nothing was run; check the file"


def _rows(summary: Summary, cache: Path | None, extra: Sequence[tuple[str, str]]) -> list[tuple[str, Any]]:
    tokens = summary.completion_tokens
    rows: list[tuple[str, Any]] = [
        ("kept", summary.kept),
        ("dropped", summary.dropped),
        *_reason_rows(summary.dropped_reasons),
        ("failed", summary.failed),
        *_reason_rows(summary.failed_reasons),
        *([("finished before this run", summary.skipped)] if summary.skipped else []),
        *extra,
        ("calls", f"{summary.calls} paid, {summary.cache_hits} from the request cache"),
        (
            "tokens",
            f"{summary.prompt_tokens:,} prompt ({summary.cached_tokens:,} prefix-cached), {tokens:,} completion",
        ),
        *([] if summary.cost is None else [("cost", f"{summary.cost:,.4f}")]),
        ("tokens per second", f"{tokens / max(summary.seconds, 1e-9):.1f}"),
        ("seconds", f"{summary.seconds:.1f}"),
    ]
    if cache is not None and cache.exists():
        rows.append(("request cache", f"{cache.stat().st_size / 1e6:.1f} MB in {cache}"))
    return rows


def _reason_rows(reasons: Mapping[str, int]) -> list[tuple[str, int]]:
    """The most common reasons, indented below their outcome."""
    return [
        (f"  {plain(reason)}", count) for reason, count in sorted(reasons.items(), key=lambda r: -r[1])[:MAX_REASONS]
    ]


def _print_table(console: Console, summary: Summary, rows: Iterable[tuple[str, Any]]) -> None:
    table = Table(show_header=False, title=f"run {summary.run}", title_justify="left")
    table.add_column(overflow="fold")
    table.add_column(justify="right", overflow="fold")
    for name, value in rows:
        table.add_row(name, str(value))
    console.print(table)
