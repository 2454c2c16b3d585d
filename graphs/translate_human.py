"""Human evaluation of translations: a blinded sheet to fill in, and the scores of the filled sheets.

    python graphs/translate_human.py export --evaluation eval --limit 200 --criteria fluency,accuracy,style
    python graphs/translate_human.py score ann.csv ben.csv --key eval/human/key.csv

`export` takes the translations of an evaluation of several systems (graphs/translate_evaluate.py). Give a copy of
sheet.csv to each annotator and keep key.csv. `score` computes Best-Worst Scaling, as in DRT's human evaluation, mean
scores and agreement. Exit codes: 0; 2 a bad option, or a sheet that cannot be read.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, ClassVar

import orjson
import typer
from rich.table import Table

from agentsys.commands import command, knob, run_app
from agentsys.config import save_config
from agentsys.console import Console
from agentsys.display import show
from agentsys.evaluation.report import number_cell
from agentsys.graphs.translate.human import (
    KEY,
    SHEET,
    measure_annotations,
    read_items,
    read_key,
    read_sheet,
    write_sheet,
)
from agentsys.knobs import split_names
from agentsys.records import InputError


@dataclass(frozen=True)
class SheetOptions:
    """The items of the sheet."""

    panel: ClassVar[str] = "Sheet"
    evaluation: Path | None = knob(None, "--out folder of agentsys evaluate translate, with two systems or more")
    out: Path | None = knob(None, "folder of sheet.csv and key.csv; default: human in the evaluation's folder")
    limit: int | None = knob(None, "number of sentences, drawn at random; default: all")
    criteria: str = knob("quality", "what best and worst are asked for, separated by commas")
    seed: int = knob(0, "seed of the order of sentences and systems")


@dataclass(frozen=True)
class KeyOptions:
    """The key of the sheets."""

    panel: ClassVar[str] = "Key"
    key: Path | None = knob(None, "key.csv that `export` wrote; human.json is written to its folder")


def export(options: SheetOptions) -> None:
    """Write a sheet of translations without the names of their systems, and the key to it."""
    if options.evaluation is None:
        raise InputError("--evaluation: name the --out folder of agentsys evaluate translate")
    if options.limit is not None and options.limit < 1:
        raise InputError(f"--limit {options.limit}: at least 1 is needed")
    criteria = list(dict.fromkeys(split_names(options.criteria)))
    if not criteria:
        raise InputError("--criteria: it is empty; name what is judged, such as fluency,accuracy")
    items = read_items(options.evaluation, options.limit, options.seed)
    folder = options.evaluation if options.evaluation.is_dir() else options.evaluation.parent
    out = options.out or folder / "human"
    write_sheet(items, criteria, out)
    save_config(out)
    show(f"{len(items)} sentences with {len(items[0].translations)} translations each: {out / SHEET}")
    show(f"the systems behind the numbers, not for the annotators: {out / KEY}")


Sheets = Annotated[list[Path], typer.Argument(help="filled sheets, one per annotator")]


def score(sheets: Sheets, options: KeyOptions) -> None:
    """Score filled sheets: Best-Worst Scaling, scores from 0 to 100, and the agreement of the annotators."""
    if options.key is None:
        raise InputError(f"--key: name the {KEY} that `export` wrote")
    key = read_key(options.key)
    if len({sheet.resolve() for sheet in sheets}) < len(sheets):
        raise InputError("a sheet is given twice; give one file per annotator")
    report = measure_annotations({str(sheet): read_sheet(sheet, key) for sheet in sheets}, key)
    file = options.key.with_name("human.json")
    file.write_bytes(orjson.dumps(report, option=orjson.OPT_INDENT_2))
    console = Console()
    for table in _tables(report):
        console.print(table)
    for line in _lines(report):
        console.print(line, soft_wrap=True)
    show(f"numbers: {file}")


def _tables(report: Mapping[str, Any]) -> Iterator[Table]:
    if report["criteria"]:
        table = Table("criterion", "system", "best", "worst", "best - worst, 95 %", "n")
        for criterion, result in report["criteria"].items():
            for i, (name, counts) in enumerate(result["systems"].items()):
                interval = f"{counts['value']:+.3f} [{counts['low']:+.2f}, {counts['high']:+.2f}]"
                cells = [f"{counts['best']:.1%}", f"{counts['worst']:.1%}", interval, str(counts["n"])]
                table.add_row("" if i else criterion, name, *cells)
        yield table
    if report["scores"]:
        table = Table("system", "score 0-100, 95 %", "n")
        for name, counts in report["scores"].items():
            table.add_row(name, f"{counts['value']:.1f} [{counts['low']:.1f}, {counts['high']:.1f}]", str(counts["n"]))
        yield table


def _lines(report: Mapping[str, Any]) -> Iterator[str]:
    counts = ", ".join(f"{name} {count}" for name, count in report["annotators"].items())
    yield f"annotated of {report['items']} sentences: {counts}"
    for criterion, result in report["criteria"].items():
        if len(report["annotators"]) > 1:
            best, worst = (number_cell(result[name], 2) for name in ("kappa_best", "kappa_worst"))
            yield f"{criterion}: Fleiss' kappa {best} (best), {worst} (worst) over {result['complete_items']} sentences"


app = command(export, score, name="evaluate translate-human")

if __name__ == "__main__":
    sys.exit(run_app(app))
