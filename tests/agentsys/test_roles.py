"""Role: typed values, asking again, keys, seeds, the cache, and models that are not ours."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any

import pytest
from langchain_core.callbacks import AsyncCallbackHandler
from langchain_core.language_models import BaseChatModel, FakeListChatModel, GenericFakeChatModel
from langchain_core.messages import AIMessage, BaseMessage
from langchain_core.outputs import ChatGeneration, ChatResult
from langchain_core.runnables import RunnableLambda
from pydantic import BaseModel, Field

from agentsys.models import ModelError, SpecError
from agentsys.models.cache import RequestCache
from agentsys.models.chat import EndpointChatModel
from agentsys.models.endpoint import Endpoint
from agentsys.models.engines import RemoteEngine
from agentsys.models.scripted import ScriptedChatModel
from agentsys.models.wire import Reply
from agentsys.prompt import Prompt, PromptError
from agentsys.recorder import DuplicateKey, Recorder, Stopped, current
from agentsys.roles import ATTEMPTS, Role, RoleError, load_prompt
from agentsys.systems import System, ask
from tests.support.servers import Answer, FakeServer


class Verdict(BaseModel):
    """What the judge says."""

    reason: str
    score: Annotated[int, Field(ge=0, le=100)]


GREETER: Role[str] = Role(Prompt.parse("# system\nBe kind.\n# user\nGreet {{ name }}", "greeter"))
JUDGE: Role[Verdict] = Role(Prompt.parse("# user\nJudge {{ text }}", "judge"), Verdict)
GOOD = '{"reason": "smooth", "score": 88}'


class Script:
    """Replies one after another, and remembers what was asked."""

    def __init__(self, *replies: str) -> None:
        self.replies = list(replies)
        self.asked: list[list[tuple[str, Any]]] = []
        self.calls: list[dict[str, Any]] = []

    def __call__(self, messages: Sequence[Mapping[str, Any]], call: dict[str, Any]) -> str:
        self.asked.append([(message["role"], message["content"]) for message in messages])
        self.calls.append(call)
        return self.replies[min(len(self.asked), len(self.replies)) - 1]


def scripted(*replies: str, **settings: Any) -> tuple[ScriptedChatModel, Script]:
    script = Script(*replies)
    return ScriptedChatModel(respond=script, **settings), script


class CutOff(ScriptedChatModel):
    """Every reply ends at the token limit."""

    async def complete(self, messages: Sequence[Mapping[str, Any]], **kwargs: Any) -> Reply:
        reply = await super().complete(messages, **kwargs)
        reply.finish = "length"
        return reply


@contextmanager
def recording(record: str = "r1", cache: RequestCache | None = None) -> Iterator[Recorder]:
    recorder = Recorder(record, cache)
    token = current.set(recorder)
    try:
        yield recorder
    finally:
        current.reset(token)


@pytest.fixture
def cache(tmp_path: Path) -> Iterator[RequestCache]:
    opened = RequestCache(tmp_path / "requests.sqlite")
    yield opened
    opened.close()


# Values


async def test_a_text() -> None:
    model, script = scripted("  Hello Ada!\n")
    answer = await GREETER.answer(model, key="greet", name="Ada")
    assert answer.value == "Hello Ada!"
    assert answer.call.text == "  Hello Ada!\n"
    assert script.asked == [[("system", "Be kind."), ("user", "Greet Ada")]]
    assert script.calls[0]["role"] == answer.call.role == "greeter"
    assert answer.call.prompt_sha256 == GREETER.text.sha256
    assert (answer.call.mode, answer.call.schema_sha256, answer.call.error) == ("chat", None, None)


@pytest.mark.parametrize(
    "reply",
    [
        GOOD,
        f"\n  {GOOD}\n",
        f"```json\n{GOOD}\n```",
        f"```\n{GOOD}\n```",
        f"Here it is:\n```json\n{GOOD}\n```\nI hope it helps.",
        '{"reason": "quotes ```code``` in it", "score": 88}',
    ],
    ids=["bare", "space", "fenced", "no language", "talk around", "fence in a string"],
)
async def test_a_model_of_pydantic(reply: str) -> None:
    model, script = scripted(reply)
    verdict = await JUDGE(model, key="judge", text="it")
    assert (type(verdict), verdict.score) == (Verdict, 88)
    assert len(script.asked) == 1


@pytest.mark.parametrize(
    ("reply", "complaint"),
    [
        ("I like it.", "JSON: Invalid JSON"),
        ('{"reason": "half', "JSON: Invalid JSON"),
        ('{"score": 50}', "reason: Field required"),
        ('{"reason": "", "score": "many"}', "score: Input should be a valid integer"),
        ('{"reason": "", "score": 101}', "score: Input should be less than or equal to 100"),
        ('{"reason": "", "score": -1}', "score: Input should be greater than or equal to 0"),
        ("[]", "JSON: Input should be"),
        ("  \n", "empty"),
    ],
)
async def test_a_reply_that_cannot_be_used_is_asked_for_again(reply: str, complaint: str) -> None:
    model, script = scripted(reply, GOOD)
    with recording() as recorder:
        verdict = await JUDGE(model, key="judge/1", text="it")
    assert verdict.score == 88
    first, second = script.asked
    assert second[: len(first)] == first
    (kind, repeated), (last, request) = second[len(first) :]
    assert (kind, repeated.strip()) == ("assistant", reply.strip())
    assert last == "user"
    assert complaint in request
    assert [call.key for call in recorder.calls] == ["judge/1", "judge/1#1"]
    assert complaint in recorder.calls[0].error
    assert recorder.calls[1].error is None


async def test_an_empty_reply_is_shown_as_empty() -> None:
    model, script = scripted("", "Hello")
    assert await GREETER(model, key="greet", name="Ada") == "Hello"
    assert script.asked[1][2] == ("assistant", "(empty)")


async def test_attempts_are_bounded() -> None:
    model, script = scripted("no JSON")
    with recording() as recorder, pytest.raises(RoleError, match=r"judge \(judge/1\): no usable reply in 3 attempts"):
        await JUDGE(model, key="judge/1", text="it")
    assert len(script.asked) == ATTEMPTS == 3
    assert [call.key for call in recorder.calls] == ["judge/1", "judge/1#1", "judge/1#2"]
    assert all(call.error for call in recorder.calls)
    assert len(script.asked[2]) == 3  # the prompt and the last failure: failures do not pile up


async def test_one_attempt_is_not_called_attempts() -> None:
    with pytest.raises(RoleError, match=r"judge \(it\): no usable reply in 1 attempt: not the JSON"):
        await replace(JUDGE, attempts=1)(scripted("no JSON")[0], key="it", text="it")


async def test_an_endlessly_long_reply_is_not_repeated_whole() -> None:
    model, script = scripted("again and " * 5000, GOOD)
    await JUDGE(model, key="judge", text="it")
    assert len(script.asked[1][1][1]) < 3000


async def test_a_reply_that_was_cut_off_is_not_used() -> None:
    """Nor shown: an endless one would go on in the next."""
    script = Script(GOOD)
    with pytest.raises(RoleError, match="cut off at the limit of 4 tokens"):
        await JUDGE(CutOff(respond=script), key="judge", text="it")
    assert [role for role, _ in script.asked[1]] == [role for role, _ in script.asked[0]]
    assert "cut off" in script.asked[1][-1][1] and GOOD not in script.asked[1][-1][1]


async def test_a_role_may_take_what_was_cut_off() -> None:
    role: Role[str] = Role(GREETER.prompt, allow_truncated=True)
    assert await role(CutOff(respond=Script("Hello, dear")), key="greet", name="Ada") == "Hello, dear"


async def test_a_role_may_check_the_value_against_its_inputs() -> None:
    def check(value: str, inputs: Mapping[str, Any]) -> str | None:
        return None if inputs["name"] in value else f"it does not name {inputs['name']}"

    role: Role[str] = Role(GREETER.prompt, check=check)
    model, script = scripted("Hello", "Hello Ada")
    assert await role(model, key="greet", name="Ada") == "Hello Ada"
    assert "it does not name Ada" in script.asked[1][-1][1]
    with pytest.raises(RoleError, match="it does not name Bob"):
        await role(model, key="greet", name="Bob")


class Ear(AsyncCallbackHandler):
    """Hears of every call of a chat model."""

    def __init__(self) -> None:
        self.heard: list[str] = []

    async def on_chat_model_start(self, serialized: Any, messages: Any, **kwargs: Any) -> None:
        self.heard.append(messages[0][-1].content)


async def test_callbacks_hear_of_a_roles_calls_and_change_nothing() -> None:
    async def work(name: str) -> Any:
        with recording() as recorder:
            await GREETER(scripted("Hello")[0], key="greet", name=name)
        return recorder.calls[0]

    ear = Ear()
    watched = await RunnableLambda(work).ainvoke("Ada", {"callbacks": [ear]})
    assert ear.heard == ["Greet Ada"]
    assert await RunnableLambda(work).ainvoke("Ada") == watched
    assert ear.heard == ["Greet Ada"]


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
    assert len(script.asked) == 3


async def test_without_a_recorder_keys_are_free_and_there_is_no_seed() -> None:
    model, script = scripted("Hello")
    for _ in range(2):
        answer = await GREETER.answer(model, key="greet", name="Ada")
        assert answer.call.seed is None
    assert [call["seed"] for call in script.calls] == [None, None]


async def seeds(record: str, keys: list[str], **settings: Any) -> dict[str, int]:
    model, script = scripted("Hello", **settings)
    with recording(record):
        await asyncio.gather(*(GREETER(model, key=key, name="Ada") for key in keys))
    return {call["key"]: call["seed"] for call in script.calls}


async def test_a_seed_depends_on_what_is_asked_and_not_on_when() -> None:
    forward = await seeds("r1", ["a", "b", "c"])
    assert await seeds("r1", ["c", "b", "a"]) == forward
    others = await seeds("r2", ["a", "b", "c"])
    hotter = await seeds("r1", ["a", "b", "c"], sampling={"temperature": 0.9})
    revised = await seeds("r1", ["a", "b", "c"], revision="2")
    every = [seed for found in (forward, others, hotter, revised) for seed in found.values()]
    assert len(set(every)) == 12
    assert all(0 <= seed < 2**31 for seed in every)


async def test_a_seed_of_the_model_spec_is_kept() -> None:
    assert await seeds("r1", ["a", "b"], sampling={"seed": 4}) == {"a": 4, "b": 4}
    model, _ = scripted("Hello", sampling={"seed": 4})
    with recording() as recorder:
        await GREETER(model, key="a", name="Ada")
    assert recorder.calls[0].seed == recorder.calls[0].sampling["seed"] == 4


async def test_sampling_the_roles_over_ours_and_the_specs_over_both() -> None:
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
    assert script.asked == []


# The cache


async def test_what_is_in_the_cache_is_not_asked(cache: RequestCache) -> None:
    model, script = scripted("no JSON", GOOD)
    with recording("r1", cache) as first:
        await JUDGE(model, key="judge", text="it")
    with recording("r1", cache) as second:
        verdict = await JUDGE(model, key="judge", text="it")
    assert (len(script.asked), verdict.score) == (2, 88)
    assert [call.measured.get("cache_hit") for call in first.calls] == [None, None]
    assert [call.measured.get("cache_hit") for call in second.calls] == [True, True]
    for call, again in zip(first.calls, second.calls, strict=True):
        again.measured = call.measured
        assert call == again
    asked = len(script.asked)
    with recording("r2", cache):
        await JUDGE(model, key="judge", text="it")
    with recording("r1", cache):
        await JUDGE(model, key="judge/2", text="it")
    with recording("r1", cache):
        await JUDGE(model, key="judge", text="that")
    with recording("r1", cache):
        await GREETER(model, key="judge", name="it")
    assert len(script.asked) == asked + 4


async def test_a_call_that_failed_is_not_kept(cache: RequestCache) -> None:
    def fail(messages: Sequence[Mapping[str, Any]], call: dict[str, Any]) -> str:
        raise ModelError("no")

    with recording("r1", cache), pytest.raises(ModelError):
        await GREETER(ScriptedChatModel(respond=fail), key="a", name="Ada")
    assert cache.stats()["entries"] == 0
    model, script = scripted("Hello")
    with recording("r1", cache):
        await GREETER(model, key="a", name="Ada")
    assert len(script.asked) == 1


async def test_a_reply_from_an_engine_comes_back_from_the_cache_as_it_was(
    cache: RequestCache, server: FakeServer
) -> None:
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


# Other people's models


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
    """Another integration with structured output of its own."""

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


@pytest.mark.parametrize("said", [{"finish_reason": "length"}, {"stop_reason": "max_tokens"}])
async def test_a_foreign_reply_that_was_cut_off(said: dict[str, str]) -> None:
    model = GenericFakeChatModel(messages=iter([AIMessage("Hel", response_metadata=said)] * 3))
    with pytest.raises(RoleError, match="cut off"):
        await GREETER(model, key="a", name="Ada")


# Making and replacing roles


def test_a_bad_role_fails_when_it_is_made(tmp_path: Path) -> None:
    with pytest.raises(PromptError, match=r"nowhere\.md"):
        Role("drt/nowhere")
    with pytest.raises(PromptError, match=r"missing\.md"):
        Role(str(tmp_path / "missing.md"))
    with pytest.raises(SpecError, match="unknown sampling setting 'heat'"):
        Role(GREETER.prompt, sampling={"heat": 1})
    with pytest.raises(SpecError, match="temperature=9"):
        Role(GREETER.prompt, sampling={"temperature": 9})


async def test_an_undefined_variable_is_named() -> None:
    model, script = scripted("Hello")
    with pytest.raises(PromptError, match=r"greeter: 'name' is undefined"):
        await GREETER(model, key="a")
    assert script.asked == []


@dataclass(frozen=True)
class Party(System):
    """A system with one role."""

    greeter: Role[str] = GREETER


@dataclass(frozen=True)
class Context:
    """Which model and prompt its role gets."""

    model: str = ""
    greeter_model: str = ""
    greeter_prompt: str = ""


def rules(path: Path, *replies: str) -> str:
    path.write_text(json.dumps({"replies": replies}) + "\n")
    return f"scripted:{path}"


async def test_a_role_is_replaced_by_name(tmp_path: Path) -> None:
    file = tmp_path / "shouter.md"
    file.write_text("# user\nSHOUT AT {{ name }}\n")
    party = Party(greeter=Role(file))
    assert (party.greeter.name, Party().greeter.name) == ("greeter", "greeter")
    context = Context(model=rules(tmp_path / "a.jsonl", "HI"))
    answer = await ask(context, party.greeter, key="a", name="Ada")
    assert answer.call.messages == [{"role": "user", "content": "SHOUT AT Ada"}]
    assert answer.call.role == "greeter"


async def test_the_context_gives_a_role_its_model_and_prompt(tmp_path: Path) -> None:
    general, own = rules(tmp_path / "a.jsonl", "general"), rules(tmp_path / "b.jsonl", "own")
    role = Party().greeter

    async def call(**fields: str) -> Any:
        return (await ask(Context(model=general, **fields), role, key="a", name="Ada")).call

    assert (await call()).text == "general"
    assert (await call(greeter_model=own)).text == "own"
    colder = await call(greeter_model="?temperature=0.1")
    assert (colder.text, colder.sampling["temperature"]) == ("general", 0.1)
    other = await call(greeter_prompt="# user\nWave to {{ name }}")
    assert other.messages[0]["content"] == "Wave to Ada"
    assert other.prompt_sha256 != colder.prompt_sha256
    with pytest.raises(PromptError, match="opens a message"):
        await call(greeter_prompt="Wave to {{ name }}")


def test_shipped_prompts_are_found_by_name() -> None:
    assert load_prompt("drt/advisor").parts[0].role == "system"


def test_a_script_finds_its_reply_by_role_key_and_seed(tmp_path: Path) -> None:
    path = tmp_path / "rules.jsonl"
    lines = [
        {"role": "drt/*", "key": "a/*", "replies": ["one", "two"]},
        {"role": "judge", "replies": ["three"]},
    ]
    path.write_text("\n\n".join(map(json.dumps, lines)))
    model = ScriptedChatModel.from_file(str(path), {})

    def reply(role: str, key: str, seed: int | None) -> str:
        return model.invoke("hi", role=role, key=key, seed=seed).text

    assert [reply("drt/x", "a/1", seed) for seed in (None, 0, 1, 2)] == ["one", "one", "two", "one"]
    assert reply("judge", "b", None) == "three"
    with pytest.raises(ModelError, match="no rule for role other with key b"):
        reply("other", "b", None)


def test_replies_survive_json() -> None:
    reply = Reply("a", "stop", ids=[1], top_logprobs=[[-0.5]], measured={"seconds": 1.0})
    assert Reply(**json.loads(json.dumps({name: getattr(reply, name) for name in Reply.__slots__}))) == reply
