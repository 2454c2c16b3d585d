"""The names of `from agentsys import ...`: they load lazily, and `collect` is a package and a function."""

from __future__ import annotations

import subprocess
import sys
import textwrap

import pytest

import agentsys
from tests.support.paths import ROOT


def run_fresh(code: str) -> str:
    """What a fresh interpreter prints."""
    run = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)], cwd=ROOT, capture_output=True, text=True, timeout=120
    )
    assert run.returncode == 0, run.stderr
    return run.stdout.strip()


@pytest.mark.parametrize("name", agentsys.__all__)
def test_a_name_is_importable_alone(name: str) -> None:
    assert run_fresh(f"from agentsys import {name}; print({name} is not None)") == "True"


def test_the_names_are_those_of_their_modules() -> None:
    from agentsys import prompt, roles, systems, traces
    from agentsys.installation import version

    assert agentsys.Prompt is prompt.Prompt and agentsys.Role is roles.Role
    assert agentsys.System is systems.System and agentsys.ask is systems.ask and agentsys.knob is systems.knob
    assert agentsys.Target is traces.Target and agentsys.Trace is traces.Trace
    assert agentsys.read_traces is traces.read_traces
    assert agentsys.__version__ == version()
    assert dir(agentsys) == agentsys.__all__


def test_another_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="module 'agentsys' has no attribute 'colect'"):
        _ = agentsys.colect  # type: ignore[attr-defined]
    with pytest.raises(ImportError, match="cannot import name 'Rolle'"):
        from agentsys import Rolle  # type: ignore[attr-defined]  # noqa: F401


def test_import_star_gives_the_names() -> None:
    assert run_fresh("from agentsys import *; print(Role.__name__, callable(collect), len(__version__) > 0)") == (
        "Role True True"
    )


RUN = """
import asyncio
import agentsys
from langgraph.graph import START, StateGraph
from typing import TypedDict

class State(TypedDict, total=False):
    text: str
    poem: str

builder = StateGraph(State)
builder.add_node("write", lambda state: {"poem": state["text"] + "!"})
builder.add_edge(START, "write")
graph = builder.compile(name="poet")
"""


@pytest.mark.parametrize(
    ("imports", "call"),
    [
        ("from agentsys import collect", "collect(graph, ['a'], OUT)"),
        ("import agentsys.collect.options\nfrom agentsys import collect", "collect(graph, ['a'], OUT)"),
        ("from agentsys import collect\nimport agentsys.collect.options", "agentsys.collect(graph, ['a'], OUT)"),
        ("from agentsys.collect import collect", "collect(graph, ['a'], OUT)"),
        ("from agentsys.collect import RunOptions", "agentsys.collect(graph, ['a'], OUT, options=RunOptions())"),
        ("", "agentsys.collect(graph, ['a'], OUT)"),
        ("", "agentsys.collect.collect(graph, ['a'], OUT)"),
        ("", "asyncio.run(agentsys.collect.acollect(graph, ['a'], OUT))"),
        ("import agentsys.collect.runner", "asyncio.run(agentsys.collect.acollect(graph, ['a'], OUT))"),
    ],
)
@pytest.mark.usefixtures("isolated_cache")
def test_collect_is_a_package_and_a_function(imports: str, call: str, tmp_path: object) -> None:
    code = f"{imports}\n{RUN}\nOUT = {str(tmp_path)!r} + '/run'\nsummary = {call}\n"
    shown = run_fresh(code + "print(summary.kept, [t.result['poem'] for t in agentsys.read_traces(OUT)])")
    assert shown == "1 ['a!']"


def test_help_and_editors_see_the_parameters_of_collect() -> None:
    import inspect

    from agentsys import collect
    from agentsys.collect.runner import collect as function

    assert inspect.signature(collect) == inspect.signature(function)
