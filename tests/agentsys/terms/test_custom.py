"""A class of the user's as a term source: python:MODULE:CLASS."""

from __future__ import annotations

import sys
import types
from pathlib import Path

import pytest

from agentsys.knowledge import KnowledgeError
from agentsys.terms.custom import load_custom
from agentsys.terms.sources import load_sources, source_summary, sources_digest
from tests.support.terms import load, targets

pytestmark = pytest.mark.needs("knowledge")

MODULE = """
from agentsys.terms.item import Item

made = []

class Upper:
    name = "upper"

    def __init__(self):
        made.append(self)

    async def look_up(self, terms, sentence):
        return [[Item(term, term.upper(), "", "", "upper:1")] for term in terms]

class Nameless:
    async def look_up(self, terms, sentence): ...

class Empty:
    name = "empty"

class Sync(Upper):
    def look_up(self, terms, sentence):
        return []

class Short(Upper):
    async def look_up(self, terms): ...

class Path(Upper):
    def __init__(self, path): ...

class Failing(Upper):
    def __init__(self):
        raise KeyError("TOKEN")

function = print
"""


@pytest.fixture
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> str:
    """The name of a module in the current folder, another one for each test."""
    name = f"sources_{abs(hash(request.node.name))}"
    (tmp_path / f"{name}.py").write_text(MODULE, encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [path for path in sys.path if path not in ("", str(Path.cwd()))])
    load_custom.cache_clear()
    return name


async def test_a_class_of_the_current_folder_is_a_source(module: str) -> None:
    source = load(f"python:{module}:Upper")
    assert await targets(source, "mask") == ["MASK"]
    assert sys.path[-1] == str(Path.cwd())  # last: a file there does not hide an installed module
    assert load(f"python:{module}:Upper") is source
    assert len(sys.modules[module].made) == 1
    assert source_summary([f"python:{module}:Upper"], "en", "zh") == []


def test_the_digest_is_that_of_the_module(module: str) -> None:
    spec = f"python:{module}:Upper"
    load(spec)
    before = sources_digest([spec])
    Path(f"{module}.py").write_text(f"{MODULE}# changed", encoding="utf-8")
    assert sources_digest([spec]) != before


@pytest.mark.parametrize(
    ("target", "fault"),
    [
        ("Upper", "write python:MODULE:CLASS, such as"),
        ("a.py:Upper:x", "write python:MODULE:CLASS, such as"),
        ("nowhere_at_all:Upper", "no module nowhere_at_all in .* or installed; run the command in the folder"),
        ("{}:Lower", "no class Lower in .*py; its classes are Upper, Nameless, Empty, Sync, Short, Path, Failing"),
        ("{}:function", "no class function in"),
        ("{}:Nameless", 'Nameless has no name; add the line name = "nameless" to the class'),
        ("{}:Empty", "Empty has no look_up; add async def look_up.self, terms, sentence."),
        ("{}:Sync", "Sync.look_up is not async; write async def look_up.self, terms, sentence."),
        ("{}:Short", r"Short.look_up takes \(terms\); write async def look_up.self, terms, sentence."),
        ("{}:Path", r"Path\(\) is called without arguments .missing a required argument: 'path'.; give defaults"),
        ("{}:Failing", r"Failing\(\) fails: KeyError: 'TOKEN' .*\.py:\d+.; correct it"),
    ],
)
def test_errors_of_classes_are_one_line(module: str, target: str, fault: str) -> None:
    with pytest.raises(KnowledgeError, match=fault) as caught:
        load(f"python:{target.format(module)}")
    assert "\n" not in str(caught.value) and str(caught.value).startswith("python:")


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("import nowhere_at_all", "ModuleNotFoundError: No module named 'nowhere_at_all' (.*py:1); correct it"),
        ("x = 1\ny = 1 +", "invalid syntax (.*py:2); correct it"),
        ("\nraise RuntimeError('two\\nlines')", "RuntimeError: two lines (.*py:2); correct it"),
    ],
)
def test_a_module_that_cannot_be_imported_is_one_line(module: str, text: str, fault: str) -> None:
    Path(f"{module}_b.py").write_text(text, encoding="utf-8")
    with pytest.raises(KnowledgeError, match=fault.replace("(", "[(]").replace(")", "[)]")) as caught:
        load_sources([f"python:{module}_b:Upper"], "en", "zh")
    assert "\n" not in str(caught.value)


def test_studio_imports_no_class(module: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "langgraph_api", types.ModuleType("langgraph_api"))
    for _ in range(2):
        with pytest.raises(KnowledgeError, match=r"in Studio, python:.*:Upper is not allowed, because it imports code"):
            load(f"python:{module}:Upper")
    assert module not in sys.modules
