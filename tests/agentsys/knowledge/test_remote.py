"""Retrieval by address: a search server with Elasticsearch's form, and what it may answer."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from typing import Any

import pytest
from aiohttp import web

from agentsys.knowledge import KnowledgeError, index_digest, load_retriever
from agentsys.knowledge import remote as remote_module
from agentsys.knowledge.context import Knowledge, with_index
from agentsys.knowledge.remote import SearchServer, load_server
from agentsys.models import EndpointDown, ModelError
from agentsys.models.faults import RequestRefused

HITS = [
    {"_id": "p1", "_score": 3.5, "_source": {"title": "Emma", "text": "Emma is a novel."}},
    {"_id": 2, "_score": 1, "_source": {"txt": "Another field for the text."}},
    {"_id": "p3", "_score": 0.5, "_source": {"title": "Late", "text": "More than were asked for."}},
]


@dataclass
class Server:
    """A search server at `url`, its requests, and its reply."""

    url: str = ""
    bodies: list[dict[str, Any]] = field(default_factory=list)
    reply: Any = field(default_factory=lambda: {"hits": {"hits": HITS}})
    status: int = 200

    async def search(self, request: web.Request) -> web.Response:
        self.bodies.append(await request.json())
        return web.json_response(self.reply, status=self.status)


@pytest.fixture
async def server() -> AsyncIterator[Server]:
    fake, app = Server(), web.Application()
    app.router.add_post("/wiki/_search", fake.search)
    runner = web.AppRunner(app)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    fake.url = f"http://127.0.0.1:{runner.addresses[0][1]}/wiki/_search"
    yield fake
    await runner.cleanup()


async def test_passages_of_a_search_server(server: Server) -> None:
    context = Knowledge(index=server.url, k=2)
    assert await context.search("Who wrote Emma?") == [
        {"id": "p1", "title": "Emma", "text": "Emma is a novel."},
        {"id": "2", "title": "", "text": "Another field for the text."},
    ]
    assert server.bodies == [{"query": {"multi_match": {"query": "Who wrote Emma?"}}, "size": 2}]
    hits = await context.hits("again", 3)
    assert [hit.score for hit in hits] == [3.5, 1.0, 0.5]
    await context.aclose()


async def test_several_queries_in_their_order(server: Server) -> None:
    retriever = SearchServer(server.url)
    first, second = await retriever.search(["a", "b"], 1)
    assert len(first) == len(second) == 1 and {body["query"]["multi_match"]["query"] for body in server.bodies} == {
        *"ab"
    }
    await retriever.aclose()


@pytest.mark.parametrize(
    "reply",
    [[], {}, {"hits": {"hits": [{"_id": "1"}]}}, {"hits": {"hits": [{"_id": "1", "_score": 1, "_source": {}}]}}],
)
async def test_a_reply_of_another_form_is_one_line(server: Server, reply: Any) -> None:
    server.reply = reply
    with pytest.raises(ModelError, match=r"wiki/_search: the reply does not have hits\.hits with _source\.text"):
        await SearchServer(server.url).search(["x"], 1)


async def test_a_refused_request_is_not_repeated(server: Server) -> None:
    server.status, server.reply = 400, {"error": {"reason": "all shards failed"}}
    with pytest.raises(RequestRefused, match="all shards failed"):
        await SearchServer(server.url).search(["x"], 1)
    assert len(server.bodies) == 1


async def test_a_server_is_asked_before_a_run(server: Server) -> None:
    """In a thread, as a command would, which has no running loop."""
    context = await asyncio.to_thread(with_index, Knowledge(index=server.url))
    assert context.index_digest == index_digest(server.url) == ""
    assert [body["size"] for body in server.bodies] == [1]
    server.reply = {}
    with pytest.raises(ModelError, match="is it a route of Elasticsearch"):
        await asyncio.to_thread(with_index, Knowledge(index=server.url))


def test_a_server_that_is_not_there() -> None:
    with pytest.raises(EndpointDown, match=r"127\.0\.0\.1:9"):
        with_index(Knowledge(index="http://127.0.0.1:9/wiki/_search"))


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("http://host:9200", "write the address of a search route, such as http://host:9200/INDEX/_search"),
        ("http://host:9200/wiki/_search?size=3", "write the address of a search route"),
        ("http://user:secret@host/wiki/_search", "must not contain a key"),
    ],
)
def test_a_malformed_address_is_one_line(url: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        load_retriever(url)


def test_a_search_server_has_its_own_retriever() -> None:
    with pytest.raises(
        KnowledgeError, match="a search server has its own retriever; leave retriever and embedding empty"
    ):
        load_retriever("http://host/wiki/_search", "bm25")
    assert load_retriever("http://host/wiki/_search") is load_retriever("http://host/wiki/_search")


def test_in_studio_an_address_must_be_allowed(monkeypatch: pytest.MonkeyPatch) -> None:
    url = "http://elsewhere/wiki/_search"
    load_server.cache_clear()
    monkeypatch.setattr("agentsys.models.spec.served_to_browsers", lambda: True)
    monkeypatch.setenv("AGENTSYS_INDEXES", "index")
    with pytest.raises(KnowledgeError, match=f"start the server with AGENTSYS_INDEXES={url} to allow it"):
        load_retriever(url)
    monkeypatch.setenv("AGENTSYS_INDEXES", f"index, {url}")
    assert isinstance(load_retriever(url), SearchServer)
    load_server.cache_clear()
    assert remote_module.is_address(url) and not remote_module.is_address("index")
