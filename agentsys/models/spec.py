"""Model specs: one string that names a model, and its sampling after a `?`.

    embedded                          the default catalogue model, inside this process
    embedded:NAME or embedded:FILE.gguf
    http://host:8000/v1               any OpenAI-compatible server; `#NAME` where it has several models;
    http://a/v1,http://b/v1           several servers with the same model, separated by commas, share the load
    vllm:MODEL                        start vLLM as a child (hub name or folder)
    transformers:MODEL                start the server of transformers
    scripted:FILE                     replies from a file, for tests
    langchain:MODULE:CLASS            any LangChain chat model; its arguments after the `?`

`embedded?temperature=0.2&max_tokens=300` sets the sampling; `?temperature=0.2` alone keeps the default model.
"""

from __future__ import annotations

import importlib
import os
import re
import sys
from functools import lru_cache
from typing import TYPE_CHECKING, Final
from urllib.parse import parse_qsl, urlsplit

from agentsys.models.errors import SpecError
from agentsys.models.sampling import check

if TYPE_CHECKING:
    from langchain_core.language_models import BaseChatModel

    from agentsys.models.endpoint import Endpoint
    from agentsys.models.engines import ChildEngine, EmbeddedEngine, RemoteEngine

DEFAULT_SPEC: Final = "embedded"
_FORMS: Final = (
    "embedded, embedded:NAME, http://host:port/v1, vllm:MODEL, transformers:MODEL, "
    "scripted:FILE, langchain:MODULE:CLASS"
)

_ENGINE_LEAST: Final = {"slots": 1, "context": 1, "timeout": 1}
_ENGINE_OPTIONS: Final = {
    "embedded": ("slots", "context"),
    "http": ("timeout",),
    "https": ("timeout",),
    "vllm": ("context",),
    "transformers": (),
}


def split_spec(spec: str, default: str = DEFAULT_SPEC) -> tuple[str, dict[str, str]]:
    """The model part of a spec (or `default`'s, if it is empty) and its options, those of `default` included."""
    base, _, query = spec.strip().partition("?")
    options = dict(parse_qsl(query, keep_blank_values=True))
    if base:
        return base, options
    fallback, inherited = split_spec(default)
    return fallback, inherited | options


def load_model(spec: str = DEFAULT_SPEC, *, default: str = DEFAULT_SPEC) -> BaseChatModel:
    """The chat model that a spec names. Nothing is started before the first request.

    Equal specs give the same object, and specs that differ only in sampling share one engine and its limit.
    Raises SpecError for an unknown form or option, and inside the Studio server for any spec that a web page must not
    be able to use (see `served_to_browsers`).
    """
    base, options = split_spec(spec, default)
    if served_to_browsers():
        _refuse_unsafe(base, options)
    return _load(base, tuple(options.items()))


def served_to_browsers() -> bool:
    """Whether this process is the LangGraph server, whose context any web page that the user has open can send."""
    return "langgraph_api" in sys.modules


def _refuse_unsafe(base: str, options: dict[str, str]) -> None:
    from agentsys.models.weights import CATALOGUE

    kind, _, name = base.partition(":")
    if base == "embedded" or (kind == "embedded" and name in CATALOGUE):
        if "slots" in options or "context" in options:
            raise SpecError("in Studio, slots and context cannot be set")
        return
    allowed = {url.strip().rstrip("/") for url in os.environ.get("AGENTSYS_ENDPOINTS", "").split(",") if url.strip()}
    if kind in ("http", "https"):
        foreign = [url for url in base.partition("#")[0].split(",") if url.rstrip("/") not in allowed]
        if not foreign:
            return
        raise SpecError(
            f"in Studio, {foreign[0]} is not allowed; start the server with AGENTSYS_ENDPOINTS={foreign[0]} to allow it"
        )
    known = ", ".join(CATALOGUE)
    raise SpecError(
        f"in Studio, a model is 'embedded', 'embedded:' with one of {known}, or an allowed URL; not '{kind}:'"
    )


