"""Whose fault a server's error is: a retry's, one request's or the run's. The texts are those of real servers."""

from __future__ import annotations

import errno
import json
import os
from typing import Any

import pytest
from aiohttp import ClientConnectorError

from agentsys.models import ModelError
from agentsys.models.access import mask_key
from agentsys.models.endpoint import Endpoint, RetryPolicy
from agentsys.models.errors import EndpointDown, Refused
from agentsys.models.faults import Owner, RequestRefused, error_in_reply, error_of_status
from tests.support.chats import CHAT
from tests.support.servers import Answer, FakeServer, Raw, Seen, Status


def owner_of(status: int, body: Any, *, has_retry_after: bool = False) -> Owner:
    raw = body.encode() if isinstance(body, str) else json.dumps(body).encode()
    return error_of_status(status, raw).owner(has_retry_after=has_retry_after)


def error(message: str, **fields: Any) -> dict[str, Any]:
    return {"error": {"message": message, **fields}}


STATUSES: list[tuple[int, Any, Owner]] = [
    *((status, "", "retry") for status in (204, 408, 425, 429, 500, 502, 503, 504, 529)),
    *((status, "", "run") for status in (301, 307, 401, 402, 403, 404, 405, 410)),
    *((status, "", "request") for status in (400, 409, 413, 415, 422)),
    (429, error("Rate limit reached for requests per minute. Try again in 2s."), "retry"),
    (429, error("You exceeded your current quota.", code="insufficient_quota"), "run"),
    (429, error("You exceeded your current quota, please check your plan and billing details."), "run"),
    (429, error("You exceeded your current quota and billing. Please retry in 36.5s."), "retry"),
    (429, error("Too many requests"), "retry"),
    (400, error("Your credit balance is too low to use this API."), "run"),
    (403, error("Insufficient Balance"), "run"),
    (503, error("Insufficient Balance", code="insufficient_balance"), "run"),
    (400, error("API key not valid. Please pass a valid API key.", status="INVALID_ARGUMENT"), "run"),
    (400, error("Incorrect API key provided: sk-xxxx"), "run"),
    (400, error("The model `nobody/nothing` does not exist."), "run"),
    (400, error("Model Not Exist", code="invalid_request_error"), "run"),
    (422, {"detail": "model nobody not found"}, "run"),
    (403, error("Your input was flagged by moderation."), "request"),
    (400, error("The response was filtered by the content management policy."), "request"),
    (400, error("This model's maximum context length is 300 tokens."), "request"),
    (400, error("response_format is not available for this model"), "request"),
    (500, error("the request exceeds the available context size (4096 tokens)"), "request"),
    (500, error("Jinja: System role not supported"), "request"),
    (500, error("CUDA out of memory"), "retry"),
    (500, "<html>Internal Server Error</html>", "retry"),
    (401, "<html>login</html>", "run"),
    (400, [{"error": {"message": "API key expired. Renew the API key.", "code": 400}}], "run"),
]


@pytest.mark.parametrize(("status", "body", "owner"), STATUSES)
def test_an_error_status(status: int, body: Any, owner: Owner) -> None:
    assert owner_of(status, body) == owner


def test_a_quota_with_retry_after_is_a_rate_limit() -> None:
    body = error("You exceeded your current quota.")
    assert (owner_of(429, body), owner_of(429, body, has_retry_after=True)) == ("run", "retry")


IN_REPLIES: list[tuple[Any, Owner]] = [
    (error("overloaded"), "retry"),
    (error("no"), "retry"),
    ({"error": "overloaded"}, "retry"),
    ({"error": "rate limit exceeded"}, "retry"),
    ([error("overloaded", code=503)], "retry"),
    (error("slow down", code=429), "retry"),
    (error("slow down", code="429"), "retry"),
    (error("slow down", code="rate_limit_exceeded"), "retry"),
    (error("slow down", status="RESOURCE_EXHAUSTED"), "retry"),
    (error("down", type="server_error"), "retry"),
    (error("down", code="internal_error"), "retry"),
    (error("too long", code=400), "request"),
    (error("too long", code="context_length_exceeded"), "request"),
    (error("bad", type="invalid_request_error"), "request"),
    (error("bad", status="INVALID_ARGUMENT"), "request"),
    (error("who are you", code=401), "run"),
    (error("who are you", type="authentication_error"), "run"),
    (error("pay", code=402), "run"),
    (error("pay", code="insufficient_quota"), "run"),
    (error("where", code=404), "run"),
    (error("The model `m` does not exist"), "run"),
    ({"object": "error", "message": "too long", "code": 400}, "request"),
    ({"message": "Invalid API key", "code": 1002}, "run"),
    ({"code": 1302, "msg": "rate limit"}, "retry"),
    ({"base_resp": {"status_code": 1002, "status_msg": "rate limit"}}, "retry"),
    ({"detail": "Not authenticated: invalid api key"}, "run"),
    ({"choices": [{"error": {"code": 502, "message": "upstream"}, "finish_reason": "error"}]}, "retry"),
]


