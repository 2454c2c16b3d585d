"""Role: a prompt and the type of its output.

advisor = Role("drt/advisor")                       # text
evaluator = Role("drt/evaluator", Evaluation)       # a pydantic model, through the server's JSON schema
feedback = await advisor(model, key="advise/0", text=..., translation=...)
"""

from __future__ import annotations

import hashlib
import inspect
import logging
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from importlib import resources
from pathlib import Path
from typing import Any, Final, Generic, TypeVar, cast

import orjson
from langchain_core.language_models import BaseChatModel
from pydantic import BaseModel, ValidationError
from pydantic.json_schema import GenerateJsonSchema, JsonRef, JsonSchemaValue
from pydantic_core import core_schema

from agentsys.callbacks import as_run
from agentsys.models.chat import AgentChatModel
from agentsys.models.errors import ModelError
from agentsys.models.foreign import ask_foreign
from agentsys.models.pictures import check_takes_pictures, has_pictures
from agentsys.models.sampling import check as check_sampling
from agentsys.models.wire import Reply, load_reply
from agentsys.pictures import held_pictures
from agentsys.pictures.inputs import load_pictures
from agentsys.prompt import Message, Prompt
from agentsys.recorder import Recorder, calling, current, identity, seed_of
from agentsys.studio import count_call
from agentsys.telemetry import Span, call_span, role_span
from agentsys.traces import Call

T = TypeVar("T")
_LOG: Final = logging.getLogger(__name__)

ATTEMPTS: Final = 3
"""How often a role asks until a reply is usable: it parses, is complete and passes the role's check."""


class RoleError(ModelError):
    """None of a role's attempts gave a usable reply. It ends the record, not the run.

    `tokens` counts the completion tokens of those attempts.
    """

    def __init__(self, message: str, tokens: int = 0) -> None:
        super().__init__(message)
        self.tokens = tokens


def check_no_thought(call: Call) -> None:
    """Raise RoleError for a step that a thought precedes: its siblings and continuations would not have the thought."""
    if call.reasoning:
        raise RoleError(
            f"{call.role} ({call.key}): {call.model} thinks before it answers, and steps must follow the prompt; add "
            f"thinking=off to the model's spec, or --role-model {call.role.rpartition('/')[2]}='?thinking=off'",
            call.completion_tokens,
        )


class _Unusable(Exception):
    """Why a reply cannot be used; the next attempt's messages say it to the model."""


class _Unwanted(_Unusable):
    """A reply that fails the role's check or was truncated: not shown to the model, since a small one would copy it."""


@dataclass(frozen=True, slots=True)
class Answer(Generic[T]):
    """A role's parsed value and the call it comes from."""

    value: T
    call: Call


