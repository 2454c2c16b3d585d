"""Reads and checks the fields of a server's reply: types, ranges, and the several forms in which servers write them."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, Final

from agentsys.models.access import mask_key

LOWEST_LOGPROB: Final = -9999.0
"""Stands for a log-probability of minus infinity, as in OpenAI's replies: JSON and sums need a finite number."""
ROUNDING: Final = 1e-3
"""How far above 0 a log-probability may be by rounding."""
MAX_COUNT: Final = 2**40
"""A larger number of tokens is no count."""

_STOP: Final = frozenset({
    "stop", "eos", "eos_token", "end_turn", "stop_sequence", "end", "complete", "completed", "finished", "finish",
    "normal", "done", "finish_reason_stop",
})  # fmt: skip
_LENGTH: Final = frozenset({
    "length", "max_tokens", "max_output_tokens", "max_length", "max_new_tokens", "max_completion_tokens",
    "model_length", "limit", "token_limit", "context_length", "context_window_exceeded",
    "model_context_window_exceeded", "finish_reason_max_tokens", "truncated",
})  # fmt: skip
_THOUGHT_PARTS: Final = frozenset({"thinking", "reasoning", "thought", "reasoning_text", "summary_text"})


class BadReply(ValueError):
    """A server's JSON is not a reply."""


def excerpt(value: Any) -> str:
    """The beginning of a server's value, in one line."""
    return mask_key(" ".join(repr(value).split()))[:120]


def read_finish(value: Any) -> str:
    """`stop` for a whole reply, `length` for a truncated one, any other reason in lower case; "" if there is none."""
    if value == "stop":
        return "stop"
    if isinstance(value, Mapping):
        value = value.get("type") or value.get("reason")
    if not isinstance(value, str):
        return ""
    word = "_".join(value.lower().replace("-", " ").split())
    if word in _STOP:
        return "stop"
    return "length" if word in _LENGTH else mask_key(word)[:40]


def read_text(content: Any) -> tuple[str, str]:
    """Text and thought of a message's content: a string, null, or a list of parts. Raises BadReply."""
    if type(content) is str:
        return content, ""
    if content is None:
        return "", ""
    if isinstance(content, Mapping):
        content = [content]
    if not isinstance(content, list):
        raise BadReply(f"not a reply: its content is {excerpt(content)}")
    texts: list[str] = []
    thoughts: list[str] = []
    for part in content:
        if isinstance(part, str):
            texts.append(part)
        elif not isinstance(part, Mapping):
            raise BadReply(f"not a reply: a part of its content is {excerpt(part)}")
        elif part.get("type") in _THOUGHT_PARTS or ("thinking" in part and "text" not in part):
            thoughts.append(_joined(part))
        else:
            texts.append(_joined({name: part.get(name) for name in ("text", "content")}))
    return "".join(texts), "".join(thoughts)


def _joined(part: Any) -> str:
    """All text of a part, which may hold parts itself."""
    if isinstance(part, str):
        return part
    if isinstance(part, list):
        return "".join(map(_joined, part))
    if isinstance(part, Mapping):
        names = ("thinking", "reasoning", "text", "value", "content", "summary")
        return next((_joined(part[name]) for name in names if part.get(name)), "")
    return ""


def read_reasoning(message: Mapping[str, Any]) -> str:
    """The thought that a server returns beside the content."""
    for name in ("reasoning_content", "reasoning", "thinking"):
        if value := message.get(name):
            return value if isinstance(value, str) else _joined(value)
    return ""


def first_choice(choices: Any, body: Mapping[str, Any]) -> Mapping[str, Any] | None:
    """The first choice; None if a piece of a stream belongs to another one. Raises BadReply."""
    if isinstance(choices, Mapping):
        choices = [choices]
    if not isinstance(choices, list) or not choices:
        raise BadReply(f"not a reply: {excerpt(body)}")
    for choice in choices:
        if type(choice) is not dict:
            raise BadReply(f"not a reply: a choice is {excerpt(choice)}")
        if choice.get("index") in (0, None, "0"):
            return choice
    return None


def read_message(choice: Mapping[str, Any]) -> Mapping[str, Any]:
    """The message of a choice, or the piece of it in a stream. Raises BadReply."""
    message = choice.get("message") or choice.get("delta")
    if message is None or message == "":
        return {}
    if isinstance(message, str):
        return {"content": message}
    if not isinstance(message, Mapping):
        raise BadReply(f"not a reply: its message is {excerpt(message)}")
    return message


def read_count(value: Any) -> int | None:
    """A number of tokens, from a number or a string; None if it is no count."""
    if type(value) is int:
        return value if 0 <= value < MAX_COUNT else None
    if isinstance(value, str) and value.strip().isdecimal() and len(value) < 20:
        return read_count(int(value))
    if isinstance(value, float) and value.is_integer():  # false for NaN and infinity
        return read_count(int(value))
    return None


def read_timings(value: Any) -> dict[str, float]:
    """The engine's own times of a reply in seconds: `prompt_seconds` and `generation_seconds`; empty without them.

    llama.cpp measures them without waiting in its queue; `prompt_seconds` is for the prompt's tokens that were not in
    its prefix cache.
    """
    if not isinstance(value, Mapping):
        return {}
    times: dict[str, float] = {}
    for name, key in (("prompt_seconds", "prompt_ms"), ("generation_seconds", "predicted_ms")):
        milliseconds = value.get(key)
        if type(milliseconds) not in (int, float) or not 0 <= (milliseconds or 0) < math.inf:
            return {}
        times[name] = round((milliseconds or 0) / 1000, 4)
    return times


def read_list(value: Any) -> list[Any]:
    """A list, or an empty one for null. Raises BadReply."""
    if not value:
        return []
    if type(value) is not list:
        raise BadReply(f"not a reply: {excerpt(value)} where a list should be")
    return value


def read_ids(value: Any) -> list[int]:
    """Token ids. Raises BadReply."""
    ids = read_list(value)
    if ids and (set(map(type, ids)) != {int} or min(ids) < 0 or max(ids) >= 2**31):
        raise BadReply(f"not a reply: token ids {excerpt(ids[:5])}")
    return ids


def check_logprobs(values: list[Any]) -> list[float] | None:
    """The log-probabilities with LOWEST_LOGPROB for minus infinity; None if one of them is none."""
    try:
        if not values or (
            math.isfinite(math.fsum(values)) and max(values) <= ROUNDING and bool not in map(type, values)
        ):
            return values
    except (TypeError, ValueError, OverflowError):  # not a number, inf - inf, a sum beyond all floats
        pass
    checked: list[float] = []
    for value in values:
        if type(value) not in (int, float) or math.isnan(value) or value > ROUNDING:
            return None
        checked.append(max(float(value), LOWEST_LOGPROB) if value != -math.inf else LOWEST_LOGPROB)
    return checked
