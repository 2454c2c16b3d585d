"""LongDPO's layers and the pairs they give: after the same exact prefix the chosen step is preferred to a sibling."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from agentsys.graphs.longdpo.memory import Fact
from agentsys.graphs.longdpo.state import Candidate, Layer
from agentsys.text.words import units
from agentsys.traces import Segment, Target

if TYPE_CHECKING:
    from agentsys.graphs.longdpo.state import Knobs


def chosen_steps(layers: Sequence[Layer]) -> list[Candidate]:
    """s_1 .. s_t."""
    return [layer["candidates"][layer["chosen"]] for layer in layers]


def layer_of(context: Knobs, candidates: Sequence[Candidate], chosen: int, facts: Sequence[Fact]) -> Layer:
    """What a layer decided, with the rejected side of its pair."""
    rejected = _rejected(context, candidates, chosen)
    known = [fact.as_json() for fact in facts]
    return Layer(candidates=list(candidates), chosen=chosen, rejected=rejected, facts=known)


def response_of(layers: Sequence[Layer], stop: str) -> dict[str, Any]:
    """The whole response, its pairs as targets, and why there is none."""
    pairs = [pair for depth, layer in enumerate(layers) if (pair := preference(layer, depth))]
    return {
        "response": "".join(step["text"] for step in chosen_steps(layers)),
        "dropped": None if pairs else f"no pair ({stop})",
        "targets": [asdict(pair) for pair in pairs],
    }


def preference(layer: Layer, depth: int) -> Target | None:
    """The pair of a layer: after the same exact prefix the chosen step is preferred. No critique is in the prompt.

    The margin is in what the choice was made by: q where a tree search valued both sides, else the judge's value.
    """
    if layer["rejected"] is None:
        return None
    chosen, rejected = layer["candidates"][layer["chosen"]], layer["candidates"][layer["rejected"]]
    sent = Segment("user", False, prompt=rejected["key"])
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
    written = [Segment("assistant", True, call=step["key"]) for step in (chosen, rejected)]
    return Target("step", (sent, written[0]), (sent, written[1]), scores=scores)


def _rejected(context: Knobs, candidates: Sequence[Candidate], chosen: int) -> int | None:
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
    return random_of(context, candidates[chosen], "rejected").choice(others)


def near_equal(one: str, other: str, share: float = 0.9) -> bool:
    """Whether two texts share nearly all their runs of three words (Jaccard), each Chinese character a word."""
    both = (units(one), units(other))
    runs = [{tuple(words[i : i + 3]) for i in range(max(1, len(words) - 2))} for words in both]
    return len(runs[0] & runs[1]) >= share * len(runs[0] | runs[1])


def random_of(context: Knobs, step: Candidate, what: str) -> random.Random:
    """Numbers that belong to a step and not to when it was written."""
    return random.Random(f"{context.choice_seed}/{what}/{step['key']}/{step['text']}")
