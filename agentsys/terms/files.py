"""Reading the rows of term lists and dictionaries: CSV, TSV, JSONL and XLSX, compressed or not.

Unlike a file of records (agentsys.records), which may skip a bad line, a file with broken encoding or quotation marks
is refused as a whole, because the loss of half a term list would go unnoticed.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import orjson

from agentsys.knowledge.passages import KnowledgeError
from agentsys.terms.packed import bare_suffix, open_binary
from agentsys.terms.xlsx import read_xlsx

Row = tuple[int | str, dict[str, Any] | None]
"""The number of a row's first line, and its cells by column: None if it is not an object or has the wrong length."""
_UNREADABLE: Final = {".xls": "XLSX", ".ods": "XLSX", ".numbers": "XLSX", ".docx": "XLSX", ".sdltb": "TBX"}


def read_table(path: str | Path) -> Iterator[Row]:
    """Read the rows of a file by its suffix: .xlsx, .jsonl or .ndjson, .tsv (no quoting), else CSV with , or ; or tabs.

    Skips blank rows. Raises KnowledgeError for a file that cannot be read, decoded or split into rows.
    """
    path = Path(path)
    suffix = bare_suffix(path)
    if suffix in (".xlsx", ".xlsm"):
        return read_xlsx(path)
    if suffix in _UNREADABLE:
        raise KnowledgeError(f"{path}: {suffix} files cannot be read; save it as {_UNREADABLE[suffix]} or CSV")
    text = read_text(path)
    if suffix in (".jsonl", ".ndjson"):
        return ((number, _parse_object(line)) for number, line in enumerate(text.split("\n"), 1) if line.strip())
    return _parse_csv(path, text)


def read_text(path: str | Path) -> str:
    """Read a file as UTF-8, or as UTF-16 with a byte order mark. Raises KnowledgeError that names line and fix."""
    path = Path(path)
    with open_binary(path) as file:
        raw = file.read()
    encoding = "UTF-16" if raw.startswith((b"\xff\xfe", b"\xfe\xff")) else "UTF-8"
    try:
        text = raw.decode(encoding).removeprefix("\ufeff")
    except UnicodeDecodeError as err:
        line = raw.count(b"\n", 0, err.start) + 1
        raise KnowledgeError(f"{path}:{line}: not {encoding}; {_encoding_fix(path, raw)}") from None
    if "\0" in text:
        raise KnowledgeError(f"{path}: has zero bytes, like UTF-16 without a byte order mark; save it as UTF-8")
    return text


def _encoding_fix(path: Path, raw: bytes) -> str:
    try:
        raw.decode("gb18030")
    except UnicodeDecodeError:
        return "save it as UTF-8"
    # Many Latin-1 texts are valid GB18030 too, so this is only a hint.
    return f"save it as UTF-8; if it is GB18030 (GBK): iconv -f GB18030 -t UTF-8 {path.name} > NEW{path.suffix}"


def _parse_object(line: str) -> dict[str, Any] | None:
    try:
        row = orjson.loads(line)
    except ValueError:
        return None
    return row if isinstance(row, dict) else None


def _parse_csv(path: Path, text: str) -> Iterator[Row]:
    if bare_suffix(path) == ".tsv":
        reader = csv.reader(io.StringIO(text, newline=""), delimiter="\t", quoting=csv.QUOTE_NONE)
    else:
        first = text.lstrip().partition("\n")[0]
        # Without strict=True, an unclosed quotation mark would silently swallow the rest of the list.
        reader = csv.reader(io.StringIO(text, newline=""), delimiter=max(",;\t", key=first.count), strict=True)
    header: list[str] = []
    while True:
        number = reader.line_num + 1
        try:
            cells = next(reader)
        except StopIteration:
            return
        except csv.Error as err:
            raise KnowledgeError(f"{path}:{number}: not a row ({err}); check its quotation marks") from None
        if not any(cell.strip() for cell in cells):
            continue
        if header:
            yield number, dict(zip(header, cells, strict=True)) if len(cells) == len(header) else None
        else:
            header = [cell.strip() for cell in cells]
            if repeated := [name for name in header if header.count(name) > 1]:
                raise KnowledgeError(f"{path}: column '{repeated[0]}' occurs more than once; rename the others")
