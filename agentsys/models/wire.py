"""Wire formats: request payloads and replies of engines, as pure functions on dicts.

Four dialects: `llamacpp` (its own /completion route: ids in and out, schema, log-probabilities with ids), `vllm` (the
completions route with ids, or the chat route), `transformers` (the chat route, sampling in its own form) and `openai`
(the chat route, for any other server).
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Final, Literal

import orjson

from agentsys.models import fields
from agentsys.models.errors import EndpointDown
from agentsys.models.fields import BadReply
from agentsys.shapes import Shape
from agentsys.text.thoughts import Tags

Dialect = Literal["llamacpp", "vllm", "transformers", "openai"]


@dataclass(slots=True)
class Reply:
    """An engine's reply; its fields are those of traces.Call."""

    text: str
    finish: str
    prompt_tokens: int = 0
    completion_tokens: int = 0
    prompt_ids: list[int] | None = None
    ids: list[int] | None = None
    stop_ids: int = 0
    logprobs: list[float] | None = None
    top_logprobs: list[list[float]] | None = None
    top_ids: list[list[int]] | None = None
    top_tokens: list[list[str]] | None = None
    reasoning: str | None = None
    reasoning_ids: list[int] | None = None
    reasoning_logprobs: list[float] | None = None
    token_texts: list[str] | None = None
    """Texts of the tokens with log-probabilities, as the server writes them; not in traces."""
    cached_tokens: int | None = None
    measured: dict[str, Any] = field(default_factory=dict)
    sent: dict[str, Any] | None = None
    """What was sent, where it differs from the request: `sampling`, `messages` and `schema` (models.adapt)."""


def load_reply(stored: bytes) -> Reply | None:
    """A reply from the JSON of the request cache; None if it is damaged."""
    try:
        raw = orjson.loads(stored)
    except ValueError:
        return None
    return None if _REPLY.fault(raw) else Reply(**raw)


_REPLY: Final = Shape(Reply, "a reply")


@dataclass(frozen=True, slots=True)
class Request:
    """A request to an engine: `prompt_ids` in token mode, `messages` in chat mode.

    `opened`: the tags of a thought that the prompt opens. `is_merged`: the template has no system role, and `messages`
    have its texts in the users'.
    """

    sampling: Mapping[str, Any]
    messages: list[dict[str, Any]]
    prompt_ids: list[int] | None = None
    schema: Mapping[str, Any] | None = None
    opened: Tags | None = None
    is_merged: bool = False


def build_payload(request: Request, dialect: Dialect, model: str, *, stream: bool) -> tuple[str, dict[str, Any]]:
    """Return the route and the JSON body of a request. Raises EndpointDown for a setting that the dialect lacks.

    The setting "extra" holds further fields of the body (`?extra.NAME=` in a spec); "thinking" becomes variables of the
    server's chat template, unless the prompt is rendered already.
    """
    if not {"extra", "thinking"} & request.sampling.keys():
        return _build_plain(request, dialect, model, stream=stream)
    plain = {name: value for name, value in request.sampling.items() if name not in ("extra", "thinking")}
    route, body = _build_plain(replace(request, sampling=plain), dialect, model, stream=stream)
    thinking = request.sampling.get("thinking")
    if thinking is not None and request.prompt_ids is None:
        body["chat_template_kwargs"] = chat_variables(thinking)
    extra = request.sampling.get("extra") or {}
    both = body.get("chat_template_kwargs"), extra.get("chat_template_kwargs")
    if all(isinstance(variables, dict) for variables in both):
        extra = {**extra, "chat_template_kwargs": body["chat_template_kwargs"] | extra["chat_template_kwargs"]}
    return route, body | extra


def chat_variables(thinking: str | int) -> dict[str, Any]:
    """The variables that templates read to switch thinking; a template ignores what it lacks.

    `enable_thinking`: Qwen3, SmolLM3, GLM, Nemotron; `thinking`: Granite, DeepSeek-V3.1; `thinking_budget`: Seed-OSS.
    """
    variables: dict[str, Any] = {"enable_thinking": thinking != "off", "thinking": thinking != "off"}
    if thinking == "off":
        return variables | {"thinking_budget": 0}
    return variables | ({"thinking_budget": thinking} if isinstance(thinking, int) else {})


def _build_plain(request: Request, dialect: Dialect, model: str, *, stream: bool) -> tuple[str, dict[str, Any]]:
    if dialect == "llamacpp" and request.prompt_ids is not None:
        return "/completion", _llamacpp_payload(request) | {"stream": stream}
    if dialect == "transformers":
        return "/v1/chat/completions", _transformers_payload(request, model) | {"stream": stream}
    settings = {name: value for name, value in request.sampling.items() if name != "logprobs"}
    if dialect == "llamacpp" and "repetition_penalty" in settings:
        settings["repeat_penalty"] = settings.pop("repetition_penalty")
    body = {**_OFF[dialect], **settings, "model": model}
    if stream:
        body |= {"stream": True, "stream_options": {"include_usage": True}}
    if dialect == "vllm":
        body |= {"return_token_ids": True, "return_tokens_as_token_ids": True}
        if request.schema is not None:
            body["structured_outputs"] = {"json": request.schema}
    elif request.schema is not None:
        schema = {"name": "reply", "schema": request.schema}
        body["response_format"] = {"type": "json_schema", "json_schema": schema}
    alternatives = request.sampling.get("logprobs", 0)
    if request.prompt_ids is not None:
        return "/v1/completions", body | {"prompt": request.prompt_ids, "logprobs": alternatives}
    if dialect == "vllm" or alternatives:
        body |= {"logprobs": True, "top_logprobs": alternatives}
    return "/v1/chat/completions", body | {"messages": request.messages}


