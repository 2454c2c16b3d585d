"""Where agentsys keeps files of its own on this computer."""

from __future__ import annotations

import os
from pathlib import Path

from platformdirs import user_cache_dir


def cache_folder() -> Path:
    """The folder for what can be made again (weights, replies): $AGENTSYS_CACHE if set, else the user's cache folder.

    The folder need not exist yet; whoever writes into it creates it.
    """
    return Path(os.environ.get("AGENTSYS_CACHE") or user_cache_dir("agentsys")).expanduser()
