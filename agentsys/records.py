"""Streaming records from a file or an iterable, in memory that does not grow with the file.

Each reader below turns its format into pairs `(number, fields)` or `(number, reason)`: the number is the 1-based line
or row, the reason says why it cannot be used. `_record` then checks every pair in one place, so that in any format a
bad input costs one record and not the run. A bad request (missing file, unknown suffix) is an `InputError`, raised
before the first record.

Two choices that are not obvious. A `.tsv` file has no quoting (text/tab-separated-values): sentences that start with a
quotation mark are common in corpora, and a quoting reader strips the mark or reads on to the next one. A JSON array is
split into its elements here and each is parsed alone, so that a broken one costs one record. ijson is no substitute:
its C back end silently turns half a surrogate pair into "?", its Python one keeps most of the file in memory (19 MB for
a file of 10 MB), and both stop at the first error.
"""

from __future__ import annotations

import codecs
import csv
import hashlib
import random
import re
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, Literal, TypeVar

import orjson

MAX_LINE = 64 * 2**20
"""The longest line or JSON element read, in bytes, and the longest CSV field, in characters."""

SHUFFLE_BUFFER = 10_000
"""Records that `shuffled` holds in memory."""

_CHUNK = 2**18
_PARQUET_ROWS = 256
_JSON_MARK = re.compile(rb'[\\"\[\]{},]')
_JSON_DEPTH = {b"[": 1, b"{": 1, b"]": -1, b"}": -1, b",": 0}
_TOO_LONG = f"the record is longer than {MAX_LINE // 2**20} MiB; split it or leave it out"

T = TypeVar("T")
_Raw = tuple[int, dict[str, Any] | str]


class InputError(ValueError):
    """An unusable input or option. The message is one line that names the fix."""


@dataclass(frozen=True, slots=True)
class Record:
    """One input: its id, its fields after the mapping (with the unmapped ones), and its source ("a.jsonl:12")."""

    id: str
    data: dict[str, Any]
    source: str


@dataclass(frozen=True, slots=True)
class BadRecord:
    """An unusable input: its source and the reason, one line that names the fix."""

    source: str
    reason: str


def record_id(data: Mapping[str, Any]) -> str:
    """The first 16 hex digits of the SHA-256 of the canonical JSON of `data` (sorted keys; NaN counts as null).

    Raises TypeError if `data` cannot be written as JSON.
    """
    return hashlib.sha256(orjson.dumps(data, option=orjson.OPT_SORT_KEYS)).hexdigest()[:16]


def read_records(
    source: str | Path | Iterable[Mapping[str, Any] | str],
    *,
    fields: Mapping[str, str] | None = None,
    id_field: str = "id",
    required: Collection[str] = (),
    text_field: str = "text",
) -> Iterator[Record | BadRecord]:
    """Stream the records of a file (.jsonl, .ndjson, .json, .csv, .tsv, .parquet, .txt) or of an iterable.

    `fields` maps a graph's field to the column that holds it; the column's own name is dropped. `id_field` is the field
    with the id after this mapping; without a value there, the id is `record_id` of the fields. Fields in `required`
    must hold text that is not blank. A line of a text file and a string in an iterable become `{text_field: line}`.

    Raises InputError at the call, before any iteration, for an unusable source or mapping.
    """
    fields = dict(fields or {})
    for field, column in fields.items():
        if not field or not column:
            raise InputError(f"field mapping {field!r}={column!r} has an empty name; write FIELD=COLUMN")
    if isinstance(source, str | Path):
        rows = _open(Path(source), text_field)
        name = str(source)
    elif isinstance(source, Mapping | bytes) or not isinstance(source, Iterable):
        raise InputError(f"records of type {type(source).__name__!r} cannot be read; give a path or a list of mappings")
    else:
        rows = _items(source, text_field)
        name = "item"
    return (_record(f"{name}:{number}", raw, fields, id_field, required) for number, raw in rows)


