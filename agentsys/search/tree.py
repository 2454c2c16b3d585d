"""The nodes of a search tree, and how a trace records them."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Iterator
from dataclasses import dataclass, field
from typing import Any, Generic, Literal, TypeVar

from agentsys.models.errors import EndpointDown, ModelError

S = TypeVar("S")
T = TypeVar("T")

Outcome = Literal["open", "expanded", "goal", "end", "failed"]
"""Not reached by the search; it has children; an end that is right; an end that is not; a call failed."""


@dataclass(slots=True, eq=False)
class Node(Generic[S]):
    """A state s and how it was reached. The root's id is "root", its second child's "root:1".

    `cost` is g(s), the sum of the steps' costs from the root. `step` is what led here and `found` what the problem saw
    when it expanded the node; both are JSON and go into the trace, the state does not. Monte Carlo search adds V
    (`value`), P (`prior`), N (`visits`), W (`total`) and how many simulations are under way through the node.
    """

    id: str
    state: S
    parent: Node[S] | None = None
    cost: float = 0.0
    step: dict[str, Any] = field(default_factory=dict)
    found: dict[str, Any] = field(default_factory=dict)
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
        """A tree's first node."""
        return Node("root", state)

    def add(self, state: S, cost: float = 0.0, step: dict[str, Any] | None = None) -> Node[S]:
        """A new child, reached by a step of this cost."""
        child = Node(f"{self.id}:{len(self.children)}", state, self, self.cost + cost, step or {})
        self.children.append(child)
        return child

    @property
    def depth(self) -> int:
        """Steps from the root."""
        return self.id.count(":")

    @property
    def q(self) -> float:
        """Q: the mean of what was backed up, or V before the first visit."""
        return self.total / self.visits if self.visits else self.value

    @property
    def dead(self) -> bool:
        """Whether its branch has ended in failed calls: its own, or those of every step after it."""
        return self.outcome == "failed" or (bool(self.children) and all(child.dead for child in self.children))

    @property
    def path(self) -> list[Node[S]]:
        """The nodes from the root to this one, both included."""
        return [*(self.parent.path if self.parent else ()), self]

    @property
    def order(self) -> tuple[float, int, tuple[int, ...]]:
        """Cheapest first; of equals the shallowest, then the leftmost. No two nodes of a tree are equal."""
        return self.cost, self.depth, tuple(int(part) for part in self.id.split(":")[1:])


def walk(root: Node[S]) -> Iterator[Node[S]]:
    """All nodes, parents before children, left before right."""
    yield root
    for child in root.children:
        yield from walk(child)


def tree_to_json(root: Node[Any]) -> list[dict[str, Any]]:
    """The tree as a trace holds it: {id, parent, depth, cost, outcome, error} a node, with what step and found add.

    Where there were visits, also {visits, value, q}.
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
            **node.found,
        }
        for node in walk(root)
    ]


async def settled(*work: Awaitable[T]) -> list[T | ModelError]:
    """Results in order, with the error of a call that failed for good in its place.

    All are waited for, so that what a trace holds does not depend on which was faster. Any other exception (an endpoint
    that is down, a run being stopped) is raised once all have ended.
    """
    results = await asyncio.gather(*work, return_exceptions=True)
    for result in results:
        if isinstance(result, BaseException) and (
            not isinstance(result, ModelError) or isinstance(result, EndpointDown)
        ):
            raise result
    return [result for result in results if not isinstance(result, BaseException) or isinstance(result, ModelError)]
