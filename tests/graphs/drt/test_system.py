"""DRT with scripted models: the rounds of stage B, and other roles, nodes, models, prompts and languages."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import pytest

from agentsys.graphs.drt.state import RefinementStep
from agentsys.graphs.drt.system import DRT, Context
from agentsys.prompt import Prompt
from agentsys.roles import Role
from agentsys.systems import System, ask, role_options
from tests.support.drt import (
    TEXT,
    TEXTS,
    Runner,
    advice,
    call_of,
    comparer_rules,
    compile_drt,
    result_of,
    script_rules,
    small_rules,
)
from tests.support.toys import evaluation, write_lines


@pytest.mark.parametrize(
    ("scores", "knobs", "stop", "rounds"),
    [
        ((50, 91), {}, "threshold", 1),
        ((90,), {}, "threshold", 0),
        ((89, 90), {}, "threshold", 1),
        ((50, 60, 70, 80), {}, "max_rounds", 3),
        ((50, 60), {"max_rounds": 1}, "max_rounds", 1),
        ((50,), {"max_rounds": 0}, "max_rounds", 0),
        ((70,), {"threshold": 65}, "threshold", 0),
    ],
)
def test_rounds_end_at_the_threshold_or_the_maximum(
    run: Runner, scores: Sequence[int], knobs: dict[str, Any], stop: str, rounds: int
) -> None:
    trace = run(script_rules(scores), **knobs)
    result = result_of(trace)
    assert result["stop"] == stop
    assert [step["score"] for step in result["steps"]] == list(scores)
    assert [step["translation"] for step in result["steps"]] == TEXTS[: rounds + 1]
    assert [step["feedback"] for step in result["steps"]] == [advice(k) for k in range(rounds + 1)]
    roles = [call.role for call in trace.calls]
    assert (roles.count("refiner"), roles.count("advisor"), roles.count("evaluator")) == (
        rounds,
        rounds + 1,
        rounds + 1,
    )


def test_the_translator_sees_the_dialogue(run: Runner) -> None:
    trace = run(script_rules((50, 60, 95)))
    system, *turns = call_of(trace, "refine/2").messages
    assert system["role"] == "system"
    assert [turn["role"] for turn in turns] == ["user", "assistant", "user", "assistant", "user"]
    assert TEXT in turns[0]["content"]
    assert "like = 像" in turns[0]["content"]
    assert [turn["content"] for turn in turns[1::2]] == TEXTS[:2]
    assert [turn["content"].splitlines()[0] for turn in turns[2::2]] == [advice(0), advice(1)]
    assert turns[0] == call_of(trace, "draft").messages[-1]  # the dialogue continues the prompt of the first draft


def test_advice_and_score_are_about_the_latest_translation(run: Runner) -> None:
    trace = run(script_rules((50, 60, 95)))
    advisor_prompt, evaluator_prompt = (
        call_of(trace, key).messages[-1]["content"] for key in ("advise/1", "evaluate/1")
    )
    assert TEXTS[1] in advisor_prompt
    assert TEXTS[0] not in advisor_prompt
    assert TEXTS[1] in evaluator_prompt
    assert "advice 1" in evaluator_prompt
    assert "advice 0" not in evaluator_prompt


def test_key_words_outside_the_sentence_are_left_out(run: Runner) -> None:
    assert result_of(run(script_rules((95,))))["keywords"] == [{"word": "like", "translation": "像"}]
    outside = {"role": "keywords", "replies": ['{"keywords": [{"word": "sun", "translation": "太阳"}]}']}
    trace = run(script_rules((95,), TEXTS, outside))
    assert trace.outcome == "failed"
    assert "copy the words from the sentence" in str(trace.reason)


@pytest.mark.parametrize("reply", ['{"reason": "far too good", "score": 101}', '{"reason": "bad", "score": -1}', "80"])
def test_an_invalid_score_is_asked_for_again(run: Runner, reply: str) -> None:
    wrong = {"role": "evaluator", "key": "evaluate/0", "replies": [reply]}
    right = {"role": "evaluator", "key": "evaluate/0#1", "replies": [evaluation(95)]}
    trace = run(script_rules((), TEXTS, wrong, right))
    assert [step["score"] for step in result_of(trace)["steps"]] == [95]
    assert "score" in str(call_of(trace, "evaluate/0").error) or "JSON" in str(call_of(trace, "evaluate/0").error)
    always = run(script_rules((), TEXTS, wrong | {"key": "*"}))
    assert (always.outcome, always.result) == ("failed", None)
    assert "no usable reply in 3 attempts" in str(always.reason)


def test_a_refinement_that_repeats_is_asked_for_again(run: Runner) -> None:
    again = {"role": "refiner", "key": "refine/1#1", "replies": [TEXTS[1]]}
    trace = run(script_rules((50, 95), [TEXTS[0], TEXTS[0]], again))
    assert [step["key"] for step in result_of(trace)["steps"]] == ["draft", "refine/1#1"]
    assert "repeats" in str(call_of(trace, "refine/1").error)


def test_a_refiner_that_fails_ends_the_rounds(run: Runner) -> None:
    stubborn = {"role": "re*", "key": "re*/2*", "replies": [TEXTS[0]]}
    trace = run(script_rules((50, 60), TEXTS, stubborn), min_steps=2)
    assert trace.outcome == "kept"
    assert result_of(trace)["stop"].startswith("rewriter: it repeats")
    assert [step["translation"] for step in result_of(trace)["steps"]] == TEXTS[:2]
    short = {"role": "re*", "key": "re*/1*", "replies": ["译"]}
    assert result_of(run(script_rules((50,), TEXTS, short)))["stop"].startswith(
        "rewriter: it is not the whole sentence"
    )


def test_a_dialogue_that_repeats_itself_is_asked_in_one_turn(run: Runner) -> None:
    repeats = {"role": "refiner", "key": "refine/1*", "replies": [TEXTS[0]]}
    rewrite = {"role": "rewriter", "key": "rewrite/1", "replies": [TEXTS[1]]}
    trace = run(script_rules((50, 95), TEXTS, repeats, rewrite), min_steps=2)
    assert [step["key"] for step in result_of(trace)["steps"]] == ["draft", "rewrite/1"]
    request = call_of(trace, "rewrite/1").messages
    assert [message["role"] for message in request] == ["system", "user"]
    assert TEXTS[0] in request[1]["content"] and advice(0) in request[1]["content"]


def test_an_advisor_without_quotations_ends_the_rounds(run: Runner) -> None:
    vague = {"role": "advisor", "key": "advise/1*", "replies": ["It could be better."]}
    trace = run(script_rules((50, 60), TEXTS, vague), min_steps=2)
    assert result_of(trace)["stop"] == ("advisor: quote the words of the translation that you mean, in quotation marks")
    assert [step["score"] for step in result_of(trace)["steps"]] == [50, 60], "the last draft is still scored"
    assert "Comment" not in call_of(trace, "evaluate/1").messages[-1]["content"]


def test_a_sentence_without_a_usable_draft_is_dropped(run: Runner) -> None:
    english = {"role": "draft", "replies": ["The lamp 像月亮 shone."]}
    trace = run(script_rules((), TEXTS, english))
    assert trace.outcome == "dropped"
    assert str(trace.reason).startswith("no usable draft: it leaves ")


def test_a_repeated_translation_keeps_its_score(run: Runner) -> None:
    careless = compile_drt(DRT(refiner=Role("drt/refiner")))  # without the check
    trace = run(script_rules((50, 60), [TEXTS[0], TEXTS[1], TEXTS[0]]), drt=careless, max_rounds=2)
    assert [step["score"] for step in result_of(trace)["steps"]] == [50, 60, 50]
    assert result_of(trace)["steps"][2]["reason"] == "the same words as before"
    assert not [call for call in trace.calls if call.key.startswith("evaluate/2")]


def test_a_role_is_replaced_by_name(run: Runner) -> None:
    brief: Role[str] = Role(Prompt.parse("# user\nBe brief about {{ translation }}", "brief"))
    trace = run(script_rules((95,)), drt=compile_drt(DRT(advisor=brief)))
    assert call_of(trace, "advise/0").messages == [{"role": "user", "content": f"Be brief about {TEXTS[0]}"}]
    assert call_of(trace, "advise/0").role == "advisor"
    assert call_of(trace, "advise/0").prompt_sha256 == brief.text.sha256


@dataclass(frozen=True)
class Shouting(System):
    """One more role and its node."""

    shouter: Role[str] = Role(Prompt.parse("# user\nShout {{ trans }}", "shouter"))

    async def shout(self, state: Any, runtime: Any) -> dict[str, Any]:
        answer = await ask(runtime.context, self.shouter, key="shout", trans=state["trans"])
        return {"trans": answer.value}


@dataclass(frozen=True)
@role_options(DRT, Shouting)
class LoudContext(Context):
    """DRT's options, and those of the added role."""


