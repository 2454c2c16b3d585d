"""Best-first and exhaustive search over a problem whose steps are model calls.

For the same replies both give the same tree, however long each reply takes.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Sequence
from heapq import heappop, heappush
from typing import Any, NamedTuple, Protocol, TypeVar

from agentsys.models.errors import EndpointDown, ModelError
from agentsys.search.tree import Node, settled, walk

S = TypeVar("S")


class Child(NamedTuple):
    """A step from a node: the state it leads to, its cost (at least 0), and `step`, the JSON that the trace records.

    A step whose call failed has `error`, which ends its branch. `prior` is the probability P that PUCT uses.
    """

    state: Any
    cost: float = 0.0
    step: dict[str, Any] | None = None
    error: ModelError | None = None
    prior: float = 1.0


class Problem(Protocol[S]):
    """The problem that a search solves."""

    async def expand(self, node: Node[S]) -> Sequence[Child]:
        """Return the steps from a node in a fixed order, none for a leaf. A ModelError ends the branch."""
        ...

    def is_goal(self, node: Node[S]) -> bool:
        """Whether a leaf is a goal. Called after `expand` has returned no steps."""
        ...


async def best_first(root: Node[S], problem: Problem[S], *, parallel: int = 1) -> Node[S] | None:
    """Uniform-cost search: return the goal with the lowest cost, or None. Ties go to the first in `Node.order`.

    Nodes are expanded in that order, up to `parallel` at a time: expansion i is chosen when expansions
    1 .. i - parallel have finished, in order, so that the tree does not depend on timing. With parallel = 1 every node
    is tested when it is popped (Dijkstra 1959); with more, a few nodes may be expanded that a sequential search would
    not reach. Nodes that cannot beat the goal stay "open".
    """
    frontier: list[tuple[Any, Node[S]]] = [(root.order, root)]
    running: deque[tuple[Node[S], asyncio.Task[None]]] = deque()
    goal: Node[S] | None = None
    try:
        while True:
            while frontier and len(running) < parallel and (goal is None or frontier[0][0] < goal.order):
                node = heappop(frontier)[1]
                running.append((node, asyncio.create_task(_expand(node, problem))))
            if not running:
                return goal
            node, task = running.popleft()
            await task
            if node.outcome == "goal" and (goal is None or node.order < goal.order):
                goal = node
            for child in node.children:
                if child.outcome == "open":
                    heappush(frontier, (child.order, child))
    finally:
        for _, task in running:
            task.cancel()
        await asyncio.gather(*(task for _, task in running), return_exceptions=True)


async def exhaustive(root: Node[S], problem: Problem[S]) -> list[Node[S]]:
    """Expand every node, all branches in parallel; return the goals in `Node.order`. The problem limits the depth."""
    await _expand_subtree(root, problem)
    return sorted((node for node in walk(root) if node.outcome == "goal"), key=lambda node: node.order)


async def _expand_subtree(node: Node[S], problem: Problem[S]) -> None:
    await _expand(node, problem)
    await settled(*(_expand_subtree(child, problem) for child in node.children if child.outcome == "open"))


async def _expand(node: Node[S], problem: Problem[S]) -> None:
    """Set a node's children and outcome. A failed call ends only its branch."""
    try:
        steps = await problem.expand(node)
    except EndpointDown:
        raise
    except ModelError as err:
        node.outcome, node.error = "failed", str(err)
        return
    for step in steps:
        child = node.add(step.state, step.cost, step.step)
        if step.error is not None:
            child.outcome, child.error = "failed", str(step.error)
    node.outcome = "expanded" if steps else "goal" if problem.is_goal(node) else "end"
