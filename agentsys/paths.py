"""The folder for agentsys's cached files."""

from __future__ import annotations

import os
from pathlib import Path

from platformdirs import user_cache_dir


def cache_folder() -> Path:
    """The folder for weights and cached replies: $AGENTSYS_CACHE if set, else the user's cache folder.

    It may not exist yet; code that writes into it creates it.
    """
    return Path(os.environ.get("AGENTSYS_CACHE") or user_cache_dir("agentsys")).expanduser()
