"""LongDPO's tree search and its command: the same choices as the graph, looking ahead, the same tree at any speed."""

from __future__ import annotations

import json
import random
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any
from unittest.mock import ANY

import pytest

from agentsys.collect import RunOptions, acollect
from agentsys.commands import command, run_app
from agentsys.graphs.longdpo import search as longdpo_search
from agentsys.graphs.longdpo.judge import PRINCIPLES
from agentsys.graphs.longdpo.search import graph
from agentsys.graphs.longdpo_collect import main
from agentsys.models.errors import ModelError
from agentsys.models.scripted import ScriptedChatModel
from agentsys.traces import read_traces
from tests.support.longdpo_script import FACT, MEMORY, STORY, Script, weights_of
from tests.support.toys import environment, one_error, outcomes, tree_reply, write_lines

REQUEST = {"prompt": "Write a long letter about a lighthouse.", "length": 300}
Start = Callable[..., ScriptedChatModel]
SearchContext = partial(longdpo_search.SearchContext, weights="stated")


def steps_after(node: str, texts: Sequence[str]) -> dict[str, str]:
    """The writer's replies after a node, by key."""
    return {f"{node}/{i}": text for i, text in enumerate(texts)}


STORY_STEPS = {
    **steps_after("root", [STORY[f"0/{i}"] for i in range(3)]),
    **steps_after("root:0", [STORY[f"1/{i}"] for i in range(3)]),
}


async def test_by_default_the_judge_grades(start: Start) -> None:
    texts = (
        steps_after("root", ["dull", "fine"])
        | steps_after("root:1", ["worse", "better"])
        | steps_after("root:0", ["a", "b"])
    )
    script = Script(texts, {"dull": 2, "fine": 4, "worse": 1, "better": 5, "a": 1, "b": 2})
    start(script)
    context = longdpo_search.SearchContext(width=2, depth=2, eta=1.0, simulations=4, alpha=0.3)
    result = await graph.ainvoke(REQUEST, context=context)
    assert result["response"] == "finebetter" and len(result["targets"]) == 2
    assert {role for role, _, _ in script.calls} == {"writer", "grader"}


async def test_without_simulations_a_layer_is_the_best_of_its_candidates(start: Start) -> None:
    """The memory, too, works as in the graph: the contradicting step is passed over."""
    script = Script(STORY_STEPS, **MEMORY)
    start(script)
    context = SearchContext(width=3, depth=2, eta=1.0, embedding="words", nearest=0, similarity=0.4)
    result = await graph.ainvoke(REQUEST, context=context)
    assert result["response"] == STORY["0/0"] + STORY["1/1"] and result["stop"] == "depth"
    assert result["layers"][1]["candidates"][0]["contradicts"] == FACT
    assert [target["segments"][1]["call"] for target in result["targets"]] == ["root/0", "root:0/1"]
    assert len(result["tree"]) == 7 and "visits" not in result["tree"][0]
    assert result["tree"][1]["call"] == "root/0"


TRAP = (
    steps_after("root", ["trap", "door"])
    | steps_after("root:0", ["pit", "hole"])
    | steps_after("root:1", ["garden", "lawn"])
)
TRAP_VALUES = {"trap": 4.0, "door": 3.5, "pit": 1.0, "hole": 1.25, "garden": 5.0, "lawn": 4.0}


async def test_simulations_look_ahead(start: Start) -> None:
    start(Script(TRAP, TRAP_VALUES))
    near = await graph.ainvoke(REQUEST, context=SearchContext(width=2, depth=2, eta=1.0))
    assert near["response"].startswith("trap")
    start(Script(TRAP, TRAP_VALUES))
    far = await graph.ainvoke(REQUEST, context=SearchContext(width=2, depth=2, eta=1.0, simulations=12, alpha=0.3))
    assert far["response"] == "doorgarden"
    first = far["layers"][0]["candidates"]
    assert first[1]["q"] > first[0]["q"] and first[1]["visits"] > first[0]["visits"]
    pair = far["targets"][0]["scores"]
    assert (pair["chosen"], pair["rejected"]) == pytest.approx((3.5, 4.0)), "the judge's own values"
    assert pair["margin"] == pytest.approx(first[1]["q"] - first[0]["q"]), "q decided the choice: rows keep the pair"
    assert pair["chosen_visits"] == first[1]["visits"]
    assert far["tree"][0]["visits"] == 12
    first, last = far["layers"]
    assert (first["expansions"], first["saturated"]) == (2, True), "10 of 12 simulations wrote nothing"
    assert last["expansions"] == 0, "the depth limit"


