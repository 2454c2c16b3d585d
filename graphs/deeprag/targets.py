"""DeepRAG's training targets: the narrative of a path (stage I), and pairs of atomic decisions (stage II)."""

from __future__ import annotations

import random
from collections.abc import Sequence
from itertools import pairwise
from typing import Literal

from agentsys.graphs.deeprag.narrative import (
    ANSWER,
    SEARCH,
    FinalAnswer,
    NarrativeStep,
    format_final_answer,
    iter_pieces,
)
from agentsys.prompt import Prompt
from agentsys.search import Node
from agentsys.traces import Segment, Target, masked

Stage = Literal["imitation", "calibration"]
PathChoice = Literal["least", "most", "random"]
PairChoice = Literal["path", "all"]

PathNode = Node[tuple[NarrativeStep, ...]]
"""A node of the search tree as the end of its path from the root: its state is s_t, its cost T(s_t)."""


def drop_reason(goal: PathNode, stage: Stage) -> str | None:
    """Return why a correct path is no training example, or None.

    In stage I the filter is that of the released code; the paper does not report it.
    """
    if not goal.state:
        return "answered without a sub-query"
    if stage == "calibration":
        return None
    if not goal.observation["well_formed"]:
        return "the final answer has no tags"
    has_list = any(step["answer"].startswith(("1. ", "2. ", "3. ")) for step in goal.state)
    return "an answer is a list" if has_list else None


def choose_path(goals: Sequence[PathNode], choice: PathChoice, seed: str) -> PathNode | None:
    """The correct path to imitate, of paths in the order of their retrievals; None if there is none.

    The fewest retrievals, or as in the ablation of table 5 the most, or a random path.
    """
    if not goals:
        return None
    if choice == "random":
        return random.Random(seed).choice(goals)
    return goals[0] if choice == "least" else max(goals, key=lambda goal: goal.cost)


def best_decisions(goals: Sequence[PathNode], choice: PairChoice) -> list[tuple[PathNode, PathNode]]:
    """The nodes whose decisions give pairs, each with the better child. The paths are in the order of their retrievals.

    Those of the best path, or as in the ablation of table 6 all nodes from which the right answer is reached; the
    better child is the one on the best path through the node.
    """
    better: dict[str, tuple[PathNode, PathNode]] = {}
    for goal in goals[: 1 if choice == "path" else None]:
        for node, child in pairwise(goal.path):
            better.setdefault(node.id, (node, child))
    return list(better.values())


def calibration_pairs(decisions: Sequence[tuple[PathNode, PathNode]]) -> list[Target]:
    """Stage II: the pairs of the nodes whose decision was recorded."""
    return [calibration_pair(node, child) for node, child in decisions if "decision" in node.observation]


def narrative_target(question: str, goal: PathNode, prompt: Prompt) -> Target:
    """The narrative with masked documents; decisions, sub-queries and answers are learned (appendix B.1)."""
    messages = prompt.render({"question": question, "narrative": "", "example": False, "steps": []})
    context = masked(message for message in messages if message["role"] != "assistant")
    answer = FinalAnswer(goal.observation["long_answer"], goal.observation["answer"], True)
    pieces = [*iter_pieces(goal.state), (format_final_answer(answer), True)]
    reply = [Segment("assistant", learned, text=text) for text, learned in pieces]
    scores = {"retrievals": goal.cost, "steps": float(len(goal.state))}
    return Target("sft", (*context, *reply), scores=scores)


def prefers_retrieval(pair: Target) -> bool:
    """Whether the chosen decision of a calibration pair is to retrieve."""
    return (pair.segments[-1].text or "").startswith(SEARCH)


def calibration_pair(node: PathNode, child: PathNode) -> Target:
    """After s_(i-1) and q_i: the decision that leads to the child is chosen, the other one rejected (appendix B.2).

    Only the openings differ; the pair has neither the answer nor the documents of step i. The search sentence keeps its
    newline: a tokenizer may join the two, and without it the last token of the pair would occur in no narrative.
    """
    prefix = Segment("user", False, prompt=node.observation["call"])
    openings = [Segment("assistant", True, text=text) for text in (f"{SEARCH}\n", ANSWER)]
    chosen, rejected = openings if child.state[-1]["retrieved"] else reversed(openings)
    scores = {"margin": 1.0, "retrievals": child.cost, "step": float(child.depth)}
    scores["choice"] = float(child.state[-1]["retrieved"])  # 1: retrieving is chosen, 0: the model's own knowledge
    return Target("step", (prefix, chosen), (prefix, rejected), scores=scores)
