"""Studio's guard and its count of calls, without a server (tests/studio has the real one)."""

from __future__ import annotations

import asyncio
import sys
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
from langchain_core.runnables.config import var_child_runnable_config

from agentsys import studio
from agentsys.studio import MAX_BODY, PageGuard, TooManyCalls, count_call, is_allowed_origin, is_own_host, refusal


@pytest.fixture
def served(monkeypatch: pytest.MonkeyPatch) -> None:
    """As in Studio's server."""
    monkeypatch.setitem(sys.modules, "langgraph_api", ModuleType("langgraph_api"))
    monkeypatch.setattr(studio, "_calls", {})


def set_cors(monkeypatch: pytest.MonkeyPatch, **settings: Any) -> None:
    monkeypatch.setitem(sys.modules, "langgraph_api.config", SimpleNamespace(CORS_CONFIG=settings or None))


@pytest.mark.parametrize(
    ("host", "is_own"),
    [
        ("localhost", True), ("LocalHost:2024", True), ("localhost.:2024", True), ("127.0.0.1:1", True),
        ("[::1]", True), ("127.255.255.254", True), ("", False), ("evil.example", False),
        ("127.0.0.1.evil.example", False),
        ("localhost:80@evil.example", False), ("localhost/evil", False), ("localhost:port", False), ("[::1", False),
        ("0.0.0.0", False), ("192.168.1.2", False), ("localhost, evil.example", False), ("localhost#evil", False),
    ],
)  # fmt: skip
def test_hosts(host: str, is_own: bool) -> None:
    assert is_own_host(host) is is_own


def test_further_hosts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(studio.HOSTS, "box.lan, 10.0.0.5")
    assert is_own_host("BOX.lan:2024")
    assert is_own_host("10.0.0.5")
    assert not is_own_host("evil.example")
    monkeypatch.setenv(studio.HOSTS, "*")
    assert is_own_host("evil.example")


@pytest.mark.parametrize(
    ("settings", "origin", "is_allowed"),
    [
        ({}, "https://smith.langchain.com", True),
        ({}, "https://eu.smith.langchain.com", True),
        ({}, "https://evil.example", False),
        ({}, "null", False),
        ({}, "", False),
        ({}, "http://[::1", False),
        ({}, "http://", False),
        ({}, "http://localhost:5173", True),
        ({}, "http://[::1]:5173", True),
        ({}, "file://localhost", False),
        ({}, "http://localhost:5173/path", False),
        ({"allow_origins": ["*"]}, "https://evil.example", False),
        ({"allow_origins": ["*"]}, "https://smith.langchain.com", True),
        ({"allow_origins": ["https://own.example"]}, "https://own.example", True),
        ({"allow_origins": ["https://own.example"]}, "https://smith.langchain.com", False),
        ({"allow_origin_regex": r"https://[a-z]+\.own\.example"}, "https://a.own.example", True),
        ({"allow_origin_regex": r"https://[a-z]+\.own\.example"}, "https://a.own.example.evil", False),
    ],
)
def test_origins(monkeypatch: pytest.MonkeyPatch, settings: dict[str, Any], origin: str, is_allowed: bool) -> None:
    set_cors(monkeypatch, **settings)
    assert is_allowed_origin(origin) is is_allowed


@pytest.mark.parametrize(
    ("method", "headers", "status"),
    [
        ("POST", {}, None),  # a program, not a browser
        ("POST", {"origin": "https://smith.langchain.com", "sec-fetch-site": "cross-site"}, None),
        ("POST", {"origin": "http://evil.example", "content-type": "text/plain"}, 403),
        ("GET", {"origin": "http://evil.example"}, 403),
        ("OPTIONS", {"origin": "http://evil.example"}, None),  # the CORS middleware refuses it
        ("POST", {"sec-fetch-site": "cross-site"}, 403),
        ("GET", {"sec-fetch-site": "cross-site"}, None),  # a link
        ("POST", {"sec-fetch-site": "same-origin"}, None),
        ("POST", {"content-length": str(MAX_BODY)}, None),
        ("POST", {"content-length": str(MAX_BODY + 1)}, 413),
        ("POST", {"content-length": "-1"}, 413),
        ("POST", {"host": "evil.example"}, 400),
        ("GET", {"host": "evil.example"}, 400),
    ],
)
def test_refusals(method: str, headers: dict[str, str], status: int | None) -> None:
    problem = refusal(method, {"host": "localhost:2024", **headers})
    assert (problem and problem[0]) == status


