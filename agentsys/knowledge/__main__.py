"""`python -m agentsys.knowledge`: build an index of passages and search it."""

from __future__ import annotations

import asyncio
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, ClassVar, Final, Literal

import typer
from rich.table import Table

from agentsys.commands import command, knob, run_app
from agentsys.config import save_config
from agentsys.console import Console
from agentsys.display import say, show
from agentsys.knowledge.build import build_index
from agentsys.knowledge.index import IndexRetriever, load_retriever
from agentsys.knowledge.manifest import IndexSettings
from agentsys.knowledge.passages import Hit, KnowledgeError
from agentsys.knowledge.remote import SearchServer
from agentsys.knowledge.store import FAILED_FILE
from agentsys.progress import Progress

EXCERPT: Final = 200
"""Characters of a passage in the table of hits."""


@dataclass(frozen=True)
class IndexFiles:
    """The index folder, and the columns of the passages."""

    panel: ClassVar[str] = "Input and output"
    out: Path | None = knob(None, "index folder; new passages are added to an existing index")
    field: list[str] = knob((), "column of a field (text, title, id) if its name differs: text=body; may be repeated")

    def columns(self) -> dict[str, str]:
        """Return the column of each field that --field names. Raises KnowledgeError for a value that is not a pair."""
        pairs = [entry.partition("=") for entry in self.field]
        if bad := ["".join(pair) for pair in pairs if not all(pair)]:
            raise KnowledgeError(f"--field {bad[0]}: give field and column, as --field text=body")
        return {name: column for name, _, column in pairs}


@dataclass(frozen=True)
class SearchOptions:
    """Options of a search."""

    panel: ClassVar[str] = "Search"
    k: int = knob(5, "number of hits")
    kind: Literal["bm25", "dense", "hybrid", ""] = knob("", "bm25, dense or hybrid; default: the best of the index")
    embedding: str = knob("", "the index's embedding model, if it has moved to another folder or address")


def build(
    passages: Annotated[Path, typer.Argument(help=".jsonl, .json, .csv, .tsv, .parquet, or a folder of .txt and .md")],
    files: IndexFiles,
    settings: IndexSettings,
) -> None:
    """Build an index, or add new passages to one; rerun the same command to resume after a kill."""
    if files.out is None:
        raise KnowledgeError("--out is required: give the index folder")
    with Progress("documents", step="reading") as progress:

        def show_step(step: str, done: int, total: int | None) -> None:
            if (step, total) != (progress.step, progress.total):
                progress.begin("documents" if step == "reading" else "passages", total, step=step)
            progress.update(done)

        result = build_index(passages, files.out, settings, fields=files.columns(), watch=show_step)
    save_config(files.out)
    show(
        f"{files.out}: {result.passages:,} passages, {result.added:,} of them new, in {result.seconds:.1f} s; "
        f"{settings.kind}, digest {result.digest}"
    )
    if result.failed:
        say(f"{result.failed:,} records failed, see {files.out / FAILED_FILE}")
        raise typer.Exit(3)


def search(
    index: Annotated[str, typer.Argument(help="index folder, or address of a search server")],
    query: Annotated[str, typer.Argument(help="text to search for")],
    options: SearchOptions,
) -> None:
    """Show the best passages for a query."""
    retriever = load_retriever(index, options.kind, options.embedding)
    table = Table("rank", "score", "id", "title", "text")
    for rank, hit in enumerate(asyncio.run(_search_once(retriever, query, options.k)), 1):
        text = " ".join(hit.passage.text.split())
        excerpt = f"{text[:EXCERPT]}..." if len(text) > EXCERPT else text
        table.add_row(str(rank), f"{hit.score:.4g}", hit.passage.id, hit.passage.title, excerpt)
    Console().print(table)


async def _search_once(retriever: IndexRetriever | SearchServer, query: str, k: int) -> list[Hit]:
    try:
        return (await retriever.search([query], k))[0]
    finally:
        await retriever.aclose()


app = command(build, search, name="index")

if __name__ == "__main__":
    sys.exit(run_app(app))