@dataclass(frozen=True, eq=False)
class Role(Generic[T]):
    """An agent: `await role(model, key=..., **inputs)` returns a value of type `output`.

    `prompt` is a name under prompts/ ("drt/advisor"), a file, or a Prompt; `output` is str or a pydantic model. `name`
    defaults to the prompt's. `sampling` holds the role's settings (models.sampling), which a model spec's override. If
    the prompt's last message is the assistant's, the model continues that text. A truncated reply is unusable unless
    `allow_truncated`. `check(value, inputs)` returns why a parsed value is refused, or None. After an unusable reply
    the model is asked again with the reason, `attempts` times in all.
    """

    prompt: Prompt | str | Path
    output: type[T] = str  # type: ignore[assignment]
    name: str = ""
    sampling: Mapping[str, Any] = field(default_factory=dict)
    allow_truncated: bool = False
    check: Callable[[T, Mapping[str, Any]], str | None] | None = None
    attempts: int = ATTEMPTS

    def __post_init__(self) -> None:
        """Read the prompt. Raises PromptError for it, SpecError for an unknown or invalid sampling setting."""
        check_sampling(self.sampling)
        if not isinstance(self.prompt, Prompt):
            object.__setattr__(self, "prompt", load_prompt(self.prompt))
        if not self.name:
            object.__setattr__(self, "name", self.text.name)

    @property
    def text(self) -> Prompt:
        """The prompt, loaded."""
        return cast("Prompt", self.prompt)

    @cached_property
    def schema(self) -> dict[str, Any] | None:
        """The JSON schema of the output; None for text.

        It has no class docstrings, which are for readers of the code. Use `Field(description=...)` for what the model
        should read.
        """
        if issubclass(self.output, BaseModel):
            return self.output.model_json_schema(schema_generator=_WithoutDocstrings)
        return None

    @cached_property
    def schema_sha256(self) -> str | None:
        """Hex SHA-256 of the schema, None for text; part of a run's fingerprint."""
        return hashlib.sha256(orjson.dumps(self.schema)).hexdigest() if self.schema else None

    async def __call__(self, model: BaseChatModel, *, key: str, **inputs: Any) -> T:
        """Ask the model and return the value. Raises RoleError, ModelError, PromptError or PictureError."""
        return (await self.answer(model, key=key, **inputs)).value

    async def answer(
        self, model: BaseChatModel, *, key: str, continue_ids: Sequence[int] = (), **inputs: Any
    ) -> Answer[T]:
        """Ask the model and return the value with its call (token ids, log-probabilities and so on).

        `key` names the call within its record and is unique there. `continue_ids` are the token ids of a partial
        answer; the reply continues exactly these. A picture of the prompt (`# image NAME`) is what
        pictures.load_picture takes, or a list of such. Raises RoleError, ModelError, PromptError, PictureError or
        DuplicateKey.
        """
        shown, pictures = await load_pictures(self.text.pictures, inputs)
        with role_span(self.name, key) as span, held_pictures(*pictures):
            ask = partial(self._ask_until_usable, model, key, list(continue_ids), shown, span)
            return await as_run(self.name, shown, ask, lambda answer: answer.value)

    async def _ask_until_usable(
        self, model: BaseChatModel, key: str, continue_ids: list[int], inputs: Mapping[str, Any], span: Span
    ) -> Answer[T]:
        request = self.text.render(inputs)
        messages = request
        problem, tokens = "", 0
        for attempt in range(self.attempts):
            with calling():
                call = await self._call(model, messages, f"{key}#{attempt}" if attempt else key, continue_ids)
            try:
                return Answer(self._parse(call, inputs), call)
            except _Unusable as err:
                call.error = problem = str(err)
                span.add_refusal(call)
                _LOG.debug("%s (%s): the reply is not usable: %s", self.name, call.key, problem)
                tokens += call.completion_tokens
                has_prefix = request[-1]["role"] == "assistant" or bool(continue_ids)
                if isinstance(err, _Unwanted) or has_prefix:
                    messages = _add_reminder(request, problem)
                else:
                    messages = [*request, *_retry_messages(call.text, problem)]
        attempts = "1 attempt" if self.attempts == 1 else f"{self.attempts} attempts"
        raise RoleError(f"{self.name} ({key}): no usable reply in {attempts}: {problem}", tokens)

    async def continue_call(
        self, model: BaseChatModel, call: Call, ids: Sequence[int], *, key: str, sampling: Mapping[str, Any]
    ) -> Call:
        """Ask what follows `ids` as the beginning of a call's reply, without a schema; any reply is accepted.

        `sampling` overrides the model spec's. Raises ModelError, CannotContinue or DuplicateKey.
        """
        role = replace(self, output=cast("Any", str), sampling=sampling)
        if isinstance(model, AgentChatModel):
            model = model.model_copy(update={"sampling": {**model.sampling, **sampling}})
        with calling(), role_span(self.name, key):
            return await role._call(model, cast("list[Message]", call.messages), key, list(ids))

    async def _call(self, model: BaseChatModel, messages: list[Message], key: str, continue_ids: list[int]) -> Call:
        recorder = current.get()
        sampling = model.settings(self.sampling) if isinstance(model, AgentChatModel) else dict(self.sampling)
        model_id = await model.identity() if isinstance(model, AgentChatModel) else _foreign_identity(model)
        parts: dict[str, Any] = {
            "model": model_id,
            "messages": messages,
            "sampling": sampling,
            "schema": self.schema,
            "key": key,
        }
        if continue_ids:
            parts["continue_ids"] = continue_ids
        call_id = identity(record=recorder.identity if recorder else None, **parts)
        seed = sampling.get("seed", seed_of(call_id) if recorder else None)
        if recorder:
            recorder.claim(key)
        else:
            count_call()
        with call_span(model_id["name"], provider_of(model), key) as span:
            reply = _get_cached(recorder, call_id)
            if reply is None:
                reply = await self._request_reply(model, model_id["name"], messages, key, seed, continue_ids)
                if recorder and recorder.cache:
                    await recorder.cache.put(call_id, orjson.dumps(reply))
            call = Call(
                key=key,
                role=self.name,
                prompt_sha256=self.text.sha256,
                model=model_id["name"],
                revision=model_id["revision"],
                mode="token" if reply.prompt_ids is not None and reply.ids is not None else "chat",
                sampling=sampling,
                seed=seed,
                schema_sha256=self.schema_sha256,
                messages=cast("list[dict[str, Any]]", messages),
                **{name: getattr(reply, name) for name in _SHARED},
            )
            if reply.sent is not None:
                _note_sent(call, reply.sent)
            span.add_call(call)
        if recorder:
            recorder.add(call)
        return call

    async def _request_reply(
        self,
        model: BaseChatModel,
        model_name: str,
        messages: list[Message],
        key: str,
        seed: int | None,
        continue_ids: list[int],
    ) -> Reply:
        if has_pictures(messages):
            await check_takes_pictures(model, model_name)
        if isinstance(model, AgentChatModel):
            extra: dict[str, Any] = {"continue_ids": continue_ids} if continue_ids else {}
            call = {"role": self.name, "key": key, "seed": seed, "sampling": self.sampling, "schema": self.schema}
            return await model.get_reply(cast("Any", messages), **call, **extra)
        if continue_ids:
            raise ModelError(f"{model_name}: only the model classes of agentsys can continue a partial answer")
        output = self.output if self.schema else None
        return await ask_foreign(model, messages, output, dict(self.sampling), seed)

    def _parse(self, call: Call, inputs: Mapping[str, Any]) -> T:
        if call.reasoning and not call.text.strip():
            raise _Unwanted(f"it ended inside its thought, after {call.completion_tokens} tokens; think less")
        if call.finish == "length" and not self.allow_truncated:
            raise _Unwanted(f"cut off at the limit of {call.completion_tokens} tokens; be shorter")
        if call.finish not in ("stop", "length"):
            raise _Unwanted(f"the server ended it early ({call.finish})")
        if not call.text.strip():
            raise _Unusable("empty")
        value = self._value(call.text)
        if self.check is not None and (fault := self.check(value, inputs)):
            raise _Unwanted(fault)
        return value

    def _value(self, text: str) -> T:
        if self.schema is None:
            return cast("T", text.strip())
        try:
            return cast("T", cast("type[BaseModel]", self.output).model_validate_json(_extract_json(text)))
        except ValidationError as err:
            faults = "; ".join(f"{'.'.join(map(str, e['loc'])) or 'JSON'}: {e['msg']}" for e in err.errors()[:3])
            raise _Unusable(f"not the JSON that was asked for: {faults}") from None


