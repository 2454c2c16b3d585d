"""How many tokens a server leaves for a completion, read from the words of its refusal."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Final

from agentsys.models.faults import ServerError


class PromptTooLong(Exception):
    """The prompt alone is longer than the context."""


_OUTPUT: Final = tuple(
    re.compile(pattern)
    for pattern in (
        r"at most (\d+) (?:completion|output|generated|new) tokens",
        r"max_(?:completion_|new_|output_)?tokens.{0,80}\[\s*\d+\s*,\s*(\d+)\s*\]",
        r"max_(?:completion_|new_|output_)?tokens: \d+ > (\d+), which is the maximum allowed",
        r"max_(?:completion_|new_|output_)?tokens`?'?\"? (?:value )?(?:must|should|has to|cannot|can not|may not)"
        r"[^.]{0,50}?(?:less than or equal to|at most|<=|exceed|greater than|more than|larger than)\D{0,4}(\d+)",
        r"max_(?:completion_|new_|output_)?tokens.{0,40} maximum (?:value |allowed )?(?:is|of|allowed)\D{0,4}(\d+)",
    )
)
"""The largest completion of a model, whatever the prompt."""
_CONTEXT: Final = tuple(
    re.compile(pattern)
    for pattern in (
        r"max_new_tokens`? must be <= (\d+)",
        r"context (?:length|size|window|limit)\D{0,60}(\d+)",
        r"(\d+) (?:tokens? )?(?:maximum )?context",
        r"maximum (?:sequence |total )?(?:length|tokens)\D{0,30}(\d+)",
    )
)
_PROMPT: Final = tuple(
    re.compile(pattern)
    for pattern in (
        r"(\d+) (?:tokens )?(?:in|from|of) (?:the |your )?(?:messages|prompt|inputs?|text input)",
        r"(\d+) `?(?:inputs?|prompt)`? tokens",
        r"(?:prompt|inputs?|messages) (?:contains?|has|have|is|resulted in|of|with)?\W*(\d+)",
    )
)
_TOTAL: Final = re.compile(r"(?:requested|request has|total of|resulted in) (?:about |a total of )?(\d+) tokens")
_SUM: Final = re.compile(r"(\d+) \+ (\d+) > (\d+)")
_DIFFERENCE: Final = re.compile(r"(\d+) > (\d+) - (\d+)")


def find_output_limit(message: str, requested: int) -> int | None:
    """The largest completion of the model, if the refused request asked for more."""
    text = _plain(message)
    if "inputs` tokens +" in text or "context l" in text:  # the sum of prompt and completion is refused
        return None
    limit = _first(_OUTPUT, text)
    return limit if limit is not None and 0 < limit < requested else None


def find_room(error: ServerError, requested: int) -> int | None:
    """The tokens that the prompt leaves of the context, if the request asked for more; None if nothing is said of it.

    Raises PromptTooLong if the prompt alone is too long.
    """
    text = _plain(error.message)
    context, prompt = _read_detail(error)
    if match := _SUM.search(text):
        prompt, context = int(match[1]), int(match[3])
    elif match := _DIFFERENCE.search(text):
        context, prompt = int(match[2]), int(match[3])
    context = _first(_CONTEXT, text) if context is None else context
    if context is None:
        return None
    prompt = _first(_PROMPT, text) if prompt is None else prompt
    if prompt is None and (match := _TOTAL.search(text)) and int(match[1]) > requested:
        prompt = int(match[1]) - requested
    if prompt is None:
        return None
    if prompt >= context:
        raise PromptTooLong(
            f"the prompt has {prompt} tokens, which the context of {context} does not hold: shorten it, or use a "
            "server with a longer context"
        )
    return context - prompt if context - prompt < requested else None


def _read_detail(error: ServerError) -> tuple[int | None, int | None]:
    """Context and prompt from the fields of llama.cpp's error."""
    if not isinstance(error.detail, dict):
        return None, None
    context, prompt = error.detail.get("n_ctx"), error.detail.get("n_prompt_tokens")
    return (context, prompt) if type(context) is int and type(prompt) is int else (None, None)


def _first(patterns: Iterable[re.Pattern[str]], text: str) -> int | None:
    return next((int(match[1]) for pattern in patterns if (match := pattern.search(text))), None)


def _plain(message: str) -> str:
    """The message in lower case, its numbers without separators."""
    return re.sub(r"(?<=\d)[,_](?=\d{3}\b)", "", message.lower())
