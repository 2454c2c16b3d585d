"""CRAT's training targets: the final translation of each sentence."""

from __future__ import annotations

from typing import Final

from agentsys.graphs.crat.state import Knobs, SentenceTranslation
from agentsys.roles import load_prompt
from agentsys.traces import Segment, Target, masked

STUDENT: Final = load_prompt("translate/translator")
"""The plain translator's prompt, which a student learns to answer without any knowledge in it."""


def make_targets(context: Knobs, text: str, rendered: SentenceTranslation) -> list[Target]:
    """The final translation as a target twice: from the source alone, and from the source with the entries.

    The `role` target pairs the translator's own request with the final translation, which a repair may have written.
    """
    checked = len(rendered["checked"])
    term_accuracy = 100.0 * (checked - len(rendered["left"])) / checked if checked else 100.0
    scores = {"score": term_accuracy, "terms": float(checked), "repaired": float(rendered["repaired"])}
    answer = Segment("assistant", True, call=rendered["key"])
    prompt = masked(STUDENT.render({"text": text, **context.languages}))
    request = Segment("user", False, prompt=rendered["asked"])
    return [Target("sft", (*prompt, answer), scores=scores), Target("role", (request, answer), scores=scores)]
