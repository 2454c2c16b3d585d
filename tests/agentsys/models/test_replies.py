"""Replies as real servers write them: text, thought, finish, usage and log-probabilities in their several forms."""

from __future__ import annotations

import asyncio
import json
import tracemalloc
import zlib
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web

from agentsys.models import ModelError
from agentsys.models.chat import reply_from_message
from agentsys.models.endpoint import Endpoint, RetryPolicy
from agentsys.models.fields import LOWEST_LOGPROB
from agentsys.models.reading import EventParser, NotJSON, TooLarge, parse_json
from agentsys.models.wire import BadReply, Reply, Request, load_reply, parse_reply
from agentsys.prompt import Prompt
from agentsys.roles import Role, RoleError
from tests.support.chats import CHAT
from tests.support.servers import FakeServer, Raw, Status

Start = Callable[..., Awaitable[FakeServer]]
REQUEST = Request({"max_tokens": 50, "logprobs": 2}, [])


def chat(message: Any = "fine", finish: Any = "stop", **more: Any) -> dict[str, Any]:
    """A chat completion; a message that is no object is its content."""
    message = message if isinstance(message, dict) else {"role": "assistant", "content": message}
    return {"choices": [{"index": 0, "message": message, "finish_reason": finish}], **more}


def part(kind: str, text: Any) -> dict[str, Any]:
    return {"type": kind, kind: text}


@pytest.mark.parametrize(
    ("body", "text", "reasoning"),
    [
        (chat(error=None), "fine", None),
        (chat(error={}), "fine", None),
        (chat(error=False), "fine", None),
        (chat(error={"code": 0, "message": ""}), "fine", None),
        (chat([part("text", "a"), part("text", "b")]), "ab", None),
        (chat(["a", "b"]), "ab", None),
        (chat(part("text", "a")), "", None),
        (chat({"content": part("text", "a")}), "a", None),
        (chat([{"type": "output_text", "text": "a"}]), "a", None),
        (chat([part("thinking", [part("text", "hm")]), part("text", "a")]), "a", "hm"),
        (chat([part("thinking", "hm"), part("text", "a")]), "a", "hm"),
        (chat([{"type": "reasoning", "summary": [part("text", "hm")]}, part("text", "a")]), "a", "hm"),
        (chat([part("image_url", {"url": "x"}), part("text", "a")]), "a", None),
        (chat({"content": "a", "reasoning_content": "hm"}), "a", "hm"),
        (chat({"content": "a", "reasoning": [part("text", "hm")]}), "a", "hm"),
        (chat({"content": "a", "thinking": "hm"}), "a", "hm"),
        ({"choices": [{"message": {"content": "no index"}, "finish_reason": "stop"}]}, "no index", None),
        (
            {"choices": [{"index": 1, "message": {"content": "b"}}, {"index": 0, "message": {"content": "a"}}]},
            "a",
            None,
        ),
        ({"choices": {"message": {"content": "one object"}}}, "one object", None),
        ({"choices": [{"message": "bare", "finish_reason": "stop"}]}, "bare", None),
        ({"choices": [{"text": "completion", "finish_reason": "stop"}]}, "completion", None),
        (chat({"content": None, "tool_calls": [{"function": {"name": "f"}}]}, "tool_calls"), "", None),
        (chat({"content": None, "refusal": "I will not."}), "I will not.", None),
    ],
)
def test_texts(body: Any, text: str, reasoning: str | None) -> None:
    reply = parse_reply(body, REQUEST)
    assert (reply.text, reply.reasoning) == (text, reasoning)


@pytest.mark.parametrize(
    ("finish", "read"),
    [
        *((word, "stop") for word in ("stop", "STOP", "eos", "eos_token", "end_turn", "stop_sequence", "end-turn")),
        *((word, "length") for word in ("length", "LENGTH", "max_tokens", "MAX_TOKENS", "model_length")),
        *((word, word.lower()) for word in ("content_filter", "SAFETY", "abort", "error", "tool_calls", "other")),
        (None, "stop"),
        ("", "stop"),
        ({"type": "length"}, "length"),
    ],
)  # fmt: skip
def test_finish_reasons(finish: Any, read: str) -> None:
    assert parse_reply(chat(finish=finish), REQUEST).finish == read


def test_a_refusal_is_no_whole_reply() -> None:
    assert parse_reply(chat({"content": None, "refusal": "I will not."}), REQUEST).finish == "refusal"


def test_a_reply_of_the_limit_without_a_reason_is_truncated() -> None:
    assert parse_reply(chat(finish=None, usage={"completion_tokens": 50}), REQUEST).finish == "length"
    assert parse_reply(chat(finish=None, usage={"completion_tokens": 49}), REQUEST).finish == "stop"


@pytest.mark.parametrize("finish", ["content_filter", "ABORT", "error", "model_length", "tool_calls", "SAFETY"])
async def test_only_stop_is_a_whole_reply(server: FakeServer, connect, finish: str) -> None:
    server.plan = lambda seen: Raw(json.dumps(chat(finish=finish)).encode())
    role = Role(Prompt.parse("# user\n{{ text }}", "t"))
    with pytest.raises(RoleError, match=r"ended it early|cut off"):
        await role(connect(server), key="k", text="x")
    assert len(server.seen) == role.attempts


