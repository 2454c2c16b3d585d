"""Builds an index: reads the passages, embeds them, counts their words. After a kill, each step resumes.

1. New passages are appended to `passages.jsonl`.
2. The dense part embeds the passages that have no vector yet, in batches.
3. The BM25 part is rebuilt: its weights depend on all passages, and it takes seconds where embedding takes hours.
4. The manifest is marked complete. From step 2 until then the folder cannot be searched.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from agentsys.knowledge.embedders import Embedder, absolute_spec, close, make_embedder
from agentsys.knowledge.manifest import Embedding, IndexSettings, Manifest, read_manifest, stamp_files, write_manifest
from agentsys.knowledge.passages import KnowledgeError, Passages
from agentsys.knowledge.sources import Document, Source, count_documents, read_documents, split_document
from agentsys.knowledge.store import Store, write_offsets
from agentsys.paths import hold_lock
from agentsys.records import BadRecord

Watch = Callable[[str, int, int | None], None]
"""Called with the step, how many documents (where it is "reading") or passages are done, and the total if known."""


@dataclass(frozen=True, slots=True)
class BuildResult:
    """Result of a build: passages that were added, records that failed, passages in the index, and its digest."""

    folder: Path
    added: int
    failed: int
    passages: int
    digest: str
    seconds: float


def build_index(
    source: Source,
    out: str | Path,
    settings: IndexSettings | None = None,
    *,
    embedder: Embedder | None = None,
    fields: Mapping[str, str] | None = None,
    watch: Watch = lambda step, done, total: None,
) -> BuildResult:
    """Build an index folder, or add new passages (by id) to an existing one.

    `embedder` replaces the model that `settings.embedding` names; `fields` maps `text`, `title` and `id` to columns.
    From a running event loop, call this with asyncio.to_thread. Raises KnowledgeError or InputError if the source, the
    folder or the settings cannot be used, and ModelError if an embedding endpoint fails; a rerun resumes the build.
    """
    started = time.perf_counter()
    settings = settings or IndexSettings()
    if settings.kind == "bm25":
        embedder = None
    else:
        embedder = embedder or make_embedder(settings.embedding)
        _check_no_loop()
    documents = read_documents(source, fields)
    folder = Path(out).resolve()
    manifest = _prepare_manifest(folder, settings, embedder)
    folder.mkdir(parents=True, exist_ok=True)
    busy = KnowledgeError(f"{folder}: another build is writing here; wait for it, or choose another --out")
    with hold_lock(folder, busy):
        if not manifest.passages:
            write_manifest(folder, manifest)
        total = count_documents(source)
        store = _append_passages(documents, folder, settings, watch=lambda done: watch("reading", done, total))
        added = len(store) - manifest.passages
        if added or not manifest.complete:
            manifest = manifest.model_copy(update={"complete": False, "passages": len(store), "files": {}})
            write_manifest(folder, manifest)
            manifest = manifest.model_copy(update={"sha256": write_offsets(folder), "complete": True})
            _build_parts(folder, manifest, embedder, watch)
            write_manifest(folder, manifest.model_copy(update={"files": stamp_files(folder)}))
    return BuildResult(folder, added, store.failed, len(store), manifest.digest, time.perf_counter() - started)


def _prepare_manifest(folder: Path, settings: IndexSettings, embedder: Embedder | None) -> Manifest:
    """Return the folder's manifest, or a new one.

    Raises KnowledgeError if the folder cannot be used, or was built with other settings.
    """
    if folder.exists() and not folder.is_dir():
        raise KnowledgeError(f"--out {folder} is a file; name a folder")
    manifest = read_manifest(folder)
    if manifest is None:
        if folder.exists() and any(path.name != ".lock" for path in folder.iterdir()):
            raise KnowledgeError(f"--out {folder} has files but is not an index; name a new or an empty folder")
        embedding = Embedding(name=embedder.name, dimension=asyncio.run(_dimension(embedder))) if embedder else None
        settings = replace(settings, embedding=absolute_spec(settings.embedding))
        return Manifest(complete=False, settings=settings, embedding=embedding)
    for name in ("kind", "chunk_words", "overlap_words", "k1", "b"):
        if (old := getattr(manifest.settings, name)) != (new := getattr(settings, name)):
            option = f"--{name.replace('_', '-')}"
            raise KnowledgeError(f"{folder} was built with {option} {old}, not {new}; use {old}, or another --out")
    if embedder and manifest.embedding and embedder.name != manifest.embedding.name:
        raise KnowledgeError(
            f"{folder} was built with the embedding model '{manifest.embedding.name}', not '{embedder.name}'; "
            "use that model, or another --out"
        )
    return manifest


def _check_no_loop() -> None:
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return
    raise KnowledgeError("in a running event loop, call it as: await asyncio.to_thread(build_index, ...)")


async def _dimension(embedder: Embedder) -> int:
    """Return the dimension of the model's vectors. A model that does not work fails here, before any file exists."""
    from agentsys.knowledge.dense import check_vectors

    try:
        return int(check_vectors(await embedder.embed(["passage"]), 1, embedder).shape[1])
    finally:
        await close(embedder)


def _append_passages(
    documents: Iterable[Document | BadRecord], folder: Path, settings: IndexSettings, watch: Callable[[int], None]
) -> Store:
    """Append new passages, and record the documents that failed."""
    store = Store(folder)
    try:
        for number, document in enumerate(documents, 1):
            if isinstance(document, BadRecord):
                store.add_failure(document.source, document.reason)
            else:
                source, passage = document
                store.add(passage.id, split_document(passage, settings), source)
            watch(number)
    finally:
        store.close()
    return store


def _build_parts(folder: Path, manifest: Manifest, embedder: Embedder | None, watch: Watch) -> None:
    passages = Passages(folder)
    if embedder and manifest.embedding:
        asyncio.run(_embed(folder, passages, embedder, manifest.embedding.dimension, watch))
    if "bm25" in manifest.settings.parts:
        from agentsys.knowledge import bm25

        texts = (passage.indexed_text for passage in passages)
        k1, b = manifest.settings.k1, manifest.settings.b
        bm25.build(texts, folder, k1=k1, b=b, show=lambda done: watch("counting words", done, len(passages)))


async def _embed(folder: Path, passages: Passages, embedder: Embedder, dimension: int, watch: Watch) -> None:
    from agentsys.knowledge.dense import VectorStore, embed_passages

    vectors = VectorStore(folder)
    try:
        await embed_passages(
            vectors, passages, embedder, dimension, lambda done: watch("embedding", done, len(passages))
        )
    finally:
        vectors.close()
        await close(embedder)