@pytest.mark.parametrize(("body", "owner"), IN_REPLIES)
def test_an_error_in_a_reply_with_status_200(body: Any, owner: Owner) -> None:
    found = error_in_reply(body)
    assert found is not None and found.owner() == owner


@pytest.mark.parametrize(
    "body",
    [
        {"choices": [], "error": None}, {"choices": [], "error": {}}, {"content": "x", "error": ""}, {}, [], None, 3,
        {"data": [], "message": "ok"}, {"tokens": [1]}, {"choices": [{"error": None, "text": "a"}]},
        {"choices": [], "error": {"code": 0, "message": ""}}, {"object": "chat.completion", "message": "x", "code": 1},
    ],
)  # fmt: skip
def test_what_is_no_error(body: Any) -> None:
    assert error_in_reply(body) is None


@pytest.mark.parametrize(
    ("body", "kind", "requests"),
    [
        (error("who", code=401), Refused, 3),
        (error("pay", code="insufficient_quota"), Refused, 3),
        (error("bad", code=400), RequestRefused, 1),
        (error("slow", code=429), ModelError, 3),
        (error("overloaded"), ModelError, 3),
    ],
)
async def test_an_error_in_a_reply_is_treated_by_its_code(
    server: FakeServer, connect, body: Any, kind: type[ModelError], requests: int
) -> None:
    server.plan = lambda seen: Raw(json.dumps(body).encode())
    with pytest.raises(ModelError) as caught:
        await connect(server).ainvoke(CHAT)
    assert type(caught.value) is kind
    assert len(server.seen) == requests


async def test_many_requests_in_flight_end_the_run_at_once(server: FakeServer, connect) -> None:
    import asyncio

    server.plan = lambda seen: Status(401)
    model = connect(server, in_flight=64)
    results = await asyncio.gather(*(model.ainvoke(CHAT) for _ in range(64)), return_exceptions=True)
    assert any(isinstance(result, Refused) for result in results)
    assert not any(type(result) is ModelError for result in results), "no record's own failure"


async def test_a_cooldown_is_shared(server: FakeServer) -> None:
    """After a 429 with Retry-After, requests that come later wait too instead of running into the limit."""
    import asyncio

    times: list[float] = []

    def plan(seen: Seen) -> Any:
        times.append(asyncio.get_running_loop().time())
        return Status(429, retry_after="0.4") if len(times) == 1 else Answer()

    server.plan = plan
    endpoint = Endpoint([server.address], retry=RetryPolicy(attempts=3, first=0.001, longest=1.0))
    body = {"messages": [{"role": "user", "content": "x"}]}
    first = asyncio.create_task(endpoint.post("/v1/chat/completions", body))
    while not times:  # noqa: ASYNC110
        await asyncio.sleep(0.01)
    await asyncio.sleep(0.05)
    await asyncio.gather(first, *(endpoint.post("/v1/chat/completions", body) for _ in range(5)))
    assert len(times) == 7 and min(times[1:]) - times[0] >= 0.35
    await endpoint.aclose()


async def test_our_own_lack_of_files_is_no_fault_of_the_server(
    server: FakeServer, connect, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = connect(server)
    await model.identity()
    session = model.engine.endpoint._loop_state().session

    async def request(*arguments: Any, **options: Any) -> Any:
        raise ClientConnectorError(None, OSError(errno.EMFILE, "Too many open files"))  # type: ignore[arg-type]

    monkeypatch.setattr(session, "request", request)
    with pytest.raises(EndpointDown, match=r"no file descriptor left.*--in-flight"):
        await model.ainvoke(CHAT)


# Keys in messages


@pytest.mark.parametrize("form", ["{}", '"{}"', "Bearer {}", "?key={}&x=1"])
def test_keys_are_masked(monkeypatch: pytest.MonkeyPatch, form: str) -> None:
    for variable in ("AGENTSYS_API_KEY", "AGENTSYS_API_KEY_JUDGE", "AGENTSYS_HEADER_ORG"):
        monkeypatch.setenv(variable, f'se"c/ret {variable}')
        for secret in (os.environ[variable], json.dumps(os.environ[variable])[1:-1]):
            assert "ret" not in mask_key(form.format(secret))


async def test_a_key_across_the_cut_of_a_message_is_masked(
    server: FakeServer, connect, monkeypatch: pytest.MonkeyPatch
) -> None:
    key = "sk-" + "1234567890" * 4
    monkeypatch.setenv("AGENTSYS_API_KEY", key)
    for pad in range(0, 320, 7):
        text = "x" * pad + key
        for behavior in (Raw(text.encode()), Status(500, text=text)):
            server.plan = lambda seen, behavior=behavior: behavior
            with pytest.raises(ModelError) as caught:
                await connect(server).ainvoke(CHAT)
            assert "1234" not in str(caught.value)
