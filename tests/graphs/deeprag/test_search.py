"""DeepRAG's search: the path with the fewest retrievals, the whole tree, failures and timing."""

from __future__ import annotations

import asyncio
import random
from itertools import product
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from langgraph.checkpoint.memory import InMemorySaver

from agentsys.collect import RunOptions, acollect, collect
from agentsys.graphs.deeprag.narrative import ANSWER, FINAL, FOLLOW_UP, SEARCH
from agentsys.graphs.deeprag.search import NOTHING_FOUND, DeepRAGSearch, SearchContext, graph
from agentsys.knowledge.context import PassageDict
from agentsys.models.errors import EndpointDown
from agentsys.traces import read_traces
from tests.support.deeprag_world import (
    PASSAGE,
    QUESTION,
    Install,
    World,
    best_path,
    json_end,
    nodes_of,
    path_of,
    tagged_end,
)
from tests.support.toys import outcomes, write_lines


async def test_a_thread_forgets_the_answers_of_an_earlier_question(install: Install) -> None:
    """In Studio: a question without an answer is refused, and earlier answers are not gold answers."""
    install(World(correct=frozenset({"0"}), ends=frozenset({"0", "1"})))
    threaded = DeepRAGSearch().builder().compile(checkpointer=InMemorySaver())
    thread: Any = {"configurable": {"thread_id": "1"}}
    record: Any = {"question": QUESTION, "answer": "Sweden", "answer_aliases": ["Sverige"]}
    first = await threaded.ainvoke(record, thread, context=SearchContext())
    assert (first["question"], first["answer"], first["dropped"]) == (QUESTION, "Sweden", None)
    second = await threaded.ainvoke(
        {"question": "Where is Oslo?", "answers": ["Nowhere"]}, thread, context=SearchContext()
    )
    assert (second["question"], second["dropped"]) == ("Where is Oslo?", "no correct path")
    with pytest.raises(ValueError, match="no right answer"):
        await threaded.ainvoke({"question": QUESTION}, thread, context=SearchContext())


@pytest.mark.parametrize("parallel", [1, 4])
async def test_the_fewest_retrievals_win_although_a_costlier_path_ends_first(install: Install, parallel: int) -> None:
    """The released code takes "1" here: both children of a node get the same priority there."""
    world = install(World(correct=frozenset({"1", "000"}), ends=frozenset({"1", "000", "001", "01"})))
    world.delay = lambda key: 0.0 if key.startswith("root:1") else 0.003
    result = await world.run(parallel=parallel)
    assert (best_path(result), result["retrievals"], result["answer"], result["dropped"]) == ("000", 0, "Sweden", None)
    finished = [key for _, _, key in world.calls if key.endswith("conclude")]
    if parallel == 1:
        assert finished == ["root:0:0:0/conclude"]
        assert nodes_of(result)["1"]["outcome"] == "open", "it could no longer win"
    else:
        assert finished.index("root:1/conclude") < finished.index("root:0:0:0/conclude")
        assert nodes_of(result)["1"]["outcome"] == "goal"


async def test_a_path_is_tested_when_it_is_popped_not_when_it_is_made(install: Install) -> None:
    """All paths without a retrieval are popped, and are wrong, before the first path with one ends."""
    world = install(World(correct=frozenset({"1", "01", "001"}), ends=frozenset({"1", "01", "001", "000"})))
    result = await world.run(max_steps=3)
    assert (best_path(result), result["retrievals"]) == ("1", 1)
    order = [key for _, role, key in world.calls if role == "decomposer"]
    assert order == [f"{node}/decompose" for node in ("root", "root:0", "root:0:0", "root:1")], "none after max_steps"
    assert [key for _, _, key in world.calls if key.endswith("conclude")] == ["root:0:0:0/conclude", "root:1/conclude"]


ALL_PATHS = ["".join(path) for depth in range(4) for path in product("01", repeat=depth)]
some_paths = st.frozensets(st.sampled_from(ALL_PATHS))


@given(correct=some_paths, ends=some_paths, lost=st.frozensets(st.sampled_from(ALL_PATHS[1:]), max_size=3),
       parallel=st.integers(1, 4))  # fmt: skip
