"""graphs/maths with a scripted policy on token ids: steps, values, pairs, rows; the collect command."""

from __future__ import annotations

import asyncio
import json
import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from agentsys.collect import RunOptions, acollect
from agentsys.commands import command, run_app
from agentsys.graphs.maths.search import Context, graph
from agentsys.graphs.maths_collect import main
from agentsys.models.chat import EndpointChatModel
from agentsys.models.scripted import ScriptedChatModel
from agentsys.models.tokens import FolderTokenizer
from agentsys.models.wire import Reply
from agentsys.traces import Trace, read_traces
from tests.support.tiny import make_tokenizer
from tests.support.toys import one_error, outcomes, write_lines

EOS = 0
QUESTION = "What is 3 times 4, plus 5?"
REFERENCE = "17"
RECORD = {"id": "r", "question": QUESTION, "answer": f"3*4=<<3*4=12>>12\n#### {REFERENCE}"}

Author = Callable[[str, str, int], str]
"""The solution so far, the call's key, its seed -> the whole rest of the solution."""


class Policy(ScriptedChatModel):
    """Writes the rest that its author knows, up to a stop string, whose ids it leaves; a letter is a token.

    The judge believes a solution with "good" in it. `asked` holds every call: key, ids continued, messages.
    """

    author: Any = None
    delays: Any = None
    tells_ids: bool = True
    asked: list[tuple[str, list[int], str]] = []  # noqa: RUF012

    def __init__(self, **settings: Any) -> None:
        super().__init__(respond=lambda messages, call: "", **settings)

    async def complete(self, messages: Sequence[Mapping[str, Any]], **kwargs: Any) -> Reply:
        if self.delays is not None:
            await asyncio.sleep(self.delays.random() / 200)
        shown = "\n".join(str(message["content"]) for message in messages)
        begun = kwargs.get("continue_ids") or []
        self.asked.append((kwargs["key"], begun, shown))
        if kwargs["role"] == "judge":
            word = "Yes" if "good" in str(messages[-1]["content"]) else "No"
            return Reply(word, "stop", 1, 1)
        rest = self.author("".join(map(chr, begun)), kwargs["key"], kwargs.get("seed") or 0)
        return self._cut(rest, begun, self.settings(kwargs["sampling"]))

    def _cut(self, rest: str, begun: list[int], sampling: Mapping[str, Any]) -> Reply:
        ends = [(rest.find(stop), stop) for stop in sampling.get("stop", ()) if stop in rest]
        at, stop = min(ends, default=(len(rest), ""))
        ids = [*map(ord, rest[:at] + stop), *([] if stop else [EOS])]
        reply = Reply(rest[:at], "stop", 1, len(ids), [1, *begun], ids, int(not stop), [-0.5] * len(ids))
        if len(ids) > sampling["max_tokens"]:
            ids = ids[: sampling["max_tokens"]]
            reply = Reply("".join(map(chr, ids)), "length", 1, len(ids), [1, *begun], ids, 0, [-0.5] * len(ids))
        return reply if self.tells_ids else replace(reply, ids=None, stop_ids=0, prompt_ids=None)


RIGHT = "Step 1: good 3*4=12.\n\nStep 2: good 12+5=17, so \\boxed{17}"
SLIP = "Step 1: good 3*4=12.\n\nStep 2: 12+5=18, so \\boxed{18}"
WRONG = "Step 1: bad 3*4=7.\n\nStep 2: 7+5=12, so \\boxed{12}"
HOPELESS = "Step 1: bad 3+4=7.\n\nStep 2: 7+5=12, so \\boxed{12}"


def pupil(told: str, key: str, seed: int) -> str:
    """After the right first step every second child or rollout slips; after a wrong one none is right."""
    number = int(key.split("#")[0].rpartition("/")[2])
    if not told:
        return [RIGHT, WRONG, HOPELESS, RIGHT][number % 4]
    for whole in ([RIGHT, SLIP] if number % 2 == 0 else [SLIP, RIGHT]) + [WRONG, HOPELESS]:
        if whole.startswith(told):
            return whole[len(told) :]
    raise AssertionError(told)


Start = Callable[..., Policy]


@pytest.fixture
def start(monkeypatch: pytest.MonkeyPatch) -> Start:
    def begin(author: Author = pupil, **settings: Any) -> Policy:
        model = Policy(author=author, asked=[], **settings)
        for module in ("agentsys.systems", "agentsys.collect.fingerprint"):
            monkeypatch.setattr(f"{module}.load_model", lambda *spec, **about: model)
        return model

    return begin


