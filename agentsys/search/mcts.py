"""Monte Carlo tree search over a problem whose steps are calls of models, many simulations of one tree under way at once.

A simulation selects a leaf s_L by a rule, expands it (its children are evaluated right away), and backs up the leaf's
value: N(s) += 1 and W(s) += V(s_L) for every s on the path, so that Q(s) = W(s) / N(s) is the mean of what was found
below s. Until its first visit a child is worth its own evaluation V. A terminal leaf is backed up at every visit.

While simulations are under way, each node on their paths counts one more visit with the value `virtual_loss` for each of
them, which keeps them apart (Chaslot et al. 2008). Simulation i is selected when simulations 1 .. i - W have been backed up,
and they are backed up in order: the same replies give the same nodes and counts, however fast each comes.
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
    """What is searched."""

    async def expand(self, node: Node[S], n: int) -> Sequence[Child]:
        """At most n steps from a node. May raise ModelError: the branch ends."""
        ...

    async def evaluate(self, nodes: Sequence[Node[S]]) -> Sequence[float | ModelError]:
        """V of each of these siblings, or why it has none: that branch ends."""
        ...

    def is_terminal(self, node: Node[S]) -> bool:
        """Whether nothing comes after a node."""
        ...


class SelectionRule(Protocol):
    """How attractive a child is; the search goes to the greatest, of equals to the first."""

    def __call__(self, parent_visits: int, child_visits: int, value: float, prior: float) -> float:
        """The score of a child with Q or V `value`; visits include those under way."""
        ...


@dataclass(frozen=True, slots=True)
class UCB:
    """LongDPO's rule: v_i + alpha sqrt(2 ln(N_i / (1 + n_i))), N_i visits of the parent, n_i of the child.

    Where N_i < 1 + n_i the root is of a negative number: the bonus is 0. The paper does not tell its alpha.
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
    """Q + c sqrt(ln N / n) (Kocsis and Szepesvari 2006); a child that was never visited comes first."""

    c: float = 1.414

    def __call__(self, parent_visits: int, child_visits: int, value: float, prior: float) -> float:
        """See SelectionRule."""
        if child_visits == 0:
            return math.inf
        return value + self.c * math.sqrt(math.log(max(parent_visits, 1)) / child_visits)


@dataclass(frozen=True, slots=True)
class Limits:
    """When a search ends. `tokens` counts what the steps of expanded nodes say of themselves (`step["tokens"]`), a step
    with `copies` so many times.

    A limit on `seconds` makes the tree depend on timing; the others do not.
    """

    simulations: int = 16
    width: int = 4
    depth: int = 4
    tokens: int | None = None
    seconds: float | None = None


class _Grown(NamedTuple):
    step: Child
    value: float | ModelError


class _Descent(NamedTuple):
    path: list[Node[Any]]
    expansion: asyncio.Task[list[_Grown]] | None
    """None if the leaf is an end, or another simulation under way expands it."""


