"""Prompt files and their rendering into chat messages.

A prompt file is split into messages before it is rendered, so that data cannot start a message. A line that is exactly
`# system`, `# user` or `# assistant` starts a message. `# each STEP in STEPS` starts messages that are repeated for
each item of a list (the turns of a dialogue so far), up to `# end`. The text before the first such line is a note for
readers.

The text of a message is a subset of Jinja: variables, `if`, `for` and the filters below. Calls, arithmetic, macros and
imports are refused, each iteration of a loop checks a deadline and each piece of output the size, so that an untrusted
template (from Studio's form, for example) ends in bounded time and memory.
"""

from __future__ import annotations

import hashlib
import re
import time
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from itertools import groupby
from pathlib import Path
from typing import Any, Final, Literal, TypedDict, cast

from jinja2 import StrictUndefined, Template, TemplateError, nodes
from jinja2.meta import find_undeclared_variables
from jinja2.sandbox import ImmutableSandboxedEnvironment

MAX_TEMPLATE: Final = 64_000
"""Characters in one prompt file."""
MAX_RENDERED: Final = 1_000_000
"""Characters in all messages of one rendered prompt."""
MAX_SECONDS: Final = 1.0
"""CPU time of one prompt's rendering: a busy machine must not fail records."""

_MARK = re.compile(r"^# (system|user|assistant|end|each ([A-Za-z_]\w*) in ([A-Za-z_]\w*))[ \t\r]*$", re.MULTILINE)
_FILTERS = ("join", "length", "lower", "upper", "title", "trim", "first", "last", "default", "items", "one_line")
_ALLOWED = (
    nodes.Template, nodes.Output, nodes.TemplateData, nodes.Name, nodes.Const, nodes.Getattr, nodes.Getitem,
    nodes.Filter, nodes.If, nodes.For, nodes.Compare, nodes.Operand, nodes.And, nodes.Or, nodes.Not, nodes.Test,
    nodes.CondExpr, nodes.Tuple, nodes.List, nodes.Keyword,
)  # fmt: skip


ChatRole = Literal["system", "user", "assistant"]


class Message(TypedDict):
    """One chat message; `content` is text, or a list of content blocks (text and images)."""

    role: ChatRole
    content: str | list[dict[str, Any]]


class PromptError(ValueError):
    """A prompt that cannot be read or rendered. The message names the prompt and the fix."""


@dataclass(frozen=True, slots=True)
class Part:
    """A message's role and template; for a repeated one, `each` and `of` name the item and the list.

    Adjacent parts with the same `block` number are repeated together.
    """

    role: ChatRole
    template: str
    each: str = ""
    of: str = ""
    block: int = 0


@dataclass(frozen=True, slots=True)
class Prompt:
    """A parsed prompt: its name, its messages before rendering, and the file's text."""

    name: str
    parts: tuple[Part, ...]
    text: str

    @staticmethod
    def parse(text: str, name: str) -> Prompt:
        """Parse a prompt file's text. Raises PromptError if it has no message or a template is not allowed."""
        if len(text) > MAX_TEMPLATE:
            raise PromptError(f"prompt {name}: {len(text):,} characters; at most {MAX_TEMPLATE:,} are allowed")
        marks = list(_MARK.finditer(text))
        ends = [mark.start() for mark in marks[1:]] + [len(text)]
        parts: list[Part] = []
        block = 0
        each = of = ""
        for number, (mark, end) in enumerate(zip(marks, ends, strict=False)):
            template = text[mark.end() : end].strip()
            if mark[1] in ("system", "user", "assistant"):
                _compile(template, name)
                parts.append(Part(cast("ChatRole", mark[1]), template, each, of, block))
                continue
            if template:
                raise PromptError(f"prompt {name}: text after '{mark[0].strip()}' belongs to no message")
            if bool(mark[2]) == bool(each):
                raise PromptError(f"prompt {name}: '{mark[0].strip()}': '# each' and '# end' come in pairs, not nested")
            each, of, block = mark[2] or "", mark[3] or "", number
        if not parts:
            raise PromptError(f"prompt {name}: no line '# system', '# user' or '# assistant' opens a message")
        if each:
            raise PromptError(f"prompt {name}: '# each {each} in {of}' has no '# end'")
        return Prompt(name, tuple(parts), text)

    @staticmethod
    def load(path: str | Path, name: str | None = None) -> Prompt:
        """Read a prompt file. Raises PromptError if it is missing, not UTF-8 or not a prompt."""
        try:
            return Prompt.parse(Path(path).read_text(encoding="utf-8-sig"), name or Path(path).stem)
        except OSError as err:
            raise PromptError(f"prompt file {path}: {err.strerror}") from None
        except UnicodeDecodeError:
            raise PromptError(f"prompt file {path}: not UTF-8 text") from None

    @property
    def sha256(self) -> str:
        """Hex SHA-256 of the prompt's text without the note for readers at its top; part of a run's fingerprint."""
        return hashlib.sha256(without_note(self.text).encode()).hexdigest()

    def render(self, inputs: Mapping[str, Any]) -> list[Message]:
        """The chat messages for these variables. Raises PromptError for an undefined one, or beyond a limit."""
        messages: list[Message] = []
        deadline, left = time.thread_time() + MAX_SECONDS, MAX_RENDERED
        for _, group in groupby(self.parts, key=lambda part: part.block):
            parts = list(group)
            of = parts[0].of
            if of and not isinstance(inputs.get(of), list | tuple):
                raise PromptError(f"prompt {self.name}: '{of}' is {'not a list' if of in inputs else 'undefined'}")
            for item in inputs[of] if of else (None,):
                scope = {**inputs, parts[0].each: item} if of else inputs
                for part in parts:
                    values = None if of else _short_values(part.template, scope)
                    if values is not None:
                        content = _render_constant(part.template, self.name, values)
                    else:
                        content = _render(part.template, self.name, scope, deadline, left)
                    left -= len(content)
                    messages.append(Message(role=part.role, content=content))
        return messages


