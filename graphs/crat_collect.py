"""Collect translations with CRAT. `python graphs/crat_collect.py --help` lists the options."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from agentsys.collect.command import CollectOptions, finish, run_with_view
from agentsys.commands import command, run_app
from agentsys.display import show
from agentsys.graphs.crat.measures import summarize, write_graphs
from agentsys.graphs.crat.state import with_digest
from agentsys.graphs.crat.system import Context, graph
from agentsys.records import InputError
from agentsys.terms.sources import source_summary
from agentsys.traces import read_traces

Graphs = Annotated[Path | None, typer.Option(help="folder for each document's knowledge graph, as GraphML and PNG")]


def main(run: CollectOptions, context: Context, graphs: Graphs = None) -> None:
    """Translate with CRAT: unknown terms are looked up, collected in a knowledge graph and judged before use.

    A record has a text, or the sentences of a document as a list. An unfinished run in --out is resumed.
    """
    if run.input is None:
        raise InputError("--input: name a file of texts (text) or documents (sentences), such as texts.jsonl")
    if graphs is not None and graphs.exists() and not graphs.is_dir():
        raise InputError(f"--graphs {graphs}: it is a file; name a folder")
    context = with_digest(context)
    for line in source_summary(context.specs, context.source_language, context.target_language):
        show(line)
    out = run.out or Path("runs") / f"crat-{run.input_name}"
    summary = run_with_view(graph, run.input, run, context, out=out)
    show(f"traces and data-set card: {summary.out}")
    if graphs is not None:
        show(f"knowledge graphs: {write_graphs(read_traces(summary.out), graphs)} in {graphs}")
    finish(summary, run, summarize(read_traces(summary.out)))


app = command(main, name="collect crat")

if __name__ == "__main__":
    sys.exit(run_app(app))
