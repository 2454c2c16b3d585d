"""Evaluated systems as collect runs, each in a folder of its own."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar, Final

from agentsys.collect import RunOptions, collect
from agentsys.collect.fingerprint import context_models
from agentsys.collect.limits import SAME_IN_A_ROW, Spending
from agentsys.collect.manifest import read_manifest
from agentsys.collect.pictures import PictureOptions
from agentsys.collect.report import ProgressView
from agentsys.config import save_config
from agentsys.display import say
from agentsys.knobs import knob, split_names
from agentsys.models.endpoint import DEFAULT_IN_FLIGHT
from agentsys.records import InputError
from agentsys.telemetry import export_spans
from agentsys.traces import Trace, read_finished

OTHER_INTEGRATION: Final = "of another integration"
"""The name that reports give a model of a `langchain:` spec, which has no name in the fingerprint."""


@dataclass(frozen=True)
class OutputOptions:
    """Where an evaluation writes, and how it calls its models. Raises InputError for a bad value."""

    panel: ClassVar[str] = "Run"
    out: Path | None = knob(None, "folder of results and runs; rerun the same command to resume")
    in_flight: int = knob(DEFAULT_IN_FLIGHT, "requests in flight per server")
    cache: Path | None = knob(None, "request cache that all systems share; default: one per system, in its folder")
    price: str = knob(
        "", "price of a million prompt and completion tokens, as 0.15,0.6: the cost of each system is said"
    )
    cost_budget: float | None = knob(None, "start no new record after this cost of all systems; needs --price")
    max_failures: str = knob(
        "",
        "stop after N failed records of a system, or above a share of them such as 0.1; none: never. By default "
        f"{SAME_IN_A_ROW} records in a row with the same error stop it",
    )

    def __post_init__(self) -> None:
        # The bounds are those of a collect run.
        RunOptions(in_flight=self.in_flight, **self._limits)

    @property
    def _limits(self) -> dict[str, Any]:
        return {"price": self.price, "cost_budget": self.cost_budget, "max_failures": self.max_failures}

    @cached_property
    def spending(self) -> Spending:
        """What the systems have cost so far."""
        return Spending(self.cost_budget)

    def folder(self, default_name: str) -> Path:
        """--out, or runs/<default_name>. Raises InputError if the path is a file."""
        if self.out and self.out.exists() and not self.out.is_dir():
            raise InputError(f"--out {self.out}: this is a file; name a folder")
        return self.out or Path("runs") / default_name

    def run_options(self, folder: Path) -> RunOptions:
        """The options of a system's run in `folder`: failed records are retried. Raises InputError."""
        cache = self.cache or folder / "requests.sqlite"
        return RunOptions(in_flight=self.in_flight, cache=cache, retry_failed=True, **self._limits)


@dataclass(frozen=True, slots=True)
class SystemRun:
    """One system over the sample: a graph, its context, its records, the folder of the run, and their pictures."""

    name: str
    graph: Any
    context: Any
    records: Sequence[Mapping[str, Any]]
    folder: Path
    pictures: PictureOptions | None = None

    def check(self, noun: str, fields: Collection[str] = ()) -> None:
        """Check the models and the folder before any call.

        Raises SpecError, and InputError if the folder has another input with the id of one of the records: one that
        differs in `fields`, or if there are none, in any field.
        """
        context_models(self.context)
        records = {str(record["id"]): record for record in self.records}
        for trace in read_finished(self.folder) if self.folder.exists() else ():
            record = records.get(trace.id)
            if record is None:
                continue
            if any(trace.input.get(key) != record.get(key) for key in fields or {*trace.input, *record}):
                raise InputError(
                    f"{self.folder}: {noun} {trace.id} differs from the one that was evaluated there; choose another "
                    "--out"
                )

    def collect(self, options: RunOptions, spending: Spending | None = None) -> Iterator[Trace]:
        """Run what is missing; then the traces of all records one by one, in no order, failed ones included.

        `spending` is what earlier runs of the command have cost; their budget is shared. Raises what
        `agentsys.collect.collect` raises, BudgetSpent, and KeyboardInterrupt if the run was stopped.
        """
        if not self.records:
            return iter(())
        spending = spending or Spending(options.cost_budget)
        options = replace(options, cost_budget=spending.left)
        export_spans()
        with ProgressView(total=len(self.records), show_records=False, step=self.name) as view:
            more: dict[str, Any] = {"options": options, "pictures": self.pictures, "watch": view}
            summary = collect(self.graph, self.records, self.folder, context=self.context, **more)
        if summary.cost is not None:
            spending.cost += summary.cost
            say(f"{self.name}: cost {summary.cost:,.4f}")
        ids = {str(record["id"]) for record in self.records}
        if summary.stopped == "cost budget":
            if sum(trace.id in ids for trace in read_finished(self.folder)) < len(ids):
                raise spending.spent()
        elif summary.stopped:
            raise KeyboardInterrupt
        return (trace for trace in read_finished(self.folder) if trace.id in ids)

    def manifest(self) -> dict[str, Any]:
        """The run's manifest; empty if nothing was run. Raises RunFolderError for a damaged one."""
        return read_manifest(self.folder)

    def model_name(self, field: str = "model") -> str:
        """The name of the model in a field of the context, as the run's fingerprint has it."""
        models = self.manifest()["fingerprint"]["models"]
        return str(models[field]["name"]) if field in models else OTHER_INTEGRATION


def choose_systems(option: str, available: Sequence[str]) -> list[str]:
    """The systems that --systems names, in the order of `available`; all if it is empty. Raises InputError."""
    names = split_names(option)
    if unknown := [name for name in names if name not in available]:
        raise InputError(f"--systems: there is no '{unknown[0]}'; there are {', '.join(available)}")
    return [name for name in available if name in names or not names]


def collect_systems(
    runs: Sequence[SystemRun], output: OutputOptions, out: Path, noun: str, fields: Collection[str] = ()
) -> Iterator[tuple[SystemRun, Iterator[Trace]]]:
    """Check all systems before any call (see `SystemRun.check`), then run them in order; each with its traces.

    The command's run.yaml is written to `out`, the evaluation's folder. Raises InputError for a bad option, and what
    `check` and `collect` of SystemRun raise.
    """
    options = [output.run_options(run.folder) for run in runs]
    for run in runs:
        run.check(noun, fields)
    save_config(out)
    for number, run in enumerate(runs, 1):
        say(f"{run.name} ({number} of {len(runs)})")
        yield run, run.collect(options[number - 1], output.spending)


def seconds_of(trace: Trace) -> float | None:
    """The wall time of a record; None if one of its calls came from the request cache."""
    cached = any(call.measured.get("cache_hit") for call in trace.calls)
    return None if cached else trace.measured["seconds"]
