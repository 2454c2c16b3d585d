"""Streaming records from files, tables or an iterable, in memory that does not grow with the input.

The readers of agentsys.inputs turn each format into pairs `(number, fields)` or `(number, fault)`: the number is the
1-based line or row, the fault says why it cannot be used. `_to_record` then checks every pair in one place, so that in
any format a bad input costs one record and not the run. A bad request (missing file, unknown suffix) is an
`InputError`, raised before the first record.
"""

from __future__ import annotations

import hashlib
import json
import random
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import orjson

from agentsys.inputs.files import ACCEPTED, InputFile, find_files
from agentsys.inputs.hub import read_hub
from agentsys.inputs.lines import Fault, InputError, Raw, digest
from agentsys.inputs.plain import Unreadable, is_missing, make_plain
from agentsys.inputs.tables import read_table

__all__ = ["BadRecord", "InputError", "Record", "check_seed", "read_records", "record_id", "shuffled"]

SHUFFLE_BUFFER = 10_000
"""Records that `shuffled` holds in memory."""

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Record:
    """One input: its id, its fields after the mapping (with the unmapped ones), and its source ("a.jsonl:12").

    `content` is the `record_id` of the fields, also if the record has an id of its own.
    """

    id: str
    data: dict[str, Any]
    source: str
    content: str = field(default="", compare=False)


@dataclass(frozen=True, slots=True)
class BadRecord:
    """An unusable input: its source, the reason in one line that names the fix, and the digest of its content.

    The digest is that of the line or of the fields, whatever the file is called. A fault without content, such as the
    end of a damaged file, has that of its reason and of the line's number.
    """

    source: str
    reason: str
    content: str = field(default="", compare=False)


def record_id(data: Mapping[str, Any]) -> str:
    """The first 16 hex digits of the SHA-256 of the canonical JSON of `data` (sorted keys; NaN counts as null).

    Raises TypeError if `data` cannot be written as JSON.
    """
    return hashlib.sha256(orjson.dumps(data, option=orjson.OPT_SORT_KEYS)).hexdigest()[:16]


def read_records(
    source: str | Path | Iterable[Mapping[str, Any] | str] | Any,
    *,
    fields: Mapping[str, str] | None = None,
    id_field: str = "id",
    required: Collection[str] = (),
    text_field: str = "text",
) -> Iterator[Record | BadRecord]:
    """Stream the records of files, of a data set, of a table in memory or of an iterable.

    A string or path is a file (.jsonl, .ndjson, .json, .csv, .tsv, .parquet, .txt, also compressed), a folder, a
    pattern ("data/*.jsonl"), "-" for standard input, "hf:NAME:CONFIG@SPLIT", or an address that fsspec reads. A table
    is a DataFrame of pandas or polars, or an Arrow table; an iterable has mappings or strings, as a `datasets.Dataset`.

    `fields` maps a graph's field to the column that holds it; the column's own name is dropped. `id_field` is the field
    with the id after this mapping; without a value there, the id is `record_id` of the fields. Fields in `required`
    must hold text that is not blank. A line of a text file and a string in an iterable become `{text_field: line}`.

    Raises InputError at the call, before any iteration, for an unusable source or mapping.
    """
    fields = dict(fields or {})
    for name, column in fields.items():
        if not name or not column:
            raise InputError(f"field mapping {name!r}={column!r} has an empty name; write FIELD=COLUMN")
    check = _Check(fields, id_field, tuple(required))
    if not isinstance(source, str | Path):
        return check.rows("item", _items(source, text_field), is_json=False)
    place = str(source)
    if _is_hub_name(place):
        return check.rows(place, read_hub(place), is_json=False)
    files = find_files(place)
    if len(files) == 1:
        files[0].check()
    return _read_files(files, check, text_field)


def _is_hub_name(place: str) -> bool:
    """Whether it is hf:NAME. "hf:/..." is a local folder, or else what a path makes of the address "hf://..."."""
    if not place.startswith("hf:/"):
        return place.startswith("hf:")
    return not place.startswith("hf://") and Path(place[3:].partition(":")[0].partition("@")[0]).is_dir()


def _read_files(files: Iterable[InputFile], check: _Check, text_field: str) -> Iterator[Record | BadRecord]:
    for file in files:
        yield from check.rows(file.name, file.read(text_field), is_json=file.suffix != ".parquet")


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


