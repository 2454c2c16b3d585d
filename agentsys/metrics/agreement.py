"""Agreement of several annotators (Fleiss, 1971, "Measuring nominal scale agreement among many raters")."""

from __future__ import annotations

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
