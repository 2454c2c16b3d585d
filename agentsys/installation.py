"""How this package was installed: the pip command that adds an extra to it, and its version.

The distribution is called agentsys-roles; `agentsys` on the package index is another project.
"""

from __future__ import annotations

import json
import shlex
import tomllib
from importlib import metadata
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit
from urllib.request import url2pathname

DISTRIBUTION = "agentsys-roles"
_ROOT = Path(__file__).parents[1]


def install_command(extra: str, *options: str) -> str:
    """Return the command for a POSIX shell that adds an extra (or several: `local,weights`) to this installation.

    A checkout is installed in editable mode, a wheel, folder or repository from where it came, and everything else
    from the package index. `options` are options of `pip install`.
    """
    checkout = _checkout()
    return shlex.join(["pip", "install", *options, *(_editable(checkout, extra) if checkout else _arguments(extra))])


def version() -> str:
    """Return the version of the code that runs. Raises PackageNotFoundError if it was copied, not installed."""
    checkout = _checkout()
    return _read_project(checkout)["version"] if checkout else metadata.version(DISTRIBUTION)


def _checkout() -> Path | None:
    """The source folder this module is imported from, or None if it lies in an installed copy."""
    return _ROOT if _read_project(_ROOT).get("name") == DISTRIBUTION else None


def _read_project(folder: Path) -> dict[str, Any]:
    try:
        text = (folder / "pyproject.toml").read_text("utf-8")
    except OSError:
        return {}
    project: dict[str, Any] = tomllib.loads(text).get("project", {})
    return project


def _arguments(extra: str) -> list[str]:
    """Return pip's arguments for an installed copy, from what pip recorded about its origin (direct_url.json)."""
    try:
        record = metadata.distribution(DISTRIBUTION).read_text("direct_url.json")
    except metadata.PackageNotFoundError:
        record = None
    origin = json.loads(record) if record else {}
    if origin.get("dir_info", {}).get("editable"):
        return _editable(_local_path(origin["url"]), extra)
    requirement = f"{DISTRIBUTION}[{extra}]"
    return [f"{requirement} @ {_source(origin)}" if origin and _exists(origin["url"]) else requirement]


def _exists(url: str) -> bool:
    """Whether pip can install from there again. Without a source, pip keeps the installed copy and adds the extra."""
    return not url.startswith("file:") or _local_path(url).exists()


def _local_path(url: str) -> Path:
    return Path(url2pathname(urlsplit(url).path))


def _editable(folder: Path, extra: str) -> list[str]:
    return ["-e", f"{folder}[{extra}]"]


def _source(origin: dict[str, Any]) -> str:
    """Return the URL of a direct reference; a repository is pinned to the commit that is installed."""
    url: str = origin["url"]
    if vcs := origin.get("vcs_info"):
        url = f"{vcs['vcs']}+{url}@{vcs['commit_id']}"
    return f"{url}#subdirectory={folder}" if (folder := origin.get("subdirectory")) else url
