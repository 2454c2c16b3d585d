"""Model specs: one string that names a model, with sampling settings after a `?`.

    embedded                          the default catalog model, inside this process
    embedded:NAME or embedded:FILE.gguf   a vision model's projector follows as ?mmproj=FILE.gguf
    http://host:8000/v1               any OpenAI-compatible server; add `#NAME` if it has several models
    http://a/v1,http://b/v1           several servers with the same model share the load
    vllm:MODEL                        start vLLM as a child process (hub name or folder)
    transformers:MODEL                start `transformers serve` as a child process
    scripted:FILE                     replies from a file, for tests
    langchain:MODULE:CLASS            any LangChain chat model; its arguments follow the `?`

`embedded?temperature=0.2&max_tokens=300` sets the sampling; `?temperature=0.2` alone keeps the default model. Further
options of servers (`extra.`, `key`, `header.`, `query.`, `rpm`, `tpm`) and vLLM's flags: docs/servers.md.
"""

from __future__ import annotations

import importlib
import os
import sys
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Final
from urllib.parse import parse_qsl, urlsplit

from agentsys.models.access import Access, mask_key
from agentsys.models.errors import SpecError
from agentsys.models.sampling import check
from agentsys.models.secrets import holds_key
from agentsys.models.server_options import EXTRA, SECRET, is_access, read_access, take_extra, take_flags

if TYPE_CHECKING:
    from langchain_core.language_models import BaseChatModel

    from agentsys.models.child import ChildEngine
    from agentsys.models.embedded import EmbeddedEngine
    from agentsys.models.endpoint import Endpoint
    from agentsys.models.engines import RemoteEngine

DEFAULT_SPEC: Final = "embedded"
PROJECTOR: Final = "mmproj"
"""Option of `embedded:`: the GGUF file of a vision model's projector."""
_FORMS: Final = (
    "embedded, embedded:NAME, http://host:port/v1, vllm:MODEL, transformers:MODEL, "
    "scripted:FILE, langchain:MODULE:CLASS"
)

_ENGINE_MINIMUM: Final = {"slots": 1, "context": 1, "timeout": 1, "rpm": 1, "tpm": 1, "max_reply_mb": 1}
_SERVER_OPTIONS: Final = ("timeout", "rpm", "tpm", "max_reply_mb")
_ENGINE_OPTIONS: Final = {
    "embedded": ("slots", "context"),
    "http": _SERVER_OPTIONS,
    "https": _SERVER_OPTIONS,
    "vllm": ("context",),
    "transformers": (),
}


def split_spec(spec: str, default: str = DEFAULT_SPEC) -> tuple[str, dict[str, str]]:
    """Split a spec into model and options; an empty model part is taken from `default`, with its options."""
    base, _, query = spec.strip().partition("?")
    options = dict(parse_qsl(query, keep_blank_values=True))
    if base:
        return base, options
    fallback, inherited = split_spec(default)
    return fallback, inherited | options


def load_model(spec: str = DEFAULT_SPEC, *, default: str = DEFAULT_SPEC) -> BaseChatModel:
    """Return the chat model that a spec names. Nothing is started before the first request.

    Equal specs return the same object, unless the file that they name is another one or has changed; specs that differ
    only in sampling share one engine and its request limit.
    Raises SpecError for an unknown form or option, and inside the Studio server for a spec that web pages must not use
    (see `served_to_browsers`).
    """
    base, options = split_spec(spec, default)
    if served_to_browsers():
        _refuse_unsafe(base, options)
    return _load(base, tuple(options.items()), _file_version(base))


def _file_version(base: str) -> tuple[str, int] | None:
    """The whole path and the time of change of the file that a spec names, None if it names none."""
    kind, _, name = base.partition(":")
    if kind == "scripted" or name.endswith(".gguf"):
        path = Path(os.path.expanduser(name)).absolute()
        return str(path), path.stat().st_mtime_ns if path.is_file() else 0
    return None


def served_to_browsers() -> bool:
    """Whether this process is the LangGraph server, to which any web page that the user has open can send a context."""
    return "langgraph_api" in sys.modules


