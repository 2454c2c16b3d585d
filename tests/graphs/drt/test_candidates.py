"""DRT with refiner=candidates and short thoughts, as --profile small has them; profiles and examples."""

from __future__ import annotations

from typing import Any

import pytest

from agentsys.graphs.drt.profiles import PROFILES, find_examples
from agentsys.graphs.drt.state import ShortThought, Version
from agentsys.graphs.drt.system import Context
from agentsys.graphs.drt.thought import check_short_thought, check_thought, clean, compose_short_thought
from tests.support.drt import TEXTS, Runner, call_of, result_of, script_rules, small_rules


def small(run: Runner, scores: tuple[int, ...], **knobs: Any) -> Any:
    """A run with candidates and a long thought: the scripted narrator quotes any number of translations."""
    return run([*small_rules(), *script_rules(scores)], refiner="candidates", **knobs)


def test_candidates_are_put_in_the_order_of_their_scores(run: Runner) -> None:
    trace = small(run, (70, 40, 55))
    result = result_of(trace)
    assert [step["score"] for step in result["steps"]] == [40, 55, 70]
    assert [step["translation"] for step in result["steps"]] == [TEXTS[1], TEXTS[2], TEXTS[0]]
    assert [step["key"] for step in result["steps"]] == ["candidate/1", "candidate/2", "draft"]
    assert (result["kept"], result["trans"], result["stop"]) == ([0, 1, 2], TEXTS[0], "enough candidates")
    assert not {"advisor", "refiner"} & {call.role for call in trace.calls}
    assert all("Comment" not in call.messages[-1]["content"] for call in trace.calls if call.role == "evaluator")


def test_feedback_compares_two_given_candidates(run: Runner) -> None:
    trace = small(run, (70, 40, 55))
    feedback = [step["feedback"] for step in result_of(trace)["steps"]]
    assert feedback == ['"二" became "三". It reads better.', '"三" became "一". It reads better.', ""]
    request = call_of(trace, "contrast/0").messages[-1]["content"]
    assert request.index(TEXTS[1]) < request.index(TEXTS[2])


def test_candidates_are_sampled_until_enough_scores_differ(run: Runner) -> None:
    assert result_of(small(run, (40, 40, 40, 55, 70), max_rounds=8))["kept"] == [0, 3, 4]
    trace = small(run, (40, 40, 40, 55), max_rounds=3)
    assert (trace.outcome, trace.reason) == ("dropped", "2 of 3 steps left")
    assert result_of(trace)["stop"] == "max_rounds"
    assert len(result_of(small(run, (40, 50, 60, 70), count_draft=False))["steps"]) == 4
    assert len(result_of(small(run, (95, 50, 60)))["steps"]) == 3, "no threshold ends it"


def test_a_repeated_candidate_is_asked_for_in_other_words(run: Runner) -> None:
    repeats = {"role": "candidate", "key": "candidate/1*", "replies": [TEXTS[0]]}
    trace = run([repeats, *small_rules(), *script_rules((40, 55, 70))], refiner="candidates")
    assert [step["key"] for step in result_of(trace)["steps"]] == ["draft", "rewrite/1", "candidate/2"]
    request = call_of(trace, "rewrite/1").messages[-1]["content"]
    assert TEXTS[0] in request and "Comment" not in request
    stubborn = {"role": "rewriter", "replies": [TEXTS[0]]}
    trace = run([repeats, stubborn, *small_rules(), *script_rules((40,))], refiner="candidates")
    assert result_of(trace)["stop"].startswith("rewriter: it repeats an earlier version")


def test_a_failing_contrast_leaves_the_feedback_empty(run: Runner) -> None:
    empty = {"role": "contrast", "replies": [""]}
    trace = run([empty, *small_rules(), *script_rules((40, 55, 70))], refiner="candidates")
    assert trace.outcome == "kept"
    assert [step["feedback"] for step in result_of(trace)["steps"]] == ["", "", ""]


