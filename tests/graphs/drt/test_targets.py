"""DRT's stage C: the steps that are kept, the thought that quotes them, and the training targets."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from tests.support.drt import TEXT, TEXTS, Runner, call_of, result_of, script_rules


@pytest.mark.parametrize(
    ("scores", "kept"),
    [
        ((50, 60, 60, 55, 70), [0, 1, 3, 4]),
        ((60, 50, 60), [0, 1, 2]),
        ((50, 50, 50), [0]),
        ((50, 60, 60, 60), [0, 1]),
        ((80, 70, 60), [0, 1, 2]),
        ((50, 60, 60, 50), [0, 1, 3]),
    ],
)
def test_a_step_with_an_unchanged_score_is_dropped(run: Runner, scores: Sequence[int], kept: list[int]) -> None:
    assert result_of(run(script_rules(scores), max_rounds=len(scores) - 1))["kept"] == kept


@pytest.mark.parametrize(
    ("scores", "min_steps", "count_draft", "dropped"),
    [
        ((50, 60, 70), 3, True, None),
        ((50, 60, 70), 3, False, "2 of 3 steps left"),
        ((50, 60, 70, 80), 3, False, None),
        ((50, 60, 60), 3, True, "2 of 3 steps left"),
        ((50, 60, 60), 2, True, None),
        ((50, 50), 1, False, "0 of 1 steps left"),
    ],
)
def test_both_readings_of_n(
    run: Runner, scores: Sequence[int], min_steps: int, count_draft: bool, dropped: str | None
) -> None:
    knobs = {"max_rounds": len(scores) - 1, "min_steps": min_steps, "count_draft": count_draft}
    trace = run(script_rules(scores), **knobs)
    assert (trace.outcome, trace.reason) == ("dropped" if dropped else "kept", dropped)
    assert ("narrator" in {call.role for call in trace.calls}) == (dropped is None)
    assert bool(trace.targets) == (dropped is None)


@pytest.mark.parametrize(
    ("scores", "best"), [((50, 80, 60), 1), ((80, 70, 60), 0), ((50, 60, 70), 2), ((80, 60, 80), 0)]
)
def test_the_answer_is_the_best_scored_draft(run: Runner, scores: Sequence[int], best: int) -> None:
    trace = run(script_rules(scores), max_rounds=2)
    assert result_of(trace)["trans"] == TEXTS[best]
    notes = call_of(trace, "narrate").messages[-1]["content"]
    assert f"Final translation: ⟦{best + 1}⟧" in notes
    assert all(text in notes for text in TEXTS[:3])


def test_a_translation_stands_where_it_is_first_quoted_and_at_the_decision(run: Runner) -> None:
    reply = '“⟦1⟧” is stiff.\n\nThen ⟦ 2 ⟧, better than ⟦1⟧.\n\nAnd "⟦3⟧": it beats ⟦2⟧ and ⟦3⟧.\n\nI keep ⟦3⟧.'
    trace = run(script_rules((50, 60, 70), TEXTS, {"role": "narrator", "replies": [reply]}), max_rounds=2)
    first, second, third = TEXTS[:3]
    assert result_of(trace)["thought"] == (
        f"{first} is stiff.\n\nThen {second}, better than the first translation.\n\n"
        f"And {third}: it beats the second translation and the third translation.\n\nI keep {third}."
    )


def test_a_thought_quotes_kept_steps_only(run: Runner) -> None:
    trace = run(script_rules((50, 60, 60, 70)), max_rounds=3)
    assert result_of(trace)["kept"] == [0, 1, 3]
    assert TEXTS[3] in result_of(trace)["thought"]
    assert TEXTS[2] not in result_of(trace)["thought"]


@pytest.mark.parametrize(
    "wrong",
    [
        "Only ⟦1⟧.\n\nIt is stiff.\n\nIt is not.\n\nAnd ⟦3⟧.",
        "⟦1⟧,\n\n⟦2⟧,\n\n⟦3⟧\n\nand ⟦4⟧.",
        "No quote.\n\nNo quote.\n\nNo quote.\n\nNo quote at all.",
        "⟦1⟧,\n\n⟦3⟧,\n\nthen\n\nI decide on ⟦2⟧.",
        "⟦1⟧,\n\n⟦2⟧\n\n⟦3⟧ = copied from the notes\n\nI keep ⟦3⟧",
        "I try ⟦1⟧.\n\nThen ⟦2⟧.\n\nI keep ⟦3⟧.",
        "I try ⟦1⟧.\n\n- Then ⟦2⟧.\n\nIt is better.\n\nI keep ⟦3⟧.",
    ],
)
def test_a_thought_with_wrong_quotes_is_asked_for_again_and_then_dropped(run: Runner, wrong: str) -> None:
    bad_thought = {"role": "narrator", "key": "narrate", "replies": [wrong]}
    trace = run(script_rules((50, 60, 70), TEXTS, bad_thought), max_rounds=2)
    assert trace.outcome == "kept"
    assert call_of(trace, "narrate").error
    second_prompt = call_of(trace, "narrate#1").messages
    assert "An earlier reply was refused" in second_prompt[-1]["content"]
    assert wrong not in str(second_prompt), "a small model would copy it"
    trace = run(script_rules((50, 60, 70), TEXTS, bad_thought | {"key": "*"}), max_rounds=2)
    assert trace.outcome == "dropped"
    assert str(trace.reason).startswith("no usable thought: ")
    assert "thought" not in result_of(trace)
    assert trace.targets == []


def test_targets_point_at_calls(run: Runner) -> None:
    again = {"role": "refiner", "key": "refine/1#1", "replies": [TEXTS[1]]}
    thought = {"role": "narrator", "replies": ["First ⟦1⟧.\n\nLater ⟦3⟧.\n\nIt is worse.\n\nAfter all ⟦2⟧"]}
    trace = run(script_rules((50, 80, 60), [TEXTS[0], TEXTS[0], TEXTS[2]], again, thought), max_rounds=2)
    texts = {call.key: call.text for call in trace.calls}
    sft, role, step, plain = trace.targets
    assert (sft.kind, role.kind, step.kind, plain.kind) == ("sft", "role", "step", "sft-plain")
    learned = "".join(segment.text or texts[str(segment.call)] for segment in sft.segments if segment.learned)
    result = result_of(trace)
    assert learned == f"<thought>\n{result['thought']}\n</thought>\n<output>\n{result['trans']}\n</output>"
    prompt = [segment for segment in sft.segments if not segment.learned]
    assert [segment.role for segment in prompt] == ["system", "user"]
    assert TEXT in str(prompt[1].text)
    assert [segment.prompt or segment.call for segment in role.segments] == ["refine/1#1", "refine/1#1"]
    assert step.rejected is not None
    pair = [[segment.prompt or segment.call for segment in side] for side in (step.segments, step.rejected)]
    assert pair == [["draft", "refine/1#1"], ["draft", "draft"]], "after the same prompt, the better draft"
    assert dict(step.scores) == {"chosen": 80, "rejected": 50, "margin": 30}
    assert (sft.scores["score"], sft.scores["steps"], sft.scores["gain"]) == (80, 3, 30)
    assert plain.segments[:-1] == sft.segments[: len(prompt)], "the same chat format"
    assert (plain.segments[-1].learned, texts[str(plain.segments[-1].call)]) == (True, result["trans"]), "no thought"
    assert plain.scores == sft.scores and plain.rejected is None
