"""Token mode: the client renders a conversation into token ids.

The chat template is rendered with a placeholder for every message's content and split there. The template's pieces are
encoded with special tokens, each content without, so that "<|im_end|>" in a record stays six plain tokens. A template
that depends on the content, or repeats it, cannot be split; the engine then falls back to chat mode.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from typing import Any, Protocol

from jinja2 import TemplateError, meta, nodes
from jinja2.ext import Extension
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment


class TemplateRefused(Exception):
    """The conversation cannot be rendered in token mode; the message says why."""


class RolesRefused(TemplateRefused):
    """The template has no place for a role, as for system texts in Gemma's."""


class Tokenizer(Protocol):
    """A model's tokenizer and chat template."""

    template: str
    special: dict[str, str]
    """The template's variables bos_token and eos_token."""
    stop_ids: frozenset[int]

    async def encode(self, text: str, *, special: bool) -> list[int]:
        """Return the ids of a text; with `special`, "<|im_end|>" is one special token, else plain text."""
        ...

    async def decode(self, ids: Sequence[int]) -> str:
        """Return the text of ids, with the texts of special tokens."""
        ...


async def render(
    tokenizer: Tokenizer,
    messages: Sequence[Mapping[str, str]],
    variables: Mapping[str, Any] | None = None,
    end: Callable[[str], str] = lambda text: text,
) -> list[int]:
    """Return the ids of the conversation up to the start of the assistant's reply. Raises TemplateRefused.

    `variables` are further variables of the template, as `enable_thinking`. `end` changes the template's text after
    the last message.
    """
    options = {"variables": json.dumps(variables, sort_keys=True)} if variables else {}
    pieces = template_pieces(tokenizer.template, tuple(m["role"] for m in messages), **tokenizer.special, **options)
    ids = await tokenizer.encode(pieces[0], special=True)
    for i, message in enumerate(messages, 1):
        ids = ids + await tokenizer.encode(message["content"], special=False)
        ids = ids + await tokenizer.encode(pieces[i] if i < len(messages) else end(pieces[i]), special=True)
    return ids


@lru_cache(maxsize=256)
def template_pieces(
    template: str, roles: tuple[str, ...], bos_token: str = "", eos_token: str = "", variables: str = "{}"
) -> tuple[str, ...]:
    """Return the template's text before, between and after the contents of messages with these roles.

    A template that takes contents as lists of parts gets them so. `variables` is a JSON object with further variables
    of the template. Raises TemplateRefused, or RolesRefused if another order or choice of roles may be accepted.
    """
    marks = [f"\ue000{i}\ue001" for i in range(len(roles))]
    own = {"bos_token": bos_token, "eos_token": eos_token, "tools": None}
    refusal: TemplateRefused = TemplateRefused("the chat template does not place every message once and in order")
    for contents in (marks, [[{"type": "text", "text": mark}] for mark in marks]):
        messages = [{"role": role, "content": content} for role, content in zip(roles, contents, strict=True)]
        try:
            text = _compiled(template).render(
                {"add_generation_prompt": True, **json.loads(variables), **own, "messages": messages}
            )
        except TemplateError as err:
            if contents is marks:
                refusal = RolesRefused(f"the chat template refuses the roles {', '.join(roles)}: {err}")
            continue
        except TypeError:  # text where the template takes parts, or the other way around
            continue
        if (pieces := _split_at(text, marks)) is not None:
            return pieces
    raise refusal


def _split_at(text: str, marks: Sequence[str]) -> tuple[str, ...] | None:
    """The text between the marks; None unless each is there once and in order."""
    pieces = []
    for mark in marks:
        before, separator, text = text.partition(mark)
        if not separator or mark in text:
            return None
        pieces.append(before)
    return (*pieces, text)


def merge_system(messages: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """The messages with each system text before the next user message, after a blank line."""
    merged: list[dict[str, Any]] = []
    for role, numbers in group_system([message["role"] for message in messages]):
        *systems, last = (messages[number] for number in numbers)
        texts = [_text(message["content"]) for message in systems]
        if last["role"] == "system":
            merged.append({"role": role, "content": "\n\n".join([*texts, _text(last["content"])])})
        else:
            merged.append({**last, "content": _put_before(texts, last["content"]) if texts else last["content"]})
    return merged


def group_system(roles: Sequence[str]) -> list[tuple[str, list[int]]]:
    """The messages that a template without a system role gets: the role of each, and the numbers of what it joins.

    System texts join the next user message; without one, they are a user message at the end.
    """
    groups: list[tuple[str, list[int]]] = []
    waiting: list[int] = []
    for number, role in enumerate(roles):
        if role == "system":
            waiting.append(number)
        elif role == "user":
            groups.append((role, [*waiting, number]))
            waiting = []
        else:
            groups.append((role, [number]))
    return [*groups, ("user", waiting)] if waiting else groups


def _text(content: Any) -> str:
    return content if isinstance(content, str) else "\n\n".join(str(part.get("text", "")) for part in content)


def _put_before(texts: list[str], content: Any) -> Any:
    if isinstance(content, str):
        return "\n\n".join([*texts, content])
    return [{"type": "text", "text": "\n\n".join(texts)}, *content]


@lru_cache(maxsize=64)
def template_variables(template: str) -> frozenset[str]:
    """The variables that a chat template reads without setting them first. Raises TemplateRefused."""
    try:
        return frozenset(meta.find_undeclared_variables(_environment().parse(template)))
    except TemplateError as err:
        raise TemplateRefused(f"the chat template cannot be read: {err}") from None


class _Generation(Extension):
    """Passes over `{% generation %}`, with which templates mark what a trainer should learn."""

    tags = {"generation"}  # noqa: RUF012 as jinja2 declares it

    def parse(self, parser: Parser) -> list[nodes.Node]:
        """Return the nodes inside the block."""
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


@lru_cache(maxsize=16)
def _compiled(template: str) -> Any:
    return _environment().from_string(template)


@lru_cache(maxsize=1)
def _environment() -> ImmutableSandboxedEnvironment:
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols", _Generation]
    )
    environment.filters["tojson"] = lambda value, **options: json.dumps(value, ensure_ascii=False, **options)
    environment.globals["raise_exception"] = _refuse
    environment.globals["strftime_now"] = lambda form: ""  # a date in the prompt would break the prefix cache each day
    return environment


def _refuse(message: str) -> None:
    raise TemplateError(message)
