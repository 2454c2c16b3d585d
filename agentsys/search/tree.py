"""The nodes of a search tree, and their JSON form in traces."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Iterator
from dataclasses import dataclass, field
from typing import Any, Generic, Literal, TypeVar

from agentsys.models.errors import EndpointDown, ModelError

S = TypeVar("S")
T = TypeVar("T")

Outcome = Literal["open", "expanded", "goal", "end", "failed", "excluded"]
"""Not expanded; has children; a leaf that is a goal; a leaf that is not; a call failed; the problem ruled it out."""


@dataclass(slots=True, eq=False)
class Node(Generic[S]):
    """A state s and the path to it. The root's id is "root", its second child's "root:1".

    `cost` is g(s), the sum of the steps' costs from the root. `step` describes the step to this node, `observation`
    what the problem learned when it expanded the node; both are JSON and go into the trace, the state does not. Monte
    Carlo search uses V (`value`), P (`prior`), N (`visits`), W (`total`) and the number of simulations in progress.
    """

    id: str
    state: S
    parent: Node[S] | None = None
    cost: float = 0.0
    step: dict[str, Any] = field(default_factory=dict)
    observation: dict[str, Any] = field(default_factory=dict)
    children: list[Node[S]] = field(default_factory=list)
    outcome: Outcome = "open"
    error: str | None = None
    value: float = 0.0
    prior: float = 1.0
    visits: int = 0
    total: float = 0.0
    in_progress: int = 0

    @staticmethod
    def root(state: S) -> Node[S]:
        """Return the root of a new tree."""
        return Node("root", state)

    def add(self, state: S, cost: float = 0.0, step: dict[str, Any] | None = None) -> Node[S]:
        """Append and return a child, reached by a step of this cost."""
        child = Node(f"{self.id}:{len(self.children)}", state, self, self.cost + cost, step or {})
        self.children.append(child)
        return child

    @property
    def depth(self) -> int:
        """Steps from the root."""
        return self.id.count(":")

    @property
    def q(self) -> float:
        """Q: the mean of the values that were backed up, or V before the first visit."""
        return self.total / self.visits if self.visits else self.value

    @property
    def dead(self) -> bool:
        """Whether no search goes on below the node: it failed or is excluded, or all its children are dead."""
        if self.outcome in ("failed", "excluded"):
            return True
        return bool(self.children) and all(child.dead for child in self.children)

    @property
    def path(self) -> list[Node[S]]:
        """Nodes from the root to this one, both included."""
        return [*(self.parent.path if self.parent else ()), self]

    @property
    def order(self) -> tuple[float, int, tuple[int, ...]]:
        """Sort key: cost, then depth, then position from the left. No two nodes of a tree are equal."""
        return self.cost, self.depth, tuple(int(part) for part in self.id.split(":")[1:])


def walk(root: Node[S]) -> Iterator[Node[S]]:
    """Yield all nodes, parents before children, from left to right."""
    yield root
    for child in root.children:
        yield from walk(child)


def tree_to_json(root: Node[Any]) -> list[dict[str, Any]]:
    """Return the tree as a list of nodes {id, parent, depth, cost, outcome, error} plus `step` and `observation`.

    After Monte Carlo search also {visits, value, q}.
    """
    return [
        {
            "id": node.id,
            "parent": node.parent.id if node.parent else None,
            "depth": node.depth,
            "cost": node.cost,
            "outcome": node.outcome,
            "error": node.error,
            **({"visits": node.visits, "value": node.value, "q": node.q} if root.visits else {}),
            **node.step,
            **node.observation,
        }
        for node in walk(root)
    ]


async def settled(*awaitables: Awaitable[T]) -> list[T | ModelError]:
    """Await all and return their results in order; a call that failed has its ModelError as its result.

    All of them finish before this returns, so that a trace does not depend on timing. Any other exception (an endpoint
    that is down, a cancelled run) is raised once all have finished.
    """
    results = await asyncio.gather(*awaitables, return_exceptions=True)
    for result in results:
        if isinstance(result, BaseException) and (
            not isinstance(result, ModelError) or isinstance(result, EndpointDown)
        ):
            raise result
    return [result for result in results if not isinstance(result, BaseException) or isinstance(result, ModelError)]
