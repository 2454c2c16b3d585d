"""What other settings would keep: the stop rule and the filter (B3d, C1, C2) replayed on the steps of a trace.

No model is called. A trace holds all drafts up to where its run stopped, so a rule that stops at the same draft or
earlier is replayed exactly; one that would refine further cannot be, and the record is counted as *open*.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, Final, Literal

from agentsys.graphs.drt.system import changed_steps, stop_reason

Kind = Literal["stated", "expected"]
Verdict = Literal["kept", "dropped", "open"]

THRESHOLDS: Final = (70.0, 80.0, 85.0, 90.0, 95.0)
"""Thresholds that the table has beside the run's own."""
ROUNDS: Final = (1, 2, 3, 5, 8)
MIN_STEPS: Final = (2, 3, 4)
_OWN_STOPS: Final = frozenset({"threshold", "max_rounds", "enough candidates"})
"""Stops by a rule of the run. At any other, such as a refiner that failed, the rounds end under every rule."""


@dataclass(frozen=True, slots=True)
class Rule:
    """The settings of the stop rule and of the filter, as in the system's Context."""

    score: Kind = "expected"
    threshold: float = 90.0
    max_rounds: int = 3
    min_steps: int = 3
    count_draft: bool = True
    score_step: float = 1.0
    refiner: Literal["dialogue", "candidates"] = "dialogue"
    evaluator: Literal["score", "pairwise"] = "score"

    @classmethod
    def of_run(cls, manifest: Mapping[str, Any]) -> Rule:
        """The rule of a run, from its manifest. A setting that it does not have was not one of its version."""
        knobs = manifest.get("fingerprint", {}).get("knobs", {})
        return cls(**{name: knobs[name] for name in asdict(cls()) if knobs.get(name) is not None})

    def score_of(self, step: Mapping[str, Any], own: Kind) -> float | None:
        """The score of a step under this rule; None if the trace does not have it. `own` is the score of the run."""
        if self.evaluator == "pairwise" or self.score == own:
            return float(step["score"])
        return step.get(self.score)

    def stops(self, scores: Sequence[float]) -> bool:
        """B3d: whether the rounds end after these scores."""
        return bool(stop_reason(scores, self))

    def select(self, scores: Sequence[float]) -> list[int]:
        """C1: indices of the steps that stay; candidates are first put in the order of their scores."""
        return changed_steps(sorted(scores) if self.refiner == "candidates" else scores, self.score_step)

    def counted_steps(self, kept: Sequence[int]) -> int:
        """C2: how many steps a record has."""
        return len(kept) - (not self.count_draft)


def in_order_of_writing(steps: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """The steps in the order in which they were written; the traces of candidates have them by score."""
    return sorted(steps, key=lambda step: int(match[1]) if (match := re.search(r"/(\d+)", step.get("key", ""))) else 0)


def replay(steps: Sequence[Mapping[str, Any]], stop: str, rule: Rule, own: Kind) -> tuple[Verdict, int]:
    """What the rule does with a record: its verdict, and the rounds that it takes (those known, if it stays open).

    `steps` and `stop` are those of the record's result. A kept record still needs a thought.
    """
    scores: list[float] = []
    for step in in_order_of_writing(steps):
        score = rule.score_of(step, own)
        if score is None:
            return "open", max(len(scores) - 1, 0)
        scores.append(score)
        if rule.stops(scores):
            break
    else:
        if stop in _OWN_STOPS:
            return "open", len(scores) - 1
    kept = rule.counted_steps(rule.select(scores)) >= rule.min_steps
    return "kept" if kept else "dropped", len(scores) - 1


def other_rules(own: Rule) -> list[tuple[str, Rule]]:
    """The run's own rule, and rules that differ in one setting, with their names."""
    rules = [("this run", own)]
    if own.evaluator == "score":
        other: Kind = "stated" if own.score == "expected" else "expected"
        rules.append((f"score {other}", replace(own, score=other)))
    if own.evaluator == "score" and own.refiner == "dialogue":
        rules += [(f"threshold {value:g}", replace(own, threshold=value)) for value in THRESHOLDS]
    rules += [(f"max rounds {value}", replace(own, max_rounds=value)) for value in ROUNDS]
    rules += [(f"min steps {value}", replace(own, min_steps=value)) for value in MIN_STEPS]
    return [(name, rule) for i, (name, rule) in enumerate(rules) if i == 0 or rule != own]


class OtherSettings:
    """Counts what each of `other_rules` would keep."""

    def __init__(self, own: Rule) -> None:
        self.own = own
        self.rules = other_rules(own)
        self.counts: dict[str, dict[str, int]] = {
            name: {"kept": 0, "dropped": 0, "open": 0, "rounds": 0} for name, _ in self.rules
        }

    def add(self, steps: Sequence[Mapping[str, Any]], stop: str) -> None:
        """Count a record with steps."""
        for name, rule in self.rules:
            verdict, rounds = replay(steps, stop, rule, self.own.score)
            self.counts[name][verdict] += 1
            self.counts[name]["rounds"] += rounds

    def data(self) -> list[dict[str, Any]]:
        """One object per rule: its name, settings and counts. No rule for a kind of score that no trace has."""
        return [
            {"name": name, **asdict(rule), **self.counts[name]}
            for name, rule in self.rules
            if rule.score == self.own.score or self.counts[name]["kept"] + self.counts[name]["dropped"]
        ]
