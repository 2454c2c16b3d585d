"""Searching an index: the same tests over the three retrievers; BM25, fusion, and opening an index."""

from __future__ import annotations

import asyncio
import sys
import time
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest

from agentsys.knowledge import (
    IndexSettings,
    KnowledgeError,
    build_index,
    index_digest,
    load_retriever,
    open_retriever,
)
from agentsys.knowledge.bm25 import top_k
from agentsys.knowledge.hybrid import fuse
from agentsys.knowledge.index import IndexRetriever
from tests.support.passages import RECORDS, WordEmbedder

pytestmark = pytest.mark.needs("knowledge")

Kind = Literal["bm25", "dense", "hybrid"]
KINDS: tuple[Kind, ...] = ("bm25", "dense", "hybrid")


@pytest.fixture(scope="module")
def index(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A hybrid index of RECORDS."""
    folder = tmp_path_factory.mktemp("knowledge") / "index"
    built = build_index(RECORDS, folder, IndexSettings("hybrid"), embedder=WordEmbedder())
    assert (built.added, built.failed, built.passages) == (6, 0, 6)
    return folder


@pytest.fixture(params=KINDS)
def retriever(index: Path, request: pytest.FixtureRequest) -> IndexRetriever:
    return open_retriever(index, request.param, WordEmbedder())


# The protocol, for the three kinds


async def test_hits_per_query_are_sorted(retriever: IndexRetriever) -> None:
    queries = ["the cat sleeps on a warm roof", "who released the album Counterparts?", "天安门广场在哪里"]
    results = await retriever.search(queries, 3)
    assert [hits[0].passage.id for hits in results] == ["cat", "rush", "zh"]
    for hits in results:
        assert len(hits) <= 3
        assert [hit.score for hit in hits] == sorted((hit.score for hit in hits), reverse=True)
        assert len({hit.passage.id for hit in hits}) == len(hits)


async def test_passages_are_returned_unchanged(retriever: IndexRetriever) -> None:
    [[hit, *_], [marks, *_]] = await retriever.search(["cat sleeps warm roof", "follow up final answer bold"], 2)
    assert (hit.passage.title, hit.passage.text, hit.passage.meta) == ("Cat", RECORDS[0]["text"], {"year": 1999})
    assert (marks.passage.id, marks.passage.text) == ("marks", RECORDS[3]["text"])


async def test_no_query_and_more_hits_than_passages(retriever: IndexRetriever) -> None:
    assert await retriever.search([], 3) == []
    [hits] = await retriever.search(["the album"], 50)
    assert 0 < len(hits) <= 6


async def test_a_query_of_ten_thousand_words(retriever: IndexRetriever) -> None:
    [hits] = await retriever.search(["unheard of " * 5000 + "Counterparts album 1993 released Rush band"], 1)
    assert len(hits) == 1


async def test_parallel_searches_equal_sequential_ones(retriever: IndexRetriever) -> None:
    queries = [str(record["text"]) for record in RECORDS]
    together = await asyncio.gather(*(retriever.search([query], 4) for query in queries * 5))
    assert [hits for [hits] in together] == await retriever.search(queries, 4) * 5


@pytest.mark.parametrize(("queries", "k"), [(["a"], 0), ("a", 1)])
async def test_errors_of_calls_are_one_line(retriever: IndexRetriever, queries: Any, k: int) -> None:
    with pytest.raises(KnowledgeError, match="list of queries and k of at least 1"):
        await retriever.search(queries, k)


async def test_the_event_loop_is_not_blocked(
    index: Path, monkeypatch: pytest.MonkeyPatch, retriever: IndexRetriever
) -> None:
    """A slow word count and a slow vector store, which block their threads."""
    from agentsys.knowledge.bm25 import Bm25
    from agentsys.knowledge.dense import VectorStore

    for kind, name in ((Bm25, "_rank_one"), (VectorStore, "nearest")):
        monkeypatch.setattr(kind, name, slowed(getattr(kind, name)))
    ticks = 0

    async def tick() -> None:
        nonlocal ticks
        while True:
            await asyncio.sleep(0.01)
            ticks += 1

    ticking = asyncio.create_task(tick())
    await retriever.search(["the cat"], 3)
    ticking.cancel()
    assert ticks >= 5


def slowed(function: Callable[..., Any]) -> Callable[..., Any]:
    def slow(*args: Any) -> Any:
        time.sleep(0.3)
        return function(*args)

    return slow


# BM25 and fusion


async def test_bm25_scores_equal_the_formula(tmp_path: Path) -> None:
    texts = ["a b", "a a c c c", "d"]
    build_index(
        [{"id": str(i), "text": text} for i, text in enumerate(texts)], tmp_path / "i", IndexSettings(k1=1.2, b=0.5)
    )
    [hits] = await open_retriever(tmp_path / "i").search(["a a unknown"], 3)
    mean = (2 + 5 + 1) / 3
    idf = np.log(1 + (3 - 2 + 0.5) / (2 + 0.5))
    expected = {str(i): idf * tf / (tf + 1.2 * (0.5 + 0.5 * length / mean)) for i, tf, length in ((0, 1, 2), (1, 2, 5))}
    assert {hit.passage.id: hit.score for hit in hits} == pytest.approx(expected)


async def test_bm25_ties_keep_the_order_and_unrelated_passages_are_not_returned(tmp_path: Path) -> None:
    build_index([{"id": f"p{i}", "text": "same words" if i % 2 else "other"} for i in range(40)], tmp_path / "i")
    [hits, none, blank] = await open_retriever(tmp_path / "i").search(["same", "zebra", " "], 5)
    assert [hit.passage.id for hit in hits] == ["p1", "p3", "p5", "p7", "p9"]
    assert none == blank == []


def test_top_k() -> None:
    scores = np.array([0.0, 2.0, 1.0, 2.0, 0.0, 1.0], dtype=np.float32)
    assert top_k(scores, 3) == [(1, 2.0), (3, 2.0), (2, 1.0)]
    assert top_k(scores, 99) == [(1, 2.0), (3, 2.0), (2, 1.0), (5, 1.0)]


async def test_texts_without_a_word(tmp_path: Path) -> None:
    build_index([{"id": "a", "text": "!!!"}, {"id": "b", "text": "..."}], tmp_path / "i")
    assert await open_retriever(tmp_path / "i").search(["!!!", "word"], 3) == [[], []]


def test_fusion_equals_the_papers_formula() -> None:
    fused = fuse([[(7, 9.0), (3, 8.0)], [(3, 0.5), (5, 0.4), (1, 0.3)]], 3)
    assert fused == [(3, 1 / 62 + 1 / 61), (7, 1 / 61), (5, 1 / 62)]
    assert fuse([[(2, 1.0)], [(1, 1.0)]], 2) == [(1, 1 / 61), (2, 1 / 61)]  # a tie: the first passage


async def test_chinese_passages_are_found_by_part_of_a_sentence(index: Path) -> None:
    [hits] = await open_retriever(index, "bm25").search(["黄浦江在哪个城市"], 2)
    assert [hit.passage.id for hit in hits] == ["zh2"]


# Opening


def test_equal_arguments_return_one_object_until_the_index_changes(tmp_path: Path) -> None:
    folder = tmp_path / "i"
    build_index(RECORDS[:3], folder)
    first, digest = load_retriever(folder), index_digest(folder)
    assert load_retriever(str(folder)) is first
    assert load_retriever(tmp_path / "x" / ".." / "i") is first
    build_index(RECORDS, folder)
    assert load_retriever(folder) is not first
    assert index_digest(folder) != digest
    assert len(digest) == 16


def test_the_digest_depends_on_passages_and_settings_not_on_the_folder(tmp_path: Path) -> None:
    def digest(name: str, records: list[dict[str, Any]], settings: IndexSettings) -> str:
        build_index(records, tmp_path / name, settings)
        return index_digest(tmp_path / name)

    one = digest("a", RECORDS, IndexSettings())
    assert digest("b", RECORDS, IndexSettings()) == one
    assert digest("c", RECORDS[1:], IndexSettings()) != one
    assert digest("d", RECORDS, IndexSettings(k1=1.5)) != one


def test_another_embedding_model_is_refused_with_both_names(index: Path) -> None:
    with pytest.raises(KnowledgeError, match=r"'counts', not 'others'"):
        open_retriever(index, "dense", WordEmbedder("others"))
    with pytest.raises(KnowledgeError, match=r"'counts', not 'bge-m3'"):
        load_retriever(index, "hybrid", "http://host:8000/v1#bge-m3")
    with pytest.raises(KnowledgeError, match=r"built with the embedder object 'counts'; open it with open_retriever"):
        load_retriever(index)
    assert load_retriever(index, "bm25")  # needs no model


async def test_a_model_of_the_same_name_and_another_dimension_is_refused(index: Path) -> None:
    with pytest.raises(KnowledgeError, match="has 32 dimensions, the index 256"):
        await open_retriever(index, "dense", WordEmbedder(dimension=32)).search(["a"], 1)


def test_a_kind_that_the_index_lacks(tmp_path: Path) -> None:
    build_index(RECORDS, tmp_path / "i")
    with pytest.raises(KnowledgeError, match="built with --kind bm25 and has no 'dense'"):
        load_retriever(tmp_path / "i", "dense")
    with pytest.raises(KnowledgeError, match="without the embedding model 'some'"):
        load_retriever(tmp_path / "i", embedding="some")


def test_folders_that_are_not_an_index(tmp_path: Path) -> None:
    with pytest.raises(KnowledgeError, match=r"is not an index; build one with: python -m agentsys\.knowledge build"):
        load_retriever(tmp_path / "none")
    (tmp_path / "manifest.json").write_text("[]")
    with pytest.raises(KnowledgeError, match="is not the manifest of an index"):
        load_retriever(tmp_path)
    (tmp_path / "manifest.json").write_text('{"version": 99}')
    with pytest.raises(KnowledgeError, match="has version 99, not 1"):
        index_digest(tmp_path)


@pytest.mark.parametrize("missing", ["passages.jsonl", "offsets.npy", "bm25/indptr.csc.index.npy", "chroma"])
def test_the_error_of_a_damaged_index_is_one_line(tmp_path: Path, missing: str) -> None:
    import shutil

    folder = tmp_path / "i"
    build_index(RECORDS, folder, IndexSettings("hybrid"), embedder=WordEmbedder())
    path = folder / missing
    shutil.rmtree(path) if path.is_dir() else path.unlink()
    with pytest.raises(KnowledgeError, match="remove the folder and build it again"):
        open_retriever(folder, "", WordEmbedder())


def test_in_the_langgraph_server_only_listed_folders_open(
    index: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "langgraph_api", types.ModuleType("langgraph_api"))
    monkeypatch.delenv("AGENTSYS_INDEXES", raising=False)
    for open_index in (load_retriever, index_digest):
        with pytest.raises(
            KnowledgeError, match=r"in Studio, .* is not allowed; start the server with AGENTSYS_INDEXES="
        ):
            open_index(index)
    monkeypatch.setenv("AGENTSYS_INDEXES", f"{tmp_path}, {index}")
    assert load_retriever(index, "bm25")
    with pytest.raises(KnowledgeError, match="not allowed"):
        load_retriever(index / ".." / "other")
    with pytest.raises(KnowledgeError, match="leave embedding empty"):
        load_retriever(index, "hybrid", "http://internal:80/v1#counts")
