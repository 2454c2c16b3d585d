"""Build RAGtrans's benchmark, translate with documents, make training data: `graphs/ragtrans_collect.py --help`."""

from __future__ import annotations

import asyncio
import sys
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import fmean
from typing import ClassVar

import orjson
import typer

from agentsys.collect.command import CollectOptions, finish, run_with_view
from agentsys.commands import command, knob, run_app
from agentsys.graphs.ragtrans.benchmark import TASKS, Report, mixed, open_corpus, write_benchmark
from agentsys.graphs.ragtrans.samples import CLIC, Benchmark
from agentsys.graphs.ragtrans.system import Context as Translation
from agentsys.graphs.ragtrans.system import graph as translation_graph
from agentsys.graphs.ragtrans.tasks import TasksContext as Teaching
from agentsys.graphs.ragtrans.tasks import graph as tasks_graph
from agentsys.records import InputError, Record, read_records
from agentsys.traces import Trace, read_traces


@dataclass(frozen=True)
class Place:
    """What the benchmark is built from, and where it goes."""

    panel: ClassVar[str] = "Input and output"
    out: Path = knob(Path("data/ragtrans"), "output folder; an earlier benchmark in it is replaced")
    pages: Path | None = knob(None, "page records: id, lang, title, paragraphs, links")
    tmx: list[Path] = knob((), "translation memory from the source's language; may be repeated, units are joined by id")


@dataclass(frozen=True)
class Mix:
    """In which shares the tasks are mixed."""

    panel: ClassVar[str] = "Mix"
    data: Path = knob(Path("data/ragtrans"), "folder that `build` wrote; not read where --input is given")
    weight: list[str] = knob((), f"task and weight, as clic=0.5; of {', '.join(TASKS)}, each 1 by default")
    samples: int | None = knob(None, "records in all; by default until a task has no more")

    def weights(self) -> dict[str, float]:
        """The weights above 0 by task. Raises InputError for one that cannot be read."""
        found = dict.fromkeys(TASKS, 1.0)
        for entry in self.weight:
            task, _, number = entry.partition("=")
            try:
                found[task] = float(number) if task in found else float("nan")
            except ValueError:
                found[task] = float("nan")
            if not 0 <= found[task] < float("inf"):
                raise InputError(f"--weight {entry}: give a task of {', '.join(TASKS)} and a number, as clic=0.5")
        if not any(found.values()):
            raise InputError("--weight: every task has weight 0; give one a weight above it")
        return {task: weight for task, weight in found.items() if weight}


def build(place: Place, benchmark: Benchmark, clic: CLIC) -> None:
    """Build train, validation and test sets, the tasks' records and the passages for an index. Asks no model."""
    from agentsys.knowledge.embedders import close, make_embedder

    corpus = open_corpus(place.pages, place.tmx, benchmark)
    embedder = make_embedder(clic.embedding) if clic.embedding else None

    async def written() -> Report:
        try:
            return await write_benchmark(corpus, benchmark, clic, place.out, embedder)
        finally:
            if embedder is not None:
                await close(embedder)

    print_report(asyncio.run(written()), place.out)


def print_report(report: Report, out: Path) -> None:
    """What was written and what was met on the way; ends the command with 3 if pages were rejected."""
    from rich.console import Console
    from rich.table import Table

    table = Table("file", "records", title=f"benchmark in {out}")
    for name, count in report.written.items():
        table.add_row(name, f"{count:,}")
    console = Console()
    console.print(table)
    console.print("tags: " + ", ".join(f"{tag} {count:,}" for tag, count in sorted(report.tags.items())))
    for what, count in report.counts.items():
        console.print(f"{what}: {count:,}", highlight=False)
    if report.rejected:
        print(f"{report.rejected:,} page records rejected, with reasons: {out / 'failed.jsonl'}", file=sys.stderr)
        raise typer.Exit(3)


def collect(run: CollectOptions, context: Translation) -> None:
    """Translate with documents. Records are those that `build` writes, or have text, document and perhaps reference.

    A run that is in --out is resumed.
    """
    if run.input is None:
        raise InputError("--input: name a file of records; `build` writes train.jsonl, val.jsonl and test.jsonl")
    file, columns = run.input, columns_of(run.input, context, run.field)
    run = replace(run, field=[*(f"{name}={column}" for name, column in columns.items()), *run.field])
    if context.setting == "retrieved":
        from agentsys.knowledge.context import with_index

        context = with_index(context)
    out = run.out or Path("runs") / f"ragtrans-{context.setting}-{file.stem}"
    summary = run_with_view(translation_graph, file, replace(run, out=out), context)
    print(f"traces and data-set card: {summary.out}")
    finish(summary, run, findings(read_traces(summary.out)))


