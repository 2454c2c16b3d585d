"""The folder for agentsys's cached files."""

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
