"""Embedding models: the real MiniLM, hub names without a network, endpoints over HTTP, and light imports."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from aiohttp import web

from agentsys.knowledge import IndexSettings, build_index, load_retriever
from agentsys.knowledge.embedders import embedding_name, make_embedder
from agentsys.knowledge.manifest import read_complete_manifest
from agentsys.models import EndpointDown, ModelError
from agentsys.models.embeddings import find_embedding
from tests.support.extras import skip_without
from tests.support.passages import RECORDS, WordEmbedder

pytestmark = pytest.mark.needs("knowledge")


# The real model


@pytest.fixture(scope="module")
def minilm() -> str:
    skip_without("dense", "weights-embedding")
    return str(find_embedding("all-MiniLM-L6-v2"))


@pytest.fixture(scope="module")
def indexed(minilm: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("minilm") / "index"
    build_index(RECORDS, folder, IndexSettings("hybrid", minilm))
    return folder


async def test_meaning_is_found_without_a_common_word(indexed: Path) -> None:
    queries = ["a feline resting", "canine noise towards a mail carrier", "rock music record of the nineties"]
    results = await load_retriever(indexed, "dense").search(queries, 1)
    assert [hits[0].passage.id for hits in results] == ["cat", "dog", "rush"]
    assert all(0 < hits[0].score < 1 for hits in results)
    assert await load_retriever(indexed, "bm25").search(queries[:1], 1) != [results[0]]


def test_the_name_of_a_folder_depends_on_its_weights_not_on_its_path(
    indexed: Path, minilm: str, tmp_path: Path
) -> None:
    manifest = read_complete_manifest(indexed)
    assert manifest.embedding is not None
    assert manifest.embedding.dimension == 384
    assert manifest.embedding.name == embedding_name(minilm) != minilm
    (tmp_path / "model").symlink_to(minilm)
    assert load_retriever(indexed, "dense", str(tmp_path / "model")).search
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "config.json").write_text("{}")
    with pytest.raises(ValueError, match=r"'model@[0-9a-f]+', not 'other@[0-9a-f]+'"):
        load_retriever(indexed, "dense", str(tmp_path / "other"))


async def test_the_event_loop_is_not_blocked_by_the_model(minilm: str) -> None:
    embedder = make_embedder(minilm)
    await embedder.embed(["warm up"])
    ticks = 0
    embedding = asyncio.create_task(embedder.embed(["a long text with many words in it " * 20] * 16))
    while not embedding.done():
        await asyncio.sleep(0.005)
        ticks += 1
    assert (await embedding).shape == (16, 384)
    assert ticks >= 5


# Hub names


def test_an_unreachable_hub_is_one_error_without_retries(tmp_path: Path) -> None:
    """The hub is a closed local port."""
    skip_without("dense")
    code = (
        "import asyncio\n"
        "from agentsys.knowledge.embedders import make_embedder\n"
        "try:\n"
        "    asyncio.run(make_embedder('nowhere/model').embed(['a']))\n"
        "except ValueError as error:\n"
        "    print(error)\n"
    )
    hub = {"HF_ENDPOINT": "http://127.0.0.1:9", "HF_HUB_OFFLINE": "0", "HF_HOME": str(tmp_path)}
    done = subprocess.run(
        [sys.executable, "-c", code], env=os.environ | hub, capture_output=True, text=True, check=True, timeout=60
    )
    assert done.stdout.startswith("embedding model 'nowhere/model' cannot be loaded (")
    assert done.stdout.count("\n") == 1


# An endpoint


@dataclass
class Embeddings:
    """A server with an embeddings route: it returns vectors in reverse order, and can fail or return too few."""

    url: str = ""
    failures: int = 0
    too_few: bool = False
    bodies: list[dict[str, Any]] = field(default_factory=list)
    headers: list[str] = field(default_factory=list)

    async def answer(self, request: web.Request) -> web.Response:
        body = await request.json()
        self.headers.append(request.headers.get("Authorization", ""))
        if self.failures:
            self.failures -= 1
            return web.json_response({"error": "busy"}, status=503, headers={"Retry-After": "0"})
        if body["model"] != "counts":
            return web.json_response({"error": "no such model"}, status=404)
        self.bodies.append(body)
        vectors = await WordEmbedder().embed(body["input"])
        data = [{"index": i, "embedding": vector.tolist()} for i, vector in enumerate(vectors)]
        return web.json_response({"data": data[:-1] if self.too_few else data[::-1]})


@pytest.fixture
async def embeddings() -> AsyncIterator[Embeddings]:
    server = Embeddings()
    app = web.Application()
    app.router.add_post("/v1/embeddings", server.answer)
    runner = web.AppRunner(app)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    server.url = f"http://127.0.0.1:{runner.addresses[0][1]}/v1#counts"
    yield server
    await runner.cleanup()


async def test_an_endpoint_embeds_in_batches_with_retries(
    embeddings: Embeddings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AGENTSYS_API_KEY", "secret")
    embeddings.failures = 1
    texts = [f"text {i}" for i in range(70)]
    embedder = make_embedder(embeddings.url)
    vectors = await embedder.embed(texts)
    await embedder.aclose()  # type: ignore[attr-defined]
    assert np.allclose(vectors, await WordEmbedder().embed(texts))
    assert sorted(len(body["input"]) for body in embeddings.bodies) == [6, 32, 32]
    assert set(embeddings.headers) == {"Bearer secret"}


async def test_an_index_from_an_endpoint_opens_at_another_address(embeddings: Embeddings, tmp_path: Path) -> None:
    settings = IndexSettings("dense", embeddings.url)
    await asyncio.to_thread(build_index, RECORDS, tmp_path / "i", settings)
    moved = embeddings.url.replace("127.0.0.1", "localhost")
    for embedding in ("", moved):
        retriever = load_retriever(tmp_path / "i", "", embedding)
        [hits] = await retriever.search(["The cat sleeps on the warm roof."], 1)
        await retriever.aclose()
        assert hits[0].passage.id == "cat"


async def test_errors_of_an_endpoint_are_one_line(embeddings: Embeddings) -> None:
    embeddings.too_few = True
    embedder = make_embedder(embeddings.url)
    with pytest.raises(ModelError, match=r"/v1/embeddings: the reply does not have one vector per text"):
        await embedder.embed(["a", "b"])
    await embedder.aclose()  # type: ignore[attr-defined]
    other = make_embedder(embeddings.url.replace("#counts", "#other"))
    with pytest.raises(ModelError, match="no such model"):
        await other.embed(["a"])
    await other.aclose()  # type: ignore[attr-defined]


async def test_an_unreachable_endpoint_is_down() -> None:
    from agentsys.models.endpoint import RetryPolicy

    embedder: Any = make_embedder("http://127.0.0.1:9/v1#m")
    embedder._endpoint.retry = RetryPolicy(attempts=1)
    with pytest.raises(EndpointDown, match=r"no server is reachable at http://127.0.0.1:9"):
        await embedder.embed(["a"])
    await embedder.aclose()


# Imports


def test_heavy_libraries_are_not_imported_until_they_are_used() -> None:
    code = (
        "import sys, agentsys.knowledge; "
        "heavy = {'numpy', 'bm25s', 'chromadb', 'sentence_transformers', 'torch', 'scipy', 'aiohttp', 'pyarrow'}; "
        "print(sorted(heavy & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout.strip() == "[]"
