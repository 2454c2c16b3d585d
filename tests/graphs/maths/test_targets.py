"""Pairs of steps from maths trees, why a tree has none, and the rows that the pairs become."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

from agentsys.collect import RunOptions, acollect
from agentsys.graphs.maths.search import Context, graph
from agentsys.graphs.maths.solver import first_step
from agentsys.models.chat import EndpointChatModel
from agentsys.models.tokenizers import FolderTokenizer
from agentsys.traces import Trace, read_traces
from tests.support.maths_policy import HOPELESS, QUESTION, RECORD, RIGHT, SLIP, WRONG, Policy, find_node, pupil
from tests.support.tiny import make_tokenizer

Start = Callable[..., Policy]


def sides(target: Mapping[str, Any]) -> tuple[str, str, str]:
    """The keys of a pair's prompt, chosen and rejected call."""
    (prompt, chosen), (same_prompt, rejected) = target["segments"], target["rejected"]
    assert prompt == same_prompt and prompt["prompt"]
    return prompt["prompt"], chosen["call"], rejected["call"]


async def test_pairs_as_in_step_dpo(start: Start) -> None:
    """At each correct prefix a step that reaches the answer against the first wrong one; nothing below a wrong step."""
    start()
    result = await graph.ainvoke({**RECORD}, context=Context(simulations=12, width=4, depth=4, rollouts=2))
    pairs = [sides(target) for target in result["targets"]]
    assert pairs == [("root/1", "root/0", "root/1"), ("root:0/1", "root:0/0", "root:0/1")]
    assert result["dropped"] is None
    first, second = (target["scores"] for target in result["targets"])
    assert first["rejected"] == 0 and 0 < first["margin"] == first["chosen"] < 1 and second["margin"] == 1
    assert second["depth"] == 1 and first["rejected_tried"] >= 2


async def test_pairs_as_in_mcts_dpo(start: Start) -> None:
    start()
    context = Context(pairs="mcts", simulations=12, width=4, depth=4, rollouts=2)
    result = await graph.ainvoke({**RECORD}, context=context)
    for target in result["targets"]:
        _, chosen, rejected = sides(target)
        by_call = {n["call"]: n for n in result["tree"] if "call" in n}
        family = [n for n in result["tree"] if n["parent"] == by_call[chosen]["parent"]]
        assert (
            by_call[chosen]["q"] == max(n["q"] for n in family) > by_call[rejected]["q"] == min(n["q"] for n in family)
        )
        scores = target["scores"]
        assert scores["margin"] == pytest.approx(by_call[chosen]["q"] - by_call[rejected]["q"])
        visits = by_call[chosen]["visits"], by_call[rejected]["visits"]
        assert (scores["chosen_visits"], scores["rejected_visits"]) == visits
        assert scores["label_smoothing"] == pytest.approx(min(1 - 1 / (1 + visits[1] / max(1, visits[0])), 0.5))
    assert [sides(target)[1] for target in result["targets"]] == ["root/0", "root:0/0"]


async def test_pairs_need_a_margin(start: Start) -> None:
    """The share of right answers after the first step is 0.5 with these rollouts: a pair there needs a margin below."""
    start()
    prefixes = {}
    for margin in (0.4, 0.9):
        context = Context(simulations=12, width=4, depth=4, rollouts=2, margin=margin)
        result = await graph.ainvoke({**RECORD}, context=context)
        prefixes[margin] = [sides(target)[0] for target in result["targets"]]
    assert prefixes == {0.4: ["root/1", "root:0/1"], 0.9: ["root:0/1"]}
    unsure = Context(budget=1, width=4, depth=4, rollouts=2, margin=0.9)
    result = await graph.ainvoke({**RECORD}, context=unsure)
    assert result["dropped"] == "no pair: no pair has a margin of 0.9"
    mcts = Context(pairs="mcts", simulations=12, width=4, depth=4, rollouts=2, margin=1.0)
    result = await graph.ainvoke({**RECORD}, context=mcts)
    assert [sides(target)[0] for target in result["targets"]] == ["root:0/1"], "Q differs by 2 there"
    with pytest.raises(ValueError, match=r"margin: 1\.5 is above 1"):
        Context(margin=1.5)


async def test_scores_say_how_sure_both_sides_are(start: Start) -> None:
    """Wilson's interval of 6 right in 9 tries and of 0 in 9, by hand from its formula."""
    start()
    result = await graph.ainvoke({**RECORD}, context=Context(simulations=12, width=4, depth=4, rollouts=2))
    for target in result["targets"]:
        scores = target["scores"]
        right = round(scores["chosen"] * scores["chosen_tried"])
        low, high = wilson(right, scores["chosen_tried"])[0], wilson(0, scores["rejected_tried"])[1]
        assert (scores["chosen_low"], scores["rejected_high"]) == (pytest.approx(low), pytest.approx(high))
        assert 0 < scores["chosen_low"] < scores["chosen"] and scores["rejected_high"] < 0.8


