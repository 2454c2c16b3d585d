"""RAGtrans's training targets: of translations (section 3) and of the CSC tasks (section 4)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final, Literal

from agentsys.prompt import Prompt
from agentsys.roles import Answer, load_prompt
from agentsys.traces import Segment, Target, masked

Task = Literal["ragtrans", "clic", "sket", "clrd"]

STUDENT: Final = load_prompt("ragtrans/translator")
"""The prompt that a student learns to answer: the translator's own."""
PROMPTS: Final[dict[Task, Prompt]] = {
    "ragtrans": STUDENT,
    "sket": STUDENT,
    "clic": load_prompt("ragtrans/clic"),
    "clrd": load_prompt("ragtrans/clrd"),
}
"""The prompt that a student learns to answer, by task."""


def rated_target(inputs: Mapping[str, str], translation: str, scores: dict[str, float]) -> Target:
    """A translation as the answer to the translator's prompt; the rating before it is not learned (section 3)."""
    return Target("sft", _student_segments("ragtrans", inputs, translation), scores=scores)


def translator_targets(answer: Answer[str], scores: dict[str, float]) -> list[Target]:
    """The translator's own call, unless it was truncated at the token limit."""
    if answer.call.finish == "length":
        return []
    key = answer.call.key
    return [Target("role", (Segment("user", False, prompt=key), Segment("assistant", True, call=key)), scores=scores)]


def task_targets(task: Task, inputs: Mapping[str, str], answer: str, *, learn_knowledge: bool) -> list[Target]:
    """The targets of a task's record: the answer is learned, the prompt is not.

    With `learn_knowledge` a second target of kind `role` is SKET's knowledge itself, the call `knowledge`.
    """
    targets = [Target("sft", _student_segments(task, inputs, answer))]
    if learn_knowledge:
        segments = Segment("user", False, prompt="knowledge"), Segment("assistant", True, call="knowledge")
        targets.append(Target("role", segments))
    return targets


def _student_segments(task: Task, inputs: Mapping[str, str], answer: str) -> tuple[Segment, ...]:
    prompt = masked(PROMPTS[task].render(inputs))
    return (*prompt, Segment("assistant", True, text=answer.strip()))
