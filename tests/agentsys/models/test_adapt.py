"""Requests that adapt to what a server refuses: once per endpoint, said once, and true in the trace."""

# ruff: noqa: E501  (messages of servers)

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from typing import Any

import pytest
from langchain_core.messages import HumanMessage
from pydantic import BaseModel

from agentsys.models import ModelError
from agentsys.models.adapt import Adaptation, NoChange, merge_system, settings_sent
from agentsys.models.chat import reply_from_message
from agentsys.models.endpoint import Endpoint
from agentsys.models.faults import error_of_status
from agentsys.models.room import PromptTooLong, find_output_limit, find_room
from agentsys.prompt import Prompt
from agentsys.recorder import Recorder, current
from agentsys.roles import Role
from tests.support.chats import CHAT
from tests.support.servers import Answer, FakeServer, Seen, Status

BODY: dict[str, Any] = {
    "model": "m", "temperature": 0.7, "top_p": 1.0, "top_k": 5, "min_p": 0.1, "max_tokens": 1024, "seed": 3, "stop": ["x"],
    "logprobs": True, "top_logprobs": 5, "presence_penalty": 0.5, "frequency_penalty": 0.1, "repetition_penalty": 1.1,
    "stream": True, "stream_options": {"include_usage": True}, "return_token_ids": True,
    "messages": [{"role": "system", "content": "Be kind."}, {"role": "user", "content": "Hi"}],
    "response_format": {"type": "json_schema", "json_schema": {"schema": {}}},
}  # fmt: skip


def learn(
    message: Any, body: dict[str, Any] | None = None, status: int = 400
) -> tuple[Adaptation, int | None, list[str]]:
    """What one refusal teaches, the room of that request, and what is said."""
    adaptation, said = Adaptation(), list[str]()
    raw = message.encode() if isinstance(message, str) else json.dumps(message).encode()
    room = adaptation.learn(error_of_status(status, raw), body or BODY, said.append)
    return adaptation, room, said


@pytest.mark.parametrize(
    "message",
    [
        "Unsupported parameter: 'max_tokens' is not supported with this model. Use 'max_completion_tokens' instead.",
        "max_tokens is deprecated, please use max_completion_tokens",
        {"error": {"message": "Use 'max_completion_tokens'.", "param": "max_tokens", "code": "unsupported_parameter"}},
    ],
)
def test_the_limit_gets_its_other_name(message: Any) -> None:
    adaptation, room, said = learn(message)
    body = adaptation.apply(BODY)
    assert (body["max_completion_tokens"], "max_tokens" in body, room) == (1024, False, None)
    assert len(said) == 1 and "max_completion_tokens" in said[0]


@pytest.mark.parametrize(
    ("message", "names"),
    [
        ("Unsupported parameter: 'top_k'", {"top_k"}),
        ("Unrecognized request argument supplied: top_k", {"top_k"}),
        ("Unknown name \"min_p\": Cannot find field.", {"min_p"}),
        ({"detail": [{"type": "extra_forbidden", "loc": ["body", "min_p"], "msg": "Extra inputs are not permitted"}]},
         {"min_p"}),
        ("[{'type': 'extra_forbidden', 'loc': ('body', 'repetition_penalty'), 'msg': 'Extra inputs are not permitted'}]",
         {"repetition_penalty"}),
        ("Unsupported value: 'temperature' does not support 0.7 with this model. Only the default (1) value is supported.",
         {"temperature"}),
        ({"error": {"message": "This model does not support it", "param": "seed"}}, {"seed"}),
        ("property 'logprobs' is unsupported", {"logprobs", "top_logprobs"}),
        ("You are not allowed to request logprobs from this model", {"logprobs", "top_logprobs"}),
        ("top_logprobs is not supported", {"top_logprobs"}),
        ("`presencePenalty` is not enabled for this model", {"presence_penalty"}),
        ("stream_options is not supported", {"stream_options"}),
        ("got an unexpected keyword argument 'return_token_ids'", {"return_token_ids"}),
        ("`temperature` and `top_p` cannot both be specified for this model. Please use only one.", {"top_p"}),
        ("temperature and top_p cannot be specified together", {"top_p"}),
        ("Parameter `stop` not supported", {"stop"}),
    ],
)  # fmt: skip
def test_a_refused_parameter_is_left_out(message: Any, names: set[str]) -> None:
    adaptation, _, said = learn(message)
    assert BODY.keys() - adaptation.apply(BODY).keys() == names
    assert len(said) == 1 and min(names) in said[0]