def _refuse_unsafe(base: str, options: dict[str, str]) -> None:
    from agentsys.models.vision import VISION
    from agentsys.models.weights import CATALOG

    kind, _, name = base.partition(":")
    if base == "embedded" or (kind == "embedded" and name in (*CATALOG, *VISION)):
        if {"slots", "context", PROJECTOR} & options.keys():
            raise SpecError("in Studio, slots, context and mmproj cannot be set; remove them from the spec")
        return
    unsafe = [name for name in options if is_access(name) or name.startswith(EXTRA)]
    if unsafe:
        raise SpecError(f"in Studio, ?{unsafe[0]} cannot be set; remove it from the spec")
    allowed = {url.strip().rstrip("/") for url in os.environ.get("AGENTSYS_ENDPOINTS", "").split(",") if url.strip()}
    if kind in ("http", "https"):
        refused = [url for url in base.partition("#")[0].split(",") if url.rstrip("/") not in allowed]
        if not refused:
            return
        raise SpecError(
            f"in Studio, {refused[0]} is not allowed; start the server with AGENTSYS_ENDPOINTS={refused[0]} to allow it"
        )
    refused_spec = f"{kind}:" if ":" in base else base
    raise SpecError(
        f"in Studio, '{refused_spec}' is not allowed; use 'embedded', 'embedded:' with one of "
        f"{', '.join((*CATALOG, *VISION))}, "
        "or an allowed URL"
    )


@lru_cache(maxsize=256)
def _load(base: str, options: tuple[tuple[str, str], ...], file: tuple[str, int] | None) -> BaseChatModel:
    kind, _, rest = base.partition(":")
    settings = dict(options)
    if kind == "langchain":
        return _load_langchain(rest, settings)
    if kind == "scripted":
        from agentsys.models.scripted import ScriptedChatModel

        return ScriptedChatModel.from_file(rest, check(settings))
    from agentsys.models.chat import EndpointChatModel

    extra = take_extra(settings)
    names = [name for name in settings if name in _ENGINE_MINIMUM or is_access(name) or name == PROJECTOR]
    engine_options = tuple((name, settings.pop(name)) for name in names)
    flags = take_flags(settings) if kind == "vllm" else ()
    sampling = check(settings) | ({"extra": extra} if extra else {})
    return EndpointChatModel(engine=_make_engine(base, engine_options, flags, file), sampling=sampling)


@lru_cache(maxsize=64)
def _make_engine(
    base: str,
    options: tuple[tuple[str, str], ...],
    flags: tuple[tuple[str, str], ...] = (),
    file: tuple[str, int] | None = None,
) -> EmbeddedEngine | RemoteEngine | ChildEngine:
    from agentsys.models.child import ChildEngine
    from agentsys.models.embedded import EMBEDDED_CONTEXT, EMBEDDED_SLOTS, EmbeddedEngine
    from agentsys.models.engines import RemoteEngine
    from agentsys.models.weights import DEFAULT

    kind, _, rest = base.partition(":")
    access = {name: value for name, value in options if is_access(name)}
    files = {name: value for name, value in options if name == PROJECTOR}
    if files and kind != "embedded":
        raise SpecError(f"{PROJECTOR}={files[PROJECTOR]}: {kind} has no option '{PROJECTOR}'")
    if access and kind not in ("http", "https"):
        raise SpecError(f"?{min(access)}: {kind} has no such option; it is for http:// and https://")
    numbers = {name: _parse_option(name, value, kind) for name, value in options if name not in {*access, *files}}
    if kind == "embedded":
        projector = files.get(PROJECTOR, "")
        _check_weights(rest or DEFAULT, projector)
        slots, context = numbers.get("slots", EMBEDDED_SLOTS), numbers.get("context", EMBEDDED_CONTEXT)
        return EmbeddedEngine(rest or DEFAULT, slots, context, projector)
    if kind in ("http", "https"):
        urls, _, model = base.partition("#")
        addresses = tuple(address_of(url) for url in urls.split(","))
        endpoint = _make_endpoint(addresses, read_access(access), tuple(sorted(numbers.items())))
        return RemoteEngine(endpoint, model or None)
    if kind in ("vllm", "transformers") and rest:
        return ChildEngine(kind, rest, context=numbers.get("context"), flags=flags)
    raise SpecError(f"'{base}' is not a model spec; {_hint(base)}use {_FORMS}")


