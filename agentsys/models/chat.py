"""EndpointChatModel: a LangChain chat model that keeps token ids, log-probabilities and timings.

In token mode it renders the conversation itself and exchanges token ids with the engine; in chat mode it sends
messages. Either way the AIMessage carries the whole Reply in `response_metadata["reply"]`.

The path of a call: `Role` -> `get_reply` -> `complete` -> `Endpoint.post` -> `wire.parse_reply`. Where a LangChain
callback listens, LangChain's `ainvoke` runs between `get_reply` and `complete`.
"""

from __future__ import annotations

import asyncio
import time
from abc import abstractmethod
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import replace
from typing import Any, Protocol, cast

from langchain_core.callbacks import AsyncCallbackManagerForLLMRun, CallbackManagerForLLMRun
from langchain_core.language_models import BaseChatModel, LangSmithParams
from langchain_core.messages import AIMessage, AIMessageChunk, BaseMessage
from langchain_core.messages.ai import UsageMetadata
from langchain_core.outputs import ChatGeneration, ChatGenerationChunk, ChatResult
from pydantic import ConfigDict, Field, PrivateAttr

from agentsys.callbacks import has_callbacks
from agentsys.models import pictures, plain, thinking, tokens, wire
from agentsys.models.attempt import Attempt
from agentsys.models.endpoint import Endpoint
from agentsys.models.errors import CannotContinue, EndpointDown, ModelError, Refused
from agentsys.models.faults import RequestRefused
from agentsys.models.fields import BadReply, read_finish, read_reasoning, read_text
from agentsys.models.sampling import DEFAULTS, check

_ROLES = {"human": "user", "ai": "assistant", "system": "system"}
_CANNOT_CONTINUE = (
    "{}: this server does not return token ids, so a partial answer cannot be continued; "
    "use vLLM, llama.cpp or the embedded engine"
)


class Served(Protocol):
    """A running engine: where requests go, in which dialect, and which model answers."""

    endpoint: Endpoint
    dialect: wire.Dialect
    model: str
    """Model name in requests."""
    name: str
    """Model name in traces."""
    revision: str | None
    tokenizer: tokens.Tokenizer | None
    sees_pictures: bool | None
    """Whether the model takes pictures; None if that is not known."""


class Engine(Protocol):
    """Serves one model; started at the first request."""

    async def serve(self) -> Served:
        """Start the engine if needed and return it. Raises EndpointDown."""
        ...

    records_per_request: float
    """Records that a run should keep in progress per request in flight."""

    @property
    def capacity(self) -> int:
        """Maximum number of requests in flight."""
        ...

    def set_in_flight(self, in_flight: int) -> None:
        """Set the maximum number of requests in flight per address."""
        ...

    async def aclose(self) -> None:
        """Close connections and stop a server that this process started."""
        ...