@pytest.mark.parametrize(
    ("usage", "counts"),
    [
        ({"prompt_tokens": 3, "completion_tokens": 4}, (3, 4)),
        ({"prompt_tokens": "3", "completion_tokens": " 4 "}, (3, 4)),
        ({"prompt_tokens": 3.0, "completion_tokens": 4.0}, (3, 4)),
        ({"input_tokens": 3, "output_tokens": 4}, (3, 4)),
        *(({"prompt_tokens": bad, "completion_tokens": bad}, (0, 0)) for bad in (-5, 3.5, 1e300, True, [1], None, "x")),
        *((bad, (0, 0)) for bad in ({}, None, [1], "many", 7)),
    ],
)
def test_usage(usage: Any, counts: tuple[int, int]) -> None:
    reply = parse_reply(chat(usage=usage), REQUEST)
    assert (reply.prompt_tokens, reply.completion_tokens) == counts


def test_cached_tokens_of_any_form() -> None:
    for usage in (
        {"prompt_tokens_details": {"cached_tokens": "7"}},
        {"prompt_cache_hit_tokens": 7},
        {"input_tokens_details": {"cached_tokens": 7.0}},
    ):
        assert parse_reply(chat(usage=usage), REQUEST).cached_tokens == 7
    assert parse_reply(chat(usage={"prompt_tokens_details": [7]}), REQUEST).cached_tokens is None


def logprobs_of(value: str, top: str = "-1.5") -> Reply:
    """The reply of a server that writes these numbers, which need not be JSON."""
    entry = f'{{"token": "a", "logprob": {value}, "top_logprobs": [{{"token": "b", "logprob": {top}}}]}}'
    body = json.dumps(chat())[:-3] + f', "logprobs": {{"content": [{entry}]}}}}]}}'
    return parse_reply(parse_json(body.encode()), REQUEST)


@pytest.mark.parametrize(
    ("value", "read"),
    [
        ("-0.5", [-0.5]),
        ("-Infinity", [LOWEST_LOGPROB]),
        ("-1e400", [LOWEST_LOGPROB]),
        ("-3.4e38", [LOWEST_LOGPROB]),
        ("0", [0]),
        ("1e-7", [1e-7]),
        *((bad, None) for bad in ("NaN", "Infinity", "null", '"x"', "0.5", "true", "[]")),
    ],
)
def test_log_probabilities_are_finite_or_left_out(value: str, read: list[float] | None) -> None:
    reply = logprobs_of(value)
    assert reply.text == "fine"
    if value == "-3.4e38":  # finite: as the server says
        read = [-3.4e38]
    assert reply.logprobs == read
    assert ("left_out" in reply.measured) == (read is None)
    assert (reply.top_logprobs is None) == (read is None)


def test_alternatives_that_are_no_numbers_are_left_out() -> None:
    assert logprobs_of("-0.5", "-Infinity").top_logprobs == [[LOWEST_LOGPROB]]
    reply = logprobs_of("-0.5", "NaN")
    assert (reply.logprobs, reply.top_logprobs, reply.top_tokens) == ([-0.5], None, None)
    assert "left_out" in reply.measured


@pytest.mark.parametrize(
    "body",
    [
        None, [], "x", 3, {}, {"hello": 1}, {"choices": None}, {"choices": []}, {"choices": 3}, {"choices": [None]},
        {"choices": ["x"]}, chat(5), chat([5]), {"choices": [{"message": 5}]}, {"content": 5},
        chat() | {"choices": [{"text": "a", "token_ids": ["x"]}]}, {"choices": [{"text": "a", "token_ids": [-1]}]},
        {"choices": [{"text": "a", "token_ids": [True]}]}, {"choices": [{"text": "a", "logprobs": {"content": [5]}}]},
        {"content": "a", "stop": True, "tokens": "abc"},
    ],
)  # fmt: skip
def test_what_is_no_reply(body: Any) -> None:
    with pytest.raises(BadReply, match="not a reply"):
        parse_reply(body, REQUEST)


@pytest.mark.parametrize(
    ("raw", "value"),
    [
        (b'\xef\xbb\xbf{"a": 1}', {"a": 1}),
        (b' \r\n\n {"a": 1}\n', {"a": 1}),
        (b'{"a": "\\ud83d"}', {"a": "\ufffd"}),
        (b'{"a": "\\ud83d\\ude00"}', {"a": "\U0001f600"}),
        (b'{"a": -Infinity}', {"a": float("-inf")}),
    ],
)
def test_json_as_servers_write_it(raw: bytes, value: Any) -> None:
    assert parse_json(raw) == value


@pytest.mark.parametrize("raw", [b"", b"<html>", b"{", b'{"a": "\xff"}', b"[" * 100_000, b"\x00"])
def test_what_is_no_json(raw: bytes) -> None:
    with pytest.raises(NotJSON):
        parse_json(raw)


