"""DRT's stage A: mine sentences from books. `python graphs/drt_mine.py --help` lists the options."""

from __future__ import annotations

import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated

import typer

from agentsys.collect.command import CollectOptions, finish
from agentsys.commands import command, knob, run_app
from agentsys.display import show
from agentsys.graphs.drt.mine import MiningContext, Reading, mine_books
from agentsys.inputs.files import name_input
from agentsys.records import InputError

BookFiles = Annotated[
    list[Path], typer.Argument(metavar="BOOK", help="books as plain text; folders of .txt files; patterns")
]


@dataclass(frozen=True)
class MiningOptions(CollectOptions):
    """The options of a run whose records are the sentences of books. Raises InputError for options about a file."""

    input: Path | None = knob(None, "books are arguments", hidden=True)
    field: list[str] = knob((), "books have no columns", hidden=True)
    id_field: str = knob("id", "books have no columns", hidden=True)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.input is not None:
            raise InputError("--input: this command reads books; give them as arguments, BOOK...")
        if self.field or self.id_field != "id":
            raise InputError("--field, --id-field: books have no columns; leave these options out")


def main(books: BookFiles, run: MiningOptions, reading: Reading, context: MiningContext) -> None:
    """Stage A of the DRT paper (section 2.1): select sentences whose similes and metaphors need a free translation.

    Sentences of 10 to 100 words go to the miner. It keeps those with a figure of speech that a literal translation does
    not convey. They are written to sentences.jsonl in the output folder, for `agentsys collect drt --input`. An
    unfinished run in --out is resumed.
    """
    run = replace(run, out=run.out or Path("runs") / f"drt-mine-{name_input(str(books[0]))}")
    summary, path, rows = mine_books(books, reading, run, context, "sentences.jsonl")
    show(f"traces and data-set card: {summary.out}", f"sentences, for `agentsys collect drt --input`: {path}")
    finish(summary, run, rows)


app = command(main, name="collect drt-mine")

if __name__ == "__main__":
    sys.exit(run_app(app))
