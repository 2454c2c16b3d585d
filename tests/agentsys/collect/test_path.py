"""The path of a record through its graph: nodes, calls, what each node wrote."""

from __future__ import annotations

import operator
from pathlib import Path
from typing import Annotated, Any, TypedDict

import pytest
from langgraph.graph import END, START, StateGraph
from langgraph.types import Send

from agentsys.collect import RunOptions, collect
from agentsys.collect.path import MAX_BYTES, GraphRun
from agentsys.models.scripted import ScriptedChatModel
from agentsys.prompt import Prompt
from agentsys.roles import Role
from agentsys.traces import Step, read_finished
from tests.support.shards import unpack_shards

ROLE = Role(Prompt.parse("# user\nSay {{ text }}", "speaker"))
MODEL = ScriptedChatModel(respond=lambda messages, call: f"<{messages[-1]['content'][4:]}>")


class State(TypedDict, total=False):
    """State of the graph below."""

    text: str
    part: str
    private: Any
    said: Annotated[list[str], operator.add]
    reply: str


class Output(TypedDict):
    """Its output."""

    text: str
    reply: str


async def split(state: State) -> dict[str, Any]:
    return {"private": {"parts": state["text"].split(), "large": "x" * (MAX_BYTES if "large" in state["text"] else 1)}}


async def say(state: State) -> dict[str, Any]:
    if state["part"] == "bomb":
        raise RuntimeError("the bomb went off")
    answers = [await ROLE(MODEL, key=f"say/{state['part']}/{i}", text=f"{state['part']}{i}") for i in (1, 2)]
    return {"said": answers}


async def rest(state: State) -> None:
    return None


async def join(state: State) -> dict[str, Any]:
    return {"reply": " ".join(state["said"]), "private": object()}


def make_graph() -> Any:
    builder = StateGraph(State, output_schema=Output)
    for node in (split, say, rest, join):
        builder.add_node(node.__name__, node)
    builder.add_edge(START, "split")
    builder.add_conditional_edges(
        "split",
        lambda state: [*(Send("say", {"part": part}) for part in state["private"]["parts"]), Send("rest", {})],
        ["say", "rest"],
    )
    builder.add_edge(["say", "rest"], "join")
    builder.add_edge("join", END)
    return builder.compile(name="paths")


def run(tmp_path: Path, text: str) -> list[Step]:
    collect(make_graph(), [{"text": text}], tmp_path / "run", options=RunOptions(cache=tmp_path / "cache"))
    [trace] = read_finished(tmp_path / "run")
    assert trace.path is not None
    return trace.path


def test_a_path_has_the_calls_of_each_task_and_what_it_wrote(tmp_path: Path) -> None:
    """Two tasks of one node run at once: each has its own calls."""
    assert run(tmp_path, "sun moon") == [
        Step("split", [], {"private": {"parts": ["sun", "moon"], "large": "x"}}),
        Step("say", ["say/sun/1", "say/sun/2"], {"said": ["<sun1>", "<sun2>"]}),
        Step("say", ["say/moon/1", "say/moon/2"], {"said": ["<moon1>", "<moon2>"]}),
        Step("rest"),
        Step("join", [], {}, in_result=["reply"], omitted=["private"]),
    ]


def test_large_values_are_named_only(tmp_path: Path) -> None:
    assert run(tmp_path, "large")[0] == Step("split", omitted=["private"])


def test_two_values_that_are_no_json_are_not_equal() -> None:
    run_of_a_set = GraphRun()
    run_of_a_set._nodes["task"] = "mark"
    run_of_a_set._updates["task"] = {"private": {1, 2}}
    assert run_of_a_set.path({}, {"private": {3}}) == [Step("mark", omitted=["private"])]


def test_a_path_ends_with_the_node_that_failed(tmp_path: Path) -> None:
    steps = run(tmp_path, "bomb sun")
    assert [step.node for step in steps] == ["split", "say", "say", "rest"]
    assert steps[0].update["private"]["parts"] == ["bomb", "sun"]
    assert steps[1] == Step("say")


def test_the_output_is_that_of_ainvoke(tmp_path: Path) -> None:
    summary = collect(make_graph(), [{"text": "sun"}], tmp_path / "run", options=RunOptions(cache=tmp_path / "cache"))
    assert summary.kept == 1
    [trace] = read_finished(tmp_path / "run")
    assert trace.result == {"text": "sun", "reply": "<sun1> <sun2>"}


@pytest.mark.parametrize("version", [1, 2])
def test_traces_of_earlier_versions_have_no_path(tmp_path: Path, version: int) -> None:
    import orjson

    run(tmp_path, "sun")
    [shard] = unpack_shards(tmp_path / "run").glob("traces-*.jsonl")
    old = {name: value for name, value in orjson.loads(shard.read_bytes()).items() if name != "path"}
    shard.write_bytes(orjson.dumps(old | {"version": version}) + b"\n")
    [trace] = read_finished(tmp_path / "run")
    assert trace.path is None
