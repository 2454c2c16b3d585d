"""CRAT's causal judge with scripted models: verdicts, their reasons, rivals and the last choice."""

from __future__ import annotations

from typing import Any

import pytest

from agentsys.graphs.crat.transkg import TransKG
from tests.support.crat import (
    MONEY,
    SHORE,
    Runner,
    Script,
    find_decision,
    verdicts,
)


async def test_each_verdict_has_its_reason_and_back_translation_never_sees_the_source(run: Runner) -> None:
    script = Script(irrelevant=set())
    result = await run(script)
    accepted = find_decision(result, "bank")["candidates"][0]
    assert accepted["reasons"] == {
        "relevance": "here it is the word, in the entry 银行",
        "invariance": "it was the word, it came back as kept",
        "counterfactual": "银行 or 河岸",
    }
    assert (accepted["substituted"], accepted["back_translation"]) == ("句子用银行。", "back from 句子用银行。")
    assert (accepted["rival"], accepted["counterfactual"]) == ("河岸", {"changes": True, "better": "entry"})
    assert verdicts(find_decision(result, "bank")) == {"银行": "accepted", "河岸": "a better one"}
    for role, _, request in script.calls:
        assert role != "back_translator" or "steep" not in request
    only_one = find_decision(result, "Scotia")["candidates"][0]
    assert only_one["accepted"] and only_one["counterfactual"] is None, "without a rival there is no counterfactual"


@pytest.mark.parametrize(
    ("script", "expected"),
    [
        ({"unplaced": {"银行"}}, {"银行": "substitution", "河岸": "accepted"}),
        ({"changed": {"银行"}}, {"银行": "invariance", "河岸": "accepted"}),
        ({"rivals": {("银行", "河岸")}}, {"银行": "counterfactual", "河岸": "accepted"}),
        ({"changed": {"河岸"}, "rivals": {("银行", "河岸")}}, {"银行": "accepted", "河岸": "invariance"}),
        ({"rivals": {("银行", "河岸"), ("河岸", "银行")}}, {"银行": "accepted", "河岸": "a better one"}),
        (
            {"rivals": {("银行", "河岸")}, "broken": "judge/0/0/1/counterfactual.*"},
            {"银行": "accepted", "河岸": "failed call"},
        ),
        ({"broken": "judge/0/0/0/back.*"}, {"银行": "accepted", "河岸": "a better one"}),
        ({"broken": "judge/0/0/0/invariance.*"}, {"银行": "failed call", "河岸": "accepted"}),
        ({"broken": "judge/0/0/0/relevance.*"}, {"银行": "failed call", "河岸": "accepted"}),
    ],
)
async def test_a_candidate_must_pass_every_check(run: Runner, script: Any, expected: dict[str, str]) -> None:
    result = await run(Script(irrelevant=set(), **script))
    assert verdicts(find_decision(result, "bank")) == expected


async def test_a_candidate_that_does_not_get_into_the_sentence_is_the_last_choice(run: Runner) -> None:
    """No verdict is against it, so it is not shown to the LLM source as rejected."""
    script = Script(terms=[("bank", "polysemy")], irrelevant={("steep", "河岸")}, unplaced={"银行"})
    result = await run(script)
    assert verdicts(find_decision(result, "bank")) == {"银行": "accepted", "河岸": "relevance"}
    request = script.request("inform/0/0/again")
    assert "- 河岸: " in request and "银行" not in request.replace("河岸", "")
    assert not script.keys("back_translator"), "back-translation would test nothing"
    transkg = TransKG.from_json(result["graph"])
    assert [item.target for item in transkg.rejected("bank")] == ["河岸"]
    later = Script(terms=[("bank", "polysemy")], irrelevant={("steep", "河岸")}, unplaced={"银行"})
    later.more = {"bank": [("a slope", "岸坡")]}
    result = await run(later)
    assert verdicts(find_decision(result, "bank"))["岸坡"] == "accepted"
    assert verdicts(find_decision(result, "bank"))["银行"] == "substitution"


async def test_an_untested_candidate_is_not_accepted_where_another_was_tested_and_failed(run: Runner) -> None:
    script = Script(terms=[("bank", "polysemy")], irrelevant=set(), unplaced={"银行"})
    script.changed = {"河岸"}
    result = await run(script)
    assert verdicts(find_decision(result, "bank")) == {"银行": "substitution", "河岸": "invariance"}


async def test_the_strongest_rival_is_the_first_whose_concept_stays_the_same(run: Runner) -> None:
    slope = ("a slope", "岸坡")
    script = Script(terms=[("bank", "polysemy")], senses={"bank": [MONEY, SHORE, slope]}, irrelevant=set())
    script.changed, script.rivals = {"河岸"}, {("银行", "河岸"), ("银行", "岸坡")}
    result = await run(script)
    assert verdicts(find_decision(result, "bank")) == {
        "银行": "counterfactual",
        "河岸": "invariance",
        "岸坡": "accepted",
    }
    assert [c["rival"] for c in find_decision(result, "bank")["candidates"]] == ["岸坡", "", "银行"]
    assert script.keys("counterfactual") == ["judge/0/0/0/counterfactual", "judge/0/0/2/counterfactual"]
    script.rivals |= {("岸坡", "银行"), ("河岸", "银行")}
    script.changed = set()
    result = await run(script)
    assert verdicts(find_decision(result, "bank")) == {
        "银行": "accepted", "河岸": "a better one", "岸坡": "a better one",
    }, "where each loses to the other, both pass"  # fmt: skip


async def test_an_irrelevant_candidate_costs_one_call(run: Runner) -> None:
    script = Script()
    await run(script)
    assert [key for _, key, _ in script.calls if key.startswith("judge/0/0/0")] == ["judge/0/0/0/relevance"]


async def test_candidates_beyond_the_limit_are_judged_only_if_the_first_fail(run: Runner) -> None:
    script = Script(terms=[("bank", "polysemy")])
    result = await run(script, candidates=1)
    assert verdicts(find_decision(result, "bank")) == {"银行": "relevance", "河岸": "accepted"}
    assert find_decision(result, "bank")["retrievals"] == 1, "new candidates could not be judged anyway"
    assert script.keys("llm_source") == ["inform/0/0"]
    fine = await run(Script(irrelevant=set()), candidates=1)
    assert verdicts(find_decision(fine, "bank")) == {"银行": "accepted", "河岸": ""}
