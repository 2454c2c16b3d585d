"""collect: any graph over any records, their outcomes, how far a run goes, and programs around it."""

from __future__ import annotations

import asyncio
import re
import subprocess
import sys
import typing
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from langgraph.graph import END, START, StateGraph
from langgraph.runtime import Runtime

from agentsys.collect import RunOptions, Summary, acollect, collect
from agentsys.models import EndpointDown
from agentsys.records import Record
from agentsys.systems import ask
from agentsys.traces import Trace, read_traces
from tests.support.greeter import GREETER, UNCACHED, Context, greet
from tests.support.toys import environment, one_node, read_failed, read_manifest


def test_a_custom_graph(tmp_path: Path, model: str) -> None:
    summary = collect(one_node(greet), ["Ann", "Bob"], tmp_path / "run", context=Context(model), options=UNCACHED)
    assert (summary.kept, summary.dropped, summary.failed, summary.calls) == (2, 0, 0, 2)
    traces = {trace.input["text"]: trace for trace in read_traces(tmp_path / "run")}
    assert traces["Ann"].result == {"text": "Ann", "reply": "good day"}
    assert traces["Ann"].source == "item:1"
    assert [call.messages[-1]["content"] for call in traces["Bob"].calls] == ["Greet Bob"]
    assert read_manifest(tmp_path / "run")["fingerprint"]["roles"]["greeter"]["prompt"] == GREETER.text.sha256


