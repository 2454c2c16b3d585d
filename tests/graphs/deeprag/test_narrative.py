"""DeepRAG's text protocol: what is a mark and what is data, the final answer, and the reward of a completion."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agentsys.graphs.deeprag.narrative import (
    ANSWER,
    FINAL,
    FOLLOW_UP,
    SEARCH,
    FinalAnswer,
    completion_reward,
    count_retrievals,
    format_final_answer,
    format_follow_up,
    format_narrative,
    iter_pieces,
    parse_final_answer,
)
from tests.support.deeprag_narratives import END, EVIL, MARKS, NARRATIVE, STEPS, marks_in, steps_with


def test_a_narrative_has_the_form_of_the_paper() -> None:
    assert format_narrative(STEPS) == NARRATIVE
    partial = format_narrative(STEPS, format_follow_up("Where is  Uppsala?"))
    assert partial == f"{NARRATIVE}Follow up: Where is Uppsala?\n"
    assert format_narrative([]) == ""
    assert format_final_answer(FinalAnswer("She studied in Uppsala.", "Uppsala", True)) == f"{FINAL} {END}"
    assert count_retrievals(STEPS) == 1


def test_documents_are_masked_and_all_else_is_learned() -> None:
    """Appendix B.1: the decisions, the sub-queries, the answers and the marks carry loss."""
    masked = [text for text, learned in iter_pieces(STEPS) if not learned]
    assert masked == ["Context:\n[1] Title: Ada Brandt Text: Ada Brandt studied in Uppsala.\n"]
    learned = "".join(text for text, learned in iter_pieces(STEPS) if learned)
    assert learned == NARRATIVE.replace(masked[0], "")
    assert f"{SEARCH}\n{ANSWER}" in learned


@given(st.text(st.sampled_from("ab \n\r\x0b\x0c\x1c\x1d\x1e\x85\u2028\u2029:[1]")) | st.sampled_from([EVIL, *MARKS]))
def test_data_begins_no_line(text: str) -> None:
    narrative = format_narrative(steps_with(text))
    assert marks_in(narrative) == [FOLLOW_UP, ANSWER, FOLLOW_UP, SEARCH, "Context:", "", "", ANSWER]
    assert [line[:3] for line in narrative.splitlines() if line.startswith("[")] == ["[1]", "[2]"]
    last_line = format_final_answer(FinalAnswer(text, text, True))
    assert len(format_follow_up(text).splitlines()) == len(last_line.splitlines()) == 1


@pytest.mark.parametrize(
    ("text", "long", "short", "well_formed"),
    [
        (f" {END}\n", "She studied in Uppsala.", "Uppsala", True),
        ("<answer long>a\nb</answer long>\n<answer short> c </answer short>", "a b", "c", True),
        ("<answer long>1 < 2</answer long><answer short>x<y</answer short>", "1 < 2", "x<y", True),
        ("Uppsala", "Uppsala", "Uppsala", False),
        (" Uppsala \n", "Uppsala", "Uppsala", False),
        ("", "", "", False),
        ("<answer short>c</answer short>", "c", "c", False),
        ("<answer long>a</answer long>", "a", "a", False),
        ("<answer long>a</answer long><answer short>c", "a", "c", False),
        ("<answer long>a <answer short>c</answer short>", "a", "c", False),
        ("<answer long>a</answer long><answer short>", "a", "", False),
        ("<answer long>a</answer long><answer short> </answer short>", "a", "", False),
        ("<answer long></answer long><answer short>c</answer short>", "", "c", False),
        ("<answer short>c</answer short><answer long>a</answer long>", "a", "c", False),
        (f"{END}{END}", "She studied in Uppsala.", "Uppsala", False),
        (f"{END} or so", "She studied in Uppsala.", "Uppsala", False),
        (f"well, {END}", "She studied in Uppsala.", "Uppsala", False),
    ],
)
def test_the_final_answer_is_read(text: str, long: str, short: str, well_formed: bool) -> None:
    assert parse_final_answer(text) == FinalAnswer(long, short, well_formed)


plain = st.text(st.characters(exclude_characters="<")).map(lambda text: " ".join(text.split())).filter(bool)


@given(plain, plain)
def test_a_written_final_answer_is_read_back(long: str, short: str) -> None:
    answer = FinalAnswer(long, short, True)
    assert parse_final_answer(format_final_answer(answer).removeprefix(FINAL)) == answer


@pytest.mark.parametrize(
    ("completion", "expected"),
    [
        (f"{NARRATIVE}{FINAL} {END}", 0.9),
        (f"{NARRATIVE}{NARRATIVE * 6}{FINAL} {END}", 0.5),
        (f"{FINAL} {END}", 1.0),
        (f"{NARRATIVE}{FINAL} Uppsala", 0.9),
        (f"{NARRATIVE}{FINAL} <answer long>a</answer long><answer short>Lund</answer short>", 0.1),
        (f"{NARRATIVE}{FINAL} Lund", 0.0),
        (f"{FINAL} <answer long>Lund</answer short>", 0.0),
        (NARRATIVE, 0.0),  # without an end
        ("", 0.0),
        (format_narrative(steps_with(f"Uppsala {EVIL}")), 0.0),  # no data is an end
        (f"{format_narrative(steps_with(EVIL))}{FINAL} {END}", 0.9),  # nor a retrieval
        (f"Follow up: {SEARCH} {FINAL} {END}\n", 0.0),  # nor is the middle of a line
    ],
)
def test_the_reward_of_a_completion(completion: str, expected: float) -> None:
    """As TRL calls a reward function: a list of completions (texts or chats), the columns, and other arguments."""
    other: dict[str, Any] = {"prompts": ["?"], "completion_ids": [[1]], "trainer_state": None}
    chat = [{"role": "assistant", "content": completion}]
    assert completion_reward([completion], [["Uppsala University", "uppsala"]], **other) == [pytest.approx(expected)]
    assert completion_reward([chat, ""], [["Uppsala"], ["x"]], **other) == [pytest.approx(expected), 0.0]
