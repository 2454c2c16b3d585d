"""collect: any graph over any records, what becomes of them, what is written, and what a bad endpoint does to a run."""

from __future__ import annotations

import asyncio
import json
import random
import re
import subprocess
import sys
import threading
import typing
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import orjson
import pytest
from langgraph.graph import END, START, StateGraph
from langgraph.runtime import Runtime
from typer.testing import CliRunner

from agentsys.__main__ import app
from agentsys.collect import RunOptions, Summary, acollect, collect
from agentsys.collect.fingerprint import differences, find_roles, source_digest
from agentsys.collect.report import ProgressView
from agentsys.graphs.drt.system import Context as DrtContext
from agentsys.graphs.drt.system import graph as drt
from agentsys.models import EndpointDown, load_model
from agentsys.models.endpoint import RetryPolicy
from agentsys.prompt import Prompt
from agentsys.records import Record
from agentsys.roles import Role
from agentsys.systems import ask
from agentsys.traces import Trace, read_traces, shards
from tests.support.servers import (
    BROKEN_JSON,
    EMPTY,
    NOT_A_REPLY,
    REPETITION,
    Answer,
    Behavior,
    Drop,
    FakeServer,
    Hang,
    Seen,
    Status,
)
from tests.support.toys import (
    RULES,
    Input,
    State,
    call_drt,
    environment,
    one_error,
    one_node,
    outcomes,
    paid,
    sentences,
    write_lines,
)

GREETER: Role[str] = Role(Prompt.parse("# system\nBe kind.\n# user\nGreet {{ text }}", "greeter"))
PARTING: Role[str] = Role(Prompt.parse("# user\nSay good bye to {{ text }}", "parting"))
UNCACHED = RunOptions(no_cache=True)


@dataclass(frozen=True)
class Context:
    """The model of the toy graphs."""

    model: str


async def greet(state: Any, runtime: Runtime[Context]) -> dict[str, Any]:
    return {"reply": (await ask(runtime.context, GREETER, key="greet", text=state["text"])).value}


@dataclass(frozen=True)
class Closing(Context):
    """A context that has something to close."""

    closed: list[str]

    async def aclose(self) -> None:
        self.closed.append("closed")


@pytest.fixture
def script(tmp_path: Path) -> Path:
    return write_lines(tmp_path / "replies.jsonl", [{"role": "greeter", "replies": ["good day"]}, *RULES])


@pytest.fixture
def model(tmp_path: Path, script: Path) -> str:
    """A scripted model whose calls are counted in calls.log."""
    return f"langchain:tests.support.toys:LoggedChatModel?script={script}&log={tmp_path / 'calls.log'}"


@pytest.fixture
def calls(tmp_path: Path) -> Callable[[], int]:
    return lambda: len(paid(tmp_path / "calls.log"))


def manifest(folder: Path) -> dict[str, Any]:
    return dict(orjson.loads((folder / "manifest.json").read_bytes()))


def failed_lines(folder: Path) -> list[dict[str, Any]]:
    return [orjson.loads(line) for line in (folder / "failed.jsonl").read_bytes().splitlines()]


# any compiled graph


def test_a_graph_of_ones_own(tmp_path: Path, model: str) -> None:
    summary = collect(one_node(greet), ["Ann", "Bob"], tmp_path / "run", context=Context(model), options=UNCACHED)
    assert (summary.kept, summary.dropped, summary.failed, summary.calls) == (2, 0, 0, 2)
    traces = {trace.input["text"]: trace for trace in read_traces(tmp_path / "run")}
    assert traces["Ann"].result == {"text": "Ann", "reply": "good day"}
    assert traces["Ann"].source == "item:1"
    assert [call.messages[-1]["content"] for call in traces["Bob"].calls] == ["Greet Bob"]
    assert manifest(tmp_path / "run")["fingerprint"]["roles"]["greeter"]["prompt"] == GREETER.text.sha256


async def direct(state: Any) -> dict[str, Any]:
    return {"reply": GREETER.name}


def not_async(state: Any) -> dict[str, Any]:
    return {"reply": GREETER.name}


def _helper() -> str:
    return GREETER.name


async def by_helper(state: Any) -> dict[str, Any]:
    return {"reply": _helper()}


async def by_comprehension(state: Any) -> dict[str, Any]:
    return {"reply": [GREETER.name for _ in range(2)]}


TABLE = {"kind": [GREETER]}


async def by_table(state: Any) -> dict[str, Any]:
    return {"reply": TABLE["kind"][0].name}


def closure() -> Any:
    role = GREETER

    async def node(state: Any) -> dict[str, Any]:
        return {"reply": role.name}

    return node


