"""DeepRAG's text protocol (Guan et al. 2025, arXiv 2502.01142, section 3.2): a retrieval narrative as one text.

    Follow up: <q_1>
    Let's search the question in Wikipedia.          (only if delta_1 = retrieve)
    Context:
    [1] Title: <title> Text: <passage>
    Intermediate answer: <ia_1>
    Follow up: <q_2>
    Intermediate answer: <ia_2>
    So the final answer is: <answer long>...</answer long><answer short>...</answer short>

A mark counts at the beginning of a line only, and a passage is one line that begins with its number: whatever text it
carries, it stays data.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, NotRequired

from typing_extensions import TypedDict

from agentsys.knowledge.context import Passage
from agentsys.metrics.answers import Match, is_correct
from agentsys.prompt import one_line

FOLLOW_UP: Final = "Follow up:"
"""sigma = continue."""
SEARCH: Final = "Let's search the question in Wikipedia."
"""delta = retrieve. The whole sentence is the mark, not its first word."""
ANSWER: Final = "Intermediate answer:"
"""delta = parametric, where it follows the sub-query at once."""
FINAL: Final = "So the final answer is:"
"""sigma = terminate."""

_TAG = r"</?answer (?:long|short)>"
_LONG = re.compile(rf"<answer long>(.*?)(?:{_TAG}|$)", re.DOTALL)
_SHORT = re.compile(rf"<answer short>(.*?)(?:{_TAG}|$)", re.DOTALL)
_TEXT = rf"\s*(?:(?!{_TAG})\S\s*)+"
_WELL_FORMED = re.compile(rf"\s*<answer long>{_TEXT}</answer long>\s*<answer short>{_TEXT}</answer short>\s*")


class Decision(TypedDict):
    """The atomic decision delta, and what the model thought of both openings (natural logarithms; None: not told)."""

    retrieve: bool
    log_p_retrieve: float | None
    log_p_parametric: float | None
    stated: bool


class Step(TypedDict):
    """(q_i, r_i): r_i = [d_i, ia_i] if `retrieved`, else ia_i. `decision` is there where the model was asked for it."""

    sub_query: str
    retrieved: bool
    passages: list[Passage]
    answer: str
    decision: NotRequired[Decision | None]


@dataclass(frozen=True, slots=True)
class Conclusion:
    """The final answer o; `well_formed` if both tags are there and closed."""

    long: str
    short: str
    well_formed: bool


def pieces(steps: Sequence[Step]) -> Iterator[tuple[str, bool]]:
    """The narrative of s_t as (text, learned): everything but the documents carries loss (appendix B.1, as coded)."""
    for step in steps:
        yield f"{FOLLOW_UP} {one_line(step['sub_query'])}\n", True
        if step["retrieved"]:
            yield f"{SEARCH}\n", True
            yield context(step["passages"]), False
        yield f"{ANSWER} {one_line(step['answer'])}\n", True


def context(passages: Sequence[Passage]) -> str:
    """The documents d_i, numbered, a line each."""
    lines = [f"[{i}] Title: {one_line(p['title'])} Text: {one_line(p['text'])}" for i, p in enumerate(passages, 1)]
    return "\n".join(["Context:", *lines, ""])


def narrative(steps: Sequence[Step], end: str = "") -> str:
    """The narrative so far, and the beginning of what comes next."""
    return "".join(text for text, _ in pieces(steps)) + end


def asked(sub_query: str) -> str:
    """The line that asks q_i."""
    return f"{FOLLOW_UP} {one_line(sub_query)}\n"


def final(conclusion: Conclusion) -> str:
    """The last line."""
    long, short = one_line(conclusion.long), one_line(conclusion.short)
    return f"{FINAL} <answer long>{long}</answer long><answer short>{short}</answer short>"


def parse_final(text: str) -> Conclusion:
    """o from what follows the mark of the end. Without tags the whole text is both answers."""
    bare = one_line(re.sub(_TAG, " ", text))
    long, short = _LONG.search(text), _SHORT.search(text)
    return Conclusion(
        one_line(long[1]) if long else bare,
        one_line(short[1]) if short else bare,
        _WELL_FORMED.fullmatch(text) is not None,
    )


def retrievals(steps: Sequence[Step]) -> int:
    """T(s_t), the retrieval cost."""
    return sum(step["retrieved"] for step in steps)


def golds(record: Mapping[str, Any]) -> list[str]:
    """The right answers of a record: `answer`, `answers` and `answer_aliases`, whichever it has."""
    found: list[Any] = []
    for name in ("answer", "answers", "answer_aliases"):
        value = record.get(name) or ()
        found += value if isinstance(value, list | tuple) else [value]
    return [str(text) for text in found if isinstance(text, str | int | float) and str(text)]


def reward(answer: str, gold: Sequence[str], searches: int, well_formed: bool, match: Match = "exact") -> float:
    """The reward of the online variant (section 5.3, appendix C.5): a right answer, less 0.1 a retrieval up to five.

    A wrong answer is worth 0.1 if it is well formed, else 0.
    """
    if is_correct(answer, gold, match):
        return 1 - 0.1 * min(5, searches)
    return 0.1 if well_formed else 0.0


def completion_reward(completions: Sequence[Any], answers: Sequence[Sequence[str]], **_: Any) -> list[float]:
    """`reward` of whole narratives, in the form of TRL: `GRPOTrainer(reward_funcs=completion_reward, ...)`.

    A completion is a text, or for chat prompts a list of messages. `answers` is the column of gold answers. What stands
    in retrieved passages counts for nothing.
    """
    found = []
    for completion, gold in zip(completions, answers, strict=True):
        text = completion if isinstance(completion, str) else "".join(message["content"] for message in completion)
        lines = text.splitlines()
        searches = sum(line.strip() == SEARCH for line in lines)
        ends = [line.removeprefix(FINAL) for line in lines if line.startswith(FINAL)]
        conclusion = parse_final(ends[-1]) if ends else Conclusion("", "", False)
        found.append(reward(conclusion.short, gold, searches, conclusion.well_formed))
    return found
