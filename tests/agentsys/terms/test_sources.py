"""Term sources: specs, passages, custom sources, caching, and the limits of Studio."""

from __future__ import annotations

import os
import subprocess
import sys
import types
from collections.abc import Sequence
from pathlib import Path

import pytest

from agentsys.knowledge import KnowledgeError, build_index
from agentsys.terms.item import Item
from agentsys.terms.sources import EXCERPT, load_sources
from tests.support.terms import load, load_list, targets, write

pytestmark = pytest.mark.needs("knowledge")

# Specs


def test_an_unknown_language_is_one_line() -> None:
    with pytest.raises(KnowledgeError, match="'Qzx' is not a language; write a code"):
        load_sources(["terms:a.csv"], "Qzx", "en")


@pytest.mark.parametrize(
    ("spec", "fault"),
    [
        ("terms:{}/nope.csv", "cannot be read .*; check the path"),
        ("terms:{}/a.csv?target=c", "no column 'c'; the columns are source, target"),
        ("terms:{}/a.csv?color=c", "'color' cannot be set; use source, target, meaning"),
        ("tmx:{}/a.csv", "not well-formed XML"),
        ("tmx:{}/a.csv?source=x", "has no columns"),
        ("passages:{}/nope", "is not an index"),
        ("web:example", "'web:example' is not a term source; use terms:FILE"),
        ("a.csv", "'a.csv' is not a term source"),
        ("terms:", "'terms:' is not a term source"),
    ],
)
def test_errors_of_specs_are_one_line(tmp_path: Path, spec: str, fault: str) -> None:
    write(tmp_path / "a.csv", "source,target\nmask,口罩\n")
    with pytest.raises(KnowledgeError, match=fault) as caught:
        load(spec.format(tmp_path))
    assert "\n" not in str(caught.value)


def test_a_string_of_specs_is_refused() -> None:
    with pytest.raises(KnowledgeError, match="sources are a list"):
        load_sources("terms:a.csv", "en", "zh")


# Passages and custom sources


async def test_passages_that_name_the_term(tmp_path: Path) -> None:
    long = f"{'Nothing here. ' * 60}Rush is a band from Toronto. {'Nothing there. ' * 60}"
    records = [
        {"id": "rush", "title": "Music", "text": long},
        {"id": "title", "title": "Rush", "text": "Three people from Canada."},
        {"id": "crush", "title": "", "text": "A crush is a drink; the rushes grow."},
        {"id": "zh", "title": "", "text": "病毒" * 400},
    ]
    build_index(records, tmp_path / "index")
    source = load(f"passages:{tmp_path / 'index'}")
    rush, virus, none = await source.look_up(["Rush", "病毒", "zebra"], "Rush and zebra")
    by_source = {item.source: item for item in rush}
    assert by_source.keys() == {"passage:rush", "passage:title"}
    assert "Rush is a band from Toronto." in by_source["passage:rush"].meaning
    assert by_source["passage:title"].evidence == "Rush: Three people from Canada."
    assert all(len(item.meaning) <= EXCERPT and item.target == "" for item in rush + virus)
    assert [item.source for item in virus] == ["passage:zh"] and none == []
    assert await source.look_up([], "") == []


async def test_a_custom_source() -> None:
    class Custom:
        name = "custom"

        async def look_up(self, terms: Sequence[str], sentence: str) -> list[list[Item]]:
            return [[Item(term, term.upper(), "", "", "custom")] for term in terms]

    assert await targets(load_sources([Custom()], "en", "zh")[0], "a") == ["A"]


# Loading


async def test_a_file_is_read_again_when_it_changes(tmp_path: Path) -> None:
    path = write(tmp_path / "terms.csv", "source,target\nmask,口罩\n")
    first = load_list(path)
    assert load_list(path) is first
    assert load_list(path, "English", "zh-CN") is not first
    write(path, "source,target\nmask,面具\n")
    os.utime(path, ns=(1, 1))
    assert await targets(load_list(path), "mask") == ["面具"]


def test_in_studio_only_listed_files_are_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "langgraph_api", types.ModuleType("langgraph_api"))
    allowed, other = (write(tmp_path / name, "source,target\nmask,口罩\n") for name in ("a.csv", "b.csv"))
    monkeypatch.setenv("AGENTSYS_TERM_SOURCES", f" {allowed} , {tmp_path / 'dir'}")
    assert load_list(allowed).counts.items == 1
    for spec in (f"terms:{other}", f"tmx:{other}", f"dictionary:{tmp_path}/dir/../b.csv", f"terms:{tmp_path}/nope"):
        with pytest.raises(KnowledgeError, match="is not allowed; start the server with AGENTSYS_TERM_SOURCES="):
            load(spec)
    with pytest.raises(KnowledgeError, match="AGENTSYS_INDEXES="):
        load(f"passages:{tmp_path}")


def test_importing_the_sources_loads_no_heavy_package() -> None:
    code = "import sys, agentsys.terms.sources, agentsys.graphs.crat.transkg; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    loaded = {name.partition(".")[0] for name in done.stdout.split()}
    assert not loaded & {"ahocorasick", "chromadb", "langcodes", "lxml", "matplotlib", "networkx", "opencc", "torch"}
