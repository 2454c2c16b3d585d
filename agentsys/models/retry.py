"""When a request is sent again."""

from __future__ import annotations

import time
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class RetryPolicy:
    """Exponential backoff with full jitter: the n-th wait is random in 0 .. first * 2^n seconds, at most `longest`."""

    attempts: int = 6
    first: float = 0.5
    longest: float = 30.0


def parse_retry_after(header: str | None) -> float | None:
    """Return the seconds of a Retry-After header (a number or an HTTP date), or None."""
    if header is None:
        return None
    try:
        return max(0.0, float(header))
    except ValueError:
        from email.utils import parsedate_to_datetime

        try:
            return max(0.0, parsedate_to_datetime(header).timestamp() - time.time())
        except (ValueError, OverflowError):
            return None