class _WithoutDocstrings(GenerateJsonSchema):
    """Schemas without the class docstrings of models, dataclasses, typed dictionaries and enums."""

    def model_schema(self, schema: core_schema.ModelSchema) -> JsonSchemaValue:
        return _without_docstring(super().model_schema(schema), schema["cls"])

    def dataclass_schema(self, schema: core_schema.DataclassSchema) -> JsonSchemaValue:
        return _without_docstring(super().dataclass_schema(schema), schema["cls"])

    def typed_dict_schema(self, schema: core_schema.TypedDictSchema) -> JsonSchemaValue:
        return _without_docstring(super().typed_dict_schema(schema), schema.get("cls"))

    def generate_inner(self, schema: Any) -> JsonSchemaValue:
        """Handles enums, which get their docstring only after `enum_schema`."""
        json_schema = super().generate_inner(schema)
        if schema["type"] == "enum":
            reference = json_schema.get("$ref")
            definition = self.get_schema_from_definitions(JsonRef(reference)) if reference else json_schema
            _without_docstring(definition or {}, schema["cls"])
        return json_schema


def _without_docstring(json_schema: JsonSchemaValue, cls: type | None) -> JsonSchemaValue:
    if cls is not None and cls.__doc__ and json_schema.get("description") == inspect.cleandoc(cls.__doc__):
        del json_schema["description"]
    return json_schema


