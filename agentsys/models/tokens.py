"""Token mode: the client renders a conversation into token ids.

The chat template is rendered with a placeholder for every message's content and split there. The template's pieces are
encoded with special tokens, each content without, so that "<|im_end|>" in a record stays six plain tokens. A template
that depends on the content, or repeats it, cannot be split; the engine then falls back to chat mode.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any, Protocol

from jinja2 import TemplateError
from jinja2.sandbox import ImmutableSandboxedEnvironment


class TemplateRefused(Exception):
    """The conversation cannot be rendered in token mode; the message says why."""


class Tokenizer(Protocol):
    """A model's tokenizer and chat template."""

    template: str
    special: dict[str, str]
    """The template's variables bos_token and eos_token."""
    stop_ids: frozenset[int]

    async def encode(self, text: str, *, special: bool) -> list[int]:
        """Return the ids of a text; with `special`, "<|im_end|>" is one special token, else plain text."""
        ...


async def render(
    tokenizer: Tokenizer, messages: Sequence[Mapping[str, str]], variables: Mapping[str, Any] | None = None
) -> list[int]:
    """Return the ids of the conversation up to the start of the assistant's reply. Raises TemplateRefused.

    `variables` are further variables of the template, as `enable_thinking`.
    """
    options = {"variables": json.dumps(variables, sort_keys=True)} if variables else {}
    pieces = template_pieces(tokenizer.template, tuple(m["role"] for m in messages), **tokenizer.special, **options)
    ids = await tokenizer.encode(pieces[0], special=True)
    for message, piece in zip(messages, pieces[1:], strict=True):
        ids = ids + await tokenizer.encode(message["content"], special=False)
        ids = ids + await tokenizer.encode(piece, special=True)
    return ids


@lru_cache(maxsize=256)
def template_pieces(
    template: str, roles: tuple[str, ...], bos_token: str = "", eos_token: str = "", variables: str = "{}"
) -> tuple[str, ...]:
    """Return the template's text before, between and after the contents of messages with these roles.

    `variables` is a JSON object with further variables of the template. Raises TemplateRefused.
    """
    marks = [f"\ue000{i}\ue001" for i in range(len(roles))]
    messages = [{"role": role, "content": mark} for role, mark in zip(roles, marks, strict=True)]
    try:
        own = {"messages": messages, "bos_token": bos_token, "eos_token": eos_token, "tools": None}
        text = _compiled(template).render({"add_generation_prompt": True, **json.loads(variables), **own})
    except TemplateError as err:
        raise TemplateRefused(f"the chat template refuses the roles {', '.join(roles)}: {err}") from None
    pieces = []
    for mark in marks:
        before, separator, text = text.partition(mark)
        if not separator or mark in text:
            raise TemplateRefused("the chat template does not place every message once and in order")
        pieces.append(before)
    return (*pieces, text)


@lru_cache(maxsize=16)
def _compiled(template: str) -> Any:
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols"]
    )
    environment.filters["tojson"] = lambda value, **options: json.dumps(value, ensure_ascii=False, **options)
    environment.globals["raise_exception"] = _refuse
    environment.globals["strftime_now"] = lambda form: ""  # a date in the prompt would break the prefix cache each day
    return environment.from_string(template)


def _refuse(message: str) -> None:
    raise TemplateError(message)
