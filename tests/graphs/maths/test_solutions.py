"""Right solutions for SFT and pairs of whole solutions; searches by name; when a search stops or does not begin."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from agentsys.collect import RunOptions, acollect
from agentsys.graphs.maths.search import Context, graph
from agentsys.graphs.maths.solutions import Whole, choose_solutions
from agentsys.search import SEARCHES
from agentsys.traces import read_traces
from tests.support.maths_policy import QUESTION, RECORD, RIGHT, SLIP, Policy

Start = Callable[..., Policy]


def whole(text: str, weakest: float) -> Whole:
    return Whole(("a",), text, True, weakest)


def test_right_solutions_are_chosen() -> None:
    right = [whole("a b c d", 0.5), whole("a b c", 1.0), whole("x y z z z z", 0.2), whole("a b", 0.7)]
    texts = {
        how: [one.text for one in choose_solutions(right, how, 2)] for how in ("none", "best", "shortest", "different")
    }
    assert texts == {
        "none": [],
        "best": ["a b c", "a b"],
        "shortest": ["a b", "a b c"],
        "different": ["a b c", "x y z z z z"],
    }
    assert len(choose_solutions(right, "different", 9)) == 4


async def test_a_tree_gives_solutions_for_sft(start: Start) -> None:
    """Each text once, as the reply to the solver's own prompt."""
    start()
    context = Context(pairs="none", solutions="best", simulations=12, width=4, depth=4, rollouts=2)
    result = await graph.ainvoke({**RECORD}, context=context)
    [target] = result["targets"]
    assert target["kind"] == "sft" and target["segments"][-1]["text"] == RIGHT and target["segments"][-1]["learned"]
    assert [segment["role"] for segment in target["segments"]] == ["system", "user", "assistant", "user", "assistant"]
    assert target["segments"][-2]["text"] == QUESTION and not target["segments"][-2]["learned"]
    assert 0 < target["scores"]["score"] < 1 and result["dropped"] is None


async def test_whole_solutions_are_pairs(start: Start, tmp_path: Path) -> None:
    """The sides are the calls that wrote them, from the first step to the last."""
    start()
    context = Context(pairs="whole", simulations=12, width=4, depth=4, rollouts=2, solutions_kept=3)
    await acollect(graph, [RECORD], tmp_path, context=context, options=RunOptions(no_cache=True))
    [trace] = read_traces(tmp_path)
    assert trace.outcome == "kept", trace.reason
    [target] = trace.targets
    assert target.kind == "step" and target.scores["margin"] == 1
    calls = {call.key: call.text for call in trace.calls}
    sides = ["Step 2".join(calls[str(s.call)] for s in side[1:]) for side in (target.segments, target.rejected or ())]
    assert sides == [RIGHT, SLIP]
    assert target.segments[0].prompt == "root/0"


async def test_without_a_right_solution_there_is_nothing_to_learn(start: Start) -> None:
    start()
    context = Context(pairs="none", solutions="best", simulations=2, width=2, depth=3)
    result = await graph.ainvoke({**RECORD, "answer": "99"}, context=context)
    assert result["targets"] == [] and result["dropped"] == "no solution is right"


@pytest.mark.parametrize("name", SEARCHES)
async def test_every_search_keeps_a_tree_with_all_targets(start: Start, tmp_path: Path, name: Any) -> None:
    """Each gives the same kinds of targets, and they refer to calls of the trace."""
    start()
    context = Context(
        search=name, samples=8, simulations=12, width=4, depth=4, rollouts=2, solutions="shortest", process_rewards=True
    )
    await acollect(graph, [RECORD], tmp_path, context=context, options=RunOptions(no_cache=True))
    [trace] = read_traces(tmp_path)
    assert trace.outcome == "kept", trace.reason
    assert {target.kind for target in trace.targets} == {"step", "sft", "prm"}
    assert trace.result is not None and {s["answer"] for s in trace.result["solutions"]} >= {"17", "18"}
    total = sum(call.completion_tokens for call in trace.calls)
    assert max(node["spent"] for node in trace.tree or ()) == total, "each search counts everything written"


@pytest.mark.parametrize("name", [name for name in SEARCHES if name != "mcts"])
async def test_a_budget_ends_every_search(start: Start, name: Any) -> None:
    start()
    context = Context(search=name, value="judge", samples=4, width=2, depth=4, budget=900)
    result = await graph.ainvoke({**RECORD}, context=context)
    spent = max(node["spent"] for node in result["tree"])
    assert spent >= 900 or name == "uniform-cost", "it begins again until the budget is spent"


async def test_a_decided_question_is_not_searched_on(start: Start) -> None:
    """All of the first four rollouts are wrong: with stop_after=4 the tree is not grown below the first steps."""
    start()
    sizes: dict[str, Any] = {"simulations": 12, "width": 2, "depth": 4, "rollouts": 2}
    hopeless = {**RECORD, "answer": "99"}
    stopped = await graph.ainvoke(hopeless, context=Context(stop_after=4, **sizes))
    longer = await graph.ainvoke(hopeless, context=Context(**sizes))
    assert len(stopped["tree"]) == 3 < len(longer["tree"])
    mixed = await graph.ainvoke({**RECORD}, context=Context(stop_after=4, **sizes))
    assert len(mixed["tree"]) == len((await graph.ainvoke({**RECORD}, context=Context(**sizes)))["tree"])


@pytest.mark.parametrize(
    ("answer", "easiest", "hardest", "dropped"),
    [
        ("17", 0.9, 0.1, None),
        ("17", 0.2, 0.1, "too easy: too many of its first solutions are right"),
        ("17", 0.9, 0.6, "too hard: too few of its first solutions are right"),
        ("99", 0.9, 0.1, "too hard: too few of its first solutions are right"),
    ],
)
async def test_questions_are_chosen_by_difficulty(
    start: Start, answer: str, easiest: float, hardest: float, dropped: str | None
) -> None:
    """Two of four first solutions are right (the policy writes a right one, two wrong ones, a right one)."""
    model = start()
    context = Context(difficulty_samples=4, easiest=easiest, hardest=hardest, simulations=4, width=4, depth=4)
    result = await graph.ainvoke({**RECORD, "answer": answer}, context=context)
    assert result["dropped"] == dropped
    assert len(result["tree"][0]["rollouts"]) == 4
    assert len(model.calls) == 4 if dropped else len(model.calls) > 4
    assert len(result["tree"]) == 1 if dropped else len(result["tree"]) > 4


def test_options_out_of_range_are_refused() -> None:
    for options, message in (
        ({"value": "luck"}, "value: 'luck' is none of rollout, judge, prm:FOLDER and prm:URL"),
        ({"easiest": 1.5}, "easiest: 1.5 is above 1"),
        ({"solutions_kept": 0}, "solutions_kept: 0 is below 1"),
    ):
        with pytest.raises(ValueError, match=message):
            Context(**options)
