"""Values of Python, numpy and Arrow as values that JSON holds exactly, each in one stated form (docs/own-data.md)."""

from __future__ import annotations

import base64
import datetime
import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass, is_dataclass
from decimal import Decimal
from enum import Enum
from pathlib import PurePath
from typing import Any, Final
from uuid import UUID

import orjson

MAX_DEPTH: Final = 250
"""Levels of lists and objects in a value; orjson writes 254."""


@dataclass(frozen=True, slots=True)
class Unreadable:
    """A cell that could not be read from a table, and why."""

    reason: str


def is_missing(value: Any) -> bool:
    """Whether a cell of a table has no value: None, NaN, pandas' NA and NaT."""
    if isinstance(value, float | datetime.date | datetime.timedelta):
        return bool(value != value)
    return value is None or type(value).__name__ == "NAType"


class NoPlainForm(TypeError):
    """A value that JSON cannot hold. The message says what it is."""


def make_plain(fields: Mapping[str, Any], needed: Collection[str]) -> tuple[dict[str, Any], str]:
    """The fields with plain values, and why a needed one has none ("" if all have one).

    An unusable value of another field becomes `{"unreadable": reason}`: a column that nobody uses costs no record.
    """
    plain: dict[str, Any] = {}
    for name, value in fields.items():
        try:
            plain[name] = to_plain(value)
            orjson.dumps({name: plain[name]})
        except TypeError as error:
            if name in needed or not isinstance(name, str):
                return (
                    {},
                    f"field {str(name)[:60]!r} cannot be written as JSON: {_explain(error)}; convert or remove it",
                )
            plain[name] = {"unreadable": _explain(error)}
    return plain, ""


def _explain(error: TypeError) -> str:
    return "it has bytes that are not UTF-8 or half a surrogate pair" if "UTF-8" in str(error) else str(error)


def to_plain(value: Any, depth: int = 0) -> Any:
    """A value of text, integers of 64 bits, finite floats, booleans, None, lists and dictionaries.

    Raises NoPlainForm for a value that has no such form.
    """
    kind = value.__class__
    if kind is str or kind is bool or value is None:
        return value
    if kind is int:
        return value if -(2**63) <= value < 2**64 else _digits(value)
    if kind is float:
        return _plain_float(value)
    if depth > MAX_DEPTH:
        raise NoPlainForm(f"it has more than {MAX_DEPTH} levels")
    if isinstance(value, Mapping):
        return {_key(key): to_plain(item, depth + 1) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [to_plain(item, depth + 1) for item in value]
    return _plain_scalar(value, depth)


def _plain_scalar(value: Any, depth: int) -> Any:
    match value:
        case Enum():
            return to_plain(value.value, depth + 1)
        case str() | PurePath() | UUID():
            return str(value)
        case bytes() | bytearray() | memoryview():
            return base64.b64encode(value).decode()
        case int():
            return to_plain(int(value))
        case float():
            return _plain_float(float(value))
        case Decimal():
            return f"{value:f}" if value.is_finite() else None if value.is_nan() else _infinity(value > 0)
        case datetime.date() | datetime.time():  # a datetime is a date
            return None if value != value else value.isoformat()  # pandas' NaT is a datetime that differs from itself
        case datetime.timedelta():
            return _duration(value)
    return _plain_foreign(value, depth)


def _plain_foreign(value: Any, depth: int) -> Any:
    """The form of a value of another package: numpy's scalars and arrays, pandas' missing value."""
    kind = type(value)
    if kind.__module__.partition(".")[0] == "numpy" and hasattr(value, "dtype"):
        return _plain_numpy(value, depth)
    if kind.__module__.startswith("pandas.") and kind.__name__ == "NAType":
        return None
    if isinstance(value, Unreadable):
        raise NoPlainForm(value.reason)
    if is_dataclass(value):
        return value  # orjson writes its fields
    raise NoPlainForm(f"Type is not JSON serializable: {kind.__name__}")


def _plain_numpy(value: Any, depth: int) -> Any:
    letter = value.dtype.kind
    if letter in "Mm":  # item() would give integers for nanoseconds
        items = value.astype(str).tolist()
        return _without_nat(items)
    if letter in "cV" or (value.dtype.itemsize > 8 and letter == "f"):
        raise NoPlainForm(f"Type is not JSON serializable: numpy {value.dtype}")
    return to_plain(value.tolist(), depth + 1)


def _without_nat(items: Any) -> Any:
    return [_without_nat(item) for item in items] if isinstance(items, list) else None if items == "NaT" else items


def _key(key: Any) -> str:
    if not isinstance(key, str):
        raise NoPlainForm(f"Dict key must be str, not {type(key).__name__}")
    return str(key)


def _digits(value: int) -> str:
    try:
        return str(value)
    except ValueError as error:  # Python's limit on the digits of an integer
        raise NoPlainForm(str(error)) from None


def _plain_float(value: float) -> float | str | None:
    """NaN is how tables mark a missing value; JSON has no infinity."""
    if math.isfinite(value):
        return value
    return None if math.isnan(value) else _infinity(value > 0)


def _infinity(positive: bool) -> str:
    return "Infinity" if positive else "-Infinity"


def _duration(value: datetime.timedelta) -> str | None:
    """Seconds as ISO 8601 writes them: PT93600.5S."""
    if value != value:
        return None
    nanoseconds = getattr(value, "nanoseconds", 0)  # pandas
    seconds = Decimal(value // datetime.timedelta(microseconds=1)) / 10**6 + Decimal(nanoseconds) / 10**9
    return f"PT{seconds.normalize():f}S"
