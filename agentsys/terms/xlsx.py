"""Term lists in spreadsheets: the rows of all sheets of an XLSX file, one at a time."""

from __future__ import annotations

import warnings
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

from agentsys.knowledge.passages import KnowledgeError
from agentsys.terms.item import require_modules
from agentsys.terms.packed import FREE_SIZE, MAX_RATIO

Row = tuple[int | str, dict[str, Any] | None]
"""A row's number ("Sheet2!12" in other sheets than the first), and its cells by column; None if it has too many."""
_FAULTS: Final = (zipfile.BadZipFile, zlib.error, KeyError, ValueError, SyntaxError, EOFError, TypeError, IndexError)
"""What openpyxl raises for a damaged file."""


def read_xlsx(path: Path) -> Iterator[Row]:
    """Stream the rows of a workbook. The first row of each sheet names the columns; formulas count as their last value.

    Raises KnowledgeError if the file cannot be read, is no workbook, or expands beyond all measure.
    """
    require_modules("openpyxl")
    try:
        _check_archive(path)
        yield from _read_sheets(path)
    except KnowledgeError:
        raise
    except OSError as err:
        raise KnowledgeError(f"{path}: cannot be read ({err.strerror or err}); check the path") from None
    except _FAULTS as err:
        reason = " ".join(str(err).split())[:100]
        raise KnowledgeError(f"{path}: not a workbook ({reason}); save it as XLSX or CSV again") from None


def _check_archive(path: Path) -> None:
    """Raise KnowledgeError for an archive that expands to many times its size, or has a DTD."""
    with zipfile.ZipFile(path) as archive:
        parts = archive.infolist()
        size = sum(part.file_size for part in parts)
        if size > max(FREE_SIZE, MAX_RATIO * path.stat().st_size):
            raise KnowledgeError(f"{path}: expands to {size:,} bytes, over {MAX_RATIO} times its size; not read")
        for part in parts:
            if part.filename.lower().endswith((".xml", ".rels")):
                with archive.open(part) as file:
                    head = file.read(4096)
                if b"<!DOCTYPE" in head.replace(b"\0", b"").upper():
                    raise KnowledgeError(f"{path}: {part.filename} has a DTD, which no workbook has; not read")


def _read_sheets(path: Path) -> Iterator[Row]:
    import openpyxl

    with warnings.catch_warnings(), path.open("rb") as file:
        warnings.simplefilter("ignore")  # about styles and validations, which do not matter
        workbook = openpyxl.load_workbook(file, read_only=True, data_only=True)
        try:
            for index, sheet in enumerate(workbook.worksheets):
                sheet.reset_dimensions()  # some programs write wrong ones
                for number, cells in _read_rows(path, sheet):
                    yield f"{sheet.title}!{number}" if index else number, cells
        finally:
            workbook.close()


def _read_rows(path: Path, sheet: Any) -> Iterator[tuple[int, dict[str, Any] | None]]:
    header: list[str] = []
    for number, values in enumerate(sheet.iter_rows(values_only=True), 1):
        cells = [_cell_text(value) for value in values]
        if not any(cells):
            continue
        if header:
            extra = any(cells[len(header) :])
            padded = cells[: len(header)] + [""] * (len(header) - len(cells))
            row = {name: cell for name, cell in zip(header, padded, strict=True) if name}
            yield number, None if extra else row
            continue
        header = cells
        names = [name for name in header if name]
        if repeated := [name for name in names if names.count(name) > 1]:
            raise KnowledgeError(f"{path}: column '{repeated[0]}' occurs more than once; rename the others")


def _cell_text(value: Any) -> str:
    """Return a cell as the text that a sheet shows: a whole number without a decimal point."""
    if value is None:
        return ""
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    return " ".join(str(value).split())
