"""Collect preference pairs of steps from maths questions. `python graphs/maths_collect.py --help` lists the options."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Iterable
from pathlib import Path

from agentsys.collect.command import CollectOptions, finish, run_with_view
from agentsys.collect.report import pair_rows
from agentsys.commands import command, run_app
from agentsys.display import show
from agentsys.graphs.maths.search import Context, graph
from agentsys.metrics.maths import check_installed
from agentsys.models.reward import is_reward_spec, load_reward_model
from agentsys.records import InputError
from agentsys.traces import Trace, read_traces


def summarize(traces: Iterable[Trace]) -> list[tuple[str, str]]:
    """Rows of the final table: the questions solved, the finished solutions, and the pairs, their margins and cost."""
    margins: list[float] = []
    kinds: Counter[str] = Counter()
    questions = solved = right = tried = as_text = calls = tokens = 0
    for trace in traces:
        steps = [step for node in trace.tree or () for step in (node, *node.get("rollouts", ())) if "right" in step]
        questions += 1
        solved += any(step["right"] for step in steps)
        right += sum(step["right"] for step in steps)
        tried += len(steps)
        as_text += sum(step["how"] == "text" for step in steps)
        calls += len(trace.calls)
        tokens += sum(call.completion_tokens for call in trace.calls)
        margins += [target.scores["margin"] for target in trace.targets if target.kind == "step"]
        kinds.update(target.kind for target in trace.targets)
    return [
        ("questions solved at least once", f"{solved} of {questions}"),
        ("  right solutions, rollouts included", f"{right} of {tried}"),
        ("  answers compared as text", str(as_text)),
        ("pairs", str(len(margins))),
        *pair_rows(margins, calls, tokens),
        *((f"targets of kind {kind}", str(count)) for kind, count in sorted(kinds.items()) if kind != "step"),
    ]


def main(run: CollectOptions, context: Context) -> None:
    """Write preference pairs of steps: tree search over solutions whose answers are checked.

    A record has question and answer (GSM8K's "... #### 12"), or problem and answer or solution (MATH). An unfinished
    run in --out is resumed.
    """
    if run.input is None:
        raise InputError("--input: name a file of questions with their answers, such as questions.jsonl")
    check_installed()
    if is_reward_spec(context.value):
        load_reward_model(context.value)
    out = run.out or Path("runs") / f"maths-{context.pairs}-{run.input_name}"
    summary = run_with_view(graph, run.input, run, context, out=out)
    show(f"traces and data-set card: {summary.out}")
    finish(summary, run, summarize(read_traces(summary.out)))


app = command(main, name="collect maths")

if __name__ == "__main__":
    sys.exit(run_app(app))
