"""Estimators of the maths evaluation: pass@k, choices under a token budget, and small formulas."""

from __future__ import annotations

from itertools import combinations
from typing import Any

import pytest

from agentsys.graphs.maths.measures import Prediction, best, budgets_of, covered, measure, pass_at_k, vote, within
from agentsys.graphs.maths.solver import join_steps, prior
from agentsys.graphs.maths.targets import label_smoothing


@pytest.mark.parametrize(("n", "right"), [(5, 0), (5, 2), (5, 5), (6, 1)])
def test_pass_at_k_is_the_share_of_all_subsets(n: int, right: int) -> None:
    samples = [i < right for i in range(n)]
    for k in range(1, n + 1):
        subsets = [any(chosen) for chosen in combinations(samples, k)]
        assert pass_at_k(n, right, k) == pytest.approx(sum(subsets) / len(subsets))


def test_pass_at_k_refuses_impossible_numbers() -> None:
    for n, right, k in ((3, 1, 4), (3, 4, 1), (3, 1, 0)):
        with pytest.raises(ValueError, match="pass@"):
            pass_at_k(n, right, k)


def solution(right: bool, score: float, tokens: int, group: int, answer: str = "x") -> Any:
    return {
        "call": "", "right": right, "answer": answer, "how": "maths", "score": score, "tokens": tokens, "group": group,
    }  # fmt: skip


SOLUTIONS = [
    solution(False, 0.5, 10, 0),
    solution(True, 0.9, 20, 1),
    solution(False, 0.1, 30, 0),
    solution(True, -1, 40, 1),
    solution(True, 0.0, 50, 1),
    solution(False, 1.0, 60, 5, ""),
]


def test_choices_under_a_budget() -> None:
    budgets = (5, 10, 20, 30, 50, 60)
    assert {b: tuple(choice(within(SOLUTIONS, b)) for choice in (best, vote, covered)) for b in budgets} == {
        5: (False, False, False),
        10: (False, False, False),
        20: (True, False, True),  # a tie of votes goes to the first
        30: (True, False, True),
        50: (True, True, True),
        60: (False, True, True),  # an empty answer has no vote
    }
    assert budgets_of(16) == [1, 2, 4, 8, 16] and budgets_of(3) == [1, 3]


def test_measures_of_two_questions() -> None:
    """A question that failed is wrong everywhere; pass@2 of 2 right among 4: 1 - C(2, 2) / C(4, 2)."""
    predictions = [Prediction(SOLUTIONS, 60, 100, 1.0), Prediction(error="the model fell over")]
    report = measure(predictions, 4, (20, 60))
    assert report["pass"]["1"]["value"] == 25 and report["pass"]["2"]["value"] == pytest.approx(100 * (1 - 1 / 6) / 2)
    assert report["pass"]["4"]["value"] == 50 and list(report["pass"]) == ["1", "2", "4"]
    assert report["majority"]["value"] == 0, "of the first four two and two"
    assert report["at"]["20"]["best"]["value"] == 50 and report["at"]["60"]["best"]["value"] == 0
    assert (report["n"], report["failed"], report["tokens"], report["seconds"]) == (2, 1, 60, 1.0)


def test_small_formulas() -> None:
    assert label_smoothing(9, 1) == pytest.approx(0.1) and label_smoothing(0, 5) == 0.5
    assert label_smoothing(3, 0) == 0
    assert prior([-1.0, -1.0]) == pytest.approx(2.718281828 ** (-2 / 2**1.25)) and prior(None) == 1
    assert join_steps(["Step 1: a.\n\n", ": b. See", ": c"]) == "Step 1: a.\n\nStep 2: b. See Step 3: c"
