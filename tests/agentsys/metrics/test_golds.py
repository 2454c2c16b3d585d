"""Gold answers in the forms of data sets, and what a record without one says."""

from __future__ import annotations

from datetime import date
from decimal import Decimal
from typing import Any

import pytest

from agentsys.metrics.golds import read_golds, require_golds


@pytest.mark.parametrize(
    ("record", "golds"),
    [
        ({"answer": "a", "answer_aliases": ["b", ""]}, ["a", "b"]),
        ({"answers": ["a", "b", "a"]}, ["a", "b"]),
        ({"answers": [["a"], ["b", ["c"]]]}, ["a", "b", "c"]),
        ({"answer": 0}, ["0"]),
        ({"answer": 12}, ["12"]),
        ({"answer": -0.5}, ["-0.5"]),
        ({"answer": 1995.0}, ["1995", "1995.0"]),
        ({"answer": Decimal("3.50")}, ["3.50"]),
        ({"answer": False}, ["no"]),
        ({"answer": True}, ["yes"]),
        ({"answers": [False, 0, None, "none"]}, ["no", "0", "none"]),
        ({"answer": date(1969, 7, 20)}, ["1969-07-20"]),
        ({"answers": {"text": ["Lima", "the city of Lima"], "answer_start": [3, 9]}}, ["Lima", "the city of Lima"]),
        ({"answers": [{"text": "Lima", "answer_start": 3}, {"text": "Peru", "answer_start": 9}]}, ["Lima", "Peru"]),
        (
            {
                "answer": {
                    "value": "Lima",
                    "aliases": ["City of Kings"],
                    "normalized_aliases": ["lima", "city of kings"],
                }
            },
            ["Lima", "City of Kings", "lima", "city of kings"],
        ),
        ({"answer": {"value": "Lima", "normalized_value": "lima", "type": "WikipediaEntity"}}, ["Lima"]),
        ({"answer": {"answer": "x", "aliases": None}}, ["x"]),
        ({"answer": None, "answers": ["a"]}, ["a"]),
        ({}, []),
        ({"answer": " \n"}, []),
        ({"answer": float("nan")}, []),
        ({"answer": float("inf")}, []),
    ],
)
def test_golds_in_the_forms_of_data_sets(record: dict[str, Any], golds: list[str]) -> None:
    assert read_golds(record) == golds


@pytest.mark.parametrize(
    ("record", "reason"),
    [
        ({"question": "q"}, "it has none of the fields answer, answers, answer_aliases"),
        ({"answer": None}, "answer is null"),
        ({"answer": "", "answers": []}, "answer is empty, answers is an empty list"),
        ({"answer": "  "}, "answer is blank"),
        ({"answers": [None, ""]}, "answers is a list without a text"),
        ({"answers": {"text": [], "answer_start": []}}, "in SQuAD 2.0 such a question cannot be answered"),
        ({"answer": {"spans": ["a"]}}, "an object with spans, not one of text, value, answer"),
        ({"answer": {}}, "answer is an empty object"),
        ({"answer": float("nan")}, "answer is nan"),
        ({"answer": b"x"}, "answer is of the type bytes"),
    ],
)
def test_a_record_without_a_gold_says_what_it_holds(record: dict[str, Any], reason: str) -> None:
    with pytest.raises(ValueError, match="no gold answer: a record needs `answer` or `answers`, but ") as refused:
        require_golds(record)
    assert reason in str(refused.value) and "\n" not in str(refused.value)
    assert str(refused.value).endswith("--field answer=COLUMN names another column")