def check_seed(seed: int) -> None:
    """Raises InputError for a seed that does not fit into 64 bits, as JSON holds them."""
    if not -(2**63) <= seed < 2**63:
        raise InputError(f"--seed {seed}: give a number from {-(2**63)} to {2**63 - 1}")


def shuffled(records: Iterable[T], *, seed: int, buffer: int = SHUFFLE_BUFFER) -> Iterator[T]:
    """Yield all `records` in an order that `seed` determines, with at most `buffer` (>= 1) of them in memory.

    A record moves forward by fewer than `buffer` places, so that a longer sorted input is shuffled only locally.
    """
    rng = random.Random(seed)
    held: list[T] = []
    for record in records:
        if len(held) < buffer:
            held.append(record)
            continue
        place = rng.randrange(buffer)
        yield held[place]
        held[place] = record
    rng.shuffle(held)
    yield from held


def _record(
    source: str, raw: dict[str, Any] | str, fields: Mapping[str, str], id_field: str, required: Collection[str]
) -> Record | BadRecord:
    if isinstance(raw, str):
        return BadRecord(source, raw)
    mapped = {*fields, *fields.values()}
    data = {name: value for name, value in raw.items() if name not in mapped}
    data |= {field: raw[column] for field, column in fields.items() if column in raw}
    reason = _unusable(data, raw, fields, required)
    if reason:
        return BadRecord(source, reason)
    id_value = data.get(id_field)
    if isinstance(id_value, bool) or not isinstance(id_value, str | int | None):
        return BadRecord(
            source, f"the id in {id_field!r} is of type {type(id_value).__name__}; make it a string or an integer"
        )
    if id_field != "id" and id_field not in data:
        return BadRecord(source, f"no field {id_field!r} to take the id from; the record has {_names(data)}")
    try:
        # Also for a record with an id: one that cannot be written as JSON does not fit into a trace.
        content = record_id(data)
    except TypeError as error:
        return BadRecord(source, _not_json(data, error))
    return Record(str(id_value) if id_value is not None and str(id_value).strip() else content, data, source)


def _unusable(
    data: Mapping[str, Any], raw: Mapping[str, Any], fields: Mapping[str, str], required: Collection[str]
) -> str:
    """Why a required field cannot be used; "" if all can."""
    for field in required:
        column = fields.get(field, field)
        value = data.get(field)
        if field not in data:
            missing = repr(field) if column == field else f"{column!r} (for {field!r})"
            return f"no field {missing}; the record has {_names(raw)}; name the right one with --field {field}=COLUMN"
        if not isinstance(value, str) and value is not None:
            return f"field {column!r} is of type {type(value).__name__}; make it a string"
        if value is None or not value.strip():
            return f"field {column!r} is {'null' if value is None else 'empty'}; fill it in or remove the record"
    return ""


def _names(data: Mapping[str, Any]) -> str:
    names = [repr(str(name)[:60]) for name in data]
    return ", ".join(names[:12]) + (f" and {len(names) - 12} more" if len(names) > 12 else "") or "no fields"


def _not_json(data: Mapping[str, Any], error: TypeError) -> str:
    for name, value in data.items():
        try:
            orjson.dumps({name: value})
        except TypeError as cause:
            reason = "it has bytes that are not UTF-8 or half a surrogate pair" if "UTF-8" in str(cause) else cause
            return f"field {str(name)[:60]!r} cannot be written as JSON: {reason}; convert or remove it"
    return f"the record cannot be written as JSON: {error}; convert or remove the field"