@settings(max_examples=60, deadline=None)
async def test_the_result_is_the_best_of_all_paths(
    correct: frozenset[str], ends: frozenset[str], lost: frozenset[str], parallel: int
) -> None:
    """Against brute force over all 2^T paths, with ends and failures anywhere, in both stages."""

    def is_reached(path: str) -> bool:
        return not any(path[:i] in ends for i in range(len(path))) and not any(
            path[:i] in lost for i in range(1, len(path) + 1)
        )

    leaves = [path for path in ALL_PATHS if is_reached(path) and (path in ends or len(path) == 3)]
    expected = min((p for p in leaves if p in correct), key=lambda p: (p.count("1"), len(p), p), default=None)
    failing = frozenset(f"root{''.join(f':{d}' for d in path)}/answer" for path in lost)
    for stage in ("imitation", "calibration"):
        world = World(correct=correct, ends=ends, failing=failing)
        with pytest.MonkeyPatch.context() as patch:
            model = world.model("any")
            patch.setattr("agentsys.systems.load_model", lambda spec, default="", model=model: model)
            patch.setattr(
                "agentsys.knowledge.context.Knowledge.search", lambda self, query, world=world: world.search(query)
            )
            result = await world.run(stage=stage, parallel=parallel, max_steps=3)
        if not expected:  # no path, or the empty path, which is no example
            assert result["dropped"] == ("no correct path" if expected is None else "answered without a sub-query")
            assert result["targets"] == []
            continue
        assert (best_path(result), result["retrievals"]) == (expected, expected.count("1"))
        assert len(result["targets"]) == (1 if stage == "imitation" else len(expected))
        if stage == "calibration":
            tested = [key for _, _, key in world.calls if key.endswith("/conclude")]
            assert sorted(path_of(key.partition("/")[0]) for key in tested) == sorted(leaves), "the whole tree"


@pytest.mark.parametrize("stage", ["imitation", "calibration"])
async def test_the_history_has_a_limit(install: Install, stage: str) -> None:
    """Also on the path that never retrieves, where the released code has none."""
    world = install(World(correct=frozenset({"0000"})))
    result = await world.run(stage=stage, max_steps=4)
    assert best_path(result) == "0000"
    assert not [key for _, role, key in world.calls if role == "decomposer" and key.count(":") >= 4]
    assert max(node["depth"] for node in result["tree"]) == 4


@pytest.mark.parametrize("stage", ["imitation", "calibration"])
async def test_without_a_correct_path_nothing_is_learned(install: Install, tmp_path: Path, stage: Any) -> None:
    install(World())
    record = {"id": "a", "question": QUESTION, "answers": ["Sweden"]}
    await acollect(
        graph, [record], tmp_path, context=SearchContext(stage=stage, max_steps=2), options=RunOptions(no_cache=True)
    )
    [trace] = read_traces(tmp_path)
    assert (trace.outcome, trace.reason, trace.targets) == ("dropped", "no correct path", [])
    assert trace.tree is not None
    assert [path_of(node["id"]) for node in trace.tree] == ["", "0", "00", "01", "1", "10", "11"]
    assert [node["cost"] for node in trace.tree] == [0, 0, 0, 1, 1, 1, 2]
    assert [node["outcome"] for node in trace.tree] == ["expanded"] * 2 + ["end"] * 2 + ["expanded"] + ["end"] * 2
    assert {node["parent"] for node in trace.tree} == {None, "root", "root:0", "root:1"}
    ends = [node for node in trace.tree if node["outcome"] == "end"]
    assert all(node["answer"] == "Norway" and node["correct"] is False for node in ends)
    assert trace.tree[4]["step"]["passages"] == [PASSAGE], "the steps of a path hold its state"
    assert trace.tree[0]["sub_query"] == "What is fact one?"


async def test_a_record_without_a_right_answer_is_refused(install: Install) -> None:
    install(World())
    with pytest.raises(ValueError, match="no right answer: a record needs `answer` or `answers`"):
        await graph.ainvoke({"question": QUESTION, "answer": ""}, context=SearchContext())


