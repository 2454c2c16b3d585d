"""docs/papers.md leads to code that exists: each row of its tables names a file and functions or classes in it."""

from __future__ import annotations

import ast
import re

import pytest

from tests.support.paths import ROOT

ROW = re.compile(r"^\| .* \| `([\w/]+\.py)` \| ((?:`[\w.]+`(?:, )?)+) \|$", re.MULTILINE)
ENTRIES = [
    (file, name)
    for file, cell in ROW.findall((ROOT / "docs" / "papers.md").read_text(encoding="utf-8"))
    for name in re.findall(r"`([\w.]+)`", cell)
]


def names_in(file: str) -> set[str]:
    """The functions, classes and methods that a file defines, methods as `Class.method`."""
    definitions = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)
    names = set()
    for node in ast.parse((ROOT / file).read_bytes()).body:
        if isinstance(node, definitions):
            names.add(node.name)
        if isinstance(node, ast.ClassDef):
            names |= {f"{node.name}.{item.name}" for item in node.body if isinstance(item, definitions)}
    return names


@pytest.mark.parametrize(("file", "name"), ENTRIES, ids=[f"{file}:{name}" for file, name in ENTRIES])
def test_the_code_of_a_step_is_where_the_table_says(file: str, name: str) -> None:
    assert name in names_in(file)


def test_every_paper_has_a_table_of_its_steps() -> None:
    folders = {path.name for path in (ROOT / "graphs").iterdir() if (path / "system.py").exists()}
    listed = {file.split("/")[1] for file, _ in ENTRIES if file.startswith("graphs/")}
    assert folders <= listed
    assert len(ENTRIES) > 60
