"""What the commands over `collect` share: the options of a run, and its beginning and end."""

from __future__ import annotations

import math
import sys
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Final

import typer

from agentsys.collect.report import ProgressView, print_summary
from agentsys.collect.runner import Options, Summary, collect
from agentsys.knobs import knob
from agentsys.models.cache import default_path
from agentsys.models.endpoint import DEFAULT_IN_FLIGHT
from agentsys.records import SHUFFLE_BUFFER, InputError, check_seed

MOST_IN_FLIGHT: Final = 100_000
"""Requests that one run can have under way."""


@dataclass(frozen=True)
class RunOptions:
    """The options of every collect command."""

    panel: ClassVar[str] = "Run"

    input: Path | None = knob(None, "records: .jsonl, .json, .csv, .tsv, .parquet or .txt")
    out: Path | None = knob(None, "output folder; a run that is there already is resumed")
    field: list[str] = knob((), "graph field and column, as text=sentence; may be repeated")
    id_field: str = knob("id", "column that holds the record's id; without it the id is a digest of the record")
    limit: int | None = knob(None, "take only the first so many records")
    shuffle: bool = knob(False, f"shuffle the input (in a buffer of {SHUFFLE_BUFFER:,} records)")
    seed: int = knob(0, "seed of the shuffle")
    in_flight: int = knob(DEFAULT_IN_FLIGHT, "requests in flight per server")
    token_budget: int | None = knob(None, "take no new record after so many tokens, prompt and completion")
    retry_failed: bool = knob(False, "try the failed records again")
    cache: Path | None = knob(None, "request cache file; by default one in the user's cache folder")
    no_cache: bool = knob(False, "neither read nor write the request cache")
    cache_limit: float = knob(20.0, "size in GB beyond which the cache's oldest calls go")

    def runner(self) -> Options:
        """The runner's options. Raises InputError for a --field that is no pair."""
        pairs = [entry.partition("=") for entry in self.field]
        if bad := ["".join(pair) for pair in pairs if not all(pair)]:
            raise InputError(f"--field {bad[0]}: give graph field and column, as --field text=sentence")
        least = {"in_flight": 1, "limit": 1, "token_budget": 1, "cache_limit": 0}
        for name, bound in least.items():
            if (value := getattr(self, name)) is not None and value < bound:
                raise InputError(f"--{name.replace('_', '-')} {value}: at least {bound} is needed")
        if self.in_flight > MOST_IN_FLIGHT:
            raise InputError(f"--in-flight {self.in_flight}: at most {MOST_IN_FLIGHT:,} can be held")
        if not math.isfinite(self.cache_limit):
            raise InputError(f"--cache-limit {self.cache_limit}: give a size in GB")
        check_seed(self.seed)
        return Options(
            limit=self.limit,
            shuffle=self.shuffle,
            seed=self.seed,
            in_flight=self.in_flight,
            cache=None if self.no_cache else self.cache or default_path(),
            cache_limit=int(self.cache_limit * 1e9),
            retry_failed=self.retry_failed,
            token_budget=self.token_budget,
            fields={name: column for name, _, column in pairs},
            id_field=self.id_field,
        )


def run_with_view(
    graph: Any,
    records: Path | Iterable[Mapping[str, Any] | str],
    run: RunOptions,
    context: Any,
    *,
    out: Path | None = None,
) -> Summary:
    """`collect` with a progress view; without --out the folder is runs/<name of the graph>."""
    with ProgressView(total=run.limit) as view:
        folder = out or run.out or Path("runs") / graph.name
        return collect(graph, records, folder, context=context, options=run.runner(), watch=view)


def finish(summary: Summary, run: RunOptions, extra: Iterable[tuple[str, str]] = ()) -> None:
    """Print the table and end the command: exit code 3 if records failed, 130 after Ctrl-C."""
    print_summary(summary, run.runner().cache, extra)
    if summary.stopped:
        print(f"stopped: {summary.stopped}; the same command goes on from here", file=sys.stderr)
    if summary.stopped == "interrupted":
        raise typer.Exit(130)
    if summary.failed:
        raise typer.Exit(3)