@dataclass(frozen=True, slots=True)
class _Check:
    """Makes records of rows: the mapping of columns, the id, and what a graph requires."""

    fields: Mapping[str, str]
    id_field: str
    required: tuple[str, ...]

    def rows(self, name: str, rows: Iterator[Raw], *, is_json: bool) -> Iterator[Record | BadRecord]:
        """The records of one file or table. Without `is_json`, values may be of any type."""
        return (self.to_record(f"{name}:{number}", raw, is_json) for number, raw in rows)

    def to_record(self, source: str, raw: dict[str, Any] | Fault, is_json: bool) -> Record | BadRecord:
        if isinstance(raw, Fault):
            return BadRecord(source, raw.reason, raw.content or _place_digest(source, raw.reason))
        fields = self.fields
        if fields:
            mapped = {*fields, *fields.values()}
            data = {name: value for name, value in raw.items() if name not in mapped}
            data |= {name: raw[column] for name, column in fields.items() if column in raw}
        else:
            data = raw
        reason = self._unusable(data, raw)
        content = ""
        if not reason and not is_json:
            data, reason = self._make_plain(data)
        if not reason:
            reason = self._unusable_id(data)
        if not reason:
            try:
                # Also for a record with an id: one that cannot be written as JSON does not fit into a trace.
                content = record_id(data)
            except TypeError:
                data, reason = self._make_plain(data)
                content = "" if reason else record_id(data)
        if reason:
            return BadRecord(source, reason, _content(raw) or _place_digest(source, reason))
        id_value = data.get(self.id_field)
        record_name = str(id_value) if id_value is not None and str(id_value).strip() else content
        return Record(record_name, data, source, content)

    def _make_plain(self, data: Mapping[str, Any]) -> tuple[dict[str, Any], str]:
        return make_plain(data, {*self.required, *self.fields, self.id_field})

    def _unusable_id(self, data: Mapping[str, Any]) -> str:
        """Why the record's id cannot be used; "" if it can."""
        name = self.id_field
        id_value = data.get(name)
        if isinstance(id_value, bool) or not isinstance(id_value, str | int | None):
            return f"the id in {name!r} is of type {type(id_value).__name__}; make it a string or an integer"
        if name != "id" and name not in data:
            return f"no field {name!r} to take the id from; the record has {_names(data)}"
        return ""

    def _unusable(self, data: Mapping[str, Any], raw: Mapping[str, Any]) -> str:
        """Why a required field cannot be used; "" if all can."""
        for name in self.required:
            value = data.get(name)
            if isinstance(value, str) and value and not value.isspace():
                continue
            column = self.fields.get(name, name)
            if name not in data:
                missing = repr(name) if column == name else f"{column!r} (for {name!r})"
                return (
                    f"no field {missing}; the record has {_names(raw)}; name the right one with --field {name}=COLUMN"
                )
            if isinstance(value, Unreadable):
                return f"field {column!r}: {value.reason}; convert or remove it"
            if not isinstance(value, str) and not is_missing(value):
                return f"field {column!r} is of type {type(value).__name__}; make it a string"
            state = "empty" if isinstance(value, str) else "null"
            return f"field {column!r} is {state}; fill it in or remove the record"
        return ""


def _content(raw: Mapping[str, Any]) -> str:
    """The digest of unusable fields; "" if there is none that is the same in each run."""
    try:
        text = json.dumps(raw, sort_keys=True, default=lambda value: type(value).__name__)
    except (TypeError, ValueError, RecursionError):
        return ""
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _place_digest(source: str, reason: str) -> str:
    return digest(f"{source.rpartition(':')[2]}:{reason}".encode())


def _names(data: Mapping[str, Any]) -> str:
    names = [repr(str(name)[:60]) for name in data]
    return ", ".join(names[:12]) + (f" and {len(names) - 12} more" if len(names) > 12 else "") or "no fields"


def _items(source: Any, text_field: str) -> Iterator[Raw]:
    """The rows of an object in memory. Raises InputError if it has none."""
    if isinstance(source, Mapping):
        splits = ", ".join(map(repr, list(source)[:5]))
        is_split = type(source).__name__.endswith("DatasetDict")
        hint = f"take one of its splits ({splits})" if is_split else "give a list with one mapping per row"
        raise InputError(f"records of type {type(source).__name__!r} cannot be read; {hint}")
    rows = None if isinstance(source, bytes | bytearray) else read_table(source)
    if rows is not None:
        return rows
    if isinstance(source, bytes | bytearray) or not isinstance(source, Iterable):
        raise InputError(
            f"records of type {type(source).__name__!r} cannot be read; records cannot come from it: give a list of "
            f"mappings or strings, a DataFrame, a datasets.Dataset, or a path ({ACCEPTED})"
        )
    return _number_items(source, text_field)


def _number_items(items: Iterable[Any], text_field: str) -> Iterator[Raw]:
    for number, item in enumerate(items, start=1):
        if isinstance(item, Mapping):
            yield number, dict(item)
        elif isinstance(item, str):
            yield number, {text_field: item}
        else:
            yield number, Fault(f"the item is of type {type(item).__name__}; give a mapping or a string")
