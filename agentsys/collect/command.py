"""What every collect command shares: its options, the run with a progress view, and the final table."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import typer

from agentsys.collect.options import RunOptions
from agentsys.collect.pictures import PictureOptions
from agentsys.collect.report import ProgressView, print_summary
from agentsys.collect.runner import collect
from agentsys.collect.summary import Summary
from agentsys.config import save_config
from agentsys.display import say
from agentsys.inputs.count import count_records
from agentsys.inputs.files import name_input
from agentsys.knobs import knob
from agentsys.records import InputError
from agentsys.telemetry import export_spans
from agentsys.view.command import show_page


@dataclass(frozen=True)
class InputAndOutput:
    """Where a collect command reads and writes."""

    input: Path | None = knob(
        None,
        "records: .jsonl, .json, .csv, .tsv, .parquet or .txt, also .gz; a folder, 'a/*.jsonl', -, hf:NAME, s3://...",
    )
    out: Path | None = knob(None, "output folder; an unfinished run in it is resumed")

    @property
    def input_name(self) -> str:
        """The input's name in a default output folder: a file's without its suffixes."""
        return name_input(str(self.input or "input"))


@dataclass(frozen=True)
class CollectOptions(RunOptions, InputAndOutput):
    """The options of every collect command: --input, --out, and those of the run."""

    def __post_init__(self) -> None:
        """Raises InputError as RunOptions does."""
        super().__post_init__()
        for name in ("input", "out", "cache"):
            if (path := getattr(self, name)) is not None:  # from Python it may be a string
                object.__setattr__(self, name, Path(path))


def run_with_view(
    graph: Any,
    records: str | Path | Iterable[Mapping[str, Any] | str] | None,
    run: CollectOptions,
    context: Any,
    *,
    out: str | Path | None = None,
    pictures: PictureOptions | None = None,
) -> Summary:
    """`collect` with a progress view, into `out`, --out or runs/<name of the graph>. Raises what `collect` raises.

    `records` may be `run.input`: if it is None, InputError asks for --input.
    """
    if records is None:
        raise InputError("--input: give a file of records, such as records.jsonl")
    export_spans()
    with ProgressView(total=count_records(records, run.limit)) as view:
        folder = out or run.out or Path("runs") / graph.name
        more: dict[str, Any] = {"options": run, "pictures": pictures, "watch": view, "on_start": save_config}
        return collect(graph, records, folder, context=context, **more)


def finish(summary: Summary, run: CollectOptions, extra: Iterable[tuple[str, str]] = ()) -> None:
    """Print the end of a run: the table with the `extra` rows, a kept record, the paths of data card and page.

    Raises typer.Exit: code 130 after Ctrl-C, 3 if records failed.
    """
    print_summary(summary, run.cache_path, extra, str(run.input or "the input"))
    if summary.processed:
        show_page(summary.out)
    if summary.stopped:
        say(f"stopped: {summary.stopped}; rerun the same command to resume")
    if summary.stopped == "interrupted":
        raise typer.Exit(130)
    if summary.failed:
        raise typer.Exit(3)
