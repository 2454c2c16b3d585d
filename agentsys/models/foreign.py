"""Chat models of other LangChain integrations (`langchain:`): what can be sent to them, and what they answer.

An integration gets the role's settings as arguments of its call, as far as its class accepts them. What it does not
accept is said once and is not in the trace. A setting of the model's own (its constructor's) is not overridden.
"""

from __future__ import annotations

import asyncio
import inspect
import json
import weakref
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Any, Final, cast

from langchain_core.exceptions import OutputParserException
from langchain_core.language_models import BaseChatModel
from langchain_core.messages import AIMessage
from pydantic import BaseModel, ValidationError

from agentsys.display import say
from agentsys.models.access import mask_key
from agentsys.models.chat import reply_from_message
from agentsys.models.endpoint import DEFAULT_IN_FLIGHT
from agentsys.models.errors import ModelError, Refused
from agentsys.models.faults import ServerError
from agentsys.models.pictures import fill_messages
from agentsys.models.sampling import SETTINGS
from agentsys.models.thinking import split_reply
from agentsys.models.wire import Reply

NAMES: Final[Mapping[str, tuple[str, ...]]] = {
    "max_tokens": ("max_tokens", "max_completion_tokens", "max_output_tokens", "num_predict", "max_new_tokens"),
    "repetition_penalty": ("repetition_penalty", "repeat_penalty"),
    "stop": ("stop", "stop_sequences"),
}
"""Settings whose name differs between integrations; the first that a class has is sent."""

_in_flight = DEFAULT_IN_FLIGHT
_limits: weakref.WeakKeyDictionary[asyncio.AbstractEventLoop, dict[int, asyncio.Semaphore]] = (
    weakref.WeakKeyDictionary()
)
_said: set[str] = set()


def set_foreign_in_flight(in_flight: int) -> None:
    """Set the maximum number of calls in flight to each model."""
    global _in_flight
    _in_flight = in_flight
    _limits.clear()


def _limit_of(model: BaseChatModel) -> asyncio.Semaphore:
    limits = _limits.setdefault(asyncio.get_running_loop(), {})
    return limits.setdefault(id(model), asyncio.Semaphore(_in_flight))


async def ask_foreign(
    model: BaseChatModel,
    messages: Sequence[Any],
    output: type[Any] | None,
    sampling: Mapping[str, Any],
    seed: int | None,
) -> Reply:
    """Ask a model through its own interface; `output` is the pydantic model of a structured reply.

    The reply's `sent` has the settings that were sent. Raises Refused and ModelError for a server's refusal.
    """
    settings = {**sampling, **({} if seed is None else {"seed": seed})}
    arguments, sent = call_arguments(model, settings, is_structured=output is not None and _can_structure(model))
    if missing := [name for name in settings if name not in sent]:
        _say_once(f"{_name(model)} cannot be sent {', '.join(missing)}: left out")
    async with _limit_of(model):
        try:
            reply = await _ask(model, messages, output, arguments)
        except Exception as err:  # whatever the integration raises
            if error := _translated(err, model):
                raise error from None
            raise
    await split_reply(reply, messages)
    if sent != settings:
        reply.sent = {"sampling": sent}
    return reply


async def _ask(
    model: BaseChatModel, messages: Sequence[Any], output: type[Any] | None, arguments: dict[str, Any]
) -> Reply:
    request = cast("Any", await fill_messages(messages))
    structured: Any = None
    if output is not None:
        with suppress(NotImplementedError):  # the prompt asks for JSON too, and an unusable reply is requested again
            structured = _with_fields(model, arguments).with_structured_output(output, include_raw=True)
    if structured is None:
        return reply_from_message(await model.ainvoke(request, **arguments))
    try:
        result = cast("dict[str, Any]", await structured.ainvoke(request))
    except (ValidationError, OutputParserException, json.JSONDecodeError) as err:
        return Reply(_unparsed(err), "stop")  # its parser gave up: the role asks again
    reply = reply_from_message(cast("AIMessage", result["raw"]))
    if isinstance(result.get("parsed"), BaseModel):
        reply.text = result["parsed"].model_dump_json()
    elif not reply.text.strip():
        reply.text = _tool_text(result["raw"])
    return reply


