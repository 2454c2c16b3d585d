"""Servers that this process starts end with it, however it ends, and so do their workers."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from agentsys.models import child_guard
from tests.support.servers import write_model_folder
from tests.support.toys import environment

pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
SECONDS = 25.0
Start = Callable[..., tuple[subprocess.Popen[bytes], list[int]]]

SERVER = '''#!{python}
"""Stands for vLLM: a server, a worker in its process group, and one in a session of its own; they ignore SIGTERM."""
import json, os, signal, subprocess, sys, time
from http.server import BaseHTTPRequestHandler, HTTPServer

if "worker" in sys.argv:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    time.sleep(600)
workers = [subprocess.Popen([{python!r}, __file__, "worker"], start_new_session=own) for own in (False, True)]


class Handler(BaseHTTPRequestHandler):
    def log_message(self, *args):
        pass

    def do_GET(self):
        body = json.dumps({{"data": [{{"id": "model", "owned_by": "vllm", "root": {root!r}}}]}}).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)


if {stubborn}:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
with open({pids!r}, "w") as file:
    file.write(" ".join(str(pid) for pid in (os.getppid(), os.getpid(), *(worker.pid for worker in workers))))
HTTPServer(("127.0.0.1", int(sys.argv[sys.argv.index("--port") + 1])), Handler).serve_forever()
'''

PARENT = """
import asyncio, sys, time
from agentsys.models import load_model

async def main():
    model = load_model("vllm:" + sys.argv[1])
    await model.identity()
    print("up", flush=True)
    how = sys.argv[2]
    if how == "close":
        await model.aclose()
        print("closed", flush=True)
    elif how == "error":
        raise SystemExit(7)
    elif how == "wait":
        await asyncio.sleep(600)

asyncio.run(main())
if sys.argv[2] == "close":
    time.sleep(600)
"""


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    """Start a parent that starts the server; its process, and the numbers of guard, server and workers."""
    started: list[subprocess.Popen[bytes]] = []
    numbers: list[int] = []

    def run(how: str, stubborn: bool = False) -> tuple[subprocess.Popen[bytes], list[int]]:
        model, pids, program = write_model_folder(tmp_path / "model"), tmp_path / "pids", tmp_path / "python"
        fields = {"python": sys.executable, "root": str(model), "pids": str(pids), "stubborn": stubborn}
        program.write_text(SERVER.format(**fields))
        program.chmod(0o755)
        (tmp_path / "parent.py").write_text(PARENT)
        command = [sys.executable, str(tmp_path / "parent.py"), str(model), how]
        env = environment(tmp_path / "cache", {"AGENTSYS_VLLM_PYTHON": str(program)})
        parent = subprocess.Popen(command, env=env, stdout=subprocess.PIPE)
        started.append(parent)
        assert parent.stdout is not None and parent.stdout.readline() == b"up\n"
        numbers.extend(map(int, pids.read_text().split()))
        assert len(numbers) == 4
        return parent, numbers

    yield run
    for process in [*(parent.pid for parent in started), *numbers]:
        with contextlib.suppress(ProcessLookupError):
            os.kill(process, signal.SIGKILL)
    for parent in started:
        parent.wait()
        assert parent.stdout is not None
        parent.stdout.close()


def is_alive(process: int) -> bool:
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def assert_end(processes: list[int]) -> None:
    deadline = time.monotonic() + SECONDS
    while any(map(is_alive, processes)) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert [process for process in processes if is_alive(process)] == []


@pytest.mark.parametrize("stubborn", [False, True])
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_a_killed_parent(start: Start, number: int, stubborn: bool) -> None:
    parent, numbers = start("wait", stubborn)
    assert all(map(is_alive, numbers))
    parent.send_signal(number)
    parent.wait(SECONDS)
    assert_end(numbers)


@pytest.mark.parametrize("how", ["close", "error", "return"])
def test_a_parent_that_ends(start: Start, how: str) -> None:
    parent, numbers = start(how)
    if how == "close":
        assert parent.stdout is not None and parent.stdout.readline() == b"closed\n"
        assert [process for process in numbers if is_alive(process)] == [], "aclose waits for the end"
        return
    assert parent.wait(SECONDS) == (7 if how == "error" else 0)
    assert_end(numbers)


def test_a_killed_guard_takes_the_server_with_it(
    start: Start,
) -> None:
    _, numbers = start("wait", True)
    os.kill(numbers[0], signal.SIGKILL)
    assert_end(numbers[:2])


# The guard alone


def run_guard(code: str, *command: str, parent: int | None = None) -> subprocess.Popen[bytes]:
    """The guard with `code` run before; its stdin is a pipe of ours."""
    program = f"import sys; sys.path.insert(0, {str(Path(child_guard.__file__).parent)!r}); import child_guard; {code}"
    program += "; sys.exit(child_guard.main(sys.argv[1:]))"
    arguments = [sys.executable, "-c", program, str(parent or os.getpid()), *command]
    return subprocess.Popen(arguments, stdin=subprocess.PIPE, stdout=subprocess.PIPE, start_new_session=True)


ECHO = "import os, time; print(os.getpid(), flush=True); time.sleep(600)"


@pytest.mark.parametrize("code", ["pass", "child_guard._find_prctl = lambda: lambda option, value: None"])
@pytest.mark.parametrize("how", ["pipe", "term"])
def test_the_guard_ends_with_its_parent(code: str, how: str) -> None:
    """Also where prctl is missing."""
    with run_guard(code, sys.executable, "-c", ECHO) as guard:
        assert guard.stdin is not None and guard.stdout is not None
        server = int(guard.stdout.readline())
        if how == "pipe":
            guard.stdin.close()
        else:
            guard.terminate()
        assert guard.wait(SECONDS) == 128 + signal.SIGTERM
        assert not is_alive(server)


def test_the_guard_of_a_parent_that_died_before() -> None:
    with run_guard("pass", sys.executable, "-c", ECHO, parent=1 if os.getpid() != 1 else 2) as guard:
        assert guard.wait(SECONDS) == 128 + signal.SIGTERM


@pytest.mark.parametrize("code", [0, 3])
def test_the_guard_ends_with_its_command(code: int) -> None:
    with run_guard("pass", sys.executable, "-c", f"raise SystemExit({code})") as guard:
        assert guard.wait(SECONDS) == code