async def with_argument(state: Any, *, role: Role[str]) -> dict[str, Any]:
    return {"reply": role.name}


class Keeper:
    """A role in a field."""

    def __init__(self) -> None:
        self.role = GREETER

    async def __call__(self, state: Any) -> dict[str, Any]:
        return {"reply": self.role.name}

    async def node(self, state: Any) -> dict[str, Any]:
        return {"reply": self.role.name}


NODES = {
    "global": direct,
    "sync": not_async,
    "helper": by_helper,
    "comprehension": by_comprehension,
    "table": by_table,
    "closure": closure(),
    "partial": partial(with_argument, role=GREETER),
    "method": Keeper().node,
    "object": Keeper(),
    "subgraph": one_node(direct),
}


@pytest.mark.parametrize("node", NODES.values(), ids=NODES.keys())
def test_roles_are_found_where_nodes_reach_them(tmp_path: Path, node: Any) -> None:
    graph = one_node(node)
    assert find_roles(graph) == {"greeter": GREETER}
    assert re.fullmatch("[0-9a-f]{16}", source_digest(graph))
    assert collect(graph, ["Ann"], tmp_path / "run", options=UNCACHED).kept == 1


def test_roles_that_no_node_reaches_are_not_found() -> None:
    async def node(state: Any) -> dict[str, Any]:
        return {}

    assert find_roles(one_node(node)) == {}
    assert PARTING not in find_roles(one_node(direct)).values()


def test_differences_name_each_setting() -> None:
    old = {"knobs": {"a": 1, "b": 2}, "roles": {"x": {"prompt": "p"}}}
    new = {"knobs": {"a": 1, "b": 3}, "roles": {}}
    assert differences(old, new) == ["knobs.b: 2 -> 3", "roles.x: {'prompt': 'p'} -> None"]
    assert differences(old, old) == []


def test_input_that_is_no_text_is_let_through(tmp_path: Path) -> None:
    class Numbers(typing.TypedDict):
        numbers: list[int]
        total: int

    async def add(state: Any) -> dict[str, Any]:
        return {"total": sum(state["numbers"])}

    builder = StateGraph(Numbers)
    builder.add_node("add", add)
    builder.add_edge(START, "add")
    builder.add_edge("add", END)
    records = [{"id": "a", "numbers": [1, 2, 3], "total": 0}]
    assert collect(builder.compile(), records, tmp_path / "run", options=UNCACHED).kept == 1
    assert next(read_traces(tmp_path / "run")).result == {"numbers": [1, 2, 3], "total": 6}


# outcomes


async def choosy(state: Any) -> dict[str, Any]:
    """What the text says."""
    match state["text"]:
        case "drop":
            return {"dropped": "not good enough"}
        case "fail":
            raise LookupError("no such\nthing")
        case "set":
            return {"reply": {1, 2}}
        case "targets":
            return {"targets": [{"kind": "sft"}]}
        case text:
            return {"reply": text}


def test_every_record_has_an_outcome_with_its_reason(tmp_path: Path) -> None:
    records = [{"id": name, "text": name} for name in ("keep", "drop", "fail", "set", "targets")] + [{"id": "none"}]
    summary = collect(one_node(choosy), records, tmp_path / "run", options=UNCACHED)
    assert {trace.id: (trace.outcome, trace.reason) for trace in read_traces(tmp_path / "run")} == {
        "keep": ("kept", None),
        "drop": ("dropped", "not good enough"),
    }
    reasons = {line.get("id") or line["source"]: line["reason"] for line in failed_lines(tmp_path / "run")}
    assert reasons == {
        "fail": "LookupError: no such thing",
        "set": "the graph's output cannot be written as JSON: Type is not JSON serializable: set",
        "targets": "KeyError: 'rejected'",
        "item:6": "no field 'text'; the record has 'id'; name the right one with --field text=COLUMN",
    }
    assert (summary.kept, summary.dropped, summary.failed) == (1, 1, 4)
    assert manifest(tmp_path / "run")["counts"] == {"kept": 1, "dropped": 1, "failed": 4}
    assert summary.reasons["not good enough"] == 1


