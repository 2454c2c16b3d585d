"""Tests that need an extra of the project are skipped, with its name, where the extra is not installed."""

from __future__ import annotations

import tomllib
from functools import cache
from importlib import metadata

import pytest
from packaging.requirements import Requirement

from tests.support.paths import ROOT


def skip_without(*extras: str) -> None:
    """Skip the running test if a package of an extra is missing."""
    for extra in extras:
        if missing := missing_package(extra):
            pytest.skip(f"needs the extra {extra!r} ({missing} is not installed)")


@cache
def missing_package(extra: str) -> str:
    """The first package of an extra that is not installed, or an empty string."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    for requirement in map(Requirement, project["optional-dependencies"][extra]):
        if requirement.name == project["name"]:
            missing = next(filter(None, map(missing_package, sorted(requirement.extras))), "")
        else:
            missing = "" if _installed(requirement.name) else requirement.name
        if missing:
            return missing
    return ""


def _installed(name: str) -> bool:
    try:
        metadata.distribution(name)
    except metadata.PackageNotFoundError:
        return False
    return True