def test_a_node_is_added(run: Runner) -> None:
    builder = DRT().builder()
    builder.add_node("shout", Shouting().shout)
    builder.add_edge("narrate", "shout")
    replies = script_rules((50, 95), TEXTS, {"role": "shouter", "replies": ["译文！"]})
    trace = run(replies, drt=builder.compile(name="loud"), context=LoudContext, min_steps=2)
    assert (trace.system, result_of(trace)["trans"]) == ("loud", "译文！")
    assert call_of(trace, "shout").messages[-1]["content"] == f"Shout {TEXTS[1]}"


ROLES = [field.name for field in fields(DRT)]


def test_the_context_has_a_model_and_a_prompt_for_each_role() -> None:
    names = {field.name for field in fields(Context)}
    assert {f"{role}_{option}" for role in ROLES for option in ("model", "prompt")} < names
    assert all(field.metadata["description"] for field in fields(Context))
    assert len(ROLES) == 11


@pytest.mark.parametrize("role", ROLES)
def test_each_role_takes_its_own_model_and_prompt(run: Runner, tmp_path: Path, role: str) -> None:
    replies = script_rules((50, 95), TEXTS, *comparer_rules(("second", "first")), *small_rules())
    other = write_lines(tmp_path / "other.jsonl", [*replies, {"role": "nobody", "replies": ["nothing"]}])
    knobs = {f"{role}_model": f"scripted:{other}?temperature=0.33", f"{role}_prompt": "# user\nMARK {{ text }}"}
    if role == "comparer":
        knobs["evaluator"] = "pairwise"
    elif role in ("candidate", "contrast"):
        knobs["refiner"] = "candidates"
    elif role == "short_narrator":
        knobs["thought"] = "short"
    elif role == "rewriter":
        replies = [{"role": "refiner", "replies": [TEXTS[0]]}, *replies]

    trace = run(replies, max_rounds=1, min_steps=2, **knobs)
    assert trace.outcome == "kept"
    with_own_prompt = {call.role for call in trace.calls if call.messages[0]["content"] == f"MARK {TEXT}"}
    with_own_model = {call.role for call in trace.calls if call.sampling["temperature"] == 0.33}
    default_revision = next(call.revision for call in trace.calls if call.role != role)
    from_other_script = {call.role for call in trace.calls if call.revision != default_revision}
    assert with_own_prompt == with_own_model == from_other_script == {role}


