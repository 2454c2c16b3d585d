"""What an evaluation writes and prints."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import orjson

if TYPE_CHECKING:
    from rich.console import Console


def write_report(report: Mapping[str, Any], file: str, lines: Iterable[Mapping[str, Any]], out: Path) -> None:
    """evaluation.json, and beside it a file of JSON lines, a record a line."""
    out.mkdir(parents=True, exist_ok=True)
    (out / "evaluation.json").write_bytes(orjson.dumps(report, option=orjson.OPT_INDENT_2, default=str))
    with (out / file).open("wb") as there:
        for line in lines:
            there.write(orjson.dumps(line, option=orjson.OPT_APPEND_NEWLINE))


def plainly(console: Console) -> Callable[[str], None]:
    """Prints a line as it is: what models and files say is no markup, and is not folded."""
    return partial(console.print, soft_wrap=True, markup=False, highlight=False)
