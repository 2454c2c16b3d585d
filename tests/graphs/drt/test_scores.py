"""DRT's scores: pairwise evaluation in both orders, and the expected value of a score."""

from __future__ import annotations

from tests.support.drt import TEXTS, Runner, call_of, comparer_rules, result_of, script_rules


def test_pairwise_asks_in_both_orders(run: Runner) -> None:
    comparisons = comparer_rules(("second", "first"), ("first", "second"), ("first", "first"))
    trace = run(script_rules((), TEXTS, *comparisons), evaluator="pairwise")
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
        script_rules((), TEXTS, *comparer_rules(("second", "first"))), "Meeting", evaluator="pairwise", max_rounds=1
    )
    assert trace.outcome == "dropped"  # it would fail if one comparison waited for the other
    assert [step["score"] for step in result_of(trace)["steps"]] == [0, 1]


def test_the_expected_score_weighs_the_alternatives(run: Runner) -> None:
    stated = run(script_rules((94,)), "Unsure", score="stated")
    assert [step["score"] for step in result_of(stated)["steps"]] == [94]
    expected = run(script_rules((94, 94)), "Unsure", score="expected", max_rounds=1)
    assert [step["score"] for step in result_of(expected)["steps"]] == [87.3, 87.3]  # 2/3 * 90 + 1/3 * 70 + 4
    assert result_of(expected)["stop"] == "max_rounds"


def test_without_alternatives_the_stated_score_stands(run: Runner) -> None:
    assert [step["score"] for step in result_of(run(script_rules((94,)), score="expected"))["steps"]] == [94]
