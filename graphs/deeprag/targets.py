"""DeepRAG's training targets: the narrative of a path (stage I), and pairs of atomic decisions (stage II)."""

from __future__ import annotations

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


def targets(question: str, goal: PathNode, stage: Stage, prompt: Prompt) -> list[Target]:
    """Stage I: the path's narrative as the reply to `prompt`. Stage II: a pair for every sub-query of the path."""
    if stage == "imitation":
        return [narrative_target(question, goal, prompt)]
    return [calibration_pair(node, child) for node, child in zip(goal.path, goal.path[1:], strict=False)]


def narrative_target(question: str, goal: PathNode, prompt: Prompt) -> Target:
    """The narrative with masked documents; decisions, sub-queries and answers are learned (appendix B.1)."""
    messages = prompt.render({"question": question, "narrative": "", "example": False, "steps": []})
    context = masked(message for message in messages if message["role"] != "assistant")
    answer = FinalAnswer(goal.observation["long_answer"], goal.observation["answer"], True)
    pieces = [*iter_pieces(goal.state), (format_final_answer(answer), True)]
    reply = [Segment("assistant", learned, text=text) for text, learned in pieces]
    scores = {"retrievals": goal.cost, "steps": float(len(goal.state))}
    return Target("sft", (*context, *reply), scores=scores)


def calibration_pair(node: PathNode, child: PathNode) -> Target:
    """After s_(i-1) and q_i: the decision of the best path is chosen, the other one rejected (appendix B.2).

    Only the openings differ; the pair has neither the answer nor the documents of step i. The search sentence keeps its
    newline: a tokenizer may join the two, and without it the last token of the pair would occur in no narrative.
    """
    prefix = Segment("user", False, prompt=node.observation["call"])
    openings = [Segment("assistant", True, text=text) for text in (f"{SEARCH}\n", ANSWER)]
    chosen, rejected = openings if child.state[-1]["retrieved"] else reversed(openings)
    scores = {"margin": 1.0, "retrievals": child.cost, "step": float(child.depth)}
    scores["choice"] = float(child.state[-1]["retrieved"])  # 1: retrieving is chosen, 0: the model's own knowledge
    return Target("step", (prefix, chosen), (prefix, rejected), scores=scores)
