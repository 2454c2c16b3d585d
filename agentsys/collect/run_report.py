"""The report of a run: tables on the screen, RUN/report.json, RUN/report.png. The command `agentsys report`.

A paper's folder may have a module `report` with `statistics(manifest)`, whose numbers join those that every run has.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from importlib.util import find_spec
from io import BytesIO
from itertools import chain
from pathlib import Path
from typing import Annotated, Any, Final

import orjson
import typer
from rich.box import SIMPLE_HEAD
from rich.table import Table

from agentsys.collect.manifest import read_manifest
from agentsys.collect.statistics import Panel, RunStatistics, Section, Statistics
from agentsys.console import Console
from agentsys.display import plain, show
from agentsys.fonts import fit_fonts
from agentsys.paths import replace_file
from agentsys.records import InputError
from agentsys.traces import RunFolderError, Trace, failed_file, parse_failed, read_finished, read_lines

VERSION: Final = 1
"""The version of report.json."""
COLUMNS: Final = 3
"""Columns of the PNG."""
PANEL: Final = (5.0, 3.7)
"""Width and height of a figure in inches."""


@dataclass(frozen=True, slots=True)
class Report:
    """A run's report: numbers for JSON, tables, figures, and (label, value) rows for the table at a run's end."""

    folder: Path
    title: str
    data: Mapping[str, Any]
    sections: list[Section]
    panels: list[Panel]
    headline: list[tuple[str, str]]


def make_report(
    folder: str | Path, total: int | None = None, each: Callable[[Trace], None] = lambda trace: None
) -> Report:
    """Read a run's traces and return its report. `total`: the records of the whole input, for a projection.

    `each` is called with every trace, so that one reading serves another purpose too.

    Raises RunFolderError for a folder without records and for a damaged one, FileNotFoundError if there is none.
    """
    folder = Path(folder)
    manifest = read_manifest(folder)
    traces = iter(read_finished(folder))
    first = next(traces, None)
    general = RunStatistics(manifest.get("totals") or {})
    parts: list[Statistics] = [general]
    if first is not None:
        parts += statistics_of_system(first.system, manifest)
        traces = chain([first], traces)
    for trace in traces:
        for part in parts:
            part.add(trace)
        each(trace)
    for entry in refused_inputs(folder):
        general.add_outcome("failed", entry["reason"])
    if not general.records:
        raise RunFolderError(f"{folder}: no finished record here; name the output folder of a collect run")
    return _join(folder, manifest, general, parts, first, total)


def _join(
    folder: Path,
    manifest: Mapping[str, Any],
    general: RunStatistics,
    parts: list[Statistics],
    first: Trace | None,
    total: int | None,
) -> Report:
    system, run = (first.system, first.run) if first else ("", manifest.get("run") or "")
    data = {"version": VERSION, "system": system, "run": run, **general.data()}
    sections = general.sections()
    if total is not None:
        projection = general.project(total)
        sections.append(general.projection_section(projection))
        data["projection"] = {name: round(value, 2) for name, value in projection.items()}
    for part in parts[1:]:
        data[system] = part.data()
        sections += part.sections()
    return Report(
        folder,
        f"{system} run {run}, {general.records:,} records, {folder}",
        data,
        sections,
        [panel for part in parts for panel in part.panels()],
        [row for part in parts for row in part.headline()],
    )


def statistics_of_system(system: str, manifest: Mapping[str, Any]) -> list[Statistics]:
    """The statistics of the paper's folder with the system's name, if it has a module `report`."""
    package = f"agentsys.graphs.{system}"
    spec = find_spec(package) if system.isidentifier() else None
    if spec is None or not spec.submodule_search_locations or find_spec(f"{package}.report") is None:
        return []
    make = getattr(importlib.import_module(f"{package}.report"), "statistics", None)
    return [] if make is None else [make(manifest)]


def refused_inputs(folder: Path) -> Iterator[dict[str, Any]]:
    """The inputs that failed before any call, which have no trace."""
    path = failed_file(folder)
    if path.exists():
        yield from (entry for _, entry in read_lines(path, parse_failed) if "calls" not in entry)


def write_report(folder: str | Path, total: int | None = None) -> Report:
    """Write report.json and report.png into a run's folder and return the report. Without matplotlib there is no PNG.

    Raises what `make_report` raises, and OSError if the folder cannot be written.
    """
    report = make_report(folder, total)
    content = orjson.dumps(report.data, option=orjson.OPT_INDENT_2 | orjson.OPT_APPEND_NEWLINE)
    replace_file(report.folder / "report.json", content, durable=False)
    if find_spec("matplotlib"):
        draw_panels(report.panels, report.title, report.folder / "report.png")
    return report


def file_line(report: Report) -> str:
    """One line that names the files that `write_report` wrote, or says how to get the PNG."""
    files = f"report: {report.folder / 'report.json'}"
    if find_spec("matplotlib") is None:
        return f"{files}; pip install matplotlib adds report.png"
    return f"{files} and report.png"


def draw_panels(panels: list[Panel], title: str, path: Path) -> None:
    """Draw figures into one PNG, COLUMNS in a row."""
    from matplotlib.figure import Figure

    places = _places(panels)
    rows = places[-1][0] + 1
    figure = Figure(figsize=(PANEL[0] * COLUMNS, PANEL[1] * rows + 0.4), layout="constrained")
    figure.suptitle(plain(title), parse_math=False, fontsize=11)
    grid = figure.add_gridspec(rows, COLUMNS)
    for (row, column), panel in zip(places, panels, strict=True):
        axes = figure.add_subplot(grid[row, column : column + panel.width])
        panel.draw(axes)
        axes.set_title(plain(panel.title), parse_math=False, fontsize=10, loc="left")
        axes.spines[["top", "right"]].set_visible(False)
        for label in (*axes.get_xticklabels(), *axes.get_yticklabels()):  # names of roles: never TeX
            label.set_parse_math(False)
    fit_fonts(figure)
    image = BytesIO()
    figure.savefig(image, dpi=110, format="png")
    replace_file(path, image.getvalue(), durable=False)


def _places(panels: list[Panel]) -> list[tuple[int, int]]:
    """Row and column of each figure, from the left to the right."""
    places, row, column = [], 0, 0
    for panel in panels:
        if column + panel.width > COLUMNS:
            row, column = row + 1, 0
        places.append((row, column))
        column += panel.width
    return places


def print_report(sections: Iterable[Section], console: Console, title: str = "") -> None:
    """Print the tables of a report."""
    if title:
        console.print(title, soft_wrap=True)
    for section in sections:
        table = Table(box=SIMPLE_HEAD, show_header=any(section.columns), show_edge=False, collapse_padding=True)
        for place, column in enumerate(section.columns):
            table.add_column(column, justify="right" if place else "left", overflow="fold")
        for row in section.rows:
            table.add_row(*row)
        console.print()
        console.print(section.title, style="bold")
        console.print(table)
        if section.note:
            console.print(section.note)


def report(
    run: Annotated[Path | None, typer.Argument(help="output folder of a collect run")] = None,
    total: Annotated[
        int | None, typer.Option(min=1, help="records of the whole input: adds a projection of calls, time and cost")
    ] = None,
    thoughts: Annotated[
        Path | None,
        typer.Option(help="file of records with text, trans and thought: counts the shape of its thoughts (DRT)"),
    ] = None,
) -> None:
    """Report on a finished run: outcomes, calls, tokens, and the figures of its method.

    Prints tables and writes RUN/report.json and RUN/report.png. --thoughts counts a file of thoughts instead.
    """
    console = Console()
    if thoughts is not None and run is None:
        sections = importlib.import_module("agentsys.graphs.drt.report").file_sections(thoughts)
        print_report(sections, console)
    elif run is None or thoughts is not None:
        raise InputError("give the folder of a run, or --thoughts FILE; not both")
    else:
        result = write_report(run, total)
        print_report(result.sections, console, result.title)
        show(file_line(result))
