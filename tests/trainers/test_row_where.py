"""Conditions over scores: what they compute, and that nothing but arithmetic and comparisons is accepted."""

from __future__ import annotations

import pytest

from agentsys.trainers.loading import TrainerError
from agentsys.trainers.row_where import parse_condition

SCORES = {"kind": "step", "margin": 0.75, "rejected_tried": 4.0, "chosen_low": 0.3}


@pytest.mark.parametrize(
    ("text", "kept"),
    [
        ("rejected_tried >= 4", True),
        ("rejected_tried > 4", False),
        ("rejected_tried >= 4 and chosen_low > 0.5", False),
        ("rejected_tried > 4 or chosen_low > 0.2", True),
        ("not margin < 0.5", True),
        ("0.5 <= margin <= 0.75", True),
        ("0.5 < margin < 0.75", False),
        ("margin * rejected_tried - 1 == 2", True),
        ("-margin / 3 < -0.2 and margin + 1 != 1.75 - 0.5", True),
        ("kind == 'step' and margin > 0.7", True),
        ("kind == 'sft' or chosen_low > 0.4", False),
    ],
)
def test_a_condition_is_computed(text: str, kept: bool) -> None:
    assert parse_condition(text).drop_reason(SCORES) == (None if kept else f"not {text}")


def test_a_row_without_a_named_score_is_dropped_with_its_name() -> None:
    assert parse_condition("depth > 1").drop_reason(SCORES) == "no score depth (--where)"
    assert parse_condition("kind == 'step' or depth > 1").drop_reason(SCORES) is None, "depth is not needed"
    assert parse_condition("1 / (margin - 0.75) > 0").drop_reason(SCORES) == (
        "division by zero in 1 / (margin - 0.75) > 0 (--where)"
    )


def test_texts_and_numbers_are_not_compared() -> None:
    with pytest.raises(TrainerError, match="compare numbers with numbers, kind with text"):
        parse_condition("kind > 3").drop_reason(SCORES)


@pytest.mark.parametrize(
    ("text", "part"),
    [
        ("__import__('os').system('true')", r"__import__\('os'\)"),
        ("margin.real > 0", r"margin\.real"),
        ("scores['margin'] > 0", r"scores\['margin'\]"),
        ("9 ** 9 ** 9 > 0", r"9 \*\* 9"),
        ("1 << 99999999 > 0", "1 << 99999999"),
        ("[m for m in kind]", r"\[m for m in kind\]"),
        ("(lambda: 1)()", r"\(lambda"),
        ("margin in (1, 2)", r"margin in \(1, 2\)"),
        ("margin is None", "margin is None"),
        ("True", "True"),
        ("f'{margin}'", "f'"),
        ("(x := 3) > 2", r"\(x := 3\)"),
        ("margin if margin else 1", "margin if margin"),
        ("kind * 10000000000 == 'step'", "arithmetic with kind, a text,"),
        ("'a' * 10000000000 == kind", "arithmetic with 'a', a text,"),
    ],
)
def test_everything_else_is_refused(text: str, part: str) -> None:
    with pytest.raises(TrainerError, match=f"{part}.* is not allowed; use scores, numbers"):
        parse_condition(text)


def test_texts_that_are_no_expression_are_refused() -> None:
    for text in ("margin >", "margin > 0; margin", "", "a = 3", "(" * 400):
        with pytest.raises(TrainerError, match="is no expression; write for example 'rejected_tried >= 4"):
            parse_condition(text)
    with pytest.raises(TrainerError, match="501 characters; an expression has at most 500"):
        parse_condition("1" * 501)
