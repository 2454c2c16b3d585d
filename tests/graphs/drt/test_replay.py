"""graphs/drt/replay.py: which records other settings would keep, from the steps of a trace."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest

from agentsys.graphs.drt.replay import OtherSettings, Rule, in_order_of_writing, other_rules, replay
from tests.support.drt_report import step, steps_of

RULE = Rule(score="stated", max_rounds=3)
CANDIDATES = replace(RULE, refiner="candidates", max_rounds=5)


def test_the_rule_of_a_run_is_in_its_manifest() -> None:
    knobs = {
        "score": "stated", "threshold": 85.0, "max_rounds": 8, "min_steps": 2, "count_draft": False, "score_step": 5.0,
        "refiner": "candidates", "evaluator": "score", "temperature": 1,
    }  # fmt: skip
    rule = Rule.of_run({"fingerprint": {"knobs": knobs}})
    assert rule == Rule("stated", 85.0, 8, 2, False, 5.0, "candidates", "score")
    assert Rule.of_run({}) == Rule() == Rule("expected", 90.0, 3, 3, True, 1.0, "dialogue", "score")


@pytest.mark.parametrize(
    ("scores", "stop", "changes", "verdict"),
    [
        ((50, 70, 95), "threshold", {}, ("kept", 2)),
        ((50, 70, 95), "threshold", {"threshold": 70}, ("dropped", 1)),
        ((50, 70, 95), "threshold", {"threshold": 70, "min_steps": 2}, ("kept", 1)),
        ((50, 70, 95), "threshold", {"threshold": 95}, ("kept", 2)),
        ((50, 70, 95), "threshold", {"threshold": 96}, ("open", 2)),
        ((50, 70, 95), "threshold", {"threshold": 96, "max_rounds": 2}, ("kept", 2)),
        ((50, 60, 70, 80), "max_rounds", {}, ("kept", 3)),
        ((50, 60, 70, 80), "max_rounds", {"max_rounds": 1}, ("dropped", 1)),
        ((50, 60, 70, 80), "max_rounds", {"max_rounds": 4}, ("open", 3)),
        ((50, 60, 70, 80), "max_rounds", {"min_steps": 5}, ("dropped", 3)),
        ((50, 60, 60, 80), "max_rounds", {}, ("kept", 3)),
        ((50, 60, 60, 80), "max_rounds", {"max_rounds": 2}, ("dropped", 2)),
        ((50, 60, 60.4, 80), "max_rounds", {"min_steps": 4}, ("dropped", 3)),
        ((50, 60, 60.4, 80), "max_rounds", {"min_steps": 4, "score_step": 0.1}, ("kept", 3)),
        ((50, 60, 70, 80), "max_rounds", {"min_steps": 4, "count_draft": False}, ("dropped", 3)),
        ((50, 60), "refiner: it repeats an earlier version", {"max_rounds": 8, "min_steps": 2}, ("kept", 1)),
        ((50, 60), "advisor: quote the words", {"threshold": 99}, ("dropped", 1)),
        ((0, 1, 0, 1), "max_rounds", {"evaluator": "pairwise", "threshold": 0}, ("kept", 3)),
    ],
)
def test_a_rule_is_replayed(
    scores: Sequence[float], stop: str, changes: dict[str, Any], verdict: tuple[str, int]
) -> None:
    assert replay(steps_of(*scores), stop, replace(RULE, **changes), "stated") == verdict


def test_the_other_score_is_replayed_where_the_trace_has_it() -> None:
    steps = [step(0, 50, 50, 55.2), step(1, 80, 80, 91.3), step(2, 92, 92, 93)]
    expected = replace(RULE, score="expected")
    assert replay(steps, "threshold", RULE, "stated") == ("kept", 2)
    assert replay(steps, "threshold", expected, "stated") == ("dropped", 1)
    assert replay([step(0, 50, 50), *steps[1:]], "threshold", expected, "stated") == ("open", 0)
    assert replay(steps_of(50, 80, 92), "threshold", expected, "stated") == ("open", 0)
    assert replay(steps_of(50, 80, 92), "threshold", expected, "expected") == ("kept", 2)


def test_candidates_are_replayed_in_the_order_of_writing() -> None:
    """Their traces have them by score; the rounds end with enough different scores, whatever the threshold."""
    written = [step(0, 70), step(1, 50), step(2, 70), step(3, 95), step(4, 60)]
    by_score = sorted(written, key=lambda entry: entry["score"])
    assert in_order_of_writing(by_score) == written
    assert replay(by_score[1:], "enough candidates", CANDIDATES, "stated") == ("kept", 3)
    assert replay(by_score, "enough candidates", replace(CANDIDATES, min_steps=2), "stated") == ("kept", 1)
    assert replay(by_score, "enough candidates", replace(CANDIDATES, min_steps=4), "stated") == ("kept", 4)
    assert replay(by_score, "enough candidates", replace(CANDIDATES, min_steps=5), "stated") == ("open", 4)
    assert replay(by_score, "enough candidates", replace(CANDIDATES, max_rounds=1), "stated") == ("dropped", 1)


def test_repeated_requests_do_not_change_the_order() -> None:
    steps = [{"key": key} for key in ("refine/10", "rewrite/2", "draft#1", "refine/1#2")]
    assert [entry["key"] for entry in in_order_of_writing(steps)] == ["draft#1", "refine/1#2", "rewrite/2", "refine/10"]


def test_one_setting_changes_at_a_time() -> None:
    names = [name for name, _ in other_rules(RULE)]
    assert names[:2] == ["this run", "score expected"]
    assert {"threshold 85", "threshold 95", "max rounds 2", "max rounds 8", "min steps 2", "min steps 4"} < {*names}
    assert not {"threshold 90", "max rounds 3", "min steps 3"} & {*names}  # the run's own
    assert not [name for name, _ in other_rules(CANDIDATES) if name.startswith("threshold")]
    pairwise = [name for name, _ in other_rules(replace(RULE, evaluator="pairwise"))]
    assert not [name for name in pairwise if name.startswith(("threshold", "score"))]


def test_records_are_counted_by_rule() -> None:
    settings = OtherSettings(RULE)
    settings.add(steps_of(50, 70, 95), "threshold")
    settings.add(steps_of(50, 60, 70, 80), "max_rounds")
    settings.add(steps_of(50, 50, 60, 91), "threshold")
    counts = settings.counts
    assert counts["this run"] == {"kept": 3, "dropped": 0, "open": 0, "rounds": 8}
    assert counts["threshold 70"] == {"kept": 2, "dropped": 1, "open": 0, "rounds": 6}
    assert counts["threshold 95"] == {"kept": 3, "dropped": 0, "open": 0, "rounds": 8}
    assert counts["max rounds 2"] == {"kept": 2, "dropped": 1, "open": 0, "rounds": 6}
    assert counts["max rounds 5"] == {"kept": 2, "dropped": 0, "open": 1, "rounds": 8}
    assert counts["score expected"] == {"kept": 0, "dropped": 0, "open": 3, "rounds": 0}
    [own, *others] = settings.data()
    assert "score expected" not in [rule["name"] for rule in others]  # no trace has that score
    assert (own["name"], own["threshold"], own["kept"]) == ("this run", 90.0, 3)