def node(result: Mapping[str, Any], name: str) -> dict[str, Any]:
    found: dict[str, Any] = next(node for node in result["tree"] if node["id"] == name)
    return found


def sides(target: Mapping[str, Any]) -> tuple[str, str, str]:
    """Prompt's, chosen and rejected call of a pair."""
    (sent, chosen), (again, rejected) = target["segments"], target["rejected"]
    assert sent == again and sent["prompt"]
    return sent["prompt"], chosen["call"], rejected["call"]


async def test_steps_continue_the_very_ids(start: Start) -> None:
    """The "Step 2" that ended a step is in the prefix of the next, once; equal steps are one child."""
    model = start()
    result = await graph.ainvoke({**RECORD}, context=Context(simulations=3, width=4, depth=4, rollouts=1))
    first = node(result, "root:0")
    assert first["copies"] == 2 and first["visits"] > 0 and len([n for n in result["tree"] if n["depth"] == 1]) == 3
    prefixes = {key: "".join(map(chr, ids)) for key, ids, _ in model.asked}
    assert prefixes["root/0"] == "" and prefixes["root:0/0"] == "Step 1: good 3*4=12.\n\nStep 2"
    assert prefixes["root/0/rollout/0"] == prefixes["root:0/1"]
    assert result["response"] == RIGHT and (result["answer"], result["right"]) == ("17", True)
    assert node(result, "root:0:0")["outcome"] in ("open", "end")
    assert {n["parent"] for n in result["tree"] if n["depth"] == 2} <= {"root:0", "root:1", "root:2"}


async def test_values_are_checked_answers(start: Start) -> None:
    """An end is worth 1 or -1, another step the mean of its rollouts: one of two slips after the right step."""
    start()
    result = await graph.ainvoke({**RECORD}, context=Context(simulations=8, width=4, depth=4, rollouts=2))
    right = node(result, "root:0")
    assert right["value"] == 0 and [rollout["right"] for rollout in right["rollouts"]] == [True, False]
    assert node(result, "root:1")["value"] == -1 == node(result, "root:2")["value"]
    ends = {n["answer"]: n["value"] for n in result["tree"] if "answer" in n}
    assert ends == {"17": 1.0, "18": -1.0, "12": -1.0}
    assert node(result, "root:0")["visits"] > node(result, "root:1")["visits"]


async def test_pairs_in_the_manner_of_step_dpo(start: Start) -> None:
    """At each correct prefix a step that reaches the answer against the first wrong one; nothing below a wrong step."""
    start()
    result = await graph.ainvoke({**RECORD}, context=Context(simulations=12, width=4, depth=4, rollouts=2))
    pairs = [sides(target) for target in result["targets"]]
    assert pairs == [("root/1", "root/0", "root/1"), ("root:0/1", "root:0/0", "root:0/1")]
    assert result["dropped"] is None
    first, second = (target["scores"] for target in result["targets"])
    assert first["rejected"] == 0 and 0 < first["margin"] == first["chosen"] < 1 and second["margin"] == 1
    assert second["depth"] == 1 and first["rejected_tried"] >= 2


async def test_pairs_in_the_manner_of_mcts_dpo(start: Start) -> None:
    start()
    result = await graph.ainvoke(
        {**RECORD}, context=Context(pairs="mcts", simulations=12, width=4, depth=4, rollouts=2)
    )
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


async def test_texts_that_differ_in_white_space_are_chosen_once(start: Start) -> None:
    def author(told: str, key: str, seed: int) -> str:
        texts = ["Step 1: \\boxed{17}", "Step 1:  \\boxed{17}", "Step 1: \\boxed{3}", "Step 1:  \\boxed{4}"]
        return texts[int(key[-1])]

    start(author)
    result = await graph.ainvoke({**RECORD}, context=Context(simulations=2, width=4, depth=2))
    assert [sides(target) for target in result["targets"]] == [("root/2", "root/0", "root/2")]


async def test_nor_are_they_the_best_and_the_worst(start: Start) -> None:
    """Two steps of one text whose rollouts went differently would teach white space."""

    def author(told: str, key: str, seed: int) -> str:
        number = int(key[-1]) % 2
        if not told:
            return f"Step 1:{' ' * (number + 1)}so\n\nStep 2: {17 - number}"
        return f": \\boxed{{{17 if told.startswith('Step 1: so') else 16}}}"

    start(author)
    result = await graph.ainvoke({**RECORD}, context=Context(pairs="mcts", simulations=3, width=2, depth=2))
    assert node(result, "root:0")["q"] > node(result, "root:1")["q"]
    assert result["targets"] == [] and result["dropped"].startswith("no pair: ")