_LLAMACPP_NAMES = {"max_tokens": "n_predict", "repetition_penalty": "repeat_penalty"}
# Settings that are not requested are off. Otherwise llama.cpp's defaults or the model's generation_config would apply.
_OFF: dict[Dialect, dict[str, Any]] = {
    "llamacpp": {"top_k": 0, "min_p": 0.0, "repeat_penalty": 1.0},
    "vllm": {"top_k": 0, "min_p": 0.0, "repetition_penalty": 1.0},
    "transformers": {"top_k": 0, "top_p": 1.0, "repetition_penalty": 1.0},
    "openai": {},  # an unknown server may refuse a setting that it does not support
}


def _llamacpp_payload(request: Request) -> dict[str, Any]:
    settings = {_LLAMACPP_NAMES.get(k, k): v for k, v in request.sampling.items() if k != "logprobs"}
    body = {**_OFF["llamacpp"], **settings, "prompt": request.prompt_ids, "return_tokens": True, "cache_prompt": True}
    body["n_probs"] = max(1, request.sampling.get("logprobs", 0))
    if request.schema is not None:
        body["json_schema"] = request.schema
    return body


def _transformers_payload(request: Request, model: str) -> dict[str, Any]:
    """Return the body with a whole generation_config: from a temperature alone the server does not start to sample."""
    settings = dict(request.sampling)
    if unsupported := [name for name in ("presence_penalty", "frequency_penalty") if settings.pop(name, 0)]:
        raise EndpointDown(f"transformers serve does not support {unsupported[0]}; use repetition_penalty, or vllm:")
    body: dict[str, Any] = {name: settings.pop(name) for name in ("max_tokens", "seed", "stop") if name in settings}
    settings.pop("logprobs", None)  # not supported
    do_sample = bool(settings.get("temperature"))
    if not do_sample:
        settings = {name: value for name, value in settings.items() if name == "repetition_penalty"}
    config = {**_OFF["transformers"], **settings, "do_sample": do_sample}
    return {**body, "model": model, "messages": request.messages, "generation_config": json.dumps(config)}


def parse_reply(body: Any, request: Request) -> Reply:
    """Parse a response that was not streamed. Raises BadReply if it is not a reply."""
    builder = ReplyBuilder(request)
    builder.add(body)
    if not builder.has_choice:
        raise BadReply(f"not a reply: {fields.excerpt(body)}")
    return builder.build()


