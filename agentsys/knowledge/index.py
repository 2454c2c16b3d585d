"""Opens index folders for searching."""

from __future__ import annotations

import asyncio
import os
import threading
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import Final, Literal

from agentsys.knobs import split_names
from agentsys.knowledge.embedders import Embedder, embedding_name, make_embedder
from agentsys.knowledge.hybrid import Hybrid, Ranker
from agentsys.knowledge.manifest import Kind, Manifest, check_files, read_complete_manifest
from agentsys.knowledge.passages import Hit, KnowledgeError, Passages
from agentsys.knowledge.remote import SearchServer, is_address, load_server
from agentsys.paths import expand_user

_OPENING: Final = threading.Lock()


def load_retriever(
    index: str | Path, kind: Literal["bm25", "dense", "hybrid", ""] = "", embedding: str = ""
) -> IndexRetriever | SearchServer:
    """Load the retriever of an index folder; equal arguments return the same object until the index changes.

    The address of a search server is an index too (remote.py), without kind and embedding. For a folder, without `kind`
    the retriever is hybrid if the index has both parts, else the part it has. `embedding` is a spec of the index's
    embedding model if it has moved since the build; it must have the same name. This reads files: from an event loop,
    call it with asyncio.to_thread. Raises KnowledgeError if there is no such index, if it lacks the kind or was built
    with another embedding model; inside the LangGraph server also for an index that $AGENTSYS_INDEXES (paths and
    addresses separated by commas) does not list.
    """
    if isinstance(index, str) and is_address(index):
        if kind or embedding:
            raise KnowledgeError(f"{index}: a search server has its own retriever; leave retriever and embedding empty")
        return load_server(index)
    folder = _resolve_folder(index, embedding)
    manifest = read_complete_manifest(folder)
    with _OPENING:
        return _load(folder, kind, embedding, manifest.digest)


def index_digest(index: str | Path) -> str:
    """Return 16 hex digits that identify the passages and the settings of an index. Raises KnowledgeError.

    It is empty for the address of a search server, whose passages are not known.
    """
    return "" if is_address(index) else read_complete_manifest(_resolve_folder(index)).digest


def open_retriever(
    index: str | Path, kind: Literal["bm25", "dense", "hybrid", ""] = "", embedder: Embedder | None = None
) -> IndexRetriever:
    """Load the retriever of an index folder with an embedder object, without caching. Raises KnowledgeError."""
    folder = Path(index).resolve()
    manifest = read_complete_manifest(folder)
    actual_kind = _choose_kind(folder, manifest, kind)
    check_files(folder, manifest)
    passages = Passages(folder, manifest.passages)
    rankers: list[Ranker] = []
    if actual_kind != "dense":
        from agentsys.knowledge.bm25 import Bm25

        rankers.append(Bm25(folder, manifest.passages))
    if actual_kind != "bm25" and manifest.embedding:
        from agentsys.knowledge.dense import Dense

        embedder = embedder or _make_index_embedder(folder, manifest, "")
        if embedder.name != manifest.embedding.name:
            raise _wrong_model_error(folder, manifest.embedding.name, embedder.name)
        rankers.append(Dense(folder, embedder, manifest.embedding.dimension, len(passages)))
    return IndexRetriever(passages, rankers[0] if len(rankers) == 1 else Hybrid(*rankers))


class IndexRetriever:
    """Searches the passages of an index folder without blocking the event loop."""

    def __init__(self, passages: Passages, ranker: Ranker) -> None:
        self._passages, self._ranker = passages, ranker

    async def search(self, queries: Sequence[str], k: int) -> list[list[Hit]]:
        """See Retriever. Returns fewer than `k` hits if fewer passages match.

        Raises KnowledgeError for k below 1, and the errors of the embedding model.
        """
        if k < 1 or isinstance(queries, str):
            raise KnowledgeError(f"search needs a list of queries and k of at least 1, not {queries!r:.80} and {k}")
        rankings = await self._ranker.rank(queries, k)
        return await asyncio.to_thread(
            lambda: [[Hit(self._passages[position], score) for position, score in ranking] for ranking in rankings]
        )

    async def aclose(self) -> None:
        """Close the connections of an embedding endpoint."""
        await self._ranker.aclose()


def _resolve_folder(index: str | Path, embedding: str = "") -> Path:
    """Return the real path of an index. Raises KnowledgeError if this process must not open it."""
    from agentsys.models.spec import served_to_browsers

    folder = allowed_path(index, "AGENTSYS_INDEXES")
    if embedding and served_to_browsers():
        raise KnowledgeError("in Studio, the embedding model of the index is used; leave embedding empty")
    return folder


def allowed_path(name: str | Path, variable: str) -> Path:
    """Return the real path of a file or folder.

    Inside the LangGraph server, raises KnowledgeError for a path that the environment variable (paths separated by
    commas) does not list.
    """
    from agentsys.models.spec import served_to_browsers

    path = expand_user(name).resolve()
    if served_to_browsers():
        allowed = split_names(os.environ.get(variable, ""))
        if path not in [expand_user(entry, f"{variable}: ").resolve() for entry in allowed]:
            raise KnowledgeError(
                f"in Studio, {name} is not allowed; start the server with {variable}={name} to allow it"
            )
    return path


@lru_cache(maxsize=16)
def _load(folder: Path, kind: Literal["bm25", "dense", "hybrid", ""], embedding: str, digest: str) -> IndexRetriever:
    manifest = read_complete_manifest(folder)
    needed = manifest.embedding is not None and _choose_kind(folder, manifest, kind) != "bm25"
    embedder = _make_index_embedder(folder, manifest, embedding) if needed or embedding else None
    return open_retriever(folder, kind, embedder)


def _choose_kind(folder: Path, manifest: Manifest, kind: Literal["bm25", "dense", "hybrid", ""]) -> Kind:
    parts = manifest.settings.parts
    if kind and kind not in parts:
        raise KnowledgeError(f"{folder} was built with --kind {parts[0]} and has no '{kind}'; leave kind empty")
    return kind or parts[0]


def _make_index_embedder(folder: Path, manifest: Manifest, embedding: str) -> Embedder:
    """Return the embedding model of an index; a spec `embedding` must name the same model."""
    if manifest.embedding is None:
        raise KnowledgeError(
            f"{folder} was built with --kind bm25, without the embedding model '{embedding}'; leave embedding empty"
        )
    name = manifest.embedding.name
    spec = embedding or manifest.settings.embedding
    if not spec:
        raise KnowledgeError(
            f"{folder} was built with the embedder object '{name}'; open it with open_retriever(..., embedder)"
        )
    if embedding != name and (other := embedding_name(spec)) != name:
        raise _wrong_model_error(folder, name, other)
    return make_embedder(spec)


def _wrong_model_error(folder: Path, name: str, other: str) -> KnowledgeError:
    return KnowledgeError(
        f"{folder} was built with the embedding model '{name}', not '{other}'; use that model, or build another index"
    )
