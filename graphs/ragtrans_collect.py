"""Build RAGtrans's benchmark, translate with documents, make training data: `graphs/ragtrans_collect.py --help`."""

from __future__ import annotations

import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import ClassVar

import typer

from agentsys.collect.command import CollectOptions, finish, run_with_view
from agentsys.commands import command, knob, run_app
from agentsys.config import save_config
from agentsys.display import say, show
from agentsys.graphs.ragtrans.benchmark import Report, build_benchmark, map_columns
from agentsys.graphs.ragtrans.measures import summarize_tasks, summarize_translations
from agentsys.graphs.ragtrans.mix import TASKS, read_weights, write_mix
from agentsys.graphs.ragtrans.samples import BenchmarkOptions, CLICOptions
from agentsys.graphs.ragtrans.system import Context
from agentsys.graphs.ragtrans.system import graph as translation_graph
from agentsys.graphs.ragtrans.tasks import TasksContext
from agentsys.graphs.ragtrans.tasks import graph as tasks_graph
from agentsys.records import InputError
from agentsys.traces import read_traces


@dataclass(frozen=True)
class BuildPaths:
    """Input and output of `build`."""

    panel: ClassVar[str] = "Input and output"
    out: Path = knob(Path("data/ragtrans"), "output folder; an earlier benchmark in it is replaced")
    pages: list[Path] = knob(
        (),
        "pages: a file or folder of Wikipedia dumps (id, url, title, text), hf:wikimedia/wikipedia:CONFIG, or page "
        "records; repeatable",
    )
    langlinks: Path | None = knob(None, "links from the pages in --source to those in other languages: id, lang, title")
    tmx: list[Path] = knob((), "translation memory from the source language; repeatable, units are joined by id")


@dataclass(frozen=True)
class MixOptions:
    """Shares in which the tasks are mixed."""

    panel: ClassVar[str] = "Mix"
    data: Path = knob(Path("data/ragtrans"), "folder that `build` wrote; not read if --input is given")
    weight: list[str] = knob((), f"task and weight, such as clic=0.5; tasks: {', '.join(TASKS)}, each 1 by default")
    samples: int | None = knob(None, "number of records; by default until a task has none left")


def build(paths: BuildPaths, benchmark: BenchmarkOptions, clic: CLICOptions) -> None:
    """Build training, validation and test sets, the tasks' records, and passages for an index. Calls no model."""
    report = build_benchmark(paths.pages, paths.tmx, benchmark, clic, paths.out, paths.langlinks)
    save_config(paths.out)
    print_report(report, paths.out)


def print_report(report: Report, out: Path) -> None:
    """Print the benchmark's figures; exits with code 3 if page records failed."""
    from rich.table import Table

    from agentsys.console import Console

    table = Table("file", "records", title=f"benchmark in {out}")
    for name, count in report.records.items():
        table.add_row(name, f"{count:,}")
    console = Console()
    console.print(table)
    console.print("tags: " + ", ".join(f"{tag} {count:,}" for tag, count in sorted(report.tags.items())))
    for name, count in report.counts.items():
        console.print(f"{name}: {count:,}", highlight=False)
    if report.note:
        say(report.note)
    if report.failed:
        say(f"{report.failed:,} page records failed, with reasons: {out / 'failed.jsonl'}")
        raise typer.Exit(3)


def collect(run: CollectOptions, context: Context) -> None:
    """Translate with documents. Records are those that `build` writes, or have text, document and perhaps reference.

    An unfinished run in --out is resumed.
    """
    if run.input is None:
        raise InputError("--input: name a file of records; `build` writes train.jsonl, val.jsonl and test.jsonl")
    records = run.input
    columns = map_columns(records, context.document_column, run.field)
    run = replace(run, field=[*(f"{name}={column}" for name, column in columns.items()), *run.field])
    if context.setting == "retrieved":
        from agentsys.knowledge.context import with_index

        context = with_index(context)
    out = run.out or Path("runs") / f"ragtrans-{context.setting}-{records.stem}"
    summary = run_with_view(translation_graph, records, run, context, out=out)
    show(f"traces and data-set card: {summary.out}")
    finish(summary, run, summarize_translations(read_traces(summary.out)))


def tasks(run: CollectOptions, mix: MixOptions, context: TasksContext) -> None:
    """Make the targets of CSC training: the benchmark's samples and the three tasks, mixed by weight.

    Only SKET calls a model. An unfinished run in --out is resumed.
    """
    out = run.out or Path("runs") / "ragtrans-tasks"
    records = run.input or write_mix(mix.data, read_weights(mix.weight), mix.samples, out, run.seed)
    summary = run_with_view(tasks_graph, records, run, context, out=out)
    show(f"traces and data-set card: {summary.out}")
    finish(summary, run, summarize_tasks(read_traces(summary.out)))


app = command(build, collect, tasks, name="collect ragtrans")

if __name__ == "__main__":
    sys.exit(run_app(app))
