"""DeepRAG's training targets: which paths are examples, and the pairs of decisions."""

from __future__ import annotations

import pytest

from agentsys.graphs.deeprag.narrative import ANSWER, SEARCH, format_follow_up, format_narrative
from agentsys.traces import target_from
from tests.support.deeprag_world import PASSAGE, QUESTION, Install, World, best_path


@pytest.mark.parametrize(
    ("replies", "dropped"),
    [
        ({"root:0/conclude": '{"long": "", "short": "Sweden"}'}, "the final answer has no tags"),
        ({"root:0/answer": "1. Sweden"}, "an answer is a list"),
        ({}, None),
    ],
)
async def test_paths_that_are_no_examples(install: Install, replies: dict[str, str], dropped: str | None) -> None:
    world = install(World(correct=frozenset({"0"}), ends=frozenset({"0"}), replies=replies))
    result = await world.run()
    assert (result["dropped"], len(result["targets"])) == (dropped, int(dropped is None))
    assert result["tree"]


async def test_a_pair_for_every_sub_query_of_the_best_path(install: Install) -> None:
    world = install(World(correct=frozenset({"0110", "1101", "1111"})))
    result = await world.run(stage="calibration")
    assert best_path(result) == "0110"
    pairs = [target_from(target) for target in result["targets"]]
    openings = {"1": f"{SEARCH}\n", "0": ANSWER}
    prefixes = []
    for i, (pair, taken) in enumerate(zip(pairs, "0110", strict=True)):
        assert pair.kind == "step" and pair.rejected is not None
        (prefix, chosen), (same, rejected) = pair.segments, pair.rejected
        assert prefix == same
        assert (chosen.text, rejected.text) == (openings[taken], openings["1" if taken == "0" else "0"])
        assert chosen.learned and rejected.learned and chosen.role == rejected.role == "assistant"
        assert prefix.prompt == f"root{''.join(f':{d}' for d in '0110'[:i])}/decide"
        prefixes.append(world.messages[prefix.prompt][-1])
        assert pair.scores["margin"] > 0, "rows without a margin are filtered out"
    assert all(message["role"] == "assistant" for message in prefixes)
    for i, message in enumerate(prefixes):
        assert message["content"] == format_narrative(
            result["steps"][:i], format_follow_up(result["steps"][i]["sub_query"])
        )
        assert QUESTION not in message["content"], "q_i is there, not the question"
        assert (PASSAGE["title"] in message["content"]) is (i >= 2), "documents stay in the history"
    assert [step["sub_query"] for step in result["steps"]] == [
        "What is fact one?", "What is fact 0?", "What is fact 01?", "What is fact 011?",
    ]  # fmt: skip


async def test_stage_two_accepts_any_form_of_answer(install: Install) -> None:
    """Only decisions are learned in stage II: the filter on the form of answers belongs to stage I."""
    replies = {"root:1/conclude": "Sweden"}
    world = install(World(ends=frozenset({"0", "1"}), replies=replies))
    result = await world.run(stage="calibration")
    assert (result["dropped"], len(result["targets"]), result["answer"]) == (None, 1, "Sweden")
