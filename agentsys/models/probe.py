"""Ask a server for its models, once, and say in one sentence what is wrong and how to fix it (`agentsys doctor`)."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from typing import Any, Final
from urllib.parse import urlsplit

from agentsys.models.endpoint import Endpoint, RetryPolicy
from agentsys.models.errors import ModelError
from agentsys.models.spec import address_of

PROBE_SECONDS: Final = 3.0
"""Seconds that a server has to answer."""
ROUTE: Final = "/v1/models"
UNREACHABLE: Final = "no server is reachable"
"""How the endpoint's message begins if no connection was made."""


@dataclass(frozen=True, slots=True)
class ServerReport:
    """What a server answered. `fix` says what to do if it is not usable, or what a spec must name."""

    url: str
    is_usable: bool
    text: str
    fix: str = ""


async def probe_server(url: str, seconds: float = PROBE_SECONDS) -> ServerReport:
    """Report on the server of a URL, `http://host:port/v1`, with `#MODEL` for one of several models."""
    base, _, model = url.strip().partition("#")
    try:
        address = address_of(base)
        _ = urlsplit(address).port
    except ValueError as err:  # a SpecError, whose message ends in the fix
        text, _, fix = str(err).rpartition("; ")
        return ServerReport(url, False, text or fix, fix if text else "write http://host:port/v1")
    endpoint = Endpoint([address], timeout=seconds, retry=RetryPolicy(attempts=1))
    try:
        listing = await endpoint.get(ROUTE)
    except ModelError as err:
        if str(err).startswith(UNREACHABLE):
            return ServerReport(url, False, *_explain_connection(str(err), address))
        return ServerReport(url, False, *_explain_failure(str(err), seconds))
    finally:
        await endpoint.aclose()
    if listing is None:
        return ServerReport(
            url, False, f"there is no {address}{ROUTE} (status 404)", "write the URL up to /v1: http://host:port/v1"
        )
    return _report_models(url, listing, model)


def _explain_connection(message: str, address: str) -> tuple[str, str]:
    """Return what is wrong and the fix, for a connection that was not made."""
    if "[SSL" in message:  # aiohttp writes ssl:default in every message
        return "the TLS handshake failed", "write http:// for a server without TLS, or correct its certificate"
    if re.search("getaddrinfo|name resolution|Name or service|nodename|Domain name", message):
        return "its host name is unknown", "correct the host in the URL"
    return f"nothing listens at {address}", "start the server, or correct host and port"


def _explain_failure(message: str, seconds: float) -> tuple[str, str]:
    """Return what is wrong and the fix, for an answer other than a list of models."""
    match = re.search(r": status (\d{3})\b", message)
    status = int(match[1]) if match else 0
    if status in (401, 403):
        if os.environ.get("AGENTSYS_API_KEY"):
            return f"it refuses the key in AGENTSYS_API_KEY (status {status})", "set AGENTSYS_API_KEY to its key"
        return f"it wants an API key (status {status})", "set AGENTSYS_API_KEY"
    if 300 <= status < 400:
        return f"it redirects (status {status})", "give the URL that it redirects to (https:// perhaps)"
    if status:
        return f"it answers with status {status}", "wait until its model is loaded, or read its log"
    if "Timeout" in message:
        return f"no answer within {seconds:g} s", "wait until its model is loaded, or correct the URL"
    if "not JSON" in message:
        return "its reply is not JSON", "give the URL of an OpenAI-compatible server"
    return message, "read its log"


def _report_models(url: str, listing: Any, model: str) -> ServerReport:
    entries = listing.get("data") if isinstance(listing, dict) else None
    if not isinstance(entries, list):
        return ServerReport(url, False, "its reply lists no models", "give the URL of an OpenAI-compatible server")
    names = [str(entry["id"]) for entry in entries if isinstance(entry, dict) and "id" in entry]
    names = [name if name.isprintable() else ascii(name) for name in names]  # no control characters in a terminal
    text = f"serves {', '.join(names[:5]) or 'no model'}{f' and {len(names) - 5} more' if len(names) > 5 else ''}"
    if model and names and model not in names:  # a server that lists no model may still serve it
        return ServerReport(url, False, f"{text}, not {model}", "correct the name after #")
    if not model and not names:
        return ServerReport(url, False, text, f"name its model in the URL: {url}#MODEL")
    hint = f"name one of them in the spec: {url}#MODEL" if not model and len(names) > 1 else ""
    return ServerReport(url, True, text, hint)
