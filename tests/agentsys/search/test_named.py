"""Searches by name: which nodes each one continues, on problems with known values; failures; when they stop."""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import pytest

from agentsys.models.errors import EndpointDown, ModelError
from agentsys.search import SEARCHES, Child, Node, SearchName, SearchSettings, grow_tree, tree_to_json, walk

Path = tuple[int, ...]


@dataclass
class Values:
    """Steps are numbers, counted on over all expansions of a node; V of a path comes from a function."""

    value: Callable[[Path], float] = lambda path: 0.0
    depth: int = 3
    cost: Callable[[Path], float] = lambda path: 0.0
    failing: frozenset[Path] = frozenset()
    delays: random.Random | None = None
    expanded: list[tuple[Path, int]] = field(default_factory=list)
    evaluated: list[Path] = field(default_factory=list)

    async def expand(self, node: Node[Path], n: int) -> Sequence[Child]:
        self.expanded.append((node.state, n))
        await asyncio.sleep(self.delays.random() / 300 if self.delays else 0)
        if node.state in self.failing:
            raise ModelError("no reply")
        paths = [(*node.state, len(node.children) + i) for i in range(n)]
        return [Child(path, self.cost(path), {"tokens": 10}) for path in paths]

    async def evaluate(self, nodes: Sequence[Node[Path]]) -> Sequence[float | ModelError]:
        self.evaluated += [node.state for node in nodes]
        return [self.value(node.state) for node in nodes]

    def is_terminal(self, node: Node[Path]) -> bool:
        return len(node.state) >= self.depth


async def grow(
    problem: Values, name: SearchName, grown: Callable[[], bool] = lambda: False, **sizes: int
) -> Node[Path]:
    root: Node[Path] = Node.root(())
    repeat = bool(sizes.pop("repeat", 0))
    await grow_tree(root, problem, SearchSettings(name, **{"depth": problem.depth, **sizes}, repeat=repeat), grown)
    return root


def ends(root: Node[Path]) -> list[Path]:
    return [node.state for node in walk(root) if node.outcome == "end"]


async def test_best_of_n_continues_each_solution_and_evaluates_ends_only() -> None:
    problem = Values()
    root = await grow(problem, "best-of-n", n=4)
    assert ends(root) == [(i, 0, 0) for i in range(4)] == sorted(problem.evaluated)
    assert Counter(n for _, n in problem.expanded) == {4: 1, 1: 8}


async def test_best_of_n_counts_equal_steps_as_solutions() -> None:
    """Two of the three first steps are equal: their node is continued twice."""

    class Twins(Values):
        async def expand(self, node: Node[Path], n: int) -> Sequence[Child]:
            steps = await super().expand(node, n)
            return [step._replace(state=(0,)) if step.state == (1,) else step for step in steps]

    problem = Twins()
    root = await grow(problem, "best-of-n", n=3)
    assert [(child.state, child.step.get("copies")) for child in root.children] == [((0,), 2), ((2,), None)]
    assert ((0,), 2) in problem.expanded and len(ends(root)) == 3


async def test_a_beam_keeps_the_best_of_a_level() -> None:
    """Of four first steps the two best are continued with two steps each, wherever they stand."""
    problem = Values(value=lambda path: {(1,): 0.9, (3,): 0.8}.get(path[:1], 0.1) + 0.01 * path[-1])
    root = await grow(problem, "beam", n=4, width=2)
    assert [path for path, _ in problem.expanded] == [(), (1,), (3,), (1, 1), (1, 0)]
    assert {path[0] for path in ends(root)} == {1} and len(list(walk(root))) == 1 + 4 + 4 + 4


async def test_subtrees_of_dvts_do_not_compete() -> None:
    """The same values: each half of the first steps continues its own best one."""
    problem = Values(value=lambda path: {(1,): 0.9, (3,): 0.8}.get(path[:1], 0.1) + 0.01 * path[-1])
    root = await grow(problem, "dvts", n=4, width=2)
    assert [path for path, _ in problem.expanded] == [(), (1,), (3,), (1, 1), (3, 1)]
    assert {path[0] for path in ends(root)} == {1, 3}


