"""Paths: the folder for cached files, a user's home folder, small files that are replaced as a whole."""

from __future__ import annotations

import os
from pathlib import Path

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


def replace_file(path: Path, data: bytes, *, durable: bool = False) -> None:
    """Write a small file: a reader sees the old or the new content, and processes that share the folder do not collide.

    With `durable`, the new content is on disk before the old one is gone. Raises OSError.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    with temporary.open("wb") as file:
        file.write(data)
        if durable:
            file.flush()
            os.fsync(file.fileno())
    os.replace(temporary, path)
