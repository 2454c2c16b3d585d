"""Role: typed values, retries, checks, and how roles are made and replaced."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
from langchain_core.callbacks import AsyncCallbackHandler
from langchain_core.runnables import RunnableLambda

from agentsys.models import ModelError, SpecError
from agentsys.models.scripted import ScriptedChatModel
from agentsys.models.wire import Reply
from agentsys.prompt import PromptError
from agentsys.roles import ATTEMPTS, Role, RoleError, load_prompt
from agentsys.systems import System, ask
from tests.support.roles import GOOD, GREETER, JUDGE, Script, TruncatedChatModel, Verdict, recording, scripted


async def test_text_output() -> None:
    model, script = scripted("  Hello Ada!\n")
    answer = await GREETER.answer(model, key="greet", name="Ada")
    assert answer.value == "Hello Ada!"
    assert answer.call.text == "  Hello Ada!\n"
    assert script.requests == [[("system", "Be kind."), ("user", "Greet Ada")]]
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
async def test_pydantic_output(reply: str) -> None:
    model, script = scripted(reply)
    verdict = await JUDGE(model, key="judge", text="it")
    assert (type(verdict), verdict.score) == (Verdict, 88)
    assert len(script.requests) == 1


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
async def test_an_unusable_reply_is_asked_for_again(reply: str, complaint: str) -> None:
    model, script = scripted(reply, GOOD)
    with recording() as recorder:
        verdict = await JUDGE(model, key="judge/1", text="it")
    assert verdict.score == 88
    first, second = script.requests
    assert second[: len(first)] == first
    (kind, repeated), (last, request) = second[len(first) :]
    assert (kind, repeated.strip()) == ("assistant", reply.strip())
    assert last == "user"
    assert complaint in request
    assert [call.key for call in recorder.calls] == ["judge/1", "judge/1#1"]
    assert complaint in recorder.calls[0].error
    assert recorder.calls[1].error is None


async def test_an_unusable_reply_is_logged_for_debugging(caplog: pytest.LogCaptureFixture) -> None:
    model, _ = scripted("[]", GOOD)
    with caplog.at_level("DEBUG", logger="agentsys.roles"):
        await JUDGE(model, key="judge/1", text="it")
    [message] = caplog.messages
    assert message.startswith("judge (judge/1): the reply is not usable: ") and "JSON: Input should be" in message


async def test_an_empty_reply_is_shown_as_empty() -> None:
    model, script = scripted("", "Hello")
    assert await GREETER(model, key="greet", name="Ada") == "Hello"
    assert script.requests[1][2] == ("assistant", "(empty)")


async def test_attempts_are_bounded() -> None:
    model, script = scripted("no JSON")
    with recording() as recorder, pytest.raises(RoleError, match=r"judge \(judge/1\): no usable reply in 3 attempts"):
        await JUDGE(model, key="judge/1", text="it")
    assert len(script.requests) == ATTEMPTS == 3
    assert [call.key for call in recorder.calls] == ["judge/1", "judge/1#1", "judge/1#2"]
    assert all(call.error for call in recorder.calls)
    assert len(script.requests[2]) == 3  # the prompt and the last failure: earlier failures are not repeated


async def test_one_attempt_is_not_called_attempts() -> None:
    with pytest.raises(RoleError, match=r"judge \(it\): no usable reply in 1 attempt: not the JSON"):
        await replace(JUDGE, attempts=1)(scripted("no JSON")[0], key="it", text="it")


async def test_an_endlessly_long_reply_is_not_repeated_whole() -> None:
    model, script = scripted("again and " * 5000, GOOD)
    await JUDGE(model, key="judge", text="it")
    assert len(script.requests[1][1][1]) < 3000


async def test_a_truncated_reply_is_not_used() -> None:
    """Nor is it shown to the model, which would continue an endless one."""
    script = Script(GOOD)
    with pytest.raises(RoleError, match="cut off at the limit of 4 tokens"):
        await JUDGE(TruncatedChatModel(respond=script), key="judge", text="it")
    assert [role for role, _ in script.requests[1]] == [role for role, _ in script.requests[0]]
    assert "cut off" in script.requests[1][-1][1] and GOOD not in script.requests[1][-1][1]


async def test_a_role_may_allow_truncated_replies() -> None:
    role: Role[str] = Role(GREETER.prompt, allow_truncated=True)
    assert await role(TruncatedChatModel(respond=Script("Hello, dear")), key="greet", name="Ada") == "Hello, dear"


async def test_a_role_may_check_the_value_against_its_inputs() -> None:
    def check(value: str, inputs: Mapping[str, Any]) -> str | None:
        return None if inputs["name"] in value else f"it does not name {inputs['name']}"

    role: Role[str] = Role(GREETER.prompt, check=check)
    model, script = scripted("Hello", "Hello Ada")
    assert await role(model, key="greet", name="Ada") == "Hello Ada"
    assert "it does not name Ada" in script.requests[1][-1][1]
    with pytest.raises(RoleError, match="it does not name Bob"):
        await role(model, key="greet", name="Bob")


class CallbackLog(AsyncCallbackHandler):
    """Records the last message of every call of a chat model."""

    def __init__(self) -> None:
        self.messages: list[str] = []

    async def on_chat_model_start(self, serialized: Any, messages: Any, **kwargs: Any) -> None:
        self.messages.append(messages[0][-1].content)


async def test_callbacks_see_a_roles_calls_and_change_nothing() -> None:
    async def work(name: str) -> Any:
        with recording() as recorder:
            await GREETER(scripted("Hello")[0], key="greet", name=name)
        return recorder.calls[0]

    log = CallbackLog()
    watched = await RunnableLambda(work).ainvoke("Ada", {"callbacks": [log]})
    assert log.messages == ["Greet Ada"]
    assert await RunnableLambda(work).ainvoke("Ada") == watched
    assert log.messages == ["Greet Ada"]


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
    assert script.requests == []


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
