"""Best-first and exhaustive search: the cheapest goal, trees independent of timing, failures that end one branch."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Sequence
from dataclasses import dataclass, field

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agentsys.models.errors import EndpointDown, ModelError
from agentsys.search import Child, Node, best_first, exhaustive, tree_to_json, walk

Path = tuple[int, ...]


@dataclass
class Toy:
    """A binary tree of a fixed depth: step 1 costs 1, step 0 nothing; leaves in `goals` are goals, some calls fail."""

    depth: int
    goals: frozenset[Path]
    failing: frozenset[Path] = frozenset()
    delays: random.Random | None = None
    expanded: list[Path] = field(default_factory=list)
    most_running: int = 0
    _running: int = 0

    async def expand(self, node: Node[Path]) -> Sequence[Child]:
        self._running += 1
        self.most_running = max(self.most_running, self._running)
        await asyncio.sleep(self.delays.random() / 500 if self.delays else 0)
        self._running -= 1
        self.expanded.append(node.state)
        if node.state in self.failing:
            raise ModelError(f"no reply at {node.state}")
        if len(node.state) == self.depth:
            return []
        return [Child((*node.state, i), float(i), {"choice": i}) for i in (0, 1)]

    def is_goal(self, node: Node[Path]) -> bool:
        return node.state in self.goals


paths = st.lists(st.integers(0, 1), min_size=4, max_size=4).map(tuple)


@given(goals=st.frozensets(paths), failing=st.frozensets(paths, max_size=4), parallel=st.integers(1, 5))
@settings(max_examples=60, deadline=None)
async def test_best_first_finds_the_cheapest_goal(
    goals: frozenset[Path], failing: frozenset[Path], parallel: int
) -> None:
    reachable = goals - failing
    goal = await best_first(Node.root(()), Toy(4, goals, failing), parallel=parallel)
    if not reachable:
        assert goal is None
        return
    assert goal is not None
    best = min(reachable, key=lambda path: (sum(path), path))
    assert (goal.state, goal.cost) == (best, sum(best))


async def test_nodes_are_tested_when_they_are_popped() -> None:
    """No node that costs more than the goal is expanded."""
    toy = Toy(3, frozenset({(0, 1, 0)}))
    goal = await best_first(Node.root(()), toy)
    assert goal is not None and goal.cost == 1
    assert max(sum(path) for path in toy.expanded) == 1
    assert toy.expanded == [(), (0,), (0, 0), (0, 0, 0), (1,), (0, 1), (1, 0), (0, 0, 1), (0, 1, 0)]


@pytest.mark.parametrize("parallel", [1, 3])
async def test_the_tree_does_not_depend_on_timing(parallel: int) -> None:
    trees = []
    for seed in range(6):
        root: Node[Path] = Node.root(())
        toy = Toy(4, frozenset({(1, 0, 1, 0)}), frozenset({(0, 1)}), random.Random(seed))
        await best_first(root, toy, parallel=parallel)
        trees.append(tree_to_json(root))
        assert toy.most_running == parallel
    assert all(tree == trees[0] for tree in trees)
    if parallel == 1:
        assert {"open", "expanded", "goal", "end", "failed"} == {node["outcome"] for node in trees[0]}


async def test_exhaustive_search_is_parallel_and_a_failure_ends_its_branch() -> None:
    root: Node[Path] = Node.root(())
    toy = Toy(3, frozenset({(1, 1, 1), (0, 0, 1)}), frozenset({(0, 1)}), random.Random(1))
    goals = await exhaustive(root, toy)
    assert [goal.state for goal in goals] == [(0, 0, 1), (1, 1, 1)]
    assert toy.most_running >= 4
    nodes = {node.id: node for node in walk(root)}
    assert len(nodes) == 15 - 2
    assert nodes["root:0:1"].outcome == "failed" and "no reply" in str(nodes["root:0:1"].error)
    assert [node.id for node in nodes["root:1:0"].path] == ["root", "root:1", "root:1:0"]
    assert tree_to_json(root)[1] == {
        "id": "root:0", "parent": "root", "depth": 1, "cost": 0.0, "outcome": "expanded", "error": None, "choice": 0,
    }  # fmt: skip


@pytest.mark.parametrize("search", [best_first, exhaustive])
async def test_an_endpoint_that_is_down_ends_the_search(search) -> None:  # type: ignore[no-untyped-def]
    class Down(Toy):
        async def expand(self, node: Node[Path]) -> Sequence[Child]:
            if node.state == (1,):
                raise EndpointDown("no server is reachable")
            return await super().expand(node)

    with pytest.raises(EndpointDown):
        await search(Node.root(()), Down(3, frozenset()))


async def test_a_failed_step_ends_only_its_branch() -> None:
    class Half(Toy):
        async def expand(self, node: Node[Path]) -> Sequence[Child]:
            first, *rest = await super().expand(node) or [None]
            return [] if first is None else [Child(None, error=ModelError("truncated")), *rest]

    root: Node[Path] = Node.root(())
    goal = await best_first(root, Half(2, frozenset({(1, 1)})))
    assert goal is not None and goal.id == "root:1:1"
    assert root.children[0].outcome == "failed" and root.children[0].error == "truncated"
