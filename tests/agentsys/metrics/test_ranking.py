"""The area under the ROC curve."""

from __future__ import annotations

from itertools import product

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agentsys.metrics.ranking import area_under_curve


@pytest.mark.parametrize(
    ("scores", "positive", "area"),
    [
        ([0.1, 0.9], [False, True], 1.0),
        ([0.9, 0.1], [False, True], 0.0),
        ([0.5, 0.5], [False, True], 0.5),
        ([0.1, 0.4, 0.35, 0.8], [False, False, True, True], 0.75),
        ([0.3], [True], None),
        ([], [], None),
    ],
)
def test_area(scores: list[float], positive: list[bool], area: float | None) -> None:
    assert area_under_curve(scores, positive) == area


@given(st.lists(st.tuples(st.integers(0, 5), st.booleans()), min_size=2, max_size=30))
def test_it_is_the_share_of_pairs_in_the_right_order(cases: list[tuple[int, bool]]) -> None:
    positive, negative = ([score for score, is_positive in cases if is_positive is kind] for kind in (True, False))
    area = area_under_curve([float(score) for score, _ in cases], [kind for _, kind in cases])
    if not positive or not negative:
        assert area is None
    else:
        wins = [(p > n) + (p == n) / 2 for p, n in product(positive, negative)]
        assert area == pytest.approx(sum(wins) / len(wins))


def test_lists_of_different_lengths_are_refused() -> None:
    with pytest.raises(ValueError, match="zip"):
        area_under_curve([0.5], [True, False])
