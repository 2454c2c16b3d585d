"""Arguments of `collect` that cannot be meant, and what it takes where nothing is given."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypedDict

import pytest
from langgraph.graph import END, START, StateGraph
from langgraph.runtime import Runtime

import agentsys
from agentsys.collect import RunFolderError, collect
from agentsys.records import InputError
from agentsys.traces import read_traces


class State(TypedDict, total=False):
    text: str
    reply: str


@dataclass(frozen=True)
class Context:
    greeting: str = "hello"


@dataclass(frozen=True)
class Needy:
    greeting: str


def make_builder(kind: Any) -> StateGraph[Any, Any, Any, Any]:
    async def greet(state: State, runtime: Runtime[Any]) -> State:
        return {"reply": f"{runtime.context.greeting} {state['text']}"}

    builder = StateGraph(State, context_schema=kind)
    builder.add_node("greet", greet)
    builder.add_edge(START, "greet")
    builder.add_edge("greet", END)
    return builder


def test_the_default_context_is_that_of_the_graph(tmp_path: Path) -> None:
    collect(make_builder(Context).compile(name="greeter"), ["Ada"], tmp_path / "run")
    assert [trace.result["reply"] for trace in read_traces(tmp_path / "run") if trace.result] == ["hello Ada"]


def test_a_context_without_defaults_is_asked_for(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"the graph needs a context: give context=Needy\(\.\.\.\)"):
        collect(make_builder(Needy).compile(name="greeter"), ["Ada"], tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("graph", [make_builder(Context), "records.jsonl"], ids=["builder", "text"])
def test_what_is_no_compiled_graph_is_refused(tmp_path: Path, graph: Any) -> None:
    with pytest.raises(
        InputError, match=r"collect takes a compiled graph, not (StateGraph|str): give builder\.compile"
    ):
        collect(graph, ["Ada"], tmp_path / "run")


@pytest.mark.parametrize("name", ["README.md", "setup.py", "pyproject.toml", "notes.ipynb", ".git/"])
def test_a_folder_of_other_things_is_left_alone(tmp_path: Path, name: str) -> None:
    """The data card would replace its README.md."""
    path = tmp_path / name
    path.mkdir() if name.endswith("/") else path.write_text("mine")
    with pytest.raises(RunFolderError, match=f"holds {path.name} and no run: choose another --out"):
        collect(make_builder(Context).compile(name="greeter"), ["Ada"], tmp_path)
    assert [item.name for item in tmp_path.iterdir()] == [path.name]


def test_a_folder_with_data_may_become_a_run(tmp_path: Path) -> None:
    (tmp_path / "records.txt").write_text("Ada\n")
    collect(make_builder(Context).compile(name="greeter"), tmp_path / "records.txt", tmp_path)
    assert collect(make_builder(Context).compile(name="greeter"), tmp_path / "records.txt", tmp_path).skipped == 1


def test_collect_in_an_event_loop_names_what_to_await(tmp_path: Path) -> None:
    async def run() -> int:
        graph = make_builder(Context).compile(name="greeter")
        with pytest.raises(RuntimeError, match=r"await agentsys\.acollect\(\.\.\.\)"):
            agentsys.collect(graph, ["Ada"], tmp_path / "run")
        return (await agentsys.acollect(graph, ["Ada"], tmp_path / "run")).kept

    assert asyncio.run(run()) == 1


def test_no_traces_are_read_where_there_is_no_folder(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="no such folder; give the output folder of a run"):
        list(read_traces(tmp_path / "nowhere"))
