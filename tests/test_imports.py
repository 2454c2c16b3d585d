"""What an import costs and may touch: heavy libraries stay out until they are used, and dependencies point one way."""

from __future__ import annotations

import ast
import json
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

from tests.support.paths import ROOT

HEAVY = {
    "accelerate", "ahocorasick", "aiohttp", "bm25s", "chromadb", "datasets", "defusedxml", "huggingface_hub",
    "langchain_openai", "langcodes", "langgraph_api", "lxml", "math_verify", "matplotlib", "networkx", "numpy",
    "openai", "opencc", "pandas", "peft", "pyarrow", "sacrebleu", "scipy", "sentence_transformers", "sentencex",
    "sklearn", "sympy", "tokenizers", "torch", "transformers", "trl", "typer", "uvloop", "vllm", "xllamacpp",
}  # fmt: skip
FRAMEWORKS = {"langgraph", "langchain_core", "pydantic", "jinja2"}


@cache
def loaded_by(*modules: str) -> frozenset[str]:
    """Top-level packages in a fresh interpreter after these imports."""
    code = (
        f"import json, sys, {', '.join(modules)}; print(json.dumps([name.partition('.')[0] for name in sys.modules]))"
    )
    found = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert found.returncode == 0, found.stderr
    return frozenset(json.loads(found.stdout))


LIGHT = (
    "agentsys",
    "agentsys.knowledge",
    "agentsys.terms.sources",
    "agentsys.models",
    "agentsys.roles",
    "agentsys.search",
    "agentsys.graphs.crat.system",
    "agentsys.graphs.deeprag.system",
    "agentsys.graphs.deeprag.search",
    "agentsys.graphs.drt.system",
    "agentsys.graphs.longdpo.search",
    "agentsys.graphs.deeprag.baselines",
    "agentsys.graphs.translate.system",
    "agentsys.graphs.longdpo.writing",
)


@pytest.mark.parametrize("modules", LIGHT)
def test_no_heavy_module(modules: str) -> None:
    """What langgraph and langchain-core load by themselves is not ours to save."""
    frameworks = loaded_by("langgraph.graph", "langchain_core.language_models")
    assert loaded_by(modules) & HEAVY - frameworks == set()


def test_the_check_sees_heavy_modules() -> None:
    assert "numpy" in loaded_by("numpy") & HEAVY
    assert "aiohttp" in loaded_by("aiohttp") & HEAVY


def test_agentsys_alone_is_light() -> None:
    assert loaded_by("agentsys") & FRAMEWORKS == set()


def test_the_framework_loads_no_graph_and_no_trainer() -> None:
    everything = [".".join(path.relative_to(ROOT).with_suffix("").parts) for path in sources("agentsys")]
    modules = [name.removesuffix(".__init__") for name in everything if not name.endswith("__main__")]
    assert loaded_by(*modules) & {"graphs", "trainers", "torch", "trl", "vllm", "xllamacpp", "langgraph_api"} == set()


def sources(folder: str) -> list[Path]:
    found = sorted((ROOT / folder).rglob("*.py"))
    assert found
    return found


def imports(path: Path) -> Iterator[str]:
    """Every module that a file imports, also inside of functions."""
    for node in ast.walk(ast.parse(path.read_bytes())):
        if isinstance(node, ast.Import):
            yield from (name.name for name in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield from (f"{node.module}.{name.name}" for name in node.names)


@pytest.mark.parametrize(
    ("folder", "forbidden"),
    [
        ("agentsys", {"graphs", "trainers", "tests", "benchmarks", "langgraph_api"}),
        ("graphs", {"trainers", "tests", "benchmarks", "langgraph_api"}),
        ("trainers", {"graphs", "langgraph", "tests", "benchmarks", "langgraph_api"}),
        ("prompts", {"agentsys", "graphs", "trainers"}),
    ],
)
def test_dependencies_point_one_way(folder: str, forbidden: set[str]) -> None:
    wrong = [f"{path}: {name}" for path in sources(folder) for name in imports(path) if name.split(".")[0] in forbidden]
    assert wrong == []