async def test_a_larger_tree_is_not_saturated(start: Start) -> None:
    start(tree_reply)
    context = SearchContext(width=3, depth=4, eta=1.0, simulations=2, lookahead=3, parallel=1)
    result = await graph.ainvoke(REQUEST, context=context)
    assert (result["layers"][0]["expansions"], result["layers"][0]["saturated"]) == (2, False)


async def test_no_simulation_is_spent_below_a_candidate_that_contradicts_the_memory(start: Start) -> None:
    """It is excluded before the search, and stays a candidate of its layer."""
    texts = STORY_STEPS | steps_after("root:0:1", ["garden", "lawn", "dull"])
    judgments = {**MEMORY["judgments"], "garden": 3, "lawn": 2}
    script = Script(texts, **{**MEMORY, "judgments": judgments})
    start(script)
    context = SearchContext(width=3, depth=3, eta=1.0, simulations=4, parallel=1, alpha=0.0, embedding="words")
    result = await graph.ainvoke(REQUEST, context=context)
    nodes = {node["id"]: node for node in result["tree"]}
    assert nodes["root:0:0"]["outcome"] == "excluded" and nodes["root:0:0"]["error"].endswith(FACT)
    assert not any(key.startswith("root:0:0/") and role == "writer" for role, key, _ in script.calls)
    layer = result["layers"][1]
    assert [step["contradicts"] for step in layer["candidates"]][:2] == [FACT, None] and layer["chosen"] == 1


async def test_whole_responses_of_the_same_tree_give_the_outcome_baseline(start: Start, tmp_path: Path) -> None:
    calls = []
    for pairs in ("step", "outcome"):
        model = start(Script(TRAP, TRAP_VALUES))
        context = SearchContext(width=2, depth=2, eta=1.0, simulations=12, alpha=0.3, pairs=pairs)
        record = {"id": "r", **REQUEST}
        await acollect(graph, [record], tmp_path / pairs, context=context, options=RunOptions(cache=tmp_path / "cache"))
        calls.append(len(model.respond.calls))
    assert calls[0] and calls[1] == 0, "the second run is the same tree from the request cache"
    step, outcome = (next(iter(read_traces(tmp_path / pairs))) for pairs in ("step", "outcome"))
    assert step.tree == outcome.tree and len(step.targets) == 2
    (pair,) = outcome.targets
    assert pair.segments[0].prompt == "root/0" and pair.segments[:1] == (pair.rejected or ())[:1]
    texts = {call.key: call.text for call in outcome.calls}
    sides = [[texts[segment.call or ""] for segment in side[1:]] for side in (pair.segments, pair.rejected or ())]
    assert sides == [["door", "garden"], ["trap", "pit"]]
    assert pair.scores == {"chosen": 4.25, "rejected": 2.5, "margin": 1.75}


async def test_responses_of_equal_value_give_no_outcome_pair(start: Start) -> None:
    start(Script(TRAP, dict.fromkeys(TRAP_VALUES, 3.0)))
    result = await graph.ainvoke(
        REQUEST, context=SearchContext(width=2, depth=2, eta=1.0, simulations=6, pairs="outcome")
    )
    assert result["targets"] == [] and result["dropped"] == "no pair of whole responses (depth)"


async def test_a_length_may_be_text_and_a_wrong_one_fails_its_record(start: Start, tmp_path: Path) -> None:
    """In a CSV file it is text."""
    start(Script(TRAP, TRAP_VALUES))
    records = [{"id": "text", **REQUEST, "length": "300"}, {"id": "none", **REQUEST, "length": ""},
               {"id": "bad", **REQUEST, "length": "long"}]  # fmt: skip
    context = SearchContext(width=2, depth=2, eta=1.0)
    await acollect(graph, records, tmp_path / "run", context=context, options=RunOptions(no_cache=True))
    assert {trace.id for trace in read_traces(tmp_path / "run")} == {"text", "none"}
    assert "ValueError: length 'long' is not a number of words" in (tmp_path / "run" / "failed.jsonl").read_text()


