"""The rules of the layout (CONTRIBUTING.md), read from the imports of every module, those inside functions included."""

from __future__ import annotations

import ast
import json
from collections.abc import Iterator
from functools import cache
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

from tests.support.modules import LINKED, folder_of, modules
from tests.support.paths import ROOT

FORBIDDEN = {
    "": {"agentsys.graphs", "agentsys.trainers", "tests", "benchmarks", "langgraph_api"},
    "graphs": {"agentsys.trainers", "tests", "benchmarks", "langgraph_api"},
    "trainers": {"agentsys.graphs", "langgraph", "tests", "benchmarks", "langgraph_api"},
    "prompts": {"agentsys"},
}
"""What the modules of agentsys itself ("") and of each linked folder may not import.

A module of trainers/ that compiles a graph for Studio may import langgraph.
"""


def compiles_graph(module: str) -> bool:
    """Whether a module has a name `graph` at its top level."""
    return any(
        isinstance(node, ast.Assign) and any(isinstance(t, ast.Name) and t.id == "graph" for t in node.targets)
        for node in ast.parse(modules()[module].read_bytes()).body
    )


@cache
def imports(module: str) -> frozenset[str]:
    """What a module imports, at any depth of its code: modules, and names in them where they are no modules of ours."""

    def names() -> Iterator[str]:
        for node in ast.walk(ast.parse(modules()[module].read_bytes())):
            if isinstance(node, ast.Import):
                yield from (alias.name for alias in node.names)
            elif isinstance(node, ast.ImportFrom):
                assert not node.level, f"{module}: a relative import"
                for alias in node.names:
                    full = f"{node.module}.{alias.name}"
                    yield full if full in modules() else str(node.module)

    return frozenset(names())


def is_in(module: str, package: str) -> bool:
    return module == package or module.startswith(f"{package}.")


STANDALONE = {"agentsys.trainers.idfree.device"}
"""Files that users copy elsewhere and run alone: their command and what libraries import are one file."""


def is_command(module: str) -> bool:
    """Whether a module can be run: `python graphs/drt_collect.py`, `python -m agentsys.knowledge`."""
    if module in STANDALONE:
        return False
    return '__name__ == "__main__"' in modules()[module].read_text(encoding="utf-8") or module.endswith("__main__")


@pytest.mark.parametrize("folder", FORBIDDEN)
def test_dependencies_point_one_way(folder: str) -> None:
    """prompts <- agentsys <- graphs, agentsys <- trainers."""
    wrong = [
        f"{module} imports {name}"
        for module in modules()
        if folder_of(module) == folder
        for name in imports(module)
        if any(is_in(name, package) for package in FORBIDDEN[folder])
        and not (folder == "trainers" and is_in(name, "langgraph") and compiles_graph(module))
    ]
    assert wrong == []


def test_no_paper_imports_another() -> None:
    """graphs/translate may: it compares the papers' systems."""
    papers = {path.parent.name for path in (ROOT / "graphs").glob("*/__init__.py")}
    assert {"crat", "deeprag", "drt", "longdpo", "maths", "ragtrans", "translate"} <= papers
    wrong = [
        f"{module} imports {name}"
        for paper in papers - {"translate"}
        for module in modules()
        if is_in(module, f"agentsys.graphs.{paper}")
        for name in imports(module)
        if is_in(name, "agentsys.graphs") and not is_in(name, f"agentsys.graphs.{paper}")
    ]
    assert wrong == []


def test_no_library_module_imports_a_command() -> None:
    commands = {module for module in modules() if is_command(module)}
    assert {"agentsys.graphs.drt_collect", "agentsys.trainers.sft", "agentsys.knowledge.__main__"} <= commands
    wrong = [
        f"{module} imports {name}"
        for module in modules()
        if module not in commands
        for name in imports(module) & commands
    ]
    assert wrong == []


def test_no_modules_import_each_other_in_a_circle() -> None:
    order = TopologicalSorter({module: imports(module) & modules().keys() - {module} for module in modules()})
    try:
        order.prepare()
    except CycleError as err:
        pytest.fail(" -> ".join(err.args[1]))


@pytest.mark.parametrize("folder", LINKED)
def test_a_linked_folder_is_one_package(folder: str) -> None:
    """The link is relative, so that a clone anywhere is whole."""
    link = ROOT / "agentsys" / folder
    assert link.is_symlink() and link.readlink() == Path("..") / folder


def test_every_graph_is_in_studio() -> None:
    """langgraph.json names every module of graphs/ and trainers/ that compiles a graph."""
    compiled = {
        module for module in modules() if folder_of(module) in ("graphs", "trainers") and compiles_graph(module)
    }
    served = json.loads((ROOT / "langgraph.json").read_text())["graphs"].values()
    assert {graph["path"].removesuffix(":graph") for graph in served} == compiled
