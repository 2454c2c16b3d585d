"""Searches by name over one problem: each grows a tree and keeps all of it.

Which nodes are continued differs; expansions, values, failures and the tree are the same. So searches can be compared
with equal tokens, and every tree gives pairs, process rewards and solutions.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from heapq import heappop, heappush
from typing import Any, Final, Literal, get_args

from agentsys.search.expansion import StepProblem, add_children, expand_node
from agentsys.search.levels import Choose, balanced, beam, continue_all, diverse_beams, grow_levels
from agentsys.search.mcts import MCTS, PUCT, Limits
from agentsys.search.tree import Node

SearchName = Literal["mcts", "best-of-n", "beam", "dvts", "rebase", "uniform-cost"]
SEARCHES: Final[tuple[SearchName, ...]] = get_args(SearchName)

ROUNDS: Final = 64
"""A search begins again at the root at most so many times, for models that write almost nothing."""

Grown = Callable[[], bool]
"""Called whenever a tree has grown; returns whether the search is to stop."""


@dataclass(frozen=True, slots=True)
class SearchSettings:
    """A search and its sizes: `n` solutions at a time (not for mcts), `width` steps per node, at most `depth` steps.

    mcts has `simulations` and `explore`, c_init of PUCT. With `repeat` the other searches begin again at the root when
    all their solutions have ended, until `grown` stops them.
    """

    name: SearchName = "mcts"
    n: int = 16
    width: int = 4
    depth: int = 8
    simulations: int = 16
    explore: float = 1.0
    repeat: bool = False


async def grow_tree(root: Node[Any], problem: StepProblem[Any], settings: SearchSettings, grown: Grown) -> None:
    """Grow a tree by the search that the settings name."""
    if settings.name == "mcts":
        await _monte_carlo(root, problem, settings, grown)
    elif settings.name == "uniform-cost":
        await uniform_cost(root, problem, settings, grown)
    else:
        await _levels(root, problem, settings, grown)


async def _monte_carlo(root: Node[Any], problem: StepProblem[Any], settings: SearchSettings, grown: Grown) -> None:
    """One simulation after the other, until the tree cannot grow any more."""
    limits = Limits(0, settings.width, settings.depth)
    search = MCTS(problem, PUCT(c_init=settings.explore), limits)
    await search.run(root)  # only expands the root
    search.limits = replace(limits, simulations=1)
    nodes = _count(root)
    stop = grown()
    for _ in range(settings.simulations):
        if stop or not _can_grow(root, problem):
            return
        await search.run(root)
        if (count := _count(root)) != nodes:  # else a finished solution was visited again
            nodes, stop = count, grown()


def _can_grow(node: Node[Any], problem: StepProblem[Any]) -> bool:
    """Whether a node that can be expanded is left."""
    if node.outcome == "open" and not problem.is_terminal(node):
        return True
    return any(_can_grow(child, problem) for child in node.children)


def _count(node: Node[Any]) -> int:
    """The number of nodes and of failures: both change with every expansion."""
    return 1 + (node.outcome != "open") + sum(map(_count, node.children))


async def _levels(root: Node[Any], problem: StepProblem[Any], settings: SearchSettings, grown: Grown) -> None:
    choices: dict[str, Choose] = {
        "best-of-n": continue_all,
        "beam": beam(settings.n, settings.width),
        "dvts": diverse_beams(settings.width),
        "rebase": balanced(settings.n),
    }

    def stop() -> bool:
        return bool(root.children) and grown()

    for _ in range(ROUNDS if settings.repeat else 1):
        nodes = _count(root)
        await grow_levels(
            root, problem, choices[settings.name], settings.n, settings.depth,
            ends_only=settings.name == "best-of-n", stop=stop,
        )  # fmt: skip
        if stop() or _count(root) == nodes:
            return


async def uniform_cost(root: Node[Any], problem: StepProblem[Any], settings: SearchSettings, grown: Grown) -> None:
    """Expand the node of the lowest cost until n solutions have ended at a lower cost than every other node's.

    Only finished solutions are evaluated. With `repeat` the search goes on until `grown` stops it.
    """
    frontier: list[tuple[Any, Node[Any]]] = [(root.order, root)]
    ended = 0
    while frontier and (settings.repeat or ended < settings.n):
        node = heappop(frontier)[1]
        if problem.is_terminal(node):
            node.outcome = "end"
            ended += 1
            continue
        children = add_children(node, await expand_node(problem, node, settings.width, ends_only=True))
        for child in children:
            if child.outcome == "open":
                heappush(frontier, (child.order, child))
        if grown():
            return
