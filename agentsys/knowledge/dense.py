"""Dense retrieval: vectors of an embedding model in Chroma, compared by cosine similarity.

The vectors are in a persistent Chroma collection inside the index folder, with the passage's position as id. Its HNSW
graph (Malkov and Yashunin 2018) finds approximate nearest neighbors and is kept in memory: about 2 KB per passage at
384 dimensions.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from agentsys.installation import install_command
from agentsys.knowledge.bm25 import Ranking
from agentsys.knowledge.embedders import Embedder, close
from agentsys.knowledge.passages import KnowledgeError, Passages

if TYPE_CHECKING:
    from agentsys.knowledge.embedders import Vectors

FOLDER: Final = "chroma"
BATCH: Final = 256
"""Passages that are embedded and stored in one step: the most that is lost in a kill."""
_HNSW: Final = {"space": "cosine", "ef_search": 200}


class VectorStore:
    """Vectors by position. Raises KnowledgeError if the folder cannot be read."""

    def __init__(self, folder: Path) -> None:
        try:
            import chromadb
        except ImportError:
            raise KnowledgeError(f"dense retrieval needs chromadb: {install_command('knowledge')}") from None
        try:
            self._client: Any = chromadb.PersistentClient(
                str(folder / FOLDER), settings=chromadb.Settings(anonymized_telemetry=False)
            )
            self._collection: Any = self._client.get_or_create_collection(
                "passages", embedding_function=None, configuration={"hnsw": _HNSW}
            )
        except Exception as err:
            raise _chroma_error(folder, err) from None
        self._folder = folder

    def __len__(self) -> int:
        try:
            return int(self._collection.count())
        except Exception as err:
            raise _chroma_error(self._folder, err) from None

    def close(self) -> None:
        """Release the folder."""
        self._client.close()

    def add(self, first: int, vectors: Vectors) -> None:
        """Store the vectors of the passages from position `first` on, replacing existing ones."""
        self._collection.upsert(ids=[str(first + i) for i in range(len(vectors))], embeddings=vectors)

    def nearest(self, vectors: Vectors, k: int) -> list[Ranking]:
        """Return the `k` nearest passages of each vector with their cosine similarity; of equal ones the first."""
        try:
            result = self._collection.query(query_embeddings=vectors, n_results=k, include=["distances"])
        except Exception as err:
            raise _chroma_error(self._folder, err) from None
        return [
            sorted(zip(map(int, ids), (1.0 - d for d in distances), strict=True), key=lambda hit: (-hit[1], hit[0]))
            for ids, distances in zip(result["ids"], result["distances"], strict=True)
        ]


def _chroma_error(folder: Path, err: Exception) -> KnowledgeError:
    """The error for a damaged part: Chroma raises many types, some of them from Rust."""
    reason = " ".join(str(err).split())[:200]
    return KnowledgeError(f"{folder / FOLDER}: Chroma cannot be read ({reason}); remove the folder and build it again")


def check_vectors(vectors: Any, texts: int, embedder: Embedder, dimension: int | None = None) -> Vectors:
    """Return an embedder's vectors as float32 (texts, dimension). Raises KnowledgeError for another shape, or NaN."""
    import numpy as np

    array = np.asarray(vectors, dtype=np.float32)
    if array.ndim != 2 or len(array) != texts or not np.isfinite(array).all():
        raise KnowledgeError(
            f"the embedding model '{embedder.name}' returned shape {array.shape} for {texts} texts; it must return "
            f"finite numbers of shape ({texts}, dimension)"
        )
    if dimension is not None and array.shape[1] != dimension:
        raise KnowledgeError(
            f"the embedding model '{embedder.name}' has {array.shape[1]} dimensions, the index {dimension}: "
            "it is another model with the same name; build another index"
        )
    return array


async def embed_passages(
    store: VectorStore, passages: Passages, embedder: Embedder, dimension: int, show: Callable[[int], None]
) -> None:
    """Embed and store the passages without vectors, in order. `show` gets the number of passages stored."""
    for first in range(len(store) // BATCH * BATCH, len(passages), BATCH):
        texts = [passages[i].indexed_text for i in range(first, min(first + BATCH, len(passages)))]
        store.add(first, check_vectors(await embedder.embed(texts), len(texts), embedder, dimension))
        show(first + len(texts))


class Dense:
    """Ranks passages by the cosine similarity of their vector and the query's."""

    def __init__(self, folder: Path, embedder: Embedder, dimension: int, passages: int) -> None:
        """Raises KnowledgeError if vectors are missing."""
        self._store, self._embedder, self._dimension = VectorStore(folder), embedder, dimension
        if (stored := len(self._store)) != passages:
            self._store.close()
            raise KnowledgeError(
                f"{folder} has {stored} vectors for {passages} passages; remove the folder and build it again"
            )

    async def rank(self, queries: Sequence[str], k: int) -> list[Ranking]:
        """Return at most `k` passages per query, without blocking the event loop."""
        if not queries:
            return []
        vectors = check_vectors(await self._embedder.embed(queries), len(queries), self._embedder, self._dimension)
        return await asyncio.to_thread(self._store.nearest, vectors, k)

    async def aclose(self) -> None:
        """Close the embedder."""
        await close(self._embedder)
