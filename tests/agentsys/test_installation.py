"""The command that adds an extra, for each way to install, and no advice to install a stranger's package."""

from __future__ import annotations

import json
import re
import shlex
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from agentsys import installation
from agentsys.installation import install_command
from tests.support import extras
from tests.support.paths import ROOT

NAME = installation.DISTRIBUTION
PROJECT: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]


class Distribution:
    """An installed distribution with the direct_url.json that pip wrote, or none."""

    def __init__(self, origin: dict[str, Any] | None) -> None:
        self._origin = origin

    def read_text(self, name: str) -> str | None:
        assert name == "direct_url.json"
        return None if self._origin is None else json.dumps(self._origin)


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of installed packages that this package seems to be in."""
    monkeypatch.setattr(installation, "_ROOT", tmp_path)
    return tmp_path


def install(monkeypatch: pytest.MonkeyPatch, origin: dict[str, Any] | None) -> None:
    monkeypatch.setattr(metadata, "distribution", lambda name: Distribution(origin) if name == NAME else None)


def test_a_checkout(tmp_path: Path) -> None:
    """With and without an installation: the code that runs is the checkout's."""
    assert install_command("train") == f"pip install -e {shlex.quote(f'{ROOT}[train]')}"
    checkout = tmp_path / "my work"
    (checkout / "agentsys").mkdir(parents=True)
    shutil.copy(ROOT / "pyproject.toml", checkout)
    for name in ("__init__.py", "installation.py"):
        shutil.copy(ROOT / "agentsys" / name, checkout / "agentsys")
    code = "from agentsys.installation import *; print(install_command('local,weights')); print(version())"
    lines = subprocess.check_output([sys.executable, "-S", "-c", code], cwd=checkout, text=True).splitlines()
    assert lines == [f"pip install -e '{checkout}[local,weights]'", PROJECT["version"]]


@pytest.mark.parametrize(
    ("origin", "requirement"),
    [
        (None, "'agentsys-roles[knowledge]'"),
        ({"url": "https://host/agentsys_roles-1.whl", "archive_info": {}}, "@ https://host/agentsys_roles-1.whl'"),
        (
            {
                "url": "https://host/roles.git",
                "vcs_info": {"vcs": "git", "requested_revision": "v1", "commit_id": "c0ffee"},
                "subdirectory": "python",
            },
            "'agentsys-roles[knowledge] @ git+https://host/roles.git@c0ffee#subdirectory=python'",
        ),
        ({"url": "file:///my%20work/roles", "dir_info": {"editable": True}}, "-e '/my work/roles[knowledge]'"),
        ({"url": "file:///gone/agentsys_roles-1.whl", "archive_info": {}}, "'agentsys-roles[knowledge]'"),
    ],
    ids=["index", "wheel by URL", "repository", "editable", "a wheel that is gone"],
)
def test_an_installed_copy(
    site: Path, monkeypatch: pytest.MonkeyPatch, origin: dict[str, Any] | None, requirement: str
) -> None:
    install(monkeypatch, origin)
    command = install_command("knowledge")
    assert command.startswith("pip install ") and command.endswith(requirement)
    assert any("[knowledge]" in argument for argument in shlex.split(command))


@pytest.mark.parametrize("kind", ["archive_info", "dir_info"])
def test_a_local_wheel_or_folder(site: Path, monkeypatch: pytest.MonkeyPatch, kind: str) -> None:
    source = site / "my wheels"
    source.mkdir()
    install(monkeypatch, {"url": source.as_uri(), kind: {}})
    assert shlex.split(install_command("dense")) == ["pip", "install", f"{NAME}[dense] @ {source.as_uri()}"]


