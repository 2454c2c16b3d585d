"""How a run went: its counts, and who is told about them while it goes on."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from agentsys.collect.limits import Price
from agentsys.records import Record
from agentsys.traces import Call, Outcome, Trace

CALL_TOTALS: Final = ("calls", "cache_hits", "prompt_tokens", "completion_tokens", "cached_tokens")
"""The fields of a Summary that count calls and their tokens."""


@dataclass(slots=True)
class EngineTimes:
    """Tokens of the replies that carry the engine's own times, and the sum of those times in seconds.

    `read_tokens` are prompt tokens that were not in the engine's prefix cache. Times of sequences that an engine works
    on together overlap, so that the rates are those of one sequence.
    """

    read_tokens: int = 0
    read_seconds: float = 0.0
    generated_tokens: int = 0
    generation_seconds: float = 0.0

    def add(self, call: Call, read_tokens: int) -> None:
        """Count a paid call, if its server returned times (`Call.measured`)."""
        if "generation_seconds" in call.measured:
            self.read_tokens += read_tokens
            self.read_seconds += call.measured["prompt_seconds"]
            self.generated_tokens += call.completion_tokens
            self.generation_seconds += call.measured["generation_seconds"]


@dataclass(slots=True)
class Summary:
    """How a run ended. `kept`, `dropped` and `failed` count the whole folder; everything else counts this run only.

    `out` is the folder, `run` the run's id, `processed` the records finished now and `skipped` those finished earlier.
    `dropped_reasons` and `failed_reasons` count each reason, `calls` the paid ones (without cache hits), `seconds` is
    the wall time, and `stopped` says why the run ended early ("interrupted", "token budget"), or None. `price` is what
    tokens cost, `engine` has the engine's own times where its server returns them.
    """

    out: Path
    run: str
    kept: int = 0
    dropped: int = 0
    failed: int = 0
    skipped: int = 0
    processed: int = 0
    dropped_reasons: dict[str, int] = field(default_factory=dict)
    failed_reasons: dict[str, int] = field(default_factory=dict)
    calls: int = 0
    cache_hits: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    cached_tokens: int = 0
    seconds: float = 0.0
    stopped: str | None = None
    price: Price | None = None
    engine: EngineTimes = field(default_factory=EngineTimes)

    @property
    def read_tokens(self) -> int:
        """Prompt tokens that the engine read: all but those of its prefix cache."""
        return self.prompt_tokens - self.cached_tokens

    @property
    def cost(self) -> float | None:
        """What the paid calls cost; None without a price (--price)."""
        return self.price.of(self.prompt_tokens, self.completion_tokens) if self.price else None

    @property
    def reasons(self) -> dict[str, int]:
        """How often each reason for dropping or failing occurred."""
        return dict(Counter(self.dropped_reasons) + Counter(self.failed_reasons))

    def add_record(self, outcome: Outcome, reason: str | None) -> None:
        """Count a finished record."""
        self.processed += 1
        setattr(self, outcome, getattr(self, outcome) + 1)
        if reason and outcome != "kept":
            reasons = self.dropped_reasons if outcome == "dropped" else self.failed_reasons
            reasons[reason] = reasons.get(reason, 0) + 1

    def add_call(self, call: Call) -> None:
        """Count a finished call and its tokens; a cache hit costs none."""
        if call.measured.get("cache_hit"):
            self.cache_hits += 1
            return
        self.calls += 1
        self.prompt_tokens += call.prompt_tokens
        self.completion_tokens += call.completion_tokens
        cached_tokens = call.measured.get("cached_tokens") or 0
        self.cached_tokens += cached_tokens
        self.engine.add(call, call.prompt_tokens - cached_tokens)


Watcher = Callable[[Summary, "Trace | Call | Record | None"], None]
"""Called with the record when it starts, with each finished call, and with the trace when the record is finished (None
if its input was refused)."""
