"""A memory pool: facts of a text so far, and what in a new piece may contradict them.

Facts and chunks of the new piece are compared by the cosine of their embeddings; only pairs above a threshold are
worth a judge (LongDPO, Ping et al. 2025). A pool is a value: a branch of a search tree sees its ancestors' facts.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal, NamedTuple

from agentsys.knowledge.embedders import Embedder

Validity = Literal["true", "false", "unsure"]


@dataclass(frozen=True, slots=True)
class Fact:
    """A statement that can be understood alone; `evidence` are the words it comes from, `node` where it was found."""

    statement: str
    validity: Validity
    evidence: str
    node: str

    def as_json(self) -> dict[str, Any]:
        """The fact as a trace holds it."""
        return asdict(self)


class Suspicion(NamedTuple):
    """A fact and a chunk that speak of the same thing."""

    fact: Fact
    chunk: str
    similarity: float


async def suspicions(
    facts: Sequence[Fact], chunks: Sequence[str], embedder: Embedder, threshold: float
) -> list[Suspicion]:
    """Pairs of a fact and a chunk whose cosine is above the threshold, the most similar first."""
    if not facts or not chunks:
        return []
    import numpy as np

    vectors = np.asarray(await embedder.embed([*(fact.statement for fact in facts), *chunks]), dtype=np.float32)
    vectors /= np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12)
    cosines = vectors[: len(facts)] @ vectors[len(facts) :].T
    found = [Suspicion(facts[i], chunks[j], float(cosines[i, j])) for i, j in np.argwhere(cosines > threshold).tolist()]
    return sorted(found, key=lambda pair: -pair.similarity)


def cut_evenly(text: str, tokens: int, size: int) -> list[str]:
    """A text of so many tokens in chunks of about `size` tokens at most, cut at white space where there is some."""
    count = max(1, -(-tokens // size))
    bounds = [0]
    for i in range(1, count):
        at = len(text) * i // count
        space = text.find(" ", at, at + 40)
        bounds.append(max(space if space >= 0 else at, bounds[-1]))
    pieces = [text[a:b].strip() for a, b in zip(bounds, [*bounds[1:], len(text)], strict=True)]
    return [piece for piece in pieces if piece]