async def test_an_empty_step_is_asked_for_once(start: Start) -> None:
    """What would come after a reminder of an empty reply is no sibling: it is not paid for."""

    def author(told: str, key: str, seed: int) -> str:
        return " " if key == "root/1" else "Step 1: 3*4+5=17. \\boxed{17}"

    model = start(author)
    result = await graph.ainvoke({**RECORD}, context=Context(simulations=1, width=2, depth=2))
    assert node(result, "root:1")["outcome"] == "failed" and "empty" in node(result, "root:1")["error"]
    assert {key for key, _, _ in model.asked} == {"root/0", "root/1"}


async def test_why_there_is_no_pair(start: Start) -> None:
    async def why(*solutions: str, answer: str = "17") -> str:
        def author(told: str, key: str, seed: int) -> str:
            return solutions[int(key[-1]) % len(solutions) if "rollout" in key else 0].removeprefix(told)

        start(author)
        context = Context(simulations=1, width=2, depth=2, step_tokens=40)
        return (await graph.ainvoke({"question": QUESTION, "answer": answer}, context=context))["dropped"]

    assert await why(RIGHT) == "no pair: every solution is right"
    assert await why(RIGHT, answer="18") == "no pair: no solution is right"
    assert await why("Step 1: and so on " * 20) == "no pair: no solution came to its end"
    assert await why(RIGHT, SLIP) == "no pair: no step has a worse one beside it", "only a rollout slips"


async def test_the_judge_needs_no_reference(start: Start) -> None:
    """V is what the judge thinks, right or wrong; the verdicts are noted and make the pairs."""
    start()
    knobs = Context(value="judge", simulations=6, width=4, depth=4)
    result = await graph.ainvoke({**RECORD}, context=knobs)
    assert node(result, "root:0")["value"] == 1 and "rollouts" not in node(result, "root:0")
    slip = next(n for n in result["tree"] if n.get("answer") == "18")
    assert slip["value"] == 1 and slip["right"] is False, "it has a good first step"
    other = await graph.ainvoke({**RECORD, "answer": "18"}, context=knobs)
    told = ("id", "visits", "value", "q")
    assert [[n[k] for k in told] for n in other["tree"]] == [[n[k] for k in told] for n in result["tree"]]
    assert [f["right"] for f in other["finds"]] != [f["right"] for f in result["finds"]]


async def test_the_reference_is_never_shown(start: Start) -> None:
    model = start()
    secret = {"question": QUESTION, "answer": "#### 982451653", "solution": "It is 982451653."}
    for value in ("rollout", "judge"):
        await graph.ainvoke(secret, context=Context(value=value, simulations=4, width=2, depth=3))
    assert len(model.asked) > 15 and not any("982451653" in shown for _, _, shown in model.asked)


async def test_a_long_step_ends_its_branch_and_is_paid_for(start: Start) -> None:
    def author(told: str, key: str, seed: int) -> str:
        return "Step 1: " + ("and so on " * 20 if key == "root/1" else "3*4+5=17. \\boxed{17}")

    start(author)
    result = await graph.ainvoke({**RECORD}, context=Context(simulations=3, width=2, depth=3, step_tokens=40))
    cut = node(result, "root:1")
    assert cut["outcome"] == "failed" and "cut off at 40 tokens" in cut["error"] and cut["tokens"] == 40
    assert result["dropped"] == "no pair: every solution is right"
    assert result["finds"][0]["tokens"] == 40 + node(result, "root:0")["tokens"]


async def test_a_rollout_that_is_cut_off_is_wrong(start: Start) -> None:
    """Even where it happens to end with the right number."""

    def author(told: str, key: str, seed: int) -> str:
        return "Step 1: so\n\nStep 2: 17" if not told else ": 17 17 17 17 17 17 17 17"

    start(author)
    context = Context(simulations=1, width=1, depth=3, solution_tokens=10, rollouts=1)
    result = await graph.ainvoke({**RECORD}, context=context)
    assert node(result, "root:0")["rollouts"][0]["right"] is False and node(result, "root:0")["value"] == -1


async def test_the_last_step_is_the_rest(start: Start) -> None:
    start()
    result = await graph.ainvoke({**RECORD}, context=Context(simulations=4, width=2, depth=1))
    assert [n["depth"] for n in result["tree"]] == [0, 1, 1]
    assert {find["answer"] for find in result["finds"]} == {"17", "12"}


