"""LongDPO's memory: which facts and chunks are compared, and which embedding models Studio may load."""

from __future__ import annotations

import pytest

from agentsys.graphs.longdpo import memory
from agentsys.graphs.longdpo.memory import Fact, find_similar_pairs, split_evenly
from tests.support.longdpo_script import WordCounts

FACTS = [Fact("Anna is the keeper", "unsure", "", "0/0"), Fact("the sea", "true", "", "0/0")]
CHUNKS = ["The keeper Anna sang.", "Bruno left.", "The keeper saw the sea."]


async def test_each_fact_is_paired_with_the_chunks_nearest_to_it() -> None:
    pairs = await find_similar_pairs(FACTS, CHUNKS, WordCounts(), 1, 0.8)
    assert [(pair.fact.statement, pair.chunk) for pair in pairs] == [
        ("Anna is the keeper", "The keeper Anna sang."),
        ("the sea", "The keeper saw the sea."),
    ]
    assert [pair.similarity for pair in pairs] == pytest.approx([1.0, 2**-0.5]), "a low cosine is no obstacle"
    assert len(await find_similar_pairs(FACTS, CHUNKS, WordCounts(), 2, 0.8)) == 4
    assert len(await find_similar_pairs(FACTS, CHUNKS, WordCounts(), 9, 0.8)) == 6, "there are no more chunks"


async def test_with_the_papers_rule_only_similar_facts_and_chunks_are_paired() -> None:
    pairs = await find_similar_pairs(FACTS, CHUNKS, WordCounts(), 0, 0.8)
    assert [(pair.fact.statement, pair.chunk) for pair in pairs] == [("Anna is the keeper", "The keeper Anna sang.")]
    assert await find_similar_pairs([], ["x"], WordCounts(), 0, 0.8) == []
    assert await find_similar_pairs(FACTS, [], WordCounts(), 3, 0.8) == []


def test_a_text_is_split_at_white_space() -> None:
    text = " ".join(f"w{i}" for i in range(300))
    chunks = split_evenly(text, 300, 128)
    assert len(chunks) == 3 and " ".join(chunks) == text


def test_in_studio_an_embedding_model_must_be_allowed(monkeypatch: pytest.MonkeyPatch) -> None:
    """A spec may be a folder or an address, which no web page is to choose."""
    monkeypatch.setattr(memory, "served_to_browsers", lambda: True)
    monkeypatch.setattr(memory, "make_embedder", lambda spec: WordCounts())
    monkeypatch.setenv("AGENTSYS_EMBEDDINGS", "one, two")
    with pytest.raises(ValueError, match="start the server with AGENTSYS_EMBEDDINGS=http://elsewhere/v1#m"):
        memory.load_embedder("http://elsewhere/v1#m")
    assert isinstance(memory.load_embedder("two"), WordCounts)
    memory.load_embedder.cache_clear()
