"""Collect DeepRAG's training data. `python graphs/deeprag_collect.py --help` lists the options."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

from agentsys.collect.command import CollectOptions, finish, run_with_view
from agentsys.commands import command, run_app
from agentsys.graphs.deeprag.search import SearchContext, graph
from agentsys.knowledge.context import with_index
from agentsys.records import InputError
from agentsys.traces import Trace, read_traces


def findings(traces: Iterable[Trace]) -> list[tuple[str, str]]:
    """Rows of the last table: best paths, targets, and what a question cost."""
    questions = correct = nodes = calls = 0
    searches: list[int] = []
    steps: list[int] = []
    kinds: Counter[str] = Counter()
    for trace in traces:
        tree, result = trace.tree or [], trace.result or {}
        questions += 1
        correct += any(node["outcome"] == "goal" for node in tree)
        nodes += len(tree)
        calls += len(trace.calls)
        kinds.update(target.kind for target in trace.targets)
        if "steps" in result:
            searches.append(result["retrievals"])
            steps.append(len(result["steps"]))
    rows = [("questions with a correct path", f"{correct} of {questions}")]
    if steps:
        best = f"{sum(searches) / len(steps):.2f} and {sum(steps) / len(steps):.2f}"
        rows.append(("  mean retrievals and steps of the best paths", best))
    rows += [(f"targets of kind {kind}", str(count)) for kind, count in sorted(kinds.items())]
    if questions:
        rows.append(("nodes and calls a question", f"{nodes / questions:.1f} and {calls / questions:.1f}"))
    return rows


def main(run: CollectOptions, context: SearchContext) -> None:
    """Write DeepRAG's training data: the best path of each question (imitation), or pairs of decisions (calibration).

    A record has a question, and its right answers in the fields answer, answers and answer_aliases. A run that is in
    --out is resumed.
    """
    if run.input is None:
        raise InputError("--input: name a file of questions with their answers, .jsonl or .parquet, say")
    context = with_index(context)
    out = run.out or Path("runs") / f"deeprag-{context.stage}-{run.input.stem}"
    summary = run_with_view(graph, run.input, replace(run, out=out), context)
    print(f"traces and data-set card: {summary.out}")
    finish(summary, run, findings(read_traces(summary.out)))


if __name__ == "__main__":
    sys.exit(run_app(command(main)))