async def test_tokens_are_all_that_was_written(start: Start, tmp_path: Path) -> None:
    """A find's tokens grow in the order of the search and count steps, rollouts and judgements; the budget ends it."""
    for value in ("rollout", "judge"):
        start()
        context = Context(value=value, simulations=50, width=3, depth=4, budget=900)
        await acollect(graph, [RECORD], tmp_path / value, context=context, options=RunOptions(no_cache=True))
        (trace,) = read_traces(tmp_path / value)
        assert trace.result is not None, trace.reason
        written = sum(call.completion_tokens for call in trace.calls)
        assert max(n["spent"] for n in trace.tree or ()) == written, "what became one child was written twice"
        spent = [find["tokens"] for find in trace.result["finds"]]
        assert spent == sorted(spent) and spent[0] < written


class Wasting(Policy):
    """Every second reply of the solver, and the first judgement, is empty or no judgement, and cost its tokens."""

    async def complete(self, messages: Sequence[Mapping[str, Any]], **kwargs: Any) -> Reply:
        reply = await super().complete(messages, **kwargs)
        if kwargs["role"] == "judge":
            return replace(reply, text="Perhaps", completion_tokens=7) if "/0/judge" in kwargs["key"] else reply
        return replace(reply, text=" ", completion_tokens=1000) if int(kwargs["key"][-1]) % 2 else reply


@pytest.mark.parametrize("value", ["rollout", "judge"])
async def test_what_could_not_be_used_was_paid_for(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, value: Any) -> None:
    model = Wasting(author=pupil, asked=[])
    for module in ("agentsys.systems", "agentsys.collect.fingerprint"):
        monkeypatch.setattr(f"{module}.load_model", lambda *spec, **about: model)
    context = Context(value=value, simulations=6, width=4, depth=4, rollouts=2)
    await acollect(graph, [RECORD], tmp_path, context=context, options=RunOptions(no_cache=True))
    (trace,) = read_traces(tmp_path)
    written = sum(call.completion_tokens for call in trace.calls)
    assert written > 1000 and max(n["spent"] for n in trace.tree or ()) == written


async def test_the_same_replies_give_the_same_traces_at_any_speed(start: Start, tmp_path: Path) -> None:
    def author(told: str, key: str, seed: int) -> str:
        """Solutions that belong to their key and seed; the answer is right for every third of them."""
        lucky = random.Random(f"{key}{seed}")
        steps = [f": {lucky.random():.3f} and\n\nStep {i}" for i in range(told.count("Step") + 1, 4)]
        return ("" if told else "Step 1") + "".join(steps) + f": so \\boxed{{{lucky.choice([17, 18, 19])}}}"

    records = [{**RECORD, "id": f"r{i}"} for i in range(4)]
    context = Context(simulations=8, width=3, depth=4, rollouts=2)
    for name, delays in (("calm", None), ("fast", random.Random(1)), ("slow", random.Random(2))):
        start(author, delays=delays)
        await acollect(graph, records, tmp_path / name, context=context, options=RunOptions(no_cache=True))
    calm, *others = (outcomes(tmp_path / name) for name in ("calm", "fast", "slow"))
    assert len(calm) == 4 and all(other == calm for other in others)
    assert sum(len(trace.targets) for trace in read_traces(tmp_path / "calm")) >= 4


@pytest.mark.parametrize(
    ("record", "reason"),
    [
        ({"question": QUESTION}, "no right answer: a record needs"),
        ({"question": " ", "answer": "17"}, "no question: a record needs"),
    ],
)
async def test_a_record_that_cannot_be_used(start: Start, tmp_path: Path, record: dict[str, str], reason: str) -> None:
    start()
    await acollect(graph, [record], tmp_path / "run", context=Context(), options=RunOptions(no_cache=True))
    (line,) = (tmp_path / "run" / "failed.jsonl").read_text().splitlines()
    assert reason in json.loads(line)["reason"]


async def test_math_records_have_other_fields(start: Start) -> None:
    start()
    record = {"problem": QUESTION, "solution": r"It is \boxed{17}."}
    result = await graph.ainvoke(record, context=Context(simulations=2, width=4, depth=2))
    assert result["question"] == QUESTION and result["right"]


