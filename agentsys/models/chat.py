"""EndpointChatModel: a LangChain chat model that keeps what other clients drop.

In token mode it renders the conversation itself and exchanges token ids with the engine; in chat mode it sends
messages. Either way the reply's AIMessage carries the whole Reply in `response_metadata["reply"]`.
"""

from __future__ import annotations

import asyncio
import time
from abc import abstractmethod
from collections.abc import AsyncIterator, Mapping, Sequence
from typing import Any, Protocol, cast

from langchain_core.callbacks import AsyncCallbackManagerForLLMRun, BaseCallbackManager, CallbackManagerForLLMRun
from langchain_core.language_models import BaseChatModel
from langchain_core.messages import AIMessage, AIMessageChunk, BaseMessage
from langchain_core.messages.ai import UsageMetadata
from langchain_core.outputs import ChatGeneration, ChatGenerationChunk, ChatResult
from langchain_core.runnables.config import var_child_runnable_config
from pydantic import ConfigDict, Field

from agentsys.models import tokens, wire
from agentsys.models.endpoint import Endpoint, without_key
from agentsys.models.errors import EndpointDown, ModelError
from agentsys.models.sampling import DEFAULTS, check

_ROLES = {"human": "user", "ai": "assistant", "system": "system"}
_NO_REPLY = (KeyError, TypeError, IndexError, AttributeError)
"""What reading a server's JSON raises if it is no reply."""

_CANNOT_CONTINUE = (
    "{}: this server tells no token ids, so a begun answer cannot go on; name vLLM, llama.cpp or the embedded engine"
)


class Served(Protocol):
    """A running engine: what a model needs to know of it before the first request."""

    endpoint: Endpoint
    dialect: wire.Dialect
    model: str
    """The name that requests carry."""
    name: str
    """The name that traces carry."""
    revision: str | None
    tokenizer: tokens.Tokenizer | None


class Engine(Protocol):
    """Something that can be brought up and then serves one model."""

    async def serve(self) -> Served:
        """Bring it up if it is not up yet. Raises EndpointDown."""
        ...

    records_per_request: float
    """Records that a run should have under way for each request in flight."""

    @property
    def capacity(self) -> int:
        """Requests that may be in flight at once."""
        ...

    def set_in_flight(self, in_flight: int) -> None:
        """Limit the requests in flight at once, per address."""
        ...

    async def aclose(self) -> None:
        """Stop what was started."""
        ...


