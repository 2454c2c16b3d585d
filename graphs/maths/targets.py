"""Preference pairs of steps from a search tree: after the same exact prefix one step is preferred to another.

`step_pairs` follow Step-DPO (Lai et al. 2024, arXiv 2406.18629): after a correct prefix, a step that leads to a right
answer against the first wrong step. `mcts_pairs` follow MCTS-DPO (Xie et al. 2024, arXiv 2405.00451): at every visited
node the best child against the worst. A target refers to calls: rows hold the ids that the engine wrote, and a step
that is not final is not followed by an end of the turn.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from agentsys.search import Node, walk
from agentsys.traces import Segment, Target

Tallied = tuple[Node[Any], int, int]
"""A node with its tally."""


def tally(node: Node[Any]) -> tuple[int, int]:
    """How many of the finished solutions at and below a node, rollouts included, are right, and how many there are."""
    own = [node.step["right"]] if "right" in node.step else []
    own += [rollout["right"] for rollout in node.step.get("rollouts", ())]
    below = [tally(child) for child in node.children]
    return sum(own) + sum(right for right, _ in below), len(own) + sum(tried for _, tried in below)


def step_pairs(root: Node[Any]) -> list[Target]:
    """At each prefix that leads to a right answer: steps that reach one against steps that never do.

    The step with the highest share of right answers is paired with the one that failed most often, the second with the
    second, so that no text is chosen twice. Steps without a finished solution are in no pair.
    """
    pairs: list[Target] = []
    for node in walk(root):
        tallies = [(child, *tally(child)) for child in _sound_children(node)]
        good = sorted((t for t in tallies if t[1]), key=lambda t: (-t[1] / t[2], -t[2]))
        bad = sorted((t for t in tallies if t[2] and not t[1]), key=lambda t: -t[2])
        good, bad = _drop_repeated(good), _drop_repeated(bad)
        texts = {_text_of(t[0]) for t in good}
        for (chosen, right, tried), (rejected, _, failures) in zip(
            good, [t for t in bad if _text_of(t[0]) not in texts], strict=False
        ):
            share = right / tried
            scores = {"chosen": share, "rejected": 0.0, "margin": share, "depth": float(node.depth)}
            pairs.append(_pair(chosen, rejected, scores | {"chosen_tried": tried, "rejected_tried": failures}))
    return pairs


def mcts_pairs(root: Node[Any]) -> list[Target]:
    """At each visited node: the best child against the worst by Q, then prior, value and visits.

    No pair if both have the same Q, or the same text except for white space.
    """
    pairs: list[Target] = []
    for node in walk(root):
        children = sorted(_sound_children(node), key=lambda c: (c.q, c.prior, c.value, c.visits))
        if not node.visits or len(children) < 2 or children[0].q == children[-1].q:
            continue
        worst, best = children[0], children[-1]
        if _text_of(worst) == _text_of(best):
            continue
        scores = {"chosen": best.q, "rejected": worst.q, "margin": best.q - worst.q, "depth": float(node.depth)}
        pairs.append(_pair(best, worst, scores))
    return pairs


def label_smoothing(chosen_visits: int, rejected_visits: int) -> float:
    """Label smoothing of conservative DPO for a pair, as in MCTS-DPO: min(1 - 1 / (1 + N_w / max(1, N_b)), 0.5).

    N_b and N_w are the visits of the best and the worst child: it grows with the share of visits to the worst.
    """
    return min(1 - 1 / (1 + rejected_visits / max(1, chosen_visits)), 0.5)


def no_pair_reason(root: Node[Any]) -> str:
    """Why a tree has no pair. There are few different reasons, so that the command's table can count them."""
    right, tried = tally(root)
    if not tried:
        return "no solution came to its end"
    if not right:
        return "no solution is right"
    return "every solution is right" if right == tried else "no step has a worse sibling"


def _pair(chosen: Node[Any], rejected: Node[Any], scores: Mapping[str, float]) -> Target:
    prefix = Segment("user", False, prompt=rejected.step["call"])
    steps = [Segment("assistant", True, call=node.step["call"]) for node in (chosen, rejected)]
    visits = {
        "chosen_visits": float(chosen.visits),
        "rejected_visits": float(rejected.visits),
        "label_smoothing": label_smoothing(chosen.visits, rejected.visits),
    }
    numbers = {name: float(score) for name, score in scores.items()}
    return Target("step", (prefix, steps[0]), (prefix, steps[1]), scores=numbers | visits)


def _sound_children(node: Node[Any]) -> list[Node[Any]]:
    return [child for child in node.children if child.outcome != "failed"]


def _text_of(node: Node[Any]) -> str:
    return " ".join(node.state[-1].text.split())


def _drop_repeated(tallies: Sequence[Tallied]) -> list[Tallied]:
    """Only the first step of each text, ignoring white space."""
    by_text: dict[str, Tallied] = {}
    for entry in tallies:
        by_text.setdefault(_text_of(entry[0]), entry)
    return list(by_text.values())
