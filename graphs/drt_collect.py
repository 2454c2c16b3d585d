"""Collect long-thought translation data with DRT. `python graphs/drt_collect.py --help` lists the options."""

from __future__ import annotations

import os
import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

import orjson

from agentsys.collect.command import CollectOptions, finish, run_with_view
from agentsys.collect.run_report import file_line, print_report, write_report
from agentsys.commands import command, run_app
from agentsys.console import Console
from agentsys.display import show
from agentsys.graphs.drt.mine import Books, mine
from agentsys.graphs.drt.system import Context, graph
from agentsys.inputs.count import count_records
from agentsys.knobs import knob
from agentsys.records import InputError
from agentsys.text.languages import language
from agentsys.traces import read_traces

EXAMPLES: Final = {"zh": "similes-zh.jsonl", "en": "similes.jsonl"}
"""Sentences with similes and metaphors by language, written for this project."""
DEFAULT_EXAMPLES: Final = 6
"""How many of them a run without --input, --book and --limit takes."""


@dataclass(frozen=True)
class DRTOptions(CollectOptions):
    """The options of a DRT run. Raises InputError for a pilot without records and for one with another limit."""

    pilot: int | None = knob(
        None,
        "run the first N records only, then report what the method does and what the whole input would take",
        once=True,
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.pilot is None:
            return
        if self.pilot < 1:
            raise InputError(f"--pilot {self.pilot}: give a number of records, 1 or more")
        if self.limit not in (None, self.pilot):
            raise InputError("--pilot and --limit both say how many records to run: give one of them")
        object.__setattr__(self, "limit", self.pilot)


def find_sentences(context: Context) -> Path:
    """The shipped sentences in a run's source language. Raises InputError if there are none."""
    parsed = language(context.source_language)
    name = EXAMPLES.get(parsed.primary if parsed else "")
    if name is None:
        raise InputError(
            f"--source-language {context.source_language}: no sentences are shipped in it; add --input FILE"
        )
    return Path(__file__).parent / "examples" / name


def write_records(folder: Path) -> Path:
    """Write the kept records in the published format, {"text", "trans", "thought"}, and return the file."""
    path, temporary = folder / "records.jsonl", folder / ".records.jsonl.tmp"
    with temporary.open("wb") as file:
        for trace in read_traces(folder):
            if trace.outcome == "kept" and trace.result:
                file.write(orjson.dumps({name: trace.result[name] for name in ("text", "trans", "thought")}) + b"\n")
    os.replace(temporary, path)
    return path


def main(run: DRTOptions, context: Context, books: Books) -> None:
    """Write long-thought translation data with DRT: drafts, feedback, scores, refinements, and the thought behind them.

    Without --input and --book the first 6 of the shipped Chinese sentences are used, with --profile small; with
    --profile paper, of the English ones. An unfinished run in --out is resumed.
    """
    if (books.miner_model or books.miner_prompt) and not books.book:
        raise InputError("--miner-model and --miner-prompt need a book to mine; add --book FILE")
    source = books.book[0] if books.book else run.input
    run = replace(run, out=run.out or Path("runs") / (f"drt-{source.stem}" if source else "drt"))
    records: Any = run.input
    if books.book:
        records = mine(books, run, context)
    elif records is None:
        context = context.with_default_profile("small")
        records = find_sentences(context)
        run = replace(run, limit=run.limit or DEFAULT_EXAMPLES)
    summary = run_with_view(graph, records, run, context)
    path = write_records(summary.out)
    rows: list[tuple[str, str]] = []
    if summary.kept + summary.dropped:
        report = write_report(summary.out, count_records(records, None) if run.pilot else None)
        rows = report.headline
        if run.pilot:
            print_report(report.sections, Console(), report.title)
        show(file_line(report))
    show(f"traces and data-set card: {summary.out}", f"records (text, trans, thought): {path}")
    finish(summary, run, rows)


app = command(main, name="collect drt")

if __name__ == "__main__":
    sys.exit(run_app(app))