class MCTS:
    """A search with its limits. Nodes hold all that it knows, so `run` goes on where it was, or searches a subtree."""

    def __init__(
        self,
        problem: MCTSProblem[Any],
        rule: SelectionRule,
        limits: Limits,
        *,
        parallel: int = 1,
        virtual_loss: float = 0.0,
    ) -> None:
        """`parallel` is W; `virtual_loss` the value that a simulation under way is taken to have: the scale's lowest."""
        self.problem, self.rule, self.limits = problem, rule, limits
        self.parallel, self.virtual_loss = parallel, virtual_loss
        self.tokens = 0
        self._expanding: set[Node[Any]] = set()

    async def run(self, root: Node[Any]) -> None:
        """Expand the root if it has no children, then descend until a limit is reached."""
        began = time.monotonic()
        left = self.limits.simulations
        running: deque[_Descent] = deque()
        if root.outcome == "open" and not self._is_end(root):
            self._grow(root, await self._outcome(asyncio.create_task(self._expand(root))))
        try:
            while True:
                while left and len(running) < self.parallel and not self._spent(began):
                    running.append(self._descend(root))
                    left -= 1
                if not running:
                    return
                await self._finish(running[0])
                running.popleft()
        finally:
            await self._give_up(running)

    def _spent(self, began: float) -> bool:
        """Whether the tokens or the time are used up."""
        limits = self.limits
        late = limits.seconds is not None and time.monotonic() - began >= limits.seconds
        return late or (limits.tokens is not None and self.tokens >= limits.tokens)

    def _descend(self, root: Node[Any]) -> _Descent:
        """Select a leaf and begin its expansion."""
        path = [root]
        while live := [child for child in path[-1].children if not child.dead]:
            parent = path[-1]
            path.append(max(live, key=lambda child: self._score(parent, child)))
        for node in path:
            node.in_progress += 1
        leaf = path[-1]
        if leaf.outcome != "open" or leaf in self._expanding or self._is_end(leaf):
            return _Descent(path, None)
        self._expanding.add(leaf)
        return _Descent(path, asyncio.create_task(self._expand(leaf)))

    def _score(self, parent: Node[Any], child: Node[Any]) -> float:
        visits = child.visits + child.in_progress
        value = (child.total + child.in_progress * self.virtual_loss) / visits if visits else child.value
        return self.rule(parent.visits + parent.in_progress, visits, value, child.prior)

    def _is_end(self, node: Node[Any]) -> bool:
        return node.depth >= self.limits.depth or self.problem.is_terminal(node)

    async def _expand(self, node: Node[Any]) -> list[_Grown]:
        """The steps from a node with their values. They join the tree when it is this simulation's turn."""
        steps = _merged(await self.problem.expand(node, self.limits.width))
        aside = Node(node.id, node.state, node.parent, node.cost)
        children = [aside.add(step.state, step.cost, step.step) for step in steps]
        sound = [child for child, step in zip(children, steps, strict=True) if step.error is None]
        values = iter(await self.problem.evaluate(sound) if sound else ())
        return [_Grown(step, step.error or next(values)) for step in steps]

    async def _outcome(self, expansion: asyncio.Task[list[_Grown]] | None) -> list[_Grown] | ModelError:
        try:
            return await expansion if expansion else []
        except EndpointDown:
            raise
        except ModelError as err:
            return err

    async def _finish(self, simulation: _Descent) -> None:
        """Give the leaf its children, back its value up and take the virtual loss away."""
        leaf = simulation.path[-1]
        grown = await self._outcome(simulation.expansion)
        if simulation.expansion:
            self._expanding.discard(leaf)
            self._grow(leaf, grown)
        elif leaf.outcome == "open" and self.problem.is_terminal(leaf):
            leaf.outcome = "end"  # one at the depth limit stays open: a deeper search may go on from it
        for node in simulation.path:
            node.in_progress -= 1
            node.visits += 1
            node.total += leaf.value

    def _grow(self, node: Node[Any], grown: list[_Grown] | ModelError) -> None:
        if isinstance(grown, ModelError):
            node.outcome, node.error = "failed", str(grown)
            return
        node.outcome = "expanded" if grown else "end"
        for step, value in grown:
            child = node.add(step.state, step.cost, step.step)
            child.prior = step.prior
            self.tokens += int(child.step.get("tokens", 0)) * int(child.step.get("copies", 1))
            if isinstance(value, ModelError):
                child.outcome, child.error = "failed", str(value)
            else:
                child.value = value

    async def _give_up(self, running: deque[_Descent]) -> None:
        """An error or a cancellation: what is under way leaves no virtual loss behind."""
        for simulation in running:
            for node in simulation.path:
                node.in_progress -= 1
            if simulation.expansion:
                simulation.expansion.cancel()
                self._expanding.discard(simulation.path[-1])
        await asyncio.gather(*(d.expansion for d in running if d.expansion), return_exceptions=True)


def _merged(steps: Sequence[Child]) -> list[Child]:
    """Steps that lead to equal states are one, whose prior is the sum; `copies` says how many they were."""
    found: list[Child] = []
    for step in steps:
        twin = next(
            (i for i, old in enumerate(found) if not (old.error or step.error) and old.state == step.state), None
        )
        if twin is None:
            found.append(step)
            continue
        old = found[twin]
        about = {**(old.step or {}), "copies": (old.step or {}).get("copies", 1) + 1}
        found[twin] = old._replace(prior=old.prior + step.prior, step=about)
    return found
