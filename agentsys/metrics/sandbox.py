"""Runs Python programs that a model wrote, in a sandbox: no network, nothing to write to, limited time and memory.

On Linux the program gets namespaces of its own (users, mounts, network, processes): it sees no network and no other
process, every file is read-only but an empty /tmp in memory, and it has no privileges. It can read what the user can
read. Elsewhere, and where the kernel refuses namespaces, nothing is run unless the caller allows it.
"""

from __future__ import annotations

import asyncio
import json
import os
import secrets
import shutil
import signal
import sys
import tempfile
from contextlib import suppress
from functools import lru_cache
from pathlib import Path
from typing import Final, NamedTuple

SECONDS: Final = 10
"""Seconds of a program, of processor time and of the clock."""
MEMORY: Final = 2**29
"""Address space of a process in bytes."""
NAMESPACES: Final = (
    *("unshare", "--user", "--map-root-user", "--mount", "--net", "--ipc", "--uts", "--pid", "--fork"),
    "--kill-child",
)
REFUSAL: Final = 97
"""Exit code of a worker that did not run the program, because its namespaces could not be closed."""
WORKER: Final = Path(__file__).with_name("sandbox_worker.py")


class SandboxError(ValueError):
    """There is no sandbox here. The message names the fix."""


class Outcome(NamedTuple):
    """Whether a program came to its end without an error, and in one word why not."""

    passed: bool
    reason: str


async def run_program(program: str, *, unsafe: bool = False, seconds: int = SECONDS, memory: int = MEMORY) -> Outcome:
    """Run a Python program, and say whether it came to its end without an error.

    With `unsafe` it runs without namespaces where there are none: with the user's rights and network, and limits on
    time and memory only. Raises SandboxError if there are none and `unsafe` is not set.
    """
    sandboxed = await has_sandbox()
    if not sandboxed and not unsafe:
        raise SandboxError(
            "code cannot be run safely here: Linux namespaces are missing or not allowed (try `unshare --user --net "
            "true`); --unsafe-code runs it with your rights and network"
        )
    return await _run(program, sandboxed, seconds, memory)


async def has_sandbox() -> bool:
    """Whether programs can be run in namespaces here, which is tried once."""
    return await _tried().get()


async def _run(program: str, sandboxed: bool, seconds: int, memory: int) -> Outcome:
    try:
        compile(program, "solution", "exec")
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return Outcome(False, "syntax")
    token = secrets.token_hex(16)
    task = {
        "program": program, "token": token, "sandboxed": sandboxed, "refusal": REFUSAL, "seconds": seconds,
        "memory": memory,
    }  # fmt: skip
    command = [*(NAMESPACES if sandboxed else ()), sys.executable, "-I", str(WORKER)]
    with tempfile.TemporaryDirectory() as folder:
        process = await asyncio.create_subprocess_exec(
            *command, cwd=folder, env={"PATH": os.defpath}, start_new_session=True,
            stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.DEVNULL,
        )  # fmt: skip
        try:
            async with asyncio.timeout(seconds):
                output, _ = await process.communicate(json.dumps(task).encode())
        except TimeoutError:
            return Outcome(False, "timeout")
        finally:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            await process.wait()
    if process.returncode == REFUSAL and sandboxed:
        raise SandboxError("the sandbox could not be closed: this kernel has no mount_setattr (Linux 5.12)")
    passed = output.decode(errors="replace") == token
    return Outcome(passed, "" if passed else "error")


class _Tried:
    """The result of one attempt to use the sandbox."""

    def __init__(self) -> None:
        self._works: bool | None = None

    async def get(self) -> bool:
        if self._works is None:
            self._works = await self._attempt()
        return self._works

    async def _attempt(self) -> bool:
        if sys.platform != "linux" or shutil.which("unshare") is None:
            return False
        try:
            return (await _run("", True, 30, MEMORY)).passed
        except SandboxError:
            return False


@lru_cache(maxsize=1)
def _tried() -> _Tried:
    return _Tried()
