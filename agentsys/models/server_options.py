"""Options of a spec that are neither sampling nor the engine's own: body fields, access, and vLLM's flags."""

from __future__ import annotations

import difflib
import json
import re
from collections.abc import Mapping
from typing import Any, Final

from agentsys.models.access import Access
from agentsys.models.errors import SpecError
from agentsys.models.sampling import SETTINGS

EXTRA: Final = "extra."
ACCESS: Final = ("key", "header.", "query.")
"""Names, or beginnings of names, of the options that say how a server is reached."""

_VARIABLE: Final = re.compile(r"[A-Z][A-Z0-9_]{0,39}")
_HEADER: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9-]{0,99}")
_FLAG: Final = re.compile(r"(--)?[a-z][a-z0-9_-]*")
_SETTINGS: Final = (*SETTINGS, "stop", "thinking")
_OWN_FIELDS: Final = frozenset({"model", "messages", "prompt", "stream", "stream_options", "stop", *SETTINGS})
_OWN_FLAGS: Final = frozenset({"model", "served-model-name", "host", "port", "max-model-len"})
_IDENTITY_FLAGS: Final = (
    "dtype", "quantization", "kv-cache-dtype", "revision", "tokenizer", "chat-template", "hf-overrides", "rope-scaling",
    "load-format", "lora-modules", "reasoning-parser", "generation-config", "logits-processors", "speculative-config",
)  # fmt: skip
"""Flags that change what a model writes: they are part of its revision, so a run does not resume with others."""
SECRET: Final = re.compile("key|secret|token$|password")
"""Names of options that may hold a secret, which no spec may: run folders store specs."""


def is_access(name: str) -> bool:
    """Whether an option says how a server is reached."""
    return name == ACCESS[0] or name.startswith(ACCESS[1:])


def take_extra(options: dict[str, str]) -> dict[str, Any]:
    """Remove the `extra.NAME=JSON` options and return them as one object; a dot in the name opens an object in it.

    A value that is not JSON is a text. Raises SpecError.
    """
    extra: dict[str, Any] = {}
    for option in [name for name in options if name.startswith(EXTRA)]:
        *path, last = option.removeprefix(EXTRA).split(".")
        first = (path or [last])[0]
        if not all([*path, last]):
            raise SpecError(f"{option}: a name is missing; write extra.NAME=VALUE")
        if first in _OWN_FIELDS:
            raise SpecError(f"{option}: {first} is not an extra field; write ?{first}= if it is a sampling setting")
        if SECRET.search(last) and "tokens" not in last:
            raise SpecError(f"{option}: a secret must not be in a spec; use ?header.NAME= and the environment")
        inner = extra
        for name in path:
            inner = inner.setdefault(name, {})
            if not isinstance(inner, dict):
                raise SpecError(f"{option}: extra.{name} is a value already")
        if last in inner:
            raise SpecError(f"{option}: it is set twice")
        inner[last] = _json_or_text(options.pop(option))
    return extra


def _json_or_text(value: str) -> Any:
    try:
        return json.loads(value, parse_constant=lambda constant: constant)
    except ValueError:
        return value


def read_access(options: Mapping[str, str]) -> Access:
    """How a server is reached: `key=NAME`, `header.X-Title=NAME` and `query.NAME=VALUE`. Raises SpecError."""
    key, headers, query = "", [], []
    for option, value in options.items():
        name = option.partition(".")[2]
        if option == "key" or option.startswith("header."):
            if not _VARIABLE.fullmatch(value):  # perhaps the key itself, so it is not repeated
                variable = "AGENTSYS_API_KEY_JUDGE" if option == "key" else "AGENTSYS_HEADER_JUDGE"
                raise SpecError(f"?{option}= takes a name in capitals, not a value: JUDGE reads {variable}")
            if option == "key":
                key = value
            elif not _HEADER.fullmatch(name):
                raise SpecError(f"?{option}: '{name}' is not the name of a header")
            else:
                headers.append((name, value))
        elif option.startswith("query."):
            if not name or SECRET.search(name.lower()):
                raise SpecError(f"?{option}: a secret must not be in a spec; use ?key= or ?header.NAME=")
            query.append((name, value))
    access = Access(key, tuple(headers), tuple(query))
    access.read_headers()
    return access


def take_flags(options: dict[str, str]) -> tuple[tuple[str, str], ...]:
    """Remove every option that is no sampling setting and return it as a flag of vLLM. Raises SpecError.

    A name with `--` before it is a flag even if it is a sampling setting too, as `--seed`.
    """
    flags: dict[str, str] = {}
    for option in [name for name in options if name not in _SETTINGS]:
        name = option.removeprefix("--").replace("_", "-")
        if not _FLAG.fullmatch(option):
            raise SpecError(f"{option}: neither a sampling setting nor a flag of vLLM")
        if name in _OWN_FLAGS:
            fix = "use ?context=" if name == "max-model-len" else "agentsys sets it"
            raise SpecError(f"{option}: this flag of vLLM cannot be set; {fix}")
        if SECRET.search(name):
            raise SpecError(f"{option}: a secret must not be in a spec; set it in the environment")
        near = difflib.get_close_matches(name.replace("-", "_"), _SETTINGS, n=1, cutoff=0.85)
        if near and not option.startswith("--"):
            raise SpecError(f"{option}: did you mean {near[0]}? Write --{name} for a flag of vLLM")
        flags[name] = options.pop(option)
    return tuple(flags.items())


def flag_arguments(flags: tuple[tuple[str, str], ...]) -> list[str]:
    """The command-line arguments: `name=` and `name=true` are `--name`, `name=false` is `--no-name`."""
    arguments: list[str] = []
    for name, value in flags:
        if value.lower() in ("", "true"):
            arguments.append(f"--{name}")
        elif value.lower() == "false":
            arguments.append(f"--no-{name}")
        else:
            arguments += [f"--{name}", value]
    return arguments


def revision_with_flags(revision: str | None, flags: tuple[tuple[str, str], ...]) -> str | None:
    """A model's revision with the flags that change what it writes."""
    changes = [f"{name}={value}" for name, value in sorted(flags) if name in _IDENTITY_FLAGS]
    return " ".join([revision or "", *changes]).strip() or None
