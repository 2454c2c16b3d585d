"""A retriever as part of a graph's context."""

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


@dataclass(frozen=True)
class Knowledge(BaseContext):
    """Where documents come from."""

    index: str = knob("", "folder of an index that `python -m agentsys.knowledge build` wrote")
    retriever: Literal["", "bm25", "dense", "hybrid"] = knob("", "which of the index's retrievers; empty: the best")
    k: int = knob(3, "passages for a sub-query")
    index_digest: SkipJsonSchema[str] = knob("", "stands for the index's content; the commands fill it in", hidden=True)

    def __post_init__(self) -> None:
        """Raises ValueError for a knob of the wrong type or out of range."""
        super().__post_init__()
        self.at_least(k=1)

    async def hits(self, query: str, k: int) -> list[Hit]:
        """What the retriever finds. Raises ValueError where no index is named, or it cannot be opened."""
        from agentsys.knowledge import load_retriever

        if not self.index:
            raise ValueError("index: name the folder of an index; `python -m agentsys.knowledge build` makes one")
        retriever = await asyncio.to_thread(load_retriever, self.index, self.retriever)
        [found] = await retriever.search([query], k)
        return found

    async def search(self, query: str) -> list[Passage]:
        """d: the k best passages. Raises what `hits` raises."""
        hits = await self.hits(query, self.k)
        return [Passage(id=h.passage.id, title=h.passage.title, text=h.passage.text) for h in hits]

    async def aclose(self) -> None:
        """Close the connections of an embedding endpoint; `collect` does at its end."""
        from agentsys.knowledge import KnowledgeError, load_retriever

        with suppress(KnowledgeError):  # what cannot be opened has nothing to close
            await (await asyncio.to_thread(load_retriever, self.index, self.retriever)).aclose()


K = TypeVar("K", bound=Knowledge)


def with_index(context: K) -> K:
    """The context with its index's digest filled in, once the index could be opened.

    Raises InputError where none is named, KnowledgeError where it is none or has not the retriever that is asked for.
    """
    from agentsys.knowledge import index_digest, load_retriever

    if not context.index:
        raise InputError(
            "--index: name the folder of an index; `python -m agentsys.knowledge build passages.jsonl --out index` "
            "makes one"
        )
    load_retriever(context.index, context.retriever)
    return replace(context, index_digest=index_digest(context.index))


class Passage(TypedDict):
    """One document of d_i."""

    id: str
    title: str
    text: str