def columns_of(file: Path, context: Translation, given: Sequence[str] = ()) -> dict[str, str]:
    """Which columns of published records hold text, reference and document, but for what `given` (FIELD=COLUMN) says.

    Nothing for records of another form. Raises InputError where the records have no document of the setting.
    """
    first = next((record.data for record in read_records(file) if isinstance(record, Record)), {})
    if "src" not in first:
        return {}
    columns = {"text": "src"} | ({"reference": "tgt"} if "tgt" in first else {})
    if context.document_column:
        columns["document"] = context.document_column
    columns = {name: columns[name] for name in columns.keys() - {entry.partition("=")[0] for entry in given}}
    if (column := columns.get("document")) and column not in first:
        there = ", ".join(name for name in first if name.endswith("doc")) or "no document"
        raise InputError(f"{file}: no column '{column}'; the records have {there}: name one with --document-language")
    return columns


def findings(traces: Iterable[Trace]) -> list[tuple[str, str]]:
    """Rows of the last table: documents, what was missing or cut, scores."""
    counts: Counter[str] = Counter()
    scores: dict[str, list[float]] = defaultdict(list)
    tokens: list[int] = []
    for trace in traces:
        result = trace.result or {}
        counts["translations"] += bool(result.get("translation"))
        counts[f"without a document ({result.get('without')})"] += bool(result.get("without"))
        counts["passages' paragraphs that gave the reference away"] += result.get("leaks", 0)
        if cut := result.get("cut"):
            tokens.append(cut["tokens"])
            counts["documents cut"] += cut["tokens"] < cut["of_tokens"]
        for target in trace.targets:
            for name in target.scores:
                scores[name].append(target.scores[name])
    rows = [(name, str(count)) for name, count in counts.items() if count]
    if any(tokens):
        rows.append(("mean tokens of a document (estimated)", f"{fmean(tokens):.0f}"))
    names = {"score": "mean sentence chrF, 0-100", "relevance": "mean relevance, 1-5"}
    return rows + [(names[name], f"{fmean(found):.2f} (n={len(found)})") for name, found in scores.items()]


def tasks(run: CollectOptions, mix: Mix, context: Teaching) -> None:
    """Make the targets of CSC training: the benchmark's samples and the three tasks, mixed by weight.

    Only SKET asks a model. A run that is in --out is resumed.
    """
    out = run.out or Path("runs") / "ragtrans-tasks"
    file = run.input or write_mix(mix, out, run.seed)
    summary = run_with_view(tasks_graph, file, replace(run, out=out), context)
    print(f"traces and data-set card: {summary.out}")
    finish(summary, run, kept_by_task(read_traces(summary.out)))


def write_mix(mix: Mix, out: Path, seed: int) -> Path:
    """The mixed records as a file beside the run, named by weights and seed. Raises InputError where there are none."""
    weights = mix.weights()
    rows = mixed(mix.data, weights, mix.samples, seed)
    first = next(rows, None)
    if first is None:
        raise InputError(f"--data {mix.data}: no record of {', '.join(weights)} to begin with; see its report.json")
    shares = ",".join(f"{task}={weight:g}" for task, weight in weights.items())
    file = out / "mixed" / f"{shares},seed={seed}.jsonl"
    file.parent.mkdir(parents=True, exist_ok=True)
    part = file.with_suffix(".part")
    with part.open("wb") as lines:
        for row in (first, *rows):
            lines.write(orjson.dumps(row, option=orjson.OPT_APPEND_NEWLINE))
    part.replace(file)
    return file


def kept_by_task(traces: Iterable[Trace]) -> list[tuple[str, str]]:
    """Rows of the last table: what became of each task's records."""
    kept: Counter[str] = Counter()
    seen: Counter[str] = Counter()
    for trace in traces:
        task = str(trace.input.get("task"))
        seen[task] += 1
        kept[task] += trace.outcome == "kept"
    return [(f"{task}: kept", f"{kept[task]} of {count}") for task, count in sorted(seen.items())]


if __name__ == "__main__":
    sys.exit(run_app(command(build, collect, tasks)))
