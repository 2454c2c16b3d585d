"""The manifest of a run, `manifest.json`, and its copy: what they must hold, and reading them."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import orjson

from agentsys.shapes import name_type
from agentsys.traces import RunFolderError, damage

MANIFEST: Final = "manifest.json"
MANIFEST_COPY: Final = ".manifest.json"
"""The manifest as a run began: it has the fingerprint, should manifest.json be lost."""
MANIFEST_VERSION: Final = 3
"""Version 2 counts *failed* records, and its fingerprint has schemas without docstrings; version 3 has all of the
graph's topology, with its conditional edges."""

_TYPES: Final = {
    "version": int, "run": str, "retries": int, "source_sha256": str, "fingerprint": dict, "counts": dict,
    "totals": dict,
}  # fmt: skip
_PARTS: Final = ("models", "roles", "knobs", "topology", "input")
"""Parts of a fingerprint that are objects."""


def read_manifest(folder: str | Path) -> dict[str, Any]:
    """The manifest of a run's folder, or its copy if a power cut tore it; {} for a folder without either.

    Raises RunFolderError if neither can be used.
    """
    faults: dict[Path, str] = {}
    for name in (MANIFEST, MANIFEST_COPY):
        path = Path(folder) / name
        if path.exists():
            manifest = load_manifest(path)
            if isinstance(manifest, dict):
                _check_version(path, manifest)
                return manifest
            faults[path] = manifest
    for path, fault in faults.items():
        raise damage(path, f"{fault}, and there is no good copy of it")
    return {}


def _check_version(path: Path, manifest: Mapping[str, Any]) -> None:
    if (version := manifest.get("version") or 1) > MANIFEST_VERSION:
        raise RunFolderError(f"{path}: version {version} is newer than {MANIFEST_VERSION}; update agentsys")


def load_manifest(path: Path) -> dict[str, Any] | str:
    """The content of a manifest, or what is wrong with it. Raises OSError."""
    data = path.read_bytes()
    if not data.strip(b"\0 \t\r\n"):
        return "the file is empty" if not data else "the file holds only zeros or blanks"
    try:
        manifest = orjson.loads(data)
    except orjson.JSONDecodeError as err:
        return f"not JSON ({err})"
    return _fault(manifest) or dict(manifest)


def _fault(manifest: Any) -> str:
    if not isinstance(manifest, dict):
        return f"it is {name_type(manifest)}, not an object"
    for name, kind in _TYPES.items():
        if type(value := manifest.get(name)) is not kind and name in manifest and value is not None:
            return f"{name!r} is {name_type(value)}"
    return _numbers_fault(manifest) or _fingerprint_fault(manifest.get("fingerprint") or {})


def _numbers_fault(manifest: Mapping[str, Any]) -> str:
    for part in ("counts", "totals"):
        for name, value in (manifest.get(part) or {}).items():
            if type(value) not in (int, float) or not 0 <= value < math.inf:
                return f"{name[:80]!r} in {part!r} is {value if type(value) in (int, float) else name_type(value)}"
    return "'retries' is below 0" if (manifest.get("retries") or 0) < 0 else ""


def _fingerprint_fault(fingerprint: Mapping[str, Any]) -> str:
    for part in _PARTS:
        if not isinstance(value := fingerprint.get(part, {}), dict):
            return f"{part!r} in 'fingerprint' is {name_type(value)}"
    for part in ("models", "roles"):
        for name, value in fingerprint.get(part, {}).items():
            if not isinstance(value, dict):
                return f"{name[:80]!r} in {part!r} is {name_type(value)}"
    return ""
