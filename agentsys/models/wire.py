"""Wire formats: request payloads and replies of engines, as pure functions on dicts.

Four dialects: `llamacpp` (its own /completion route: ids in and out, schema, log-probabilities with ids), `vllm` (the
completions route with ids, or the chat route), `transformers` (the chat route, sampling in its own form) and `openai`
(the chat route, for any other server).
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from agentsys.models.errors import ModelError

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
    cached_tokens: int | None = None
    measured: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Request:
    """A request to an engine: `prompt_ids` in token mode, `messages` in chat mode."""

    sampling: Mapping[str, Any]
    messages: list[dict[str, Any]]
    prompt_ids: list[int] | None = None
    schema: Mapping[str, Any] | None = None


def build_payload(request: Request, dialect: Dialect, model: str, *, stream: bool) -> tuple[str, dict[str, Any]]:
    """Return the route and the JSON body of a request. Raises ModelError for a setting that the dialect lacks."""
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
        raise ModelError(f"transformers serve does not support {unsupported[0]}; use repetition_penalty, or vllm:")
    body: dict[str, Any] = {name: settings.pop(name) for name in ("max_tokens", "seed", "stop") if name in settings}
    settings.pop("logprobs", None)  # not supported
    do_sample = bool(settings.get("temperature"))
    if not do_sample:
        settings = {name: value for name, value in settings.items() if name == "repetition_penalty"}
    config = {**_OFF["transformers"], **settings, "do_sample": do_sample}
    return {**body, "model": model, "messages": request.messages, "generation_config": json.dumps(config)}


def parse_reply(body: Mapping[str, Any], request: Request) -> Reply:
    """Parse a response that was not streamed. Raises KeyError, TypeError or IndexError if it is not a reply."""
    builder = ReplyBuilder(request)
    builder.add(body)
    return builder.build()


class ReplyBuilder:
    """Builds a reply from the pieces of a stream; a response that was not streamed is one piece."""

    def __init__(self, request: Request) -> None:
        self._request = request
        self._text: list[str] = []
        self._reasoning: list[str] = []
        self._ids: list[int] = []
        self._logprobs: list[float] = []
        self._top: list[list[tuple[int | str, float]]] = []  # a token's id, or its text if the server returns no ids
        self._prompt_ids = request.prompt_ids
        self._finish = ""
        self._prompt_tokens = 0
        self._completion_tokens = 0
        self._cached: int | None = None

    def add(self, body: Mapping[str, Any]) -> str:
        """Add one piece and return its text."""
        if "error" in body:
            raise TypeError(str(body["error"])[:300])
        return self._add_llamacpp(body) if "content" in body else self._add_openai(body)

    def _add_llamacpp(self, body: Mapping[str, Any]) -> str:
        text: str = body["content"]
        self._text.append(text)
        self._ids += body.get("tokens") or []
        for entry in body.get("completion_probabilities") or []:
            self._logprobs.append(entry["logprob"])
            self._top.append([(top["id"], top["logprob"]) for top in entry["top_logprobs"]])
        if body.get("stop"):
            self._finish = "length" if body.get("stop_type") == "limit" else "stop"
            self._prompt_tokens = body["tokens_evaluated"]
            self._completion_tokens = body["tokens_predicted"]
            self._cached = body.get("timings", {}).get("cache_n")
        return text

    def _add_openai(self, body: Mapping[str, Any]) -> str:
        if usage := body.get("usage"):
            self._prompt_tokens = usage.get("prompt_tokens", 0)
            self._completion_tokens = usage.get("completion_tokens", 0)
            self._cached = (usage.get("prompt_tokens_details") or {}).get("cached_tokens")
        if not body["choices"]:
            return ""
        choice = body["choices"][0]
        message = choice.get("message") or choice.get("delta") or {}
        text = choice.get("text") or message.get("content") or ""
        self._text.append(text)
        self._reasoning.append(message.get("reasoning_content") or message.get("reasoning") or "")
        self._finish = choice.get("finish_reason") or self._finish
        self._ids += choice.get("token_ids") or []
        self._prompt_ids = choice.get("prompt_token_ids") or body.get("prompt_token_ids") or self._prompt_ids
        self._add_logprobs(choice.get("logprobs") or {})
        return text

    def _add_logprobs(self, logprobs: Mapping[str, Any]) -> None:
        for entry in logprobs.get("content") or []:
            self._logprobs.append(entry["logprob"])
            self._top.append([(_id_or_text(top["token"]), top["logprob"]) for top in entry.get("top_logprobs") or []])
        self._logprobs += logprobs.get("token_logprobs") or []
        for entry in logprobs.get("top_logprobs") or []:
            self._top.append([(_id_or_text(token), logprob) for token, logprob in (entry or {}).items()])

    @property
    def finished(self) -> bool:
        """Whether a finish reason has been received."""
        return bool(self._finish)

    def build(self) -> Reply:
        """Return the reply; `top_logprobs` is set only if alternatives were requested."""
        top = self._top if self._request.sampling.get("logprobs") else []
        has_ids = all(isinstance(token, int) for row in top for token, _ in row)
        return Reply(
            text="".join(self._text),
            finish=self._finish or "stop",
            prompt_tokens=self._prompt_tokens or len(self._prompt_ids or ()),
            completion_tokens=self._completion_tokens or len(self._ids),
            prompt_ids=self._prompt_ids,
            ids=self._ids or None,
            logprobs=self._logprobs or None,
            top_logprobs=[[logprob for _, logprob in row] for row in top] or None,
            top_ids=([[int(token) for token, _ in row] for row in top] if has_ids else None) or None,
            top_tokens=None if has_ids else [[str(token) for token, _ in row] for row in top],
            reasoning="".join(self._reasoning) or None,
            cached_tokens=self._cached,
        )


def _id_or_text(token: str) -> int | str:
    """Return the id of vLLM's "token_id:123", else the text of the token."""
    return int(token.removeprefix("token_id:")) if token.startswith("token_id:") else token
