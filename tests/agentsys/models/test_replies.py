"""Replies as real servers write them: text, thought, finish, usage and log-probabilities in their several forms."""

from __future__ import annotations

import json
import math
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from agentsys.models import ModelError
from agentsys.models.fields import LOWEST_LOGPROB
from agentsys.models.reading import NotJSON, parse_json
from agentsys.models.wire import BadReply, Reply, Request, load_reply, parse_reply
from agentsys.prompt import Prompt
from agentsys.roles import Role, RoleError
from tests.support.chats import CHAT
from tests.support.servers import FakeServer, Raw, ScriptedServer, text_answer

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


# Times


TIMES = {"prompt_ms": 1500, "predicted_ms": 250.04}


@pytest.mark.parametrize(
    "body",
    [
        {"content": "Hi", "stop": True, "tokens": [1], "timings": TIMES},
        {"choices": [{"message": {"content": "Hi"}, "finish_reason": "stop"}], "timings": TIMES},
    ],
)
def test_the_engine_s_own_times_are_measured(body: dict[str, Any]) -> None:
    reply = parse_reply(body, Request({}, []))
    assert reply.measured == {"prompt_seconds": 1.5, "generation_seconds": 0.25}


@pytest.mark.parametrize(
    "timings", [None, [], "1", {}, {"prompt_ms": 1}, TIMES | {"prompt_ms": -1}, TIMES | {"prompt_ms": math.nan},
                TIMES | {"predicted_ms": "1"}, TIMES | {"predicted_ms": math.inf}],
)  # fmt: skip
def test_unusable_times_are_left_out(timings: Any) -> None:
    reply = parse_reply({"content": "Hi", "stop": True, "timings": timings}, Request({}, []))
    assert (reply.text, reply.measured) == ("Hi", {})


# Lists of models


@pytest.mark.parametrize(
    "listing",
    [
        {"object": "list", "data": [{"id": "m"}]}, [{"id": "m"}], ["m"], {"models": [{"name": "m"}]},
        {"data": ["m"]}, {"data": [{"id": None}, {}, 3, {"id": "m"}]}, {"models": [{"model": "m", "id": 5}]},
        {"data": [{"id": "models/m"}], "error": None},
    ],
)  # fmt: skip
async def test_lists_of_models(connect, listing: Any) -> None:
    async with ScriptedServer(text_answer(json.dumps(chat())), text_answer(json.dumps(listing))) as server:
        model = connect(FakeServer(address=server.address))
        name = (await model.identity())["name"]
        assert name.removeprefix("models/") == "m"
        model.engine.model, model.engine._served = "m", None
        assert (await model.identity())["name"] == "m"
        assert (await model.ainvoke(CHAT)).text == "fine"


@pytest.mark.parametrize("listing", ["3", '"x"', "null", "[]", '{"data": "m"}', '{"data": [{}]}', "<html>", "{}"])
async def test_without_a_list_the_spec_names_the_model(connect, listing: str) -> None:
    async with ScriptedServer(text_answer(json.dumps(chat())), text_answer(listing)) as server:
        model = connect(FakeServer(address=server.address))
        with pytest.raises(ModelError, match=r"add #NAME|not JSON") as caught:
            await model.ainvoke(CHAT)
        assert "\n" not in str(caught.value)
        model.engine.model = "m"
        assert (await model.ainvoke(CHAT)).text == "fine"


@pytest.mark.parametrize("status", [401, 403, 404, 405, 500])
async def test_a_list_that_is_refused_does_not_matter_if_the_spec_names_the_model(connect, status: int) -> None:
    async with ScriptedServer(text_answer(json.dumps(chat())), text_answer("", status=status)) as server:
        model = connect(FakeServer(address=server.address))
        model.engine.model = "m"
        assert (await model.ainvoke(CHAT)).text == "fine"
