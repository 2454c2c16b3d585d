"""CSV and TSV with a header.

A `.tsv` file has no quoting (text/tab-separated-values): sentences that start with a quotation mark are common in
corpora, and a quoting reader strips the mark or reads on to the next one. In CSV, every line that such a mark swallows
is a fault of its own: whether it is a row or the rest of a cell cannot be known.
"""

from __future__ import annotations

import csv
import io
from collections import Counter
from collections.abc import Iterable, Iterator
from typing import Literal

from agentsys.inputs import lines
from agentsys.inputs.lines import Fault, Raw, decode, digest, read_lines


def read_csv(file: io.BufferedReader) -> Iterator[Raw]:
    """One record per row below the header, with quotation marks as usual."""
    return _table(_cells(file, ",", csv.QUOTE_MINIMAL))


def read_tsv(file: io.BufferedReader) -> Iterator[Raw]:
    """One record per row below the header; a quotation mark is a character."""
    return _table(_cells(file, "\t", csv.QUOTE_NONE))


def find_duplicate(names: Iterable[str]) -> str:
    """The fault of a header with a repeated column; "" if there is none."""
    name, count = next(iter(Counter(names).most_common(1)), ("", 1))
    return f"column {name!r} occurs {count} times; rename all but one" if count > 1 else ""


class _Lines:
    """The decoded lines of a file, with those of the row that is being read and their faults."""

    def __init__(self, file: io.BufferedReader) -> None:
        self._source = read_lines(file)
        self.row: list[bytes | None] = []
        self.faults: list[str] = []

    def __iter__(self) -> Iterator[str]:
        for _, raw in self._source:
            text, fault = decode(raw)
            self.row.append(raw)
            if fault:
                self.faults.append(fault)
            yield text

    def start_row(self) -> None:
        self.row.clear()
        self.faults.clear()

    @property
    def content(self) -> str:
        return digest(b"".join(line or b"" for line in self.row))


def _cells(file: io.BufferedReader, delimiter: str, quoting: Literal[0, 3]) -> Iterator[tuple[int, list[str] | Fault]]:
    """The rows of a CSV or TSV file without blank ones, each with the number of its first line."""
    # The default limit is 128 Ki characters. This one also ends a field whose quotation mark is never closed.
    csv.field_size_limit(lines.MAX_LINE)
    text = _Lines(file)
    # If not strict, the reader silently drops a misplaced quotation mark.
    reader = csv.reader(iter(text), delimiter=delimiter, quoting=quoting, strict=True)
    while True:
        number = reader.line_num + 1
        text.start_row()
        try:
            row = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            yield from _unread(number, error, text.row)
            continue
        if text.faults:
            yield number, Fault(text.faults[0], text.content)
        elif any(cell.strip() for cell in row):
            yield number, row


def _unread(number: int, error: csv.Error, row: list[bytes | None]) -> Iterator[tuple[int, Fault]]:
    """The fault of each line from the start of a row to where it cannot be read on."""
    last = number + len(row) - 1
    place = f"at line {last}"
    more = "" if last == number else f"; its quotation mark is not closed: lines {number} to {last} are not read"
    reason = f"not a row: {error} ({place}){more}; check its quotation marks and line ends"
    for at, line in enumerate(row, start=number):
        if at == number or line is None or line.strip():
            yield at, Fault(reason, digest(line or b""))
            reason = f"not read: the quotation mark in line {number} is not closed; close it"


def _table(rows: Iterator[tuple[int, list[str] | Fault]]) -> Iterator[Raw]:
    number, header = next(rows, (1, []))
    if fault := header.reason if isinstance(header, Fault) else find_duplicate(header):
        yield number, Fault(f"the header cannot be used: {fault}")
        return
    assert not isinstance(header, Fault)
    for number, row in rows:
        if isinstance(row, Fault):
            yield number, row
        elif len(row) != len(header):
            reason = f"{len(row)} columns where the header has {len(header)}; quote or add a field"
            yield number, Fault(reason, digest("\x1f".join(row).encode()))
        else:
            yield number, dict(zip(header, row, strict=True))
