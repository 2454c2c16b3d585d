"""What an import costs and may touch: heavy libraries stay out until they are used, and dependencies point one way."""

from __future__ import annotations

import json
import subprocess
import sys
from functools import cache

import pytest

from tests.support.modules import folder_of, modules
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
    run = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert run.returncode == 0, run.stderr
    return frozenset(json.loads(run.stdout))


LIGHT = (
    "agentsys",
    "agentsys.knowledge",
    "agentsys.terms.sources",
    "agentsys.models",
    "agentsys.pictures",
    "agentsys.roles",
    "agentsys.search",
    "agentsys.graphs.crat.system",
    "agentsys.graphs.deeprag.system",
    "agentsys.graphs.deeprag.search",
    "agentsys.graphs.drt.system",
    "agentsys.graphs.longdpo.search",
    "agentsys.graphs.deeprag.baselines",
    "agentsys.graphs.punchbench.answering",
    "agentsys.graphs.punchbench.system",
    "agentsys.graphs.translate.system",
    "agentsys.graphs.longdpo.longbench_write",
)


@pytest.mark.parametrize("module", LIGHT)
def test_no_heavy_module(module: str) -> None:
    """What langgraph and langchain-core load by themselves is not ours to save."""
    frameworks = loaded_by("langgraph.graph", "langchain_core.language_models")
    assert loaded_by(module) & HEAVY - frameworks == set()


def test_the_check_sees_heavy_modules() -> None:
    assert "numpy" in loaded_by("numpy") & HEAVY
    assert "aiohttp" in loaded_by("aiohttp") & HEAVY


def test_agentsys_alone_is_light() -> None:
    assert loaded_by("agentsys") & FRAMEWORKS == set()


def test_the_framework_loads_no_graph_and_no_trainer() -> None:
    names = [module for module in modules() if not folder_of(module) and not module.endswith("__main__")]
    code = f"import json, sys, {', '.join(names)}; print(json.dumps(list(sys.modules)))"
    run = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert run.returncode == 0, run.stderr
    loaded = json.loads(run.stdout)
    assert [name for name in loaded if name.startswith("agentsys.") and folder_of(name)] == []
    assert {name.partition(".")[0] for name in loaded} & {"torch", "trl", "vllm", "xllamacpp", "langgraph_api"} == set()
