"""What a tree with checked leaves says about its steps: tallies of right solutions, and process rewards.

A node's step has `right` if its solution has ended and was checked, and `rollouts`, each with `right`, if solutions
were completed from it. The label of a step is the share of right ones among all finished solutions that begin with its
path (the soft estimation of Math-Shepherd, Wang et al. 2024, arXiv 2312.08935).
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from agentsys.search.tree import Node
from agentsys.targets import Segment, StepLabel, Target


def tally(node: Node[Any]) -> tuple[int, int]:
    """How many of the finished solutions at and below a node, rollouts included, are right, and how many there are."""
    own = [node.step["right"]] if "right" in node.step else []
    own += [rollout["right"] for rollout in node.step.get("rollouts", ())]
    below = [tally(child) for child in node.children]
    return sum(own) + sum(right for right, _ in below), len(own) + sum(tried for _, tried in below)


def process_rewards(root: Node[Any]) -> list[Target]:
    """A `prm` target for each path to a last step that was tried. Each step of the tree has its label in one of them.

    The step of every node but the root has the key of its `call`, which continues the ids of its parent's.
    """
    labeled: set[str] = set()
    targets = []
    for path in _tried_paths(root, []):
        labels = []
        for number, node in enumerate(path, 1):
            if node.id not in labeled:
                labeled.add(node.id)
                right, tried = tally(node)
                labels.append(StepLabel(number, right / tried, tried))
        learned = {label.segment for label in labels}
        steps = [Segment("assistant", i in learned, call=node.step["call"]) for i, node in enumerate(path, 1)]
        prompt = Segment("user", False, prompt=path[0].step["call"])
        targets.append(Target("prm", (prompt, *steps), scores={"steps": float(len(path))}, labels=tuple(labels)))
    return targets


def _tried_paths(node: Node[Any], path: list[Node[Any]]) -> Iterator[list[Node[Any]]]:
    """The paths to nodes that were tried and have no child that was, from left to right."""
    tried = [child for child in node.children if "call" in child.step and tally(child)[1]]
    for child in tried:
        yield from _tried_paths(child, [*path, child])
    if path and not tried:
        yield path
