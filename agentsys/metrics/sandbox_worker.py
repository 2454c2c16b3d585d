"""The inside of the sandbox (sandbox.py): runs one Python program and reports whether it came to its end.

Started by path in a new process, which imports nothing of this project. It reads JSON from standard input: the program,
a token, limits, whether it is in Linux namespaces of its own, and the exit code if these could not be closed. At the
end of the program it writes the token.
"""

from __future__ import annotations

import ctypes
import json
import os
import resource
import sys

MOUNT_SETATTR = 442
AT_FDCWD, AT_RECURSIVE, MOUNT_ATTR_RDONLY = -100, 0x8000, 1
PR_SET_NO_NEW_PRIVS = 38
CAPABILITY_VERSION_3 = 0x20080522
MS_NOSUID_NODEV = 6


class _MountAttributes(ctypes.Structure):
    _fields_ = [(name, ctypes.c_uint64) for name in ("set", "clear", "propagation", "userns")]


class _Capabilities(ctypes.Structure):
    _fields_ = [(name, ctypes.c_uint32) for name in ("effective", "permitted", "inheritable")]


class _CapabilityHeader(ctypes.Structure):
    _fields_ = [("version", ctypes.c_uint32), ("pid", ctypes.c_int)]


def close_sandbox(libc: ctypes.CDLL) -> bool:
    """Make all files read-only but an empty /tmp in memory, and give up every privilege. Returns if that worked."""
    attributes = _MountAttributes(MOUNT_ATTR_RDONLY, 0, 0, 0)
    size = ctypes.c_size_t(ctypes.sizeof(attributes))
    if libc.syscall(MOUNT_SETATTR, AT_FDCWD, b"/", AT_RECURSIVE, ctypes.byref(attributes), size):
        return False
    if libc.mount(b"tmpfs", b"/tmp", b"tmpfs", MS_NOSUID_NODEV, b"size=64m"):
        return False
    os.chdir("/tmp")
    header, none = _CapabilityHeader(CAPABILITY_VERSION_3, 0), (_Capabilities * 2)()
    if libc.prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0):
        return False
    return not libc.capset(ctypes.byref(header), ctypes.byref(none))


def limit(seconds: int, memory: int) -> None:
    """Limit processor time, memory, the size of files, open files and processes."""
    for name, value in (
        ("RLIMIT_CPU", seconds), ("RLIMIT_AS", memory), ("RLIMIT_FSIZE", 2**24), ("RLIMIT_NOFILE", 64),
        ("RLIMIT_NPROC", 64), ("RLIMIT_CORE", 0),
    ):  # fmt: skip
        kind = getattr(resource, name)
        hard = resource.getrlimit(kind)[1]
        new = value if hard == resource.RLIM_INFINITY else min(value, hard)
        resource.setrlimit(kind, (new, new))


def main() -> None:
    """Run the program of standard input."""
    task = json.loads(sys.stdin.buffer.read())
    if task["sandboxed"] and not close_sandbox(ctypes.CDLL(None, use_errno=True)):
        os._exit(task["refusal"])  # the program was not run
    limit(task["seconds"], task["memory"])
    report, nothing = os.dup(1), os.open(os.devnull, os.O_RDWR)
    for stream in (0, 1, 2):
        os.dup2(nothing, stream)
    program, token = compile(task["program"], "solution", "exec"), task["token"].encode()
    del task
    exec(program, {"__name__": "__main__"})
    os.write(report, token)


if __name__ == "__main__":
    main()
