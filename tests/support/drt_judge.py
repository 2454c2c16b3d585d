"""A scripted evaluator and comparer: scores and preferences by translation."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

from agentsys.models.errors import ModelError
from agentsys.models.scripted import ScriptedChatModel
from agentsys.models.wire import Reply
from tests.support.toys import evaluation

SCORES: Mapping[str, Mapping[int, float]] = {
    "A1": {90: 0.75, 50: 0.25}, "A2": {50: 1.0},
    "B1": {70: 0.75, 90: 0.25}, "B2": {70: 1.0},
    "C1": {50: 0.75, 90: 0.25}, "C2": {70: 0.75, 50: 0.25},
    "D1": {90: 1.0}, "D2": {80: 1.0},
}  # fmt: skip
"""Translation -> the numbers that the evaluator may state, with their probabilities; it states the likeliest."""
PREFERENCES = {("A1", "A2"): "first", ("A2", "A1"): "second", ("D1", "D2"): "second", ("D2", "D1"): "first"}
"""(first, second) -> verdict; "first" for all other pairs."""


class Judge(ScriptedChatModel):
    """Reports a score as one token with its alternatives. A translation that contains "?" has no usable reply."""

    def __init__(self, **settings: Any) -> None:
        super().__init__(respond=self._respond, **settings)

    @staticmethod
    def _respond(messages: Sequence[Mapping[str, Any]], call: dict[str, Any]) -> str:
        shown = str(messages[1]["content"])
        if "?" in shown:
            return "no JSON"
        if call["role"] == "evaluator":
            scores = SCORES[_translations(shown)[0]]
            return evaluation(max(scores, key=lambda score: scores[score]))
        if call["role"] != "comparer":
            raise ModelError(f"nobody asks {call['role']}")
        first, second = _translations(shown)
        return json.dumps({"reason": "so", "better": PREFERENCES.get((first, second), "first")})

    async def complete(self, messages: Sequence[Mapping[str, Any]], **kwargs: Any) -> Reply:
        reply = await super().complete(messages, **kwargs)
        reply.measured = {"seconds": 0.5}
        before, place, _ = reply.text.partition('"score": ')
        if place:
            scores = sorted(SCORES[_translations(str(messages[1]["content"]))[0]].items(), key=lambda item: -item[1])
            reply.top_tokens = [[before + place], [str(number) for number, _ in scores], ["}"]]
            reply.top_logprobs = [[0.0], [math.log(p) for _, p in scores], [0.0]]
        return reply


def _translations(shown: str) -> list[str]:
    """The translations in a prompt, by their names."""
    return re.findall(r"\b[A-D][12]\b", shown)
