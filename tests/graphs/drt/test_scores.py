"""DRT's scores: pairwise evaluation in both orders, and the expected value of a score."""

from __future__ import annotations

from typing import Any

from tests.support.drt import TEXTS, Runner, call_of, comparer_rules, result_of, script_rules

DIALOGUE: dict[str, Any] = {
    "refiner": "dialogue", "source_language": "English", "target_language": "Chinese", "max_rounds": 3,
}  # fmt: skip
ADVICE = {"role": "advisor", "replies": ['"译文" is flat; write "新句子".']}
NO_THOUGHT = {"role": "*narrator", "replies": ["I have nothing to say."]}


def test_pairwise_asks_in_both_orders(run: Runner) -> None:
    comparisons = comparer_rules(("second", "first"), ("first", "second"), ("first", "first"))
    trace = run(script_rules((), TEXTS, ADVICE, NO_THOUGHT, *comparisons), evaluator="pairwise", **DIALOGUE)
    assert [step["score"] for step in result_of(trace)["steps"]] == [0, 1, 0, 0]  # won both, lost both, one each
    old_first, new_first = (call_of(trace, f"compare/2/{order}").messages[-1]["content"] for order in (0, 1))
    assert old_first.index(TEXTS[1]) < old_first.index(TEXTS[2])
    assert new_first.index(TEXTS[2]) < new_first.index(TEXTS[1])
    assert result_of(trace)["kept"] == [0, 1, 2]
    assert result_of(trace)["trans"] == TEXTS[1]
    assert result_of(trace)["stop"] == "max_rounds"
    assert "evaluator" not in {call.role for call in trace.calls}


def test_both_orders_are_asked_in_parallel(run: Runner) -> None:
    trace = run(
        script_rules((), TEXTS, ADVICE, *comparer_rules(("second", "first"))),
        "Meeting",
        evaluator="pairwise",
        **{**DIALOGUE, "max_rounds": 1},
    )
    assert trace.outcome == "dropped"  # it would fail if one comparison waited for the other
    assert [step["score"] for step in result_of(trace)["steps"]] == [0, 1]


def test_the_expected_score_weighs_the_alternatives(run: Runner) -> None:
    stated = run(script_rules((94,), TEXTS, ADVICE), "Unsure", score="stated", **DIALOGUE)
    assert [step["score"] for step in result_of(stated)["steps"]] == [94]
    expected = run(script_rules((94, 94), TEXTS, ADVICE), "Unsure", score="expected", **{**DIALOGUE, "max_rounds": 1})
    steps = result_of(expected)["steps"]
    assert [(step["stated"], step["expected"]) for step in steps] == [(94, 87.3)] * 2
    assert [step["score"] for step in steps] == [87.3, 87.3]  # 2/3 * 94 + 1/3 * 74
    assert result_of(expected)["stop"] == "max_rounds"


def test_without_alternatives_the_stated_score_stands(run: Runner) -> None:
    [step] = result_of(run(script_rules((94,), TEXTS, ADVICE), score="expected", **DIALOGUE))["steps"]
    assert (step["score"], step["stated"]) == (94, 94)
    assert "expected" not in step, "the trace says that there was none"
