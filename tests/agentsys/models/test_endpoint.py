"""Endpoints over real HTTP: retries, limits, addresses, models of a server, keys."""

from __future__ import annotations

import asyncio
import contextlib
import email.utils
import random
import socket
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
from langchain_core.messages import HumanMessage

from agentsys.models import EndpointDown, ModelError
from agentsys.models import endpoint as endpoint_module
from agentsys.models.chat import EndpointChatModel, reply_from_message
from agentsys.models.endpoint import RUN_FAULTS, Endpoint, RetryPolicy
from agentsys.models.engines import RemoteEngine
from agentsys.models.errors import Refused
from tests.support.chats import CHAT, QUICK
from tests.support.servers import BROKEN_JSON, EMPTY, REPETITION, Answer, Drop, FakeServer, Hang, Seen, Status

Start = Callable[..., Awaitable[FakeServer]]


# Retries


@pytest.mark.parametrize(
    "fault",
    [
        *(Status(code) for code in (408, 429, 500, 501, 503, 529)),
        Drop(),
        Drop(midway=True),
        Drop(midway=True, status=500),
        BROKEN_JSON,
    ],
    ids=str,
)
async def test_a_temporary_fault_is_retried(mode: FakeServer, connect, fault: Any) -> None:
    mode.queue(fault, fault, Answer("at last"))
    reply = reply_from_message(await connect(mode).ainvoke(CHAT))
    assert reply.text == "at last"
    assert reply.measured["retries"] == 2
    assert mode.bodies[0] == mode.bodies[1] == mode.bodies[2]