@pytest.mark.parametrize("stage", ["imitation", "calibration"])
@pytest.mark.parametrize(
    ("failing", "failed"),
    [
        ("root:0/answer", {"0"}),
        ("root:1/answer", {"1"}),
        ("root:0/decompose", {"0"}),
        ("root:0:0/conclude", {"00"}),
    ],
)
async def test_a_failing_call_ends_its_branch_only(
    install: Install, stage: str, failing: str, failed: set[str]
) -> None:
    world = install(World(correct=frozenset(ALL_PATHS), failing=frozenset({failing})))
    result = await world.run(stage=stage, max_steps=2)
    nodes = nodes_of(result)
    assert {path for path, node in nodes.items() if node["outcome"] == "failed"} == failed
    assert all(f"no reply at {failing}" in nodes[path]["error"] for path in failed)
    best = min((p for p in ("00", "01", "10", "11") if not any(p.startswith(f) for f in failed)),
               key=lambda p: (p.count("1"), p))  # fmt: skip
    assert best_path(result) == best


async def test_a_failing_decision_costs_its_pair(install: Install) -> None:
    """Without it there is no prefix for a pair."""
    world = install(World(correct=frozenset({"00", "10"}), failing=frozenset({"root:0/decide"})))
    result = await world.run(stage="calibration", max_steps=2)
    assert (best_path(result), result["dropped"]) == ("00", None)
    assert [target["segments"][0]["prompt"] for target in result["targets"]] == ["root/decide"]
    world = install(World(correct=frozenset({"0"}), ends=frozenset({"0", "1"}), failing=frozenset({"root/decide"})))
    none = await world.run(stage="calibration", max_steps=2)
    assert (none["targets"], none["dropped"]) == ([], "no decision: no reply at root/decide")


async def test_the_model_decides_only_where_a_pair_can_come_of_it(install: Install) -> None:
    world = install(World(correct=frozenset({"010", "110"})))
    await world.run(stage="calibration", max_steps=3)
    assert sorted(key for _, role, key in world.calls if role == "decider") == [
        "root/decide", "root:0/decide", "root:0:1/decide",
    ]  # fmt: skip
    world = install(World())
    await world.run(stage="calibration", max_steps=3)
    assert not [key for _, role, key in world.calls if role == "decider"], "no correct path, no pair"


async def test_pairs_of_all_nodes(install: Install) -> None:
    """Table 6: where a right answer is reached, also off the best path; the better child has the cheapest one below."""
    world = install(World(correct=frozenset({"01", "10", "11"})))
    result = await world.run(stage="calibration", max_steps=2, pairs="all")
    assert best_path(result) == "01"
    chosen = {t["segments"][0]["prompt"]: t["segments"][1]["text"] for t in result["targets"]}
    assert chosen == {"root/decide": ANSWER, "root:0/decide": f"{SEARCH}\n", "root:1/decide": ANSWER}


async def test_other_paths_to_imitate(install: Install) -> None:
    """Table 5: the path with the most retrievals, or a random correct path."""
    correct = frozenset({"001", "010", "110"})
    results = {path: await install(World(correct=correct)).run(max_steps=3, path=path) for path in ("least", "most")}
    assert {path: best_path(result) for path, result in results.items()} == {"least": "001", "most": "110"}
    assert results["most"]["retrievals"] == 2 and results["most"]["targets"][0]["kind"] == "sft"
    paths = set()
    for seed in range(12):
        runs = [await install(World(correct=correct)).run(max_steps=3, path="random", choice_seed=seed) for _ in "ab"]
        assert best_path(runs[0]) == best_path(runs[1])
        paths.add(best_path(runs[0]))
    assert paths == correct
    none = await install(World()).run(max_steps=2, path="most")
    assert (none["dropped"], none["targets"]) == ("no correct path", [])


async def test_a_retrieved_twin_is_pruned(install: Install) -> None:
    """Stage I: the writers see no documents, so with equal answers both paths go on alike; one costs a retrieval."""
    replies = {"root:0/answer": "fact  one", "root:1/answer": "fact one"}
    world = install(World(correct=frozenset({"00", "11"}), replies=replies))
    result = await world.run(max_steps=2)
    assert (best_path(result), nodes_of(result)[""]["twins"]) == ("00", True)
    assert "1" not in nodes_of(result) and "twins" not in nodes_of(result)["0"]
    for options in ({"path": "most"}, {"stage": "calibration"}):
        world = install(World(correct=frozenset({"00", "11"}), replies=replies))
        assert "11" in nodes_of(await world.run(max_steps=2, **options)), "there the twin matters"