def _with_fields(model: BaseChatModel, arguments: Mapping[str, Any]) -> BaseChatModel:
    """A copy of the model with the arguments as its fields: a structured call takes no arguments of its own."""
    fields = type(model).model_fields
    names = {field.alias: name for name, field in fields.items() if field.alias} | {name: name for name in fields}
    update = {names[name]: value for name, value in arguments.items() if name in names}
    return model.model_copy(update=update) if update else model


def _unparsed(err: Exception) -> str:
    """The text that a parser could not read, or else what it said."""
    if isinstance(err, OutputParserException):
        return str(err.llm_output or err)
    if isinstance(err, ValidationError):
        value = err.errors()[0].get("input")
        return value if isinstance(value, str) else json.dumps(value, default=str)
    return err.doc if isinstance(err, json.JSONDecodeError) else str(err)


def _tool_text(message: Any) -> str:
    """The arguments of a tool call, as a model wrote them."""
    for call in [*getattr(message, "tool_calls", ()), *getattr(message, "invalid_tool_calls", ())]:
        arguments = call.get("args")
        return arguments if isinstance(arguments, str) else json.dumps(arguments, default=str)
    return ""


def _can_structure(model: BaseChatModel) -> bool:
    kind = type(model)
    own = kind.with_structured_output is not BaseChatModel.with_structured_output
    return own or kind.bind_tools is not BaseChatModel.bind_tools


def call_arguments(
    model: BaseChatModel, sampling: Mapping[str, Any], *, is_structured: bool = False
) -> tuple[dict[str, Any], dict[str, Any]]:
    """The arguments of a call, and the settings that hold for it: these, and those that the model was made with.

    A structured call can only be sent what the class declares.
    """
    declared = _declared_names(model)
    explicit, takes_any = _parameters(model)
    arguments: dict[str, Any] = {}
    sent: dict[str, Any] = {}
    for name, value in sampling.items():
        if name == "thinking":  # each provider has another form for it: an argument of the spec
            continue
        names = NAMES.get(name, (name,))
        own = next((field for field in names if field in model.model_fields_set), None)
        if own is not None:
            sent[name] = getattr(model, own)
            continue
        accepted = next((field for field in names if field in declared or field in explicit), None)
        if is_structured and accepted not in declared:
            continue
        if accepted is None and takes_any and not declared & _ALL_NAMES:
            accepted = name  # a class that declares no setting takes what it is called with
        if accepted is None or (name == "logprobs" and accepted in declared):
            continue  # log-probabilities of another form would not reach the trace
        if accepted in declared and accepted not in explicit and not takes_any:
            continue
        arguments[accepted] = sent[name] = value
    return arguments, sent


_ALL_NAMES: Final = frozenset({*SETTINGS, "stop", "thinking", *(name for names in NAMES.values() for name in names)})


def _declared_names(model: BaseChatModel) -> set[str]:
    return set(type(model).model_fields) | {f.alias for f in type(model).model_fields.values() if f.alias}


def _parameters(model: BaseChatModel) -> tuple[set[str], bool]:
    """Names that the class's generating method takes, and whether it takes any other."""
    method = type(model)._agenerate
    if method is BaseChatModel._agenerate:
        method = type(model)._generate  # type: ignore[assignment]
    parameters = inspect.signature(method).parameters.values()
    takes_any = any(parameter.kind is inspect.Parameter.VAR_KEYWORD for parameter in parameters)
    return {parameter.name for parameter in parameters} - {"self", "messages", "run_manager"}, takes_any


def _translated(err: Exception, model: BaseChatModel) -> ModelError | None:
    """The error in the terms of models.faults, if it carries a server's status."""
    status = getattr(err, "status_code", None) or getattr(getattr(err, "response", None), "status_code", None)
    if type(status) is not int or isinstance(err, ModelError):
        return None
    code = str(getattr(err, "code", None) or "")
    error = ServerError(status, mask_key(" ".join(str(err).split())), code)
    if error.owner() == "run":
        return Refused(f"{_name(model)}: {error.text}; {error.fix()}")
    return ModelError(f"{_name(model)}: {error.text}")


def _name(model: BaseChatModel) -> str:
    return f"langchain:{type(model).__module__}:{type(model).__qualname__}"


def _say_once(text: str) -> None:
    if text not in _said:
        _said.add(text)
        say(text)