@pytest.mark.parametrize("role", ["extractor", "contradiction"])
async def test_a_request_that_fails_keeps_the_pairs_before_it(start: Start, role: str) -> None:
    """For example a text that has grown too long for the memory's model."""

    @dataclass
    class Refusing(Script):
        def __call__(self, messages: Any, call: dict[str, Any]) -> str:
            if call["role"] == role and (role, "root:0") <= (call["role"], call["key"]):
                raise ModelError("HTTP 400: too long")
            return super().__call__(messages, call)

    steps = STORY_STEPS | steps_after("root:0:1", ["Anna", "keeper", "lamp"])
    values = {**MEMORY["judgments"], "Anna": 4, "keeper": 3, "lamp": 2}
    start(Refusing(steps, **{**MEMORY, "judgments": values}))
    context = SearchContext(width=3, depth=3, eta=1.0, embedding="words", nearest=0, similarity=0.4)
    result = await graph.ainvoke(REQUEST, context=context)
    assert result["stop"] == "HTTP 400: too long" and result["dropped"] is None
    texts = [STORY["0/0"], STORY["1/1"]] if role == "extractor" else [STORY["0/0"]]
    assert result["response"] == "".join(texts), "a choice is kept, without facts"
    assert len(result["targets"]) == len(texts) and result["layers"][-1]["facts"] == ([] if texts[1:] else ANY)


async def test_a_rewrite_that_fails_leaves_the_choice(start: Start) -> None:
    class Refusing(Script):
        def writer(self, key: str, request: str) -> str:
            if key.endswith("rewrite"):
                raise ModelError("HTTP 400: too long")
            return super().writer(key, request)

    rows = {"one": [3, 1, 1, 1, 1, 1, 1], "two": [1, 3, 1, 1, 1, 1, 1]}
    start(Refusing(steps_after("root", ["one", "two"]), rows))
    result = await graph.ainvoke(REQUEST, context=SearchContext(width=2, depth=1, eta=2.5))
    assert result["response"] == "one" and result["stop"] == "depth"


async def test_steps_that_cannot_be_continued_are_still_a_pair(start: Start) -> None:
    """If the server's context is full, looking ahead fails: the judged candidates decide the layer."""

    class Full(Script):
        def writer(self, key: str, request: str) -> str:
            if key.startswith("root:"):
                raise ModelError("HTTP 400: too long")
            return super().writer(key, request)

    for simulations in (0, 6):
        start(Full(steps_after("root", ["one", "two"]), {"one": 4.0, "two": 2.0}))
        result = await graph.ainvoke(REQUEST, context=SearchContext(width=2, depth=3, eta=1.0, simulations=simulations))
        assert (result["response"], result["stop"]) == ("one", "no candidate: HTTP 400: too long")
        assert [target["segments"][1]["call"] for target in result["targets"]] == ["root/0"]


async def test_no_facts_are_extracted_from_the_last_step(start: Start) -> None:
    """Nothing can contradict it: its facts would be wasted calls."""
    script = Script(STORY_STEPS, **MEMORY)
    start(script)
    await graph.ainvoke(
        REQUEST, context=SearchContext(width=3, depth=2, eta=1.0, embedding="words", nearest=0, similarity=0.4)
    )
    assert [key for role, key, _ in script.calls if role == "extractor"] == ["root/0/facts"]


async def test_each_candidate_is_checked_against_the_memory_once(start: Start, tmp_path: Path) -> None:
    """Excluded, chosen or critiqued: in a recorded run no call is made twice."""
    rewritten = "Anna the keeper dreams by the red lamp."
    values = {**MEMORY["judgments"], STORY["1/0"]: 2.4, STORY["1/1"]: 2.0, "dull": [1, 3, 1, 1, 1, 1, 1]}
    values[rewritten] = 4.0
    start(Script({**STORY_STEPS, "root:0/1/rewrite": rewritten}, **{**MEMORY, "judgments": values}))
    context = SearchContext(width=3, depth=2, eta=2.5, embedding="words", nearest=0, similarity=0.4)
    await acollect(
        graph, [{"id": "r", **REQUEST}], tmp_path / "run", context=context, options=RunOptions(no_cache=True)
    )
    (trace,) = read_traces(tmp_path / "run")
    assert trace.result is not None, trace.reason
    assert trace.result["response"].endswith("dreams by the red lamp."), trace.result["stop"]
    critics = [call.key for call in trace.calls if call.role == "critic"]
    assert critics == ["root:0/1/critic/purpose"], "no critique from a sibling that contradicts the memory"


async def test_an_empty_step_is_no_sibling(start: Start) -> None:
    """It is requested once: a reply to a reminder would be no sibling."""
    script = Script(steps_after("root", ["one", "two", ""]), {"one": 4.0, "two": 2.0})
    start(script)
    result = await graph.ainvoke(REQUEST, context=SearchContext(width=3, depth=1, eta=1.0))
    assert [step["text"] for step in result["layers"][0]["candidates"]] == ["one", "two"]
    assert [key for role, key, _ in script.calls if role == "writer"] == ["root/0", "root/1", "root/2"]


