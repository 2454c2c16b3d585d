"""Whole solutions of a tree to learn from: right ones for SFT (rejection sampling), and pairs of right and wrong ones.

With the pairs of steps (targets.py) they let SFT, DPO on outcomes and DPO on steps be compared from one tree.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from agentsys.graphs.maths.solver import Path, join_steps
from agentsys.search import Node, tally, walk
from agentsys.traces import Segment, Target, masked

Chosen = Literal["none", "best", "shortest", "different"]


@dataclass(frozen=True, slots=True)
class Whole:
    """A finished solution: the keys of the calls that wrote it, its text and verdict, and how sure its steps are.

    `weakest` is the lowest share of right solutions after one of its steps. A rollout is a solution of its node's steps
    and one more call.
    """

    calls: tuple[str, ...]
    text: str
    right: bool
    weakest: float


def whole_solutions(root: Node[Path]) -> list[Whole]:
    """All finished solutions of a tree that have an answer, one of each text, in the order of the tree."""
    by_text: dict[str, Whole] = {}
    for node in walk(root):
        for solution in _solutions_at(node):
            by_text.setdefault(" ".join(solution.text.split()), solution)
    return list(by_text.values())


def _solutions_at(node: Node[Path]) -> Iterator[Whole]:
    steps = [above.step["call"] for above in node.path if above.state]
    tallies = [tally(above) for above in node.path if above.state]
    weakest = min((right / tried for right, tried in tallies if tried), default=1.0)
    texts = [step.text for step in node.state or ()]
    if node.step.get("answer") and node.outcome != "failed":
        yield Whole((*steps,), join_steps(texts), node.step["right"], weakest)
    for rollout in node.step.get("rollouts", ()):
        if rollout["answer"]:
            yield Whole((*steps, rollout["call"]), join_steps([*texts, rollout["rest"]]), rollout["right"], weakest)


def choose_solutions(right: Sequence[Whole], chosen: Chosen, count: int) -> list[Whole]:
    """At most `count` right solutions: those whose weakest step is best, the shortest ones, or the most different ones.

    The most different ones begin with the best; each next one has the least similar nearest neighbor among those
    before it (similarity: Jaccard index of words and numbers).
    """
    if chosen == "none":
        return []
    if chosen == "shortest":
        return sorted(right, key=lambda solution: len(solution.text))[:count]
    ranked = sorted(right, key=lambda solution: (-solution.weakest, len(solution.text)))
    if chosen == "best":
        return ranked[:count]
    taken, left = ranked[:1], ranked[1:]
    while left and len(taken) < count:
        nearest = [max(_similarity(one.text, other.text) for other in taken) for one in left]
        taken.append(left.pop(nearest.index(min(nearest))))
    return taken


def _similarity(first: str, second: str) -> float:
    one, other = set(first.split()), set(second.split())
    return len(one & other) / max(1, len(one | other))


def solution_targets(
    root: Node[Path], messages: Sequence[Mapping[str, Any]], chosen: Chosen, count: int, *, whole_pairs: bool
) -> list[Target]:
    """SFT targets of chosen right solutions, as replies to `messages`; with `whole_pairs` pairs of whole solutions.

    The right solutions whose weakest step is best are paired with the wrong ones of the same tree, the first with the
    first, at most `count` of them.
    """
    if chosen == "none" and not whole_pairs:
        return []
    solutions = whole_solutions(root)
    right = [solution for solution in solutions if solution.right]
    wrong = [solution for solution in solutions if not solution.right]
    targets = [_sft_target(solution, messages) for solution in choose_solutions(right, chosen, count)]
    if whole_pairs:
        pairs = zip(choose_solutions(right, "best", count), wrong, strict=False)
        targets += [_whole_pair(*pair) for pair in pairs]
    return targets


def _sft_target(solution: Whole, messages: Sequence[Mapping[str, Any]]) -> Target:
    reply = Segment("assistant", True, text=solution.text)
    scores = {"score": solution.weakest, "steps": float(len(solution.calls))}
    return Target("sft", (*masked(messages), reply), scores=scores)


def _whole_pair(chosen: Whole, rejected: Whole) -> Target:
    """Both solutions after the question. A beginning that they share is a prefix, which has the same probability."""
    prompt = Segment("user", False, prompt=rejected.calls[0])
    sides = [
        (prompt, *(Segment("assistant", True, call=call) for call in solution.calls)) for solution in (chosen, rejected)
    ]
    return Target("step", sides[0], sides[1], scores={"margin": 1.0, "chosen": chosen.weakest})
