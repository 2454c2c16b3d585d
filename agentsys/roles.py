"""Role: a prompt file plus the type of its output.

advisor = Role("drt/advisor")                       # text
evaluator = Role("drt/evaluator", Evaluation)       # a pydantic model, through the server's JSON schema
feedback = await advisor(model, key="advise/0", text=..., translation=...)
"""

from __future__ import annotations

import hashlib
import inspect
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from importlib import resources
from pathlib import Path
from typing import Any, Final, Generic, TypeVar, cast

import orjson
from langchain_core.language_models import BaseChatModel
from pydantic import BaseModel, ValidationError
from pydantic.json_schema import GenerateJsonSchema, JsonSchemaValue
from pydantic_core import core_schema

from agentsys.models.chat import AgentChatModel, reply_of
from agentsys.models.errors import ModelError
from agentsys.models.sampling import check as check_sampling
from agentsys.models.wire import Reply
from agentsys.prompt import Message, Prompt
from agentsys.recorder import Recorder, current, identity, seed_of
from agentsys.traces import Call

T = TypeVar("T")

ATTEMPTS: Final = 3
"""How often a role asks before a reply that does not parse (or is cut off, or empty) counts as a failure."""


class RoleError(ModelError):
    """A role got no usable reply in all its attempts. It ends the record, not the run."""

    def __init__(self, message: str, tokens: int = 0) -> None:
        super().__init__(message)
        self.tokens = tokens


class _Unusable(Exception):
    """Why a reply cannot be used; told to the model in the next attempt."""


class _Unwanted(_Unusable):
    """A reply that fails the role's check or never ends: shown again, a small model would only copy it."""


@dataclass(frozen=True, slots=True)
class Answer(Generic[T]):
    """A role's typed value and the call it came from."""

    value: T
    call: Call


