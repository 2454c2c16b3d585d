"""LongDPO's layers with a scripted model: choices, memory, critiques, pairs."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from agentsys.graphs.longdpo.system import LongDPO
from agentsys.graphs.longdpo.targets import near_equal
from agentsys.models.errors import EndpointDown, ModelError
from agentsys.models.scripted import ScriptedChatModel
from agentsys.models.wire import Reply
from tests.support.longdpo_script import FACT, MEMORY, STATED, STORY, Script

REQUEST = "Write a long letter about a lighthouse."
Run = Callable[..., Any]

STEPS = {"0/0": "one", "0/1": "two", "0/2": "three", "1/0": "four", "1/1": "five", "1/2": "six"}
VALUES = {"one": 2.0, "two": 4.5, "three": 3.0, "four": 3.25, "five": 2.5, "six": 4.0}


async def test_the_best_step_is_chosen_and_each_layer_gives_a_pair(run: Run) -> None:
    script = Script(STEPS, VALUES)
    result = await run(script, rejected="worst")
    assert result["response"] == "twosix" and result["stop"] == "depth"
    assert [step["value"] for step in result["layers"][0]["candidates"]] == pytest.approx([2.0, 4.5, 3.0])
    first, second = result["targets"]
    assert [s["prompt"] or s["call"] for s in first["segments"]] == ["0/0", "0/1"]
    assert [s["prompt"] or s["call"] for s in first["rejected"]] == ["0/0", "0/0"]
    assert second["scores"] == pytest.approx(
        {"chosen": 4.0, "rejected": 2.5, "margin": 1.5, "depth": 1.0, "suggestions": 0.0}
    )
    before = [request for role, key, request in script.calls if key == "1/0/judge"]
    assert "What came before:\ntwo\n" in before[0]
    assert not any(role in ("extractor", "contradiction", "critic") for role, _, _ in script.calls)


async def test_a_response_without_token_ids_is_not_continued(run: Run) -> None:
    script = Script(STEPS, VALUES)
    result = await run(script, returns_ids=False)
    assert result["response"] == "two" and len(result["targets"]) == 1, "the first layer is sound"
    assert result["stop"].endswith("cannot be continued; use embedded, llama.cpp or vLLM")
    assert not any(key.startswith("1/") for _, key, _ in script.calls)


async def test_a_random_sibling_is_rejected_and_the_seed_decides_which(run: Run) -> None:
    rejected = {
        (await run(Script(STEPS, VALUES), depth=1, choice_seed=seed))["layers"][0]["rejected"] for seed in range(12)
    }
    assert rejected == {0, 2}
    again = [(await run(Script(STEPS, VALUES), depth=1, choice_seed=5))["layers"][0]["rejected"] for _ in range(2)]
    assert again[0] == again[1]


async def test_the_end_of_the_response_ends_the_layers(run: Run) -> None:
    result = await run(Script(STEPS, VALUES), final=["0/1"], depth=4)
    assert (result["stop"], len(result["layers"]), result["response"]) == ("end", 1, "two")


async def test_a_thread_starts_with_an_empty_response(run: Run) -> None:
    from langgraph.checkpoint.memory import InMemorySaver

    await run(Script(STEPS, VALUES), depth=1)  # sets the model
    graph = LongDPO().builder().compile(checkpointer=InMemorySaver())
    for _ in range(2):
        config = {"configurable": {"thread_id": "one"}}
        result = await graph.ainvoke({"prompt": REQUEST}, config, context=replace(STATED, depth=1))
        assert (result["response"], len(result["layers"])) == ("two", 1)


async def test_a_step_that_contradicts_the_memory_is_passed_over(run: Run) -> None:
    script = Script(STORY, **MEMORY)
    result = await run(script, embedding="words", nearest=0, similarity=0.4)
    assert result["response"] == STORY["0/0"] + STORY["1/1"]
    layer = result["layers"][1]
    assert [layer["candidates"][i].get("contradicts") for i in (0, 1)] == [FACT, None]
    assert "contradicts" not in layer["candidates"][2], "candidates worse than the choice are not checked"
    assert result["targets"][1]["segments"][1]["call"] == "1/1", "the pair holds the chosen step"
    assert [fact["statement"] for fact in result["layers"][0]["facts"]] == [FACT], "false statements are not kept"
    assert result["layers"][0]["facts"][0]["node"] == "0/0"
    unlike = await run(Script(STORY, **MEMORY), embedding="words", nearest=0, similarity=0.999)
    assert unlike["response"] == STORY["0/0"] + STORY["1/0"], "only similar pairs are judged"


async def test_by_default_the_nearest_chunks_are_judged_whatever_their_cosine(run: Run) -> None:
    script = Script(STORY, **MEMORY)
    result = await run(script, embedding="words", similarity=0.999)
    assert result["response"] == STORY["0/0"] + STORY["1/1"]
    assert [key for role, key, _ in script.calls if role == "contradiction"] == [
        "1/0/contradiction/0", "1/1/contradiction/0",
    ]  # fmt: skip


async def test_the_layers_end_if_every_candidate_contradicts(run: Run) -> None:
    steps = {**STORY, "1/1": "Bruno, the keeper, sleeps by the red lamp.", "1/2": "Bruno keeper red lamp"}
    values = {**MEMORY["judgments"], steps["1/1"]: 4, steps["1/2"]: 3}
    result = await run(Script(steps, **{**MEMORY, "judgments": values}), embedding="words", nearest=0, similarity=0.1)
    assert result["stop"] == "every candidate contradicts the memory"
    assert len(result["targets"]) == 1


async def test_a_layer_whose_facts_cannot_be_extracted_is_the_last(run: Run) -> None:
    class Refusing(Script):
        def extractor(self, key: str, request: str) -> str:
            raise ModelError("HTTP 400: too long")

    result = await run(Refusing(STORY, **MEMORY), embedding="words", nearest=0, similarity=0.4)
    assert (result["response"], result["stop"]) == (STORY["0/0"], "HTTP 400: too long")
    assert [target["segments"][1]["call"] for target in result["targets"]] == ["0/0"]
    assert result["layers"][0]["facts"] == [] and result["dropped"] is None


async def test_a_server_that_is_down_raises(run: Run) -> None:
    class Down(Script):
        def extractor(self, key: str, request: str) -> str:
            raise EndpointDown("no server is reachable")

    with pytest.raises(EndpointDown):
        await run(Down(STORY, **MEMORY), embedding="words", nearest=0, similarity=0.4)


ROWS = {"one": [3, 1, 1, 1, 1, 1, 1], "two": [1, 3, 1, 1, 1, 1, 1], "three": [1] * 7, "better": 4.0, "worse": 1.0}


async def test_a_weak_choice_is_rewritten_with_critiques(run: Run) -> None:
    script = Script({**STEPS, "0/0/rewrite": "better"}, ROWS)
    result = await run(script, depth=1, eta=2.5)
    assert result["response"] == "better"
    critics = [key for role, key, _ in script.calls if role == "critic"]
    assert critics == ["0/0/critic/purpose"], "only where a sibling is better"
    request = next(r for role, key, r in script.calls if key == "0/0/rewrite")
    assert script.suggestion in request and request.startswith(REQUEST)
    (pair,) = result["targets"]
    assert pair["segments"][1]["call"] == "0/0/rewrite"
    assert pair["segments"][0]["prompt"] in ("0/1", "0/2"), "the training prompt carries no critique"
    assert pair["scores"]["suggestions"] == 1.0


async def test_one_to_three_suggestions_the_most_confident_first(run: Run) -> None:
    """Of the four that better siblings give; the number is random for each choice."""
    confidences = {"purpose": 2, "safety": 5, "logic": 3, "variety": 4}

    class Graded(Script):
        def critic(self, key: str, request: str) -> str:
            principle = key.rpartition("/")[2]
            reply = {"suggestion": f"advice on {principle}", "confidence": confidences[principle]}
            return json.dumps({"analysis": "x", "words": "", **reply})

    rows = {**ROWS, "one": [5, 1, 1, 1, 1, 1, 1], "two": [1, 2, 2, 2, 2, 1, 1]}
    counts = set()
    for seed in range(12):
        script = Graded({**STEPS, "0/0/rewrite": "better"}, rows)
        result = await run(script, depth=1, eta=2.5, choice_seed=seed)
        request = next(r for role, key, r in script.calls if key == "0/0/rewrite")
        names = [name for name in ("safety", "variety", "logic", "purpose") if f"advice on {name}" in request]
        assert names == ["safety", "variety", "logic"][: len(names)]
        assert [request.index(f"advice on {name}") for name in names] == sorted(
            request.index(f"advice on {name}") for name in names
        )
        assert result["targets"][0]["scores"]["suggestions"] == len(names)
        counts.add(len(names))
    assert counts == {1, 2, 3}


async def test_a_rewritten_step_that_is_not_better_is_discarded(run: Run) -> None:
    result = await run(Script({**STEPS, "0/0/rewrite": "worse"}, ROWS), depth=1, eta=2.5)
    assert result["response"] == "one"
    strong = Script(STEPS, VALUES)
    await run(strong, depth=1, eta=2.5)
    assert not any(role == "critic" for role, _, _ in strong.calls), "a choice above eta needs no critique"


async def test_a_candidate_without_a_judgment_is_removed_after_three_attempts(run: Run) -> None:
    script = Script(STEPS, {**VALUES, "two": 0})
    result = await run(script, depth=1)
    assert [key for _, key, _ in script.calls if key.startswith("0/1/judge")] == [
        "0/1/judge", "0/1/judge#1", "0/1/judge#2",
    ]  # fmt: skip
    assert [step["text"] for step in result["layers"][0]["candidates"]] == ["one", "three"]
    assert result["response"] == "three"
    none = await run(Script(STEPS, dict.fromkeys(VALUES, 0)), depth=1)
    assert none["stop"].startswith("no judgment") and none["dropped"]


async def test_equal_and_nearly_equal_texts_give_no_pair(run: Run) -> None:
    result = await run(Script({**STEPS, "0/1": "one", "0/2": "one"}, VALUES), depth=1)
    assert len(result["layers"][0]["candidates"]) == 1
    assert result["targets"] == [] and result["dropped"] == "no pair (depth)"
    long = " ".join(f"word{i}" for i in range(100))
    assert near_equal(long, long + " more") and not near_equal(long, long.replace("word5", "other"))
    chinese = "".join(chr(0x4E00 + i) for i in range(200))
    assert near_equal(chinese, chinese + "了。") and not near_equal(chinese, chinese[::-1])


async def test_the_writer_continues_the_exact_ids(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    sent: list[list[int]] = []

    class Engine(ScriptedChatModel):
        async def complete(self, messages: Any, **kwargs: Any) -> Reply:
            reply = await super().complete(messages, **kwargs)
            if kwargs["role"] == "writer":
                sent.append(list(kwargs.get("continue_ids") or []))
                reply = replace(reply, ids=[7, len(sent), 2], stop_ids=1, prompt_ids=[1], finish="length")
            return reply

    monkeypatch.setattr("agentsys.systems.load_model", lambda *spec, **about: Engine(respond=Script(STEPS, VALUES)))
    result = await LongDPO().builder().compile().ainvoke({"prompt": REQUEST}, context=STATED)
    chosen = result["layers"][0]["candidates"][1]
    assert chosen["ids"] == [7, 2] and sent == [[], [], [], *[chosen["ids"]] * 3]


async def test_one_score_per_principle(run: Run) -> None:
    """Without log-probabilities the scores are used as they are."""
    script = Script(STEPS, {"one": 2, "two": 5, "three": 3})
    result = await run(script, depth=1, weights="probabilities")
    assert result["response"] == "two"
    assert [step["value"] for step in result["layers"][0]["candidates"]] == [2, 5, 3]
    assert {role for role, _, _ in script.calls} == {"writer", "grader"}
