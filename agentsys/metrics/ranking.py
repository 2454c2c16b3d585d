"""How well scores separate two classes."""

from __future__ import annotations

from collections.abc import Sequence


def area_under_curve(scores: Sequence[float], positive: Sequence[bool]) -> float | None:
    """Return the area under the ROC curve: the probability that a positive case has a higher score than a negative one.

    A tie counts one half (Mann and Whitney 1947). None without a case of each class, where it is undefined. Raises
    ValueError for lists of different lengths.
    """
    cases = sorted(zip(scores, positive, strict=True), key=lambda case: case[0])
    positives = sum(positive)
    negatives = len(cases) - positives
    if not positives or not negatives:
        return None
    rank_sum, start = 0.0, 0
    while start < len(cases):
        end = start
        while end < len(cases) and cases[end][0] == cases[start][0]:
            end += 1
        rank_sum += (start + 1 + end) / 2 * sum(is_positive for _, is_positive in cases[start:end])
        start = end
    return (rank_sum - positives * (positives + 1) / 2) / (positives * negatives)