@dataclass(frozen=True, eq=False)
class Role(Generic[T]):
    """An agent: `await role(model, key=..., **inputs)` gives a value of type `output`.

    `prompt` is a name under prompts/ ("drt/advisor"), a file, or a Prompt; `output` is str or a pydantic model. The
    role's name is the prompt's unless one is given. `sampling` holds the role's own settings (models.sampling); those
    of a model spec win over them. A prompt whose last message is the assistant's is a reply begun: the model goes on
    from its text. A truncated reply counts as a failure unless `allow_truncated`. `check(value, inputs)` returns why a
    parsed value is refused, or None; the model is asked again with that reason, `attempts` times at most.
    """

    prompt: Prompt | str | Path
    output: type[T] = str  # type: ignore[assignment]
    name: str = ""
    sampling: Mapping[str, Any] = field(default_factory=dict)
    allow_truncated: bool = False
    check: Callable[[T, Mapping[str, Any]], str | None] | None = None
    attempts: int = ATTEMPTS

    def __post_init__(self) -> None:
        """Read the prompt. Raises PromptError or SpecError, here and not in the middle of a run."""
        check_sampling(self.sampling)
        if not isinstance(self.prompt, Prompt):
            object.__setattr__(self, "prompt", load_prompt(self.prompt))
        if not self.name:
            object.__setattr__(self, "name", self.text.name)

    @property
    def text(self) -> Prompt:
        """The prompt, read."""
        return cast("Prompt", self.prompt)

    @cached_property
    def schema(self) -> dict[str, Any] | None:
        """The JSON schema of the output, or None for text.

        Docstrings are left out: they are for readers of the code. What the model shall read is a field's description,
        `Field(description=...)`.
        """
        if issubclass(self.output, BaseModel):
            return self.output.model_json_schema(schema_generator=_WithoutDocstrings)
        return None

    @cached_property
    def schema_sha256(self) -> str | None:
        """Hex digest of the schema; part of a run's fingerprint."""
        return hashlib.sha256(orjson.dumps(self.schema)).hexdigest() if self.schema else None

    async def __call__(self, model: BaseChatModel, *, key: str, **inputs: Any) -> T:
        """Ask and return the value. Raises RoleError, ModelError or PromptError."""
        return (await self.answer(model, key=key, **inputs)).value

    async def answer(
        self, model: BaseChatModel, *, key: str, continue_ids: Sequence[int] = (), **inputs: Any
    ) -> Answer[T]:
        """Ask and return the value with its call (its token ids and log-probabilities, say).

        `continue_ids` are the ids of an answer begun earlier: the reply extends them exactly, token for token.
        """
        asked = self.text.render(inputs)
        messages = asked
        problem, written = "", 0
        for attempt in range(self.attempts):
            call = await self._call(model, messages, f"{key}#{attempt}" if attempt else key, list(continue_ids))
            try:
                return Answer(self._parse(call, inputs), call)
            except _Unusable as err:
                call.error = problem = str(err)
                written += call.completion_tokens
                begun = asked[-1]["role"] == "assistant" or bool(continue_ids)
                shown = not isinstance(err, _Unwanted) and not begun
                messages = [*asked, *_again(call.text, problem)] if shown else _reminded(asked, problem)
        tried = "1 attempt" if self.attempts == 1 else f"{self.attempts} attempts"
        raise RoleError(f"{self.name} ({key}): no usable reply in {tried}: {problem}", written)

    async def _call(self, model: BaseChatModel, messages: list[Message], key: str, continue_ids: list[int]) -> Call:
        recorder = current.get()
        sampling = model.settings(self.sampling) if isinstance(model, AgentChatModel) else dict(self.sampling)
        known = await model.identity() if isinstance(model, AgentChatModel) else _foreign_identity(model)
        about: dict[str, Any] = {
            "model": known,
            "messages": messages,
            "sampling": sampling,
            "schema": self.schema,
            "key": key,
        }
        if continue_ids:
            about["continue_ids"] = continue_ids
        call_id = identity(record=recorder.identity if recorder else None, **about)
        seed = sampling.get("seed", seed_of(call_id) if recorder else None)
        if recorder:
            recorder.claim(key)
        reply = _cached(recorder, call_id)
        if reply is None:
            if isinstance(model, AgentChatModel):
                extra = {"role": self.name, "key": key, "seed": seed, "sampling": self.sampling, "schema": self.schema}
                extra |= {"continue_ids": continue_ids} if continue_ids else {}
                reply = await model.reply(cast("Any", messages), **extra)
            elif continue_ids:
                raise ModelError(f"{known['name']}: an answer can be continued only by a model of agentsys's own")
            else:
                reply = await self._ask_foreign(model, messages)
            if recorder and recorder.cache:
                await recorder.cache.put(call_id, orjson.dumps(reply))
        call = Call(
            key=key,
            role=self.name,
            prompt_sha256=self.text.sha256,
            model=known["name"],
            revision=known["revision"],
            mode="token" if reply.prompt_ids is not None and reply.ids is not None else "chat",
            sampling=sampling,
            seed=seed,
            schema_sha256=self.schema_sha256,
            messages=cast("list[dict[str, Any]]", messages),
            **{name: getattr(reply, name) for name in _SHARED},
        )
        if recorder:
            recorder.add(call)
        return call

    async def _ask_foreign(self, model: BaseChatModel, messages: list[Message]) -> Reply:
        """Another LangChain integration: structured output its own way, and only what LangChain keeps of a reply."""
        try:
            structured = model.with_structured_output(self.output, include_raw=True) if self.schema else None
        except NotImplementedError:  # the prompt still asks for JSON, and a reply that is none is asked for again
            structured = None
        if structured is None:
            return reply_of(await model.ainvoke(cast("Any", messages)))
        result = cast("dict[str, Any]", await structured.ainvoke(cast("Any", messages)))
        reply = reply_of(result["raw"])
        if isinstance(result["parsed"], BaseModel):
            reply.text = result["parsed"].model_dump_json()
        return reply

    def _parse(self, call: Call, inputs: Mapping[str, Any]) -> T:
        if call.finish == "length" and not self.allow_truncated:
            raise _Unwanted(f"cut off at the limit of {call.completion_tokens} tokens; be shorter")
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
            return cast("T", cast("type[BaseModel]", self.output).model_validate_json(_json_in(text)))
        except ValidationError as err:
            faults = "; ".join(f"{'.'.join(map(str, e['loc'])) or 'JSON'}: {e['msg']}" for e in err.errors()[:3])
            raise _Unusable(f"not the JSON that was asked for: {faults}") from None


