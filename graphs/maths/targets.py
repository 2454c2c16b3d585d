"""Preference pairs of steps from a search tree: after the same exact prefix one step is preferred to another.

`step_pairs` follow Step-DPO (Lai et al. 2024, arXiv 2406.18629): after a correct prefix, a step that leads to a right
answer against the first wrong step. `mcts_pairs` follow MCTS-DPO (Xie et al. 2024, arXiv 2405.00451): at every visited
node the best child against the worst. A target refers to calls: rows hold the ids that the engine wrote, and a step
that is not final is not followed by an end of the turn.

A share of right solutions is an estimate. The scores of a pair have the tries of both sides and their confidence:
`chosen_low` and `rejected_high` are the lower and the upper end of the 95 % interval of the share (Wilson 1927).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from agentsys.collect.statistics import wilson_interval
from agentsys.search import Node, tally, walk
from agentsys.traces import Segment, Target

Tallied = tuple[Node[Any], int, int]
"""A node, how many of its finished solutions are right, and how many there are."""


def checked_siblings(node: Node[Any]) -> list[Tallied]:
    """The steps after a node with their tallies: a rollout of the node that began with the same step counts as well."""
    verdicts: dict[tuple[str, bool], list[bool]] = {}
    for rollout in node.step.get("rollouts", ()):
        verdicts.setdefault((_fold(rollout["first"]), rollout["final"]), []).append(rollout["right"])
    tallies = []
    for child in _sound_children(node):
        right, tried = tally(child)
        more = verdicts.get((_text_of(child), child.state[-1].final), [])
        tallies.append((child, right + sum(more), tried + len(more)))
    return tallies


def step_pairs(root: Node[Any], margin: float = 0.0) -> list[Target]:
    """At each prefix that leads to a right answer: steps that reach one against steps that never do.

    Chosen steps reach a right answer in a share of their tries above 0 and of at least `margin`. The one with the
    highest share is paired with the step that failed most often, the second with the second, so that no text is chosen
    twice. Steps without a finished solution are in no pair.
    """
    pairs: list[Target] = []
    for node in walk(root):
        tallies = checked_siblings(node)
        good = sorted((t for t in tallies if t[1]), key=lambda t: (-t[1] / t[2], -t[2]))
        bad = sorted((t for t in tallies if t[2] and not t[1]), key=lambda t: -t[2])
        good, bad = _drop_repeated(good), _drop_repeated(bad)
        texts = {_text_of(t[0]) for t in good}
        for chosen, rejected in zip(good, [t for t in bad if _text_of(t[0]) not in texts], strict=False):
            share = chosen[1] / chosen[2]
            if share >= margin:
                scores = {"chosen": share, "rejected": 0.0, "margin": share, "depth": float(node.depth)}
                pairs.append(_pair(chosen, rejected, scores))
    return pairs


def mcts_pairs(root: Node[Any], margin: float = 0.0) -> list[Target]:
    """At each visited node: the best child against the worst by Q, then prior, value and visits.

    No pair if both have the same Q, if Q differs by less than twice `margin` (Q is from -1 to 1, a share from 0 to 1),
    or if both have the same text except for white space.
    """
    pairs: list[Target] = []
    for node in walk(root):
        tallies = sorted(checked_siblings(node), key=lambda t: (t[0].q, t[0].prior, t[0].value, t[0].visits))
        if not node.visits or len(tallies) < 2:
            continue
        worst, best = tallies[0], tallies[-1]
        gap = best[0].q - worst[0].q
        if gap == 0 or gap < 2 * margin or _text_of(worst[0]) == _text_of(best[0]):
            continue
        scores = {"chosen": best[0].q, "rejected": worst[0].q, "margin": gap, "depth": float(node.depth)}
        pairs.append(_pair(best, worst, scores))
    return pairs


def label_smoothing(chosen_visits: int, rejected_visits: int) -> float:
    """Label smoothing of conservative DPO for a pair, as in MCTS-DPO: min(1 - 1 / (1 + N_w / max(1, N_b)), 0.5).

    N_b and N_w are the visits of the best and the worst child: it grows with the share of visits to the worst.
    """
    return min(1 - 1 / (1 + rejected_visits / max(1, chosen_visits)), 0.5)


def no_pair_reason(root: Node[Any], margin: float = 0.0) -> str:
    """Why a tree has no pair. There are few different reasons, so that the command's table can count them."""
    right, tried = tally(root)
    if not tried:
        return "no solution came to its end"
    if not right:
        return "no solution is right"
    if right == tried:
        return "every solution is right"
    return f"no pair has a margin of {margin:g}" if margin and step_pairs(root) else "no step has a worse sibling"


def _pair(chosen: Tallied, rejected: Tallied, scores: Mapping[str, float]) -> Target:
    prefix = Segment("user", False, prompt=rejected[0].step["call"])
    steps = [Segment("assistant", True, call=node.step["call"]) for node, _, _ in (chosen, rejected)]
    numbers = {
        **scores,
        "chosen_tried": chosen[2],
        "rejected_tried": rejected[2],
        "chosen_low": wilson_interval(chosen[1], chosen[2])[0],
        "rejected_high": wilson_interval(rejected[1], rejected[2])[1],
        "chosen_visits": chosen[0].visits,
        "rejected_visits": rejected[0].visits,
        "label_smoothing": label_smoothing(chosen[0].visits, rejected[0].visits),
    }
    scores = {name: float(number) for name, number in numbers.items()}
    return Target("step", (prefix, steps[0]), (prefix, steps[1]), scores=scores)


def _sound_children(node: Node[Any]) -> list[Node[Any]]:
    return [child for child in node.children if child.outcome != "failed"]


def _text_of(node: Node[Any]) -> str:
    return _fold(node.state[-1].text)


def _fold(text: str) -> str:
    return " ".join(text.split())


def _drop_repeated(tallies: Sequence[Tallied]) -> list[Tallied]:
    """Only the first step of each text, ignoring white space."""
    by_text: dict[str, Tallied] = {}
    for entry in tallies:
        by_text.setdefault(_text_of(entry[0]), entry)
    return list(by_text.values())