class AgentChatModel(BaseChatModel):
    """A chat model of ours: besides what LangChain asks for, it says who it is and how it samples."""

    model_config = ConfigDict(arbitrary_types_allowed=True)

    sampling: dict[str, Any] = Field(default_factory=dict)

    def settings(self, defaults: Mapping[str, Any]) -> dict[str, Any]:
        """The sampling of a request: our defaults, the role's over them, the model spec's over both."""
        return {**DEFAULTS, **check(defaults), **self.sampling}

    @abstractmethod
    async def identity(self) -> dict[str, Any]:
        """{"name", "revision"} of the model: part of a call's identity, unlike the address. Brings the engine up."""

    @abstractmethod
    async def complete(self, messages: Sequence[Mapping[str, Any]], **kwargs: Any) -> wire.Reply:
        """The reply to messages of the form {"role", "content"}: what `ainvoke` does, without LangChain around it."""

    async def reply(self, messages: Sequence[Mapping[str, Any]], **kwargs: Any) -> wire.Reply:
        """The reply to messages: through LangChain if a callback listens, straight to the engine if none does.

        In a bulk run nobody listens, and LangChain's messages, managers and events cost as much as all the rest.
        """
        if callbacks_listen():
            return reply_of(await self.ainvoke(cast("Any", list(messages)), **kwargs))
        return await self.complete(messages, **kwargs)

    async def _agenerate(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: AsyncCallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> ChatResult:
        reply = await self.complete([_plain(message) for message in messages], stop=stop, **kwargs)
        message = AIMessage(content=reply.text, response_metadata={"reply": reply}, usage_metadata=_usage(reply))
        return ChatResult(generations=[ChatGeneration(message=message)])

    def _generate(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: CallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> ChatResult:
        """LangChain's synchronous call, for a script without an event loop."""
        return asyncio.run(self._agenerate(messages, stop, None, **kwargs))

    async def token_ids(self, text: str) -> list[int] | None:
        """Ids of a plain text, or None where the tokenizer is not known."""
        return None

    @property
    def records_under_way(self) -> int | None:
        """How many records a run should have under way for this engine; None: a few more than requests in flight."""
        return None

    def set_in_flight(self, in_flight: int) -> None:
        """Limit the requests in flight at once, per address."""

    async def aclose(self) -> None:
        """Close connections and stop an engine that this process started."""


class EndpointChatModel(AgentChatModel):
    """A chat model behind an OpenAI-compatible server: vLLM, the embedded llama.cpp, or any other.

    `ainvoke` takes, besides LangChain's arguments, `schema` (JSON schema that the reply must follow), `seed`,
    `sampling` (defaults for settings that the model spec leaves open) and `continue_ids` (token mode: ids of an answer
    begun earlier, which the reply extends exactly; trailing stop tokens are cut). Where the last message is the
    assistant's, the reply goes on from its text.
    """

    engine: Any

    @property
    def _llm_type(self) -> str:
        return "agentsys-endpoint"

    async def identity(self) -> dict[str, Any]:
        """{"name", "revision"} of the model: part of a call's identity, unlike the address. Brings the engine up."""
        served = await self.engine.serve()
        return {"name": served.name, "revision": served.revision}

    async def token_ids(self, text: str) -> list[int] | None:
        """Ids of a plain text, or None where the tokenizer is not known."""
        served = await self.engine.serve()
        return await served.tokenizer.encode(text, special=False) if served.tokenizer else None

    async def _request(self, messages: Sequence[Mapping[str, Any]], **kwargs: Any) -> tuple[wire.Request, Served]:
        served: Served = await self.engine.serve()
        sampling = self.settings(kwargs.get("sampling") or {})
        if kwargs.get("seed") is not None:
            sampling.setdefault("seed", kwargs["seed"])
        if kwargs.get("stop"):
            sampling["stop"] = kwargs["stop"]
        chat = [dict(message) for message in messages]
        ids = await self._prompt_ids(served, chat, await self._begun(served, chat, kwargs.get("continue_ids") or []))
        return wire.Request(sampling, chat, ids, kwargs.get("schema")), served

    async def _begun(self, served: Served, chat: list[dict[str, Any]], continue_ids: list[int]) -> list[int]:
        """The ids that the answer begins with: those of a last message of the assistant's, which leaves the chat."""
        if not chat or chat[-1]["role"] != "assistant":
            return continue_ids
        if continue_ids:
            raise ModelError("an answer is begun by continue_ids or by a last message of the assistant's, not by both")
        if served.tokenizer is None:
            raise EndpointDown(_CANNOT_CONTINUE.format(served.name))
        return await served.tokenizer.encode(chat.pop()["content"], special=False)

    async def _prompt_ids(
        self, served: Served, chat: list[dict[str, Any]], continue_ids: list[int]
    ) -> list[int] | None:
        if served.tokenizer is None:
            if continue_ids:
                raise EndpointDown(_CANNOT_CONTINUE.format(served.name))
            return None
        if any(not isinstance(message["content"], str) for message in chat):
            if continue_ids:
                raise ModelError(f"{served.name}: an answer can be continued only after messages of text")
            return None
        try:
            ids = await tokens.render(served.tokenizer, chat)
        except tokens.TemplateRefused as err:
            if continue_ids:
                raise ModelError(f"{served.name}: an answer cannot be continued: {err}") from None
            return None
        while continue_ids and continue_ids[-1] in served.tokenizer.stop_ids:
            continue_ids = continue_ids[:-1]
        return ids + continue_ids

    async def complete(self, messages: Sequence[Mapping[str, Any]], **kwargs: Any) -> wire.Reply:
        """See AgentChatModel.complete. Raises ModelError, EndpointDown."""
        request, served = await self._request(messages, **kwargs)
        route, body = wire.payload(request, served.dialect, served.model, stream=False)
        measured: dict[str, Any] = {}
        answer = await served.endpoint.post(route, body, measured)
        try:
            reply = wire.parse(answer, request)
        except _NO_REPLY as err:
            shown = without_key(str(answer))[:200]
            raise ModelError(f"{measured['address']}{route}: not a reply: {err!r} in {shown}") from None
        _complete(reply, served, measured)
        return reply

    async def _astream(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: AsyncCallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> AsyncIterator[ChatGenerationChunk]:
        request, served = await self._request([_plain(message) for message in messages], stop=stop, **kwargs)
        route, body = wire.payload(request, served.dialect, served.model, stream=True)
        measured: dict[str, Any] = {}
        collector = wire.Collector(request)
        started = time.perf_counter()
        async for piece in served.endpoint.stream(route, body, measured):
            try:
                text = collector.add(piece)
            except _NO_REPLY as err:
                raise ModelError(f"{measured['address']}{route}: not a reply: {err!r}") from None
            measured.setdefault("first_token_seconds", round(time.perf_counter() - started, 4))
            if text:
                yield ChatGenerationChunk(message=AIMessageChunk(content=text))
        measured["seconds"] = round(time.perf_counter() - started, 4)
        if not collector.finished:
            raise ModelError(f"{measured['address']}{route}: the stream broke off before the reply was finished")
        reply = collector.reply()
        _complete(reply, served, measured)
        last = AIMessageChunk(content="", response_metadata={"reply": reply}, usage_metadata=_usage(reply))
        yield ChatGenerationChunk(message=last)

    @property
    def records_under_way(self) -> int | None:
        """See AgentChatModel.records_under_way."""
        engine: Engine = self.engine
        return round(engine.capacity * engine.records_per_request)

    def set_in_flight(self, in_flight: int) -> None:
        """Limit the requests in flight at once, per address."""
        self.engine.set_in_flight(in_flight)

    async def aclose(self) -> None:
        """Close connections and stop an engine that this process started."""
        await self.engine.aclose()


def _plain(message: BaseMessage) -> dict[str, Any]:
    role = _ROLES.get(message.type.removesuffix("MessageChunk").lower())
    if role is None:
        raise ModelError(f"a message of type '{message.type}' cannot be sent; there are {', '.join(_ROLES)}")
    return {"role": role, "content": message.content}


def callbacks_listen() -> bool:
    """Whether a LangChain callback would see a call made now: Studio's stream, a tracer, a handler of the user's."""
    config = var_child_runnable_config.get()
    callbacks = config.get("callbacks") if config else None
    if config is None:
        return True  # not inside a graph: let LangChain look
    return bool(callbacks.handlers if isinstance(callbacks, BaseCallbackManager) else callbacks)


def _complete(reply: wire.Reply, served: Served, measured: dict[str, Any]) -> None:
    if reply.ids and served.tokenizer and reply.finish == "stop":
        reply.stop_ids = int(reply.ids[-1] in served.tokenizer.stop_ids)
    if reply.cached_tokens is not None:
        measured["cached_tokens"] = reply.cached_tokens
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


def reply_of(message: AIMessage) -> wire.Reply:
    """The whole reply behind an AIMessage; from another integration's message, what LangChain keeps of it."""
    reply = message.response_metadata.get("reply")
    if isinstance(reply, wire.Reply):
        return reply
    usage: Mapping[str, Any] = message.usage_metadata or {}
    finish = str(
        message.response_metadata.get("finish_reason") or message.response_metadata.get("stop_reason") or "stop"
    )
    return wire.Reply(
        text=str(message.text),
        finish="length" if finish in ("length", "max_tokens", "MAX_TOKENS") else "stop",
        prompt_tokens=usage.get("input_tokens", 0),
        completion_tokens=usage.get("output_tokens", 0),
    )
