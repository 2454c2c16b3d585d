"""Reciprocal rank fusion (Cormack, Clarke and Buettcher, SIGIR 2009): merges rankings without comparing scores."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Final, Protocol

from agentsys.knowledge.bm25 import Ranking

RRF_K: Final = 60
"""The paper's constant: rank r scores 1 / (60 + r)."""
DEPTH: Final = 100
"""Minimum number of passages per ranking; for k above half of it, twice k."""


class Ranker(Protocol):
    """Ranks the passages of an index folder by position."""

    async def rank(self, queries: Sequence[str], k: int) -> list[Ranking]:
        """Return at most `k` passages per query, best first."""
        ...

    async def aclose(self) -> None:
        """Close the connections of an embedding endpoint."""
        ...


def fuse(rankings: Sequence[Ranking], k: int) -> Ranking:
    """Return the `k` passages with the highest sum of 1 / (60 + rank), rank from 1; of equal ones the first."""
    scores: dict[int, float] = {}
    for ranking in rankings:
        for rank, (position, _) in enumerate(ranking, 1):
            scores[position] = scores.get(position, 0.0) + 1.0 / (RRF_K + rank)
    return sorted(scores.items(), key=lambda hit: (-hit[1], hit[0]))[:k]


class Hybrid:
    """Fuses the rankings of several rankers."""

    def __init__(self, *rankers: Ranker) -> None:
        self._rankers = rankers

    async def rank(self, queries: Sequence[str], k: int) -> list[Ranking]:
        """Return at most `k` passages per query."""
        depth = max(2 * k, DEPTH)
        results = await asyncio.gather(*(ranker.rank(queries, depth) for ranker in self._rankers))
        return [fuse(rankings, k) for rankings in zip(*results, strict=True)]

    async def aclose(self) -> None:
        """Close all rankers."""
        for ranker in self._rankers:
            await ranker.aclose()
