"""Agreement of several annotators, and the interval of a share.

Fleiss (1971), "Measuring nominal scale agreement among many raters"; Gwet (2008), "Computing inter-rater reliability
and its variance in the presence of high agreement"; Wilson (1927), "Probable inference, the law of succession, and
statistical inference".
"""

from __future__ import annotations

import math
from collections.abc import Sequence


def fleiss_kappa(counts: Sequence[Sequence[int]]) -> float | None:
    """Return Fleiss' kappa of a table [items, categories]: how many annotators put an item into a category.

    1 is full agreement, 0 is that of chance. None if all annotators always chose one category, where kappa is
    undefined. Raises ValueError without items, or if an item has fewer than two annotators or not as many as another.
    """
    raters = {sum(row) for row in counts}
    if len(raters) != 1 or min(raters) < 2:
        raise ValueError(f"each item needs the same number of annotators, at least 2; got {sorted(raters)}")
    n = raters.pop()
    observed = sum((sum(k * k for k in row) - n) / (n * (n - 1)) for row in counts) / len(counts)
    shares = [sum(column) / (n * len(counts)) for column in zip(*counts, strict=True)]
    chance = sum(share * share for share in shares)
    return None if chance == 1 else (observed - chance) / (1 - chance)


def gwet_ac1(counts: Sequence[Sequence[int]]) -> float | None:
    """Return Gwet's AC1 of a table [items, categories]: how many annotators put an item into a category.

    Unlike kappa it does not fall where nearly all items are of one category. Items may have different numbers of
    annotators; those with one count for the categories alone. None without an item of two annotators, or with one
    category. Raises ValueError without items.
    """
    if not counts:
        raise ValueError("there are no items")
    several = [row for row in counts if sum(row) > 1]
    categories = len(counts[0])
    if not several or categories < 2:
        return None
    observed = sum(sum(k * (k - 1) for k in row) / (sum(row) * (sum(row) - 1)) for row in several) / len(several)
    rated = [row for row in counts if sum(row)]
    shares = [sum(row[c] / sum(row) for row in rated) / len(rated) for c in range(categories)]
    chance = sum(share * (1 - share) for share in shares) / (categories - 1)
    return float((observed - chance) / (1 - chance))


def wilson_interval(successes: int, n: int, z: float = 1.959964) -> tuple[float, float]:
    """Return the 95 % interval of a share, 0-1, by Wilson's score; it holds for few items too. (0, 1) without items."""
    if not n:
        return 0.0, 1.0
    share = successes / n
    middle = share + z * z / (2 * n)
    spread = z * math.sqrt(share * (1 - share) / n + z * z / (4 * n * n))
    scale = 1 + z * z / n
    low = (middle - spread) / scale if successes else 0.0
    return low, (middle + spread) / scale if successes < n else 1.0


def mcnemar_p(only_first: int, only_second: int) -> float:
    """Return the exact two-sided p of McNemar's test: items that only the first, or only the second, gets right."""
    n = only_first + only_second
    if not n:
        return 1.0
    tail = sum(math.comb(n, k) for k in range(min(only_first, only_second) + 1)) / 2**n
    return float(min(1.0, 2 * tail))