@pytest.mark.parametrize("stage", ["imitation", "calibration"])
async def test_a_failing_retriever_ends_the_retrieved_branch_only(install: Install, stage: str) -> None:
    world = install(World(correct=frozenset({"01"}), lost=frozenset({"What is fact one?"})))
    result = await world.run(stage=stage, max_steps=2)
    assert best_path(result) == "01"
    assert nodes_of(result)["1"]["error"] == "the embedding server says no"


async def test_an_endpoint_that_is_down_is_no_branch(install: Install) -> None:
    world = install(World(correct=frozenset({"00"})))

    async def search(query: str) -> list[PassageDict]:
        raise EndpointDown("no server is reachable")

    world.search = search  # type: ignore[method-assign]
    with pytest.raises(EndpointDown):
        await world.run(max_steps=2)


async def test_where_no_passage_helps_the_branch_ends(install: Install) -> None:
    replies = {"root:1/answer": f"{NOTHING_FOUND}.", "root:0/answer": NOTHING_FOUND}
    world = install(World(correct=frozenset({"1", "01"}), ends=frozenset({"1"}), replies=replies))
    result = await world.run(max_steps=2)
    assert best_path(result) == "01", "a parametric answer may use these words: it has no passages"
    assert nodes_of(result)["1"]["outcome"] == "failed"
    assert "no passage is relevant" in nodes_of(result)["1"]["error"]


async def test_each_part_is_written_by_its_own_model(install: Install) -> None:
    """Section 4.3: a large model asks and reads; the target model writes the parametric answers."""
    world = install(World(correct=frozenset({"11"})))
    await world.run(
        model="rest", decomposer_model="large", reader_model="careful", parametric_model="target", max_steps=2
    )
    assert {(model, role) for model, role, _ in world.calls} == {
        ("large", "decomposer"), ("careful", "reader"), ("target", "parametric"), ("rest", "concluder"),
    }  # fmt: skip
    branch = {role: {key[-9:] for _, other, key in world.calls if other == role} for role in ("reader", "parametric")}
    assert branch == {"reader": {":1/answer"}, "parametric": {":0/answer"}}


async def test_stage_one_shows_documents_to_the_reader_only(install: Install) -> None:
    world = install(World(correct=frozenset({"11"})))
    await world.run(max_steps=2)
    keys = {key for key, messages in world.messages.items() if "studied in Uppsala" in str(messages)}
    assert keys == {key for key in world.messages if key.endswith(":1/answer")}
    assert "What is fact 1?" in str(world.messages["root:1:1/answer"])
    target_prompt = world.messages["root:1:0/answer"][-1]["content"]
    assert target_prompt == "What is fact 1?", "the sub-query alone"


def test_stage_two_has_one_model() -> None:
    for name in ("decomposer_model", "reader_prompt", "parametric_model", "concluder_model"):
        option: dict[str, Any] = {name: "x"}
        with pytest.raises(ValueError, match=f"{name}: stage II has one model"):
            SearchContext(stage="calibration", **option)
    with pytest.raises(ValueError, match="path: most is not used in stage calibration; leave it out"):
        SearchContext(stage="calibration", path="most")
    with pytest.raises(ValueError, match="pairs: all is not used in stage imitation; leave it out"):
        SearchContext(pairs="all")
    with pytest.raises(ValueError, match="max_steps: 0 is below 1"):
        SearchContext(max_steps=0)


async def test_the_lenient_match_is_an_option(install: Install) -> None:
    replies = {"root:0/conclude": '{"long": "It is.", "short": "the Kingdom of Sweden"}'}
    world = install(World(correct=frozenset({"1"}), ends=frozenset({"0", "1"}), replies=replies))
    assert best_path(await world.run()) == "1"
    assert best_path(await world.run(match="contains")) == "0"


