"""DeepRAG's text protocol (section 3.2): a retrieval narrative as one text, and the rewards of its answers.

    Follow up: <q_1>
    Let's search the question in Wikipedia.          (only if delta_1 = retrieve)
    Context:
    [1] Title: <title> Text: <passage>
    Intermediate answer: <ia_1>
    Follow up: <q_2>
    Intermediate answer: <ia_2>
    So the final answer is: <answer long>...</answer long><answer short>...</answer short>

A mark counts only at the beginning of a line. Each passage, answer and sub-query is folded into one line, and a passage
line begins with its number: no data can begin a line with a mark.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Final, NotRequired

from typing_extensions import TypedDict

from agentsys.knowledge.context import PassageDict
from agentsys.metrics.answers import Match, is_correct
from agentsys.metrics.golds import read_golds as read_golds
from agentsys.prompt import one_line

FOLLOW_UP: Final = "Follow up:"
"""Mark of sigma = continue."""
SEARCH: Final = "Let's search the question in Wikipedia."
"""Mark of delta = retrieve: the whole sentence, not its first word."""
ANSWER: Final = "Intermediate answer:"
"""Mark of delta = parametric where it directly follows the sub-query."""
FINAL: Final = "So the final answer is:"
"""Mark of sigma = terminate."""

_TAG = r"</?answer (?:long|short)>"
_LONG = re.compile(rf"<answer long>(.*?)(?:{_TAG}|$)", re.DOTALL)
_SHORT = re.compile(rf"<answer short>(.*?)(?:{_TAG}|$)", re.DOTALL)
_TEXT = rf"\s*(?:(?!{_TAG})\S\s*)+"
_WELL_FORMED = re.compile(rf"\s*<answer long>{_TEXT}</answer long>\s*<answer short>{_TEXT}</answer short>\s*")


class AtomicDecision(TypedDict):
    """The atomic decision delta, and the natural log-probabilities of both openings (None: not reported).

    `stated` is False where the model wrote neither opening.
    """

    retrieve: bool
    log_p_retrieve: float | None
    log_p_parametric: float | None
    stated: bool


class NarrativeStep(TypedDict):
    """(q_i, r_i): r_i = [d_i, ia_i] if `retrieved`, else ia_i. `decision` is set where the model was asked for it."""

    sub_query: str
    retrieved: bool
    passages: list[PassageDict]
    answer: str
    decision: NotRequired[AtomicDecision | None]


@dataclass(frozen=True, slots=True)
class FinalAnswer:
    """The final answer o; `well_formed` if both tags are present and closed."""

    long: str
    short: str
    well_formed: bool


def iter_pieces(steps: Sequence[NarrativeStep]) -> Iterator[tuple[str, bool]]:
    """The narrative of s_t as (text, learned): everything but the documents carries loss (appendix B.1, as coded)."""
    for step in steps:
        yield format_follow_up(step["sub_query"]), True
        if step["retrieved"]:
            yield f"{SEARCH}\n", True
            yield format_documents(step["passages"]), False
        yield f"{ANSWER} {one_line(step['answer'])}\n", True


def format_documents(passages: Sequence[PassageDict]) -> str:
    """The documents d_i as numbered lines, one per passage."""
    lines = [f"[{i}] Title: {one_line(p['title'])} Text: {one_line(p['text'])}" for i, p in enumerate(passages, 1)]
    return "\n".join(["Context:", *lines, ""])


def format_narrative(steps: Sequence[NarrativeStep], end: str = "") -> str:
    """The narrative of s_t, followed by the beginning of the next piece."""
    return "".join(text for text, _ in iter_pieces(steps)) + end


def format_follow_up(sub_query: str) -> str:
    """The line of the sub-query q_i."""
    return f"{FOLLOW_UP} {one_line(sub_query)}\n"


def format_final_answer(answer: FinalAnswer) -> str:
    """The last line of a narrative."""
    long, short = one_line(answer.long), one_line(answer.short)
    return f"{FINAL} <answer long>{long}</answer long><answer short>{short}</answer short>"


def parse_final_answer(text: str) -> FinalAnswer:
    """Parse o from the text after the mark of the end. Without tags the whole text is both answers."""
    bare = one_line(re.sub(_TAG, " ", text))
    long, short = _LONG.search(text), _SHORT.search(text)
    return FinalAnswer(
        one_line(long[1]) if long else bare,
        one_line(short[1]) if short else bare,
        _WELL_FORMED.fullmatch(text) is not None,
    )


def count_retrievals(steps: Sequence[NarrativeStep]) -> int:
    """T(s_t), the retrieval cost."""
    return sum(step["retrieved"] for step in steps)


def reward(answer: str, golds: Sequence[str], retrievals: int, well_formed: bool, match: Match = "exact") -> float:
    """The reward of the online variant (section 5.3, appendix C.5).

    A correct answer is worth 1, less 0.1 per retrieval (at most 0.5). A wrong one is worth 0.1 if it is well formed,
    else 0.
    """
    if is_correct(answer, golds, match):
        return 1 - 0.1 * min(5, retrievals)
    return 0.1 if well_formed else 0.0


def completion_reward(completions: Sequence[Any], answers: Sequence[Sequence[str]], **_: Any) -> list[float]:
    """`reward` of whole narratives, as TRL calls it: `GRPOTrainer(reward_funcs=completion_reward, ...)`.

    A completion is a text, or for chat prompts a list of messages. `answers` is the column of gold answers. Marks in
    retrieved passages do not count.
    """
    rewards = []
    for completion, golds in zip(completions, answers, strict=True):
        text = completion if isinstance(completion, str) else "".join(message["content"] for message in completion)
        lines = text.splitlines()
        retrievals = sum(line.strip() == SEARCH for line in lines)
        ends = [line.removeprefix(FINAL) for line in lines if line.startswith(FINAL)]
        answer = parse_final_answer(ends[-1]) if ends else FinalAnswer("", "", False)
        rewards.append(reward(answer.short, golds, retrievals, answer.well_formed))
    return rewards
