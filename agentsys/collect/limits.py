"""What stops a run before its input is exhausted: failures, a budget; and how many connections the process may open."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Final

from agentsys.display import say
from agentsys.records import InputError

SAME_IN_A_ROW: Final = 20
"""Records in a row that fail with the same error and stop a run, unless --max-failures says otherwise."""
SHARE_RECORDS: Final = 20
"""Records after which a share of failures is looked at."""
SPARE_FILES: Final = 128
"""File descriptors that are kept for shards, the cache, libraries and pipes."""


class TooManyFailures(ValueError):
    """A run stopped because of its failures (--max-failures); it can be resumed."""


@dataclass(frozen=True, slots=True)
class FailureLimit:
    """--max-failures: a number of records, a share of them, or, without either, the same error in a row."""

    count: int | None = None
    share: float | None = None
    in_a_row: int | None = SAME_IN_A_ROW

    @classmethod
    def parse(cls, text: str) -> FailureLimit:
        """Read "20", "0.1", "10%", "none" or "" (the default). Raises InputError."""
        text = text.strip().lower()
        if not text:
            return cls()
        if text == "none":
            return cls(in_a_row=None)
        if text.isdecimal() and int(text) >= 1:
            return cls(count=int(text), in_a_row=None)
        try:
            share = float(text.removesuffix("%")) / (100 if text.endswith("%") else 1)
        except ValueError:
            share = 0.0
        if not 0 < share < 1:
            raise InputError(f"--max-failures {text}: give a number of records, a share such as 0.1 or 10%, or none")
        return cls(share=share, in_a_row=None)


class FailureCounter:
    """Counts the failures of a run and says when it must stop."""

    def __init__(self, limit: FailureLimit, *, retries_failed: bool = False) -> None:
        """`retries_failed`: the command runs failed records again by itself, without --retry-failed."""
        self._limit = limit
        self._advice = "" if retries_failed else ", with --retry-failed for the failed records"
        self._records = self._failed = self._in_a_row = 0
        self._kind = ""
        self.problem = ""
        """Why the run stops; "" while it does not."""

    def add(self, reason: str | None, *, is_input: bool = False) -> str:
        """Count a finished record, with the reason if it failed, and return the problem.

        `is_input`: the record was refused before any call; such records, as duplicates, are no row of failures.
        """
        self._records += 1
        if reason is None:
            self._in_a_row = 0
            return self.problem
        self._failed += 1
        if not is_input:
            kind = _kind(reason)
            self._in_a_row = self._in_a_row + 1 if kind == self._kind else 1
            self._kind = kind
        if not self.problem and (count := self._describe()):
            self.problem = f"{count}, the last one with: {reason}"
        return self.problem

    def _describe(self) -> str:
        limit = self._limit
        if limit.count is not None and self._failed >= limit.count:
            return f"{self._failed} records failed (--max-failures {limit.count})"
        share = self._failed / self._records
        if limit.share is not None and self._records >= SHARE_RECORDS and share > limit.share:
            return f"{self._failed} of {self._records} records failed (--max-failures {limit.share:g})"
        if limit.in_a_row is not None and self._in_a_row >= limit.in_a_row:
            return f"{self._in_a_row} records in a row failed with the same error"
        return ""

    def check(self) -> None:
        """Raises TooManyFailures if the run stopped for its failures."""
        if self.problem:
            raise TooManyFailures(
                f"{self.problem}; finished records are saved: correct the cause and rerun the same command"
                f"{self._advice}"
            )


def _kind(reason: str) -> str:
    """The reason without what differs between records: numbers, and what is quoted."""
    return re.sub(r"\d+|'[^']*'|\"[^\"]*\"", "", reason)[:200]


class BudgetSpent(ValueError):
    """A command stopped because its budget is spent; it can be resumed with a higher one."""


@dataclass(frozen=True, slots=True)
class Price:
    """What a million tokens cost, in any currency."""

    prompt: float
    completion: float

    @classmethod
    def parse(cls, text: str) -> Price | None:
        """Read "0.15,0.6"; None for "". Raises InputError."""
        if not text.strip():
            return None
        try:
            prompt, completion = map(float, text.split(","))
        except ValueError:
            prompt = completion = -1.0
        if not (0 <= prompt < float("inf") and 0 <= completion < float("inf")):
            raise InputError(f"--price {text}: give the price of a million prompt and completion tokens, as 0.15,0.6")
        return cls(prompt, completion)

    def of(self, prompt_tokens: int, completion_tokens: int) -> float:
        """The cost of these tokens."""
        return (prompt_tokens * self.prompt + completion_tokens * self.completion) / 1e6


@dataclass(slots=True)
class Spending:
    """What several runs of one command have cost together, and the budget that they share; None: no limit."""

    budget: float | None = None
    cost: float = 0.0

    @property
    def left(self) -> float | None:
        """What is left of the budget, always above 0: records without paid calls may still finish."""
        return None if self.budget is None else max(self.budget - self.cost, 1e-12)

    def spent(self) -> BudgetSpent:
        """The error of a run that stopped for its budget."""
        return BudgetSpent(
            f"the budget is spent: {self.cost:,.4f} of --cost-budget {self.budget:g}; finished records are saved: "
            "rerun the same command with a higher --cost-budget to resume"
        )


def allowed_in_flight(in_flight: int, models: Iterable[Any]) -> int:
    """`in_flight`, or what the open-file limit, raised to the hard one, allows; then with a line on stderr."""
    limit = raise_open_files()
    engines = {id(engine): engine for model in models if (engine := getattr(model, "engine", None))}
    servers = sum(len(getattr(getattr(engine, "endpoint", None), "addresses", "x")) for engine in engines.values())
    if limit is None or in_flight * max(1, servers) + SPARE_FILES <= limit:
        return in_flight
    allowed = max(1, (limit - SPARE_FILES) // max(1, servers))
    if allowed < in_flight:
        say(
            f"--in-flight {in_flight} is reduced to {allowed}: this process may open {limit} files (ulimit -n)",
        )
    return min(allowed, in_flight)


def raise_open_files() -> int | None:
    """Raise the limit of open files to the hard limit and return it; None if there is none."""
    try:
        import resource
    except ImportError:  # Windows
        return None
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
        soft = hard
    except (ValueError, OSError):  # macOS refuses an infinite limit
        pass
    return None if soft == resource.RLIM_INFINITY else soft
