"""Scripted replies for LongDPO's roles, and an embedding model that counts words."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from agentsys.graphs.longdpo.judge import PRINCIPLES
from agentsys.graphs.longdpo.system import Context

STATED = Context(width=3, depth=2, eta=1.0, weights="stated")
"""Two layers of three candidates, judged with stated weights and hardly ever rewritten."""


class WordCounts:
    """An embedding model whose vectors count the words of a small vocabulary."""

    name = "words"
    vocabulary = ("keeper", "anna", "bruno", "lamp", "red", "green", "sea")

    async def embed(self, texts: Sequence[str]) -> Any:
        return np.array([[text.lower().count(word) for word in self.vocabulary] for text in texts], dtype=float)


@dataclass
class Script:
    """Replies by role; `judgments` gives each text its score on all principles, or a list of seven.

    `calls` holds the role, key and last message of every call.
    """

    steps: Mapping[str, str]
    judgments: Mapping[str, float | Sequence[float]]
    facts: Mapping[str, Sequence[str]] = field(default_factory=dict)
    contradictions: Sequence[tuple[str, str]] = ()
    suggestion: str = "Say what the keeper sees."
    calls: list[tuple[str, str, str]] = field(default_factory=list)

    def __call__(self, messages: Sequence[Mapping[str, Any]], call: dict[str, Any]) -> str:
        role, key, last = call["role"], call["key"], str(messages[-1]["content"])
        self.calls.append((role, key, last))
        return str(getattr(self, role)(key, last))

    def writer(self, key: str, request: str) -> str:
        return self.steps[key]

    def judge(self, key: str, request: str) -> str:
        text = request.rpartition("The part to judge:\n")[2].partition("\n\n(An earlier")[0]
        scores = self.judgments[text]
        rows = [scores] * 7 if isinstance(scores, int | float) else scores
        return json.dumps({"analysis": "x"} | {n: weights_of(s) for n, s in zip(PRINCIPLES, rows, strict=True)})

    def grader(self, key: str, request: str) -> str:
        score = self.judgments[request.rpartition("The part to judge:\n")[2]]
        return json.dumps(dict.fromkeys(PRINCIPLES, score))

    def extractor(self, key: str, request: str) -> str:
        text = request.rpartition("The newest part:\n")[2]
        facts = [{"statement": fact, "validity": "unsure", "evidence": text} for fact in self.facts.get(text, ())]
        wrong = {"statement": "The sea is green.", "validity": "false", "evidence": text}
        return json.dumps({"facts": [*facts, wrong]})

    def contradiction(self, key: str, request: str) -> str:
        return json.dumps(
            {"reason": "x", "contradicts": any(f in request and c in request for f, c in self.contradictions)}
        )

    def critic(self, key: str, request: str) -> str:
        return json.dumps({"analysis": "x", "suggestion": self.suggestion, "confidence": 4, "words": ""})


def weights_of(score: float) -> list[float]:
    """Soft weights whose expectation is the score; all zero for 0."""
    low = min(int(score), 4)
    return [0.0] * 5 if score == 0 else [{low: low + 1 - score, low + 1: score - low}.get(i, 0.0) for i in range(1, 6)]


STORY = {
    "0/0": "The keeper Anna lights the red lamp.", "0/1": "dull", "0/2": "duller",
    "1/0": "The keeper Bruno dims the green lamp.", "1/1": "Anna, the keeper, sleeps by her red lamp.", "1/2": "dull",
}  # fmt: skip
"""Two layers of candidates by key. 1/0 contradicts 0/0."""
FACT = "The keeper is Anna and the lamp is red."
MEMORY = {
    "judgments": {STORY["0/0"]: 5, STORY["1/0"]: 4.9, STORY["1/1"]: 4, "dull": 2, "duller": 1},
    "facts": {STORY["0/0"]: [FACT]},
    "contradictions": [(FACT, "Bruno")],
}  # fmt: skip
"""What a Script needs to know of STORY."""
