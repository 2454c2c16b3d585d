"""DRT's training targets: the translation with and without its long thought, the best draft's call, pairs of drafts."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Final

from agentsys.graphs.drt.state import RefinementStep, State
from agentsys.roles import load_prompt
from agentsys.traces import Segment, Target, masked

STUDENT: Final = load_prompt("drt/student")
"""The published chat format that a student is trained in."""


def targets(state: State, thought: str, languages: Mapping[str, str]) -> list[Target]:
    """The targets of a kept record: `sft` (long thought), `role` (best draft), `step` (pairs of drafts), `sft-plain`.

    The last is the paper's baseline "SFT w/o CoT": the translation alone, in the same chat format.
    """
    steps = [state["steps"][i] for i in state["kept"]]
    best = next(step for step in steps if step["translation"] == state["trans"])
    prompt = masked(STUDENT.render({"text": state["text"], **languages}))
    answer = [
        Segment("assistant", True, text=f"<thought>\n{thought}\n</thought>\n<output>\n"),
        Segment("assistant", True, call=best["key"]),
        Segment("assistant", True, text="\n</output>"),
    ]
    scores = {"score": best["score"], "steps": float(len(steps)), "gain": best["score"] - steps[0]["score"]}
    sft = Target("sft", (*prompt, *answer), scores=scores)
    role = Target("role", (_prompt_of(best), _reply_of(best)), scores={"score": best["score"]})
    pairs = [preference_pair(better, worse) for worse, better in _iter_improvements(steps)]
    return [sft, role, *pairs, Target("sft-plain", (*prompt, _reply_of(best)), scores=scores)]


def preference_pair(better: RefinementStep, worse: RefinementStep) -> Target:
    """Given the prompt of the worse draft, the better draft is preferred (ours; the paper has no DPO)."""
    scores = {"chosen": better["score"], "rejected": worse["score"], "margin": better["score"] - worse["score"]}
    prompt = _prompt_of(worse)
    return Target("step", (prompt, _reply_of(better)), (prompt, _reply_of(worse)), scores=scores)


def _iter_improvements(steps: list[RefinementStep]) -> Iterator[tuple[RefinementStep, RefinementStep]]:
    """(worse, better): each draft and the best later draft, if that one scored higher."""
    for i, step in enumerate(steps[:-1]):
        best = max(steps[i + 1 :], key=lambda later: later["score"])
        if best["score"] > step["score"]:
            yield step, best


def _prompt_of(step: RefinementStep) -> Segment:
    return Segment("user", False, prompt=step["key"])


def _reply_of(step: RefinementStep) -> Segment:
    return Segment("assistant", True, call=step["key"])
