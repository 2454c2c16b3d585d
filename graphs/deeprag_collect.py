"""Collect DeepRAG's training data. `python graphs/deeprag_collect.py --help` lists the options."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from statistics import fmean

from agentsys.collect.command import CollectOptions, finish, run_with_view
from agentsys.commands import command, run_app
from agentsys.display import show
from agentsys.graphs.deeprag.search import SearchContext, graph
from agentsys.graphs.deeprag.targets import prefers_retrieval
from agentsys.knowledge.context import with_index
from agentsys.records import InputError
from agentsys.traces import Trace, read_traces


def summarize_traces(traces: Iterable[Trace]) -> list[tuple[str, str]]:
    """Rows of the last table: best paths, targets, and the cost per question."""
    questions = correct = nodes = calls = 0
    retrievals: list[int] = []
    steps: list[int] = []
    kinds: Counter[str] = Counter()
    preferred: Counter[bool] = Counter()
    for trace in traces:
        tree, result = trace.tree or [], trace.result or {}
        questions += 1
        correct += any(node["outcome"] == "goal" for node in tree)
        nodes += len(tree)
        calls += len(trace.calls)
        kinds.update(target.kind for target in trace.targets)
        preferred.update(prefers_retrieval(target) for target in trace.targets if target.kind == "step")
        if "steps" in result:
            retrievals.append(result["retrievals"])
            steps.append(len(result["steps"]))
    rows = [("questions with a correct path", f"{correct} of {questions}")]
    if steps:
        means = f"{fmean(retrievals):.2f} and {fmean(steps):.2f}"
        rows.append(("  mean retrievals and steps of the best paths", means))
    rows += [(f"targets of kind {kind}", str(count)) for kind, count in sorted(kinds.items())]
    if preferred:
        text = f"{preferred[True]} to retrieve, {preferred[False]} from memory"
        rows.append(("  preferred decisions", text))
    if questions:
        rows.append(("nodes and calls per question", f"{nodes / questions:.1f} and {calls / questions:.1f}"))
    return rows


def main(run: CollectOptions, context: SearchContext) -> None:
    """Write DeepRAG's training data: the best path of each question (imitation), or pairs of decisions (calibration).

    A record has a question and its gold answers in the fields answer, answers and answer_aliases. An unfinished run in
    --out is resumed.
    """
    if run.input is None:
        raise InputError("--input: name a file of questions with their answers, such as a .jsonl or .parquet file")
    context = with_index(context)
    out = run.out or Path("runs") / f"deeprag-{context.stage}-{run.input_name}"
    summary = run_with_view(graph, run.input, replace(run, out=out), context)
    show(f"traces and data-set card: {summary.out}")
    finish(summary, run, summarize_traces(read_traces(summary.out)))


app = command(main, name="collect deeprag")

if __name__ == "__main__":
    sys.exit(run_app(app))