def test_scores_are_equal_within_the_score_step(run: Runner) -> None:
    scores = (41, 44, 46, 55)
    for step, kept in ((1.0, [0, 1, 2, 3]), (10.0, [0, 2, 3]), (20.0, [0, 3])):
        trace = run(script_rules(scores), score_step=step, min_steps=2, max_rounds=3)
        assert result_of(trace)["kept"] == kept, step


def test_a_short_thought_has_the_translations_between_its_parts(run: Runner) -> None:
    trace = run([*small_rules(), *script_rules((50, 60))], thought="short", min_steps=2, max_rounds=1)
    assert result_of(trace)["thought"] == (
        f"I start.\n\nVersion 1: {TEXTS[0]} It is good.\n\nVersion 2: {TEXTS[1]} It is good.\n\nI keep {TEXTS[1]}"
    )


def test_english_translations_stand_in_quotation_marks() -> None:
    parts = ShortThought(keywords="I start.", versions=[Version(lead="So:", judgement="Good.")], decision="I keep:")
    assert compose_short_thought(parts, ["He ran."], 1) == 'I start.\n\nSo: "He ran." Good.\n\nI keep: "He ran."'


def test_a_short_thought_has_a_version_for_each_translation() -> None:
    version = Version(lead="So:", judgement="Good.")
    parts = ShortThought(keywords="I start.", versions=[version, version], decision="I keep:")
    assert check_short_thought(parts, {"steps": [1, 2]}) is None
    assert check_short_thought(parts, {"steps": [1, 2, 3]}) == "write 3 versions, one for each translation"
    empty = parts.model_copy(update={"decision": " "})
    assert check_short_thought(empty, {"steps": [1, 2]}) == "leave no part empty"


def test_data_holds_no_mark() -> None:
    data = {"text": "⟦1⟧ and [1]", "steps": [{"translation": "⟦2⟧", "score": 5.0}]}
    assert clean(data) == {"text": "[1] and [1]", "steps": [{"translation": "[2]", "score": 5.0}]}
    inputs = {"steps": [1], "decision": 1}
    assert check_thought("A note [7] says so. I keep ⟦1⟧", inputs) is None, "a footnote is no mark"


def test_what_is_left_open_has_the_value_of_the_profile() -> None:
    assert Context() == Context(profile="paper") == Context(profile="auto", score="stated", score_step=1)
    context = Context(max_rounds=2, target_language="French")
    assert (context.refiner, context.score, context.thought) == ("dialogue", "stated", "long")
    small = context.with_default_profile("small")
    assert (small.profile, small.refiner, small.score, small.score_step) == ("small", "candidates", "expected", 0.1)
    assert (small.max_rounds, small.source_language, small.target_language) == (2, "Chinese", "French")
    assert Context(profile="paper").with_default_profile("small").profile == "paper"


def test_candidates_are_not_compared_with_the_draft_before() -> None:
    with pytest.raises(ValueError, match="add refiner dialogue"):
        Context(refiner="candidates", evaluator="pairwise")


@pytest.mark.parametrize("profile", PROFILES.values())
def test_each_profile_has_an_example(profile: Any) -> None:
    [example] = find_examples(profile.source_language, profile.target_language)
    steps = [{"translation": draft} for draft in example["drafts"]]
    assert all(pair["word"] in example["text"] for pair in example["keywords"])
    for contrast, first, second in zip(example["contrasts"], steps, steps[1:], strict=False):
        assert contrast["weak"] in first["translation"] and contrast["better"] in second["translation"]
    inputs = {"steps": steps, "decision": len(steps)}
    assert check_thought(example["thought"], inputs) is None
    assert check_short_thought(ShortThought.model_validate(example["short_thought"]), inputs) is None


def test_a_language_pair_without_an_example_has_none() -> None:
    assert find_examples("English", "German") == []
    assert find_examples("zh", "en") == find_examples("Chinese", "English")
    assert find_examples("a house style", "English") == []
