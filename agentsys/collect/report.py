"""What the user sees of a run: its progress, and a table at the end."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping, Sequence
from heapq import nlargest
from pathlib import Path
from statistics import fmean
from typing import Any, Final

from rich.table import Table
from rich.text import Text

from agentsys.collect.excerpts import describe_outcome, describe_record, full_texts, main_text, shorten
from agentsys.collect.summary import EngineTimes, Summary
from agentsys.console import Console
from agentsys.display import plain
from agentsys.progress import LINE_SECONDS, Progress
from agentsys.records import Record
from agentsys.traces import Call, Trace, read_traces

FIRST_RECORDS: Final = 20
"""Finished records that have a line each; later ones have one line every LINE_SECONDS."""
LIVE_CHARS: Final = 500
"""Longest text in the live display, which the width of the terminal cuts further."""
LIVE_REASONS: Final = 3
"""Reasons of failures that the progress shows."""
SHOW_RECORD_BELOW: Final = 100
"""A run of fewer records shows a kept record in full at its end."""
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
    """A watcher for `collect`: progress (agentsys.progress), the records in progress and the finished ones.

    A terminal and a notebook have a bar with the remaining time, the counts, the most frequent reasons of failures, and
    the text of the record that started last. Elsewhere there is a line with the same counts every LINE_SECONDS. Both
    have a line for each of the first FIRST_RECORDS records that finish, and one every LINE_SECONDS after that.

    `total` is the number of records, None if it is unknown; without `show_records` finished records have no line.
    `step` is the name of the run, before the counts.
    """

    def __init__(
        self, total: int | None = None, console: Console | None = None, *, show_records: bool = True, step: str = ""
    ) -> None:
        self._show_records = show_records
        self._summary: Summary | None = None
        self._texts: dict[str, str] = {}
        """Text of each record in progress, by id."""
        self._current_text = ""
        self._started_records = self._finished_records = 0
        self._last_record_time = 0.0
        self._failures = ("", 0)
        """The reasons of failures as they are shown, and how many failures they are of."""
        self._progress = Progress("records", total, step=step, details=self._describe, console=console)

    def __enter__(self) -> ProgressView:
        self._progress.__enter__()
        return self

    def __exit__(self, *exc: object) -> None:
        self._progress.__exit__()

    def __call__(self, summary: Summary, event: Trace | Call | Record | None) -> None:
        """See runner.Watcher."""
        if isinstance(event, Record):
            if not self._started_records:
                self._progress.begin()  # the model has started
            self._started_records += 1
            self._texts[event.id] = self._current_text = main_text(event.data)
        elif isinstance(event, Trace):
            self._texts.pop(event.id, None)
            self._current_text = next(reversed(self._texts.values()), "")
            self._finished_records += 1
            if self._show_records:
                self._print_record(event)
        self._summary = summary
        done = summary.processed + summary.skipped
        self._progress.update(done, skipped=done - self._finished_records)

    def _print_record(self, trace: Trace) -> None:
        now = time.perf_counter()
        if self._finished_records <= FIRST_RECORDS or now - self._last_record_time > LINE_SECONDS:
            self._last_record_time = now
            text = Text(plain(describe_record(trace)))
            console = self._progress.console
            if console.is_terminal:
                console.print(text, no_wrap=True, overflow="ellipsis")
            else:
                console.print(text, soft_wrap=True)

    def _describe(self) -> list[str]:
        """The lines of the display; rich's thread asks for them too."""
        if self._summary is None:
            return ["starting the model"]
        summary = self._summary
        counts = (
            f"{len(self._texts)} in progress, {summary.kept} kept, {summary.dropped} dropped, {summary.failed} failed"
        )
        lines = [counts, self._describe_usage(summary), self._describe_failures(summary)]
        if self._progress.is_live and self._current_text:
            lines.append(f"now: {shorten(self._current_text, LIVE_CHARS)}")
        return lines

    def _describe_usage(self, summary: Summary) -> str:
        """Calls, tokens, tokens per second since the first record started, and the cost."""
        seconds = self._progress.seconds
        cost = "" if summary.cost is None else f", cost {summary.cost:,.4f}"
        return (
            f"{summary.calls + summary.cache_hits} calls, {summary.completion_tokens:,} tokens, "
            f"{summary.completion_tokens / seconds:.0f} tokens/s generated, {summary.read_tokens / seconds:.0f} read"
            f"{cost}"
        )

    def _describe_failures(self, summary: Summary) -> str:
        """The most frequent reasons of this run's failures with their counts; "" without one."""
        if self._failures[1] != summary.failed:
            reasons = nlargest(LIVE_REASONS, list(summary.failed_reasons.items()), key=lambda reason: reason[1])
            texts = [f"{count} x {shorten(reason)}" for reason, count in reasons]
            more = len(summary.failed_reasons) - len(reasons)
            self._failures = (f"failed: {', '.join(texts)}{f' and {more} more' if more else ''}", summary.failed)
        return self._failures[0] if summary.failed_reasons else ""


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
    if summary.processed:
        _print_kept_record(console, summary)
        console.print(f"data card: {summary.out / 'README.md'}", soft_wrap=True)


def _print_kept_record(console: Console, summary: Summary) -> None:
    """Print the first kept record in full after a short run, which is somebody's look at what the method does."""
    if summary.kept and summary.processed < SHOW_RECORD_BELOW:
        trace = next((trace for trace in read_traces(summary.out) if trace.outcome == "kept"), None)
        if trace is not None:
            console.print(_encodable(f"\nrecord {trace.id} ({describe_outcome(trace)})", console))
            for name, text in full_texts(trace).items():
                console.print(_encodable(f"\n{name}: {text}", console))
            console.print()


def _encodable(text: str, console: Console) -> str:
    """The text with escapes for characters that the console's encoding lacks, as in a pipe on Windows."""
    encoding = getattr(console.file, "encoding", None) or "utf-8"
    return text.encode(encoding, "backslashreplace").decode(encoding)


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
        ("tokens per second", _rates(tokens, summary.seconds, summary.read_tokens, summary.seconds)),
        *_engine_rows(summary.engine),
        ("seconds", f"{summary.seconds:.1f}"),
    ]
    if cache is not None and cache.exists():
        rows.append(("request cache", f"{cache.stat().st_size / 1e6:.1f} MB in {cache}"))
    return rows


def _engine_rows(engine: EngineTimes) -> list[tuple[str, str]]:
    if not engine.generation_seconds:
        return []
    rates = _rates(engine.generated_tokens, engine.generation_seconds, engine.read_tokens, engine.read_seconds)
    return [("  per sequence, by the engine", rates)]


def _rates(generated: int, generation_seconds: float, read: int, read_seconds: float) -> str:
    """Tokens per second generated, and prompt tokens per second read (those of the prefix cache are not counted)."""
    return (
        f"{generated / max(generation_seconds, 1e-9):.1f} generated, {read / max(read_seconds, 1e-9):.1f} prompt read"
    )


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