_SHARED: Final = (
    "text", "finish", "prompt_tokens", "completion_tokens", "prompt_ids", "ids", "stop_ids", "logprobs", "top_logprobs",
    "top_ids", "top_tokens", "reasoning", "reasoning_ids", "reasoning_logprobs", "measured",
)  # fmt: skip
"""The fields that a Call copies from a Reply."""


def load_prompt(prompt: str | Path) -> Prompt:
    """Load a shipped prompt by name ("drt/advisor") or a prompt file ("my/advisor.md"). Raises PromptError."""
    if isinstance(prompt, str) and not prompt.endswith(".md"):
        with resources.as_file(resources.files("agentsys.prompts").joinpath(f"{prompt}.md")) as path:
            return Prompt.load(path)
    return Prompt.load(Path(prompt))


def _add_reminder(request: list[Message], problem: str) -> list[Message]:
    """The request with the problem at its end, but before the beginning of the answer if the prompt has one."""
    prefix = request[-1:] if request[-1]["role"] == "assistant" else []
    *before, last = request[:-1] if prefix else request
    reminder = f"(An earlier reply was refused: {problem}.)"
    if isinstance(last["content"], str):
        return [*before, Message(role=last["role"], content=f"{last['content']}\n\n{reminder}"), *prefix]
    return [
        *before,
        Message(role=last["role"], content=[*last["content"], {"type": "text", "text": reminder}]),
        *prefix,
    ]


def _retry_messages(text: str, problem: str) -> list[Message]:
    """The unusable reply, shortened, and the request for another one."""
    excerpt = text if len(text) <= 2000 else text[:2000] + " ..."
    request = f"That reply cannot be used: {problem}. Answer again, in the form that was asked for."
    return [Message(role="assistant", content=excerpt or "(empty)"), Message(role="user", content=request)]


def _note_sent(call: Call, sent: Mapping[str, Any]) -> None:
    """Put into a call what its server got instead of what the role asks for (models.wire.Reply.sent)."""
    if "sampling" in sent:
        settings = sent["sampling"]
        call.seed = settings.get("seed")
        call.sampling = {name: value for name, value in settings.items() if name != "seed" or "seed" in call.sampling}
    call.messages = sent.get("messages", call.messages)
    if "schema" in sent:
        call.measured["schema_sent_as"] = sent["schema"]


def _get_cached(recorder: Recorder | None, call_id: bytes) -> Reply | None:
    """The reply in the request cache; one that cannot be read is none, and the call is made again."""
    stored = recorder.cache.get(call_id) if recorder and recorder.cache else None
    reply = None if stored is None else load_reply(stored)
    if reply is not None:
        reply.measured["cache_hit"] = True
    return reply


def _foreign_identity(model: BaseChatModel) -> dict[str, Any]:
    """Class name and parameters' digest of another integration's model (LangChain masks secrets in the parameters)."""
    parameters = repr(sorted(model._identifying_params.items(), key=str))
    name = f"{type(model).__module__}.{type(model).__qualname__}"
    return {"name": name, "revision": hashlib.sha256(parameters.encode()).hexdigest()[:16]}


def provider_of(model: BaseChatModel) -> str:
    """What answers, in telemetry: `vllm`, or the name of another integration's provider, such as `anthropic`."""
    if isinstance(model, AgentChatModel):
        return model.provider
    return model._get_ls_params().get("ls_provider") or model._llm_type


_FENCE: Final = re.compile(r"```(?:json)?\s*(.*?)```", re.DOTALL)


def _extract_json(text: str) -> str:
    """The JSON in a reply; a server that ignores schemas may return it in a code fence."""
    fenced = None if text.lstrip().startswith("{") else _FENCE.search(text)
    return fenced[1] if fenced else text.strip()
