"""Models of other LangChain integrations: what is sent, what the trace says, structured replies, limits, errors."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from langchain_core.exceptions import OutputParserException
from langchain_core.language_models import BaseChatModel, FakeListChatModel
from langchain_core.messages import AIMessage
from langchain_core.outputs import ChatGeneration, ChatResult
from langchain_core.runnables import RunnableLambda
from pydantic import BaseModel, Field

from agentsys.models import ModelError, foreign
from agentsys.models.errors import EndpointDown
from agentsys.models.foreign import call_arguments, set_foreign_in_flight
from agentsys.prompt import Prompt
from agentsys.recorder import Recorder, current
from agentsys.roles import Role

SAMPLING = {"temperature": 0.0, "max_tokens": 77, "top_k": 5}
PROMPT = Prompt.parse("# user\n{{ text }}", "judge")


class Spy(BaseChatModel):
    """Takes any argument and keeps the last ones."""

    calls: list[dict[str, Any]] = Field(default_factory=list)
    text: str = "ok"
    finish: str = "stop"

    @property
    def _llm_type(self) -> str:
        return "spy"

    def _generate(self, messages: Any, stop: Any = None, run_manager: Any = None, **sent: Any) -> ChatResult:
        own = {name: getattr(self, name) for name in type(self).model_fields if name in foreign._ALL_NAMES}
        self.calls.append({name: value for name, value in own.items() if value is not None} | sent)
        message = AIMessage(self.text, response_metadata={"finish_reason": self.finish})
        return ChatResult(generations=[ChatGeneration(message=message)])


class Provider(Spy):
    """Declares some settings, as integrations do."""

    temperature: float | None = None
    max_output_tokens: int | None = None
    seed: int | None = None


class Strict(Spy):
    """Takes no arguments at all."""

    def _generate(self, messages: Any, stop: Any = None, run_manager: Any = None) -> ChatResult:  # type: ignore[override]
        return super()._generate(messages)


async def ask(model: BaseChatModel, role: Role[Any]) -> Any:
    """The call of a role in a run, where seeds are derived."""
    token = current.set(Recorder("record"))
    try:
        return (await role.answer(model, key="k", text="x")).call
    finally:
        current.reset(token)


async def test_a_class_that_takes_anything_gets_everything() -> None:
    model = Spy()
    call = await ask(model, Role(PROMPT, sampling=SAMPLING))
    assert model.calls == [{**SAMPLING, "seed": call.seed}]
    assert (call.sampling, type(call.seed)) == (SAMPLING, int)


async def test_a_class_gets_what_it_declares_under_its_names(capsys: pytest.CaptureFixture[str]) -> None:
    foreign._said.clear()
    model = Provider()
    for _ in range(2):
        call = await ask(model, Role(PROMPT, sampling=SAMPLING))
    assert model.calls == 2 * [{"temperature": 0.0, "max_output_tokens": 77, "seed": call.seed}]
    assert call.sampling == {"temperature": 0.0, "max_tokens": 77}
    said = capsys.readouterr().err
    assert said.count("\n") == 1 and "Provider cannot be sent top_k: left out" in said


async def test_a_class_without_arguments_gets_none_and_the_trace_claims_none() -> None:
    model = Strict()
    call = await ask(model, Role(PROMPT, sampling=SAMPLING))
    assert (model.calls, call.sampling, call.seed) == ([{}], {}, None)


async def test_the_specs_own_settings_win() -> None:
    model = Provider(temperature=0.9)
    call = await ask(model, Role(PROMPT, sampling=SAMPLING))
    assert model.calls[0]["temperature"] == 0.9 == call.sampling["temperature"]


def test_openai_gets_what_its_client_accepts() -> None:
    openai = pytest.importorskip("langchain_openai")
    model = openai.ChatOpenAI(model="m", api_key="none", top_p=0.5)
    settings = {"temperature": 0.2, "max_tokens": 9, "top_p": 1.0, "top_k": 5, "min_p": 0.1, "seed": 3, "logprobs": 5}
    arguments, sent = call_arguments(model, settings)
    assert arguments == {"temperature": 0.2, "max_tokens": 9, "seed": 3}
    assert sent == {"temperature": 0.2, "max_tokens": 9, "seed": 3, "top_p": 0.5}


@pytest.mark.parametrize(
    "message",
    [
        AIMessage([{"type": "thinking", "thinking": "hm"}, {"type": "text", "text": "Yes."}]),
        AIMessage("Yes.", additional_kwargs={"reasoning_content": "hm"}),
        AIMessage("<think>hm</think>\n\nYes."),
    ],
    ids=["parts", "field", "tags"],
)
async def test_a_thought_is_apart_and_its_setting_is_not_sent(message: AIMessage) -> None:
    class Thinker(Spy):
        thinking: dict[str, Any] | None = None

        def _generate(self, messages: Any, stop: Any = None, run_manager: Any = None, **sent: Any) -> ChatResult:
            super()._generate(messages, stop, run_manager, **sent)
            return ChatResult(generations=[ChatGeneration(message=message)])

    model = Thinker()
    answer = await Role(PROMPT, sampling={"thinking": "off"}).answer(model, key="k", text="x")
    assert (answer.value, answer.call.reasoning) == ("Yes.", "hm")
    assert model.calls == [{}] and answer.call.sampling == {}


class Score(BaseModel):
    """A structured reply."""

    score: int


class Structured(Provider):
    """Replies through its own structured output."""

    replies: list[Any] = Field(default_factory=list)

    def with_structured_output(self, schema: Any, *, include_raw: bool = False, **options: Any) -> Any:
        assert not options

        def answer(messages: Any) -> Any:
            self._generate(messages)
            reply = self.replies.pop(0)
            if isinstance(reply, Exception):
                raise reply
            return {"raw": AIMessage(str(reply)), "parsed": Score(score=3) if reply == 3 else None}

        return RunnableLambda(answer)


def bad_json() -> Exception:
    try:
        Score.model_validate_json("{score}")
    except ValueError as err:
        return err
    raise AssertionError


@pytest.mark.parametrize("bad", ["not JSON", bad_json(), OutputParserException("no", llm_output="{score}")], ids=repr)
async def test_bad_json_is_asked_again_with_the_settings(bad: Any) -> None:
    model = Structured(replies=[bad, 3])
    call = await ask(model, Role(PROMPT, Score, sampling=SAMPLING))
    assert call.key == "k#1" and call.text == '{"score":3}'
    assert [sent["temperature"] for sent in model.calls] == [0.0, 0.0]
    assert call.sampling == {"temperature": 0.0, "max_tokens": 77}


async def test_without_structured_output_the_prompt_asks() -> None:
    model = Spy(text='{"score": 4}')
    call = await ask(model, Role(PROMPT, Score, sampling=SAMPLING))
    assert call.sampling == SAMPLING and model.calls


@pytest.mark.parametrize("finish", ["content_filter", "MAX_TOKENS", "SAFETY"])
async def test_only_whole_replies_count(finish: str) -> None:
    with pytest.raises(ModelError, match=r"ended it early|cut off"):
        await ask(Spy(finish=finish), Role(PROMPT))


async def test_the_limit_of_calls_in_flight_holds() -> None:
    running, most = 0, 0

    class Slow(FakeListChatModel):
        async def _agenerate(self, *arguments: Any, **options: Any) -> ChatResult:
            nonlocal running, most
            running += 1
            most = max(most, running)
            await asyncio.sleep(0.005)
            running -= 1
            return ChatResult(generations=[ChatGeneration(message=AIMessage("ok"))])

    set_foreign_in_flight(3)
    try:
        model, role = Slow(responses=["ok"]), Role(PROMPT)
        await asyncio.gather(*(role(model, key=f"k{i}", text="x") for i in range(20)))
    finally:
        set_foreign_in_flight(foreign.DEFAULT_IN_FLIGHT)
    assert most == 3


class StatusError(Exception):
    """What a client raises for an error status."""

    def __init__(self, status: int, text: str = "no") -> None:
        super().__init__(text)
        self.status_code = status


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (StatusError(401), EndpointDown),
        (StatusError(404), EndpointDown),
        (StatusError(429, "insufficient_quota: billing"), EndpointDown),
        (StatusError(400), ModelError),
        (StatusError(429), ModelError),
        (KeyError("a bug"), KeyError),
    ],
)
async def test_errors_of_clients_have_the_same_owners(error: Exception, kind: type[Exception]) -> None:
    class Failing(Spy):
        def _generate(self, *arguments: Any, **options: Any) -> ChatResult:
            raise error

    with pytest.raises(kind) as caught:
        await ask(Failing(), Role(PROMPT))
    assert (type(caught.value) is not ModelError) == (kind is not ModelError)
