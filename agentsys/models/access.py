"""Keys and headers of a server: named in a spec, read from the environment, masked in every message (models.secrets).

`?key=NAME` reads AGENTSYS_API_KEY_NAME, without it AGENTSYS_API_KEY; `?header.X-Title=NAME` reads
AGENTSYS_HEADER_NAME. A spec cannot name any other variable, so that a spec from somebody else reads nothing else.
"""

from __future__ import annotations

import ipaddress
import os
from dataclasses import dataclass
from typing import Final
from urllib.parse import urlencode, urlsplit

from agentsys.models.errors import SpecError
from agentsys.models.secrets import mask_key

KEY: Final = "AGENTSYS_API_KEY"
HEADER: Final = "AGENTSYS_HEADER_"

__all__ = ["Access", "mask_key", "proxy_of"]


@dataclass(frozen=True, slots=True)
class Access:
    """How one endpoint's requests are authorized: names of variables, never their values."""

    key: str = ""
    headers: tuple[tuple[str, str], ...] = ()
    query: tuple[tuple[str, str], ...] = ()

    def read_headers(self) -> dict[str, str]:
        """The headers with the values of the environment. Raises SpecError for one that is missing or malformed."""
        headers: dict[str, str] = {}
        if key := _read(f"{KEY}_{self.key}" if self.key else KEY, required=bool(self.key)):
            headers["Authorization"] = f"Bearer {key}"
        for header, name in self.headers:
            headers[header] = _read(f"{HEADER}{name}", required=True)
        return headers

    def query_string(self) -> str:
        """What is appended to every URL."""
        return f"?{urlencode(self.query)}" if self.query else ""


def _read(variable: str, *, required: bool) -> str:
    value = os.environ.get(variable, "").strip()
    if not value and required:
        raise SpecError(f"{variable} is not set: export it, or correct the name in the spec")
    if not value.isprintable() or not value.isascii():
        raise SpecError(f"{variable} has a line break or another character that no header can hold; set it again")
    return value


def proxy_of(address: str) -> str | None:
    """The proxy of an address, from HTTP_PROXY, HTTPS_PROXY, ALL_PROXY and NO_PROXY; None for this machine itself.

    Raises SpecError for a proxy that is not spoken to by HTTP.
    """
    from urllib import request  # slow to import

    parts = urlsplit(address)
    host = parts.hostname or ""
    if host == "localhost" or host.endswith(".localhost") or _is_loopback(host):
        return None
    proxies = request.getproxies_environment()
    proxy = proxies.get(parts.scheme) or proxies.get("all")
    is_direct = request.proxy_bypass_environment(parts.netloc, proxies)  # type: ignore[attr-defined]
    if not proxy or is_direct:
        return None
    if "://" not in proxy:
        proxy = f"http://{proxy}"
    if urlsplit(proxy).scheme not in ("http", "https"):
        raise SpecError(
            f"the proxy of {parts.scheme.upper()}_PROXY is a {urlsplit(proxy).scheme}:// proxy; give an http:// proxy"
        )
    return proxy


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
