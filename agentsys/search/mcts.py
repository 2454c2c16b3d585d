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
from typing import Any, NamedTuple, Protocol, TypeVar

from agentsys.models.errors import EndpointDown, ModelError
from agentsys.search.best_first import Child
from agentsys.search.tree import Node

S = TypeVar("S")


class MCTSProblem(Protocol[S]):
    """The problem that MCTS solves."""

    async def expand(self, node: Node[S], n: int) -> Sequence[Child]:
        """Return at most n steps from a node. A ModelError ends the branch."""
        ...

    async def evaluate(self, nodes: Sequence[Node[S]]) -> Sequence[float | ModelError]:
        """Return V of each of these siblings, or a ModelError, which ends its branch."""
        ...

    def is_terminal(self, node: Node[S]) -> bool:
        """Whether no step can follow a node."""
        ...


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


class _EvaluatedStep(NamedTuple):
    step: Child
    value: float | ModelError


class _Simulation(NamedTuple):
    path: list[Node[Any]]
    expansion: asyncio.Task[list[_EvaluatedStep]] | None
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
            self._add_children(root, await self._result_of(asyncio.create_task(self._expand(root))))
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

    async def _expand(self, node: Node[Any]) -> list[_EvaluatedStep]:
        """Return the steps from a node with their values. `_finish` adds them to the tree, in order."""
        steps = _merge_equal_steps(await self.problem.expand(node, self.limits.width))
        copy = Node(node.id, node.state, node.parent, node.cost)
        children = [copy.add(step.state, step.cost, step.step) for step in steps]
        valid = [child for child, step in zip(children, steps, strict=True) if step.error is None]
        values = iter(_check_values(valid, await self.problem.evaluate(valid)) if valid else ())
        return [_EvaluatedStep(step, step.error or next(values)) for step in steps]

    async def _result_of(
        self, expansion: asyncio.Task[list[_EvaluatedStep]] | None
    ) -> list[_EvaluatedStep] | ModelError:
        """Await an expansion; a ModelError is its result, other exceptions are raised."""
        try:
            return await expansion if expansion else []
        except EndpointDown:
            raise
        except ModelError as err:
            return err

    async def _finish(self, simulation: _Simulation) -> None:
        """Add the children of the leaf, remove the virtual loss, and back up the leaf's value unless it failed."""
        leaf = simulation.path[-1]
        result = await self._result_of(simulation.expansion)
        if simulation.expansion:
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

    def _add_children(self, node: Node[Any], result: list[_EvaluatedStep] | ModelError) -> None:
        if isinstance(result, ModelError):
            node.outcome, node.error = "failed", str(result)
            return
        node.outcome = "expanded" if result else "end"
        for step, value in result:
            child = node.add(step.state, step.cost, step.step)
            child.prior = step.prior
            self.tokens += int(child.step.get("tokens", 0)) * int(child.step.get("copies", 1))
            if isinstance(value, ModelError):
                child.outcome, child.error = "failed", str(value)
            else:
                child.value = value

    async def _cancel(self, running: deque[_Simulation]) -> None:
        """Cancel simulations in progress after an error or a cancellation, and remove their virtual loss."""
        for simulation in running:
            for node in simulation.path:
                node.in_progress -= 1
            if simulation.expansion:
                simulation.expansion.cancel()
                self._expanding.discard(simulation.path[-1])
        await asyncio.gather(*(s.expansion for s in running if s.expansion), return_exceptions=True)


def _check_values(nodes: Sequence[Node[Any]], values: Sequence[float | ModelError]) -> Sequence[float | ModelError]:
    """Return the values of siblings. Raises ValueError unless there is one finite number or ModelError per node."""
    if len(values) != len(nodes):
        raise ValueError(
            f"evaluate() returned {len(values)} values for the {len(nodes)} steps after {nodes[0].path[-2].id}; "
            "return one per node, in their order"
        )
    for node, value in zip(nodes, values, strict=True):
        if not isinstance(value, ModelError) and not math.isfinite(value):
            raise ValueError(f"evaluate() returned {value} for {node.id}; a value V is a finite number")
    return values


def _remove_dead(path: Sequence[Node[Any]]) -> None:
    """Take the visits and values of the first dead node of a path out of the node and its ancestors."""
    end = next(i for i, node in enumerate(path) if node.dead)
    visits, total = path[end].visits, path[end].total
    for node in path[: end + 1]:
        node.visits -= visits
        node.total -= total


def _merge_equal_steps(steps: Sequence[Child]) -> list[Child]:
    """Merge steps that lead to equal states into one, with the sum of their priors and their number as `copies`."""
    merged: list[Child] = []
    for step in steps:
        same = (i for i, old in enumerate(merged) if not (old.error or step.error) and old.state == step.state)
        index = next(same, None)
        if index is None:
            merged.append(step)
            continue
        old = merged[index]
        data = {**(old.step or {}), "copies": (old.step or {}).get("copies", 1) + 1}
        merged[index] = old._replace(prior=old.prior + step.prior, step=data)
    return merged
