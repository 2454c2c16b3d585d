"""The options of a run, one list for Python and for every command: which records, and how a graph runs over them."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Final

from agentsys.collect.limits import SAME_IN_A_ROW, FailureLimit, Price
from agentsys.knobs import check_required, knob
from agentsys.models.cache import default_path
from agentsys.models.endpoint import DEFAULT_IN_FLIGHT
from agentsys.records import SHUFFLE_BUFFER, InputError, check_seed

MAX_IN_FLIGHT: Final = 100_000
"""Requests that one run can have in flight."""


@dataclass(frozen=True)
class RecordOptions:
    """Which records of a file are used, and how they are read.

    Raises InputError for a value out of range and for a malformed field, ValueError for a blank column.
    """

    field: list[str] = knob((), "field and the column that holds it, as text=sentence; may be repeated")
    id_field: str = knob(
        "id", "column with the record's id; without a value there, the id is a hash of the record", required=True
    )
    limit: int | None = knob(None, "use only the first LIMIT records")
    shuffle: bool = knob(False, f"shuffle the records before --limit (in a buffer of {SHUFFLE_BUFFER:,})")
    seed: int = knob(0, "seed of the shuffle")

    def __post_init__(self) -> None:
        for entry in self.field:
            if not all(entry.partition("=")):
                raise InputError(f"--field {entry}: give graph field and column, as --field text=sentence")
        check_required(self)
        self.check_minimum(limit=1)
        check_seed(self.seed)

    def check_minimum(self, **bounds: float) -> None:
        """Raises InputError for the first of these options that is given and below its bound."""
        for name, bound in bounds.items():
            if (value := getattr(self, name)) is not None and value < bound:
                raise InputError(f"--{name.replace('_', '-')} {value}: at least {bound} is needed")

    @property
    def fields(self) -> dict[str, str]:
        """The column of each field that `field` maps."""
        pairs = [entry.partition("=") for entry in self.field]
        return {name: column for name, _, column in pairs}


@dataclass(frozen=True)
class RunOptions(RecordOptions):
    """How `collect` runs a graph over records. Raises InputError for a value out of range and for a malformed field."""

    panel: ClassVar[str] = "Run"

    in_flight: int = knob(DEFAULT_IN_FLIGHT, "requests in flight per server")
    token_budget: int | None = knob(None, "start no new record after this many tokens, prompt and completion")
    price: str = knob("", "price of a million prompt and completion tokens, as 0.15,0.6: adds the cost to the summary")
    cost_budget: float | None = knob(None, "start no new record after this cost; needs --price")
    max_failures: str = knob(
        "",
        "stop after N failed records, or above a share of them such as 0.1; none: never. By default "
        f"{SAME_IN_A_ROW} records in a row with the same error stop the run",
    )
    retry_failed: bool = knob(False, "retry the failed records", old_name="retry_rejected", once=True)
    cache: Path | None = knob(None, "request cache file; by default one in the user's cache folder")
    no_cache: bool = knob(False, "run without the request cache")
    cache_limit: float = knob(20.0, "size in GB above which the oldest calls are removed from the cache")

    def __post_init__(self) -> None:
        super().__post_init__()
        self.check_minimum(in_flight=1, token_budget=1, cache_limit=0)
        FailureLimit.parse(self.max_failures)
        if self.cost_budget is not None and not (Price.parse(self.price) and 0 < self.cost_budget < math.inf):
            raise InputError(f"--cost-budget {self.cost_budget}: give a sum above 0, and --price with it")
        Price.parse(self.price)
        if self.in_flight > MAX_IN_FLIGHT:
            raise InputError(f"--in-flight {self.in_flight}: at most {MAX_IN_FLIGHT:,} requests can be in flight")
        if not math.isfinite(self.cache_limit):
            raise InputError(f"--cache-limit {self.cache_limit}: give a size in GB")

    @property
    def cache_path(self) -> Path | None:
        """The request cache's file; None without a cache."""
        return None if self.no_cache else Path(self.cache or default_path())

    @property
    def cache_bytes(self) -> int:
        """`cache_limit` in bytes."""
        return int(self.cache_limit * 1e9)
