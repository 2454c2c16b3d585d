"""Tree search of stepwise maths with a scripted policy on token ids: steps, values, tokens."""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from agentsys.collect import RunOptions, acollect
from agentsys.graphs.maths.search import Context, graph
from agentsys.models.wire import Reply
from agentsys.traces import read_traces
from tests.support.maths_policy import QUESTION, RECORD, RIGHT, Policy, find_node
from tests.support.toys import outcomes

Start = Callable[..., Policy]


async def test_steps_continue_the_very_ids(start: Start) -> None:
    """The "Step 2" that ended a step is in the prefix of the next, once; equal steps are one child."""
    model = start()
    result = await graph.ainvoke({**RECORD}, context=Context(simulations=3, width=4, depth=4, rollouts=1))
    first = find_node(result, "root:0")
    assert first["copies"] == 2 and first["visits"] > 0 and len([n for n in result["tree"] if n["depth"] == 1]) == 3
    prefixes = {key: "".join(map(chr, ids)) for key, ids, _ in model.calls}
    assert prefixes["root/0"] == "" and prefixes["root:0/0"] == "Step 1: good 3*4=12.\n\nStep 2"
    assert prefixes["root/0/rollout/0"] == prefixes["root:0/1"]
    assert result["response"] == RIGHT and (result["answer"], result["right"]) == ("17", True)
    assert find_node(result, "root:0:0")["outcome"] in ("open", "end")
    assert {n["parent"] for n in result["tree"] if n["depth"] == 2} <= {"root:0", "root:1", "root:2"}


async def test_values_are_checked_answers(start: Start) -> None:
    """An end is worth 1 or -1, another step the mean of its rollouts: one of two slips after the right step."""
    start()
    result = await graph.ainvoke({**RECORD}, context=Context(simulations=8, width=4, depth=4, rollouts=2))
    right = find_node(result, "root:0")
    assert right["value"] == 0 and [rollout["right"] for rollout in right["rollouts"]] == [True, False]
    assert find_node(result, "root:1")["value"] == -1 == find_node(result, "root:2")["value"]
    ends = {n["answer"]: n["value"] for n in result["tree"] if "answer" in n}
    assert ends == {"17": 1.0, "18": -1.0, "12": -1.0}
    assert find_node(result, "root:0")["visits"] > find_node(result, "root:1")["visits"]


async def test_an_empty_step_is_requested_once(start: Start) -> None:
    """A reply to a reminder about an empty reply would be no sibling: it is not paid for."""

    def author(prefix: str, key: str, seed: int) -> str:
        return " " if key == "root/1" else "Step 1: 3*4+5=17. \\boxed{17}"

    model = start(author)
    result = await graph.ainvoke({**RECORD}, context=Context(simulations=1, width=2, depth=2))
    assert find_node(result, "root:1")["outcome"] == "failed" and "empty" in find_node(result, "root:1")["error"]
    assert {key for key, _, _ in model.calls} == {"root/0", "root/1"}


async def test_the_judge_needs_no_reference(start: Start) -> None:
    """V is the judge's opinion, right or wrong; the verdicts are recorded and make the pairs."""
    start()
    context = Context(value="judge", simulations=6, width=4, depth=4)
    result = await graph.ainvoke({**RECORD}, context=context)
    assert find_node(result, "root:0")["value"] == 1 and "rollouts" not in find_node(result, "root:0")
    slip = next(n for n in result["tree"] if n.get("answer") == "18")
    assert slip["value"] == 1 and slip["right"] is False, "it has a good first step"
    other = await graph.ainvoke({**RECORD, "answer": "18"}, context=context)
    names = ("id", "visits", "value", "q")
    assert [[n[k] for k in names] for n in other["tree"]] == [[n[k] for k in names] for n in result["tree"]]
    assert [s["right"] for s in other["solutions"]] != [s["right"] for s in result["solutions"]]


async def test_the_reference_is_never_shown(start: Start) -> None:
    model = start()
    secret = {"question": QUESTION, "answer": "#### 982451653", "solution": "It is 982451653."}
    for value in ("rollout", "judge"):
        await graph.ainvoke(secret, context=Context(value=value, simulations=4, width=2, depth=3))
    assert len(model.calls) > 15 and not any("982451653" in text for _, _, text in model.calls)