def test_rejected_records_are_tried_again_only_on_request(tmp_path: Path) -> None:
    broken = tmp_path / "broken"
    broken.touch()
    tries: list[str] = []

    async def moody(state: Any) -> dict[str, Any]:
        tries.append(state["text"])
        if state["text"] == "b" and broken.exists():
            raise OSError("out of order")
        return {"reply": "fine"}

    def run(**options: Any) -> Summary:
        records = [{"id": name, "text": name} for name in "abc"] + [{"id": "d", "text": ""}]
        return collect(one_node(moody), records, tmp_path / "run", options=RunOptions(no_cache=True, **options))

    assert (run().failed, sorted(tries)) == (2, ["a", "b", "c"])
    broken.unlink()
    again = run()
    assert (again.kept, again.failed, again.skipped, sorted(tries)) == (2, 2, 3, ["a", "b", "c"])
    assert len(failed_lines(tmp_path / "run")) == 2
    last = run(retry_failed=True)
    assert (last.kept, last.failed, sorted(tries)) == (3, 1, ["a", "b", "b", "c"])
    assert [line["source"] for line in failed_lines(tmp_path / "run")] == ["item:4"]


def test_a_key_used_twice_is_a_rejection_that_names_it(tmp_path: Path, model: str, calls: Callable[[], int]) -> None:
    async def twice(state: Any, runtime: Runtime[Context]) -> dict[str, Any]:
        for _ in range(2):
            await ask(runtime.context, GREETER, key="greet", text=state["text"])
        return {}

    collect(one_node(twice), [{"id": "r1", "text": "a"}], tmp_path / "run", context=Context(model), options=UNCACHED)
    [line] = failed_lines(tmp_path / "run")
    assert "record r1: the key 'greet' is used twice; put the round or child into it" in line["reason"]
    assert [call["key"] for call in line["calls"]] == ["greet"]
    assert calls() == 1


def test_a_second_record_with_an_id_is_rejected_once(tmp_path: Path) -> None:
    records = [{"id": "a", "text": "x"}, {"id": "a", "text": "y"}, {"text": "z"}, {"text": "z"}]
    for _ in range(2):  # the resumed run finds the same duplicates and says so no second time
        summary = collect(one_node(choosy), records, tmp_path / "run", options=UNCACHED)
        assert (summary.kept, summary.failed) == (2, 2)
    reasons = [(line["source"], line["reason"]) for line in failed_lines(tmp_path / "run")]
    assert reasons[0] == ("item:2", "duplicate: two records have this id (a)")
    assert re.fullmatch(r"duplicate: two records have this content \(\w{16}\)", reasons[1][1])


# which records, in which order, and how far


def begun(tmp_path: Path, name: str, records: list[str], **options: Any) -> list[str]:
    """The texts of the records that a run begins, in order."""
    seen: list[str] = []

    def watch(summary: Summary, event: Any) -> None:
        if isinstance(event, Record):
            seen.append(event.data["text"])

    collect(one_node(choosy), records, tmp_path / name, options=RunOptions(no_cache=True, **options), watch=watch)
    return seen


def test_limit_and_shuffle(tmp_path: Path) -> None:
    records = [f"text {i}" for i in range(50)]
    assert begun(tmp_path, "plain", records, limit=5) == records[:5]
    assert begun(tmp_path, "plain", records, limit=7) == records[5:7]  # the first five are finished
    first = begun(tmp_path, "one", records, shuffle=True, seed=1)
    assert sorted(first) == sorted(records) != first
    assert begun(tmp_path, "two", records, shuffle=True, seed=1) == first
    assert begun(tmp_path, "three", records, shuffle=True, seed=2) != first
    assert begun(tmp_path, "four", records, shuffle=True, seed=1, limit=10) == first[:10]


