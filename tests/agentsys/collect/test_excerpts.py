"""Short forms of a record: its line, and its fields in full."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pytest

from agentsys.collect import excerpts
from agentsys.collect.excerpts import describe_record, full_texts, last_score, main_text, output_text, shorten
from agentsys.traces import Outcome, Trace
from tests.support.calls import make_trace

SENTENCE = "月亮像一把镰刀。"


def trace_of(outcome: Outcome = "kept", reason: str | None = None, **result: Any) -> Trace:
    return make_trace(outcome=outcome, reason=reason, input={"id": "r1", "text": SENTENCE}, result=result or None)


@dataclass
class Step:
    score: float


def test_the_line_of_a_translation_has_outcome_score_text_and_translation() -> None:
    trace = trace_of(text=SENTENCE, trans="The moon is a sickle.", steps=[{"score": 40}, {"score": 84.25}])
    assert describe_record(trace) == "r1 kept, score 84.25: 月亮像一把镰刀。 → The moon is a sickle."


def test_the_line_of_a_dropped_or_failed_record_has_the_reason() -> None:
    assert describe_record(trace_of("dropped", "equal scores", trans="x")) == (
        "r1 dropped (equal scores): 月亮像一把镰刀。 → x"
    )
    assert describe_record(trace_of("failed", "no reply\x1b[2J")) == ("r1 failed (no reply\\x1b[2J): 月亮像一把镰刀。")


def test_texts_are_cut_after_sixty_characters_and_stay_in_one_line() -> None:
    assert shorten("a\n\nb  c") == "a b c"
    assert shorten("x" * 60) == "x" * 60
    assert shorten("x" * 61) == "x" * 59 + "…"
    assert len(describe_record(trace_of(trans="y" * 999))) < 100


def test_the_score_is_that_of_the_last_step_in_any_form() -> None:
    assert last_score(trace_of(steps=[Step(1), Step(72.5)])) == 72.5
    assert last_score(trace_of(steps=[{"score": 7}])) == 7
    for steps in ([], None, "text", [{"score": "high"}], [Step]):
        assert last_score(trace_of(steps=steps)) is None
    assert last_score(trace_of("failed")) is None


def test_other_systems_show_their_first_text() -> None:
    assert main_text({"id": "q7", "n": 3, "question": "Who?", "context": "He."}) == "Who?"
    assert main_text({"context": "He.", "text": "She."}) == "She."
    assert main_text({"n": 1}) == main_text({"text": " "}) == ""
    trace = trace_of(copy=SENTENCE, count=2, answer="sickle", trans="")
    assert output_text(trace) == "sickle"  # not the text of the input again


def test_a_record_in_full_has_its_text_and_the_fields_of_its_system(monkeypatch: pytest.MonkeyPatch) -> None:
    trace = trace_of(text=SENTENCE, keywords=[], stop="best", thought="Hm.", trans="T.")
    assert full_texts(trace) == {"text": SENTENCE, "trans": "T.", "thought": "Hm."}
    other = trace_of(a="1", b="2", c="3", d="4")
    assert list(full_texts(other)) == ["text", "a", "b", "c"]
    monkeypatch.setattr(excerpts, "FIELD_CHARS", 4)
    assert full_texts(trace_of(trans="abcdef"))["trans"] == "abcd ... (6 characters)"
