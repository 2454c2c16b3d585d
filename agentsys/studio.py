"""Studio's server: which pages and hosts it answers, and how many calls one run may make (docs/studio.md).

`langgraph.json` names `app` as its `http.app`: its middleware comes before every route of the LangGraph server.
"""

from __future__ import annotations

import ipaddress
import os
import re
import sys
from collections.abc import Awaitable, Callable, Mapping, MutableMapping
from typing import Any, Final
from urllib.parse import urlsplit

from langchain_core.runnables.config import var_child_runnable_config

from agentsys.models.errors import EndpointDown, SpecError

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]

STUDIO_ORIGINS: Final = ("https://smith.langchain.com", "https://eu.smith.langchain.com")
"""Origins of Studio's page, where langgraph.json has no `http.cors`."""
HOSTS: Final = "AGENTSYS_STUDIO_HOSTS"
"""Environment variable: further names in a Host header, with commas; * allows any."""
CALLS: Final = "AGENTSYS_STUDIO_CALLS"
"""Environment variable: the maximum number of model calls of one run in Studio."""
DEFAULT_CALLS: Final = 2000
MAX_BODY: Final = 16 * 2**20
"""Bytes of a request that are read."""
MAX_RUNS: Final = 1000
"""Runs whose calls are counted at a time; the oldest is forgotten first."""


class TooManyCalls(EndpointDown):
    """A run in Studio made more model calls than one run may. It ends the run, not a branch of its search."""


_calls: dict[str, int] = {}


def count_call() -> None:
    """Count a model call of the current run in Studio's server. Raises TooManyCalls, and SpecError for a bad limit."""
    if "langgraph_api" not in sys.modules:  # see models.spec.served_to_browsers
        return
    run = _current_run()
    number = _calls.pop(run, 0) + 1
    _calls[run] = number
    while len(_calls) > MAX_RUNS:
        del _calls[next(iter(_calls))]
    limit = _read_limit()
    if number > limit:
        raise TooManyCalls(
            f"this run made {limit} model calls, the most that one run in Studio may make: lower its options, or start "
            f"the server with a higher {CALLS}"
        )


def _current_run() -> str:
    config: Mapping[str, Any] = var_child_runnable_config.get() or {}
    for place in ("configurable", "metadata"):
        if run := (config.get(place) or {}).get("run_id"):
            return str(run)
    return str(config.get("run_id") or "")


def _read_limit() -> int:
    text = os.environ.get(CALLS, "").strip()
    if not text:
        return DEFAULT_CALLS
    if not (text.isascii() and text.isdecimal() and 1 <= int(text) < 2**31):
        raise SpecError(f"{CALLS}={text[:40]}: give a number of calls")
    return int(text)


