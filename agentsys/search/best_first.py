"""Best-first search and whole trees over a problem whose steps are calls of models.

Both give the same tree for the same replies, however fast each reply comes.
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
    """A step from a node: the state after it, its cost (at least 0), and what the trace records of it.

    A step whose call failed has `error`, and its branch ends there. `prior` is for rules that ask how likely it was.
    """

    state: Any
    cost: float = 0.0
    step: dict[str, Any] | None = None
    error: ModelError | None = None
    prior: float = 1.0


class Problem(Protocol[S]):
    """What is searched."""

    async def expand(self, node: Node[S]) -> Sequence[Child]:
        """The steps from a node, in a fixed order; none if it is an end. May raise ModelError: the branch ends."""
        ...

    def is_goal(self, node: Node[S]) -> bool:
        """Whether an end is right. Asked after `expand` gave no step."""
        ...


async def best_first(root: Node[S], problem: Problem[S], *, parallel: int = 1) -> Node[S] | None:
    """Uniform-cost search: the goal of least cost, or None. Of goals with equal cost the first in `Node.order`.

    Nodes are expanded in that order, `parallel` of them together: expansion i is chosen when expansions 1 .. i - parallel
    have ended, in order, so that the tree does not depend on timing. With parallel = 1 every node is tested when it is
    popped (Dijkstra 1959); above, a few nodes may be expanded that a sequential search would not have reached. Nodes
    that could not beat the goal stay "open".
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
    """Expand every node, branches at once; the goals in `Node.order`. The problem bounds the depth."""
    await _grow(root, problem)
    return sorted((node for node in walk(root) if node.outcome == "goal"), key=lambda node: node.order)


async def _grow(node: Node[S], problem: Problem[S]) -> None:
    await _expand(node, problem)
    await settled(*(_grow(child, problem) for child in node.children if child.outcome == "open"))


async def _expand(node: Node[S], problem: Problem[S]) -> None:
    """Give a node its children and its outcome. A call that failed for good ends its branch only."""
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
