"""graphs/punchbench/chains.py: the paper's chains, and each distinct conversation once."""

from __future__ import annotations

import pytest

from agentsys.graphs.punchbench.chains import (
    CHAINS,
    OTHER,
    STRATEGIES,
    Conversation,
    conversation_of,
    option_in,
    plan_conversations,
)
from agentsys.graphs.punchbench.tasks import FILES

ALL = [f"{task}/{format}" for task, format in FILES]


def test_the_chains_are_the_papers() -> None:
    """Section 4: intra-task for multi-option and generation, inter-task for Yes/No and Matching."""
    chains = {name: conversation_of("sc_coq", name, [*ALL, OTHER]).questions for name in ALL}
    assert chains == {
        "perception/yes_no": (OTHER, "perception/yes_no"),
        "perception/matching": ("reasoning/yes_no", "perception/yes_no", "reasoning/matching", "perception/matching"),
        "perception/multi_option": ("perception/yes_no", "perception/matching", "perception/multi_option"),
        "reasoning/yes_no": ("perception/yes_no", "reasoning/yes_no"),
        "reasoning/matching": ("perception/yes_no", "reasoning/yes_no", "perception/matching", "reasoning/matching"),
        "reasoning/generation": ("reasoning/yes_no", "reasoning/matching", "reasoning/generation"),
    }
    assert chains.keys() == CHAINS.keys()


def test_18_calls_in_place_of_24() -> None:
    strategies = ("zero_shot", "sc_coq")
    plan = plan_conversations(strategies, [*ALL, OTHER])
    alone = [conversation_of(s, name, [*ALL, OTHER]) for s in strategies for name in ALL]
    assert (len(plan), sum(len(one.questions) for one in alone)) == (18, 24)
    assert len({one.key for one in plan}) == 18
    done: set[Conversation] = set()
    for one in plan:
        assert done.issuperset(one.earlier), "an earlier reply is there when it is needed"
        done.add(one)


def test_a_pair_without_a_punchline_and_all_strategies() -> None:
    perception = ALL[:3]
    assert len(plan_conversations(("zero_shot", "sc_coq"), perception)) == 5
    assert conversation_of("sc_coq", "perception/matching", perception).questions == (
        "perception/yes_no", "perception/matching",
    )  # fmt: skip
    assert len(plan_conversations(STRATEGIES, [*ALL, OTHER])) == 18 + 6 + 6
    assert plan_conversations(("few_shot",), [OTHER]) == []


@pytest.mark.parametrize(
    ("text", "options", "expected"),
    [
        ("Yes", ["Yes", "No"], "Yes"),
        ("Well. Answer: no.", ["Yes", "No"], "No"),
        ("Yes, at first sight; but No", ["Yes", "No"], "No"),
        ("A joke about B", ["A", "B"], "B"),
        ("a joke", ["A", "B"], ""),
        ("(C)", ["A", "B", "C", "D"], "C"),
        ("**Answer: D.**", ["A", "B", "C", "D"], "D"),
        ("Nobody knows", ["Yes", "No"], ""),
        ("E", ["A", "B", "C", "D"], ""),
    ],
)
def test_the_option_that_a_reply_names(text: str, options: list[str], expected: str) -> None:
    assert option_in(text, options) == expected
