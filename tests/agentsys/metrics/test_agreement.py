"""agentsys/metrics/agreement.py: the worked example of Fleiss' kappa, and tables it has no value for."""

from __future__ import annotations

import pytest

from agentsys.metrics.agreement import fleiss_kappa, gwet_ac1, mcnemar_p, wilson_interval

FOURTEEN_RATERS = [
    [0, 0, 0, 0, 14], [0, 2, 6, 4, 2], [0, 0, 3, 5, 6], [0, 3, 9, 2, 0], [2, 2, 8, 1, 1],
    [7, 7, 0, 0, 0], [3, 2, 6, 3, 0], [2, 5, 3, 2, 2], [6, 5, 2, 1, 0], [0, 2, 2, 3, 7],
]  # fmt: skip
"""The example of the article "Fleiss' kappa" in the English Wikipedia: ten items, five categories."""


def test_the_published_example() -> None:
    assert fleiss_kappa(FOURTEEN_RATERS) == pytest.approx(0.210, abs=0.0005)


def test_full_agreement_chance_and_one_category() -> None:
    assert fleiss_kappa([[3, 0], [0, 3]]) == 1
    assert fleiss_kappa([[1, 1], [1, 1]]) == -1, "two annotators who never agree"
    assert fleiss_kappa([[2, 0], [2, 0]]) is None


@pytest.mark.parametrize("counts", [[], [[1, 0]], [[2, 0], [1, 2]]])
def test_a_table_without_a_value(counts: list[list[int]]) -> None:
    with pytest.raises(ValueError, match="same number of annotators"):
        fleiss_kappa(counts)


def test_gwet_ac1() -> None:
    """Two annotators of 125 items, of whom 118 twice Yes (Gwet 2008, table 1): kappa is low, and AC1 is not."""
    counts = [[2, 0]] * 118 + [[1, 1]] * 7
    assert gwet_ac1(counts) == pytest.approx(0.9408, abs=5e-4)
    assert fleiss_kappa(counts) == pytest.approx(-0.0288, abs=5e-4)
    assert gwet_ac1([[2, 0], [0, 2]]) == 1
    assert gwet_ac1([[1, 0]]) is None and gwet_ac1([[2]]) is None
    with pytest.raises(ValueError, match="no items"):
        gwet_ac1([])


def test_wilson_interval() -> None:
    """Newcombe (1998), table I: 81 of 263, and 0 of 20."""
    assert wilson_interval(81, 263) == pytest.approx((0.2553, 0.3662), abs=5e-5)
    assert wilson_interval(0, 20) == pytest.approx((0.0, 0.1611), abs=5e-5)
    assert wilson_interval(0, 0) == (0.0, 1.0)


def test_mcnemar() -> None:
    assert mcnemar_p(0, 0) == 1
    assert mcnemar_p(1, 9) == pytest.approx(2 * (1 + 10) / 2**10)
    assert mcnemar_p(9, 1) == mcnemar_p(1, 9)
    assert mcnemar_p(5, 5) == 1
