"""Collect LongDPO's stepwise preference pairs. `python graphs/longdpo_collect.py --help` lists the options."""

from __future__ import annotations

import asyncio
import sys
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from statistics import fmean

from agentsys.collect.command import CollectOptions, finish, run_with_view
from agentsys.collect.report import pair_rows
from agentsys.commands import command, run_app
from agentsys.display import show
from agentsys.graphs.longdpo.memory import check_embedder
from agentsys.graphs.longdpo.search import SearchContext, graph
from agentsys.records import InputError
from agentsys.traces import Trace, read_traces


def summarize(traces: Iterable[Trace]) -> list[tuple[str, str]]:
    """Rows of the final table: the pairs with margins and cost, why responses stopped, and the chosen steps' values."""
    margins: list[float] = []
    values: list[float] = []
    stops: Counter[str] = Counter()
    records = calls = tokens = rewritten = 0
    for trace in traces:
        result = trace.result or {}
        records += 1
        calls += len(trace.calls)
        tokens += sum(call.completion_tokens for call in trace.calls)
        margins += [target.scores["margin"] for target in trace.targets]
        stops[str(result.get("stop", "")).partition(" (")[0]] += 1
        for layer in result.get("layers", []):
            step = layer["candidates"][layer["chosen"]]
            values.append(step["value"])
            rewritten += bool(step.get("suggestions"))
    rows = [("pairs", f"{len(margins)} from {records} requests"), *pair_rows(margins, calls, tokens)]
    rows.append(("why responses stopped", ", ".join(f"{reason} {n}" for reason, n in stops.most_common())))
    if values:
        rows.append(("mean value of the chosen steps, 1-5", f"{fmean(values):.2f} ({rewritten} rewritten)"))
    return rows


def main(run: CollectOptions, context: SearchContext) -> None:
    """Write a long response to each request, layer by layer, and a preference pair of steps from each layer.

    A record has a prompt, and optionally a length in words. An unfinished run in --out is resumed.
    """
    if run.input is None:
        raise InputError("--input: name a file of requests (prompt and optionally length), such as requests.jsonl")
    asyncio.run(check_embedder(context.embedding))
    out = run.out or Path("runs") / f"longdpo-{run.input_name}"
    summary = run_with_view(graph, run.input, run, context, out=out)
    show(f"traces and data-set card: {summary.out}")
    finish(summary, run, summarize(read_traces(summary.out)))


app = command(main, name="collect longdpo")

if __name__ == "__main__":
    sys.exit(run_app(app))
