"""No test touches a network outside loopback: an audit hook refuses the connection and writes it to a file.

tests/conftest.py installs the hook in the process of the tests and puts this folder on PYTHONPATH, so that Python's
start-up installs it in child processes too. Connections made by native code alone are not seen.
"""

from __future__ import annotations

import ipaddress
import os
import sys

LOG = "AGENTSYS_TEST_NETWORK_LOG"
"""Environment variable with the file that gets one line per attempt."""


class NetworkRefused(OSError):
    """A test tried to reach a host outside loopback."""


def is_loopback(host: object) -> bool:
    """Whether a host is this machine; names other than localhost would have to be looked up."""
    name = host.decode() if isinstance(host, bytes) else str(host or "localhost")
    try:
        address = ipaddress.ip_address(name.partition("%")[0])
    except ValueError:
        return name == "localhost"
    return address.is_loopback or address.is_unspecified


def refuse_network(event: str, arguments: tuple[object, ...]) -> None:
    """The audit hook: raises NetworkRefused for a connection or a look-up that leaves the machine."""
    if event == "socket.getaddrinfo":
        host = arguments[0]
    elif event in ("socket.connect", "socket.sendto") and isinstance(arguments[1], tuple):
        host = arguments[1][0]
    else:
        return
    if not is_loopback(host):
        with open(os.environ[LOG], "a", encoding="utf-8") as log:
            print(f"{event} {host} ({' '.join(sys.argv)[:200]})", file=log)
        raise NetworkRefused(f"{event} {host}: tests reach loopback addresses only")


if os.environ.get(LOG):
    sys.addaudithook(refuse_network)