async def test_rebase_shares_its_steps_out_by_value() -> None:
    """Six steps for values 0, 0.2 and 0 at a temperature of 0.2: weights 1, e and 1, so 1, 3 and 1 after rounding."""
    problem = Values(value=lambda path: 0.2 if path == (1,) else 0.0, depth=2)
    root = await grow(problem, "rebase", n=6, width=4)
    first = {path: n for path, n in problem.expanded if path}
    assert first == {(0,): 1, (1,): 2, (2,): 1, (3,): 1, (4,): 1, (5,): 1}, "e / (5 + e) of six steps are 2.1"
    assert len(ends(root)) == 7


async def test_rebase_has_fewer_steps_when_solutions_have_ended() -> None:
    class Early(Values):
        def is_terminal(self, node: Node[Path]) -> bool:
            return len(node.state) >= self.depth or node.state[:1] == (0,)

    problem = Early()
    await grow(problem, "rebase", n=4)
    assert sum(n for path, n in problem.expanded if len(path) == 1) == 3


async def test_uniform_cost_ends_with_the_cheapest_solutions() -> None:
    problem = Values(cost=lambda path: 1.0 + path[-1], depth=2)
    root = await grow(problem, "uniform-cost", n=2, width=3)
    found = sorted((node for node in walk(root) if node.outcome == "end"), key=lambda node: node.cost)
    assert [(node.state, node.cost) for node in found] == [((0, 0), 2.0), ((0, 1), 3.0)]
    assert [path for path, _ in problem.expanded] == [(), (0,), (1,), (2,)], "of equal costs the shorter path first"


@pytest.mark.parametrize("name", SEARCHES)
async def test_a_failed_call_ends_its_branch_only(name: SearchName) -> None:
    problem = Values(failing=frozenset({(0,)}), value=lambda path: 0.5 if path[0] == 0 else 0.4)
    root = await grow(problem, name, n=4, width=2)
    assert root.children[0].outcome == "failed" and root.children[0].error == "no reply"
    assert any(node.state[0] != 0 for node in walk(root) if node.depth > 1)


@pytest.mark.parametrize("name", SEARCHES)
async def test_the_tree_does_not_depend_on_timing(name: SearchName) -> None:
    trees = []
    for delays in (None, random.Random(1), random.Random(2)):
        problem = Values(value=lambda path: random.Random(str(path)).random(), delays=delays,
                         cost=lambda path: random.Random(f"cost {path}").random())  # fmt: skip
        trees.append(tree_to_json(await grow(problem, name, n=4, width=2)))
    assert trees[1] == trees[0] == trees[2] and len(trees[0]) > 8


@pytest.mark.parametrize("name", SEARCHES)
async def test_grown_stops_the_search(name: SearchName) -> None:
    calls = 0

    def stop_at_second() -> bool:
        nonlocal calls
        calls += 1
        return calls >= 2

    stopped = await grow(Values(depth=6), name, stop_at_second, n=4, width=2)
    whole = await grow(Values(depth=6), name, n=4, width=2)
    assert calls >= 2 and 1 < len(list(walk(stopped))) < len(list(walk(whole)))


@pytest.mark.parametrize("name", [name for name in SEARCHES if name != "mcts"])
async def test_a_search_with_a_budget_begins_again(name: SearchName) -> None:
    """New first steps have new ids after those of the earlier rounds. Uniform-cost search just goes on."""
    problem = Values(cost=lambda path: 1.0, depth=5)
    root = await grow(problem, name, lambda: len(problem.expanded) >= 20, n=2, width=2, repeat=1)
    assert len(problem.expanded) >= 20
    assert len({node.id for node in walk(root)}) == len(list(walk(root)))
    assert len(root.children) > 2 or name == "uniform-cost"


async def test_a_model_that_writes_nothing_ends_the_repetition() -> None:
    class Silent(Values):
        async def expand(self, node: Node[Path], n: int) -> Sequence[Child]:
            return []

    root = await grow(Silent(), "best-of-n", n=2, repeat=1)
    assert root.children == [] and root.outcome == "end"


async def test_an_endpoint_that_is_down_ends_the_search() -> None:
    class Down(Values):
        async def expand(self, node: Node[Path], n: int) -> Sequence[Child]:
            if node.state:
                raise EndpointDown("no server is reachable")
            return await super().expand(node, n)

    for name in SEARCHES:
        with pytest.raises(EndpointDown, match="no server is reachable"):
            await grow(Down(), name, n=4, width=2)
