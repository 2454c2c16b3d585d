"""Runs a server for a parent process and ends it with the parent, however that ends (kill -9 too).

`python child_guard.py PARENT COMMAND ...`, with a pipe from the parent as stdin: when the pipe closes, the process
PARENT is gone, or SIGTERM arrives, the command and everything that it started gets SIGTERM, and SIGKILL after
GRACE_SECONDS. The guard leads a session of its own; on Linux, processes that leave its process group are found too
(PR_SET_CHILD_SUBREAPER), and the command dies with the guard (PR_SET_PDEATHSIG). Standard library only.
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Final

GRACE_SECONDS: Final = 8.0
"""Seconds between SIGTERM and SIGKILL."""
POLL_SECONDS: Final = 0.5
_PDEATHSIG: Final = 1
_SUBREAPER: Final = 36


def main(arguments: Sequence[str]) -> int:
    """Run the command until it ends or must end; returns its exit code."""
    parent, *command = arguments
    is_stopping = False

    def stop(number: int, frame: object) -> None:
        nonlocal is_stopping
        is_stopping = True

    signal.signal(signal.SIGTERM, stop)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    prctl = _find_prctl()
    prctl(_SUBREAPER, 1)
    child = subprocess.Popen(
        command, stdin=subprocess.DEVNULL, preexec_fn=lambda: _prepare_child(prctl)
    )  # the guard has one thread
    try:
        while child.poll() is None and not is_stopping and os.getppid() == int(parent) and not _is_closed(POLL_SECONDS):
            pass
    finally:
        _end(child)
    return child.returncode if child.returncode >= 0 else 128 - child.returncode


def _find_prctl() -> Callable[[int, int], object]:
    """Linux's prctl; elsewhere a function that does nothing."""
    if sys.platform.startswith("linux"):
        import ctypes

        with contextlib.suppress(OSError, AttributeError):
            function = ctypes.CDLL(None).prctl
            return lambda option, value: function(option, value, 0, 0, 0)
    return lambda option, value: None


def _prepare_child(prctl: Callable[[int, int], object]) -> None:
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    prctl(_PDEATHSIG, signal.SIGKILL)


def _is_closed(seconds: float) -> bool:
    """Whether the parent's pipe is closed, after at most so many seconds."""
    readable, _, _ = select.select([0], [], [], seconds)
    return bool(readable) and not os.read(0, 1024)


def _end(child: subprocess.Popen[bytes]) -> None:
    """End the command, its process group and its descendants."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)  # the group is the guard's own
    if child.poll() is None:
        child.terminate()
    for process in _descendants(os.getpid()):
        _kill(process, signal.SIGTERM)
    deadline = time.monotonic() + GRACE_SECONDS
    while time.monotonic() < deadline and (child.poll() is None or _living(child.pid)):
        time.sleep(0.05)
    if child.poll() is None:
        child.kill()
    for _ in range(50):  # a process may start another one meanwhile
        processes = _living(child.pid)
        for process in processes:
            _kill(process, signal.SIGKILL)
        if not processes:
            break
        time.sleep(0.02)
    child.wait()
    if not Path(f"/proc/self/task/{os.getpid()}/children").exists():  # the group is all that is known
        os.killpg(0, signal.SIGKILL)  # and the guard is of it


def _living(child: int) -> list[int]:
    """The descendants that are not dead; the dead ones are collected, but for the command itself."""
    processes = []
    for process in _descendants(os.getpid()):
        if process != child:
            with contextlib.suppress(ChildProcessError):
                os.waitpid(process, os.WNOHANG)
        if _is_alive(process):
            processes.append(process)
    return processes


def _is_alive(process: int) -> bool:
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] not in ("Z", "X")
    except OSError:
        return False


def _descendants(process: int) -> Iterator[int]:
    """The processes below one, from Linux's /proc; elsewhere none."""
    with contextlib.suppress(OSError):
        for task in Path(f"/proc/{process}/task").iterdir():
            for child in map(int, (task / "children").read_text().split()):
                yield child
                yield from _descendants(child)


def _kill(process: int, number: int) -> None:
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.kill(process, number)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
