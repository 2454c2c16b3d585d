"""Building an index: read the passages, embed them, count their words. Each step goes on where a kill stopped it.

1. Passages are appended to `passages.jsonl`; those that are there already are not written again.
2. The dense part embeds what it does not hold yet, in batches.
3. The BM25 part is counted anew: its weights depend on all passages, and it takes seconds where embedding takes hours.
4. The manifest is marked complete. From step 2 until then the folder is not opened for searching.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from filelock import FileLock, Timeout

from agentsys.knowledge.embedders import Embedder, close, lasting, make_embedder
from agentsys.knowledge.manifest import Embedding, Manifest, Settings, read_manifest, write_manifest
from agentsys.knowledge.passages import KnowledgeError, Passages
from agentsys.knowledge.sources import Document, Source, chunks, read_documents
from agentsys.knowledge.store import Store, write_offsets
from agentsys.records import BadRecord

Watch = Callable[[str, int, int | None], None]
"""Told the step, how many passages it has done, and of how many where that is known."""


@dataclass(frozen=True, slots=True)
class Built:
    """What a build did: passages that are new, records it rejected, passages in the index, and its digest."""

    folder: Path
    added: int
    rejected: int
    passages: int
    digest: str
    seconds: float


def build_index(
    source: Source,
    out: str | Path,
    settings: Settings | None = None,
    *,
    embedder: Embedder | None = None,
    fields: Mapping[str, str] | None = None,
    watch: Watch = lambda step, done, total: None,
) -> Built:
    """Build an index folder, or add to one the passages that it does not hold yet (by id).

    `embedder` takes the place of the model that `settings.embedding` names; `fields` maps `text`, `title` and `id` to
    columns. From a running event loop call this with asyncio.to_thread. Raises KnowledgeError or InputError if the
    source, the folder or the settings cannot be used, and ModelError if an embedding endpoint fails; what is finished
    is on disk then.
    """
    started = time.perf_counter()
    settings = settings or Settings()
    if settings.kind == "bm25":
        embedder = None
    else:
        embedder = embedder or make_embedder(settings.embedding)
        _check_no_loop()
    documents = read_documents(source, fields)
    folder = Path(out).resolve()
    manifest = _begun(folder, settings, embedder)
    with _held(folder):
        if not manifest.passages:
            write_manifest(folder, manifest)
        store = _gather(documents, folder, settings, watch)
        added = len(store) - manifest.passages
        if added or not manifest.complete:
            manifest = manifest.model_copy(update={"complete": False, "passages": len(store)})
            write_manifest(folder, manifest)
            manifest = manifest.model_copy(update={"sha256": write_offsets(folder), "complete": True})
            _index(folder, manifest, embedder, watch)
            write_manifest(folder, manifest)
    return Built(folder, added, store.rejected, len(store), manifest.digest, time.perf_counter() - started)


def _begun(folder: Path, settings: Settings, embedder: Embedder | None) -> Manifest:
    """The manifest to go on with. Raises KnowledgeError if the folder cannot be used, or was built differently."""
    if folder.exists() and not folder.is_dir():
        raise KnowledgeError(f"--out {folder} is a file; name a folder")
    before = read_manifest(folder)
    if before is None:
        if folder.exists() and any(path.name != ".lock" for path in folder.iterdir()):
            raise KnowledgeError(f"--out {folder} has files in it and is no index; name a new or an empty folder")
        facts = Embedding(name=embedder.name, dimension=asyncio.run(_dimension(embedder))) if embedder else None
        return Manifest(
            complete=False, settings=replace(settings, embedding=lasting(settings.embedding)), embedding=facts
        )
    for name in ("kind", "chunk_words", "overlap_words", "k1", "b"):
        if (old := getattr(before.settings, name)) != (new := getattr(settings, name)):
            raise KnowledgeError(
                f"{folder} was built with --{name.replace('_', '-')} {old}, not {new}; give that, or another --out"
            )
    if embedder and before.embedding and embedder.name != before.embedding.name:
        raise KnowledgeError(
            f"{folder} was built with the embedding model '{before.embedding.name}', not '{embedder.name}'; "
            "give that, or another --out"
        )
    return before


def _check_no_loop() -> None:
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return
    raise KnowledgeError("in a running event loop, call it as: await asyncio.to_thread(build_index, ...)")


async def _dimension(embedder: Embedder) -> int:
    """Found out before anything is written, and with it whether the model works at all."""
    from agentsys.knowledge.dense import checked

    try:
        return int(checked(await embedder.embed(["passage"]), 1, embedder).shape[1])
    finally:
        await close(embedder)


@contextmanager
def _held(folder: Path) -> Iterator[None]:
    """The folder, held for writing. Raises KnowledgeError if another build is at work there."""
    folder.mkdir(parents=True, exist_ok=True)
    lock = FileLock(folder / ".lock")
    try:
        lock.acquire(blocking=False)
    except Timeout:
        raise KnowledgeError(f"{folder}: another build is writing here; wait for it, or choose another --out") from None
    try:
        yield
    finally:
        lock.release()


def _gather(documents: Iterable[Document | BadRecord], folder: Path, settings: Settings, watch: Watch) -> Store:
    """Append the passages that are new, and write down what cannot be used."""
    store = Store(folder)
    try:
        for document in documents:
            if isinstance(document, BadRecord):
                store.reject(document.source, document.reason)
            else:
                source, passage = document
                store.add(passage.id, chunks(passage, settings), source)
            watch("reading", len(store), None)
    finally:
        store.close()
    return store


def _index(folder: Path, manifest: Manifest, embedder: Embedder | None, watch: Watch) -> None:
    passages = Passages(folder)
    if embedder and manifest.embedding:
        asyncio.run(_embed(folder, passages, embedder, manifest.embedding.dimension, watch))
    if "bm25" in manifest.settings.parts:
        from agentsys.knowledge import bm25

        texts = (passage.searched for passage in passages)
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