@lru_cache(maxsize=256)
def _load(base: str, options: tuple[tuple[str, str], ...]) -> BaseChatModel:
    kind, _, rest = base.partition(":")
    given = dict(options)
    if kind == "langchain":
        return _langchain(rest, given)
    if kind == "scripted":
        from agentsys.models.scripted import ScriptedChatModel

        return ScriptedChatModel.from_file(rest, check(given))
    from agentsys.models.chat import EndpointChatModel

    engine_options = tuple((name, given.pop(name)) for name in _ENGINE_LEAST if name in given)
    return EndpointChatModel(engine=_engine(base, engine_options), sampling=check(given))


@lru_cache(maxsize=64)
def _engine(base: str, options: tuple[tuple[str, str], ...]) -> EmbeddedEngine | RemoteEngine | ChildEngine:
    from agentsys.models.engines import EMBEDDED_CONTEXT, EMBEDDED_SLOTS, ChildEngine, EmbeddedEngine, RemoteEngine
    from agentsys.models.weights import CATALOGUE, DEFAULT

    kind, _, rest = base.partition(":")
    numbers = {name: _whole(name, value, kind) for name, value in options}
    if kind == "embedded":
        if rest and rest not in CATALOGUE and not rest.endswith(".gguf"):
            raise SpecError(f"embedded:{rest}: the catalogue has {', '.join(CATALOGUE)}; a file ends in .gguf")
        return EmbeddedEngine(
            rest or DEFAULT, numbers.get("slots", EMBEDDED_SLOTS), numbers.get("context", EMBEDDED_CONTEXT)
        )
    if kind in ("http", "https"):
        urls, _, model = base.partition("#")
        endpoint = _endpoint(tuple(address_of(url) for url in urls.split(",")), numbers.get("timeout", 600))
        return RemoteEngine(endpoint, model or None)
    if kind in ("vllm", "transformers") and rest:
        return ChildEngine(kind, rest, context=numbers.get("context"))
    raise SpecError(f"'{base}' is no model spec; there are {_FORMS}")


@lru_cache(maxsize=64)
def _endpoint(addresses: tuple[str, ...], timeout: int) -> Endpoint:
    """One for all models of a server, so that they share its limit."""
    from agentsys.models.endpoint import Endpoint

    return Endpoint(list(addresses), timeout=timeout)


def _whole(name: str, value: str, kind: str) -> int:
    """The value of an engine's option. Raises SpecError."""
    if name not in _ENGINE_OPTIONS.get(kind, _ENGINE_LEAST):
        raise SpecError(f"{name}={value}: there is no option '{name}' with {kind}")
    if not value.isdecimal() or int(value) < _ENGINE_LEAST[name]:
        raise SpecError(f"{name}={value}: a whole number of at least {_ENGINE_LEAST[name]} is needed")
    return int(value)


def address_of(url: str) -> str:
    """A server's address from its URL, without /v1. Raises SpecError."""
    parts = urlsplit(url.strip())
    if "@" in parts.netloc:
        raise SpecError("keys do not belong in a URL; set AGENTSYS_API_KEY")
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise SpecError(f"'{url}' is no URL; a server is given as http://host:port/v1")
    return f"{parts.scheme}://{parts.netloc}{parts.path.rstrip('/').removesuffix('/v1')}"


def _langchain(target: str, options: dict[str, str]) -> BaseChatModel:
    module, _, name = target.partition(":")
    if secret := [option for option in options if re.search("key|secret|token$|password", option)]:
        raise SpecError(f"langchain:{target}: {secret[0]} does not belong in a spec; set it in the environment")
    from langchain_core.language_models import BaseChatModel

    try:
        model = getattr(importlib.import_module(module), name)(**options)
    except Exception as err:  # whatever the integration raises: a missing key, a wrong argument
        raise SpecError(f"langchain:{target}: {' '.join(str(err).split())}") from None
    if not isinstance(model, BaseChatModel):
        raise SpecError(f"langchain:{target} is no LangChain chat model")
    return model