def wilson(right: float, tried: float) -> tuple[float, float]:
    """The roots p of (share - p)^2 = z^2 p (1 - p) / n."""
    z2, share = 1.96**2, right / tried
    a, b, c = 1 + z2 / tried, 2 * share + z2 / tried, share**2
    root = math.sqrt(b * b - 4 * a * c)
    return (b - root) / (2 * a), (b + root) / (2 * a)


async def test_rollouts_are_checked_siblings(start: Start) -> None:
    """A rollout counts for the child that begins with the same step; its first step stays in the tree."""
    start()
    result = await graph.ainvoke({**RECORD}, context=Context(simulations=3, width=4, depth=4, rollouts=4))
    rollouts = find_node(result, "root:0")["rollouts"]
    assert [(one["first"], one["final"], one["right"]) for one in rollouts] == [
        (": good 12+5=17, so \\boxed{17}", True, True), (": 12+5=18, so \\boxed{18}", True, False)
    ] * 2  # fmt: skip
    target = next(target for target in result["targets"] if sides(target)[1] == "root:0/0")
    assert target["scores"]["chosen_tried"] == 1 + 2, "the final step itself, and two rollouts"
    assert target["scores"]["rejected_tried"] == 1 + 2


def test_the_first_step_of_a_text() -> None:
    assert first_step(": so\n\nStep 3: and Step 4", 1) == ": so\n\n"
    assert first_step(": so, as Step 2 says. Step 3: x", 1) == ": so, as Step 2 says."
    assert first_step(": the end", 1) == ": the end"


async def test_texts_that_differ_in_white_space_are_chosen_once(start: Start) -> None:
    def author(prefix: str, key: str, seed: int) -> str:
        texts = ["Step 1: \\boxed{17}", "Step 1:  \\boxed{17}", "Step 1: \\boxed{3}", "Step 1:  \\boxed{4}"]
        return texts[int(key[-1])]

    start(author)
    result = await graph.ainvoke({**RECORD}, context=Context(simulations=2, width=4, depth=2))
    assert [sides(target) for target in result["targets"]] == [("root/2", "root/0", "root/2")]


async def test_texts_that_differ_in_white_space_are_no_mcts_pair(start: Start) -> None:
    """Two steps with the same text whose rollouts differ would teach white space."""

    def author(prefix: str, key: str, seed: int) -> str:
        number = int(key[-1]) % 2
        if not prefix:
            return f"Step 1:{' ' * (number + 1)}so\n\nStep 2: {17 - number}"
        return f": \\boxed{{{17 if prefix.startswith('Step 1: so') else 16}}}"

    start(author)
    result = await graph.ainvoke({**RECORD}, context=Context(pairs="mcts", simulations=3, width=2, depth=2))
    assert find_node(result, "root:0")["q"] > find_node(result, "root:1")["q"]
    assert result["targets"] == [] and result["dropped"].startswith("no pair: ")


async def test_why_there_is_no_pair(start: Start) -> None:
    async def reason_for(*solutions: str, answer: str = "17") -> str:
        def author(prefix: str, key: str, seed: int) -> str:
            return solutions[int(key[-1]) % len(solutions) if "rollout" in key else 0].removeprefix(prefix)

        start(author)
        context = Context(simulations=1, width=2, depth=2, step_tokens=40)
        return (await graph.ainvoke({"question": QUESTION, "answer": answer}, context=context))["dropped"]

    assert await reason_for(RIGHT) == "no pair: every solution is right"
    assert await reason_for(RIGHT, answer="18") == "no pair: no solution is right"
    assert await reason_for("Step 1: and so on " * 20) == "no pair: no solution came to its end"
    assert await reason_for(RIGHT, SLIP) == "no pair: no step has a worse sibling", "only a rollout slips"


class Engine:
    """A server of one model with a real tokenizer, without HTTP: token ids in and out; it writes like `pupil`.

    A stop string is cut off the text and its ids are kept, as in llama.cpp and vLLM.
    """

    records_per_request = 1.0
    capacity = 4
    dialect, model, name, revision = "vllm", "tiny", "tiny", None

    def __init__(self, folder: Path) -> None:
        self.reader = make_tokenizer()
        self.reader.save_pretrained(folder)
        (folder / "config.json").write_text('{"model_type": "qwen2"}')
        self.tokenizer = FolderTokenizer(folder)
        self.endpoint = self
        self.adaptations: dict[str, Any] = {}
        self.count = 0

    async def serve(self) -> Engine:
        return self

    def set_in_flight(self, in_flight: int) -> None: ...

    async def aclose(self) -> None: ...

    async def post(self, route: str, body: dict[str, Any], measured: dict[str, Any], parse: Any) -> Any:
        measured["address"] = "nowhere"
        self.count += 1
        prefix = self.reader.decode(body["prompt"]).rpartition("<|im_start|>assistant\n")[2]
        rest = pupil(prefix, f"{self.count}", 0)
        end, stop = min([(rest.find(s), s) for s in body.get("stop", ()) if s in rest], default=(len(rest), ""))
        ids = await self.tokenizer.encode(rest[:end] + stop, special=False)
        ids = ids if stop else [*ids, self.reader.eos_token_id]
        choice = {"text": rest[:end], "token_ids": ids, "finish_reason": "stop"}
        usage = {"prompt_tokens": len(body["prompt"]), "completion_tokens": len(ids)}
        return parse({"choices": [choice], "usage": usage})