async def test_a_truncated_step_ends_its_branch_and_is_paid_for(start: Start) -> None:
    def author(prefix: str, key: str, seed: int) -> str:
        return "Step 1: " + ("and so on " * 20 if key == "root/1" else "3*4+5=17. \\boxed{17}")

    start(author)
    result = await graph.ainvoke({**RECORD}, context=Context(simulations=3, width=2, depth=3, step_tokens=40))
    node = find_node(result, "root:1")
    assert node["outcome"] == "failed" and "truncated at 40 tokens" in node["error"] and node["tokens"] == 40
    assert result["dropped"] == "no pair: every solution is right"
    assert result["solutions"][0]["tokens"] == 40 + find_node(result, "root:0")["tokens"]


async def test_a_truncated_rollout_is_wrong(start: Start) -> None:
    """Even where it happens to end with the right number."""

    def author(prefix: str, key: str, seed: int) -> str:
        return "Step 1: so\n\nStep 2: 17" if not prefix else ": 17 17 17 17 17 17 17 17"

    start(author)
    context = Context(simulations=1, width=1, depth=3, solution_tokens=10, rollouts=1)
    result = await graph.ainvoke({**RECORD}, context=context)
    node = find_node(result, "root:0")
    assert node["rollouts"][0]["right"] is False and node["value"] == -1


async def test_the_last_step_is_the_rest(start: Start) -> None:
    start()
    result = await graph.ainvoke({**RECORD}, context=Context(simulations=4, width=2, depth=1))
    assert [n["depth"] for n in result["tree"]] == [0, 1, 1]
    assert {solution["answer"] for solution in result["solutions"]} == {"17", "12"}


async def test_tokens_count_everything_written(start: Start, tmp_path: Path) -> None:
    """The tokens of solutions grow in the order of the search and count steps, rollouts and judgments; the budget
    ends the search."""
    for value in ("rollout", "judge"):
        start()
        context = Context(value=value, simulations=50, width=3, depth=4, budget=900)
        await acollect(graph, [RECORD], tmp_path / value, context=context, options=RunOptions(no_cache=True))
        (trace,) = read_traces(tmp_path / value)
        assert trace.result is not None, trace.reason
        total = sum(call.completion_tokens for call in trace.calls)
        assert max(n["spent"] for n in trace.tree or ()) == total, "equal steps that became one child count twice"
        tokens = [solution["tokens"] for solution in trace.result["solutions"]]
        assert tokens == sorted(tokens) and tokens[0] < total


class Wasting(Policy):
    """Every second reply of the solver is empty, and the first judgment is neither yes nor no; both cost tokens."""

    async def complete(self, messages: Sequence[Mapping[str, Any]], **kwargs: Any) -> Reply:
        reply = await super().complete(messages, **kwargs)
        if kwargs["role"] == "judge":
            return replace(reply, text="Perhaps", completion_tokens=7) if "/0/judge" in kwargs["key"] else reply
        return replace(reply, text=" ", completion_tokens=1000) if int(kwargs["key"][-1]) % 2 else reply


@pytest.mark.parametrize("value", ["rollout", "judge"])
async def test_unusable_replies_count_as_tokens(start: Start, tmp_path: Path, value: Any) -> None:
    start(kind=Wasting)
    context = Context(value=value, simulations=6, width=4, depth=4, rollouts=2)
    await acollect(graph, [RECORD], tmp_path, context=context, options=RunOptions(no_cache=True))
    (trace,) = read_traces(tmp_path)
    total = sum(call.completion_tokens for call in trace.calls)
    assert total > 1000 and max(n["spent"] for n in trace.tree or ()) == total


async def test_the_same_replies_give_the_same_traces_at_any_speed(start: Start, tmp_path: Path) -> None:
    def author(prefix: str, key: str, seed: int) -> str:
        """Solutions that depend on key and seed; the answer is right for every third of them."""
        chance = random.Random(f"{key}{seed}")
        steps = [f": {chance.random():.3f} and\n\nStep {i}" for i in range(prefix.count("Step") + 1, 4)]
        return ("" if prefix else "Step 1") + "".join(steps) + f": so \\boxed{{{chance.choice([17, 18, 19])}}}"

    records = [{**RECORD, "id": f"r{i}"} for i in range(4)]
    context = Context(simulations=8, width=3, depth=4, rollouts=2)
    for name, delays in (("calm", None), ("fast", random.Random(1)), ("slow", random.Random(2))):
        start(author, delays=delays)
        await acollect(graph, records, tmp_path / name, context=context, options=RunOptions(no_cache=True))
    calm, *others = (outcomes(tmp_path / name) for name in ("calm", "fast", "slow"))
    assert len(calm) == 4 and all(other == calm for other in others)
    assert sum(len(trace.targets) for trace in read_traces(tmp_path / "calm")) >= 4
