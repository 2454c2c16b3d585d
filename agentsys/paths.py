"""Paths: the folder for cached files, a user's home folder, small files that are replaced as a whole."""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

from filelock import FileLock, Timeout
from platformdirs import user_cache_dir


def cache_folder() -> Path:
    """The folder for weights and cached replies: $AGENTSYS_CACHE if set, else the user's cache folder.

    It may not exist yet; code that writes into it creates it. Raises ValueError as `expand_user` does.
    """
    return expand_user(os.environ.get("AGENTSYS_CACHE") or user_cache_dir("agentsys"), "AGENTSYS_CACHE=")


def expand_user(path: str | Path, label: str = "") -> Path:
    """The path with its ~ or ~NAME replaced by that user's home folder.

    Raises ValueError if there is no such user; its message begins with the label.
    """
    try:
        return Path(path).expanduser()
    except RuntimeError:
        raise ValueError(
            f"{label}{path}: {Path(path).parts[0]} is no user's home folder; write the whole path"
        ) from None


def make_private_folder(folder: Path) -> None:
    """Create a folder, and those above it, for this user only. One that exists keeps its mode. Raises OSError."""
    for path in reversed((folder, *folder.parents)):
        if not path.is_dir():
            path.mkdir(mode=0o700, exist_ok=True)


def make_private_file(path: Path) -> None:
    """Create an empty file that only this user may read. One that exists is left as it is. Raises OSError."""
    os.close(os.open(path, os.O_CREAT | os.O_WRONLY, 0o600))


@contextmanager
def hold_lock(folder: Path, refusal: Exception) -> Iterator[None]:
    """Lock a folder for writing. Raises the refusal if another process holds the lock."""
    lock = FileLock(folder / ".lock")
    try:
        lock.acquire(blocking=False)
    except Timeout:
        raise refusal from None
    try:
        yield
    finally:
        lock.release()


def replace_file(path: Path, data: bytes, *, durable: bool = True) -> None:
    """Write a small file: a reader sees the old or the new content, and processes that share the folder do not collide.

    With `durable`, the new content is on disk before the old one is gone, and the change survives a power cut. Raises
    OSError.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with temporary.open("wb") as file:
            file.write(data)
            if durable:
                sync_file(file)
        os.replace(temporary, path)
    except OSError:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)
        raise
    if durable:
        sync_folder(path.parent)


def link_file(source: Path, target: Path) -> None:
    """Link a file to another name, or copy it where the file system cannot; nothing is done if that exists.

    Raises OSError.
    """
    if target.exists():
        return
    target.parent.mkdir(parents=True, exist_ok=True)
    with suppress(OSError):
        os.link(source, target)
    if not target.exists():
        shutil.copyfile(source, target)


def sync_file(file: BinaryIO) -> None:
    """Have the disk hold what was written to a file. Raises OSError."""
    file.flush()
    try:
        os.fsync(file.fileno())
    except OSError as err:
        if err.errno not in (errno.EINVAL, errno.ENOTSUP, errno.ENOSYS):  # the file system has no such thing
            raise


def sync_folder(folder: Path) -> None:
    """Have the disk hold the names in a folder, where the system can (not on Windows)."""
    with suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
