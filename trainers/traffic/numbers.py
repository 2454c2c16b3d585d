"""Numbers as people write them in tables: decimal commas, words for missing values, and text that is a mistake."""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from agentsys.trainers.traffic.series import Floats, SeriesError

MISSING = ["", "-", "--", "na", "n/a", "nan", "null", "none", "#n/a", "missing", "?"]
"""Texts that stand for a missing value, in lower case."""


def to_numbers(column: Any, name: str, label: str, notes: list[str]) -> Floats:
    """(R,) a column as float32, NaN where it is missing; appends to `notes` what was converted.

    `name` and `label` are the file and the column. Raises SeriesError for text, and for commas that may be decimal or
    separate thousands.
    """
    cells = column.combine_chunks() if hasattr(column, "combine_chunks") else column
    if not (pa.types.is_string(cells.type) or pa.types.is_large_string(cells.type)):
        return _from_typed(cells, name, label)
    texts = pc.utf8_trim_whitespace(cells)
    empty = pc.is_in(pc.utf8_lower(texts), value_set=pa.array(MISSING, texts.type))
    texts = pc.if_else(empty, pa.scalar(None, texts.type), texts)
    try:
        return _as_floats(texts.cast(pa.float64()))
    except pa.ArrowInvalid:
        return _as_floats(_with_points(texts, name, label, notes))


def _from_typed(cells: Any, name: str, label: str) -> Floats:
    try:
        return _as_floats(cells.cast(pa.float64(), safe=False))
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError):
        raise SeriesError(
            f"{name}, column {label}: {cells.type} is no number: leave it out by --value-columns"
        ) from None


def _as_floats(numbers: Any) -> Floats:
    floats: Floats = numbers.to_numpy(zero_copy_only=False).astype(np.float32)
    return floats


def _with_points(texts: Any, name: str, label: str, notes: list[str]) -> Any:
    """Texts with decimal commas as numbers. Raises SeriesError."""
    place = f"{name}, column {label}"
    number = pc.match_substring_regex(texts, r"^[+-]?(\d+([.,]\d*)?|[.,]\d+)([eE][+-]?\d+)?$")
    number = pc.fill_null(number, True)
    if not pc.all(number).as_py():
        row = pc.index(number, False).as_py()
        text = texts[row].as_py()
        raise SeriesError(
            f"{place}, row {row + 1}: {text!r} is no number: correct it, leave the cell empty, or choose "
            "columns by --value-columns"
        )
    commas = pc.fill_null(pc.match_substring(texts, ","), False)
    points = pc.fill_null(pc.match_substring(texts, "."), False)
    if pc.any(points).as_py():
        row = pc.index(points, True).as_py()
        raise SeriesError(f"{place}, row {row + 1}: the column has decimal commas and points: write one of them")
    thousands = pc.fill_null(pc.match_substring_regex(texts, r"^[+-]?[1-9]\d{0,2},\d{3}$"), False)
    count = pc.sum(commas).as_py()
    if pc.sum(thousands).as_py() == count:
        row = pc.index(commas, True).as_py()
        text = texts[row].as_py()
        raise SeriesError(f"{place}, row {row + 1}: {text!r} may be thousands or a decimal comma: write decimal points")
    notes.append(f"{place}: {count:,} decimal commas read as points")
    return pc.replace_substring(texts, ",", ".").cast(pa.float64())
