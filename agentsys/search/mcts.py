"""Monte Carlo tree search over a problem whose steps are model calls, with several simulations of a tree in parallel.

A simulation selects a leaf s_L by a rule, expands it (its children are evaluated immediately), and backs up the leaf's
value: N(s) += 1 and W(s) += V(s_L) for every s on the path, so that Q(s) = W(s) / N(s) is the mean value below s.
Before its first visit a child is scored by its own evaluation V. A terminal leaf is backed up at every visit. When a
branch has ended in failed calls, its visits and values are taken out of the nodes above it.

A simulation in progress counts as one more visit with the value `virtual_loss` at every node on its path, which keeps
parallel simulations apart (Chaslot et al. 2008). Simulation i is selected when simulations 1 .. i - W have been backed
up, and they are backed up in order: the same replies give the same tree and counts, however long each reply takes.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

from agentsys.models.errors import ModelError
from agentsys.search.expansion import EvaluatedStep, StepProblem, add_children, expand_node
from agentsys.search.tree import Node

MCTSProblem = StepProblem
"""The problem that MCTS solves."""


class SelectionRule(Protocol):
    """Scores the children of a node; the search follows the highest score, the first of equal ones."""

    def __call__(self, parent_visits: int, child_visits: int, value: float, prior: float) -> float:
        """Return the score of a child whose Q or V is `value`; visits include simulations in progress."""
        ...


@dataclass(frozen=True, slots=True)
class UCB:
    """LongDPO's rule: v_i + alpha sqrt(2 ln(N_i / (1 + n_i))), N_i visits of the parent, n_i of the child.

    If N_i < 1 + n_i, the square root is undefined and the bonus is 0. The paper does not report its alpha.
    """

    alpha: float = 0.5

    def __call__(self, parent_visits: int, child_visits: int, value: float, prior: float) -> float:
        """See SelectionRule."""
        ratio = parent_visits / (1 + child_visits)
        return value + (self.alpha * math.sqrt(2 * math.log(ratio)) if ratio > 1 else 0.0)


@dataclass(frozen=True, slots=True)
class PUCT:
    """Q + P (ln((N + c_base + 1) / c_base) + c_init) sqrt(N) / (1 + n) (Silver et al. 2018); P is the child's prior."""

    c_base: float = 19652.0
    c_init: float = 1.25

    def __call__(self, parent_visits: int, child_visits: int, value: float, prior: float) -> float:
        """See SelectionRule."""
        rate = math.log((parent_visits + self.c_base + 1) / self.c_base) + self.c_init
        return value + prior * rate * math.sqrt(parent_visits) / (1 + child_visits)


@dataclass(frozen=True, slots=True)
class UCT:
    """Q + c sqrt(ln N / n) (Kocsis and Szepesvari 2006); unvisited children come first."""

    c: float = 1.414

    def __call__(self, parent_visits: int, child_visits: int, value: float, prior: float) -> float:
        """See SelectionRule."""
        if child_visits == 0:
            return math.inf
        return value + self.c * math.sqrt(math.log(max(parent_visits, 1)) / child_visits)


@dataclass(frozen=True, slots=True)
class Limits:
    """Limits of a search: simulations, children per node (`width`), depth, tokens and seconds.

    `tokens` limits the sum of `step["tokens"]` over all steps, each counted `step["copies"]` times. A limit on
    `seconds` makes the tree depend on timing; the others do not.
    """

    simulations: int = 16
    width: int = 4
    depth: int = 4
    tokens: int | None = None
    seconds: float | None = None


class _Simulation(NamedTuple):
    path: list[Node[Any]]
    expansion: asyncio.Task[list[EvaluatedStep] | ModelError] | None
    """None if the leaf is terminal, or another simulation in progress expands it."""


