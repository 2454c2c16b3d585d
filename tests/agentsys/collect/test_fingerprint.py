"""A run's fingerprint: the roles that a graph's nodes reach, and the differences between two runs."""

from __future__ import annotations

import re
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from agentsys.collect import collect
from agentsys.collect.fingerprint import differences, find_roles, source_digest
from agentsys.prompt import Prompt
from agentsys.roles import Role
from tests.support.greeter import GREETER, UNCACHED
from tests.support.toys import one_node

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
    assert differences(old, new) == ["knobs.b: 2 -> 3", "roles.x: {'prompt': 'p'} -> None"]
    assert differences(old, old) == []
