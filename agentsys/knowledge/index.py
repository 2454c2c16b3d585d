"""Opening an index folder for searching."""

from __future__ import annotations

import asyncio
import os
import threading
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import Final, Literal

from agentsys.knobs import listed
from agentsys.knowledge.embedders import Embedder, embedding_name, make_embedder
from agentsys.knowledge.hybrid import Hybrid, Ranker
from agentsys.knowledge.manifest import Kind, Manifest, finished
from agentsys.knowledge.passages import Hit, KnowledgeError, Passages

_OPENING: Final = threading.Lock()


def load_retriever(
    index: str | Path, kind: Literal["bm25", "dense", "hybrid", ""] = "", embedding: str = ""
) -> IndexRetriever:
    """The retriever of an index folder; equal arguments give the same object until the index is built anew.

    Without `kind` it is hybrid if the index has both parts, else what it has. `embedding` is the spec of the embedding
    model where it lies elsewhere than when the index was built; it must have the same name. Reads files: call it with
    asyncio.to_thread where nothing may block. Raises KnowledgeError if there is no such index, if it lacks the kind or
    was built with another embedding model, and inside the LangGraph server for a folder that $AGENTSYS_INDEXES (paths
    separated by commas) does not list.
    """
    folder = _folder(index, embedding)
    manifest = finished(folder)
    with _OPENING:
        return _load(folder, kind, embedding, manifest.digest)


def index_digest(index: str | Path) -> str:
    """16 hex digits that stand for the passages and the settings of an index. Raises KnowledgeError."""
    return finished(_folder(index)).digest


def open_retriever(
    index: str | Path, kind: Literal["bm25", "dense", "hybrid", ""] = "", embedder: Embedder | None = None
) -> IndexRetriever:
    """The retriever of an index folder with an embedding model from Python, not cached. Raises KnowledgeError."""
    folder = Path(index).resolve()
    manifest = finished(folder)
    wanted = _kind(folder, manifest, kind)
    passages = Passages(folder)
    rankers: list[Ranker] = []
    if wanted != "dense":
        from agentsys.knowledge.bm25 import Bm25

        rankers.append(Bm25(folder))
    if wanted != "bm25" and manifest.embedding:
        from agentsys.knowledge.dense import Dense

        embedder = embedder or _named(folder, manifest, "")
        if embedder.name != manifest.embedding.name:
            raise _other_model(folder, manifest.embedding.name, embedder.name)
        rankers.append(Dense(folder, embedder, manifest.embedding.dimension, len(passages)))
    return IndexRetriever(passages, rankers[0] if len(rankers) == 1 else Hybrid(*rankers))


class IndexRetriever:
    """Searches the passages of an index folder. Nothing in it blocks the event loop."""

    def __init__(self, passages: Passages, ranker: Ranker) -> None:
        self._passages, self._ranker = passages, ranker

    async def search(self, queries: Sequence[str], k: int) -> list[list[Hit]]:
        """See Retriever. Fewer than `k` hits come where fewer passages fit.

        Raises KnowledgeError for k below 1, and what the embedding model raises.
        """
        if k < 1 or isinstance(queries, str):
            raise KnowledgeError(f"search needs a list of queries and k of at least 1, not {queries!r:.80} and {k}")
        rankings = await self._ranker.rank(queries, k)
        return await asyncio.to_thread(
            lambda: [[Hit(self._passages[position], score) for position, score in found] for found in rankings]
        )

    async def aclose(self) -> None:
        """Close the connections of an embedding endpoint."""
        await self._ranker.aclose()


def _folder(index: str | Path, embedding: str = "") -> Path:
    """The real path of an index that may be opened here."""
    from agentsys.models.spec import served_to_browsers

    folder = allowed_path(index, "AGENTSYS_INDEXES")
    if embedding and served_to_browsers():
        raise KnowledgeError("in Studio, the embedding model is the one that the index names; leave it empty")
    return folder


def allowed_path(name: str | Path, variable: str) -> Path:
    """The real path of a file or folder; inside the LangGraph server only of one that the variable lists.

    The variable holds paths separated by commas. Raises KnowledgeError.
    """
    from agentsys.models.spec import served_to_browsers

    path = Path(name).expanduser().resolve()
    if served_to_browsers():
        allowed = listed(os.environ.get(variable, ""))
        if path not in [Path(one).expanduser().resolve() for one in allowed]:
            raise KnowledgeError(
                f"in Studio, {name} is not allowed; start the server with {variable}={name} to allow it"
            )
    return path


@lru_cache(maxsize=16)
def _load(folder: Path, kind: Literal["bm25", "dense", "hybrid", ""], embedding: str, digest: str) -> IndexRetriever:
    manifest = finished(folder)
    needed = manifest.embedding is not None and _kind(folder, manifest, kind) != "bm25"
    return open_retriever(folder, kind, _named(folder, manifest, embedding) if needed or embedding else None)


def _kind(folder: Path, manifest: Manifest, kind: Literal["bm25", "dense", "hybrid", ""]) -> Kind:
    parts = manifest.settings.parts
    if kind and kind not in parts:
        raise KnowledgeError(f"{folder} was built with --kind {parts[0]} and has no '{kind}'; leave kind out")
    return kind or parts[0]


def _named(folder: Path, manifest: Manifest, embedding: str) -> Embedder:
    """The embedding model by its spec, if it is the one of the index."""
    if manifest.embedding is None:
        raise KnowledgeError(
            f"{folder} is an index of words, without the embedding model '{embedding}'; leave embedding out"
        )
    name = manifest.embedding.name
    spec = embedding or manifest.settings.embedding
    if not spec:
        raise KnowledgeError(
            f"{folder} was built with '{name}' from Python; open it with open_retriever(..., embedder)"
        )
    if embedding != name and (other := embedding_name(spec)) != name:
        raise _other_model(folder, name, other)
    return make_embedder(spec)


def _other_model(folder: Path, name: str, other: str) -> KnowledgeError:
    return KnowledgeError(
        f"{folder} was built with the embedding model '{name}', not '{other}'; name that, or build another index"
    )
