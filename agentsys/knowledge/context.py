"""Retrieval as part of a graph's context: the index and its options, and a search that returns JSON."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Literal, TypeVar

from pydantic.json_schema import SkipJsonSchema
from typing_extensions import TypedDict

from agentsys.knowledge.passages import Hit
from agentsys.records import InputError
from agentsys.systems import BaseContext, knob

K = TypeVar("K", bound="Knowledge")


class PassageDict(TypedDict):
    """A retrieved passage in a graph's state."""

    id: str
    title: str
    text: str


@dataclass(frozen=True)
class Knowledge(BaseContext):
    """Base of the contexts of graphs that retrieve passages."""

    index: str = knob(
        "",
        "index folder, built with `python -m agentsys.knowledge build`, or the address of a search server in "
        "Elasticsearch's form, such as http://host:9200/wiki/_search",
    )
    retriever: Literal["", "bm25", "dense", "hybrid"] = knob("", "retriever of the index; empty: the best it has")
    k: int = knob(3, "passages per sub-query", highest_in_studio=100)
    index_digest: SkipJsonSchema[str] = knob("", "digest of the index, set by the commands", hidden=True)

    def __post_init__(self) -> None:
        """Raises ValueError for an option of the wrong type or out of range."""
        super().__post_init__()
        self.at_least(k=1)

    async def hits(self, query: str, k: int) -> list[Hit]:
        """Return the k best hits for a query. Raises ValueError if no index is named, or it cannot be opened."""
        from agentsys.knowledge import load_retriever

        if not self.index:
            raise ValueError("index: name the folder of an index; build one with `python -m agentsys.knowledge build`")
        retriever = await asyncio.to_thread(load_retriever, self.index, self.retriever)
        [hits] = await retriever.search([query], k)
        return hits

    async def search(self, query: str) -> list[PassageDict]:
        """Return the `k` best passages for a query. Raises what `hits` raises."""
        hits = await self.hits(query, self.k)
        return [PassageDict(id=h.passage.id, title=h.passage.title, text=h.passage.text) for h in hits]

    async def aclose(self) -> None:
        """Close the connections of an embedding endpoint; `collect` calls this at its end."""
        from agentsys.knowledge import KnowledgeError, load_retriever

        with suppress(KnowledgeError):  # an index that cannot be opened has no connections
            await (await asyncio.to_thread(load_retriever, self.index, self.retriever)).aclose()


def with_index(context: K) -> K:
    """Open the index of a context and return the context with the index's digest.

    A search server is asked once. Raises InputError if no index is named, KnowledgeError if it cannot be opened or
    lacks the retriever, ModelError if a server does not reply as a search server does.
    """
    from agentsys.knowledge import index_digest, load_retriever
    from agentsys.knowledge.remote import SearchServer

    if not context.index:
        raise InputError(
            "--index: name the folder of an index; build one with "
            "`python -m agentsys.knowledge build passages.jsonl --out index`"
        )
    retriever = load_retriever(context.index, context.retriever)
    if isinstance(retriever, SearchServer):
        asyncio.run(retriever.check())
    return replace(context, index_digest=index_digest(context.index))
