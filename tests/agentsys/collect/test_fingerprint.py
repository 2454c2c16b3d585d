"""A run's fingerprint: the roles that a graph's nodes reach, and the differences between two runs."""

from __future__ import annotations

import re
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from langgraph.graph import END, START, StateGraph

from agentsys.collect import RunFolderError, collect
from agentsys.collect.fingerprint import changed_settings, describe_change, find_roles, source_digest, topology
from agentsys.prompt import Prompt
from agentsys.roles import Role
from tests.support.greeter import GREETER, UNCACHED
from tests.support.toys import Input, State, one_node

FAREWELL: Role[str] = Role(Prompt.parse("# user\nSay good bye to {{ text }}", "parting"))


async def direct(state: Any) -> dict[str, Any]:
    return {"reply": GREETER.name}


def not_async(state: Any) -> dict[str, Any]:
    return {"reply": GREETER.name}


def _helper() -> str:
    return GREETER.name


async def by_helper(state: Any) -> dict[str, Any]:
    return {"reply": _helper()}


async def by_comprehension(state: Any) -> dict[str, Any]:
    return {"reply": [GREETER.name for _ in range(2)]}


TABLE = {"kind": [GREETER]}


async def by_table(state: Any) -> dict[str, Any]:
    return {"reply": TABLE["kind"][0].name}


def closure() -> Any:
    role = GREETER

    async def node(state: Any) -> dict[str, Any]:
        return {"reply": role.name}

    return node


async def with_argument(state: Any, *, role: Role[str]) -> dict[str, Any]:
    return {"reply": role.name}


class Keeper:
    """A role in a field."""

    def __init__(self) -> None:
        self.role = GREETER

    async def __call__(self, state: Any) -> dict[str, Any]:
        return {"reply": self.role.name}

    async def node(self, state: Any) -> dict[str, Any]:
        return {"reply": self.role.name}


NODES = {
    "global": direct,
    "sync": not_async,
    "helper": by_helper,
    "comprehension": by_comprehension,
    "table": by_table,
    "closure": closure(),
    "partial": partial(with_argument, role=GREETER),
    "method": Keeper().node,
    "object": Keeper(),
    "subgraph": one_node(direct),
}


@pytest.mark.parametrize("node", NODES.values(), ids=NODES.keys())
def test_roles_are_found_where_nodes_reach_them(tmp_path: Path, node: Any) -> None:
    graph = one_node(node)
    assert find_roles(graph) == {"greeter": GREETER}
    assert re.fullmatch("[0-9a-f]{16}", source_digest(graph))
    assert collect(graph, ["Ann"], tmp_path / "run", options=UNCACHED).kept == 1


def test_roles_that_no_node_reaches_are_not_found() -> None:
    async def node(state: Any) -> dict[str, Any]:
        return {}

    assert find_roles(one_node(node)) == {}
    assert FAREWELL not in find_roles(one_node(direct)).values()


def test_differences_name_each_setting() -> None:
    old = {"knobs": {"a": 1, "b": 2}, "roles": {"x": {"prompt": "p"}}}
    new = {"knobs": {"a": 1, "b": 3}, "roles": {}}
    changes = [describe_change(*change) for change in changed_settings(old, new)]
    assert changes == ["knobs.b: 2 -> 3", "roles.x: {'prompt': 'p'} -> None"]
    assert not list(changed_settings(old, old))
    assert describe_change(["knobs", "a"], "\x1b[31mred\n", "x" * 99) == f"knobs.a: \\x1b[31mred -> {'x' * 57}..."


def route(state: Any) -> str:
    return END if state.get("reply") else "write"


def branching(path_map: Any, then: str = "write") -> Any:
    """A graph with a conditional edge, an edge that waits for two nodes, a node with commands and a subgraph."""
    builder = StateGraph(State, input_schema=Input)
    for name in ("write", "left", "right", "join"):
        builder.add_node(name, not_async)
    builder.add_node("jump", not_async, destinations=("join", then))
    builder.add_node("part", one_node(direct))
    builder.add_edge(START, "write")
    builder.add_conditional_edges("write", route, path_map)
    builder.add_edge("write", "left")
    builder.add_edge("write", "right")
    builder.add_edge(["right", "left"], "join")
    builder.add_edge("join", "part")
    return builder.compile(name="branching")


def test_topology_has_every_kind_of_edge() -> None:
    assert topology(branching({"write": "write", END: END, True: "jump"})) == {
        "nodes": ["join", "jump", "left", "part", "right", "write"],
        "edges": [[START, "write"], ["join", "part"], ["write", "left"], ["write", "right"]],
        "waiting_edges": [["left", "right", "join"]],
        "branches": {"write": {"route": {"write": "write", END: END, "True": "jump"}}},
        "destinations": {"jump": ["join", "write"]},
        "subgraphs": {"part": topology(one_node(direct))},
    }
    assert topology(branching(None))["branches"] == {"write": {"route": None}}  # it may go to any node


def test_a_run_is_not_mixed_with_one_of_other_conditional_edges(tmp_path: Path) -> None:
    collect(branching(["write", END]), ["Ann"], tmp_path / "run", options=UNCACHED)
    assert collect(branching(["write", END]), ["Ann", "Bob"], tmp_path / "run", options=UNCACHED).processed == 1
    with pytest.raises(RunFolderError, match=r"topology\.branches\.write\.route\.write: write -> None"):
        collect(branching([END]), ["Ann", "Bob", "Eve"], tmp_path / "run", options=UNCACHED)
    with pytest.raises(RunFolderError, match=r"topology\.destinations\.jump: .*'write'\] -> .*'left'\]"):
        collect(branching(["write", END], "left"), ["Ann"], tmp_path / "run", options=UNCACHED)
