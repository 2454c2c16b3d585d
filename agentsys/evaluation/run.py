"""Evaluated systems as collect runs."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from agentsys.collect import Options, collect
from agentsys.collect.report import ProgressView
from agentsys.knobs import knob
from agentsys.models.endpoint import DEFAULT_IN_FLIGHT
from agentsys.records import InputError
from agentsys.traces import Trace, finished

if TYPE_CHECKING:
    pass


@dataclass(frozen=True)
class Place:
    """How the runs go, and where to."""

    panel: ClassVar[str] = "Run"
    out: Path | None = knob(None, "folder of the results and runs; what is there already is not asked again")
    in_flight: int = knob(DEFAULT_IN_FLIGHT, "requests in flight per server")

    def runner(self, folder: Path, cache: Path | None = None) -> Options:
        """How a system's run goes; its request cache is in its folder unless one is given. Raises InputError."""
        from agentsys.collect import RunOptions

        file = cache or folder / "requests.sqlite"
        return RunOptions(in_flight=self.in_flight, cache=file, retry_failed=True).runner()


@dataclass(frozen=True)
class SharingPlace(Place):
    """A place whose systems may share a request cache."""

    cache: Path | None = knob(None, "request cache that all systems share; by default each has its own in its folder")


def collected(
    graph: Any, records: Sequence[Mapping[str, Any]], folder: Path, context: Any, options: Options
) -> Iterator[Trace]:
    """Collect what is not there yet; then all traces, rejected ones too. Raises `collect`'s, and KeyboardInterrupt."""
    with ProgressView(total=len(records)) as view:
        if collect(graph, records, folder, context=context, options=options, watch=view).stopped:
            raise KeyboardInterrupt
    return finished(folder)


def check_folder(
    folder: Path,
    records: Iterable[Mapping[str, Any]],
    fields: Collection[str],
    what: str,
    has: str = "other words there",
) -> None:
    """Raises InputError where a run has something else in one of the fields under the id of one of the records."""
    by_id = {record["id"]: record for record in records}
    for trace in finished(folder):
        asked = by_id.get(trace.id)
        if asked and any(trace.input.get(name) != asked.get(name) for name in fields):
            raise InputError(f"{folder}: {what} {trace.id} has {has}; choose another --out")


def seconds_of(trace: Trace) -> float | None:
    """The wall time of a record; None where a call came from the request cache."""
    cached = any(call.measured.get("cache_hit") for call in trace.calls)
    return None if cached else trace.measured["seconds"]
