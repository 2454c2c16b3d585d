"""LongBench-Write's length score."""

from __future__ import annotations

import pytest

from agentsys.metrics.lengths import bucket, count_words, length_score, required_words


@pytest.mark.parametrize(
    ("required", "actual", "score"),
    [(100, 100, 100), (100, 200, 200 / 3), (100, 400, 0), (100, 500, 0), (100, 50, 50), (100, 34, 2.9), (300, 100, 0),
     (100, 0, 0)],
)  # fmt: skip
def test_the_formula(required: int, actual: int, score: float) -> None:
    assert length_score(required, actual) == pytest.approx(score, abs=0.1)


def test_too_long_costs_less_than_too_short() -> None:
    assert length_score(100, 150) > length_score(150, 100)
    with pytest.raises(ValueError, match="at least 1"):
        length_score(0, 10)


def test_words_and_characters() -> None:
    assert count_words("It's a well-known fact: 42 lamps.") == 6
    assert count_words("灯塔 keeper 看海。") == 5
    assert count_words("") == 0


def test_required_lengths_of_records() -> None:
    lengths = (300, 300.0, "300", " 40 ", "", None, 0)
    assert [required_words(length) for length in lengths] == [300, 300, 300, 40, 0, 0, 0]
    for length in (-1, 1.5, "long", True, [300], 10**400, float("nan"), float("inf")):
        with pytest.raises(ValueError, match="is not a number of words; correct or remove it"):
            required_words(length)


def test_buckets() -> None:
    assert [bucket(n) for n in (0, 499, 500, 1999, 2000, 3999, 4000, 20000)] == [
        "[0, 500)", "[0, 500)", "[500, 2k)", "[500, 2k)", "[2k, 4k)", "[2k, 4k)", "[4k, 20k)", "[4k, 20k)",
    ]  # fmt: skip
