"""Searches that go down a tree level by level: best-of-n, step beam, DVTS and REBASE, over one loop.

They differ in which nodes of a level are continued, and in how many steps each (`Choose`). All keep the whole tree, so
that the steps that they gave up are there to learn from.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable, Sequence
from itertools import groupby
from typing import Any

from agentsys.models.errors import EndpointDown, ModelError
from agentsys.search.expansion import StepProblem, add_children, expand_node
from agentsys.search.tree import Node

Choose = Callable[[Sequence[Node[Any]], int], Sequence[tuple[Node[Any], int]]]
"""The open nodes of a level, and how many solutions have ended -> the nodes to continue with their numbers of steps."""


async def grow_levels(
    root: Node[Any],
    problem: StepProblem[Any],
    choose: Choose,
    n: int,
    depth: int,
    *,
    ends_only: bool = False,
    stop: Callable[[], bool] = lambda: False,
) -> None:
    """Write n first steps, then continue level by level what `choose` chooses, until all solutions have ended.

    All expansions of a level run in parallel and are added from left to right. `stop` ends the search before a level.
    With `ends_only` only finished solutions are evaluated. Called again, it adds n other first steps.
    """
    chosen: Sequence[tuple[Node[Any], int]] = [(root, n)]
    ended = 0
    for _ in range(depth):
        if not chosen or stop():
            return
        results = await asyncio.gather(
            *(expand_node(problem, node, steps, ends_only=ends_only) for node, steps in chosen), return_exceptions=True
        )
        for result in results:  # all have finished, so that a trace does not depend on timing
            if isinstance(result, EndpointDown) or not isinstance(result, list | ModelError):
                raise result
        level: list[Node[Any]] = []
        for (node, _), result in zip(chosen, results, strict=True):
            if isinstance(result, list | ModelError):
                level += [child for child in add_children(node, result) if child.outcome != "failed"]
        for node in level:
            if problem.is_terminal(node):
                node.outcome = "end"
                ended += _copies(node)
        chosen = choose([node for node in level if node.outcome == "open"], ended)


def continue_all(level: Sequence[Node[Any]], ended: int) -> list[tuple[Node[Any], int]]:
    """Best-of-n: each solution goes on with one step, as many times as its last step was written."""
    return [(node, _copies(node)) for node in level]


def beam(n: int, width: int) -> Choose:
    """Step beam search: the n / width nodes with the highest V, each with `width` steps (Snell et al. 2024)."""

    def choose(level: Sequence[Node[Any]], ended: int) -> list[tuple[Node[Any], int]]:
        best = sorted(level, key=lambda node: -node.value)[: max(1, n // width)]
        return [(node, width) for node in best]

    return choose


def diverse_beams(width: int) -> Choose:
    """DVTS (Beeching et al. 2024): subtrees that do not compete; in each the node with the highest V has `width` steps.

    A subtree begins with `width` of the first steps.
    """

    def subtree(node: Node[Any]) -> str:
        first = node.path[1]
        return node.path[-2].id if node.depth > 1 else f"{int(first.id.rpartition(':')[2]) // width}"

    def choose(level: Sequence[Node[Any]], ended: int) -> list[tuple[Node[Any], int]]:
        return [(max(nodes, key=lambda node: node.value), width) for _, group in groupby(level, subtree)
                if (nodes := list(group))]  # fmt: skip

    return choose


def balanced(n: int, temperature: float = 0.2) -> Choose:
    """REBASE (Wu et al. 2024): n steps less the ended solutions, shared out by the softmax of V / temperature."""

    def choose(level: Sequence[Node[Any]], ended: int) -> list[tuple[Node[Any], int]]:
        left = n - ended
        if not level or left < 1:
            return []
        highest = max(node.value for node in level)
        weights = [math.exp((node.value - highest) / temperature) for node in level]
        shares = [(node, round(left * weight / sum(weights))) for node, weight in zip(level, weights, strict=True)]
        best = max(level, key=lambda node: node.value)
        return [(node, steps) for node, steps in shares if steps] or [(best, left)]

    return choose


def _copies(node: Node[Any]) -> int:
    return int(node.step.get("copies", 1))