class ReplyBuilder:
    """Builds a reply from the pieces of a stream; a response that was not streamed is one piece."""

    def __init__(self, request: Request) -> None:
        self._request = request
        self.has_choice = False
        self._text: list[str] = []
        self._reasoning: list[str] = []
        self._ids: list[int] = []
        self._logprobs: list[Any] = []  # checked in `build`, like the numbers of `_top`
        self._token_texts: list[str] = []
        self._top: list[list[tuple[int | str, Any]]] = []  # a token's id, or its text if the server returns no ids
        self._prompt_ids = request.prompt_ids
        self._finish = ""
        self._prompt_tokens: int | None = None
        self._completion_tokens: int | None = None
        self._cached: int | None = None
        self._timings: dict[str, float] = {}

    def add(self, body: Any) -> str:
        """Add one piece and return its text. Raises BadReply."""
        if type(body) is not dict:
            raise BadReply(f"not a reply: {fields.excerpt(body)}")
        if timings := body.get("timings"):
            self._timings = fields.read_timings(timings)
        if "content" in body and "choices" not in body:
            return self._add_llamacpp(body)
        return self._add_openai(body)

    def _add_llamacpp(self, body: Mapping[str, Any]) -> str:
        self.has_choice = True
        text, _ = fields.read_text(body["content"])
        self._text.append(text)
        self._ids += fields.read_ids(body.get("tokens"))
        for entry in fields.read_list(body.get("completion_probabilities")):
            self._add_entry(entry, "id")
        if body.get("stop"):
            is_limit = body.get("stop_type") == "limit" or body.get("stopped_limit")
            self._finish = "length" if is_limit else "stop"
            self._prompt_tokens = fields.read_count(body.get("tokens_evaluated"))
            self._completion_tokens = fields.read_count(body.get("tokens_predicted"))
            timings = body.get("timings")
            self._cached = fields.read_count(timings.get("cache_n")) if isinstance(timings, dict) else None
        return text

    def _add_openai(self, body: Mapping[str, Any]) -> str:
        if usage := body.get("usage"):
            self._add_usage(usage)
        choices = body.get("choices")
        if not choices:  # a piece of a stream that has only the usage, or the filter's verdict on the prompt
            return ""
        choice = fields.first_choice(choices, body)
        if choice is None:
            return ""
        self.has_choice = True
        message = fields.read_message(choice)
        text, thought = fields.read_text(message.get("content"))
        plain = choice.get("text")
        text = plain if isinstance(plain, str) and plain else text
        finish = fields.read_finish(choice.get("finish_reason") or choice.get("stop_reason"))
        if not text and (refusal := fields.read_text(message.get("refusal"))[0]):
            text, finish = refusal, "refusal"
        self._text.append(text)
        self._reasoning.append(thought or fields.read_reasoning(message))
        self._finish = finish or self._finish
        self._ids += fields.read_ids(choice.get("token_ids"))
        if prompt_ids := choice.get("prompt_token_ids") or body.get("prompt_token_ids"):
            self._prompt_ids = fields.read_ids(prompt_ids)
        if logprobs := choice.get("logprobs"):
            self._add_logprobs(logprobs)
        return text

    def _add_usage(self, usage: Any) -> None:
        if isinstance(usage, dict):
            self._prompt_tokens = fields.read_count(usage.get("prompt_tokens", usage.get("input_tokens")))
            self._completion_tokens = fields.read_count(usage.get("completion_tokens", usage.get("output_tokens")))
            details = usage.get("prompt_tokens_details") or usage.get("input_tokens_details")
            cached = details.get("cached_tokens") if isinstance(details, dict) else usage.get("prompt_cache_hit_tokens")
            self._cached = fields.read_count(cached)

    def _add_entry(self, entry: Any, name: str) -> None:
        """Add the log-probabilities at one position; `name` is the field that names an alternative."""
        if type(entry) is not dict:
            raise BadReply(f"not a reply: a log-probability is {fields.excerpt(entry)}")
        self._logprobs.append(entry.get("logprob"))
        self._token_texts.append(str(entry.get("token", "")))
        tops = fields.read_list(entry.get("top_logprobs"))
        self._top.append([(_id_or_text(top.get(name)), top.get("logprob")) for top in tops if type(top) is dict])

    def _add_logprobs(self, logprobs: Any) -> None:
        if isinstance(logprobs, list):  # the entries without an object around them
            logprobs = {"content": logprobs}
        if type(logprobs) is not dict:
            return
        for entry in fields.read_list(logprobs.get("content")):
            self._add_entry(entry, "token")
        self._logprobs += fields.read_list(logprobs.get("token_logprobs"))
        for entry in fields.read_list(logprobs.get("top_logprobs")):
            pairs = entry.items() if isinstance(entry, dict) else ()
            self._top.append([(_id_or_text(token), logprob) for token, logprob in pairs])

    @property
    def finished(self) -> bool:
        """Whether a finish reason has been received."""
        return bool(self._finish)

    def build(self) -> Reply:
        """Return the reply; `top_logprobs` is set only if alternatives were requested."""
        top = self._top if self._request.sampling.get("logprobs") else []
        values = fields.check_logprobs(self._logprobs)
        rows = [fields.check_logprobs([logprob for _, logprob in row]) for row in top]
        is_complete = values is not None and None not in rows
        if not is_complete:
            top = []
        has_ids = all(type(token) is int for row in top for token, _ in row)
        completion_tokens = len(self._ids) if self._completion_tokens is None else self._completion_tokens
        reply = Reply(
            text="".join(self._text),
            finish=self._finish or self._guess_finish(completion_tokens),
            prompt_tokens=len(self._prompt_ids or ()) if self._prompt_tokens is None else self._prompt_tokens,
            completion_tokens=completion_tokens,
            prompt_ids=self._prompt_ids,
            ids=self._ids or None,
            logprobs=values or None,
            top_logprobs=(rows if top else None) or None,  # type: ignore[arg-type]  # no row is None
            top_ids=([[int(token) for token, _ in row] for row in top] if has_ids else None) or None,
            top_tokens=None if has_ids else [[str(token) for token, _ in row] for row in top],
            reasoning="".join(self._reasoning) or None,
            token_texts=self._token_texts or None,
            cached_tokens=self._cached,
            measured=dict(self._timings),
        )
        if not is_complete:
            reply.measured["left_out"] = "log-probabilities that are no numbers"
        return reply

    def _guess_finish(self, completion_tokens: int) -> str:
        """The finish of a server that sends none: a reply as long as the limit was cut off there."""
        return "length" if completion_tokens >= self._request.sampling.get("max_tokens", math.inf) else "stop"


def _id_or_text(token: Any) -> int | str:
    """Return the id of vLLM's "token_id:123" and of a number, else the text of the token."""
    if type(token) is int:
        return token
    text = str(token)
    number = text.removeprefix("token_id:")
    return int(number) if number != text and number.isdecimal() else text