@pytest.mark.parametrize(
    "message",
    [
        "This response_format type is unavailable",
        "Invalid parameter: 'response_format' of type 'json_schema' is not supported with this model.",
        "json_schema is not supported",
        "structured outputs are not enabled",
        "Invalid schema for response_format 'reply'",
        "guided decoding backend failed: grammar",
    ],
)
def test_a_refused_schema_becomes_the_json_mode_and_then_the_prompt(message: str) -> None:
    adaptation, _, said = learn(message)
    body = adaptation.apply(BODY)
    assert body["response_format"] == {"type": "json_object"}
    adaptation.learn(error_of_status(400, message.encode()), body, said.append)
    assert "response_format" not in adaptation.apply(BODY)
    assert len(said) == 2


@pytest.mark.parametrize(
    ("message", "status"),
    [
        ("System role not supported", 400),
        ("Jinja exception: System role not supported", 500),
        ("Developer instruction is not enabled for models/gemma-3-27b-it", 400),
        ("Conversation roles must alternate user/assistant/user/assistant/...", 400),
        ("Only user and assistant roles are supported!", 400),
        ("messages[0].role: unknown variant `system`, expected `user` or `assistant`", 422),
        ("Unexpected role 'system'", 400),
        ({"detail": [{"loc": ["body", "messages", 0, "role"], "msg": "Input should be 'user' or 'assistant'"}]}, 422),
        ("system messages are not supported by this model", 400),
    ],
)
def test_a_refused_system_role_joins_the_first_user_message(message: Any, status: int) -> None:
    adaptation, _, said = learn(message, status=status)
    assert adaptation.apply(BODY)["messages"] == [{"role": "user", "content": "Be kind.\n\nHi"}]
    assert len(said) == 1


def test_system_texts_are_merged_in_order_and_images_stay() -> None:
    image = [{"type": "image_url", "image_url": {"url": "x"}}]
    turns = [("system", "a"), ("system", "b"), ("user", image), ("assistant", "c"), ("system", "d"), ("user", "e"), ("system", "f")]  # fmt: skip
    merged = merge_system([{"role": role, "content": content} for role, content in turns])
    assert [(message["role"], message["content"]) for message in merged] == [
        ("user", [{"type": "text", "text": "a\n\nb"}, *image]),
        ("assistant", "c"),
        ("user", "d\n\ne"),
        ("user", "f"),
    ]


ROOM = [
    ("This model's maximum context length is 300 tokens. However, you requested 1124 tokens (100 in the messages, 1024 in "
     "the completion). Please reduce the length.", 200),
    ("'max_tokens' or 'max_completion_tokens' is too large: 1024. This model's maximum context length is 300 tokens and your "
     "request has 100 input tokens (1024 > 300 - 100).", 200),
    ("You passed 100 input tokens and requested 1024 output tokens. However, the model's context length is only 300 tokens.",
     200),
    ("Input validation error: `inputs` tokens + `max_new_tokens` must be <= 300. Given: 100 `inputs` tokens and 1024 "
     "`max_new_tokens`", 200),
    ("input length and `max_tokens` exceed context limit: 195000 + 1024 > 195500, decrease input length", 500),
    ("This endpoint's maximum context length is 1,100 tokens. However, you requested about 1,124 tokens (100 of text input, "
     "1024 in the output).", 1000),
    ("Requested token count exceeds the model's maximum context length of 1100 tokens. You requested a total of 1124 tokens: "
     "100 tokens from the input messages and 1024 tokens for the completion.", 1000),
    ("This model's maximum context length is 1100 tokens, however you requested 1124 tokens.", 1000),
]  # fmt: skip
TOO_LONG = [
    "This model's maximum context length is 300 tokens. However, your messages resulted in 500 tokens.",
    "This model's maximum context length is 300 tokens. However, your request has 500 input tokens.",
    "Prompt contains 500 tokens and 0 draft tokens, too large for model with 300 maximum context length",
    "The input (500 tokens) is longer than the model's context length (300 tokens).",
    {"error": {"message": "the request exceeds the available context size", "n_ctx": 300, "n_prompt_tokens": 500}},
    "input length and `max_tokens` exceed context limit: 500 + 1024 > 300",
]
OUTPUT = [
    ("max_tokens is too large: 1024. This model supports at most 512 completion tokens, whereas you provided 1024.", 512),
    ("Invalid max_tokens value, the valid range of max_tokens is [1, 512]", 512),
    ("Range of max_tokens should be [1, 512]", 512),
    ("max_tokens: 1024 > 512, which is the maximum allowed number of output tokens for this model", 512),
    ("`max_tokens` must be less than or equal to `512`, the maximum value for `max_tokens` is less than the "
     "`context_window` for this model", 512),
    ("max_new_tokens must be <= 512", 512),
    ("max_tokens cannot exceed 512", 512),
]  # fmt: skip


