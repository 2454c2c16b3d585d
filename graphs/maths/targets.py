"""Preference pairs of steps from a search tree: after the same exact prefix one step is preferred to another.

`step_pairs` in the manner of Step-DPO (Lai et al. 2024, arXiv 2406.18629): after a correct prefix, a step that leads to
a right answer against the first wrong one. `mcts_pairs` in the manner of MCTS-DPO (Xie et al. 2024, arXiv 2405.00451):
at every visited node the best child against the worst. A target points at the calls: rows hold the ids that the engine
wrote, and no end of the turn follows a step that is not final.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from agentsys.search import Node, walk
from agentsys.traces import Segment, Target

Tried = tuple[Node[Any], int, int]
"""A node with its tally."""


def tally(node: Node[Any]) -> tuple[int, int]:
    """How many of the finished solutions at and below a node, rollouts included, are right, and how many there are."""
    own = [node.step["right"]] if "right" in node.step else []
    own += [rollout["right"] for rollout in node.step.get("rollouts", ())]
    below = [tally(child) for child in node.children]
    return sum(own) + sum(right for right, _ in below), len(own) + sum(tried for _, tried in below)


def step_pairs(root: Node[Any]) -> list[Target]:
    """At each prefix that leads to a right answer: its steps that do, against those from which none was reached.

    The step that most often does is paired with the one that was tried most often in vain, the second with the second:
    no text is chosen twice. What was never tried to the end is in no pair.
    """
    pairs: list[Target] = []
    for node in walk(root):
        tallies = [(child, *tally(child)) for child in _sound(node)]
        good = sorted((t for t in tallies if t[1]), key=lambda t: (-t[1] / t[2], -t[2]))
        bad = sorted((t for t in tallies if t[2] and not t[1]), key=lambda t: -t[2])
        good, bad = _distinct(good), _distinct(bad)
        texts = {_text(t[0]) for t in good}
        for (chosen, right, tried), (rejected, _, vain) in zip(
            good, [t for t in bad if _text(t[0]) not in texts], strict=False
        ):
            share = right / tried
            scores = {"chosen": share, "rejected": 0.0, "margin": share, "depth": float(node.depth)}
            pairs.append(_pair(chosen, rejected, scores | {"chosen_tried": tried, "rejected_tried": vain}))
    return pairs


def mcts_pairs(root: Node[Any]) -> list[Target]:
    """At each visited node: the best child against the worst by Q, then prior, value and visits.

    None where both have one Q, or one text but for white space.
    """
    pairs: list[Target] = []
    for node in walk(root):
        children = sorted(_sound(node), key=lambda c: (c.q, c.prior, c.value, c.visits))
        if not node.visits or len(children) < 2 or children[0].q == children[-1].q:
            continue
        worst, best = children[0], children[-1]
        if _text(worst) == _text(best):
            continue
        scores = {"chosen": best.q, "rejected": worst.q, "margin": best.q - worst.q, "depth": float(node.depth)}
        pairs.append(_pair(best, worst, scores))
    return pairs


def label_smoothing(chosen_visits: int, rejected_visits: int) -> float:
    """How much a conservative DPO would doubt a pair: min(1 - 1 / (1 + N_w / max(1, N_b)), 0.5), as in MCTS-DPO.

    N_b and N_w are the visits of the best and the worst child: the more the search went to the worst one, the more.
    """
    return min(1 - 1 / (1 + rejected_visits / max(1, chosen_visits)), 0.5)


def _pair(chosen: Node[Any], rejected: Node[Any], scores: Mapping[str, float]) -> Target:
    sent = Segment("user", False, prompt=rejected.step["call"])
    written = [Segment("assistant", True, call=node.step["call"]) for node in (chosen, rejected)]
    visits = {
        "chosen_visits": float(chosen.visits),
        "rejected_visits": float(rejected.visits),
        "label_smoothing": label_smoothing(chosen.visits, rejected.visits),
    }
    told = {name: float(score) for name, score in scores.items()}
    return Target("step", (sent, written[0]), (sent, written[1]), scores=told | visits)


def _sound(node: Node[Any]) -> list[Node[Any]]:
    return [child for child in node.children if child.outcome != "failed"]


def _text(node: Node[Any]) -> str:
    return " ".join(node.state[-1].text.split())


def _distinct(found: Sequence[Tried]) -> list[Tried]:
    """The first of those with one text: white space does not count."""
    kept: dict[str, Tried] = {}
    for entry in found:
        kept.setdefault(_text(entry[0]), entry)
    return list(kept.values())
