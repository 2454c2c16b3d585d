"""No test touches a network outside loopback; this one shows that an attempt would be noticed."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

OUTSIDE = "203.0.113.7"  # reserved for documentation (RFC 5737): no host has it


@pytest.fixture
def attempts() -> Iterator[Path]:
    """The file of attempts; what this test adds is expected."""
    log = Path(os.environ["AGENTSYS_TEST_NETWORK_LOG"])
    yield log
    log.write_text("")


@pytest.mark.parametrize("host", [OUTSIDE, "example.invalid"])
def test_a_connection_is_refused_and_noted(host: str, attempts: Path) -> None:
    with pytest.raises(OSError, match="loopback addresses only"):
        socket.create_connection((host, 80), timeout=1)
    assert host in attempts.read_text()


def test_a_child_process_is_refused_too(attempts: Path) -> None:
    code = f"import socket; socket.create_connection(('{OUTSIDE}', 80), timeout=1)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 1 and "loopback addresses only" in done.stderr
    assert OUTSIDE in attempts.read_text()


def test_loopback_is_reached(attempts: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        socket.create_connection(server.getsockname(), timeout=1).close()
    assert attempts.read_text() == ""