async def test_a_failed_request_is_logged_for_debugging(
    server: FakeServer, connect, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AGENTSYS_API_KEY", "sk-very-secret-12345")
    server.queue(Status(500, text="no sk-very-secret-12345"), Answer("at last"))
    with caplog.at_level("DEBUG", logger="agentsys.models.endpoint"):
        await connect(server).ainvoke(CHAT)
    [message] = caplog.messages
    assert message.startswith(f"{server.address}: a request failed: ") and "status 500: no ***" in message


async def test_a_timeout_is_retried(server: FakeServer, connect) -> None:
    server.queue(Hang(), Answer("at last"))
    assert (await connect(server, timeout=0.3).ainvoke(CHAT)).text == "at last"


@pytest.mark.parametrize("fault", [Status(500), Drop(), BROKEN_JSON], ids=str)
async def test_a_permanent_fault_is_an_error_with_the_address(server: FakeServer, connect, fault: Any) -> None:
    server.plan = lambda seen: fault
    with pytest.raises(ModelError, match=r"tried 3 times") as caught:
        await connect(server).ainvoke(CHAT)
    assert server.address in str(caught.value)
    assert "\n" not in str(caught.value)
    assert not isinstance(caught.value, EndpointDown)
    assert len(server.seen) == 3


@pytest.mark.parametrize("code", [400, 409, 413, 422])
async def test_a_client_error_is_not_retried(server: FakeServer, connect, code: int) -> None:
    server.queue(Status(code, text="your fault\nreally"))
    with pytest.raises(ModelError, match=f"status {code}: your fault really") as caught:
        await connect(server).ainvoke(CHAT)
    assert not isinstance(caught.value, EndpointDown)
    assert len(server.seen) == 1


@pytest.mark.parametrize("code", [401, 402, 403, 404, 405, 410])
async def test_a_key_or_route_that_is_refused_ends_the_run_after_a_few_requests(
    server: FakeServer, connect, code: int
) -> None:
    server.plan = lambda seen: Status(code, text="go\naway")
    model = connect(server)
    with pytest.raises(Refused, match=f"status {code}: go away; ") as caught:
        await model.ainvoke(CHAT)
    assert "\n" not in str(caught.value)
    assert len(server.seen) == RUN_FAULTS
    with pytest.raises(Refused):
        await model.ainvoke(CHAT)
    assert len(server.seen) == RUN_FAULTS + 1


@pytest.mark.parametrize("code", [401, 403, 404])
async def test_a_refusal_that_does_not_last_is_retried(server: FakeServer, connect, code: int) -> None:
    server.queue(Status(code), Status(code), Answer("at last"))
    model = connect(server)
    assert (await model.ainvoke(CHAT)).text == "at last"
    server.queue(Status(code), Status(code), Answer("again"))
    assert (await model.ainvoke(CHAT)).text == "again"


async def test_one_request_that_is_forbidden_does_not_end_the_run(server: FakeServer, connect) -> None:
    """A firewall in front of a server may refuse one prompt for good while it accepts all others."""

    def plan(seen: Seen) -> Any:
        return Status(403) if "attack" in str(seen.body) else Answer("fine", delay=0.001)

    server.plan = plan
    model = connect(server, retry=RetryPolicy(attempts=3, first=0.05, longest=0.05))

    async def others() -> None:
        while True:
            await model.ainvoke(CHAT)

    task = asyncio.create_task(others())
    with pytest.raises(ModelError, match=r"status 403.*tried 3 times") as caught:
        await model.ainvoke([HumanMessage("attack")])
    assert not isinstance(caught.value, EndpointDown)
    task.cancel()


@pytest.fixture
def slept(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Delays that the client requested from asyncio.sleep, which returns at once."""
    seconds: list[float] = []
    sleep = asyncio.sleep

    async def instead(delay: float, result: Any = None) -> Any:
        if delay:
            seconds.append(delay)
        return await sleep(0, result)

    monkeypatch.setattr(asyncio, "sleep", instead)
    return seconds


async def wait_after(server: FakeServer, connect, slept: list[float], header: str | None) -> float:
    """Return the seconds that the client waits after a 429 with this Retry-After."""
    server.queue(Status(429, retry_after=header))
    await connect(server, retry=RetryPolicy(attempts=2, first=0.001, longest=2.0)).ainvoke(CHAT)
    (seconds,) = slept
    return seconds


@pytest.mark.parametrize(
    ("header", "minimum", "maximum"),
    [("7", 7, 7.1), ("0.5", 0.5, 0.6), ("100000", 20, 20.1), ("nonsense", 0, 0.1), (None, 0, 0.1), ("-3", 0, 0.1)],
)
async def test_retry_after_is_honored(
    server: FakeServer, connect, slept: list[float], header: str | None, minimum: float, maximum: float
) -> None:
    assert minimum <= await wait_after(server, connect, slept, header) <= maximum


async def test_retry_after_may_be_a_date(
    server: FakeServer, connect, slept: list[float], monkeypatch: pytest.MonkeyPatch
) -> None:
    date = email.utils.formatdate(1_000_011, usegmt=True)
    monkeypatch.setattr(endpoint_module.time, "time", lambda: 1_000_000.0)
    assert 11 <= await wait_after(server, connect, slept, date) <= 11.1


def unused_address() -> str:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return f"http://127.0.0.1:{probe.getsockname()[1]}"


async def test_an_unreachable_server_is_down(connect) -> None:
    address = unused_address()
    with pytest.raises(EndpointDown, match=address):
        await connect(FakeServer(address=address)).ainvoke(CHAT)


async def test_a_server_that_goes_away_is_down(server: FakeServer, connect) -> None:
    model = connect(server)
    await model.ainvoke(CHAT)
    await server.stop()
    with pytest.raises(EndpointDown, match=server.address):
        await model.ainvoke(CHAT)


async def test_one_reachable_server_of_several_is_not_down(server: FakeServer, start_server: Start, connect) -> None:
    server.plan = lambda seen: Status(500)
    model = connect(server, FakeServer(address=unused_address()))
    with pytest.raises(ModelError, match="tried 3 times") as caught:
        await model.ainvoke(CHAT)
    assert not isinstance(caught.value, EndpointDown)


async def test_a_third_of_requests_with_faults_of_every_kind(mode: FakeServer, connect) -> None:
    chance = random.Random(0)
    faults = [Status(500), Status(429, "0"), Drop(), Drop(midway=True), Hang(), EMPTY, BROKEN_JSON, REPETITION]

    def plan(seen: Seen) -> Any:
        return chance.choice(faults) if chance.random() < 0.3 else Answer("good")

    mode.plan = plan
    model = connect(mode, timeout=0.5, retry=RetryPolicy(attempts=8, first=0.001, longest=0.002))
    messages = await asyncio.gather(*(model.ainvoke([HumanMessage(str(i))]) for i in range(60)))
    replies = [reply_from_message(message) for message in messages]
    assert {(reply.text, reply.finish) for reply in replies} <= {
        ("good", "stop"),
        ("", "stop"),
        (REPETITION.text, "length"),
    }
    assert sum(reply.text == "good" for reply in replies) > 40
    assert sum(reply.measured["retries"] for reply in replies) > 5


async def test_the_waits_grow_up_to_the_longest(server: FakeServer, connect, slept: list[float]) -> None:
    random.seed(0)
    server.plan = lambda seen: Status(500)
    model = connect(server, retry=RetryPolicy(attempts=9, first=1.0, longest=30.0))
    runs = []
    for _ in range(30):
        with pytest.raises(ModelError, match="tried 9 times"):
            await model.ainvoke(CHAT)
        runs.append(slept.copy())
        slept.clear()
    assert {len(run) for run in runs} == {8}
    highest = [max(column) for column in zip(*runs, strict=True)]
    assert all(seconds <= min(30.0, 2.0**n) for n, seconds in enumerate(highest, start=1))
    assert highest[0] < highest[2] < highest[4] and highest[-1] > 16
    assert len({run[-1] for run in runs}) == 30  # jitter: clients do not return together


# Limits and addresses


async def test_the_limit_holds_for_all_models_of_an_endpoint(server: FakeServer) -> None:
    server.plan = lambda seen: Answer(delay=0.01)
    endpoint = Endpoint([server.address], in_flight=3, retry=QUICK)
    models = [
        EndpointChatModel(engine=RemoteEngine(endpoint), sampling={"temperature": temperature})
        for temperature in (0.1, 0.5, 0.9)
    ]
    await asyncio.gather(*(models[i % 3].ainvoke(CHAT) for i in range(24)))
    assert (len(server.seen), server.high_water) == (24, 3)
    models[0].set_in_flight(6)
    assert models[1].engine.capacity == 6
    await asyncio.gather(*(models[i % 3].ainvoke(CHAT) for i in range(24)))
    assert server.high_water == 6
    await endpoint.aclose()


async def test_a_pause_waits_for_requests_in_flight_and_holds_others_back(server: FakeServer) -> None:
    server.plan = lambda seen: Answer(delay=0.05)
    endpoint = Endpoint([server.address], in_flight=3, retry=QUICK)
    model = EndpointChatModel(engine=RemoteEngine(endpoint), sampling={})
    running = [asyncio.create_task(model.ainvoke(CHAT)) for _ in range(5)]
    while len(server.seen) < 3:  # noqa: ASYNC110
        await asyncio.sleep(0.005)
    async with endpoint.paused():
        before = len(server.seen)
        assert server._in_flight == 0
        later = [asyncio.create_task(model.ainvoke(CHAT)) for _ in range(2)]
        await asyncio.sleep(0.15)
        assert len(server.seen) == before
    assert [message.text for message in await asyncio.gather(*running, *later)] == ["fine"] * 7
    assert server.high_water == 3
    with contextlib.suppress(TimeoutError):
        server.queue(Hang())
        stuck = asyncio.create_task(model.ainvoke(CHAT))
        await asyncio.sleep(0.05)
        async with asyncio.timeout(0.05), endpoint.paused():
            pytest.fail("a request is in flight")
    stuck.cancel()
    async with asyncio.timeout(30):  # a pause that was given up holds nothing back
        replies = await asyncio.gather(*(model.ainvoke(CHAT) for _ in range(3)))
    assert len(replies) == 3
    await endpoint.aclose()


async def test_streams_count_against_the_limit(server: FakeServer, connect) -> None:
    server.plan = lambda seen: Answer(delay=0.01)
    model = connect(server, in_flight=2)

    async def read() -> None:
        async for _ in model.astream(CHAT):
            pass

    await asyncio.gather(*(read() for _ in range(6)))
    assert server.high_water == 2


async def test_a_cancelled_request_frees_its_slot(server: FakeServer, connect) -> None:
    server.queue(Hang())
    model = connect(server, in_flight=1)
    task = asyncio.create_task(model.ainvoke(CHAT))
    while not server.seen:  # noqa: ASYNC110
        await asyncio.sleep(0.005)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert (await model.ainvoke(CHAT)).text == "fine"


async def test_several_addresses_share_the_load(start_server: Start, connect) -> None:
    servers = [await start_server() for _ in range(3)]
    for server in servers:
        server.plan = lambda seen: Answer(delay=0.3)
    model = connect(*servers, in_flight=4)
    assert model.engine.capacity == 12
    await asyncio.gather(*(model.ainvoke(CHAT) for _ in range(24)))
    assert [server.high_water for server in servers] == [4, 4, 4]
    assert sum(len(server.seen) for server in servers) == 24


async def test_another_address_takes_over(start_server: Start, connect) -> None:
    first, second = await start_server(), await start_server()
    model = connect(first, second)
    await model.ainvoke(CHAT)
    await first.stop()
    replies = [reply_from_message(await model.ainvoke(CHAT)) for _ in range(4)]
    assert {reply.measured["address"] for reply in replies} == {second.address}
    await second.stop()
    with pytest.raises(EndpointDown):
        await model.ainvoke(CHAT)


async def test_a_retry_goes_to_another_address(start_server: Start, connect) -> None:
    bad, good = await start_server(), await start_server()
    bad.plan = lambda seen: Status(500)
    reply = reply_from_message(await connect(bad, good).ainvoke(CHAT))  # of equally busy addresses the first is taken
    assert (reply.measured["address"], reply.measured["retries"]) == (good.address, 1)
    assert (len(bad.seen), len(good.seen)) == (1, 1)


# Models of a server


async def test_a_server_with_several_models_needs_a_name(start_server: Start, connect) -> None:
    server = await start_server(models=("alpha", "beta"))
    model = connect(server)
    with pytest.raises(ModelError, match=r"2 models \(alpha, beta\).*#NAME"):
        await model.ainvoke(CHAT)
    model.engine.model = "gamma"
    with pytest.raises(ModelError, match=r"no model 'gamma'.*alpha, beta"):
        await model.ainvoke(CHAT)
    model.engine.model = "beta"
    await model.ainvoke(CHAT)
    assert server.bodies[0]["model"] == "beta"
    assert await model.identity() == {"name": "beta", "revision": None}


async def test_identity_does_not_contain_the_address(start_server: Start, connect) -> None:
    assert await connect(await start_server()).identity() == await connect(await start_server()).identity()


# Keys


async def test_the_key_goes_into_the_header_and_nowhere_else(
    server: FakeServer, connect, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AGENTSYS_API_KEY", "sk-secret-123")
    model = connect(server)
    message = await model.ainvoke(CHAT)
    assert server.seen[0].headers["Authorization"] == "Bearer sk-secret-123"
    assert "sk-secret" not in repr(message) + repr(server.bodies) + repr(model) + repr(await model.identity())
    for code in (401, 500):
        server.plan = lambda seen, code=code: Status(code, text="bad key: " + seen.headers["Authorization"])
        with pytest.raises(ModelError, match=f"status {code}: bad key") as caught:
            await model.ainvoke(CHAT)
        assert "sk-secret" not in str(caught.value)


async def test_without_a_key_there_is_no_header(server: FakeServer, connect, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("AGENTSYS_API_KEY", raising=False)
    await connect(server).ainvoke(CHAT)
    assert "Authorization" not in server.seen[0].headers


@pytest.mark.parametrize("code", [301, 302, 303, 307, 308])
async def test_redirects_are_not_followed(
    server: FakeServer, start_server: Start, connect, monkeypatch: pytest.MonkeyPatch, code: int
) -> None:
    monkeypatch.setenv("AGENTSYS_API_KEY", "sk-secret-123")
    elsewhere = await start_server()
    server.plan = lambda seen: Status(code, headers={"Location": f"{elsewhere.address}/v1/chat/completions"})
    with pytest.raises(Refused, match=f"status {code}.*it redirects"):
        await connect(server).ainvoke(CHAT)
    assert elsewhere.seen == []


@pytest.mark.parametrize(
    ("header", "line"),
    [
        (
            "99999999",
            "the server asks to wait 99,999,999 s before the next request; 300 s are waited, again at each retry",
        ),
        ("inf", "the server asks to wait inf s before the next request; 300 s are waited, again at each retry"),
        ("Thu, 31 Dec 2999 23:59:59 GMT", "s before the next request; 300 s are waited, again at each retry"),
        ("120", "the server asks to wait 120 s before the next request"),
        ("5", None),
        ("nan", None),
        ("Thu, 31 Dec 99999 23:59:59 GMT", None),
    ],
)
async def test_a_long_retry_after_is_said_once(
    server: FakeServer, connect, slept: list[float], capsys: pytest.CaptureFixture[str], header: str, line: str | None
) -> None:
    server.queue(*[Status(429, retry_after=header)] * 3)
    await connect(server, retry=RetryPolicy(attempts=5)).ainvoke(CHAT)
    assert max(slept) <= 301
    lines = [text for text in capsys.readouterr().err.splitlines() if "asks to wait" in text]
    assert len(lines) == (line is not None)
    assert line is None or lines[0].endswith(line)