class PageGuard:
    """ASGI middleware that refuses hosts that are not this machine, pages that are not Studio's, and huge requests.

    A page that any site serves can send requests to this machine. CORS only hides the replies from it, so its requests
    are refused by their Origin; by their Host if its own name was rebound to this machine's address.
    """

    def __init__(self, app: App) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on, or answer it with a refusal."""
        if scope["type"] not in ("http", "websocket") or scope.get("root_path") == "/noauth":  # the server's own client
            return await self._app(scope, receive, send)
        headers = _read_headers(scope)
        if problem := refusal(str(scope.get("method", "GET")), headers):
            return await _refuse(scope, send, *problem)
        if "origin" in headers and is_allowed_origin(headers["origin"]):
            scope = _without_private_network(scope)
        return await self._app(scope, _bounded(receive), send)


def _without_private_network(scope: Scope) -> Scope:
    """A preflight without Chrome's question whether this machine may be asked, which Starlette refuses by default.

    The LangGraph server's own middleware answers it.
    """
    headers = [pair for pair in scope["headers"] if pair[0].lower() != b"access-control-request-private-network"]
    return {**scope, "headers": headers}


def refusal(method: str, headers: Mapping[str, str]) -> tuple[int, str] | None:
    """The status and the reason with which a request is refused, or None. Names of `headers` are in lower case."""
    host = headers.get("host", "")
    if not is_own_host(host):
        return 400, f"the host {host[:100]!r} is not served; start the server with {HOSTS}=NAME to allow it"
    length = headers.get("content-length", "0")
    if not (length.isascii() and length.isdecimal()) or int(length) > MAX_BODY:
        return 413, f"a request may have {MAX_BODY} bytes"
    if method == "OPTIONS":  # answered by the CORS middleware
        return None
    origin = headers.get("origin")
    if origin is not None and not is_allowed_origin(origin):
        return 403, f"the page {origin[:100]!r} is not allowed; add it to http.cors.allow_origins in langgraph.json"
    is_foreign = headers.get("sec-fetch-site") in ("cross-site", "same-site")
    if origin is None and is_foreign and method not in ("GET", "HEAD"):
        return 403, "a request of another page without its origin"
    return None


def is_own_host(host: str) -> bool:
    """Whether a Host header names this machine: a loopback address or name, or one of $AGENTSYS_STUDIO_HOSTS."""
    try:
        parts = urlsplit(f"//{host}")
        name = (parts.hostname or "").rstrip(".")
        _ = parts.port
    except ValueError:
        return False
    if parts.netloc != host or "@" in host:
        return False
    allowed = {entry.strip().lower() for entry in os.environ.get(HOSTS, "").split(",") if entry.strip()}
    return name == "localhost" or _is_loopback(name) or name in allowed or "*" in allowed


def _is_loopback(name: str) -> bool:
    try:
        return ipaddress.ip_address(name).is_loopback
    except ValueError:
        return False


def is_allowed_origin(origin: str) -> bool:
    """Whether a page's origin is one that langgraph.json lists in `http.cors`, or one of this machine's pages.

    Without a list there, or with *, it is Studio's origins.
    """
    settings = _read_cors()
    origins = settings.get("allow_origins") or ()
    pattern = settings.get("allow_origin_regex")
    if (not origins and not pattern) or "*" in origins:
        origins = STUDIO_ORIGINS
    if origin in origins or (pattern and re.fullmatch(pattern, origin)):
        return True
    scheme, _, host = origin.partition("://")
    return scheme in ("http", "https") and is_own_host(host)


def _read_cors() -> Mapping[str, Any]:
    config = sys.modules.get("langgraph_api.config")
    return getattr(config, "CORS_CONFIG", None) or {}


def _read_headers(scope: Scope) -> dict[str, str]:
    """The headers by lower-case names; several values of one name are joined, and so allowed by no rule."""
    headers: dict[str, str] = {}
    for raw_name, raw_value in scope["headers"]:
        name, value = raw_name.decode("latin-1").lower(), raw_value.decode("latin-1").strip()
        headers[name] = value if headers.get(name, value) == value else f"{headers[name]}, {value}"
    return headers


def _bounded(receive: Receive) -> Receive:
    """`receive`, which ends a request whose body goes on after MAX_BODY bytes."""
    size = 0

    async def read() -> MutableMapping[str, Any]:
        nonlocal size
        message = await receive()
        size += len(message.get("body") or b"") if message["type"] == "http.request" else 0
        return {"type": "http.disconnect"} if size > MAX_BODY else message

    return read


async def _refuse(scope: Scope, send: Send, status: int, reason: str) -> None:
    if scope["type"] == "websocket":
        return await send({"type": "websocket.close", "code": 1008})
    body = f"{reason}\n".encode("ascii", "backslashreplace")
    headers = [(b"content-type", b"text/plain; charset=utf-8"), (b"content-length", str(len(body)).encode())]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})


def _make_app() -> Any:
    from starlette.applications import Starlette
    from starlette.middleware import Middleware

    return Starlette(middleware=[Middleware(PageGuard)])


def __getattr__(name: str) -> Any:
    if name == "app":  # starlette is there in Studio's server only
        globals()["app"] = application = _make_app()
        return application
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