class _WithoutDocstrings(GenerateJsonSchema):
    """Generates schemas whose models, dataclasses, typed dictionaries and enums lack their class docstrings."""

    def model_schema(self, schema: core_schema.ModelSchema) -> JsonSchemaValue:
        return _without_docstring(super().model_schema(schema), schema["cls"])

    def dataclass_schema(self, schema: core_schema.DataclassSchema) -> JsonSchemaValue:
        return _without_docstring(super().dataclass_schema(schema), schema["cls"])

    def typed_dict_schema(self, schema: core_schema.TypedDictSchema) -> JsonSchemaValue:
        return _without_docstring(super().typed_dict_schema(schema), schema.get("cls"))

    def enum_schema(self, schema: core_schema.EnumSchema) -> JsonSchemaValue:
        return _without_docstring(super().enum_schema(schema), schema["cls"])


def _without_docstring(json_schema: JsonSchemaValue, cls: type | None) -> JsonSchemaValue:
    if cls is not None and cls.__doc__ and json_schema.get("description") == inspect.cleandoc(cls.__doc__):
        del json_schema["description"]
    return json_schema


_SHARED: Final = (
    "text", "finish", "prompt_tokens", "completion_tokens", "prompt_ids", "ids", "stop_ids", "logprobs", "top_logprobs",
    "top_ids", "top_tokens", "reasoning", "measured",
)  # fmt: skip
"""The fields that a Call takes over from a Reply."""


def load_prompt(prompt: str | Path) -> Prompt:
    """A shipped prompt by name ("drt/advisor"), or a prompt file ("my/advisor.md"). Raises PromptError."""
    if isinstance(prompt, str) and not prompt.endswith(".md"):
        with resources.as_file(resources.files("agentsys.prompts").joinpath(f"{prompt}.md")) as path:
            return Prompt.load(path)
    return Prompt.load(Path(prompt))


def _reminded(asked: list[Message], problem: str) -> list[Message]:
    """The request with what to mind at its end: before the answer, if the prompt has begun one."""
    begun = asked[-1:] if asked[-1]["role"] == "assistant" else []
    *before, last = asked[:-1] if begun else asked
    reminder = f"(An earlier reply was refused: {problem}.)"
    if isinstance(last["content"], str):
        return [*before, Message(role=last["role"], content=f"{last['content']}\n\n{reminder}"), *begun]
    return [*before, last, Message(role="user", content=reminder), *begun]


def _again(text: str, problem: str) -> list[Message]:
    shown = text if len(text) <= 2000 else text[:2000] + " ..."
    request = f"That reply cannot be used: {problem}. Answer again, in the form that was asked for."
    return [Message(role="assistant", content=shown or "(empty)"), Message(role="user", content=request)]


def _cached(recorder: Recorder | None, call_id: bytes) -> Reply | None:
    stored = recorder.cache.get(call_id) if recorder and recorder.cache else None
    if stored is None:
        return None
    reply = Reply(**orjson.loads(stored))
    reply.measured["cache_hit"] = True
    return reply


def _foreign_identity(model: BaseChatModel) -> dict[str, Any]:
    """Class and digest of the parameters of another integration's model (LangChain masks secrets in them)."""
    parameters = repr(sorted(model._identifying_params.items(), key=str))
    name = f"{type(model).__module__}.{type(model).__qualname__}"
    return {"name": name, "revision": hashlib.sha256(parameters.encode()).hexdigest()[:16]}


_FENCE: Final = re.compile(r"```(?:json)?\s*(.*?)```", re.DOTALL)


def _json_in(text: str) -> str:
    """The JSON in a reply: some servers ignore a schema, and models like to wrap their JSON in a code fence."""
    fenced = None if text.lstrip().startswith("{") else _FENCE.search(text)
    return fenced[1] if fenced else text.strip()
