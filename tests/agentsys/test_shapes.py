"""Shapes: JSON against the fields of a dataclass."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import pytest

from agentsys.shapes import Shape


@dataclass
class Thing:
    name: str
    kind: Literal["a", "b"]
    count: int
    weight: float | None = None
    ids: list[int] | None = None
    rows: list[list[float]] = field(default_factory=list)
    extra: Mapping[str, Any] = field(default_factory=dict)
    anything: Any = None
    mode: Literal["x", "y"] = "x"


SHAPE = Shape(Thing, "a thing")
GOOD: dict[str, Any] = {"name": "n", "kind": "a", "count": 1}


@pytest.mark.parametrize(
    "more",
    [
        {}, {"weight": 1}, {"weight": 0.5}, {"weight": None}, {"ids": None}, {"ids": []}, {"ids": [1, 2**63]},
        {"rows": [[0.5, None], []]}, {"extra": {"a": [1]}}, {"anything": object}, {"mode": "y"},
    ],
)  # fmt: skip
def test_what_fits(more: dict[str, Any]) -> None:
    assert SHAPE.fault(GOOD | more) == ""


@pytest.mark.parametrize(
    ("raw", "fault"),
    [
        (None, "a thing is null"),
        ([], "a thing is a list"),
        (3, "a thing is a number"),
        ({}, "a thing has no 'count'"),
        (GOOD | {"other": 1}, "a thing has no field 'other'"),
        (GOOD | {"name": None}, "'name' is null"),
        (GOOD | {"kind": "c"}, "'kind' is 'c'"),
        (GOOD | {"kind": ["a"]}, "'kind' is a list"),
        (GOOD | {"mode": "z"}, "'mode' is 'z'"),
        (GOOD | {"count": True}, "'count' is true or false"),
        (GOOD | {"count": 1.5}, "'count' is a number"),
        (GOOD | {"count": "x" * 41}, "'count' is a text"),
        (GOOD | {"weight": "1"}, "'weight' is '1'"),
        (GOOD | {"ids": {}}, "'ids' is an object"),
        (GOOD | {"ids": [1, "2"]}, "'ids' has an item that is a text"),
        (GOOD | {"ids": [1, None]}, "'ids' has an item that is null"),
        (GOOD | {"ids": [1, 2.5]}, "'ids' has an item that is a number"),
        (GOOD | {"rows": [1.0]}, "'rows' has an item that is a number"),
        (GOOD | {"extra": []}, "'extra' is a list"),
    ],
)
def test_what_does_not(raw: Any, fault: str) -> None:
    for _ in range(2):  # what was accepted before has no influence
        assert SHAPE.fault(raw) == fault
        assert SHAPE.fault(GOOD) == ""