@pytest.mark.parametrize(("message", "room"), ROOM)
def test_the_room_that_a_prompt_leaves(message: str, room: int) -> None:
    adaptation, learned, said = learn(message)
    assert learned == room and adaptation.is_empty, "another prompt leaves another room"
    assert adaptation.apply(BODY, room)["max_tokens"] == room
    assert len(said) == 1


@pytest.mark.parametrize("message", TOO_LONG)
def test_a_prompt_that_is_too_long(message: Any) -> None:
    with pytest.raises(PromptTooLong, match=r"the prompt has 500 tokens, which the context of 300 does not hold"):
        learn(message)


@pytest.mark.parametrize(("message", "limit"), OUTPUT)
def test_the_largest_completion(message: str, limit: int) -> None:
    adaptation, room, said = learn(message)
    assert (adaptation.apply(BODY)["max_tokens"], room) == (limit, None)
    assert adaptation.apply(BODY | {"max_tokens": 20})["max_tokens"] == 20
    assert len(said) == 1


@pytest.mark.parametrize(
    "message",
    ["no", "temperature must be between 0 and 1", "messages: field required", "Invalid image URL", "stop: at most 4 items",
     "maximum context length is 300 tokens", "the model m is not supported", "prompt is required",
     "This model's maximum context length is 3000 tokens. However, you requested 1124 tokens (100 in the messages)."],
)  # fmt: skip
def test_what_cannot_be_changed(message: str) -> None:
    with pytest.raises(NoChange):
        learn(message)


def test_a_number_in_words_is_no_limit() -> None:
    assert find_output_limit("error 512 in max_tokens", 1024) is None
    assert find_room(error_of_status(400, b"request 12 failed after 3 tokens"), 1024) is None


# With a server


def refusing(server: FakeServer, *rules: tuple[Callable[[dict[str, Any]], Any], Any], delay: float = 0.0) -> None:
    """Make a server refuse the bodies that a rule holds for."""

    def plan(seen: Seen) -> Any:
        for applies, answer in rules:
            if applies(seen.body):
                return Status(400, text=answer if isinstance(answer, str) else json.dumps(answer))
        return Answer('{"score": 3}', delay=delay)

    server.plan = plan


PICKY = (
    (lambda body: "max_tokens" in body, "Unsupported parameter: 'max_tokens'. Use 'max_completion_tokens'."),
    (lambda body: "seed" in body, "Unsupported parameter: 'seed'"),
    (
        lambda body: body.get("temperature", 1) != 1,
        "'temperature' does not support 0.2. Only the default (1) is supported.",
    ),
    (lambda body: "response_format" in body, "This response_format type is unavailable"),
    (lambda body: body["messages"][0]["role"] == "system", "System role not supported"),
)


class Score(BaseModel):
    """What the role returns."""

    score: int


ROLE = Role(
    Prompt.parse("# system\nBe kind.\n# user\n{{ text }}", "t"), Score, sampling={"temperature": 0.2, "max_tokens": 50}
)


async def test_the_trace_has_what_was_sent(server: FakeServer, connect, capsys: pytest.CaptureFixture[str]) -> None:
    refusing(server, *PICKY)
    model = connect(server)
    token = current.set(Recorder("record"))
    try:
        answers = [await ROLE.answer(model, key=f"k{i}", text="Hi") for i in range(2)]
    finally:
        current.reset(token)
    assert len(server.seen) == 8, "six refusals, and two replies"
    for answer in answers:
        assert answer.value == Score(score=3)
        assert answer.call.sampling == {"top_p": 1.0, "max_tokens": 50}
        assert answer.call.seed is None
        assert answer.call.messages == [{"role": "user", "content": "Be kind.\n\nHi"}]
        assert answer.call.measured["schema_sent_as"] == "prompt"
    said = capsys.readouterr().err.splitlines()
    assert len(said) == len(set(said)) == 6
    assert all(line.startswith(server.address) for line in said)


