"""A role's calls: keys, seeds, the request cache, and models of other libraries."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
from langchain_core.language_models import BaseChatModel, FakeListChatModel, GenericFakeChatModel
from langchain_core.messages import AIMessage, BaseMessage
from langchain_core.outputs import ChatGeneration, ChatResult
from langchain_core.runnables import RunnableLambda

from agentsys.models import ModelError
from agentsys.models.cache import RequestCache
from agentsys.models.chat import EndpointChatModel
from agentsys.models.endpoint import Endpoint
from agentsys.models.engines import RemoteEngine
from agentsys.models.scripted import ScriptedChatModel
from agentsys.recorder import DuplicateKey, Stopped
from agentsys.roles import Role, RoleError
from tests.support.roles import GOOD, GREETER, JUDGE, Verdict, recording, scripted
from tests.support.servers import Answer, FakeServer


@pytest.fixture
def cache(tmp_path: Path) -> Iterator[RequestCache]:
    opened = RequestCache(tmp_path / "requests.sqlite")
    yield opened
    opened.close()


# Keys, identity, seeds


async def test_a_key_used_twice_is_an_error() -> None:
    model, script = scripted("Hello")
    with recording("r7"):
        await GREETER(model, key="greet/0", name="Ada")
        await GREETER(model, key="greet/1", name="Ada")
        with pytest.raises(DuplicateKey, match=r"record r7: the key 'greet/0' is used twice"):
            await GREETER(model, key="greet/0", name="Bob")
    with recording("r8"):
        await GREETER(model, key="greet/0", name="Ada")
    assert len(script.requests) == 3


async def test_without_a_recorder_keys_are_free_and_there_is_no_seed() -> None:
    model, script = scripted("Hello")
    for _ in range(2):
        answer = await GREETER.answer(model, key="greet", name="Ada")
        assert answer.call.seed is None
    assert [call["seed"] for call in script.calls] == [None, None]


async def collect_seeds(record: str, keys: list[str], **settings: Any) -> dict[str, int]:
    model, script = scripted("Hello", **settings)
    with recording(record):
        await asyncio.gather(*(GREETER(model, key=key, name="Ada") for key in keys))
    return {call["key"]: call["seed"] for call in script.calls}


async def test_a_seed_depends_on_the_request_and_not_on_the_order() -> None:
    forward = await collect_seeds("r1", ["a", "b", "c"])
    assert await collect_seeds("r1", ["c", "b", "a"]) == forward
    others = await collect_seeds("r2", ["a", "b", "c"])
    hotter = await collect_seeds("r1", ["a", "b", "c"], sampling={"temperature": 0.9})
    revised = await collect_seeds("r1", ["a", "b", "c"], revision="2")
    all_seeds = [seed for by_key in (forward, others, hotter, revised) for seed in by_key.values()]
    assert len(set(all_seeds)) == 12
    assert all(0 <= seed < 2**31 for seed in all_seeds)


async def test_a_seed_of_the_model_spec_is_kept() -> None:
    assert await collect_seeds("r1", ["a", "b"], sampling={"seed": 4}) == {"a": 4, "b": 4}
    model, _ = scripted("Hello", sampling={"seed": 4})
    with recording() as recorder:
        await GREETER(model, key="a", name="Ada")
    assert recorder.calls[0].seed == recorder.calls[0].sampling["seed"] == 4


async def test_a_roles_sampling_overrides_the_defaults_and_a_specs_overrides_both() -> None:
    role: Role[str] = Role(GREETER.prompt, sampling={"temperature": 0.1, "max_tokens": 50})
    model, _ = scripted("Hello", sampling={"max_tokens": 9})
    call = (await role.answer(model, key="a", name="Ada")).call
    assert call.sampling == {"temperature": 0.1, "top_p": 1.0, "max_tokens": 9}


async def test_a_stopped_run_makes_no_call() -> None:
    model, script = scripted("Hello")
    with recording() as recorder:
        recorder.switch.stop("Ctrl-C")
        with pytest.raises(Stopped):
            await GREETER(model, key="a", name="Ada")
    assert script.requests == []


# The cache


async def test_a_cached_reply_is_not_requested_again(cache: RequestCache) -> None:
    model, script = scripted("no JSON", GOOD)
    with recording("r1", cache) as first:
        await JUDGE(model, key="judge", text="it")
    with recording("r1", cache) as second:
        verdict = await JUDGE(model, key="judge", text="it")
    assert (len(script.requests), verdict.score) == (2, 88)
    assert [call.measured.get("cache_hit") for call in first.calls] == [None, None]
    assert [call.measured.get("cache_hit") for call in second.calls] == [True, True]
    for call, again in zip(first.calls, second.calls, strict=True):
        again.measured = call.measured
        assert call == again
    count = len(script.requests)
    with recording("r2", cache):
        await JUDGE(model, key="judge", text="it")
    with recording("r1", cache):
        await JUDGE(model, key="judge/2", text="it")
    with recording("r1", cache):
        await JUDGE(model, key="judge", text="that")
    with recording("r1", cache):
        await GREETER(model, key="judge", name="it")
    assert len(script.requests) == count + 4


async def test_a_failed_call_is_not_cached(cache: RequestCache) -> None:
    def fail(messages: Sequence[Mapping[str, Any]], call: dict[str, Any]) -> str:
        raise ModelError("no")

    with recording("r1", cache), pytest.raises(ModelError):
        await GREETER(ScriptedChatModel(respond=fail), key="a", name="Ada")
    assert cache.stats()["entries"] == 0
    model, script = scripted("Hello")
    with recording("r1", cache):
        await GREETER(model, key="a", name="Ada")
    assert len(script.requests) == 1


async def test_an_engines_reply_is_unchanged_by_the_cache(cache: RequestCache, server: FakeServer) -> None:
    server.dialect = "llamacpp"
    server.queue(Answer("7", alternatives={"8": -1.0}))
    endpoint = Endpoint([server.address])
    model = EndpointChatModel(engine=RemoteEngine(endpoint), sampling={"logprobs": 2})
    calls = []
    for _ in range(2):
        with recording("r1", cache):
            calls.append((await GREETER.answer(model, key="a", name="Ada")).call)
    await endpoint.aclose()
    first, second = calls
    assert len(server.seen) == 1
    assert (first.mode, len(first.ids), first.top_logprobs[0]) == ("token", 2, [-0.25, -1.0])
    second.measured = first.measured
    assert first == second


# Models of other libraries


async def test_a_foreign_model_writes_text() -> None:
    for model in (FakeListChatModel(responses=["Hello"]), GenericFakeChatModel(messages=iter([AIMessage("Hello")]))):
        with recording() as recorder:
            assert await GREETER(model, key="a", name="Ada") == "Hello"
        call = recorder.calls[0]
        assert (call.model, call.mode, call.ids) == (
            f"{type(model).__module__}.{type(model).__qualname__}",
            "chat",
            None,
        )


async def test_a_foreign_model_without_structured_output_is_read_as_text() -> None:
    model = FakeListChatModel(responses=["hm", f"```json\n{GOOD}\n```"])
    assert (await JUDGE(model, key="a", text="it")).score == 88


class Structured(BaseChatModel):
    """A model of another integration with its own structured output."""

    raw: AIMessage
    parsed: Any

    @property
    def _llm_type(self) -> str:
        return "structured"

    def _generate(self, messages: list[BaseMessage], *args: Any, **kwargs: Any) -> ChatResult:
        return ChatResult(generations=[ChatGeneration(message=self.raw)])

    def with_structured_output(self, schema: Any, *, include_raw: bool = False, **kwargs: Any) -> Any:
        assert include_raw
        return RunnableLambda(lambda messages: {"raw": self.raw, "parsed": self.parsed, "parsing_error": None})


async def test_a_foreign_model_with_structured_output() -> None:
    usage = {"input_tokens": 11, "output_tokens": 5, "total_tokens": 16}
    raw = AIMessage("", usage_metadata=usage, response_metadata={"finish_reason": "stop"})
    model = Structured(raw=raw, parsed=Verdict(reason="ok", score=3))
    answer = await JUDGE.answer(model, key="a", text="it")
    assert answer.value == Verdict(reason="ok", score=3)
    assert (answer.call.prompt_tokens, answer.call.completion_tokens) == (11, 5)


@pytest.mark.parametrize("metadata", [{"finish_reason": "length"}, {"stop_reason": "max_tokens"}])
async def test_a_truncated_foreign_reply(metadata: dict[str, str]) -> None:
    model = GenericFakeChatModel(messages=iter([AIMessage("Hel", response_metadata=metadata)] * 3))
    with pytest.raises(RoleError, match="cut off"):
        await GREETER(model, key="a", name="Ada")
