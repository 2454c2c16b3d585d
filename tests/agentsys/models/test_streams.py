"""Streams as real servers send them, and the size of what a server may send."""

from __future__ import annotations

import asyncio
import json
import tracemalloc
import zlib
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
from aiohttp import web

from agentsys.models import ModelError
from agentsys.models.chat import reply_from_message
from agentsys.models.endpoint import Endpoint, RetryPolicy
from agentsys.models.reading import EventParser, TooLarge
from tests.support.chats import CHAT
from tests.support.servers import FakeServer, Raw, ScriptedServer, Status, text_answer


def chat(message: Any = "fine", finish: Any = "stop", **more: Any) -> dict[str, Any]:
    """A chat completion; a message that is no object is its content."""
    message = message if isinstance(message, dict) else {"role": "assistant", "content": message}
    return {"choices": [{"index": 0, "message": message, "finish_reason": finish}], **more}


# Streams

PIECES = [
    {"choices": [{"index": 0, "delta": {"role": "assistant", "content": ""}}]},
    {"choices": [{"index": 0, "delta": {"content": "大厅"}}]},
    {"choices": [{"index": 1, "delta": {"content": "another choice"}}]},
    {"choices": [{"index": 0, "delta": {"content": "的钟"}, "finish_reason": "stop"}]},
    {"choices": [], "usage": {"prompt_tokens": 5, "completion_tokens": 6}},
]
LINES = [json.dumps(piece, ensure_ascii=False) for piece in PIECES]
DONE = "data: [DONE]\n\n"
SPLIT = LINES[1].replace('"delta"', '\n"delta"')
STREAMS = {
    "standard": "".join(f"data: {line}\n\n" for line in LINES) + DONE,
    "no space": "".join(f"data:{line}\n\n" for line in LINES) + "data:[DONE]\n\n",
    "CRLF": "".join(f"data: {line}\r\n\r\n" for line in LINES) + DONE,
    "CR": "".join(f"data: {line}\r\r" for line in LINES) + DONE,
    "comments": ": hello\n\n" + "".join(f": ping\ndata: {line}\n\n: ping\n\n" for line in LINES) + DONE,
    "events": "retry: 5\n\n" + "".join(f"id: 1\nevent: message\ndata: {line}\n\n" for line in LINES) + DONE,
    "several lines": "".join(
        "".join(f"data: {part}\n" for part in line.split("\n")) + "\n" for line in (LINES[0], SPLIT, *LINES[2:])
    )
    + DONE,
    "no blank lines": "".join(f"data: {line}\n" for line in LINES) + DONE,
    "byte order mark": "\ufeff" + "".join(f"data: {line}\n\n" for line in LINES) + DONE,
    "no end": "".join(f"data: {line}\n\n" for line in LINES),
    "no last newline": "\n\n".join(f"data: {line}" for line in LINES),
    "bare JSON lines": "".join(f"{line}\n" for line in LINES),
    "empty pieces": 'data: {"choices": [], "prompt_filter_results": []}\n\n'
    + "".join(f"data: {line}\n\n" for line in LINES) + DONE,
}  # fmt: skip


@pytest.mark.parametrize("name", STREAMS)
@pytest.mark.parametrize("size", [1, 3, 7, 100_000])
def test_streams_in_parts_of_any_size(name: str, size: int) -> None:
    raw = STREAMS[name].encode()
    parser = EventParser()
    events: list[Any] = []
    for i in range(0, len(raw), size):
        events += parser.feed(raw[i : i + size])
    events += parser.end()
    assert [event for event in events if "prompt_filter_results" not in event] == PIECES
    assert parser.done == ("[DONE]" in STREAMS[name])


@pytest.mark.parametrize("name", [*STREAMS, "whole"])
async def test_a_stream_becomes_one_reply(connect, name: str) -> None:
    if name == "whole":
        answer = text_answer(json.dumps(chat("大厅的钟", usage={"completion_tokens": 6})), "application/json")
    else:
        answer = text_answer(STREAMS[name], "text/event-stream")
    async with ScriptedServer(answer) as server:
        chunks = [chunk async for chunk in connect(FakeServer(address=server.address)).astream(CHAT)]
    assert "".join(chunk.text for chunk in chunks) == "大厅的钟"
    [reply] = [chunk.response_metadata["reply"] for chunk in chunks if "reply" in chunk.response_metadata]
    assert (reply.finish, reply.completion_tokens) == ("stop", 6)


@pytest.mark.parametrize(
    "line",
    [
        'data: {"error": {"message": "overloaded", "code": 503}}',
        'event: error\ndata: {"error": {"message": "overloaded"}}',
        'error: {"code": 500, "message": "overloaded"}',
        "error: overloaded",
        'data: {"object": "error", "message": "overloaded", "code": 50}',
    ],
)
@pytest.mark.parametrize("begun", [False, True])
async def test_an_error_in_a_stream(connect, line: str, begun: bool) -> None:
    """Before the first piece it is retried; afterwards the text is out and the call fails."""
    calls = 0

    async def answer(request: web.Request) -> web.StreamResponse:
        nonlocal calls
        calls += 1
        begin = f"data: {LINES[1]}\n\n" if begun else ""
        text = begin + line + "\n\n" if calls == 1 else STREAMS["standard"]
        return web.Response(text=text, content_type="text/event-stream")

    async with ScriptedServer(answer) as server:
        model = connect(FakeServer(address=server.address))
        if begun:
            with pytest.raises(ModelError, match="overloaded"):
                [chunk async for chunk in model.astream(CHAT)]
        else:
            assert "".join([chunk.text async for chunk in model.astream(CHAT)]) == "大厅的钟"


