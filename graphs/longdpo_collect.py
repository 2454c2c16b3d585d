"""Collect LongDPO's stepwise preference pairs. `python graphs/longdpo_collect.py --help` lists the options."""

from __future__ import annotations

import asyncio
import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import ClassVar

from agentsys.collect.command import CollectOptions, finish, run_with_view
from agentsys.commands import command, knob, run_app
from agentsys.display import show
from agentsys.graphs.longdpo.memory import check_embedder
from agentsys.graphs.longdpo.report import eta_of_run, summarize
from agentsys.graphs.longdpo.search import PAPER, SearchContext, graph
from agentsys.records import InputError
from agentsys.traces import read_traces


@dataclass(frozen=True)
class EtaOptions:
    """Eta as a quantile of the values that the judge gave in an earlier run."""

    panel: ClassVar[str] = "Critique"
    eta_run: Path | None = knob(None, "earlier run with the same judge, such as a pilot, to take eta from")
    eta_quantile: float = knob(0.1, "with --eta-run: the share of its chosen steps that eta would rewrite")

    def apply(self, context: SearchContext) -> SearchContext:
        """The context with the eta of the run, if one is named. Raises InputError."""
        if not 0 < self.eta_quantile < 1:
            raise InputError(f"--eta-quantile {self.eta_quantile:g}: give a share above 0 and below 1, such as 0.1")
        if self.eta_run is None:
            return context
        eta, steps = eta_of_run(self.eta_run, self.eta_quantile)
        show(f"eta: {eta:.3f}, the {self.eta_quantile:g} quantile of {steps} chosen steps in {self.eta_run}")
        return replace(context, eta=eta)


def main(run: CollectOptions, critique: EtaOptions, context: SearchContext) -> None:
    """Write a long response to each request, layer by layer, and a preference pair of steps from each layer.

    A record has a prompt, and optionally a length in words. An unfinished run in --out is resumed.
    """
    if run.input is None:
        raise InputError("--input: name a file of requests (prompt and optionally length), such as requests.jsonl")
    context = critique.apply(context)
    asyncio.run(check_embedder(context.embedding))
    out = run.out or Path("runs") / f"longdpo-{run.input_name}"
    summary = run_with_view(graph, run.input, run, context, out=out)
    show(f"traces and data-set card: {summary.out}")
    finish(summary, run, summarize(read_traces(summary.out), context))


app = command(main, name="collect longdpo", profiles={"paper": PAPER})

if __name__ == "__main__":
    sys.exit(run_app(app))