@pytest.mark.parametrize("depth", [1, 2, 3, 4])
async def test_the_whole_tree_has_all_paths(install: Install, depth: int) -> None:
    """No early stop: 2^d paths, and one call per piece."""
    world = install(World(correct=frozenset(map("".join, product("01", repeat=depth)))))
    result = await world.run(stage="calibration", max_steps=depth)
    nodes = nodes_of(result)
    assert sorted(nodes) == sorted("".join(path) for d in range(depth + 1) for path in product("01", repeat=d))
    assert [nodes[path]["outcome"] for path in nodes if len(path) == depth] == ["goal"] * 2**depth
    assert all(node["cost"] == path.count("1") for path, node in nodes.items())
    assert len(world.calls) == 3 * (2**depth - 1) + 2**depth + depth
    assert {role for _, role, _ in world.calls} == {"decomposer", "decider", "answerer", "concluder"}
    assert best_path(result) == "0" * depth


async def test_both_children_share_the_sub_query_and_the_decision_is_recorded(install: Install) -> None:
    world = install(World(correct=frozenset({"00"})))
    result = await world.run(stage="calibration", max_steps=2)
    nodes = nodes_of(result)
    assert nodes["0"]["step"]["sub_query"] == nodes["1"]["step"]["sub_query"] == nodes[""]["sub_query"]
    assert [nodes[path]["step"]["retrieved"] for path in ("0", "1")] == [False, True]
    assert nodes[""]["decision"]["retrieve"] is True and nodes[""]["decision"]["stated"] is True


@pytest.mark.parametrize(("stage", "parallel"), [("imitation", 1), ("imitation", 3), ("calibration", 1)])
def test_the_result_does_not_depend_on_timing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stage: Any, parallel: int
) -> None:
    """Three runs through collect with different delays at every call and search: the same traces, byte for byte."""
    write_end = json_end if stage == "imitation" else tagged_end
    queries = [
        {"role": "decomposer", "key": f"{'?' * (4 + 2 * depth)}/decompose", "replies": [f"{FOLLOW_UP} Fact {depth}?"]}
        for depth in range(3)
    ]
    rules: list[dict[str, Any]] = [
        {"key": "root:0:1/decompose", "replies": [f"{FINAL} "]},
        *queries,
        {"role": "decomposer", "replies": [f"{FOLLOW_UP} One more?"]},
        {"role": "decider", "replies": [SEARCH, f"{ANSWER} yes"]},
        {"key": "root:0:0/answer", "replies": [" "]},  # an empty reply: the branch ends
        {"key": "root:0:0/answer*", "replies": [" "]},
        {"key": "*/answer", "replies": ["Uppsala", "Lund", "Oslo"]},
        {"role": "concluder", "replies": list(map(write_end, ("Norway", "Denmark", "Sweden", "Finland")))},
    ]
    script = write_lines(tmp_path / "replies.jsonl", rules)
    delays = random.Random()

    async def search(self: Any, query: str) -> list[PassageDict]:
        await asyncio.sleep(delays.random() / 100)
        return [PASSAGE]

    monkeypatch.setattr("agentsys.knowledge.context.Knowledge.search", search)
    records = [{"id": f"q{i}", "question": f"{i}? {QUESTION}", "answer": "Sweden"} for i in range(6)]
    runs = []
    for seed in range(3):
        out = tmp_path / f"run{seed}"
        model = f"langchain:tests.support.deeprag_world:RandomDelayChatModel?script={script}&seed={seed}"
        options = RunOptions(no_cache=True, in_flight=(2, 8, 64)[seed])
        collect(graph, records, out, context=SearchContext(stage=stage, model=model, parallel=parallel, max_steps=3),
                options=options)  # fmt: skip
        runs.append(outcomes(out))
    assert len(runs[0]) == 6
    assert runs[0] == runs[1] == runs[2]
    outcomes_of_run = {trace.outcome for trace in read_traces(tmp_path / "run0")}
    assert "kept" in outcomes_of_run and "failed" not in outcomes_of_run
    kept = next(trace for trace in read_traces(tmp_path / "run0") if trace.outcome == "kept")
    assert "failed" in {node["outcome"] for node in kept.tree or ()}
