"""Short answers: SQuAD's normalization, exact match with aliases, the lenient match, token F1, the paper's reward."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agentsys.graphs.deeprag.narrative import read_golds, reward
from agentsys.metrics.answers import Match, contains_match, exact_match, is_correct, normalize_answer, token_f1


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("  The  Magic\tFlute. ", "magic flute"),
        ("a banana and an apple", "banana and apple"),
        ("theatre, another", "theatre another"),
        ("O'Brien-Smith", "obriensmith"),
        ("1,819", "1819"),
        ("the-man", "theman"),  # punctuation is removed first, as in the script, so "the" is not a word any more
        ("Élan «vital»", "élan «vital»"),  # only ASCII punctuation
        ("The", ""),
    ],
)
def test_normalization_equals_squads(text: str, expected: str) -> None:
    assert normalize_answer(text) == expected


@given(st.text())
def test_no_article_and_no_double_space_is_left(text: str) -> None:
    answer = normalize_answer(text)
    assert answer == " ".join(answer.split())
    assert not set(answer.split()) & {"a", "an", "the"}


@pytest.mark.parametrize(
    ("answer", "right", "exact", "contains"),
    [
        ("The Magic Flute!", ["magic flute"], True, True),
        ("Die Zauberflöte", ["The Magic Flute", "die zauberflöte"], True, True),  # an alias
        ("Wolfgang Amadeus Mozart", ["Mozart"], False, True),
        ("Mozart", ["Wolfgang Amadeus Mozart"], False, True),
        ("Salieri", ["Mozart", "W. A. Mozart"], False, False),
        ("", ["Mozart"], False, False),
        ("the", ["Mozart"], False, False),  # empty after normalization, so it matches nothing
        ("Mozart", ["!"], False, False),
        ("Mozart", [], False, False),
        ("no", ["north"], False, True),  # why the lenient match is a separate function
    ],
)
def test_exact_and_lenient(answer: str, right: list[str], exact: bool, contains: bool) -> None:
    assert exact_match(answer, right) is exact
    assert contains_match(answer, right) is contains
    assert is_correct(answer, right) is is_correct(answer, right, "exact") is exact, "exact unless asked otherwise"
    assert is_correct(answer, right, "contains") is contains


@pytest.mark.parametrize(
    ("answer", "right", "expected"),
    [
        ("Mozart", ["Mozart"], 1.0),
        ("Amadeus Mozart", ["Wolfgang Amadeus Mozart"], 0.8),
        ("Amadeus Mozart", ["nobody", "Wolfgang Amadeus Mozart"], 0.8),  # the best of the golds
        ("la la land", ["la land"], 0.8),  # a repeated token counts as often as both have it
        ("Salieri", ["Mozart"], 0.0),
        ("yes", ["yes it is"], 0.0),  # yes and no have no partial credit
        ("yes it is", ["yes"], 0.0),
        ("Yes.", ["yes"], 1.0),
        ("", ["Mozart"], 0.0),
        ("Mozart", [], 0.0),
    ],
)
def test_token_f1(answer: str, right: list[str], expected: float) -> None:
    assert token_f1(answer, right) == pytest.approx(expected)


words = st.lists(st.sampled_from(["north", "sea", "the", "1819", "Ishmael"]), max_size=5).map(" ".join)


@given(words, words)
def test_f1_is_symmetric_and_1_only_for_the_same_tokens(left: str, right: str) -> None:
    f1 = token_f1(left, [right])
    assert f1 == pytest.approx(token_f1(right, [left]))
    same = sorted(normalize_answer(left).split()) == sorted(normalize_answer(right).split()) != []
    assert (f1 == 1.0) is same


def test_golds_in_the_forms_of_data_sets() -> None:
    assert read_golds({"answer": "a", "answer_aliases": ["b", ""]}) == ["a", "b"]
    assert read_golds({"answers": ["a", "b"]}) == ["a", "b"]
    empty: list[dict[str, Any]] = [{"answer": None, "answers": None, "answer_aliases": None}, {"answer": ""}, {}]
    assert [read_golds(record) for record in empty] == [[], [], []]


@pytest.mark.parametrize(
    ("answer", "searches", "well_formed", "match", "expected"),
    [
        ("the Mozart", 0, True, "exact", 1.0),
        ("Mozart", 1, True, "exact", 0.9),
        ("Mozart", 3, False, "exact", 0.7),  # a right answer may be badly formed
        ("Mozart", 5, True, "exact", 0.5),
        ("Mozart", 6, True, "exact", 0.5),  # capped at five
        ("Mozart", 50, True, "exact", 0.5),
        ("Salieri", 0, True, "exact", 0.1),
        ("Salieri", 4, True, "exact", 0.1),  # retrievals do not lower the reward of a wrong answer
        ("Salieri", 0, False, "exact", 0.0),
        ("W. A. Mozart", 1, True, "exact", 0.1),
        ("W. A. Mozart", 1, True, "contains", 0.9),
    ],
)
def test_the_reward_of_the_paper(answer: str, searches: int, well_formed: bool, match: Match, expected: float) -> None:
    """Section 5.3: 0 wrong and badly formed, 0.1 wrong and well formed, else 1 - 0.1 min(5, retrievals)."""
    assert reward(answer, ["Mozart"], searches, well_formed, match) == pytest.approx(expected)
