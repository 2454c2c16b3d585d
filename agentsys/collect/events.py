"""What is logged of a run: its start and end and its first failures (INFO), its calls and records (DEBUG).

Nothing at INFO grows with the number of records or calls.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from heapq import nlargest
from pathlib import Path
from typing import Any, Final

from agentsys.collect.excerpts import shorten
from agentsys.collect.summary import Summary
from agentsys.display import note
from agentsys.recorder import current
from agentsys.traces import Call, Trace

FIRST_FAILURES: Final = 20
"""Failed records of a run that are logged one by one."""
MAX_REASONS: Final = 5
"""Reasons in the last line of a run."""
REASON_CHARS: Final = 500

_LOG: Final = logging.getLogger(__name__)


def log_start(summary: Summary, fingerprint: Mapping[str, Any], cache: Path | None) -> None:
    """Log what is run, and what the folder has of it already."""
    models = dict.fromkeys(model["name"] for model in fingerprint["models"].values())
    note(
        f"start of run {summary.run} of {fingerprint['system']}: input {fingerprint['input']['name']}, "
        f"models {', '.join(models) or 'none'}; {_counts(summary)} before; "
        f"{f'request cache {cache}' if cache else 'no request cache'}"
    )


def log_end(summary: Summary) -> None:
    """Log the counts of a run that ends, and why it ends early."""
    reasons = nlargest(MAX_REASONS, summary.failed_reasons.items(), key=lambda reason: reason[1])
    parts = [
        f"end of run {summary.run}{f' ({summary.stopped})' if summary.stopped else ''}: {_counts(summary)}",
        f"{summary.processed} records now, in {summary.seconds:.1f} s",
        f"{summary.calls} calls paid, {summary.cache_hits} from the request cache",
        f"{summary.prompt_tokens:,} prompt and {summary.completion_tokens:,} completion tokens",
        *([] if summary.cost is None else [f"cost {summary.cost:,.4f}"]),
        *(f"{count} failed with: {shorten(reason)}" for reason, count in reasons),
    ]
    note("; ".join(parts))


def log_stop(error: BaseException) -> None:
    """Log the error that ends a run."""
    note(f"the run is stopped by {type(error).__name__}: {shorten(str(error), REASON_CHARS)}")


def log_call(call: Call) -> None:
    """Log a finished call of the current record for debugging."""
    if _LOG.isEnabledFor(logging.DEBUG):
        cached = call.measured.get("cache_hit")
        _LOG.debug(
            "record %s: call %s of %s: %s, %d prompt and %d completion tokens%s",
            recorder.record if (recorder := current.get()) else "",
            call.key,
            call.role,
            "from the request cache" if cached else f"{call.measured.get('seconds', 0.0):.2f} s",
            call.prompt_tokens,
            call.completion_tokens,
            f", {retries} retries" if (retries := call.measured.get("retries")) else "",
        )


def log_record(trace: Trace) -> None:
    """Log a finished record for debugging."""
    if _LOG.isEnabledFor(logging.DEBUG):
        reason = f" ({shorten(trace.reason, REASON_CHARS)})" if trace.reason else ""
        seconds = trace.measured.get("seconds", 0.0)
        _LOG.debug("record %s: %s%s, %d calls, %.2f s", trace.id, trace.outcome, reason, len(trace.calls), seconds)


class FailureLog:
    """Logs the first failures of a run; failed.jsonl has all."""

    def __init__(self) -> None:
        self._count = 0

    def add(self, place: str, reason: str) -> None:
        """Log a failed record; `place` is its id, or where it was read."""
        self._count += 1
        if self._count <= FIRST_FAILURES:
            note(f"record {place} failed: {shorten(reason, REASON_CHARS)}")
        elif self._count == FIRST_FAILURES + 1:
            note("more records failed: failed.jsonl has all of them, with the reasons")


def _counts(summary: Summary) -> str:
    return f"{summary.kept} kept, {summary.dropped} dropped, {summary.failed} failed"
