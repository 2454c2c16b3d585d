"""Requests and tokens per minute of one endpoint, whichever roles and models use it."""

from __future__ import annotations

import asyncio
import time
from collections import deque
from typing import Any, Final

MINUTE: Final = 60.0


class RateLimit:
    """Lets at most `requests` and about `tokens` pass in any minute; None is no limit. One event loop only.

    The tokens of a request are an estimate until its reply says how many there were.
    """

    def __init__(self, requests: int | None, tokens: int | None, seconds: float = MINUTE) -> None:
        self._requests, self._tokens, self._seconds = requests, tokens, seconds
        self._window: deque[list[float]] = deque()  # [time, tokens] of each request in the last minute
        self._used = 0.0
        self._reply_tokens = 0.0
        self._lock = asyncio.Lock()

    async def reserve(self, size: int) -> list[float]:
        """Wait until a request of `size` bytes may be sent, and return its entry for `settle`. In order of arrival."""
        tokens = size / 4 + self._reply_tokens
        async with self._lock:
            while True:
                seconds = self._wait_seconds(tokens)
                if seconds <= 0:
                    break
                await asyncio.sleep(seconds)
            entry = [time.monotonic(), tokens]
            self._window.append(entry)
            self._used += tokens
        return entry

    def settle(self, entry: list[float], reply: Any) -> None:
        """Put the real number of tokens in place of the estimate; `reply` is a wire.Reply, or anything else."""
        completion = getattr(reply, "completion_tokens", None)
        if not completion:
            return
        tokens = float(reply.prompt_tokens + completion)
        self._reply_tokens += (completion - self._reply_tokens) / 8
        if self._window and entry[0] >= self._window[0][0]:  # still in the window
            self._used += tokens - entry[1]
        entry[1] = tokens

    def _wait_seconds(self, tokens: float) -> float:
        now = time.monotonic()
        while self._window and self._window[0][0] <= now - self._seconds:
            self._used -= self._window.popleft()[1]
        if not self._window:
            self._used = 0.0
            return 0.0
        full = self._requests is not None and len(self._window) >= self._requests
        spent = self._tokens is not None and self._used + tokens > self._tokens
        return self._window[0][0] + self._seconds - now if full or spent else 0.0