# Size


async def big_body(request: web.Request) -> web.StreamResponse:
    return web.Response(body=b" " * 3_000_000)


def endless(status: int, content_type: str, line: bytes) -> Callable[[web.Request], Awaitable[web.StreamResponse]]:
    async def answer(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse(status=status, headers={"Content-Type": content_type})
        await response.prepare(request)
        while True:
            await response.write(line * 1000)

    return answer


def packed(encoding: str) -> Callable[[web.Request], Awaitable[web.StreamResponse]]:
    """A bomb: 300 MB of spaces."""
    packer = zlib.compressobj(9, zlib.DEFLATED, {"gzip": 31, "deflate": 15, "raw": -15}[encoding])
    body = b"".join(packer.compress(b" " * 1_000_000) for _ in range(300)) + packer.flush()

    async def answer(request: web.Request) -> web.StreamResponse:
        return web.Response(body=body, headers={"Content-Encoding": encoding.replace("raw", "deflate")})

    return answer


BOMBS = {
    "big": big_body,
    "endless": endless(200, "application/json", b" " * 100),
    "endless line of a stream": endless(200, "text/event-stream", b"data: x"),
    "endless stream": endless(200, "text/event-stream", f"data: {LINES[1]}\n\n".encode()),
    "endless comments": endless(200, "text/event-stream", b": ping\n\n"),
    **{encoding: packed(encoding) for encoding in ("gzip", "deflate", "raw")},
}


@pytest.mark.parametrize("name", BOMBS)
@pytest.mark.parametrize("stream", [False, True], ids=["whole", "stream"])
async def test_a_reply_is_bounded(name: str, stream: bool, connect) -> None:
    async with ScriptedServer(BOMBS[name]) as server:
        model = connect(FakeServer(address=server.address), max_bytes=2_000_000, retry=RetryPolicy(attempts=1))
        await model.identity()
        tracemalloc.start()
        with pytest.raises(ModelError, match=r"more than 2,000,000|is not JSON") as caught:
            if stream:
                async for _ in model.astream(CHAT):
                    pass
            else:
                await model.ainvoke(CHAT)
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    assert peak < 100_000_000  # LangChain keeps every piece of a stream
    assert len(str(caught.value)) < 500


@pytest.mark.parametrize("status", [400, 401, 500])
async def test_an_error_body_is_bounded(status: int, connect) -> None:
    async with ScriptedServer(endless(status, "text/plain", b"no. ")) as server:
        model = connect(FakeServer(address=server.address), retry=RetryPolicy(attempts=1))
        with pytest.raises(ModelError, match=rf"status {status}: no\. no\.") as caught:
            await asyncio.wait_for(model.ainvoke(CHAT), 10)
    assert len(str(caught.value)) < 600


@pytest.mark.parametrize("encoding", ["gzip", "deflate"])
async def test_a_packed_reply_is_read(encoding: str, connect) -> None:
    async def answer(request: web.Request) -> web.StreamResponse:
        packer = zlib.compressobj(9, zlib.DEFLATED, 31 if encoding == "gzip" else 15)
        body = packer.compress(json.dumps(chat()).encode()) + packer.flush()
        return web.Response(body=body, headers={"Content-Encoding": encoding, "Content-Type": "application/json"})

    async with ScriptedServer(answer) as server:
        assert (await connect(FakeServer(address=server.address)).ainvoke(CHAT)).text == "fine"


def test_the_default_limit() -> None:
    assert Endpoint(["http://x"]).max_bytes == 64 * 2**20
    with pytest.raises(TooLarge):
        list(EventParser(10).feed(b"x" * 11))


async def test_an_odd_charset_of_an_error_is_no_matter(server: FakeServer, connect) -> None:
    server.queue(Status(503, headers={"Content-Type": "text/plain; charset=hex"}))
    assert (await connect(server).ainvoke(CHAT)).text == "fine"


async def test_what_is_left_out_is_said_once(server: FakeServer, connect, capsys: pytest.CaptureFixture[str]) -> None:
    entry = '{"token": "a", "logprob": NaN}'
    body = json.dumps(chat())[:-3] + f', "logprobs": {{"content": [{entry}]}}}}]}}'
    server.plan = lambda seen: Raw(body.encode())
    model = connect(server)
    for _ in range(2):
        reply = reply_from_message(await model.ainvoke(CHAT))
        assert (reply.logprobs, reply.measured["left_out"]) == (None, "log-probabilities that are no numbers")
    assert capsys.readouterr().err.count("left out of replies") == 1
