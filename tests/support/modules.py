"""The modules of the project by their import names."""

from __future__ import annotations

from functools import cache
from pathlib import Path

from tests.support.paths import ROOT

LINKED = ("graphs", "trainers", "prompts")
"""Folders at the top level that are packages inside agentsys."""


@cache
def modules() -> dict[str, Path]:
    """Every module by its import name."""
    files = {}
    for folder in ("agentsys", *LINKED):
        for path in sorted((ROOT / folder).rglob("*.py")):
            parts = list(path.relative_to(ROOT).with_suffix("").parts)
            if folder == "agentsys" and parts[1] in LINKED:
                continue
            names = [*(["agentsys"] if folder in LINKED else []), *parts]
            files[".".join(names[:-1] if names[-1] == "__init__" else names)] = path
    assert len(files) > 100
    return files


def folder_of(module: str) -> str:
    """The linked folder a module lies in, or "" for agentsys itself."""
    name = module.split(".")[1] if "." in module else ""
    return name if name in LINKED else ""
