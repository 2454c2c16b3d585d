"""Collect long-thought translation data with DRT. `python graphs/drt_collect.py --help` lists the options."""

from __future__ import annotations

import os
import sys
from collections import Counter, defaultdict
from dataclasses import replace
from pathlib import Path
from typing import Final

import orjson

from agentsys.collect.command import CollectOptions, finish, run_with_view
from agentsys.commands import command, run_app
from agentsys.display import show
from agentsys.graphs.drt.mine import Books, mine
from agentsys.graphs.drt.system import Context, graph
from agentsys.inputs.files import name_input
from agentsys.records import InputError
from agentsys.traces import read_traces

EXAMPLES: Final = Path(__file__).parent / "examples" / "similes.jsonl"
"""Fourteen English sentences with similes and metaphors, written for this project."""
DEFAULT_EXAMPLES: Final = 6
"""How many of them a run without --input, --book and --limit takes."""


def write_records(folder: Path) -> tuple[Path, list[tuple[str, str]]]:
    """Write the kept records in the published format, {"text", "trans", "thought"}.

    Returns the file and the table rows with the mean score of each round.
    """
    sums: defaultdict[int, float] = defaultdict(float)
    counts: Counter[int] = Counter()
    path, temporary = folder / "records.jsonl", folder / ".records.jsonl.tmp"
    with temporary.open("wb") as file:
        for trace in read_traces(folder):
            result = trace.result or {}
            for k, step in enumerate(result.get("steps", [])):
                sums[k] += step["score"]
                counts[k] += 1
            if trace.outcome == "kept":
                file.write(orjson.dumps({name: result[name] for name in ("text", "trans", "thought")}) + b"\n")
    os.replace(temporary, path)
    names = {0: "mean score of the first draft"}
    rows = [(names.get(k, f"mean score after round {k}"), f"{sums[k] / n:.1f} (n={n})") for k, n in counts.items()]
    return path, rows


def main(run: CollectOptions, context: Context, books: Books) -> None:
    """Write long-thought translation data with DRT: draft, advice, score, refinements, and the thought behind them.

    Without --input and --book the first 6 of the shipped sentences are used. An unfinished run in --out is resumed.
    """
    if (books.miner_model or books.miner_prompt) and not books.book:
        raise InputError("--miner-model and --miner-prompt need a book to mine; add --book FILE")
    source = books.book[0] if books.book else run.input
    run = replace(run, out=run.out or Path("runs") / (f"drt-{name_input(str(source))}" if source else "drt"))
    records = run.input
    if books.book:
        records = mine(books, run, context)
    elif records is None:
        records = EXAMPLES
        run = replace(run, limit=run.limit or DEFAULT_EXAMPLES)
    summary = run_with_view(graph, records, run, context)
    path, rows = write_records(summary.out)
    show(f"traces and data-set card: {summary.out}", f"records (text, trans, thought): {path}")
    finish(summary, run, rows)


app = command(main, name="collect drt")

if __name__ == "__main__":
    sys.exit(run_app(app))
