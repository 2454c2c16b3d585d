"""Maths answers: equal answers as votes, thoughts, several boxes, references, and texts that are no quantities."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agentsys.metrics.maths import check_answer, group_equal_answers, joined_boxes, reference_of
from agentsys.metrics.maths_text import remove_thought
from agentsys.metrics.quantities import equal, read_quantity

pytestmark = pytest.mark.needs("maths")


async def test_groups_of_votes() -> None:
    answers = ["5", "£5", "5 apples", "five", "no", "on", "listen", "silent", "50\\%", "0.5", "1,000", "1000", "1.000"]
    assert await group_equal_answers(answers) == [0, 0, 0, 0, 4, 5, 6, 7, 8, 8, 10, 10, 12]
    assert await group_equal_answers(["£5", "$5", "A", "(A)", "Yes.", "yes"]) == [0, 1, 2, 2, 4, 4]


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("<think>a</think>b", "b"),
        ("a</think>b", "b"),  # the template opened the thought
        ("<think>a</think>b</think>c", "c"),
        ("<think>a", ""),
        ("no tags", "no tags"),
        ("5 < 6 and x > 2", "5 < 6 and x > 2"),
    ],
)
def test_what_follows_a_thought(text: str, answer: str) -> None:
    assert remove_thought(text) == answer


async def test_an_unfinished_thought_has_no_answer() -> None:
    assert (await check_answer("<think>so \\boxed{4}", "4")).how == "empty"


@pytest.mark.parametrize(
    ("text", "contents"),
    [
        (r"\boxed{1} and \boxed{2}", ["1", "2"]),
        (r"$\boxed{1}$, $\boxed{2}$ or $\boxed{3}$", ["1", "2", "3"]),
        (r"first \boxed{1}, then \boxed{2}", ["2"]),
        (r"\boxed{1} \boxed{2}", ["2"]),
        (r"\boxed{2} and \boxed{2}", ["2"]),
        (r"\fbox{3}", ["3"]),
        (r"\boxed 7.", ["7."]),
        ("none", []),
    ],
)
def test_several_boxes(text: str, contents: list[str]) -> None:
    assert joined_boxes(text) == contents


def test_references_of_other_types() -> None:
    assert reference_of({"answer": ["12"]}) == "12" and reference_of({"answer": True}) == "True"
    assert reference_of({"answer": r"so \boxed{5}"}) == "5" and reference_of({"answer": 0}) == "0"
    with pytest.raises(ValueError, match="no right answer"):
        reference_of({"answer": float("nan")})


@pytest.mark.parametrize("text", ["9" * 5000, "1e999999999", "(" * 3000, "1" + ",000" * 2000, "十" * 3000, "1/" * 90])
def test_long_and_huge_texts_are_no_quantities(text: str) -> None:
    assert read_quantity(text) is None


FORMATS = ["{:,}", "{}", "{:_}", "${:,}", "{:,} €", "{} apples", r"\text{{{} cm}}", "{:,}.00", "{}.0", "{} %", "x = {}"]


@given(st.integers(0, 10**9), st.integers(0, 10**9), st.sampled_from(FORMATS), st.sampled_from(FORMATS))
def test_numbers_are_equal_in_all_forms_and_only_then(one: int, other: int, first: str, second: str) -> None:
    left, right = read_quantity(first.format(one)), read_quantity(str(one))
    assert left and right and equal(left, right) and left.value == one
    different = read_quantity(second.format(other))
    assert different and (one == other or left.value != different.value)


@given(st.integers(1, 999), st.integers(0, 999))
def test_a_thousand_and_a_decimal_are_never_equal(whole: int, rest: int) -> None:
    comma, dot = read_quantity(f"{whole},{rest:03}"), read_quantity(f"{whole}.{rest:03}")
    assert comma and dot and comma.value == 1000 * whole + rest and not equal(comma, dot)