def test_a_clock_that_jumps_back_changes_nothing(tmp_path: Path, model: str, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter(range(10**9, 0, -86400))
    monkeypatch.setattr("time.time", lambda: float(next(clock)))
    names = ["Ann", "Bob", "Cid"]
    summary = collect(one_node(greet), names, tmp_path / "run", context=Context(model), options=UNCACHED)
    assert (summary.kept, summary.failed) == (3, 0)
    assert 0 <= summary.seconds < 60
    assert all(0 <= trace.measured["seconds"] < 60 for trace in read_traces(tmp_path / "run"))


def test_input_that_is_not_text_is_accepted(tmp_path: Path) -> None:
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


def place_of(code: str) -> str:
    """Where this file has this code first, as a reason names it."""
    lines = Path(__file__).read_text().splitlines()
    number = next(number for number, line in enumerate(lines, 1) if line.strip().startswith(code))
    return f"{Path(__file__).relative_to(Path.cwd())}:{number}"


async def choosy(state: Any) -> dict[str, Any]:
    """Ends as the text says."""
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
    reasons = {line.get("id") or line["source"]: line["reason"] for line in read_failed(tmp_path / "run")}
    assert reasons == {
        "fail": f"LookupError: no such thing ({place_of('raise LookupError')})",
        "set": "the graph's output cannot be written as JSON: Type is not JSON serializable: set",
        "targets": "TargetError: not a target: it has no 'segments'; make a Target and return asdict(target)",
        "item:6": "no field 'text'; the record has 'id'; name the right one with --field text=COLUMN",
    }
    assert (summary.kept, summary.dropped, summary.failed) == (1, 1, 4)
    assert read_manifest(tmp_path / "run")["counts"] == {"kept": 1, "dropped": 1, "failed": 4}
    assert summary.reasons["not good enough"] == 1


def test_failed_records_are_retried_only_on_request(tmp_path: Path) -> None:
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
    assert len(read_failed(tmp_path / "run")) == 2
    last = run(retry_failed=True)
    assert (last.kept, last.failed, sorted(tries)) == (3, 1, ["a", "b", "b", "c"])
    assert [line["source"] for line in read_failed(tmp_path / "run")] == ["item:4"]


def test_a_key_used_twice_is_a_failure_that_names_it(tmp_path: Path, model: str, calls: Callable[[], int]) -> None:
    async def twice(state: Any, runtime: Runtime[Context]) -> dict[str, Any]:
        for _ in range(2):
            await ask(runtime.context, GREETER, key="greet", text=state["text"])
        return {}

    collect(one_node(twice), [{"id": "r1", "text": "a"}], tmp_path / "run", context=Context(model), options=UNCACHED)
    [line] = read_failed(tmp_path / "run")
    assert "record r1: the key 'greet' is used twice; put the round or child into it" in line["reason"]
    assert [call["key"] for call in line["calls"]] == ["greet"]
    assert calls() == 1


def test_a_second_record_with_an_id_fails_once(tmp_path: Path) -> None:
    records = [{"id": "a", "text": "x"}, {"id": "a", "text": "y"}, {"text": "z"}, {"text": "z"}]
    for _ in range(2):  # the resumed run meets the same duplicates and does not list them again
        summary = collect(one_node(choosy), records, tmp_path / "run", options=UNCACHED)
        assert (summary.kept, summary.failed) == (2, 2)
    reasons = [(line["source"], line["reason"]) for line in read_failed(tmp_path / "run")]
    assert reasons[0] == ("item:2", "duplicate: two records have this id (a)")
    assert re.fullmatch(r"duplicate: two records have this content \(\w{16}\)", reasons[1][1])


# which records, in which order, and how far


def start_records(tmp_path: Path, name: str, records: list[str], **options: Any) -> list[str]:
    """Collect and return the texts of the records that the run starts, in order."""
    texts: list[str] = []

    def watch(summary: Summary, event: Any) -> None:
        if isinstance(event, Record):
            texts.append(event.data["text"])

    collect(one_node(choosy), records, tmp_path / name, options=RunOptions(no_cache=True, **options), watch=watch)
    return texts


def test_limit_and_shuffle(tmp_path: Path) -> None:
    records = [f"text {i}" for i in range(50)]
    assert start_records(tmp_path, "plain", records, limit=5) == records[:5]
    assert start_records(tmp_path, "plain", records, limit=7) == records[5:7]  # the first five are finished
    first = start_records(tmp_path, "one", records, shuffle=True, seed=1)
    assert sorted(first) == sorted(records) != first
    assert start_records(tmp_path, "two", records, shuffle=True, seed=1) == first
    assert start_records(tmp_path, "three", records, shuffle=True, seed=2) != first
    assert start_records(tmp_path, "four", records, shuffle=True, seed=1, limit=10) == first[:10]


def test_a_token_budget_ends_the_run_between_records(tmp_path: Path, model: str) -> None:
    async def chat(state: Any, runtime: Runtime[Context]) -> dict[str, Any]:
        for i in range(1 + int(state["text"][1:]) % 4):
            await ask(runtime.context, GREETER, key=f"greet/{i}", text=state["text"])
        return {}

    def run(budget: int | None, name: str = "run") -> tuple[Summary, int]:
        started: list[Record] = []
        options = RunOptions(no_cache=True, in_flight=2, token_budget=budget)  # three records in progress
        summary = collect(
            one_node(chat),
            [f"t{i}" for i in range(40)],
            tmp_path / name,
            context=Context(f"{model}&seconds=0.002"),
            options=options,
            watch=lambda _, event: started.append(event) if isinstance(event, Record) else None,
        )
        return summary, len(started)

    first, started = run(100)
    spent = first.prompt_tokens + first.completion_tokens
    assert first.stopped == "token budget"
    assert 100 <= spent <= 100 + 3 * 4 * (spent // first.calls)
    assert (first.kept, first.failed) == (started, 0)  # every started record is finished
    last, started = run(None)
    assert (last.stopped, last.kept, started) == (None, 40, 40 - first.kept)


# a program around it


async def test_a_run_can_be_cancelled_and_resumed(tmp_path: Path) -> None:
    first_trace = asyncio.Event()

    def watch(summary: Summary, event: Any) -> None:
        if isinstance(event, Trace):
            first_trace.set()

    async def slow(state: Any) -> dict[str, Any]:
        await asyncio.sleep(0.02)
        return {"reply": "done"}

    def run() -> Any:
        options, records = RunOptions(no_cache=True, in_flight=2), [f"t{i}" for i in range(60)]
        return acollect(one_node(slow), records, tmp_path / "run", options=options, watch=watch)

    task = asyncio.create_task(run())
    await first_trace.wait()
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


@dataclass(frozen=True)
class Closing(Context):
    """A context with `aclose`."""

    closed: list[str]

    async def aclose(self) -> None:
        self.closed.append("closed")


@pytest.mark.parametrize("down", [False, True])
def test_a_context_is_closed_at_the_end(down: bool, script: Path, tmp_path: Path) -> None:
    context = Closing("http://127.0.0.1:9/v1" if down else f"scripted:{script}", [])
    if down:
        with pytest.raises(EndpointDown):
            collect(one_node(greet), ["Ada"], tmp_path / "out", context=context, options=UNCACHED)
    else:
        collect(one_node(greet), ["Ada"], tmp_path / "out", context=context, options=UNCACHED)
    assert context.closed == ["closed"]


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
    async def astream(self, data, config, context=None, stream_mode=()):
        yield "values", {**data, **await node(data)}

summary = collect(Quick(), sys.argv[1], sys.argv[2], options=RunOptions(cache=Path(sys.argv[2]) / "cache"))
status = Path("/proc/self/status").read_text()  # getrusage would count the parent's memory at the fork
print(summary.kept, summary.failed, summary.calls, int(status.split("VmHWM:")[1].split()[0]) // 1024)
"""


def test_two_hundred_thousand_records_fit_into_memory(tmp_path: Path) -> None:
    """LangGraph and a scripted call take about 1 ms per record, too long for a test. Here the node is called without
    LangGraph and asks for one record in a hundred: memory could grow in reading, ids, shards and the cache."""
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
    kept, failed, calls, megabytes = map(int, done.stdout.split())
    assert (kept, failed, calls) == (200_000, 1, 1_999)
    assert megabytes < 500
    [line] = read_failed(tmp_path / "run")
    assert line["source"] == f"{tmp_path / 'in.jsonl'}:200001"
    assert line["reason"] == "duplicate: two records have this id (record-17)"
