"""The gold answers of a record, in the forms of question-answering data sets."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from datetime import date
from decimal import Decimal
from typing import Any, Final

FIELDS: Final = ("answer", "answers", "answer_aliases")
"""Fields of a record that hold gold answers."""
_TEXT_FIELDS: Final = ("text", "value", "answer", "answers", "aliases", "normalized_aliases")
"""Fields of an answer that is an object: SQuAD's `text`; TriviaQA's `value`, `aliases` and `normalized_aliases`."""


def read_golds(record: Mapping[str, Any]) -> list[str]:
    """Return the gold answers of a record, from its fields `answer`, `answers` and `answer_aliases`, each once.

    A field holds a text, a number, a truth value ("yes" or "no", as in StrategyQA), a date, an object in the form of
    SQuAD or TriviaQA, or a list of these, also nested. Blank texts, null and NaN are no answers.
    """
    return list(dict.fromkeys(gold for name in FIELDS for gold in _texts(record.get(name))))


def require_golds(record: Mapping[str, Any], problem: str = "no gold answer") -> list[str]:
    """Return the gold answers of a record. Raises ValueError, which says what the fields hold, if there are none."""
    if golds := read_golds(record):
        return golds
    contents = [f"{name} is {_describe(record[name])}" for name in FIELDS if name in record]
    reason = ", ".join(contents) or f"it has none of the fields {', '.join(FIELDS)}"
    raise ValueError(
        f"{problem}: a record needs `answer` or `answers`, but {reason}; --field answer=COLUMN names another column"
    )


def _texts(value: Any) -> Iterator[str]:
    """Yield the texts of a value."""
    if isinstance(value, bool):
        yield "yes" if value else "no"
    elif isinstance(value, str):
        if value.strip():
            yield value
    elif isinstance(value, int | float | Decimal):
        yield from _number_texts(value)
    elif isinstance(value, date):
        yield str(value)
    elif isinstance(value, Mapping):
        for name in _TEXT_FIELDS:
            yield from _texts(value.get(name))
    elif isinstance(value, Iterable) and not isinstance(value, bytes):
        for part in value:
            yield from _texts(part)


def _number_texts(value: float | Decimal) -> Iterator[str]:
    """Yield a number as people write it: a whole float, which a column with gaps gives, also without its ".0"."""
    if isinstance(value, int):
        yield str(value)
    elif math.isfinite(value):
        if float(value).is_integer() and abs(float(value)) < 1e15:
            yield str(int(value))
        yield str(value)


def _describe(value: Any) -> str:
    """Return in words why a value holds no answer."""
    if value is None:
        return "null"
    if isinstance(value, Mapping):
        if not value:
            return "an empty object"
        if not set(value) & set(_TEXT_FIELDS):
            return f"an object with {', '.join(map(str, list(value)[:6]))}, not one of {', '.join(_TEXT_FIELDS)}"
        return "an object without a text (in SQuAD 2.0 such a question cannot be answered)"
    if isinstance(value, str):
        return "empty" if not value else "blank"
    if isinstance(value, float):
        return str(value)
    if isinstance(value, Iterable) and not isinstance(value, bytes):
        return "a list without a text" if list(value) else "an empty list"
    return f"of the type {type(value).__name__}"