def _open(path: Path, text_field: str) -> Iterator[_Raw]:
    try:
        path.open("rb").close()
    except FileNotFoundError:
        raise InputError(f"{path}: no such file; check the path") from None
    except IsADirectoryError:
        raise InputError(f"{path} is a folder; name one file in it") from None
    except (OSError, ValueError) as error:
        raise InputError(f"{str(path)!r} cannot be read: {getattr(error, 'strerror', None) or error}") from None
    match path.suffix.lower():
        case ".jsonl" | ".ndjson":
            return _json_lines(path)
        case ".json":
            return _json_array(path)
        case ".csv":
            return _table(_cells(path, ",", csv.QUOTE_MINIMAL))
        case ".tsv":
            return _table(_cells(path, "\t", csv.QUOTE_NONE))
        case ".parquet":
            return _parquet(path)
        case ".txt":
            return _text(path, text_field)
    raise InputError(
        f"{path}: unknown file type {path.suffix!r}; use .jsonl, .ndjson, .json, .csv, .tsv, .parquet or .txt"
    )


def _items(items: Iterable[Any], text_field: str) -> Iterator[_Raw]:
    for number, item in enumerate(items, start=1):
        if isinstance(item, Mapping):
            yield number, dict(item)
        elif isinstance(item, str):
            yield number, {text_field: item}
        else:
            yield number, f"the item is of type {type(item).__name__}; give a mapping or a string"


def _skip_mark(file: BinaryIO) -> None:
    if file.read(len(codecs.BOM_UTF8)) != codecs.BOM_UTF8:
        file.seek(0)


def _lines(path: Path) -> Iterator[tuple[int, bytes | None]]:
    """Numbered lines with their line ends, without byte order mark; None for a line longer than MAX_LINE."""
    with path.open("rb") as file:
        _skip_mark(file)
        number = 0
        while line := file.readline(MAX_LINE + 1):
            number += 1
            if len(line) <= MAX_LINE:
                yield number, line
                continue
            while line and not line.endswith(b"\n"):
                line = file.readline(_CHUNK)
            yield number, None


def _decode(line: bytes | None) -> tuple[str, str]:
    """The line's text and its fault ("" if none)."""
    if line is None:
        return "\n", _TOO_LONG
    try:
        return line.decode(), ""
    except UnicodeDecodeError as error:
        fault = f"byte {error.start + 1} (0x{line[error.start]:02x}) is not UTF-8; convert the file to UTF-8"
        return line.decode(errors="replace"), fault


def _text(path: Path, text_field: str) -> Iterator[_Raw]:
    for number, line in _lines(path):
        text, fault = _decode(line)
        if fault or text.strip():
            yield number, fault or {text_field: text.rstrip("\r\n")}


def _json_lines(path: Path) -> Iterator[_Raw]:
    for number, line in _lines(path):
        if line is None:
            yield number, _TOO_LONG
        elif not line.isspace():
            yield number, _json_line(line)


def _json_line(line: bytes) -> dict[str, Any] | str:
    try:
        value = orjson.loads(line)
    except orjson.JSONDecodeError as error:
        unknown = error.doc.startswith(("NaN", "Infinity"), error.pos)
        hint = "write null for NaN and Infinity" if unknown else "write an object, {...}"
        # orjson does not say where a byte is not UTF-8.
        return _decode(line)[1] or f"not JSON: {error.msg} at character {error.pos + 1}; {hint}"
    return value if isinstance(value, dict) else f"the JSON is of type {type(value).__name__}; write an object, {{...}}"


def _json_array(path: Path) -> Iterator[_Raw]:
    with path.open("rb") as file:
        _skip_mark(file)
        while (first := file.read(1)).isspace():
            continue
        if first == b"[":
            yield from enumerate(_elements(file), start=1)
        elif first:
            yield 1, "not a JSON array; write [{...}, ...], or name the file .jsonl if it has one object per line"