async def test_many_first_requests_settle_on_one_adaptation(
    server: FakeServer, connect, capsys: pytest.CaptureFixture[str]
) -> None:
    refusing(server, *PICKY, delay=0.001)
    model = connect(server, in_flight=64)
    answers = await asyncio.gather(*(ROLE.answer(model, key=f"k{i}", text=str(i)) for i in range(100)))
    assert {json.dumps(answer.call.sampling) for answer in answers} == {'{"top_p":1.0,"max_tokens":50}'.replace(":", ": ").replace(",", ", ")}  # fmt: skip
    [adaptation] = model.engine.endpoint.adaptations.values()
    assert adaptation == Adaptation({"max_tokens": "max_completion_tokens"}, {"temperature"}, 2, True)
    said = capsys.readouterr().err.splitlines()
    assert len(said) == len(set(said)) == 5
    count = len(server.seen)
    await asyncio.gather(*(ROLE.answer(model, key=f"k{i}", text=str(i)) for i in range(20)))
    assert len(server.seen) == count + 20


async def test_without_a_refusal_the_trace_has_the_settings_of_the_role(server: FakeServer, connect) -> None:
    server.plan = lambda seen: Answer('{"score": 3}')
    answer = await ROLE.answer(connect(server), key="k", text="Hi")
    assert answer.call.sampling == {"temperature": 0.2, "top_p": 1.0, "max_tokens": 50}
    assert answer.call.messages[0]["role"] == "system"
    assert "schema_sent_as" not in answer.call.measured


async def test_the_room_is_that_of_each_request(server: FakeServer, connect) -> None:
    message = "maximum context length is 300 tokens. However, you requested {} tokens ({} in the messages, {} in the completion)."

    def plan(seen: Seen) -> Any:
        prompt, asked = len(seen.body["messages"][0]["content"]), seen.body["max_tokens"]
        if prompt + asked > 300:
            return Status(400, text=message.format(prompt + asked, prompt, asked))
        return Answer()

    server.plan = plan
    model = connect(server)
    limits = [(await reply_of(model, "x" * length)).sent for length in (100, 250, 10, 250)]
    assert [limit["sampling"]["max_tokens"] for limit in limits if limit] == [200, 50, 290, 50]
    with pytest.raises(ModelError, match=r"/v1/chat/completions: the prompt has 400 tokens, which the context of 300"):
        await reply_of(model, "x" * 400)


async def reply_of(model: Any, text: str) -> Any:
    return reply_from_message(await model.ainvoke([HumanMessage(text)]))


@pytest.mark.parametrize("stream", [False, True])
async def test_streams_adapt_too(server: FakeServer, connect, stream: bool) -> None:
    refusing(server, *PICKY)
    model = connect(server, sampling={"temperature": 0.2})
    if stream:
        chunks = [chunk async for chunk in model.astream(CHAT)]
        [reply] = [chunk.response_metadata["reply"] for chunk in chunks if "reply" in chunk.response_metadata]
    else:
        reply = reply_from_message(await model.ainvoke(CHAT))
    assert reply.sent is not None and "temperature" not in reply.sent["sampling"]


async def test_a_server_that_refuses_everything_is_asked_a_few_times(server: FakeServer, connect) -> None:
    server.plan = lambda seen: Status(400, text="Unsupported parameter: " + " ".join(map(repr, seen.body)))
    with pytest.raises(ModelError, match="status 400"):
        await connect(server, sampling={"top_k": 1, "min_p": 0.1, "stop": ["x"]}).ainvoke(CHAT)
    assert len(server.seen) < 14


async def test_adaptations_belong_to_an_endpoint_and_a_model(server: FakeServer, connect) -> None:
    refusing(server, (lambda body: body["model"] == "picky" and "top_k" in body, "Unsupported parameter: 'top_k'"))
    server.models = ("picky", "plain")
    from agentsys.models.chat import EndpointChatModel
    from agentsys.models.engines import RemoteEngine

    endpoint = Endpoint([server.address])
    for name, sent in (("picky", False), ("plain", True)):
        model = EndpointChatModel(engine=RemoteEngine(endpoint, name), sampling={"top_k": 3})
        await model.ainvoke(CHAT)
        assert ("top_k" in server.bodies[-1]) == sent
    await endpoint.aclose()


def test_settings_of_every_dialect_are_read_back() -> None:
    sampling = {"temperature": 0.0, "repetition_penalty": 1.1, "max_tokens": 5, "logprobs": 3, "seed": 1}
    assert (
        settings_sent(sampling, {"temperature": 0.0, "repeat_penalty": 1.1, "n_predict": 5, "n_probs": 3, "seed": 1})
        == sampling
    )
    config = json.dumps({"do_sample": False, "repetition_penalty": 1.1})
    body = {"generation_config": config, "max_tokens": 5, "seed": 1}
    assert settings_sent(sampling, body) == {name: value for name, value in sampling.items() if name != "logprobs"}