async def test_a_server_that_tells_no_ids_cannot_be_used(start: Start, tmp_path: Path) -> None:
    start(tells_ids=False)
    await acollect(graph, [RECORD], tmp_path / "run", context=Context(), options=RunOptions(no_cache=True))
    (line,) = (tmp_path / "run" / "failed.jsonl").read_text().splitlines()
    assert "tells no token ids" in json.loads(line)["reason"]


class Engine:
    """A server of one model with a real tokenizer, without HTTP: it gets ids and gives ids, and writes like `pupil`.

    A stop string is cut off the text and its ids are left, as llama.cpp and vLLM do it.
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
        self.count = 0

    async def serve(self) -> Engine:
        return self

    def set_in_flight(self, in_flight: int) -> None: ...

    async def aclose(self) -> None: ...

    async def post(self, route: str, body: dict[str, Any], measured: dict[str, Any]) -> dict[str, Any]:
        measured["address"] = "nowhere"
        self.count += 1
        told = self.reader.decode(body["prompt"]).rpartition("<|im_start|>assistant\n")[2]
        rest = pupil(told, f"{self.count}", 0)
        at, stop = min([(rest.find(s), s) for s in body.get("stop", ()) if s in rest], default=(len(rest), ""))
        ids = await self.tokenizer.encode(rest[:at] + stop, special=False)
        ids = ids if stop else [*ids, self.reader.eos_token_id]
        choice = {"text": rest[:at], "token_ids": ids, "finish_reason": "stop"}
        return {"choices": [choice], "usage": {"prompt_tokens": len(body["prompt"]), "completion_tokens": len(ids)}}


@pytest.mark.parametrize("manner", ["step", "mcts"])
async def test_rows(start: Start, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, manner: Any) -> None:
    """Rows hold the engine's own ids: the shared prefix, no token of the next step, an end of the turn at ends only."""
    from agentsys.trainers.rows import Cut, Filters, make_rows, rows_of
    from agentsys.trainers.tokenize_rows import RowTokenizer

    folder = tmp_path / "student"
    engine = Engine(folder)
    for module in ("agentsys.systems", "agentsys.collect.fingerprint"):
        monkeypatch.setattr(f"{module}.load_model", lambda spec, default="": EndpointChatModel(engine=engine))
    context = Context(pairs=manner, simulations=10, width=4, depth=4, rollouts=2)
    await acollect(graph, [RECORD], tmp_path / "run", context=context, options=RunOptions(no_cache=True))
    (trace,) = read_traces(tmp_path / "run")
    assert trace.outcome == "kept", trace.reason
    check_rows(trace, list(rows_of(trace, RowTokenizer(engine.reader))), engine)
    report = make_rows([tmp_path / "run"], Cut(str(folder), tmp_path / "rows"), Filters(validation=0))
    assert report.written["step", "train"] == len(trace.targets) and not report.dropped


def check_rows(trace: Trace, rows: list[dict[str, Any]], engine: Engine) -> None:
    calls = {call.key: call for call in trace.calls}
    end = engine.reader.eos_token_id
    assert len(rows) == len(trace.targets) >= 2
    for row, target in zip(rows, trace.targets, strict=True):
        assert row["ids_source"] == "engine"
        for side, segments in (("chosen", target.segments), ("rejected", target.rejected or ())):
            call = calls[str(segments[1].call)]
            assert row["prompt_ids"] == call.prompt_ids
            kept = row[f"{side}_ids"]
            assert (call.ids or [])[: len(kept)] == kept
            assert engine.reader.decode(kept).removesuffix("<|im_end|>") == call.text
            assert (kept[-1] == end) == ("boxed" in call.text), "a partial step does not end the turn"
        assert row["margin"] > 0
    assert [row["prompt"].endswith("\n\nStep 2") for row in rows] == [False, True]


def test_the_command(
    start: Start, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    start()
    monkeypatch.setenv("COLUMNS", "200")
    asked = write_lines(tmp_path / "asked.jsonl", [{**RECORD, "id": "a"}, {"id": "b", "question": "No answer?"}])
    options = ["--out", tmp_path / "run", "--no-cache", "--width", 4, "--depth", 4, "--simulations", 6]
    given = [str(option) for option in ("--input", asked, *options)]
    assert run_app(command(main), given) == 3
    said = capsys.readouterr().out
    assert "solved at least once" in said and "1 of 1" in said and "no right answer" in said
    assert run_app(command(main), [str(option) for option in options]) == 2
    assert "--input: name a file" in one_error(capsys.readouterr().err)
    assert run_app(command(main), [*given, "--width", "0"]) == 2
    assert "width: 0 is below 1" in one_error(capsys.readouterr().err)
