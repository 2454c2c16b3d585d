"""Python, the operating system, memory, and the folders that a run writes to."""

from __future__ import annotations

import os
import platform
import re
import shutil
import sys
import tempfile
from importlib import metadata
from pathlib import Path
from typing import Final

from agentsys.doctor.finding import Finding, gigabytes
from agentsys.installation import DISTRIBUTION, version
from agentsys.models.weights import CATALOG, DEFAULT, find_state
from agentsys.paths import cache_folder

OLDEST: Final = (3, 11)
"""The oldest Python version that this package runs on."""
MEMORY: Final = 3_000_000_000
"""Bytes that the default model needs with its default slots and context (2.7 GB resident were measured)."""
SPARE_DISK: Final = 2_000_000_000
"""Free bytes below which a folder that a run writes to gets a warning."""


def check_package() -> Finding:
    """The version of this package, and where it is."""
    folder = Path(__file__).parents[1]
    try:
        return Finding("agentsys", "ok", f"{version()} in {folder}")
    except metadata.PackageNotFoundError:
        return Finding("agentsys", "warning", f"{folder} is a copy that is not installed", "install it with pip")


def check_python() -> Finding:
    """The Python version."""
    tested = declared_versions()
    names = ", ".join(".".join(map(str, one)) for one in tested)
    text = f"{'.'.join(map(str, sys.version_info[:3]))} (tested: {names}) at {sys.executable}"
    current = sys.version_info[:2]
    if current in tested:
        return Finding("Python", "ok", text)
    return Finding("Python", "problem" if current < OLDEST else "warning", text, "use a tested version")


def declared_versions() -> list[tuple[int, ...]]:
    """Return the Python versions that the distribution declares as tested (its classifiers)."""
    try:
        classifiers: list[str] = metadata.metadata(DISTRIBUTION).get_all("Classifier") or []
    except metadata.PackageNotFoundError:
        classifiers = []
    versions = [re.fullmatch(r"Programming Language :: Python :: (3)\.(\d+)", classifier) for classifier in classifiers]
    return sorted((int(one[1]), int(one[2])) for one in versions if one) or [OLDEST]


def check_platform() -> Finding:
    """The operating system."""
    text = f"{platform.system()} {platform.release()}, {platform.machine()}, {os.cpu_count()} cores"
    if platform.system() == "Linux":
        return Finding("platform", "ok", text)
    fix = "use WSL" if platform.system() == "Windows" else "use Linux if something fails"
    return Finding("platform", "warning", f"{text}: only Linux is tested", fix)


def check_memory() -> Finding:
    """Memory against what the default model needs."""
    total, available = read_memory()
    needed = f"the default model needs {gigabytes(MEMORY)}"
    if total is None:
        return Finding("memory", "ok", f"unknown on this platform; {needed}")
    text = f"{gigabytes(total)}, {'?' if available is None else gigabytes(available)} available; {needed}"
    smaller = f"take a smaller model (--model embedded:{_smaller_model()}) or a server (--model http://host:port/v1)"
    if total < MEMORY:
        return Finding("memory", "problem", text, smaller, local=True)
    if available is not None and available < MEMORY:
        return Finding("memory", "warning", text, f"end other programs, or {smaller}")
    return Finding("memory", "ok", text)


def _smaller_model() -> str:
    return min((weights for weights in CATALOG.values() if weights.extra), key=lambda weights: weights.size).name


def read_memory(
    meminfo: Path = Path("/proc/meminfo"), cgroup: Path = Path("/sys/fs/cgroup")
) -> tuple[int | None, int | None]:
    """Return total and available memory in bytes, within a container's limit; None where it is unknown."""
    try:
        lines = dict(line.split(":", 1) for line in meminfo.read_text().splitlines())
        total, available = (int(lines[name].split()[0]) * 1024 for name in ("MemTotal", "MemAvailable"))
    except (OSError, KeyError, ValueError):
        pages = os.sysconf("SC_PHYS_PAGES") if "SC_PHYS_PAGES" in getattr(os, "sysconf_names", {}) else 0
        return (pages * os.sysconf("SC_PAGE_SIZE"), None) if pages > 0 else (None, None)
    for folder, limit_name, usage_name, cached_name in (
        (cgroup, "memory.max", "memory.current", "inactive_file"),
        (cgroup / "memory", "memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
    ):
        try:
            limit, usage = int((folder / limit_name).read_text()), int((folder / usage_name).read_text())
            stat = dict(line.split() for line in (folder / "memory.stat").read_text().splitlines())
        except (OSError, ValueError):  # no such file, or no limit: `max`
            continue
        free = limit - usage + int(stat.get(cached_name, 0))  # cached files make room
        total, available = min(total, limit), min(available, max(0, free))
    return total, available


def check_cache() -> Finding:
    """Whether the cache folder can be written, and has room for the default weights."""
    folder = cache_folder()
    origin = "from AGENTSYS_CACHE" if os.environ.get("AGENTSYS_CACHE") else "AGENTSYS_CACHE moves it"
    text = f"{folder} ({origin})"
    if reason := _write_error(folder):
        fix = "set AGENTSYS_CACHE to a folder that can be written"
        return Finding("cache folder", "problem", f"{text} cannot be written: {reason}", fix)
    free = shutil.disk_usage(_existing(folder)).free
    weights = CATALOG[DEFAULT]
    needed = 0 if find_state(weights) in ("verified", "unchecked") else weights.size
    text = f"{text}, {gigabytes(free)} free"
    fix = "free some space, or set AGENTSYS_CACHE to a folder on another disk"
    if free < needed:
        return Finding("cache folder", "problem", f"{text}, {gigabytes(needed)} needed", fix, local=True)
    if free < needed + SPARE_DISK:
        return Finding("cache folder", "warning", text, fix)
    return Finding("cache folder", "ok", text)


def check_working_folder() -> Finding:
    """Whether runs can be written into the working folder."""
    try:
        folder = Path.cwd()
    except OSError:
        return Finding("working folder", "warning", "it no longer exists", "change to another folder")
    if reason := _write_error(folder):
        return Finding("working folder", "warning", f"{folder} cannot be written: {reason}", "write elsewhere: --out")
    free = shutil.disk_usage(folder).free
    text = f"{folder}, {gigabytes(free)} free"
    if free < SPARE_DISK:
        return Finding("working folder", "warning", text, "free some space, or write elsewhere: --out")
    return Finding("working folder", "ok", text)


def _existing(folder: Path) -> Path:
    """Return the folder, or the first of its parents that exists."""
    return next(path for path in (folder.absolute(), *folder.absolute().parents) if os.path.exists(path))


def _write_error(folder: Path) -> str:
    """Return why a file cannot be written into a folder, or its first existing parent; an empty text if it can."""
    try:
        with tempfile.TemporaryFile(dir=_existing(folder)):
            return ""
    except OSError as err:
        return err.strerror or str(err)
