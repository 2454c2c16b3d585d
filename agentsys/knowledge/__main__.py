"""`python -m agentsys.knowledge`: build an index of passages, and search it."""

from __future__ import annotations

import asyncio
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, ClassVar, Final, Literal

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table
from rich.text import Text

from agentsys.commands import command, knob, run_app
from agentsys.knowledge.build import build_index
from agentsys.knowledge.index import IndexRetriever, load_retriever
from agentsys.knowledge.manifest import Settings
from agentsys.knowledge.passages import Hit, KnowledgeError
from agentsys.knowledge.store import REJECTED_FILE

QUIET_SECONDS: Final = 10.0
"""Where the output is no terminal, a line this often takes the place of the bar."""
SHOWN: Final = 200
"""Characters of a passage in the table of hits."""


@dataclass(frozen=True)
class Place:
    """Where an index goes, and which columns its passages come from."""

    panel: ClassVar[str] = "Input and output"
    out: Path | None = knob(None, "index folder; to one that is there already, new passages are added")
    field: list[str] = knob((), "field and column where they differ, as text=body (text, title, id); may be repeated")

    def columns(self) -> dict[str, str]:
        """The mapping that --field gives. Raises KnowledgeError for one that is no pair."""
        pairs = [entry.partition("=") for entry in self.field]
        if bad := ["".join(pair) for pair in pairs if not all(pair)]:
            raise KnowledgeError(f"--field {bad[0]}: give field and column, as --field text=body")
        return {name: column for name, _, column in pairs}


@dataclass(frozen=True)
class Search:
    """What is searched how."""

    panel: ClassVar[str] = "Search"
    k: int = knob(5, "hits")
    kind: Literal["bm25", "dense", "hybrid", ""] = knob("", "bm25, dense or hybrid; by default the best the index has")
    embedding: str = knob("", "embedding model if it lies elsewhere now; it must be the one of the index")


class _View:
    """A bar on a terminal, a line now and then elsewhere; both on stderr."""

    def __init__(self) -> None:
        console = Console(stderr=True)
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
        self._bar = Progress(*columns, console=console, disable=not console.is_terminal, transient=True)
        self._task = self._bar.add_task("reading", total=None)
        self._said = time.monotonic()

    def __enter__(self) -> _View:
        self._bar.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self._bar.stop()

    def __call__(self, step: str, done: int, total: int | None) -> None:
        """See build.Watch."""
        if not self._bar.disable:
            self._bar.update(self._task, description=step, completed=done, total=total)
        elif (now := time.monotonic()) - self._said > QUIET_SECONDS:
            self._said = now
            print(f"{step}: {done:,}{f' of {total:,}' if total else ''} passages", file=sys.stderr)


def build(
    passages: Annotated[Path, typer.Argument(help=".jsonl, .json, .csv, .tsv, .parquet, or a folder of .txt and .md")],
    place: Place,
    settings: Settings,
) -> None:
    """Build an index, or add new passages to one; killed, it goes on where it was."""
    if place.out is None:
        raise KnowledgeError("--out is needed: the folder of the index")
    with _View() as view:
        built = build_index(passages, place.out, settings, fields=place.columns(), watch=view)
    print(
        f"{place.out}: {built.passages:,} passages, {built.added:,} of them new, in {built.seconds:.1f} s; "
        f"{settings.kind}, digest {built.digest}"
    )
    if built.rejected:
        print(f"{built.rejected:,} records rejected, with reasons: {place.out / REJECTED_FILE}", file=sys.stderr)
        raise typer.Exit(3)


def search(
    index: Annotated[Path, typer.Argument(help="index folder")],
    query: Annotated[str, typer.Argument(help="what to look for")],
    options: Search,
) -> None:
    """Show the passages that fit a query best."""
    retriever = load_retriever(index, options.kind, options.embedding)
    table = Table("rank", "score", "id", "title", "text")
    for rank, hit in enumerate(asyncio.run(_hits(retriever, query, options.k)), 1):
        text = " ".join(hit.passage.text.split())
        cut = f"{text[:SHOWN]}..." if len(text) > SHOWN else text
        table.add_row(str(rank), f"{hit.score:.4g}", Text(hit.passage.id), Text(hit.passage.title), Text(cut))
    Console().print(table)


async def _hits(retriever: IndexRetriever, query: str, k: int) -> list[Hit]:
    try:
        return (await retriever.search([query], k))[0]
    finally:
        await retriever.aclose()


if __name__ == "__main__":
    sys.exit(run_app(command(build, search)))
