"""Adapts requests to what a server refuses: learned from its first refusal, once per model, and said once.

`Adaptation.learn` reads a refusal and the body that was refused, and `apply` changes the next bodies. Whatever is
learned follows from the refused body alone, so requests that were in flight together learn the same.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from agentsys.models.errors import Refused
from agentsys.models.faults import ServerError
from agentsys.models.room import find_output_limit, find_room
from agentsys.models.tokens import merge_system

MAX_CHANGES: Final = 12
"""Changes that one request may go through until its refusal is final."""
LIMITS: Final = ("max_tokens", "max_completion_tokens", "n_predict")
"""Names under which the limit of the completion is sent."""

_SCHEMA_KEYS: Final = ("structured_outputs", "json_schema", "response_format")
_FIXED: Final = frozenset({"model", "messages", "prompt", "stream", "generation_config"})
_NEUTRAL: Final = {
    "top_p": 1.0, "top_k": 0, "min_p": 0.0, "presence_penalty": 0.0, "frequency_penalty": 0.0,
    "repetition_penalty": 1.0,
}  # fmt: skip
"""Settings that change nothing."""
_UNSUPPORTED: Final = re.compile(
    r"cannot both|can't both|only one of|please use only one|mutually exclusive|"
    r"unsupported|not support|n't support|does not (accept|allow)|unknown|unrecogni[sz]ed|unexpected|not permitted|"
    r"forbidden|not allowed|not available|unavailable|not enabled|not recogni[sz]ed|no such|not implemented|deprecated|"
    r"invalid (parameter|argument|field|key)|extra inputs|disabled|cannot be (set|used|specified)|only the default|"
    r"only supports? (the )?default|must be (unset|omitted)|not a valid (parameter|argument|field)|不支持"
)
_SCHEMA: Final = re.compile(
    r"response_format|json_schema|json_object|json mode|structured.?output|guided|grammar|schema"
)
_SYSTEM: Final = re.compile(
    r"\bsystem\b\W{0,3}(role|messages?|prompts?|instructions?)\b|(role|variant|message)\w*\W.{0,30}\bsystem\b|"
    r"roles must alternate|developer instruction|only (the )?user and assistant"
)


class NoChange(Exception):
    """A refusal that no other form of the request avoids."""


@dataclass
class Adaptation:
    """How the requests to one model of one server differ from what the roles ask for."""

    renamed: dict[str, str] = field(default_factory=dict)
    dropped: set[str] = field(default_factory=set)
    schema_level: int = 0
    """0: the schema is sent; 1: only that the reply is JSON; 2: neither."""
    merge_system: bool = False
    max_output: int | None = None

    @property
    def is_empty(self) -> bool:
        """Whether requests are sent as they are."""
        return not (self.renamed or self.dropped or self.schema_level or self.merge_system or self.max_output)

    def apply(self, body: dict[str, Any], room: int | None = None) -> dict[str, Any]:
        """The body that the server accepts. `room` is what this request may use for its completion, in tokens."""
        body = {self.renamed.get(name, name): value for name, value in body.items()}
        for name in self.dropped:
            body.pop(name, None)
        if self.schema_level:
            had_schema = [body.pop(name, None) for name in _SCHEMA_KEYS]
            if self.schema_level == 1 and any(had_schema) and "n_predict" not in body:
                body["response_format"] = {"type": "json_object"}
        if self.merge_system and "messages" in body:
            body["messages"] = merge_system(body["messages"])
        limits = [limit for limit in (self.max_output, room) if limit is not None]
        for name in LIMITS:
            if limits and name in body:
                body[name] = min(body[name], *limits)
        return body

    def learn(self, error: ServerError, body: Mapping[str, Any], say: Callable[[str], None]) -> int | None:
        """Learn from the refusal of a body. Returns the room of this request if its prompt leaves too little.

        Raises NoChange if no other form of the request is accepted, PromptTooLong if no room is left.
        """
        limit_name = next((name for name in LIMITS if name in body), "max_tokens")
        requested = int(body.get(limit_name) or 0)
        if (limit := find_output_limit(error.message, requested)) is not None:
            self.max_output = min(limit, self.max_output or limit)
            say(f"at most {limit} tokens can be asked for: {limit_name} is {limit} instead of {requested}")
            return None
        if (room := find_room(error, requested)) is not None:
            say(f"{limit_name} is lowered to what the prompt leaves of the context, where it is more")
            return room
        self._change_form(error, body, say)
        return None

    def _change_form(self, error: ServerError, body: Mapping[str, Any], say: Callable[[str], None]) -> None:
        words = _words(error)
        if "max_tokens" in body and "max_completion_tokens" in words:
            self.renamed["max_tokens"] = "max_completion_tokens"
            say("max_tokens is refused: max_completion_tokens is sent instead")
        elif _has_system(body) and (_SYSTEM.search(words) or re.fullmatch(r"messages\W+\d+\W+role", error.param)):
            self.merge_system = True
            say("the system role is refused: its text is put before the first user message")
        elif _SCHEMA.search(words) and (level := _schema_level(body)) is not None:
            self.schema_level = max(self.schema_level, level + 1)
            instead = ("the server is told to write JSON instead", "the prompt alone asks for JSON")[level]
            say(f"{'the JSON schema' if level == 0 else 'the JSON mode'} is refused: {instead}")
        elif name := _named_field(error, words, body):
            self.dropped |= {name, "top_logprobs"} if name == "logprobs" else {name}
            say(f"{name} is refused: it is left out")
        else:
            raise NoChange


def _words(error: ServerError) -> str:
    """What the server says, in lower case, with the names of parameters in camel case repeated with underscores."""
    text = f"{error.code} {error.param} {error.message}"
    return f"{text} {re.sub(r'(?<=[a-z])(?=[A-Z])', '_', text)}".lower()


def _has_system(body: Mapping[str, Any]) -> bool:
    return any(message["role"] == "system" for message in body.get("messages") or ())


def _schema_level(body: Mapping[str, Any]) -> int | None:
    """The level of a body: 0 with a schema, 1 in JSON mode, None with neither."""
    form = body.get("response_format")
    if isinstance(form, Mapping) and form.get("type") == "json_object":
        return 1
    return 0 if any(name in body for name in _SCHEMA_KEYS) else None


def _named_field(error: ServerError, words: str, body: Mapping[str, Any]) -> str | None:
    """The field of the body that the server says it does not support."""
    if not _UNSUPPORTED.search(words) and not error.code.lower().endswith("forbidden"):
        return None
    names = [name for name in body if name not in _FIXED]
    names.sort(key=lambda name: (body[name] != _NEUTRAL.get(name), -len(name)))  # of two, the one that changes nothing
    exact = [name for name in names if name == error.param.split(".")[-1]]
    return next((name for name in (*exact, *names) if name in exact or _names(words, name)), None)


def _names(words: str, name: str) -> bool:
    return re.search(rf"(?<![\w-]){re.escape(name.lower())}(?!\w)", words) is not None


def refuse_extra(error: ServerError, extra: Mapping[str, Any], url: str) -> None:
    """Raises Refused if the server does not support a field that the spec adds: without it, the data would differ."""
    name = _named_field(error, _words(error), extra)
    if name is not None:
        raise Refused(f"{url}: {error.text}; leave ?extra.{name} out of the spec")


def settings_sent(sampling: Mapping[str, Any], body: Mapping[str, Any]) -> dict[str, Any]:
    """The settings of a request as its body holds them; those that were left out are missing."""
    fields = dict(_fields(body))
    sent: dict[str, Any] = {}
    for name, value in sampling.items():
        if name == "extra":
            sent[name] = {key: item for key, item in value.items() if key in body}
        elif name == "thinking":
            sent |= {name: value} if "prompt" in body or "chat_template_kwargs" in body else {}
        elif name == "max_tokens":
            limit = next((fields[key] for key in LIMITS if key in fields), None)
            sent |= {} if limit is None else {name: limit}
        elif name == "logprobs":
            if fields.get("n_probs") or fields.get("top_logprobs") is not None or fields.get("logprobs"):
                sent[name] = value if "top_logprobs" in fields or "n_probs" in fields or "prompt" in body else 0
        elif (
            name in fields
            or _ALIASES.get(name) in fields
            or (name == "temperature" and fields.get("do_sample") is False)
        ):
            sent[name] = value
    return {name: value for name, value in sent.items() if value != {}}


_ALIASES: Final = {"repetition_penalty": "repeat_penalty"}


def _fields(body: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """The fields of a body, with those of transformers' generation_config."""
    yield from body.items()
    if config := body.get("generation_config"):
        yield from json.loads(config).items()