class MCTS:
    """A search with its limits. All its state is in the nodes, so `run` can continue a search or start at any node."""

    def __init__(
        self,
        problem: MCTSProblem[Any],
        rule: SelectionRule,
        limits: Limits,
        *,
        parallel: int = 1,
        virtual_loss: float = 0.0,
    ) -> None:
        """`parallel` is W; `virtual_loss` is the assumed value of a simulation in progress: the lowest possible V."""
        self.problem, self.rule, self.limits = problem, rule, limits
        self.parallel, self.virtual_loss = parallel, virtual_loss
        self.tokens = 0
        self._expanding: set[Node[Any]] = set()

    async def run(self, root: Node[Any]) -> None:
        """Expand the root if it has no children, then run simulations until a limit is reached."""
        started = time.monotonic()
        remaining = self.limits.simulations
        running: deque[_Simulation] = deque()
        if root.outcome == "open" and not self._is_leaf(root):
            self._add_children(root, await self._expand(root))
        try:
            while True:
                while remaining and len(running) < self.parallel and not self._limit_reached(started):
                    running.append(self._start_simulation(root))
                    remaining -= 1
                if not running:
                    return
                await self._finish(running[0])
                running.popleft()
        finally:
            await self._cancel(running)

    def _limit_reached(self, started: float) -> bool:
        """Whether the limit on tokens or on seconds is reached."""
        limits = self.limits
        timed_out = limits.seconds is not None and time.monotonic() - started >= limits.seconds
        return timed_out or (limits.tokens is not None and self.tokens >= limits.tokens)

    def _start_simulation(self, root: Node[Any]) -> _Simulation:
        """Select a leaf, add the virtual loss to its path and start its expansion."""
        path = [root]
        while live := [child for child in path[-1].children if not child.dead]:
            parent = path[-1]
            path.append(max(live, key=lambda child: self._score(parent, child)))
        for node in path:
            node.in_progress += 1
        leaf = path[-1]
        if leaf.outcome != "open" or leaf in self._expanding or self._is_leaf(leaf):
            return _Simulation(path, None)
        self._expanding.add(leaf)
        return _Simulation(path, asyncio.create_task(self._expand(leaf)))

    def _score(self, parent: Node[Any], child: Node[Any]) -> float:
        visits = child.visits + child.in_progress
        value = (child.total + child.in_progress * self.virtual_loss) / visits if visits else child.value
        return self.rule(parent.visits + parent.in_progress, visits, value, child.prior)

    def _is_leaf(self, node: Node[Any]) -> bool:
        return node.depth >= self.limits.depth or self.problem.is_terminal(node)

    async def _expand(self, node: Node[Any]) -> list[EvaluatedStep] | ModelError:
        """Return the steps from a node with their values. `_finish` adds them to the tree, in order."""
        return await expand_node(self.problem, node, self.limits.width)

    async def _finish(self, simulation: _Simulation) -> None:
        """Add the children of the leaf, remove the virtual loss, and back up the leaf's value unless it failed."""
        leaf = simulation.path[-1]
        if simulation.expansion:
            result = await simulation.expansion
            self._expanding.discard(leaf)
            self._add_children(leaf, result)
        elif leaf.outcome == "open" and self.problem.is_terminal(leaf):
            leaf.outcome = "end"  # a leaf at the depth limit stays open: a deeper search may continue there
        for node in simulation.path:
            node.in_progress -= 1
        if any(node.dead for node in simulation.path):
            _remove_dead(simulation.path)
            return
        for node in simulation.path:
            node.visits += 1
            node.total += leaf.value

    def _add_children(self, node: Node[Any], result: list[EvaluatedStep] | ModelError) -> None:
        for child in add_children(node, result):
            self.tokens += int(child.step.get("tokens", 0)) * int(child.step.get("copies", 1))

    async def _cancel(self, running: deque[_Simulation]) -> None:
        """Cancel simulations in progress after an error or a cancellation, and remove their virtual loss."""
        for simulation in running:
            for node in simulation.path:
                node.in_progress -= 1
            if simulation.expansion:
                simulation.expansion.cancel()
                self._expanding.discard(simulation.path[-1])
        await asyncio.gather(*(s.expansion for s in running if s.expansion), return_exceptions=True)


def _remove_dead(path: Sequence[Node[Any]]) -> None:
    """Take the visits and values of the first dead node of a path out of the node and its ancestors."""
    end = next(i for i, node in enumerate(path) if node.dead)
    visits, total = path[end].visits, path[end].total
    for node in path[: end + 1]:
        node.visits -= visits
        node.total -= total
