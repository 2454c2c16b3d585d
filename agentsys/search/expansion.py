"""One expansion of a node: its steps, without repetitions, with their values."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple, Protocol, TypeVar

from agentsys.models.errors import EndpointDown, ModelError
from agentsys.search.best_first import Child
from agentsys.search.tree import Node

S = TypeVar("S")


class StepProblem(Protocol[S]):
    """The problem that Monte Carlo tree search and the searches by level solve."""

    async def expand(self, node: Node[S], n: int) -> Sequence[Child]:
        """Return at most n steps from a node. A ModelError ends the branch."""
        ...

    async def evaluate(self, nodes: Sequence[Node[S]]) -> Sequence[float | ModelError]:
        """Return V of each of these siblings, or a ModelError, which ends its branch."""
        ...

    def is_terminal(self, node: Node[S]) -> bool:
        """Whether no step can follow a node."""
        ...


class EvaluatedStep(NamedTuple):
    """A step from a node, and V of the node that it leads to."""

    step: Child
    value: float | ModelError


async def expand_node(
    problem: StepProblem[Any], node: Node[Any], n: int, *, ends_only: bool = False
) -> list[EvaluatedStep] | ModelError:
    """Return the steps from a node with their values, or the ModelError that ended the branch. The tree is unchanged.

    With `ends_only` only terminal nodes are evaluated, and the others have the value 0. Raises EndpointDown, and
    ValueError for values that are not one finite number per step.
    """
    try:
        steps = merge_equal_steps(await problem.expand(node, n))
        copy = Node(node.id, node.state, node.parent, node.cost)
        copy.children += [Node("", None)] * len(node.children)  # ids go on after those of earlier expansions
        children = [copy.add(step.state, step.cost, step.step) for step in steps]
        valid = [
            child
            for child, step in zip(children, steps, strict=True)
            if step.error is None and (not ends_only or problem.is_terminal(child))
        ]
        values = dict(zip(valid, _check_values(valid, await problem.evaluate(valid)), strict=True)) if valid else {}
    except EndpointDown:
        raise
    except ModelError as err:
        return err
    return [
        EvaluatedStep(step, step.error or values.get(child, 0.0)) for step, child in zip(steps, children, strict=True)
    ]


def add_children(node: Node[Any], result: Sequence[EvaluatedStep] | ModelError) -> list[Node[Any]]:
    """Add an expansion to the tree, and return the new nodes, also those whose calls failed."""
    if isinstance(result, ModelError):
        if not node.children:
            node.outcome, node.error = "failed", str(result)
        return []
    node.outcome = "expanded" if result or node.children else "end"
    added = []
    for step, value in result:
        child = node.add(step.state, step.cost, step.step)
        child.prior = step.prior
        if isinstance(value, ModelError):
            child.outcome, child.error = "failed", str(value)
        else:
            child.value = value
        added.append(child)
    return added


def merge_equal_steps(steps: Sequence[Child]) -> list[Child]:
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
