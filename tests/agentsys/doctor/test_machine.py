"""The doctor's lines on Python, memory and folders, with facts that are set by the test."""

from __future__ import annotations

import os
import platform
import shutil
import sys
import tomllib
from importlib import metadata
from pathlib import Path
from types import SimpleNamespace

import pytest

from agentsys.doctor import machine
from agentsys.doctor.machine import (
    MEMORY,
    OLDEST,
    SPARE_DISK,
    check_cache,
    check_memory,
    check_package,
    check_platform,
    check_python,
    check_working_folder,
    declared_versions,
    read_memory,
)
from agentsys.models.weights import CATALOG, DEFAULT, cached_path
from tests.support.paths import ROOT


def test_the_package() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    finding = check_package()
    assert finding.status == "ok" and finding.text.startswith(f"{project['version']} in ")


@pytest.mark.parametrize(
    ("version", "status"),
    [
        ((3, 10, 9), "problem"),
        ((3, 11, 0), "ok"),
        ((3, 12, 1), "warning"),
        ((3, 13, 5), "ok"),
        ((3, 14, 0), "warning"),
    ],
)
def test_python(version: tuple[int, int, int], status: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "version_info", version)
    monkeypatch.setattr(machine, "declared_versions", lambda: [(3, 11), (3, 13)])
    finding = check_python()
    assert finding.status == status
    assert bool(finding.fix) == (status != "ok")
    assert finding.text.startswith(".".join(map(str, version))) and "(tested: 3.11, 3.13)" in finding.text


def test_tested_versions_are_those_that_the_distribution_declares(monkeypatch: pytest.MonkeyPatch) -> None:
    assert declared_versions()[0] == OLDEST
    lines = ["3", "3 :: Only", "3.12", "3.11", "3.9x", "Implementation :: CPython"]
    declared = SimpleNamespace(get_all=lambda name: [f"Programming Language :: Python :: {line}" for line in lines])
    monkeypatch.setattr(metadata, "metadata", lambda name: declared)
    assert declared_versions() == [(3, 11), (3, 12)]


def test_the_oldest_version_is_the_projects() -> None:
    requires = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["requires-python"]
    assert f">={OLDEST[0]}.{OLDEST[1]}" in requires


@pytest.mark.parametrize(("system", "status"), [("Linux", "ok"), ("Darwin", "warning"), ("Windows", "warning")])
def test_platform(system: str, status: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(platform, "system", lambda: system)
    finding = check_platform()
    assert (finding.status, bool(finding.fix)) == (status, status != "ok")


# Memory


@pytest.mark.parametrize(
    ("total", "available", "status"),
    [
        (2 * MEMORY, 2 * MEMORY, "ok"),
        (2 * MEMORY, MEMORY - 1, "warning"),
        (MEMORY - 1, MEMORY - 1, "problem"),
        (2 * MEMORY, None, "ok"),
        (None, None, "ok"),
    ],
)
def test_memory(total: int | None, available: int | None, status: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "read_memory", lambda: (total, available))
    finding = check_memory()
    assert finding.status == status and "needs 3.0 GB" in finding.text
    assert ("qwen2.5-coder-0.5b" in finding.fix) == (status != "ok")


MEMINFO = "MemTotal:       8000000 kB\nMemFree:  1 kB\nMemAvailable:   6000000 kB\nHugePages_Total: 0\n"
GIB = 2**30


def test_memory_of_a_machine(tmp_path: Path) -> None:
    (tmp_path / "meminfo").write_text(MEMINFO)
    (tmp_path / "memory.max").write_text("max\n")
    (tmp_path / "memory.current").write_text("5\n")
    assert read_memory(tmp_path / "meminfo", tmp_path) == (8_000_000 * 1024, 6_000_000 * 1024)


@pytest.mark.parametrize("version", [1, 2])
def test_memory_within_a_container(version: int, tmp_path: Path) -> None:
    """A limit of 4 GiB of which 3 are used, 1 of them by cached files."""
    (tmp_path / "meminfo").write_text(MEMINFO)
    folder = tmp_path if version == 2 else tmp_path / "memory"
    folder.mkdir(exist_ok=True)
    limit, usage = ("max", "current") if version == 2 else ("limit_in_bytes", "usage_in_bytes")
    (folder / f"memory.{limit}").write_text(f"{4 * GIB}\n")
    (folder / f"memory.{usage}").write_text(f"{3 * GIB}\n")
    (folder / "memory.stat").write_text(f"anon 7\n{'' if version == 2 else 'total_'}inactive_file {GIB}\n")
    assert read_memory(tmp_path / "meminfo", tmp_path) == (4 * GIB, 2 * GIB)


def test_memory_without_proc(tmp_path: Path) -> None:
    total, available = read_memory(tmp_path / "none", tmp_path)
    assert (total is None or total > 0) and available is None


# Folders


def set_free(monkeypatch: pytest.MonkeyPatch, free: int) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: SimpleNamespace(free=free))


@pytest.mark.parametrize(("spare", "status"), [(-1, "problem"), (0, "warning"), (SPARE_DISK, "ok")])
def test_room_in_the_cache_folder(
    spare: int, status: str, isolated_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    weights = CATALOG[DEFAULT]
    set_free(monkeypatch, weights.size + spare)
    finding = check_cache()
    assert finding.status == status and str(isolated_cache) in finding.text and "AGENTSYS_CACHE" in finding.text
    assert not isolated_cache.exists()  # looking changes nothing


def test_weights_in_the_cache_need_no_room_a_second_time(isolated_cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    set_free(monkeypatch, SPARE_DISK)
    assert check_cache().status == "warning"
    path = cached_path(CATALOG[DEFAULT])
    path.parent.mkdir(parents=True)
    with path.open("wb") as file:
        file.truncate(CATALOG[DEFAULT].size)  # a sparse file: it takes no room
    assert check_cache().status == "ok"


def test_a_cache_folder_that_cannot_be_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("AGENTSYS_CACHE", str(tmp_path / "file" / "cache"))
    finding = check_cache()
    assert finding.status == "problem" and not finding.local
    assert "Not a directory" in finding.text and "set AGENTSYS_CACHE" in finding.fix


@pytest.mark.skipif(os.name == "nt" or os.geteuid() == 0, reason="permissions do not bind this user")
def test_a_read_only_folder(isolated_cache: Path) -> None:
    isolated_cache.mkdir(mode=0o500)
    assert check_cache().status == "problem"


@pytest.mark.parametrize(("free", "status"), [(SPARE_DISK - 1, "warning"), (SPARE_DISK, "ok")])
def test_the_working_folder(free: int, status: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    set_free(monkeypatch, free)
    finding = check_working_folder()
    assert finding.status == status and str(tmp_path) in finding.text


def test_a_working_folder_that_is_gone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "gone").mkdir()
    monkeypatch.chdir(tmp_path / "gone")
    (tmp_path / "gone").rmdir()
    assert check_working_folder().status == "warning"
