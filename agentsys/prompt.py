"""Prompt files and their rendering into chat messages.

A prompt file is split into messages before it is rendered, so that data cannot start a message. A line that is exactly
`# system`, `# user` or `# assistant` starts a message. `# each STEP in STEPS` starts messages that are repeated for
each item of a list (the turns of a dialogue so far), up to `# end`. The text before the first such line is a note for
readers. A line `# image NAME` inside a message shows the picture, or the list of pictures, in a variable (`STEP.NAME`
for that of an item); nothing is shown where it is None.

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
_IMAGE = re.compile(r"^# image ([A-Za-z_]\w*(?:\.[A-Za-z_]\w*)?)[ \t\r]*$", re.MULTILINE)
_BAD_IMAGE = re.compile(r"^# image\b.*$", re.MULTILINE)
_LOOKS_LIKE_A_TOKEN = re.compile(
    r"<(?=[|｜][^<>\n]{1,60}[|｜]>|__\w{1,40}__>|"
    r"/?(image|img|video|audio|image_soft_token|start_of_image|end_of_image|IMG_CONTEXT|fake_token_around_image|"
    r"end_of_utterance|start_of_turn|end_of_turn|bos|eos|s)>)|\[(?=/?INST\]|IMG(_BREAK|_END)?\])"
)
"""The beginning of what engines may read as a token of pictures or turns."""
_FILTERS = ("join", "length", "lower", "upper", "title", "trim", "first", "last", "default", "items", "one_line")
_ALLOWED = (
    nodes.Template, nodes.Output, nodes.TemplateData, nodes.Name, nodes.Const, nodes.Getattr, nodes.Getitem,
    nodes.Filter, nodes.If, nodes.For, nodes.Compare, nodes.Operand, nodes.And, nodes.Or, nodes.Not, nodes.Test,
    nodes.CondExpr, nodes.Tuple, nodes.List, nodes.Keyword,
)  # fmt: skip


ChatRole = Literal["system", "user", "assistant"]


class Message(TypedDict):
    """One chat message; `content` is text, or a list of blocks: {"type": "text", "text"} and those of pictures."""

    role: ChatRole
    content: str | list[dict[str, Any]]


class PromptError(ValueError):
    """A prompt that cannot be read or rendered. The message names the prompt and the fix."""


@dataclass(frozen=True, slots=True)
class Part:
    """A message's role and template; for a repeated one, `each` and `of` name the item and the list.

    A template with pictures has their names between its texts, which are `pieces`: text, name, text, and so on.
    Adjacent parts with the same `block` number are repeated together.
    """

    role: ChatRole
    pieces: tuple[str, ...]
    each: str = ""
    of: str = ""
    block: int = 0

    @property
    def template(self) -> str:
        """The text of the message as the prompt file has it."""
        return "\n".join(f"# image {piece}" if i % 2 else piece for i, piece in enumerate(self.pieces)).strip()


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
                pieces = _split_at_images(template, name)
                parts.append(Part(cast("ChatRole", mark[1]), pieces, each, of, block))
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

    @property
    def pictures(self) -> list[tuple[str, str]]:
        """Where its pictures are: ("", variable), or (list, field of its items)."""
        places: dict[tuple[str, str], None] = {}
        for part in self.parts:
            for name in part.pieces[1::2]:
                variable, _, item_field = name.partition(".")
                places[(part.of, item_field) if part.of and variable == part.each else ("", variable)] = None
        return list(places)

    def render(self, inputs: Mapping[str, Any]) -> list[Message]:
        """The chat messages for these variables, of which those of pictures are references (pictures.is_reference).

        In a prompt that shows a picture, texts that engines may read as a token get a space inside: "< |image_pad|>".
        Raises PromptError for an undefined variable, and beyond a limit.
        """
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
                    texts = [self._render_text(text, scope, bool(of), deadline, left) for text in part.pieces[::2]]
                    left -= sum(map(len, texts))
                    pictures = [_find_pictures(name, scope, self.name) for name in part.pieces[1::2]]
                    messages.append(Message(role=part.role, content=_join_content(texts, pictures)))
        return _without_tokens(messages) if any(isinstance(m["content"], list) for m in messages) else messages

    def _render_text(self, text: str, scope: Mapping[str, Any], is_repeated: bool, deadline: float, left: int) -> str:
        values = None if is_repeated else _short_values(text, scope)
        if values is not None:
            return _render_constant(text, self.name, values)
        return _render(text, self.name, scope, deadline, left)


def without_note(text: str) -> str:
    """The text of a prompt file without the note for readers above its first message."""
    first = _MARK.search(text)
    return text[first.start() if first else 0 :]


def _split_at_images(template: str, name: str) -> tuple[str, ...]:
    """The texts of a message and between them the names of its pictures. Raises PromptError."""
    pieces = _IMAGE.split(template)
    texts = [text.strip() for text in pieces[::2]] if len(pieces) > 1 else pieces
    for text in texts:
        if wrong := _BAD_IMAGE.search(text):
            raise PromptError(f"prompt {name}: '{wrong[0][:60]}': write '# image NAME' with the name of one variable")
        _compile(text, name)
    pieces[::2] = texts
    return tuple(pieces)


def _find_pictures(name: str, scope: Mapping[str, Any], prompt: str) -> list[dict[str, Any]]:
    """The references in a variable, which is a picture, a list of pictures, or None. Raises PromptError."""
    variable, _, item_field = name.partition(".")
    if variable not in scope:
        raise PromptError(f"prompt {prompt}: '{variable}' is undefined")
    value = scope[variable]
    if item_field:
        value = value.get(item_field) if isinstance(value, Mapping) else getattr(value, item_field, None)
    values = value if isinstance(value, list | tuple) else [] if value is None else [value]
    for item in values:
        if not (isinstance(item, Mapping) and item.get("type") == "image"):
            raise PromptError(f"prompt {prompt}: '# image {name}': a picture is needed, not {type(item).__name__}")
    return [dict(item) for item in values]


def _join_content(texts: list[str], pictures: list[list[dict[str, Any]]]) -> str | list[dict[str, Any]]:
    """A message's content: text where no picture is shown, else blocks in the order of the prompt."""
    if not any(pictures):
        return "\n".join(text for text in texts if text)
    blocks: list[dict[str, Any]] = []
    for text, shown in zip(texts, [*pictures, []], strict=True):
        blocks += [{"type": "text", "text": text}] if text else []
        blocks += shown
    return blocks


def _without_tokens(messages: list[Message]) -> list[Message]:
    """The messages of a chat with pictures, which its server tokenizes together with what looks like a token."""

    def change(text: str) -> str:
        return _LOOKS_LIKE_A_TOKEN.sub(lambda match: f"{match[0]} ", text)

    for message in messages:
        content = message["content"]
        if isinstance(content, str):
            message["content"] = change(content)
        else:
            message["content"] = [b | {"text": change(b["text"])} if b["type"] == "text" else b for b in content]
    return messages


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
