"""Retrieval by address: a search server with Elasticsearch's form of request and reply.

The request is {"query": {"multi_match": {"query": ...}}, "size": k}, which searches all text fields; the reply has
hits.hits, each with _id, _score and _source {"title", "text"}. Elasticsearch and OpenSearch speak it at INDEX/_search.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Sequence
from functools import lru_cache
from typing import Any, Final
from urllib.parse import urlsplit

from agentsys.knobs import split_names
from agentsys.knowledge.passages import Hit, KnowledgeError, Passage

TEXT_FIELDS: Final = ("text", "txt", "contents")
"""Names of the field with a passage's text; the first that a hit has is used."""


def is_address(index: object) -> bool:
    """Whether the name of an index is the address of a search server."""
    return isinstance(index, str) and index.startswith(("http://", "https://"))


@lru_cache(maxsize=16)
def load_server(url: str) -> SearchServer:
    """The search server at an address; equal addresses return the same object.

    Raises KnowledgeError for an address without a route, and inside the LangGraph server for one that $AGENTSYS_INDEXES
    does not list; SpecError for a malformed URL.
    """
    from agentsys.models.spec import served_to_browsers

    if served_to_browsers() and url not in split_names(os.environ.get("AGENTSYS_INDEXES", "")):
        raise KnowledgeError(
            f"in Studio, {url} is not allowed; start the server with AGENTSYS_INDEXES={url} to allow it"
        )
    return SearchServer(url)


class SearchServer:
    """Searches by HTTP. The API key is taken from AGENTSYS_API_KEY, as for embedding endpoints."""

    def __init__(self, url: str) -> None:
        from agentsys.models.endpoint import Endpoint
        from agentsys.models.spec import address_of

        address_of(url)  # refuses a malformed URL and one with a key
        parts = urlsplit(url.strip())
        folder, _, self._route = parts.path.rstrip("/").rpartition("/")
        if not self._route or parts.query:
            raise KnowledgeError(f"{url}: write the address of a search route, such as http://host:9200/INDEX/_search")
        self.url = url
        self._endpoint = Endpoint([f"{parts.scheme}://{parts.netloc}{folder}/"])

    async def search(self, queries: Sequence[str], k: int) -> list[list[Hit]]:
        """See Retriever. Raises ModelError for a refused request or another reply, EndpointDown without a server."""
        return list(await asyncio.gather(*(self._search(query, k) for query in queries)))

    async def _search(self, query: str, k: int) -> list[Hit]:
        from agentsys.models.errors import ModelError

        reply = await self._endpoint.post(self._route, {"query": {"multi_match": {"query": query}}, "size": k})
        try:
            return [_read_hit(hit) for hit in reply["hits"]["hits"][:k]]
        except (KeyError, TypeError, ValueError):
            raise ModelError(
                f"{self.url}: the reply does not have hits.hits with _source.text; is it a route of Elasticsearch?"
            ) from None

    async def check(self) -> None:
        """Search once, to find a wrong address before a run starts. Raises what `search` raises."""
        try:
            await self.search(["test"], 1)
        finally:
            await self.aclose()

    async def aclose(self) -> None:
        """Close the connections of the running loop."""
        await self._endpoint.aclose()


def _read_hit(hit: Any) -> Hit:
    """A hit of a reply. Raises KeyError, TypeError or ValueError for another form."""
    source = hit["_source"]
    field = next((name for name in TEXT_FIELDS if name in source), "text")
    return Hit(Passage(str(hit["_id"]), str(source[field]), str(source.get("title") or "")), float(hit["_score"]))