def _hint(base: str) -> str:
    from agentsys.models.vision import VISION
    from agentsys.models.weights import CATALOG

    return f"did you mean embedded:{base}? " if base in CATALOG or base in VISION else ""


def _check_weights(name: str, projector: str = "") -> None:
    """Raise SpecError for weights neither in the catalog nor in a GGUF file, and a projector that is no such file."""
    from agentsys.models.vision import VISION
    from agentsys.models.weights import CATALOG, WeightsError, check_gguf

    names = (*CATALOG, *VISION)
    if name not in names and not name.endswith(".gguf"):
        raise SpecError(f"embedded:{name}: not in the catalog; use {', '.join(names)}, or a .gguf file")
    try:
        for path in (name if name not in names else "", projector):
            if path:
                check_gguf(path)
    except WeightsError as err:
        raise SpecError(str(err)) from None


@lru_cache(maxsize=64)
def _make_endpoint(addresses: tuple[str, ...], access: Access, options: tuple[tuple[str, int], ...]) -> Endpoint:
    """Return one endpoint for all models of a server, so that they share its limits."""
    from agentsys.models.endpoint import Endpoint

    numbers = dict(options)
    return Endpoint(
        list(addresses),
        timeout=numbers.get("timeout", 600),
        access=access,
        max_bytes=numbers.get("max_reply_mb", 64) * 2**20,
        requests_per_minute=numbers.get("rpm"),
        tokens_per_minute=numbers.get("tpm"),
    )


def _parse_option(name: str, value: str, kind: str) -> int:
    """Return the value of an engine option. Raises SpecError."""
    if name not in _ENGINE_OPTIONS.get(kind, _ENGINE_MINIMUM):
        raise SpecError(f"{name}={value}: {kind} has no option '{name}'")
    if not value.isdecimal() or int(value) < _ENGINE_MINIMUM[name]:
        raise SpecError(f"{name}={value}: must be an integer of at least {_ENGINE_MINIMUM[name]}")
    return int(value)


def address_of(url: str) -> str:
    """Return a server's address from its URL, without /v1; any other path is kept, with a slash at its end.

    Raises SpecError.
    """
    if "@" in url or holds_key(url):  # wherever it is: a password may hold a slash
        raise SpecError("a URL must not contain a key; set AGENTSYS_API_KEY")
    try:
        parts = urlsplit(url.strip())
        _ = parts.port
    except ValueError as err:  # brackets that are no IPv6 address, a port that is no number
        raise SpecError(f"'{url}' is not a server URL ({err}); write http://host:port/v1") from None
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise SpecError(f"'{url}' is not a server URL; write http://host:port/v1")
    path = parts.path.rstrip("/")
    root = path.removesuffix("/v1")
    return f"{parts.scheme}://{parts.netloc}{root}{'/' if root == path and path else ''}"


def _load_langchain(target: str, options: dict[str, str]) -> BaseChatModel:
    module, _, name = target.partition(":")
    if secrets := [option for option in options if SECRET.search(option)]:
        raise SpecError(f"langchain:{target}: {secrets[0]} must not be in a spec; set it in the environment")
    from langchain_core.language_models import BaseChatModel

    try:
        model = getattr(importlib.import_module(module), name)(**options)
    except Exception as err:  # whatever the integration raises: a missing key, a wrong argument
        raise SpecError(f"langchain:{target}: {mask_key(' '.join(str(err).split()))}") from None
    if not isinstance(model, BaseChatModel):
        raise SpecError(f"langchain:{target} is not a LangChain chat model; name a BaseChatModel class")
    return model