def _elements(file: BinaryIO) -> Iterator[dict[str, Any] | str]:
    """The elements of the array whose opening bracket was just read, and then the fault of its end, if any."""
    held = bytearray()
    depth, quoted, escaped, offset = 1, False, -1, 0
    while chunk := file.read(_CHUNK):
        start = 0
        for match in _JSON_MARK.finditer(chunk):
            mark, at = match[0], match.start()
            if offset + at == escaped:
                continue
            if mark == b"\\":
                escaped = offset + at + 1
            elif mark == b'"':
                quoted = not quoted
            elif not quoted:
                depth += _JSON_DEPTH[mark]
                if depth == 0 or (depth == 1 and mark == b","):
                    yield from _element(held + chunk[start:at])
                    held.clear()
                    start = at + 1
            if depth == 0:
                yield from _after_array(chunk[start:] + file.read(_CHUNK))
                return
        held += chunk[start:]
        del held[MAX_LINE + 1 :]
        offset += len(chunk)
    # A complete last element is still a record.
    yield from _element(held if depth == 1 else bytearray())
    yield "the file ends inside the JSON array, here; the records before were read: write the file again"


def _after_array(rest: bytes) -> Iterator[str]:
    if rest.strip():
        yield "there is more after the end of the JSON array; put everything into one array"


def _element(held: bytearray) -> Iterator[dict[str, Any] | str]:
    if len(held) > MAX_LINE:
        yield _TOO_LONG
    elif element := bytes(held.strip()):
        yield _json_line(element)


def _cells(path: Path, delimiter: str, quoting: Literal[0, 3]) -> Iterator[tuple[int, list[str] | str]]:
    """The rows of a CSV or TSV file without blank ones, each with the number of its first line."""
    # The default limit is 128 Ki characters. This one also ends a field whose quotation mark is never closed.
    csv.field_size_limit(MAX_LINE)
    faults: list[str] = []

    def text() -> Iterator[str]:
        for _, raw in _lines(path):
            line, fault = _decode(raw)
            if fault:
                faults.append(fault)
            yield line

    # If not strict, the reader silently drops a misplaced quotation mark.
    reader = csv.reader(text(), delimiter=delimiter, quoting=quoting, strict=True)
    while True:
        number = reader.line_num + 1
        faults.clear()
        try:
            row = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            yield number, f"not a row: {error} (at line {reader.line_num}); check its quotation marks and line ends"
            continue
        if faults:
            yield number, faults[0]
        elif any(cell.strip() for cell in row):
            yield number, row


def _table(rows: Iterator[tuple[int, list[str] | str]]) -> Iterator[_Raw]:
    number, header = next(rows, (1, []))
    if fault := header if isinstance(header, str) else _duplicate(header):
        yield number, f"the header cannot be used: {fault}"
        return
    for number, row in rows:
        if not isinstance(row, str) and len(row) != len(header):
            yield number, f"{len(row)} columns where the header has {len(header)}; quote or add a field"
        else:
            yield number, row if isinstance(row, str) else dict(zip(header, row, strict=True))


def _duplicate(names: Iterable[str]) -> str:
    """The fault of a header with a repeated column; "" if there is none."""
    name, count = next(iter(Counter(names).most_common(1)), ("", 1))
    return f"column {name!r} occurs {count} times; rename all but one" if count > 1 else ""


def _parquet(path: Path) -> Iterator[_Raw]:
    import pyarrow
    import pyarrow.parquet

    number = 0
    try:
        with pyarrow.parquet.ParquetFile(path) as file:
            if fault := _duplicate(file.schema_arrow.names):
                yield 1, fault
                return
            for batch in file.iter_batches(batch_size=_PARQUET_ROWS):
                for row in range(batch.num_rows):
                    number += 1
                    yield number, _parquet_row(batch, row)
    except (pyarrow.ArrowException, OSError) as error:
        reason = " ".join(str(error).split())
        yield (
            number + 1,
            f"the parquet file is broken from here on: {reason}; write it again (the records before were read)",
        )


def _parquet_row(batch: Any, row: int) -> dict[str, Any] | str:
    try:
        return {name: batch.column(place)[row].as_py() for place, name in enumerate(batch.schema.names)}
    except (UnicodeDecodeError, ValueError, OverflowError) as error:
        return f"a value cannot be read: {error}; convert or remove it"