def test_a_copy_without_metadata(site: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def distribution(name: str) -> None:
        raise metadata.PackageNotFoundError(name)

    monkeypatch.setattr(metadata, "distribution", distribution)
    assert install_command("hub") == "pip install 'agentsys-roles[hub]'"


def test_a_project_file_of_another_project_is_no_checkout(site: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Some packages leave their pyproject.toml beside the installed ones."""
    (site / "pyproject.toml").write_text('[project]\nname = "other"\n')
    install(monkeypatch, None)
    assert install_command("hub") == "pip install 'agentsys-roles[hub]'"


def test_options_and_quotes(monkeypatch: pytest.MonkeyPatch, site: Path) -> None:
    install(monkeypatch, {"url": "file:///it's%20mine", "dir_info": {"editable": True}})
    command = install_command("local,weights", "--force-reinstall")
    assert shlex.split(command) == ["pip", "install", "--force-reinstall", "-e", "/it's mine[local,weights]"]


def test_every_extra_in_a_message_exists() -> None:
    used = set()
    for folder in ("agentsys", "graphs", "trainers"):
        for path in (ROOT / folder).rglob("*.py"):
            for names in re.findall(r"""\binstall_command\(["'](\w[\w,-]+)["']""", path.read_text("utf-8")):
                used |= set(names.split(","))
    assert {"knowledge", "local", "maths", "weights"} <= used <= set(PROJECT["optional-dependencies"])


def test_the_version_has_one_source() -> None:
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text("utf-8"))
    assert citation["version"] == PROJECT["version"] == installation.version()
    assert citation["cff-version"] == "1.2.0" and citation["license"] == PROJECT["license"]
    assert (
        citation["title"] and citation["message"] and citation["authors"] == [{"name": PROJECT["authors"][0]["name"]}]
    )


def test_the_constraints_fit_what_is_declared() -> None:
    """One exact version for each package that is asked for by name, and nothing of the machine they were tested on."""
    lines = [line for line in (ROOT / "constraints.txt").read_text("utf-8").splitlines() if not line.startswith("#")]
    assert [line for line in lines if not re.fullmatch(r"[\w.-]+==[\w.]+", line)] == []
    versions = {canonicalize_name(name): version for name, version in (line.split("==") for line in lines)}
    assert len(versions) == len(lines) > 200 and NAME not in versions
    for requirement in declared("test", "docs"):
        assert requirement.specifier.contains(versions[canonicalize_name(requirement.name)]), requirement


def declared(*names: str) -> Iterator[Requirement]:
    """The requirements of the core and of extras, with those of the extras that an extra names."""
    texts = [*PROJECT["dependencies"], *(text for name in names for text in PROJECT["optional-dependencies"][name])]
    for requirement in map(Requirement, texts):
        if requirement.name == NAME:
            yield from declared(*requirement.extras)
        else:
            yield requirement


def test_tests_know_what_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Else every test that needs an extra would be skipped, or none."""
    assert extras.missing_package("test-core") == ""
    asked: list[str] = []
    monkeypatch.setattr(extras, "_installed", lambda name: asked.append(name) or name != "chromadb")
    extras.missing_package.cache_clear()
    try:
        assert extras.missing_package("dense") == "chromadb" and "bm25s" in asked
        assert extras.missing_package("maths") == ""
        with pytest.raises(pytest.skip.Exception, match="needs the extra 'dense' \\(chromadb is not installed\\)"):
            extras.skip_without("maths", "dense")
    finally:
        extras.missing_package.cache_clear()


# The name on the package index belongs to another project: no page and no message may tell anybody to install it.

_OWN = r"""(?<![\w./-])agentsys(?![\w./-])"""
ADVICE = re.compile(
    rf"""{_OWN}\[[a-z][\w, -]*\]                                          # an extra of it
    | (?:pip3?|pipx|uv|poetry|conda)\ (?:tool\ |pip\ )?(?:install|add|download)\ [^\n;&|`]*?{_OWN}
    | {_OWN}\ *(?:[=~!<>]=|@)\ *[\w.]                                      # a requirement with a version or a URL
    | (?:dependencies|requires)\ *=\ *\[[^\]]*["']agentsys["']             # a requirement of a project
    """,
    re.VERBOSE,
)
TEXTS = {".py", ".md", ".toml", ".txt", ".yml", ".yaml", ".cff", ".ipynb", ".json", ".sh", ".cfg", ""}


def text_files() -> Iterator[Path]:
    folders = [path for path in sorted(ROOT.iterdir()) if path.is_dir() and path.name in SOURCES]
    for path in [*ROOT.iterdir(), *(path for folder in folders for path in folder.rglob("*"))]:
        if path.is_file() and path.suffix in TEXTS and "__pycache__" not in path.parts:
            yield path


SOURCES = {"agentsys", "graphs", "trainers", "prompts", "docs", "tests", "benchmarks", ".ci"}


def test_nothing_advises_the_package_of_a_stranger() -> None:
    files = list(text_files())
    assert len(files) > 200 and ROOT / "README.md" in files and ROOT / ".ci" / "run" in files
    advice = [
        f"{path.relative_to(ROOT)}: {' '.join(match.group().split())}"
        for path in files
        for match in ADVICE.finditer(path.read_text("utf-8", errors="replace"))
    ]
    assert not advice


@pytest.mark.parametrize(
    "text",
    [
        "pip install {}",
        "run `pip install -U '{}'`",
        "pip3 install --pre {}==1.0",
        "uv add {}",
        "uv pip install -q {}",
        "'{}[knowledge]'",
        "{}[local,weights]",
        "{}==0.1.0",
        "{} >= 0.1",
        "{} @ git+https://host/x",
        'dependencies = [\n    "typer",\n    "{}",\n]',
    ],
)
def test_the_search_sees_the_advice(text: str) -> None:
    assert ADVICE.search(text.format("agentsys"))
    assert not ADVICE.search(text.format("agentsys-roles"))


@pytest.mark.parametrize(
    "text",
    ["pip install -e '../agentsys[train]'", "pip install -e . && agentsys collect drt"],
)
def test_the_search_lets_the_rest_pass(text: str) -> None:
    assert not ADVICE.search(text)