def ask_guard(scope: dict[str, Any], body: list[bytes] = []) -> tuple[list[Any], list[Any]]:  # noqa: B006
    """What the app behind the guard receives, and what the client is sent."""
    received: list[Any] = []
    sent: list[Any] = []
    messages = [{"type": "http.request", "body": part, "more_body": True} for part in body]

    async def app(scope: Any, receive: Any, send: Any) -> None:
        received.append(scope)
        while (message := await receive())["type"] == "http.request":
            received.append(message)

    async def receive() -> Any:
        return messages.pop(0) if messages else {"type": "http.disconnect"}

    async def send(message: Any) -> None:
        sent.append(message)

    asyncio.run(PageGuard(app)(scope, receive, send))
    return received, sent


def scope_of(*headers: tuple[bytes, bytes], **more: Any) -> dict[str, Any]:
    return {"type": "http", "method": "POST", "headers": [(b"host", b"localhost"), *headers], **more}


def test_the_guard_passes_and_refuses() -> None:
    assert len(ask_guard(scope_of(), [b"a", b"b"])[0]) == 3
    received, sent = ask_guard(scope_of((b"Origin", b"http://evil\x1b[2J.example")))
    assert (received, sent[0]["status"]) == ([], 403)
    assert b"\x1b" not in sent[1]["body"]
    assert ask_guard(scope_of((b"Host", b"evil.example")))[1][0]["status"] == 400  # two Host headers
    assert ask_guard({**scope_of((b"origin", b"null")), "type": "websocket"})[1] == [
        {"type": "websocket.close", "code": 1008}
    ]
    own_client = {"type": "http", "method": "POST", "headers": [(b"host", b"api")], "root_path": "/noauth"}
    assert ask_guard(own_client)[0] == [own_client]
    assert ask_guard({"type": "lifespan"})[0] == [{"type": "lifespan"}]


def test_a_body_that_goes_on_is_cut() -> None:
    received, _ = ask_guard(scope_of(), [b"x" * 2**20] * 17)
    assert sum(len(message["body"]) for message in received[1:]) == MAX_BODY


def test_chromes_question_is_left_to_the_server() -> None:
    header = (b"Access-Control-Request-Private-Network", b"true")
    [scope] = ask_guard(scope_of((b"origin", b"https://smith.langchain.com"), header, method="OPTIONS"))[0]
    assert header not in scope["headers"]
    [scope] = ask_guard(scope_of((b"origin", b"http://evil.example"), header, method="OPTIONS"))[0]
    assert header in scope["headers"]


def call_as(place: str, run: str, times: int) -> None:
    config: Any = {place: {"run_id": run}} if place else {"run_id": run}
    token = var_child_runnable_config.set(config)
    try:
        for _ in range(times):
            count_call()
    finally:
        var_child_runnable_config.reset(token)


@pytest.mark.parametrize("place", ["configurable", "metadata", ""])
def test_calls_of_a_run(served: None, monkeypatch: pytest.MonkeyPatch, place: str) -> None:
    monkeypatch.setenv(studio.CALLS, "3")
    call_as(place, "a", 3)
    call_as(place, "b", 3)
    with pytest.raises(TooManyCalls, match=r"this run made 3 model calls, .*AGENTSYS_STUDIO_CALLS"):
        call_as(place, "a", 1)


def test_runs_are_forgotten(served: None) -> None:
    for number in range(studio.MAX_RUNS + 10):
        call_as("configurable", str(number), 1)
    assert len(studio._calls) == studio.MAX_RUNS


@pytest.mark.parametrize("text", ["0", "-1", "many", "1.5", "9" * 12, "²"])
def test_a_bad_limit_is_one_line(served: None, monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    monkeypatch.setenv(studio.CALLS, text)
    with pytest.raises(ValueError, match=r"AGENTSYS_STUDIO_CALLS=.*: give a number of calls"):
        count_call()


def test_nothing_is_counted_elsewhere(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(studio.CALLS, "1")
    call_as("configurable", "a", 5)


def test_there_is_no_other_attribute() -> None:
    with pytest.raises(AttributeError, match="nothing"):
        _ = studio.nothing
