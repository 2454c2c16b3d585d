"""Collect DeepRAG's training data. `python graphs/deeprag_collect.py --help` lists the options."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import TypeVar

from agentsys.collect.command import RunOptions, finish, run_with_view
from agentsys.commands import command, run_app
from agentsys.records import InputError
from agentsys.traces import Trace, read_traces
from graphs.deeprag import Knowledge
from graphs.deeprag_search import Context, graph

K = TypeVar("K", bound=Knowledge)


def with_index(context: K) -> K:
    """The context with its index's digest filled in, once the index could be opened.

    Raises InputError where none is named, KnowledgeError where it is none or has not the retriever that is asked for.
    """
    from agentsys.knowledge import index_digest, load_retriever

    if not context.index:
        raise InputError(
            "--index: name the folder of an index; `python -m agentsys.knowledge build passages.jsonl --out index` "
            "makes one"
        )
    load_retriever(context.index, context.retriever)
    return replace(context, index_digest=index_digest(context.index))


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


def main(run: RunOptions, context: Context) -> None:
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