class AgentChatModel(BaseChatModel):
    """Base class of the chat models in agentsys: LangChain's interface plus identity, sampling and full replies."""

    model_config = ConfigDict(arbitrary_types_allowed=True)

    sampling: dict[str, Any] = Field(default_factory=dict)

    def settings(self, defaults: Mapping[str, Any]) -> dict[str, Any]:
        """Return the sampling settings of a request: DEFAULTS < the role's `defaults` < the model spec's."""
        return {**DEFAULTS, **check(defaults), **self.sampling}

    @property
    def provider(self) -> str:
        """What answers, in telemetry: for a server its dialect, such as `vllm`, once it is started."""
        return self._llm_type

    @abstractmethod
    async def identity(self) -> dict[str, Any]:
        """Return {"name", "revision"} of the model, which identify a call (the address does not). Starts the engine."""

    @abstractmethod
    async def complete(self, messages: Sequence[Mapping[str, Any]], **kwargs: Any) -> wire.Reply:
        """Send messages {"role", "content"} to the engine and return its reply: `ainvoke` without LangChain."""

    async def get_reply(self, messages: Sequence[Mapping[str, Any]], **kwargs: Any) -> wire.Reply:
        """Return the reply to messages: through LangChain where a callback listens, else directly by `complete`.

        Bulk runs have no callbacks, and LangChain's messages, managers and events would double the cost of a call.
        """
        if has_callbacks():
            metadata = {"ls_model_name": (await self.identity())["name"], "agentsys_call": kwargs.get("key", "")}
            request = cast("Any", list(messages))
            return reply_from_message(await self.ainvoke(request, {"metadata": metadata}, **kwargs))
        return await self.complete(messages, **kwargs)

    def _get_ls_params(self, stop: list[str] | None = None, **kwargs: Any) -> LangSmithParams:
        """What LangChain's tracers show of a call."""
        settings = self.settings(kwargs.get("sampling") or {})
        return LangSmithParams(
            ls_provider=self.provider,
            ls_model_type="chat",
            ls_temperature=settings.get("temperature"),
            ls_max_tokens=settings.get("max_tokens"),
        )

    async def _agenerate(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: AsyncCallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> ChatResult:
        reply = await self.complete([_message_to_dict(message) for message in messages], stop=stop, **kwargs)
        name = (await self.identity())["name"]
        message = AIMessage(reply.text, response_metadata=_metadata(reply, name), usage_metadata=_usage(reply))
        return ChatResult(generations=[ChatGeneration(message=message)])

    def _generate(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: CallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> ChatResult:
        """LangChain's synchronous call, for scripts without an event loop."""
        return asyncio.run(self._agenerate(messages, stop, None, **kwargs))

    async def sees_pictures(self) -> bool | None:
        """Whether the model takes pictures; None if that is not known before it is asked. Starts the engine."""
        return None

    async def token_ids(self, text: str) -> list[int] | None:
        """Return the token ids of a plain text, or None if the tokenizer is unavailable."""
        return None

    async def token_texts(self, ids: Sequence[int]) -> list[str] | None:
        """Return the text of each token, or None if the tokenizer is unavailable."""
        return None

    @property
    def records_in_progress(self) -> int | None:
        """How many records a run should keep in progress for this engine; None: slightly more than requests."""
        return None

    def set_in_flight(self, in_flight: int) -> None:
        """Set the maximum number of requests in flight per address."""

    async def aclose(self) -> None:
        """Close connections and stop an engine that this process started."""


class EndpointChatModel(AgentChatModel):
    """A chat model behind an OpenAI-compatible server: vLLM, the embedded llama.cpp, or any other.

    Besides LangChain's arguments, `ainvoke` and `complete` take `schema` (JSON schema that the reply must follow),
    `seed`, `sampling` (defaults for settings that the model spec leaves open) and `continue_ids` (token mode: ids of a
    partial answer, which the reply extends exactly; trailing stop tokens are removed). If the last message is the
    assistant's, the reply continues its text.
    """

    engine: Any
    _dialect: str = PrivateAttr("openai")

    @property
    def _llm_type(self) -> str:
        return "agentsys-endpoint"

    @property
    def provider(self) -> str:
        """See AgentChatModel.provider."""
        return self._dialect

    async def identity(self) -> dict[str, Any]:
        """See AgentChatModel.identity."""
        served = await self.engine.serve()
        self._dialect = served.dialect
        return {"name": served.name, "revision": served.revision}

    async def sees_pictures(self) -> bool | None:
        """See AgentChatModel.sees_pictures."""
        served: Served = await self.engine.serve()
        return served.sees_pictures

    async def token_ids(self, text: str) -> list[int] | None:
        """See AgentChatModel.token_ids."""
        served = await self.engine.serve()
        return await served.tokenizer.encode(text, special=False) if served.tokenizer else None

    async def token_texts(self, ids: Sequence[int]) -> list[str] | None:
        """See AgentChatModel.token_texts."""
        served = await self.engine.serve()
        return [await served.tokenizer.decode([token]) for token in ids] if served.tokenizer else None

    async def _build_request(self, messages: Sequence[Mapping[str, Any]], **kwargs: Any) -> tuple[wire.Request, Served]:
        served: Served = await self.engine.serve()
        sampling = self.settings(kwargs.get("sampling") or {})
        if kwargs.get("seed") is not None:
            sampling.setdefault("seed", kwargs["seed"])
        if kwargs.get("stop"):
            sampling["stop"] = kwargs["stop"]
        chat = [dict(message) for message in messages]
        prefix = await self._take_answer_prefix(served, chat, kwargs.get("continue_ids") or [])
        request = wire.Request(sampling, chat, None, kwargs.get("schema"))
        return await self._with_prompt_ids(request, served, prefix), served

    async def _take_answer_prefix(
        self, served: Served, chat: list[dict[str, Any]], continue_ids: list[int]
    ) -> list[int]:
        """Return the ids that the answer starts with; a final assistant message is removed from `chat` and encoded."""
        if not chat or chat[-1]["role"] != "assistant":
            return continue_ids
        if continue_ids:
            raise ModelError("continue_ids and a final assistant message exclude each other; pass only one of them")
        if served.tokenizer is None:
            raise EndpointDown(_CANNOT_CONTINUE.format(served.name))
        return await served.tokenizer.encode(chat.pop()["content"], special=False)

    async def _with_prompt_ids(self, request: wire.Request, served: Served, continue_ids: list[int]) -> wire.Request:
        """The request in token mode, or unchanged where only the server can render the messages.

        An answer that is continued has no thought: its model has thought already, or should not.
        """
        if served.tokenizer is None:
            if continue_ids:
                raise EndpointDown(_CANNOT_CONTINUE.format(served.name))
            return request
        if any(not isinstance(message["content"], str) for message in request.messages):
            if continue_ids:
                raise CannotContinue(f"{served.name}: an answer can be continued only if all messages are plain text")
            return request
        try:
            rendered = await thinking.render_prompt(served.tokenizer, request, answer_begins=bool(continue_ids))
        except tokens.TemplateRefused as err:
            if continue_ids:
                raise CannotContinue(f"{served.name}: an answer cannot be continued: {err}") from None
            return request
        except plain.NotPlain as err:
            raise ModelError(f"{served.name}: {err}") from None
        while continue_ids and continue_ids[-1] in served.tokenizer.stop_ids:
            continue_ids = continue_ids[:-1]
        return replace(rendered, prompt_ids=[*(rendered.prompt_ids or ()), *continue_ids])

    async def complete(self, messages: Sequence[Mapping[str, Any]], **kwargs: Any) -> wire.Reply:
        """See AgentChatModel.complete. Raises ModelError, EndpointDown."""
        request, served = await self._build_request(messages, **kwargs)
        return await self._request_reply(request, served)

    async def _request_reply(self, request: wire.Request, served: Served) -> wire.Reply:
        """The reply to a request, thought and answer apart."""
        if served.tokenizer is None or not thinking.needs_two_requests(request):
            return await self._send(request, served)
        return await thinking.think_then_answer(
            request, served.dialect, served.tokenizer, lambda part: self._send(part, served)
        )

    async def _send(self, request: wire.Request, served: Served) -> wire.Reply:
        route, body = wire.build_payload(request, served.dialect, served.model, stream=False)
        attempt = Attempt(served.endpoint, served.model, request, body)
        measured: dict[str, Any] = {}
        while True:
            try:
                body = await pictures.fill_body(attempt.body)
                reply: wire.Reply = await served.endpoint.post(
                    route, body, measured, lambda response: wire.parse_reply(response, request)
                )
                break
            except RequestRefused as err:
                _check_pictures(err, request, served)
                attempt.change(err)
        await _finish_reply(reply, request, served, measured, attempt)
        return reply

    async def _astream(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: AsyncCallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> AsyncIterator[ChatGenerationChunk]:
        chat = [_message_to_dict(message) for message in messages]
        request, served = await self._build_request(chat, stop=stop, **kwargs)
        if thinking.needs_two_requests(request):
            yield _last_chunk(await self._request_reply(request, served), served.name, with_text=True)
            return
        route, body = wire.build_payload(request, served.dialect, served.model, stream=True)
        attempt = Attempt(served.endpoint, served.model, request, body)
        measured: dict[str, Any] = {}
        builder = wire.ReplyBuilder(request)
        stream = thinking.AnswerStream(request, served.tokenizer)
        started = time.perf_counter()
        while not builder.has_choice:
            try:
                async for piece in served.endpoint.stream(route, await pictures.fill_body(attempt.body), measured):
                    text = builder.add(piece)
                    measured.setdefault("first_token_seconds", round(time.perf_counter() - started, 4))
                    if answer := stream.add(text):
                        yield ChatGenerationChunk(message=AIMessageChunk(content=answer))
                break
            except RequestRefused as err:
                if builder.has_choice:
                    raise
                _check_pictures(err, request, served)
                attempt.change(err)
            except BadReply as err:
                raise ModelError(f"{measured['address']}{route}: {err}") from None
        measured["seconds"] = round(time.perf_counter() - started, 4)
        if not builder.finished:
            raise ModelError(f"{measured['address']}{route}: the stream ended before the reply was finished")
        reply = builder.build()
        await _finish_reply(reply, request, served, measured, attempt)
        if answer := stream.rest(reply.text):
            yield ChatGenerationChunk(message=AIMessageChunk(content=answer))
        yield _last_chunk(reply, served.name)

    @property
    def records_in_progress(self) -> int | None:
        """See AgentChatModel.records_in_progress."""
        engine: Engine = self.engine
        return round(engine.capacity * engine.records_per_request)

    def set_in_flight(self, in_flight: int) -> None:
        """Set the maximum number of requests in flight per address."""
        self.engine.set_in_flight(in_flight)

    async def aclose(self) -> None:
        """Close connections and stop an engine that this process started."""
        await self.engine.aclose()


def _check_pictures(refusal: RequestRefused, request: wire.Request, served: Served) -> None:
    """Raise Refused if the server says that its model takes no pictures."""
    if pictures.NO_PICTURES.search(refusal.error.words) and pictures.has_pictures(request.messages):
        raise Refused(f"{pictures.text_only(served.name)}: {refusal.error.text}") from None


def _message_to_dict(message: BaseMessage) -> dict[str, Any]:
    role = _ROLES.get(message.type.removesuffix("MessageChunk").lower())
    if role is None:
        raise ModelError(f"messages of type '{message.type}' cannot be sent; use {', '.join(_ROLES)}")
    return {"role": role, "content": message.content}


def _last_chunk(reply: wire.Reply, model: str, *, with_text: bool = False) -> ChatGenerationChunk:
    text = reply.text if with_text else ""
    message = AIMessageChunk(content=text, response_metadata=_metadata(reply, model), usage_metadata=_usage(reply))
    return ChatGenerationChunk(message=message)


def _metadata(reply: wire.Reply, model: str) -> dict[str, Any]:
    """The reply for roles; the model's name and the finish reason under the names that LangChain's handlers read."""
    return {"reply": reply, "model_name": model, "finish_reason": reply.finish}


async def _finish_reply(
    reply: wire.Reply, request: wire.Request, served: Served, measured: dict[str, Any], attempt: Attempt
) -> None:
    """Separate the thought, and set the fields that the wire format does not carry: `stop_ids`, `sent`, `measured`."""
    if reply.ids and served.tokenizer and reply.finish == "stop":
        reply.stop_ids = int(reply.ids[-1] in served.tokenizer.stop_ids)
    await thinking.split_reply(reply, request.messages, request.opened, served.tokenizer)
    if reply.cached_tokens is not None:
        measured["cached_tokens"] = reply.cached_tokens
    if left_out := reply.measured.get("left_out"):
        served.endpoint.say(f"left out of replies: {left_out}")
    measured |= reply.measured
    reply.sent = attempt.sent()
    if request.is_merged:
        reply.sent = {**(reply.sent or {}), "messages": request.messages}
    reply.measured = measured


def _usage(reply: wire.Reply) -> UsageMetadata:
    usage = UsageMetadata(
        input_tokens=reply.prompt_tokens,
        output_tokens=reply.completion_tokens,
        total_tokens=reply.prompt_tokens + reply.completion_tokens,
    )
    if reply.cached_tokens is not None:
        usage["input_token_details"] = {"cache_read": reply.cached_tokens}
    return usage


def reply_from_message(message: AIMessage) -> wire.Reply:
    """Return the reply that an AIMessage carries; for another integration's message, what LangChain keeps of it."""
    reply = message.response_metadata.get("reply")
    if isinstance(reply, wire.Reply):
        return reply
    usage: Mapping[str, Any] = message.usage_metadata or {}
    metadata = message.response_metadata
    finish = read_finish(metadata.get("finish_reason") or metadata.get("stop_reason") or metadata.get("done_reason"))
    return wire.Reply(
        text=str(message.text),
        finish=finish or "stop",
        prompt_tokens=usage.get("input_tokens", 0),
        completion_tokens=usage.get("output_tokens", 0),
        reasoning=read_reasoning(message.additional_kwargs) or _content_thought(message.content) or None,
    )


def _content_thought(content: Any) -> str:
    """The thought among the parts of a message's content."""
    try:
        return read_text(content)[1]
    except BadReply:  # parts of another kind
        return ""
