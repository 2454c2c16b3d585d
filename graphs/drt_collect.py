"""Collect long-thought translation data with DRT. `python graphs/drt_collect.py --help` lists the options."""

from __future__ import annotations

import os
import sys
from collections import defaultdict
from dataclasses import replace
from pathlib import Path

import orjson

from agentsys.collect.command import CollectOptions, finish, run_with_view
from agentsys.commands import command, run_app
from agentsys.graphs.drt.mine import Books, mine
from agentsys.graphs.drt.system import Context, graph
from agentsys.records import InputError
from agentsys.traces import read_traces

EXAMPLES = Path(__file__).parent / "examples" / "similes.jsonl"
"""Fourteen English sentences with similes and metaphors, written for this project."""
EXAMPLES_TAKEN = 6


def write_records(folder: Path) -> tuple[Path, list[tuple[str, str]]]:
    """The kept records in the published format, {"text", "trans", "thought"}, and the mean score of each round."""
    scores: dict[int, list[float]] = defaultdict(lambda: [0.0, 0.0])
    temporary = folder / ".records.jsonl.tmp"
    with temporary.open("wb") as file:
        for trace in read_traces(folder):
            result = trace.result or {}
            for k, step in enumerate(result.get("steps", [])):
                scores[k][0] += step["score"]
                scores[k][1] += 1
            if trace.outcome == "kept":
                file.write(orjson.dumps({name: result[name] for name in ("text", "trans", "thought")}) + b"\n")
    os.replace(temporary, folder / "records.jsonl")
    names = {0: "mean score of the first draft"}
    means = [(names.get(k, f"mean score after round {k}"), f"{s / n:.1f} (n={n:.0f})") for k, (s, n) in scores.items()]
    return folder / "records.jsonl", means


def main(run: CollectOptions, context: Context, books: Books) -> None:
    """Write long-thought translation data with DRT: draft, advice, score, refinement, and the thought behind it all.

    Without --input and --book it takes the first 6 of the shipped sentences. A run that is in --out is resumed.
    """
    if (books.miner_model or books.miner_prompt) and not books.book:
        raise InputError("--miner-model, --miner-prompt: nothing is mined; name a --book")
    records = run.input
    named = books.book[0] if books.book else run.input
    run = replace(run, out=run.out or Path("runs") / (f"drt-{named.stem}" if named else "drt"))
    if books.book:
        records = mine(books, run, context)
    elif records is None:
        records = EXAMPLES
        run = replace(run, limit=run.limit or EXAMPLES_TAKEN)
    summary = run_with_view(graph, records, run, context)
    path, means = write_records(summary.out)
    print(f"traces and data-set card: {summary.out}\nrecords (text, trans, thought): {path}")
    finish(summary, run, means)


if __name__ == "__main__":
    sys.exit(run_app(command(main)))
