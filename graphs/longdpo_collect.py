"""Collect LongDPO's stepwise preferences. `python graphs/longdpo_collect.py --help` lists the options."""

from __future__ import annotations

import asyncio
import sys
from collections import Counter
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from statistics import fmean

from agentsys.collect.command import CollectOptions, finish, run_with_view
from agentsys.collect.report import pair_rows
from agentsys.commands import command, run_app
from agentsys.graphs.longdpo.search import SearchContext, graph
from agentsys.graphs.longdpo.system import check_memory
from agentsys.records import InputError
from agentsys.traces import Trace, read_traces


def findings(traces: Iterable[Trace]) -> list[tuple[str, str]]:
    """Rows of the last table: pairs and their margins, values of the choices, and what a pair cost."""
    margins: list[float] = []
    values: list[float] = []
    stops: Counter[str] = Counter()
    records = calls = tokens = rewritten = 0
    for trace in traces:
        records += 1
        calls += len(trace.calls)
        tokens += sum(call.completion_tokens for call in trace.calls)
        margins += [target.scores["margin"] for target in trace.targets]
        stops[str((trace.result or {}).get("stop", "")).partition(" (")[0]] += 1
        for layer in (trace.result or {}).get("layers", []):
            step = layer["candidates"][layer["chosen"]]
            values.append(step["value"])
            rewritten += bool(step.get("suggestions"))
    rows = [("pairs", f"{len(margins)} from {records} requests"), *pair_rows(margins, calls, tokens)]
    rows.append(("what ended the responses", ", ".join(f"{reason} {n}" for reason, n in stops.most_common())))
    if values:
        rows.append(("mean value of the chosen steps, 1-5", f"{fmean(values):.2f} ({rewritten} rewritten)"))
    return rows


def main(run: CollectOptions, context: SearchContext) -> None:
    """Write stepwise preference pairs: a long response in layers, the best consistent step of each against another.

    A record has a prompt, and perhaps a length in words. A run that is in --out is resumed.
    """
    if run.input is None:
        raise InputError("--input: name a file of requests (prompt, length), .jsonl or .parquet, say")
    out = run.out or Path("runs") / f"longdpo-{run.input.stem}"
    asyncio.run(check_memory(context))
    summary = run_with_view(graph, run.input, replace(run, out=out), context)
    print(f"traces and data-set card: {summary.out}")
    finish(summary, run, findings(read_traces(summary.out)))


if __name__ == "__main__":
    sys.exit(run_app(command(main)))
