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
import sys
from functools import lru_cache
from typing import TYPE_CHECKING, Final
from urllib.parse import parse_qsl, urlsplit

from agentsys.models.errors import SpecError
from agentsys.models.sampling import check

if TYPE_CHECKING:
    from langchain_core.language_models import BaseChatModel

    from agentsys.models.engines import ChildEngine, EmbeddedEngine, RemoteEngine

DEFAULT_SPEC: Final = "embedded"
_FORMS: Final = (
    "embedded, embedded:NAME, http://host:port/v1, vllm:MODEL, transformers:MODEL, "
    "scripted:FILE, langchain:MODULE:CLASS"
)


def split_spec(spec: str, default: str = DEFAULT_SPEC) -> tuple[str, dict[str, str]]:
    """The model part of a spec (or `default`'s, if it is empty) and its options, those of `default` included."""
    base, _, query = spec.strip().partition("?")
    options = dict(parse_qsl(query, keep_blank_values=True))
    if base or default == spec:
        return base, options
    fallback, inherited = split_spec(default, default)
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
    allowed = {url.rstrip("/") for url in os.environ.get("AGENTSYS_ENDPOINTS", "").split(",") if url}
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

    engine_options = tuple((name, given.pop(name)) for name in ("slots", "context", "timeout") if name in given)
    return EndpointChatModel(engine=_engine(base, engine_options), sampling=check(given))


@lru_cache(maxsize=64)
def _engine(base: str, options: tuple[tuple[str, str], ...]) -> EmbeddedEngine | RemoteEngine | ChildEngine:
    from agentsys.models.endpoint import Endpoint
    from agentsys.models.engines import EMBEDDED_CONTEXT, EMBEDDED_SLOTS, ChildEngine, EmbeddedEngine, RemoteEngine
    from agentsys.models.weights import DEFAULT

    kind, _, rest = base.partition(":")
    try:
        numbers = {name: int(value) for name, value in options}
    except ValueError:
        raise SpecError(f"{base}: {', '.join(name for name, _ in options)} must be whole numbers") from None
    if kind == "embedded":
        return EmbeddedEngine(
            rest or DEFAULT, numbers.get("slots", EMBEDDED_SLOTS), numbers.get("context", EMBEDDED_CONTEXT)
        )
    if kind in ("http", "https"):
        urls, _, model = base.partition("#")
        endpoint = Endpoint([_address(url) for url in urls.split(",")], timeout=numbers.get("timeout", 600))
        return RemoteEngine(endpoint, model or None)
    if kind in ("vllm", "transformers") and rest:
        return ChildEngine(kind, rest, context=numbers.get("context"))
    raise SpecError(f"'{base}' is no model spec; there are {_FORMS}")


def _address(url: str) -> str:
    parts = urlsplit(url.strip())
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise SpecError(f"'{url}' is no URL; a server is given as http://host:port/v1")
    if parts.username or parts.password:
        raise SpecError("keys do not belong in a URL; set AGENTSYS_API_KEY")
    return f"{parts.scheme}://{parts.netloc}{parts.path.rstrip('/').removesuffix('/v1')}"


def _langchain(target: str, options: dict[str, str]) -> BaseChatModel:
    module, _, name = target.partition(":")
    try:
        model: BaseChatModel = getattr(importlib.import_module(module), name)(**options)
    except (ImportError, AttributeError, ValueError) as err:
        raise SpecError(f"langchain:{target}: {err}") from None
    return model
