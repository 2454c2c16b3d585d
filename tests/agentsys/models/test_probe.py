"""What the doctor says of servers: scripted ones that refuse, redirect, hang or are no model servers."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable

import pytest
from aiohttp import web

from agentsys.models.probe import _explain_connection, probe_server
from tests.support.servers import FakeServer

Serve = Callable[[Callable[[web.Request], Awaitable[web.Response]]], Awaitable[str]]


@pytest.fixture
async def serve() -> AsyncIterator[Serve]:
    """`await serve(handler)` returns the URL of a server that answers /v1/models with the handler."""
    runners: list[web.AppRunner] = []

    async def start(handler: Callable[[web.Request], Awaitable[web.Response]]) -> str:
        app = web.Application()
        app.router.add_get("/v1/models", handler)
        runners.append(web.AppRunner(app, shutdown_timeout=0.05))
        await runners[-1].setup()
        site = web.TCPSite(runners[-1], "127.0.0.1", 0)
        await site.start()
        return f"http://127.0.0.1:{runners[-1].addresses[0][1]}/v1"

    yield start
    for runner in runners:
        await runner.cleanup()


def replies(response: Callable[[], web.Response]) -> Callable[[web.Request], Awaitable[web.Response]]:
    async def handler(request: web.Request) -> web.Response:
        return response()

    return handler


async def test_a_server_with_one_model_is_usable(server: FakeServer) -> None:
    report = await probe_server(server.url)
    assert (report.is_usable, report.text, report.fix) == (True, "serves toy-model", "")
    assert (await probe_server(f"{server.url}#toy-model")).is_usable
    assert (await probe_server(server.address)).is_usable  # /v1 may be left out, as in a spec


async def test_a_model_that_the_server_lacks(server: FakeServer) -> None:
    report = await probe_server(f"{server.url}#other")
    assert (report.is_usable, report.text) == (False, "serves toy-model, not other")
    assert "after #" in report.fix


async def test_several_models_must_be_named_in_the_spec(start_server: Callable[..., Awaitable[FakeServer]]) -> None:
    server = await start_server(models=tuple(f"m{i}" for i in range(7)))
    report = await probe_server(server.url)
    assert (report.is_usable, report.text) == (True, "serves m0, m1, m2, m3, m4 and 2 more")
    assert f"{server.url}#MODEL" in report.fix
    assert (await probe_server(f"{server.url}#m6")).fix == ""


async def test_no_model(start_server: Callable[..., Awaitable[FakeServer]]) -> None:
    server = await start_server(models=())
    report = await probe_server(server.url)
    assert (report.is_usable, report.text) == (False, "serves no model")
    assert (await probe_server(f"{server.url}#hidden")).is_usable  # such a server may still serve it


async def test_a_wrong_path(server: FakeServer) -> None:
    report = await probe_server(f"{server.address}/api/v1")
    assert not report.is_usable
    assert report.text == f"there is no {server.address}/api/v1/models (status 404)"
    assert "up to /v1" in report.fix


async def test_a_refused_connection(server: FakeServer) -> None:
    await server.stop()
    report = await probe_server(server.url)
    assert (report.is_usable, report.text) == (False, f"nothing listens at {server.address}")
    assert "start the server" in report.fix


async def test_a_server_without_tls(server: FakeServer) -> None:
    report = await probe_server(server.url.replace("http:", "https:"))
    assert (report.is_usable, report.text) == (False, "the TLS handshake failed")
    assert "http://" in report.fix


def test_an_unknown_host_name() -> None:
    message = "no server is reachable: Cannot connect to host h:80 ssl:default [Name or service not known]"
    assert _explain_connection(message, "http://h")[0] == "its host name is unknown"


@pytest.mark.parametrize("status", [401, 403])
async def test_a_key_that_is_missing_or_refused(serve: Serve, monkeypatch: pytest.MonkeyPatch, status: int) -> None:
    url = await serve(replies(lambda: web.Response(status=status, text="no key")))
    monkeypatch.delenv("AGENTSYS_API_KEY", raising=False)
    report = await probe_server(url)
    assert report.text == f"it wants an API key (status {status})" and report.fix == "set AGENTSYS_API_KEY"
    monkeypatch.setenv("AGENTSYS_API_KEY", "hidden-value")
    report = await probe_server(url)
    assert report.text == f"it refuses the key in AGENTSYS_API_KEY (status {status})"
    assert not report.is_usable and "hidden-value" not in str(report)


@pytest.mark.parametrize(
    ("response", "text"),
    [
        (lambda: web.Response(status=301, headers={"Location": "/elsewhere"}), "it redirects (status 301)"),
        (lambda: web.Response(status=503, text="loading"), "it answers with status 503"),
        (lambda: web.Response(text="<html>It works!</html>"), "its reply is not JSON"),
        (lambda: web.json_response({"hello": "world"}), "its reply lists no models"),
        (lambda: web.json_response([{"id": "a"}]), "its reply lists no models"),
        (lambda: web.json_response({"data": ["a", {"name": "b"}]}), "serves no model"),
        (lambda: web.json_response({"data": [{"id": "\x1b[2J"}, {"id": 7}]}), "serves '\\x1b[2J', 7, not m"),
    ],
)
async def test_answers_that_are_no_list_of_models(
    serve: Serve, response: Callable[[], web.Response], text: str
) -> None:
    report = await probe_server(await serve(replies(response)) + ("#m" if "not m" in text else ""))
    assert (report.is_usable, report.text) == (False, text)
    assert report.fix


async def test_a_server_that_does_not_answer(serve: Serve) -> None:
    async def hang(request: web.Request) -> web.Response:
        await asyncio.sleep(60)
        return web.Response()

    report = await probe_server(await serve(hang), seconds=0.2)
    assert (report.is_usable, report.text) == (False, "no answer within 0.2 s")


@pytest.mark.parametrize(
    ("url", "text", "fix"),
    [
        ("localhost:8000", "'localhost:8000' is not a server URL", "write http://host:port/v1"),
        ("a; b", "'a; b' is not a server URL", "write http://host:port/v1"),
        ("http://user:secret@127.0.0.1/v1", "a URL must not contain a key", "set AGENTSYS_API_KEY"),
        ("http://127.0.0.1:99999/v1", "Port out of range 0-65535)", "write http://host:port/v1"),
        ("http://[::1/v1", "Invalid IPv6 URL)", "write http://host:port/v1"),
    ],
)
async def test_a_url_that_is_none(url: str, text: str, fix: str) -> None:
    """The fix is stated once."""
    report = await probe_server(url)
    assert not report.is_usable and report.text.endswith(text) and report.fix == fix
