"""PunchBench's questions for people: a page without a server, and the agreement of the files that it saves.

    python graphs/punchbench_annotate.py page --benchmark runs/punchbench/benchmark --out page.html
    python graphs/punchbench_annotate.py agreement ann.jsonl ben.jsonl --benchmark runs/punchbench/benchmark

Send page.html to each annotator: it holds the pictures, needs no network, and saves a file of JSON lines.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, ClassVar

import typer
from rich.table import Table

from agentsys.commands import command, knob, run_app
from agentsys.console import Console
from agentsys.display import show
from agentsys.evaluation.report import number_cell
from agentsys.graphs.punchbench.page import measure_agreement, read_annotations, sample_items, write_page
from agentsys.graphs.punchbench.tasks import read_items
from agentsys.records import InputError


@dataclass(frozen=True)
class FolderOptions:
    """The task files."""

    panel: ClassVar[str] = "Benchmark"
    benchmark: Path | None = knob(None, "folder of task files, which collect punchbench writes: RUN/benchmark")

    def folder(self) -> Path:
        """The folder. Raises InputError if none is named."""
        if self.benchmark is None:
            raise InputError("--benchmark: name a folder of task files, such as runs/punchbench/benchmark")
        return self.benchmark


@dataclass(frozen=True)
class PageOptions:
    """The questions of the page."""

    panel: ClassVar[str] = "Page"
    out: Path = knob(Path("punchbench.html"), "file of the page")
    items: int = knob(100, "questions of each format")
    seed: int = knob(0, "seed of the questions and their order")


def page(benchmark: FolderOptions, options: PageOptions) -> None:
    """Write one HTML file of questions with keys 1-5, as many of each format."""
    if options.items < 1:
        raise InputError(f"--items {options.items}: at least 1 is needed")
    folder = benchmark.folder()
    items = sample_items(read_items(folder), options.items, options.seed)
    write_page(items, folder, options.out)
    show(f"{len(items)} questions: {options.out}")


Files = Annotated[list[Path], typer.Argument(help="files that the page saved, one per annotator")]


def agreement(files: Files, benchmark: FolderOptions) -> None:
    """Compare files of annotators: accuracy, answers "cannot be answered", Fleiss' kappa and Gwet's AC1."""
    if len({file.resolve() for file in files}) < len(files):
        raise InputError("a file is given twice; give one file per annotator")
    items = {item.id: item for item in read_items(benchmark.folder())}
    rows = measure_agreement(read_annotations(files), items)
    table = Table("task", "format", "questions", "accuracy", "CBA", "Fleiss", "Gwet", title=f"{len(files)} annotators")
    for row in rows:
        coefficients = [number_cell(row[name], 2) for name in ("fleiss_kappa", "gwet_ac1")]
        cells = [str(row["items"]), f"{row['accuracy']:.1f}", str(row["cannot_be_answered"]), *coefficients]
        table.add_row(row["task"], row["format"], *cells)
    Console().print(table)


app = command(page, agreement, name="evaluate punchbench-annotate")

if __name__ == "__main__":
    sys.exit(run_app(app))
