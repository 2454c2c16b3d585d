"""The processes of a training: how many there are, and which one prints and writes."""

from __future__ import annotations

import os
import sys

from agentsys.display import show


def main_process() -> bool:
    """Whether this process prints and writes: the first of those under `accelerate launch`."""
    return int(os.environ.get("RANK", "0")) == 0


def count_processes() -> int:
    """The number of processes that share an optimizer step."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def print_once(text: str) -> None:
    """Print a line in the main process only."""
    if main_process():
        show(text)
        sys.stdout.flush()