def without_note(text: str) -> str:
    """The text of a prompt file without the note for readers above its first message."""
    first = _MARK.search(text)
    return text[first.start() if first else 0 :]


class _DeadlinePassed(TemplateError):
    """The rendering passed its deadline."""


def _timed(items: Iterable[Any], deadline: float) -> Iterator[Any]:
    for item in items:
        _check_deadline(deadline)
        yield item


def _check_deadline(deadline: float) -> None:
    if time.thread_time() > deadline:
        raise _DeadlinePassed(f"took longer than {MAX_SECONDS} s")


def _join(items: Iterable[Any], separator: str = "") -> str:
    """Jinja's `join`, but bounded: a text that joins itself is quadratic in size."""
    pieces: list[str] = []
    size = 0
    for item in items:
        pieces.append(str(item))
        size += len(pieces[-1]) + len(separator)
        if size > MAX_RENDERED:
            raise TemplateError(f"a joined text is longer than {MAX_RENDERED:,} characters")
    return separator.join(pieces)


def one_line(text: str) -> str:
    """The text with its white space folded, so that several lines cannot look like several entries of a list."""
    return " ".join(str(text).split())


def _environment() -> ImmutableSandboxedEnvironment:
    environment = ImmutableSandboxedEnvironment(undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    custom = {"join": _join, "one_line": one_line, "_timed": _timed}
    environment.filters = {name: environment.filters[name] for name in _FILTERS if name not in custom} | custom
    environment.globals.clear()
    return environment


_ENVIRONMENT = _environment()


@lru_cache(maxsize=1024)
def _compile(text: str, name: str) -> Template:
    try:
        tree = _ENVIRONMENT.parse(text)
        for node in tree.find_all(nodes.Node):
            if not isinstance(node, _ALLOWED):
                raise PromptError(
                    f"prompt {name}: '{type(node).__name__.lower()}' is not allowed; use variables, if, for and filters"
                )
            if isinstance(node, nodes.Name) and node.name.startswith("_"):
                raise PromptError(f"prompt {name}: '{node.name}': a name that begins with '_' is not allowed")
            if isinstance(node, nodes.Filter) and node.name not in _FILTERS:
                raise PromptError(f"prompt {name}: no filter '{node.name}'; the filters are {', '.join(_FILTERS)}")
        for loop in list(tree.find_all(nodes.For)):
            if loop.recursive:
                raise PromptError(f"prompt {name}: a recursive loop is not allowed")
            deadline = nodes.Name("_deadline", "load")
            loop.iter = nodes.Filter(loop.iter, "_timed", [deadline], [], None, None, lineno=loop.lineno)
        tree.set_environment(_ENVIRONMENT)
        return Template.from_code(_ENVIRONMENT, _ENVIRONMENT.compile(tree), {})
    except (RecursionError, MemoryError, SyntaxError):  # Python's own limits
        raise PromptError(f"prompt {name}: nested too deeply") from None
    except (TemplateError, ValueError) as err:
        raise err if isinstance(err, PromptError) else PromptError(f"prompt {name}: {err}") from None


@lru_cache(maxsize=1024)
def _variables(text: str) -> frozenset[str]:
    return frozenset(find_undeclared_variables(_ENVIRONMENT.parse(text)))


def _short_values(text: str, inputs: Mapping[str, Any]) -> tuple[tuple[str, str], ...] | None:
    """A template's variables if all are short texts (languages, for example): the rendered message is then cached."""
    values = tuple((variable, inputs.get(variable)) for variable in sorted(_variables(text)))
    if all(isinstance(value, str) and len(value) < 40 for _, value in values):
        return cast("tuple[tuple[str, str], ...]", values)
    return None


@lru_cache(maxsize=1024)
def _render_constant(text: str, name: str, values: tuple[tuple[str, str], ...]) -> str:
    return _render(text, name, dict(values), time.thread_time() + MAX_SECONDS, MAX_RENDERED)


def _render(text: str, name: str, inputs: Mapping[str, Any], deadline: float, left: int) -> str:
    template = _compile(text, name)
    pieces: list[str] = []
    size = 0
    try:
        _check_deadline(deadline)
        for piece in template.generate(inputs, _deadline=deadline):
            size += len(piece)
            _check_deadline(deadline)
            if size > left:
                raise PromptError(
                    f"prompt {name}: rendered to more than the {MAX_RENDERED:,} characters that are allowed"
                )
            pieces.append(piece)
    except TemplateError as err:
        raise PromptError(f"prompt {name}: {err}") from None
    except (TypeError, ValueError, ArithmeticError, LookupError, AttributeError, RecursionError) as err:
        if isinstance(err, PromptError):
            raise
        raise PromptError(f"prompt {name}: {err}") from None
    return "".join(pieces)