def test_languages_are_variables(run: Runner) -> None:
    replies = script_rules((50, 60, 95), TEXTS, *comparer_rules(("second", "first"), ("second", "first")))
    for evaluator in ("score", "pairwise"):
        trace = run(replies, evaluator=evaluator, target_language="German", source_language="French", max_rounds=2)
        assert trace.outcome == "kept"
        for call in trace.calls:
            system = call.messages[0]["content"]
            assert "German" in system
            assert "French" in system
            assert "Chinese" not in system
            assert "English" not in system.replace("in English", "")  # some roles reply in English
        assert "from French to German" in str(trace.targets[0].segments[1].text)


@pytest.mark.parametrize(
    ("knobs", "message"),
    [
        ({"threshold": 400}, "threshold: 400 is above 100"),
        ({"threshold": float("nan")}, "threshold: nan is not a finite number"),
        ({"max_rounds": -1}, "max_rounds: -1 is below 0"),
        ({"min_steps": 0}, "min_steps: 0 is below 1"),
    ],
)
def test_options_out_of_range_are_refused(knobs: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Context(**knobs)


def test_a_step_has_the_documented_fields() -> None:
    assert set(RefinementStep.__annotations__) == {
        *("translation", "feedback", "score", "stated", "expected", "reason", "key")
    }
