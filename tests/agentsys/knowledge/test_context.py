"""Retrieval in a graph's context: options, errors, searches, and the digest of the index."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import pytest

from agentsys.knowledge import Hit, KnowledgeError, build_index, index_digest
from agentsys.knowledge.context import Knowledge, with_index
from agentsys.knowledge.passages import Passage
from agentsys.records import InputError
from tests.support.passages import RECORDS


@dataclass(frozen=True)
class Context(Knowledge):
    """A graph's context with retrieval."""


@pytest.fixture(scope="module")
def index(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A BM25 index of RECORDS."""
    return str(build_index(RECORDS, tmp_path_factory.mktemp("context") / "index").folder)


@pytest.mark.needs("knowledge")
async def test_search_returns_the_k_best_passages_as_json(index: str) -> None:
    context = Context(index=index, k=1)
    assert await context.search("the cat on the warm roof") == [
        {"id": "cat", "title": "Cat", "text": "The cat sleeps on the warm roof."}
    ]
    hits = await context.hits("the cat and the dog", 2)
    assert [hit.passage.id for hit in hits] == ["cat", "dog"] and hits[0].score > hits[1].score > 0
    assert isinstance(hits[0], Hit) and isinstance(hits[0].passage, Passage) and hits[0].passage.meta == {"year": 1999}


async def test_a_missing_index_is_an_error_that_names_the_option(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="index: name the folder of an index; build one with"):
        await Context().search("x")
    with pytest.raises(KnowledgeError, match="nowhere is not an index"):
        await Context(index=str(tmp_path / "nowhere")).search("x")


def test_options_are_checked() -> None:
    with pytest.raises(ValueError, match="k"):
        Context(k=0)
    with pytest.raises(ValueError, match="retriever"):
        Context(retriever="sparse")  # type: ignore[arg-type]


@pytest.mark.needs("knowledge")
def test_with_index_sets_the_digest(index: str, tmp_path: Path) -> None:
    context = with_index(Context(index=index, k=2))
    assert type(context) is Context and context.k == 2
    assert context.index_digest == index_digest(index)
    with pytest.raises(InputError, match="--index: name the folder of an index"):
        with_index(Context())
    with pytest.raises(KnowledgeError, match="has no 'dense'"):
        with_index(Context(index=index, retriever="dense"))


async def test_closing_a_context_closes_its_retriever(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    closed = []

    class Retriever:
        async def aclose(self) -> None:
            closed.append(self)

    retriever = Retriever()
    monkeypatch.setattr("agentsys.knowledge.load_retriever", lambda index, kind: retriever)
    await Context(index="index").aclose()
    assert closed == [retriever]
    monkeypatch.undo()
    await Context(index=str(tmp_path / "nowhere")).aclose()  # an index that cannot be opened has nothing to close
    assert closed == [retriever]
