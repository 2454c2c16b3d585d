"""LongDPO's memory pool: facts of the text so far, and which chunks of a new step may contradict them.

Facts and chunks are compared by the cosine of their embeddings. The judge gets each fact with the chunks nearest to it,
or, as in the paper (Ping et al. 2025), the pairs above a threshold, which fits one embedding model only. A pool is a
value: a branch of a search tree sees the facts of its ancestors only.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import lru_cache
from typing import Any, Literal, NamedTuple

from agentsys.knobs import split_names
from agentsys.knowledge.embedders import Embedder, close, make_embedder
from agentsys.models.spec import served_to_browsers

Validity = Literal["true", "false", "unsure"]


@dataclass(frozen=True, slots=True)
class Fact:
    """A self-contained statement; `evidence` is the quoted passage it comes from, `node` the key of its step."""

    statement: str
    validity: Validity
    evidence: str
    node: str

    def as_json(self) -> dict[str, Any]:
        """The fact as a trace holds it."""
        return asdict(self)


class SimilarPair(NamedTuple):
    """A fact and a chunk about the same subject."""

    fact: Fact
    chunk: str
    similarity: float


async def find_similar_pairs(
    facts: Sequence[Fact], chunks: Sequence[str], embedder: Embedder, nearest: int, threshold: float
) -> list[SimilarPair]:
    """The pairs to check for a contradiction, the most similar first.

    Each fact with its `nearest` most similar chunks; with `nearest` 0 the pairs whose cosine is above the threshold.
    """
    if not facts or not chunks:
        return []
    import numpy as np

    vectors = np.asarray(await embedder.embed([*(fact.statement for fact in facts), *chunks]), dtype=np.float32)
    vectors /= np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12)
    cosines = vectors[: len(facts)] @ vectors[len(facts) :].T
    if nearest:
        columns = np.argsort(-cosines, axis=1, kind="stable")[:, :nearest].tolist()
        indices = [(i, j) for i, row in enumerate(columns) for j in row]
    else:
        indices = [(i, j) for i, j in np.argwhere(cosines > threshold).tolist()]
    pairs = [SimilarPair(facts[i], chunks[j], float(cosines[i, j])) for i, j in indices]
    return sorted(pairs, key=lambda pair: -pair.similarity)


def split_evenly(text: str, tokens: int, size: int) -> list[str]:
    """Split a text of `tokens` tokens into chunks of about `size` tokens at most, at white space if possible."""
    count = max(1, -(-tokens // size))
    bounds = [0]
    for i in range(1, count):
        at = len(text) * i // count
        space = text.find(" ", at, at + 40)
        bounds.append(max(space if space >= 0 else at, bounds[-1]))
    chunks = [text[a:b].strip() for a, b in zip(bounds, [*bounds[1:], len(text)], strict=True)]
    return [chunk for chunk in chunks if chunk]


@lru_cache(maxsize=4)
def load_embedder(spec: str) -> Embedder:
    """The memory's embedding model. Raises ValueError in Studio unless the server's environment allows it."""
    allowed = split_names(os.environ.get("AGENTSYS_EMBEDDINGS", ""))
    if served_to_browsers() and spec not in allowed:
        raise ValueError(
            f"in Studio, {spec} is not allowed; start the server with AGENTSYS_EMBEDDINGS={spec} to allow it"
        )
    return make_embedder(spec)


async def check_embedder(spec: str) -> None:
    """Embed one word, to find a wrong model or endpoint before a run starts. An empty spec disables the memory.

    Raises KnowledgeError, and the errors of an endpoint's model.
    """
    if spec:
        embedder = load_embedder(spec)
        try:
            await embedder.embed(["memory"])
        finally:
            await close(embedder)
