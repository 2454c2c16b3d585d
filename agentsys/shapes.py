"""Whether a JSON object has the fields of a dataclass, with values of their types: what is read may be damaged."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from dataclasses import MISSING, fields
from types import NoneType, UnionType
from typing import Any, Final, Literal, Union, get_args, get_origin, get_type_hints

_NAMES: Final[Mapping[type, str]] = {
    dict: "an object", list: "a list", str: "a text", bool: "true or false", int: "a number", float: "a number",
    NoneType: "null",
}  # fmt: skip


class Shape:
    """The fields of a dataclass, called `name` in a fault. A list's items have their types, but not what is in them."""

    def __init__(self, kind: type, name: str) -> None:
        hints = get_type_hints(kind)
        self._name = name
        self._types = {name: _types_of(hint) for name, hint in hints.items()}
        self._choices = {name: choices for name, hint in hints.items() if (choices := _choices_of(hint))}
        self._items = {name: items for name, hint in hints.items() if (items := _items_of(hint))}
        self._required = {one.name for one in fields(kind) if one.default is MISSING and one.default_factory is MISSING}
        self._accepted: set[tuple[Any, ...]] = set()

    def fault(self, raw: Any) -> str:
        """What is wrong with a value, such as "'key' is a number"; "" if nothing is."""
        if type(raw) is not dict:
            return f"{self._name} is {name_type(raw)}"
        layout = (*raw, *map(type, raw.values()))
        if layout not in self._accepted:  # few layouts occur in many lines, and a look-up takes a tenth of the tests
            if fault := self._layout_fault(raw):
                return fault
            self._accepted.add(layout)
        for name, choices in self._choices.items():
            if raw.get(name, choices[0]) not in choices:
                return f"{name!r} is {describe(raw[name])}"
        for name, items in self._items.items():
            if (values := raw.get(name)) and not _are_of(values, items):
                return f"{name!r} has an item that is {name_type(next(v for v in values if type(v) not in items))}"
        return ""

    def _layout_fault(self, raw: dict[str, Any]) -> str:
        if missing := self._required - raw.keys():
            return f"{self._name} has no {min(missing)!r}"
        if unknown := raw.keys() - self._types.keys():
            return f"{self._name} has no field {min(unknown)[:80]!r}"
        for name, value in raw.items():
            types = self._types[name]
            if types is not None and type(value) not in types:
                return f"{name!r} is {describe(value)}"
        return ""


def name_type(value: Any) -> str:
    """What a JSON value is: "a list"."""
    return _NAMES.get(type(value), type(value).__name__)


def describe(value: Any) -> str:
    """A JSON value in a few words: a short text itself, of others the type."""
    return repr(value) if isinstance(value, str) and len(value) <= 40 else name_type(value)


def _are_of(values: list[Any], types: frozenset[type]) -> bool:
    if int in types:  # thousands of token ids: adding them is four times as fast as looking at their types
        with suppress(TypeError):
            if type(sum(values)) in types:
                return True
    return types.issuperset(map(type, values))


def _types_of(hint: Any) -> frozenset[type] | None:
    """The types of the JSON values of a hint; None if any may occur. A float that is not finite is written as null."""
    kind = get_origin(hint) or hint
    if kind in (Union, UnionType):
        parts = [_types_of(part) for part in get_args(hint)]
        return None if None in parts else frozenset[type]().union(*(part for part in parts if part))
    if kind is Literal:
        return frozenset({str})
    if kind is float:
        return frozenset({float, int, NoneType})
    if kind is Mapping:
        return frozenset({dict})
    return None if kind is Any else frozenset({kind if kind in _NAMES else dict})


def _choices_of(hint: Any) -> tuple[Any, ...]:
    return get_args(hint) if get_origin(hint) is Literal else ()


def _items_of(hint: Any) -> frozenset[type] | None:
    """The types of the items of a list, which may be None instead."""
    for part in get_args(hint) if get_origin(hint) in (Union, UnionType) else (hint,):
        if get_origin(part) is list:
            return _types_of(get_args(part)[0])
    return None