@pytest.mark.parametrize(
    "reply",
    [b"", b"x", b"[]", b"3", b"{}", b'{"text": 5, "finish": "stop"}', b'{"text": "a", "finish": "stop", "other": 1}',
     b'{"text": "a", "finish": "stop", "prompt_tokens": "3"}', b'{"text": "a", "finish": "stop", "measured": 1}'],
)  # fmt: skip
def test_a_damaged_reply_in_the_cache_is_a_miss(reply: bytes) -> None:
    assert load_reply(reply) is None


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


class Scripted:
    """A server whose one handler the test writes."""

    def __init__(self, answer: Callable[[web.Request], Awaitable[web.StreamResponse]]) -> None:
        app = web.Application()
        app.router.add_get("/v1/models", self._models)
        app.router.add_post("/v1/chat/completions", answer)
        self.runner = web.AppRunner(app, shutdown_timeout=0.05, access_log=None)
        self.address = ""

    async def _models(self, request: web.Request) -> web.Response:
        return web.json_response({"data": [{"id": "m"}]})

    async def __aenter__(self) -> Scripted:
        await self.runner.setup()
        await web.TCPSite(self.runner, "127.0.0.1", 0).start()
        self.address = "http://{}:{}".format(*self.runner.addresses[0][:2])
        return self

    async def __aexit__(self, *exc: object) -> None:
        await self.runner.cleanup()


def text_answer(text: str, content_type: str) -> Callable[[web.Request], Awaitable[web.StreamResponse]]:
    async def answer(request: web.Request) -> web.StreamResponse:
        return web.Response(text=text, content_type=content_type)

    return answer


@pytest.mark.parametrize("name", [*STREAMS, "whole"])
async def test_a_stream_becomes_one_reply(connect, name: str) -> None:
    if name == "whole":
        answer = text_answer(json.dumps(chat("大厅的钟", usage={"completion_tokens": 6})), "application/json")
    else:
        answer = text_answer(STREAMS[name], "text/event-stream")
    async with Scripted(answer) as server:
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

    async with Scripted(answer) as server:
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
    async with Scripted(BOMBS[name]) as server:
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
    async with Scripted(endless(status, "text/plain", b"no. ")) as server:
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

    async with Scripted(answer) as server:
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


# Lists of models


@pytest.mark.parametrize(
    "listing",
    [
        {"object": "list", "data": [{"id": "m"}]}, [{"id": "m"}], ["m"], {"models": [{"name": "m"}]},
        {"data": ["m"]}, {"data": [{"id": None}, {}, 3, {"id": "m"}]}, {"models": [{"model": "m", "id": 5}]},
        {"data": [{"id": "models/m"}], "error": None},
    ],
)  # fmt: skip
async def test_lists_of_models(tmp_path: Path, connect, listing: Any) -> None:
    async def models(request: web.Request) -> web.Response:
        return web.json_response(listing)

    server = Scripted(text_answer(json.dumps(chat()), "application/json"))
    server._models = models  # type: ignore[method-assign]
    app = web.Application()
    app.router.add_get("/v1/models", models)
    app.router.add_post("/v1/chat/completions", text_answer(json.dumps(chat()), "application/json"))
    server.runner = web.AppRunner(app, access_log=None)
    async with server:
        model = connect(FakeServer(address=server.address))
        name = (await model.identity())["name"]
        assert name.removeprefix("models/") == "m"
        model.engine.model, model.engine._served = "m", None
        assert (await model.identity())["name"] == "m"
        assert (await model.ainvoke(CHAT)).text == "fine"


@pytest.mark.parametrize("listing", ["3", '"x"', "null", "[]", '{"data": "m"}', '{"data": [{}]}', "<html>", "{}"])
async def test_without_a_list_the_spec_names_the_model(connect, listing: str) -> None:
    app = web.Application()
    app.router.add_get("/v1/models", text_answer(listing, "application/json"))
    app.router.add_post("/v1/chat/completions", text_answer(json.dumps(chat()), "application/json"))
    server = Scripted(big_body)
    server.runner = web.AppRunner(app, access_log=None)
    async with server:
        model = connect(FakeServer(address=server.address))
        with pytest.raises(ModelError, match=r"add #NAME|not JSON") as caught:
            await model.ainvoke(CHAT)
        assert "\n" not in str(caught.value)
        model.engine.model = "m"
        assert (await model.ainvoke(CHAT)).text == "fine"


@pytest.mark.parametrize("status", [401, 403, 404, 405, 500])
async def test_a_list_that_is_refused_does_not_matter_if_the_spec_names_the_model(connect, status: int) -> None:
    async def models(request: web.Request) -> web.Response:
        return web.Response(status=status)

    app = web.Application()
    app.router.add_get("/v1/models", models)
    app.router.add_post("/v1/chat/completions", text_answer(json.dumps(chat()), "application/json"))
    server = Scripted(big_body)
    server.runner = web.AppRunner(app, access_log=None)
    async with server:
        model = connect(FakeServer(address=server.address))
        model.engine.model = "m"
        assert (await model.ainvoke(CHAT)).text == "fine"
