"""agentsys/metrics/agreement.py: the worked example of Fleiss' kappa, and tables it has no value for."""

from __future__ import annotations

import pytest

from agentsys.metrics.agreement import fleiss_kappa

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