async def test_a_rewritten_step_is_a_node_of_its_own(start: Start) -> None:
    rows = {"one": [3, 1, 1, 1, 1, 1, 1], "two": [1, 3, 1, 1, 1, 1, 1], "better": 4.0, "on": 3.0, "off": 3.5}
    steps = steps_after("root", ["one", "two"]) | {"root/0/rewrite": "better"} | steps_after("root:2", ["on", "off"])
    start(Script(steps, rows))
    result = await graph.ainvoke(REQUEST, context=SearchContext(width=2, depth=2, eta=2.5))
    assert result["response"] == "betteroff"
    assert [node["id"] for node in result["tree"] if node["parent"] == "root"] == ["root:0", "root:1", "root:2"]


async def test_a_role_that_fails_keeps_the_pairs_before_it(start: Start) -> None:
    steps = steps_after("root", ["one", "two"]) | steps_after("root:0", ["three", "four"])
    start(Script(steps, {"one": 4.0, "two": 2.0, "three": 0, "four": 0}))
    result = await graph.ainvoke(REQUEST, context=SearchContext(width=2, depth=2, eta=1.0))
    assert result["stop"].startswith("no candidate") and result["response"] == "one"
    assert len(result["targets"]) == 1 and result["dropped"] is None


async def test_the_same_replies_give_the_same_traces_at_any_speed(start: Start, tmp_path: Path) -> None:
    context = SearchContext(width=3, depth=3, eta=1.0, simulations=10, parallel=3, lookahead=2)
    records = [{"id": f"r{i}", "prompt": f"Request {i}", "length": 300} for i in range(5)]
    for name, delays in (("calm", None), ("fast", random.Random(1)), ("slow", random.Random(2))):
        start(tree_reply, delays)
        await acollect(graph, records, tmp_path / name, context=context, options=RunOptions(no_cache=True))
    calm, *others = (outcomes(tmp_path / name) for name in ("calm", "fast", "slow"))
    assert len(calm) == 5 and all(other == calm for other in others)
    trees = [trace.tree or [] for trace in read_traces(tmp_path / "calm")]
    assert any(node["outcome"] == "failed" for tree in trees for node in tree)
    assert sum(len(trace.targets) for trace in read_traces(tmp_path / "calm")) >= 12


def test_the_command(tmp_path: Path) -> None:
    scores = (2.75, 3.5, 4.25)
    judgments = [json.dumps({"analysis": ""} | dict.fromkeys(PRINCIPLES, weights_of(score))) for score in scores]
    rules = [
        {"role": "writer", "replies": [f"Letter number {i}, and {'more ' * i}." for i in range(1, 9)]},
        {"role": "judge", "replies": judgments},
    ]
    script = write_lines(tmp_path / "rules.jsonl", rules)
    requests = write_lines(tmp_path / "requests.jsonl", [{"prompt": f"Letter {i}", "length": 100} for i in range(3)])
    arguments = [sys.executable, "graphs/longdpo_collect.py", "--model", f"scripted:{script}", "--weights", "stated"]
    arguments += ["--out", str(tmp_path / "run")]
    done = subprocess.run(
        [*arguments, "--input", str(requests)], capture_output=True, text=True, env=environment(tmp_path / "c")
    )
    assert done.returncode == 0, done.stderr
    assert "pairs" in done.stdout and "3 from 3 requests" in done.stdout
    assert "why responses stopped" in done.stdout and "end 3" in done.stdout
    none = subprocess.run(arguments, capture_output=True, text=True, env=environment(tmp_path / "c"))
    assert none.returncode == 2 and "--input: name a file of requests" in none.stderr


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--embedding", "nowhere/model"], "embedding model 'nowhere/model' cannot be loaded"),
        (["--embedding", "http://127.0.0.1:9/v1"], "write an endpoint as http://host:8000/v1#MODEL"),
        (["--seed", 10**20], "--seed 100000000000000000000: give a number from"),
        (["--in-flight", 10**11], "--in-flight 100000000000: at most 100,000"),
        (["--cache-limit", "nan"], "--cache-limit nan: give a size"),
    ],
)
def test_wrong_options_are_reported_before_any_call(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], options: list[Any], message: str
) -> None:
    requests = write_lines(tmp_path / "requests.jsonl", [REQUEST])
    script = write_lines(tmp_path / "rules.jsonl", [{"replies": ["So."]}])
    options = ["--input", requests, "--model", f"scripted:{script}", "--out", tmp_path / "run", "--no-cache", *options]
    assert run_app(command(main), [str(option) for option in options]) == 2
    assert message in one_error(capsys.readouterr().err) and not (tmp_path / "run").exists()