def test_a_token_budget_ends_the_run_between_records(tmp_path: Path, model: str) -> None:
    async def chat(state: Any, runtime: Runtime[Context]) -> dict[str, Any]:
        for i in range(1 + int(state["text"][1:]) % 4):
            await ask(runtime.context, GREETER, key=f"greet/{i}", text=state["text"])
        return {}

    def run(budget: int | None, name: str = "run") -> tuple[Summary, int]:
        begun: list[Record] = []
        options = RunOptions(no_cache=True, in_flight=2, token_budget=budget)  # three records under way
        summary = collect(
            one_node(chat),
            [f"t{i}" for i in range(40)],
            tmp_path / name,
            context=Context(f"{model}&seconds=0.002"),
            options=options,
            watch=lambda _, event: begun.append(event) if isinstance(event, Record) else None,
        )
        return summary, len(begun)

    first, begun = run(100)
    spent = first.prompt_tokens + first.completion_tokens
    assert first.stopped == "token budget"
    assert 100 <= spent <= 100 + 3 * 4 * (spent // first.calls)
    assert (first.kept, first.failed) == (begun, 0)  # what was begun is finished
    last, begun = run(None)
    assert (last.stopped, last.kept, begun) == (None, 40, 40 - first.kept)


# the request cache


def test_a_second_run_pays_for_nothing(tmp_path: Path, model: str, calls: Callable[[], int]) -> None:
    def run(name: str, cache: Path | None) -> Summary:
        options = RunOptions(cache=cache, no_cache=cache is None)
        return collect(drt, sentences(20, 7), tmp_path / name, context=DrtContext(model), options=options)

    first = run("one", tmp_path / "shared.sqlite")
    needed = calls()
    assert first.calls == needed > 100
    second = run("two", tmp_path / "shared.sqlite")
    assert calls() == needed
    assert (second.calls, second.cache_hits, second.completion_tokens) == (0, needed, 0)
    third = run("three", None)
    assert calls() == 2 * needed
    assert (third.calls, third.cache_hits) == (needed, 0)
    assert outcomes(tmp_path / "one") == outcomes(tmp_path / "two") == outcomes(tmp_path / "three")


def test_no_cache_reads_and_writes_none(
    tmp_path: Path, model: str, capsys: pytest.CaptureFixture[str], calls: Callable[[], int]
) -> None:
    records = write_lines(tmp_path / "in.jsonl", sentences(3))
    cache = tmp_path / "cache.sqlite"
    given = ["--model", model, "--input", records, "--cache", cache]
    assert call_drt(capsys, *given, "--out", tmp_path / "one", "--no-cache")[0] == 0
    assert not cache.exists()
    needed = calls()
    assert call_drt(capsys, *given, "--out", tmp_path / "two")[0] == 0
    assert cache.exists()
    assert call_drt(capsys, *given, "--out", tmp_path / "three", "--no-cache")[0] == 0
    assert calls() == 3 * needed


def test_an_edited_graph_is_another_run_and_pays_for_nothing_again(
    tmp_path: Path, model: str, calls: Callable[[], int]
) -> None:
    """A call is found by what it asks, whatever the code around it has become."""

    async def loudly(state: Any) -> dict[str, Any]:
        return {"reply": state["reply"].upper()}

    def run(*nodes: Any) -> Summary:
        builder = StateGraph(State, input_schema=Input).add_sequence(nodes)
        graph = builder.add_edge(START, nodes[0].__name__).compile(name="toy")
        options = RunOptions(cache=tmp_path / "shared.sqlite")
        return collect(graph, ["Ann", "Bob"], tmp_path / f"{len(nodes)}", context=Context(model), options=options)

    first, edited = run(greet), run(greet, loudly)
    assert calls() == first.calls == edited.cache_hits == 2
    assert (first.cache_hits, edited.calls, edited.kept) == (0, 0, 2)
    assert first.run != edited.run
    old, new = (manifest(tmp_path / name)["fingerprint"] for name in "12")
    assert [line.partition(":")[0] for line in differences(old, new)] == ["topology.edges", "topology.nodes"]
    assert [(trace.result or {})["reply"] for trace in read_traces(tmp_path / "2")] == ["GOOD DAY"] * 2


def test_the_cache_stays_within_its_limit_while_a_run_fills_it(
    tmp_path: Path,
    model: str,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    calls: Callable[[], int],
) -> None:
    monkeypatch.setattr("agentsys.models.cache.TRIM_COMMITS", 1)  # it looks after each commit
    records = write_lines(tmp_path / "in.jsonl", sentences(30, 31))
    cache = tmp_path / "cache.sqlite"
    given = ["--model", model, "--input", records, "--cache", cache]

    def size(name: str, *options: object) -> int:
        code = call_drt(capsys, *given, "--out", tmp_path / name, *options)[0]
        assert code in (0, 3)  # the script has unusable replies, which may make a record fail
        return sum(file.stat().st_size for file in tmp_path.glob("cache.sqlite*"))

    whole, needed = size("one"), calls()
    limit = whole // 3
    assert size("two", "--cache-limit", limit / 1e9) <= limit
    assert needed < calls() <= 2 * needed  # the calls that went were paid for again
    assert outcomes(tmp_path / "one") == outcomes(tmp_path / "two")


# what is written


@pytest.fixture
def run_folder(tmp_path: Path, model: str) -> Path:
    """A DRT run of 40 sentences in two sittings."""
    for limit in (15, None):
        options = RunOptions(cache=tmp_path / "cache.sqlite", limit=limit)
        context = DrtContext(model, min_steps=3, source_language="English", target_language="German")
        collect(drt, sentences(40, 9), tmp_path / "run", context=context, options=options)
    return tmp_path / "run"


def test_the_manifest_adds_up(run_folder: Path, calls: Callable[[], int]) -> None:
    told = manifest(run_folder)
    traces = list(read_traces(run_folder))
    everything = [call for trace in traces for call in trace.calls]
    lost = [call for line in failed_lines(run_folder) for call in line["calls"]]
    assert told["totals"]["calls"] == calls() == len(everything) + len(lost)
    assert told["totals"]["cache_hits"] == 0
    for name in ("prompt_tokens", "completion_tokens"):
        assert told["totals"][name] == sum(getattr(c, name) for c in everything) + sum(c[name] for c in lost)
    assert told["totals"]["seconds"] > 0
    counts = Counter(trace.outcome for trace in traces)
    assert told["counts"] == {"kept": counts["kept"], "dropped": counts["dropped"], "failed": 4}
    assert counts["kept"]
    assert counts["dropped"]
    assert {trace.run for trace in traces} == {told["run"]}
    assert set(told["fingerprint"]["roles"]) == {
        "keywords", "draft", "advisor", "evaluator", "comparer", "refiner", "narrator",
    }  # fmt: skip
    assert told["fingerprint"]["knobs"]["target_language"] == "German"


def test_the_data_card_says_where_the_rows_come_from(run_folder: Path) -> None:
    card, told = (run_folder / "README.md").read_text(), manifest(run_folder)
    assert card.startswith("---\nconfigs:\n")
    counts, totals = told["counts"], told["totals"]
    for line in (
        "# Traces of drt",
        f"Run `{told['run']}`: {counts['kept']} records kept, {counts['dropped']} dropped by the method, 4 failed.",
        f"{totals['calls']} calls, {totals['prompt_tokens']} prompt and {totals['completion_tokens']} completion",
        f"| model | scripted | {told['fingerprint']['models']['model']['revision']} |",
        f"| evaluator | {told['fingerprint']['roles']['evaluator']['prompt'][:16]} |",
        "- target_language: German",
        "- threshold: 90.0",
    ):
        assert line in card


def test_traces_load_with_datasets(run_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    import datasets

    loaded = datasets.load_dataset(
        "json", data_files=str(run_folder / "traces-*.jsonl"), split="train", cache_dir=str(tmp_path / "datasets")
    )
    traces = list(read_traces(run_folder))
    assert loaded["id"] == [trace.id for trace in traces]
    assert [len(calls) for calls in loaded["calls"]] == [len(trace.calls) for trace in traces]
    kept = next(i for i, trace in enumerate(traces) if trace.outcome == "kept")
    assert loaded[kept]["result"]["trans"] == (traces[kept].result or {})["trans"]
    card = datasets.load_dataset(str(run_folder), "traces", split="train", cache_dir=str(tmp_path / "datasets"))
    assert card["id"] == loaded["id"]


def test_the_parquet_export_reads_back(run_folder: Path, tmp_path: Path) -> None:
    import pyarrow.parquet

    file = tmp_path / "traces.parquet"
    done = CliRunner().invoke(app, ["export", str(run_folder), str(file)])
    traces = list(read_traces(run_folder))
    assert (done.exit_code, done.stdout.split()[0]) == (0, str(len(traces)))
    rows = pyarrow.parquet.read_table(file).to_pylist()
    assert [row["id"] for row in rows] == [trace.id for trace in traces]
    for row, trace in zip(rows, traces, strict=True):
        assert (row["outcome"], row["reason"], row["system"]) == (trace.outcome, trace.reason, "drt")
        assert row["n_calls"] == len(trace.calls)
        assert row["completion_tokens"] == sum(call.completion_tokens for call in trace.calls)
        assert orjson.loads(row["result"]) == trace.result
        assert [call["key"] for call in orjson.loads(row["calls"])] == [call.key for call in trace.calls]
        assert len(orjson.loads(row["targets"])) == len(trace.targets)


def test_the_parquet_export_of_shards_with_nulls_loads_with_datasets(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where a field is null in all of a shard, its type is not to be seen there."""
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr("agentsys.collect.store.SHARD_BYTES", 0)  # each trace has a shard of its own,
    monkeypatch.setattr("agentsys.collect.export.ROW_GROUP", 1)  # and a row group
    import datasets

    async def node(state: Any) -> dict[str, Any]:
        return {"reply": None} if state["text"] == "null" else {"reply": {"score": 0.5}, "dropped": "too low"}

    records = [{"id": text, "text": text} for text in ("null", "full")]
    collect(one_node(node), records, tmp_path / "run", options=UNCACHED)
    assert len(shards(tmp_path / "run")) == 2
    assert CliRunner().invoke(app, ["export", str(tmp_path / "run")]).exit_code == 0
    file = str(tmp_path / "run" / "traces.parquet")
    loaded = datasets.load_dataset("parquet", data_files=file, split="train", cache_dir=str(tmp_path / "datasets"))
    rows = {row["id"]: (row["reason"], orjson.loads(row["result"])["reply"]) for row in loaded}
    assert rows == {"null": (None, None), "full": ("too low", {"score": 0.5})}


def test_an_export_of_nothing_is_one_line(tmp_path: Path) -> None:
    done = CliRunner().invoke(app, ["export", str(tmp_path)])
    assert done.exit_code == 2
    assert "no traces-*.jsonl here; name the output folder of a collect run" in one_error(done.stderr)


# endpoints


@contextmanager
def served(**settings: Any) -> Iterator[FakeServer]:
    """A server in a thread of its own, for a run that has an event loop of its own."""
    server, ready, loop = FakeServer(**settings), threading.Event(), asyncio.new_event_loop()
    done = asyncio.Event()

    async def serve() -> None:
        async with server:
            ready.set()
            await done.wait()

    thread = threading.Thread(target=loop.run_until_complete, args=(serve(),))
    thread.start()
    assert ready.wait(10)
    try:
        yield server
    finally:
        loop.call_soon_threadsafe(done.set)
        thread.join(10)
        loop.close()


def impatient(spec: str) -> str:
    """The same spec; whoever uses it next does not wait long before a retry."""
    load_model(spec).engine.endpoint.retry = RetryPolicy(attempts=3, first=0.01, longest=0.02)  # type: ignore[attr-defined]
    return spec


async def test_the_limit_on_requests_in_flight_is_reached_and_kept(
    tmp_path: Path, start_server: Callable[..., Any]
) -> None:
    server = await start_server(plan=lambda seen: Answer(delay=0.03))

    async def twice(state: Any, runtime: Runtime[Context]) -> dict[str, Any]:
        asked = (ask(runtime.context, GREETER, key=f"greet/{i}", text=state["text"]) for i in range(2))
        await asyncio.gather(*asked)
        return {}

    options = RunOptions(no_cache=True, in_flight=7)
    records = [f"t{i}" for i in range(40)]
    summary = await acollect(one_node(twice), records, tmp_path / "run", context=Context(server.url), options=options)
    assert summary.kept == 40
    assert server.high_water == 7


def test_an_endpoint_that_goes_down_ends_the_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    records = write_lines(tmp_path / "in.jsonl", [{"id": f"r{i}", "text": f"t{i}"} for i in range(30)])
    given = ["--input", records, "--out", tmp_path / "run", "--cache", tmp_path / "c.sqlite", "--in-flight", 2]

    with served(plan=lambda seen: Answer(drt_reply(seen))) as server:
        spec = impatient(server.url)

        def stop_after(seen: Seen) -> Behavior:
            if len(server.seen) == 60:
                asyncio.get_running_loop().create_task(server.stop())
            return Answer(drt_reply(seen))

        server.plan = stop_after
        code, _, err = call_drt(capsys, "--model", spec, *given)
    assert code == 1
    line = one_error(err)
    assert f"no server is reachable at {server.address}" in line
    assert "finished records are saved: rerun the same command to resume" in line
    finished = len(list(read_traces(tmp_path / "run")))
    assert 0 < finished < 30
    assert manifest(tmp_path / "run")["counts"]["failed"] <= 2  # those whose reply was cut off midway
    assert manifest(tmp_path / "run")["totals"]["calls"] > 30


async def test_a_server_that_is_not_there_writes_nothing(tmp_path: Path) -> None:
    spec = impatient("http://127.0.0.1:9/v1")
    with pytest.raises(EndpointDown, match=re.escape("http://127.0.0.1:9")):
        await acollect(one_node(greet), ["a"], tmp_path / "run", context=Context(spec), options=UNCACHED)
    assert not (tmp_path / "run").exists()


def test_a_key_goes_to_the_server_and_nowhere_else(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    key = "sk-very-secret-12345"
    monkeypatch.setenv("AGENTSYS_API_KEY", key)
    records = write_lines(tmp_path / "in.jsonl", sentences(12))

    def plan(seen: Seen) -> Behavior:
        told = f"the key {key} has no right to this"  # some servers repeat it
        return Status(403, text=told) if "7: " in str(seen.body) else Answer(drt_reply(seen))

    with served(plan=plan) as server:
        given = ["--input", records, "--out", tmp_path / "run", "--cache", tmp_path / "run" / "cache.sqlite"]
        code, out, err = call_drt(capsys, "--model", impatient(server.url), *given)
    assert code == 3
    assert server.seen[0].headers["Authorization"] == f"Bearer {key}"
    assert "status 403: the key *** has no right to this" in (tmp_path / "run" / "failed.jsonl").read_text()
    files = [path for path in (tmp_path / "run").iterdir() if path.is_file()]
    assert {"manifest.json", "README.md", "records.jsonl", "traces-00000.jsonl"} < {path.name for path in files}
    assert [path.name for path in files if key.encode() in path.read_bytes()] == []
    assert key not in out + err


def drt_reply(seen: Seen) -> str:
    """What a good model would answer a role of DRT."""
    schema = seen.body.get("response_format", {}).get("json_schema", {}).get("schema", {})
    asked = seen.body["messages"][-1]["content"]
    if "keywords" in schema.get("properties", {}):
        return json.dumps({"keywords": [{"word": asked.split()[0], "translation": "词"}]})
    if "score" in schema.get("properties", {}):
        return json.dumps({"reason": "so so", "score": random.Random(asked).randrange(30, 100)})
    if quotes := sorted(set(re.findall(r"\[\d+\]", asked))):
        return "I think of " + " and then of ".join(quotes)
    return f"译文{random.Random(str(seen.body)).randrange(10**6)}"


WRONG_SCHEMA = Answer('{"reason": "far too good", "score": 1000}')
FAULTS: list[Behavior] = [
    Status(500), Status(429, retry_after="0"), Drop(), Drop(midway=True), Hang(), EMPTY, BROKEN_JSON, NOT_A_REPLY,
    WRONG_SCHEMA, REPETITION,
]  # fmt: skip


def test_an_endpoint_with_every_fault_leaves_no_record_without_an_outcome(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """What a request gets depends on its text and on how often it came, not on the order: each run is the same."""
    tries: Counter[str] = Counter()
    given: Counter[str] = Counter()

    def plan(seen: Seen) -> Behavior:
        text = str(seen.body["messages"])
        tries[text] += 1
        dice = random.Random(f"{text} {tries[text]}")
        behavior = dice.choice(FAULTS) if dice.random() < 0.3 else Answer(drt_reply(seen))
        given["good" if isinstance(behavior, Answer) and behavior not in FAULTS else str(behavior)[:40]] += 1
        return behavior

    records = write_lines(tmp_path / "in.jsonl", sentences(40, 1000))
    with served(plan=plan) as server:
        options = ["--input", records, "--out", tmp_path / "run", "--cache", tmp_path / "c.sqlite", "--min-steps", 2]
        code, _, err = call_drt(capsys, "--model", impatient(f"{server.url}?timeout=1"), *options)
    assert code == 3
    assert "Traceback" not in err
    assert set(given) == {"good", *(str(fault)[:40] for fault in FAULTS)}
    assert 0.2 < 1 - given["good"] / given.total() < 0.4
    ends: dict[str, Any] = {t.id: (t.outcome, t.reason) for t in read_traces(tmp_path / "run")}
    ends |= {line["id"]: ("failed", line["reason"]) for line in failed_lines(tmp_path / "run")}
    assert set(ends) == {f"r{i}" for i in range(40)}
    assert {outcome for outcome, _ in ends.values()} == {"kept", "dropped", "failed"}
    assert all(reason for outcome, reason in ends.values() if outcome != "kept")


# a program around it


async def test_a_run_can_be_cancelled_and_resumed(tmp_path: Path) -> None:
    async def slow(state: Any) -> dict[str, Any]:
        await asyncio.sleep(0.02)
        return {"reply": "done"}

    def run() -> Any:
        options = RunOptions(no_cache=True, in_flight=2)
        return acollect(one_node(slow), [f"t{i}" for i in range(60)], tmp_path / "run", options=options)

    task = asyncio.create_task(run())
    while not (shards(tmp_path / "run") and any(read_traces(tmp_path / "run"))):
        await asyncio.sleep(0.01)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    finished = len(list(read_traces(tmp_path / "run")))
    assert 0 < finished < 60
    summary = await run()
    assert (summary.kept, summary.skipped, summary.failed) == (60, finished, 0)


def test_a_watcher_sees_records_calls_and_traces(tmp_path: Path, model: str) -> None:
    seen: list[Any] = []
    collect(
        one_node(greet),
        ["Ann", ""],
        tmp_path / "run",
        context=Context(model),
        options=RunOptions(no_cache=True, in_flight=1),
        watch=lambda summary, event: seen.append(event),
    )
    assert Counter(type(event).__name__ for event in seen) == {"Record": 1, "Call": 1, "Trace": 1, "NoneType": 1}
    assert isinstance(next(event for event in seen if isinstance(event, Trace)), Trace)


def test_progress_is_written_while_a_run_works(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Off a terminal, a line on stderr now and then; here the node of a later record reads what the first ones left."""
    heard: list[str] = []

    async def listen(state: Any) -> dict[str, Any]:
        heard.append(capsys.readouterr().err)
        return {"reply": "fine"}

    def run(name: str) -> str:
        heard.clear()
        options = RunOptions(no_cache=True, in_flight=1)
        with ProgressView() as view:
            collect(one_node(listen), [f"t{i}" for i in range(6)], tmp_path / name, options=options, watch=view)
        return "".join(heard)

    assert run("short") + capsys.readouterr().err == ""  # over before the first line is due
    monkeypatch.setattr("agentsys.collect.report.LINE_SECONDS", 0)
    assert re.search(r"^\d+ s: 1 records done, 1 in progress, 1 kept, ", run("long"), re.MULTILINE)
    last = capsys.readouterr().err.splitlines()[-1]
    assert re.fullmatch(r"\d+ s: 6 records done, 0 in progress, 6 kept, 0 dropped, 0 failed, 0 calls, .*/s", last)


def test_a_command_shows_its_progress(
    tmp_path: Path, model: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("agentsys.collect.report.LINE_SECONDS", 0)
    records = write_lines(tmp_path / "in.jsonl", sentences(2))
    code, out, err = call_drt(capsys, "--model", model, "--input", records, "--out", tmp_path / "run", "--no-cache")
    assert code == 0
    assert "1 records done" in err and "2 records done" in err
    assert "records done" not in out


# size

MANY = """
import sys
from pathlib import Path
from tests.support.toys import one_node
from agentsys.collect import RunOptions, collect
from agentsys.models.scripted import ScriptedChatModel
from agentsys.prompt import Prompt
from agentsys.roles import Role

role = Role(Prompt.parse("# user\\nGreet {{ text }}", "greeter"))
model = ScriptedChatModel(respond=lambda messages, call: "good day")

async def node(state):
    if state["text"].split()[1].endswith("00th"):
        return {"reply": await role(model, key="greet", text=state["text"])}
    return {"reply": "fine"}

class Quick:
    graph = one_node(node)
    def __getattr__(self, name):
        return getattr(self.graph, name)
    async def ainvoke(self, data, config, context=None):
        return {**data, **await node(data)}

summary = collect(Quick(), sys.argv[1], sys.argv[2], options=RunOptions(cache=Path(sys.argv[2]) / "cache"))
status = Path("/proc/self/status").read_text()  # getrusage would count what the test's own process held when it forked
print(summary.kept, summary.failed, summary.calls, int(status.split("VmHWM:")[1].split()[0]) // 1024)
"""


def test_two_hundred_thousand_records_fit_into_memory(tmp_path: Path) -> None:
    """LangGraph and a scripted call take about 1 ms a record, too long for a test; here the node is called without
    LangGraph and asks for one record in a hundred: what grows with a run is reading, ids, shards and the cache."""
    with (tmp_path / "in.jsonl").open("wb") as file:
        for i in range(200_000):
            file.write(b'{"id":"record-%d","text":"The %dth lamp shone like a small and lonely moon."}\n' % (i, i))
        file.write(b'{"id":"record-17","text":"once more"}\n')
    done = subprocess.run(
        [sys.executable, "-c", MANY, str(tmp_path / "in.jsonl"), str(tmp_path / "run")],
        env=environment(tmp_path),
        capture_output=True,
        text=True,
        check=True,
    )
    kept, lost, asked, megabytes = map(int, done.stdout.split())
    assert (kept, lost, asked) == (200_000, 1, 1_999)
    assert megabytes < 500
    [line] = failed_lines(tmp_path / "run")
    assert line["source"] == f"{tmp_path / 'in.jsonl'}:200001"
    assert line["reason"] == "duplicate: two records have this id (record-17)"


@pytest.mark.parametrize("down", [False, True])
def test_a_context_is_closed_at_the_end(down: bool, script: Path, tmp_path: Path) -> None:
    context = Closing("http://127.0.0.1:9/v1" if down else f"scripted:{script}", [])
    if down:
        with pytest.raises(EndpointDown):
            collect(one_node(greet), ["Ada"], tmp_path / "out", context=context, options=UNCACHED)
    else:
        collect(one_node(greet), ["Ada"], tmp_path / "out", context=context, options=UNCACHED)
    assert context.closed == ["closed"]
