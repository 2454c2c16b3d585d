"""LongDPO's preference pairs: one pair of steps per layer, or one pair of whole responses per tree (the baseline)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from statistics import fmean
from typing import Any

from agentsys.graphs.longdpo.memory import Fact
from agentsys.graphs.longdpo.state import Candidate, Knobs, Layer, Path, chosen_steps, text_so_far
from agentsys.search import Node, walk
from agentsys.text.words import units
from agentsys.traces import Segment, Target


def make_layer(context: Knobs, candidates: Sequence[Candidate], chosen: int, facts: Sequence[Fact]) -> Layer:
    """A layer, with the rejected side of its pair."""
    rejected = _pick_rejected(context, candidates, chosen)
    return Layer(
        candidates=list(candidates), chosen=chosen, rejected=rejected, facts=[fact.as_json() for fact in facts]
    )


def _pick_rejected(context: Knobs, candidates: Sequence[Candidate], chosen: int) -> int | None:
    """A sibling of the chosen step that is not nearly the same text: a random one as in the paper, or the worst."""
    others = [
        i
        for i, step in enumerate(candidates)
        if i != chosen and not step.get("suggestions") and not near_equal(step["text"], candidates[chosen]["text"])
    ]
    if not others:
        return None
    if context.rejected == "worst":
        return min(others, key=lambda i: candidates[i]["value"])
    return context.random_for(candidates[chosen], "rejected").choice(others)


def near_equal(one: str, other: str, share: float = 0.9) -> bool:
    """Whether two texts share nearly all their three-word runs (Jaccard); each Chinese character is a word."""
    both = (units(one), units(other))
    runs = [{tuple(words[i : i + 3]) for i in range(max(1, len(words) - 2))} for words in both]
    return len(runs[0] & runs[1]) >= share * len(runs[0] | runs[1])


def finish_response(layers: Sequence[Layer], stop: str) -> dict[str, Any]:
    """The whole response, its step pairs as targets, and why there is none."""
    pairs = [pair for depth, layer in enumerate(layers) if (pair := step_pair(layer, depth))]
    return {
        "response": "".join(step["text"] for step in chosen_steps(layers)),
        "dropped": None if pairs else f"no pair ({stop})",
        "targets": [asdict(pair) for pair in pairs],
    }


def step_pair(layer: Layer, depth: int) -> Target | None:
    """The pair of a layer: after the same exact prefix the chosen step is preferred. The prompt has no critique.

    The margin is in the value that decided: q if a tree search valued both sides, else the judge's value.
    """
    if layer["rejected"] is None:
        return None
    chosen, rejected = layer["candidates"][layer["chosen"]], layer["candidates"][layer["rejected"]]
    prefix = Segment("user", False, prompt=rejected["key"])
    margin = chosen["q"] - rejected["q"] if "q" in chosen and "q" in rejected else chosen["value"] - rejected["value"]
    scores = {
        "chosen": chosen["value"],
        "rejected": rejected["value"],
        "margin": margin,
        "depth": float(depth),
        "suggestions": float(len(chosen.get("suggestions") or [])),
    }
    if "visits" in rejected:
        scores |= {"chosen_visits": float(chosen.get("visits", 0)), "rejected_visits": float(rejected["visits"])}
    steps = [Segment("assistant", True, call=step["key"]) for step in (chosen, rejected)]
    return Target("step", (prefix, steps[0]), (prefix, steps[1]), scores=scores)


def outcome_pair(root: Node[Path], depth: int) -> Target | None:
    """The outcome-DPO baseline: the best of the tree's whole responses against the worst, by their mean step value.

    Whole responses are those that the model ended and those at the depth limit, without those that the memory excluded.
    No pair if all have the same value, or if the two are nearly the same text.
    """
    whole = [
        node
        for node in walk(root)
        if node.state
        and node.outcome != "failed"
        and (node.state[-1]["final"] or node.depth == depth)
        and all(part.outcome != "excluded" for part in node.path)
    ]
    if not whole:
        return None
    ranked = sorted(whole, key=_response_value)
    best, worst = ranked[-1], ranked[0]
    chosen_value, rejected_value = _response_value(best), _response_value(worst)
    if chosen_value == rejected_value or near_equal(text_so_far(best.state), text_so_far(worst.state)):
        return None
    prefix = Segment("user", False, prompt=root.children[0].step["call"])
    chosen, rejected = (
        tuple(Segment("assistant", True, call=step["key"]) for step in node.state) for node in (best, worst)
    )
    scores = {"chosen": chosen_value, "rejected": rejected_value, "margin": chosen_value - rejected_value}
    return Target("step", (prefix, *chosen), (prefix, *rejected), scores=scores)


def _response_value(node: Node[Path]) -> float:
    """The mean value of a response's steps, 1-5."""
    return fmean(step.value for step in node.path[1:])