@pytest.mark.parametrize("pairs", ["step", "mcts"])
async def test_rows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, pairs: Any) -> None:
    """Rows hold the engine's own ids: the shared prefix, no token of the next step, an end of the turn at ends only."""
    from agentsys.trainers.row_filter import Filters
    from agentsys.trainers.rows import TargetOptions, make_rows, rows_of
    from agentsys.trainers.tokenize_rows import RowTokenizer

    folder = tmp_path / "student"
    engine = Engine(folder)
    for module in ("agentsys.systems", "agentsys.collect.fingerprint"):
        monkeypatch.setattr(f"{module}.load_model", lambda spec, default="": EndpointChatModel(engine=engine))
    context = Context(pairs=pairs, simulations=10, width=4, depth=4, rollouts=2)
    await acollect(graph, [RECORD], tmp_path / "run", context=context, options=RunOptions(no_cache=True))
    (trace,) = read_traces(tmp_path / "run")
    assert trace.outcome == "kept", trace.reason
    check_rows(trace, list(rows_of(trace, RowTokenizer(engine.reader))), engine)
    report = make_rows(
        [tmp_path / "run"], TargetOptions(student=str(folder), out=tmp_path / "rows"), Filters(validation=0)
    )
    assert report.rows["step", "train"] == len(trace.targets) and not report.dropped


def check_rows(trace: Trace, rows: list[dict[str, Any]], engine: Engine) -> None:
    calls = {call.key: call for call in trace.calls}
    end = engine.reader.eos_token_id
    assert len(rows) == len(trace.targets) >= 2
    for row, target in zip(rows, trace.targets, strict=True):
        assert row["ids_source"] == "engine"
        for side, segments in (("chosen", target.segments), ("rejected", target.rejected or ())):
            call = calls[str(segments[1].call)]
            assert row["prompt_ids"] == call.prompt_ids
            ids = row[f"{side}_ids"]
            assert (call.ids or [])[: len(ids)] == ids
            assert engine.reader.decode(ids).removesuffix("<|im_end|>") == call.text
            assert (ids[-1] == end) == ("boxed" in call.text), "a partial step does not end the turn"
        assert row["margin"] > 0
    assert [row["prompt"].endswith("\n\nStep 2") for row in rows] == [False, True]


async def test_rows_of_whole_solutions_and_of_process_rewards(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The "Step 2" between two calls is in the rows: the ids are those that the engine continued, without a gap."""
    from agentsys.trainers.rows import rows_of
    from agentsys.trainers.tokenize_rows import RowTokenizer

    engine = Engine(tmp_path / "student")
    for module in ("agentsys.systems", "agentsys.collect.fingerprint"):
        monkeypatch.setattr(f"{module}.load_model", lambda spec, default="": EndpointChatModel(engine=engine))
    context = Context(pairs="whole", process_rewards=True, simulations=10, width=4, depth=4, rollouts=2)
    await acollect(graph, [RECORD], tmp_path / "run", context=context, options=RunOptions(no_cache=True))
    (trace,) = read_traces(tmp_path / "run")
    rows = list(rows_of(trace, RowTokenizer(engine.reader)))
    [pair] = [row for row in rows if row["kind"] == "step"]
    chosen, rejected = (
        engine.reader.decode(pair["prompt_ids"] + pair[f"{side}_ids"]).rpartition("<|im_start|>assistant\n")[2]
        for side in ("chosen", "rejected")
    )
    assert chosen == f"{RIGHT}<|im_end|>" and rejected in [f"{text}<|im_end|>" for text in (SLIP, WRONG, HOPELESS)]
    solutions = [row for row in rows if row["kind"] == "prm"]
    labels = {}
    for row in solutions:
        for end, label, visits in zip(row["step_ends"], row["step_labels"], row["step_visits"], strict=True):
            text = engine.reader.decode(row["input_ids"][: end + 1]).rpartition("<|im_start|>assistant\n")[2]
            assert text not in labels, "each step has its label once"
            labels[text] = (label, visits)
    assert labels["Step 1: good 3*4=12.\n\nStep 2: good 12+5=17, so \\boxed{17}"] == (1.0, 1)
    assert 0 < labels["Step 1: good 3*4=12.\n\nStep 2"][0] < 1, "a step ends where the next one continues it"
    assert all(label == 0 for text, (label, _) in labels.items() if "bad" in text)
