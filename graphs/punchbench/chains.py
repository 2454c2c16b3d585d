"""SC-CoQ: the chains of questions, from simple to complex, and what a strategy asks of one pair (section 4).

The last question of a chain is scored. Those before it stand in the conversation with the model's own replies. A
conversation is a prefix of questions, so strategies and chains that begin alike share their calls.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, Literal

Strategy = Literal["zero_shot", "few_shot", "cot", "sc_coq"]
STRATEGIES: Final[tuple[Strategy, ...]] = ("zero_shot", "few_shot", "cot", "sc_coq")
Mode = Literal["plain", "few_shot", "cot"]
MODES: Final[Mapping[Strategy, Mode]] = {"zero_shot": "plain", "few_shot": "few_shot", "cot": "cot", "sc_coq": "plain"}
"""The prompt of each strategy: zero-shot is a chain of one question."""

OTHER: Final = "other/yes_no"
"""The reasoning question of another pair, drawn at random: one of the same pair would give its label away."""
CHAINS: Final[Mapping[str, tuple[str, ...]]] = {
    "perception/yes_no": (OTHER,),
    "perception/matching": ("reasoning/yes_no", "perception/yes_no", "reasoning/matching"),
    "perception/multi_option": ("perception/yes_no", "perception/matching"),
    "reasoning/yes_no": ("perception/yes_no",),
    "reasoning/matching": ("perception/yes_no", "reasoning/yes_no", "perception/matching"),
    "reasoning/generation": ("reasoning/yes_no", "reasoning/matching"),
}
"""The questions before each one: intra-task for multi-option and generation, inter-task for the others."""


@dataclass(frozen=True, slots=True)
class Conversation:
    """Questions in order, of which the last one is asked and the others have been, in the same mode."""

    mode: Mode
    questions: tuple[str, ...]

    @property
    def key(self) -> str:
        """The key of its call."""
        return f"{self.mode}/{'+'.join(name.replace('/', '_') for name in self.questions)}"

    @property
    def earlier(self) -> list[Conversation]:
        """The conversations whose replies it contains, in order."""
        return [Conversation(self.mode, self.questions[:i]) for i in range(1, len(self.questions))]


def conversation_of(strategy: Strategy, target: str, available: Iterable[str]) -> Conversation:
    """What a strategy asks to score a question. Questions of its chain that the pair does not have are left out."""
    names = set(available)
    chain = [name for name in CHAINS[target] if name in names] if strategy == "sc_coq" else []
    return Conversation(MODES[strategy], (*chain, target))


def plan_conversations(strategies: Sequence[Strategy], available: Sequence[str]) -> list[Conversation]:
    """All conversations that the strategies need for the questions of a pair, each once, shorter ones first.

    18 for zero-shot and SC-CoQ on a pair with all six questions and one of another pair, in place of 24.
    """
    needed: dict[Conversation, None] = {}
    for strategy in strategies:
        for target in available:
            if target in CHAINS:
                last = conversation_of(strategy, target, available)
                needed |= dict.fromkeys([*last.earlier, last])
    return sorted(needed, key=lambda conversation: len(conversation.questions))


def option_in(text: str, options: Sequence[str]) -> str:
    """The option that a reply names: the last of them that stands alone in it; "" if none does."""

    names = "|".join(map(re.escape, sorted(options, key=len, reverse=True)))
    ignored = re.IGNORECASE if len(options[0]) > 1 else 0  # "a" is an article
    found = re.findall(rf"(?<![\w'])({names})(?![\w'])", text, ignored)
    return next((option for option in options if found and option.lower() == found[-1].lower()), "")


def options_of(question: Mapping[str, Any]) -> list[str]:
    """The possible answers of a question: Yes and No, or letters; none of a generation."""
    if question["format"] == "yes_no":
        return ["Yes", "No"]
    return list("ABCD"[: len(question["options"])])
