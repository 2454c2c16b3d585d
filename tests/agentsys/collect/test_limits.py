"""What stops a run by itself: failures, faults of the run, budgets, and the limit of open files."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from langgraph.graph import END, START, StateGraph
from typing_extensions import TypedDict

from agentsys import Prompt, Role
from agentsys.collect import RunOptions, acollect
from agentsys.collect.limits import FailureCounter, FailureLimit, Price, TooManyFailures, allowed_in_flight
from agentsys.commands import run_guarded
from agentsys.models import EndpointDown, load_model
from agentsys.records import InputError
from tests.support.servers import FakeServer, Status


class State(TypedDict, total=False):
    """The state of the graphs below."""

    text: str
    poem: str


def graph_of(node: Any) -> Any:
    builder = StateGraph(State)
    builder.add_node("write", node)
    builder.add_edge(START, "write")
    builder.add_edge("write", END)
    return builder.compile(name="limits")


def failed(folder: Path) -> list[dict[str, Any]]:
    file = folder / "failed.jsonl"
    return [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []


def options(tmp_path: Path, **more: Any) -> RunOptions:
    return RunOptions(cache=tmp_path / "cache.sqlite", **{"in_flight": 4, **more})


RECORDS = [{"text": f"record {i}"} for i in range(200)]


async def test_a_bug_in_a_node_stops_the_run(tmp_path: Path) -> None:
    broken = True

    async def write(state: State) -> State:
        if broken:
            raise KeyError(f"field {state['text']}")
        return {"poem": "x"}

    with pytest.raises(TooManyFailures, match=r"20 records in a row .*KeyError.*--retry-failed") as caught:
        await acollect(graph_of(write), RECORDS, tmp_path / "out", options=options(tmp_path))
    assert "\n" not in str(caught.value)
    assert len(failed(tmp_path / "out")) == 20, "records that fail while the run stops stay due"
    assert sum("traceback" in entry.get("measured", {}) for entry in failed(tmp_path / "out")) == 1
    broken = False
    summary = await acollect(graph_of(write), RECORDS, tmp_path / "out", options=options(tmp_path, retry_failed=True))
    assert (summary.kept, summary.failed) == (200, 0)


def test_the_exit_code_is_2(capsys: pytest.CaptureFixture[str]) -> None:
    import typer

    def work() -> None:
        raise TooManyFailures("20 records in a row failed")

    with pytest.raises(typer.Exit) as end:
        run_guarded(work)
    assert end.value.exit_code == 2 and "error: 20 records" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("limit", "failing", "stops"),
    [
        ("", lambda i: True, True),
        ("", lambda i: i % 10 != 0, False),
        ("none", lambda i: True, False),
        ("5", lambda i: i % 10 == 0, True),
        ("50", lambda i: i % 10 == 0, False),
        ("0.05", lambda i: i % 10 == 0, True),
        ("20%", lambda i: i % 10 == 0, False),
    ],
)
async def test_max_failures(tmp_path: Path, limit: str, failing: Any, stops: bool) -> None:
    async def write(state: State) -> State:
        if failing(int(state["text"].split()[1])):
            raise RuntimeError(state["text"])
        return {"poem": "x"}

    run = acollect(graph_of(write), RECORDS, tmp_path / "out", options=options(tmp_path, max_failures=limit))
    if stops:
        with pytest.raises(TooManyFailures):
            await run
        assert len(failed(tmp_path / "out")) < 100
    else:
        summary = await run
        assert summary.kept + summary.failed == 200


def test_different_errors_are_no_row_and_inputs_do_not_count() -> None:
    counter = FailureCounter(FailureLimit())
    for i in range(100):
        assert not counter.add("KeyError: 'a'" if i % 2 else "ValueError: b")
        assert not counter.add("duplicate: two records have this id", is_input=True)
    for i in range(19):
        assert not counter.add(f"status 400: field 'x{i}' in line {i}")
    counter.add(None)
    for i in range(19):
        assert not counter.add(f"status 400: field 'x{i}' in line {i}")
    assert counter.add("status 400: field 'y' in line 7")


@pytest.mark.parametrize("text", ["0", "-1", "x", "1.5", "0%", "100%", "nan", "5 records"])
def test_bad_limits(text: str) -> None:
    with pytest.raises(InputError, match="--max-failures"):
        RunOptions(max_failures=text)


ROLE = Role(Prompt.parse("# user\n{{ text }}", "poet"), sampling={"max_tokens": 50})


@pytest.mark.parametrize(
    "answer",
    [Status(401), Status(402), Status(403), Status(404), Status(429, text='{"error": {"code": "insufficient_quota"}}')],
    ids=lambda status: str(status.code),
)
@pytest.mark.parametrize("in_flight", [1, 64])
async def test_a_fault_of_the_run_fails_no_record(
    tmp_path: Path, server: FakeServer, answer: Status, in_flight: int
) -> None:
    server.plan = lambda seen: answer

    async def write(state: State) -> State:
        return {"poem": await ROLE(load_model(server.url), key="write", text=state["text"])}

    for _ in range(2):
        with pytest.raises(EndpointDown, match=str(answer.code)):
            await acollect(graph_of(write), RECORDS, tmp_path / "out", options=options(tmp_path, in_flight=in_flight))
        assert failed(tmp_path / "out") == []
    assert len(server.seen) <= 6 + 2 * 96


async def test_prices(tmp_path: Path, server: FakeServer) -> None:
    async def write(state: State) -> State:
        return {"poem": await ROLE(load_model(server.url), key="write", text=state["text"])}

    settings = options(tmp_path, price="1000000,2000000", cost_budget=30.0, in_flight=1)
    summary = await acollect(graph_of(write), RECORDS, tmp_path / "out", options=settings)
    assert summary.stopped == "cost budget"
    assert summary.cost == summary.prompt_tokens + 2 * summary.completion_tokens >= 30
    assert summary.processed < 10
    manifest = json.loads((tmp_path / "out" / "manifest.json").read_text())
    assert manifest["totals"]["cost"] == summary.cost


@pytest.mark.parametrize("price", ["1", "1,2,3", "a,b", "-1,2", "nan,1", "inf,1", ","])
def test_bad_prices(price: str) -> None:
    with pytest.raises(InputError, match="--price"):
        RunOptions(price=price)


def test_a_budget_needs_a_price() -> None:
    with pytest.raises(InputError, match=r"--cost-budget 5.0: .*--price"):
        RunOptions(cost_budget=5.0)
    with pytest.raises(InputError, match="--cost-budget"):
        RunOptions(cost_budget=0.0, price="1,1")
    assert RunOptions(cost_budget=5.0, price="1,1").cost_budget == 5.0
    assert Price.parse(" 0.15, 0.6 ") == Price(0.15, 0.6)
    assert Price(0.15, 0.6).of(1_000_000, 500_000) == pytest.approx(0.45)


OPEN_FILES = """
import resource, sys
resource.setrlimit(resource.RLIMIT_NOFILE, (100, int(sys.argv[1])))
from agentsys.collect.limits import allowed_in_flight
print(allowed_in_flight(int(sys.argv[2]), []), resource.getrlimit(resource.RLIMIT_NOFILE)[0])
"""


@pytest.mark.parametrize(("hard", "in_flight", "allowed"), [(512, 64, 64), (512, 1000, 384), (4096, 1000, 1000)])
def test_the_limit_of_open_files(hard: int, in_flight: int, allowed: int) -> None:
    command = [sys.executable, "-c", OPEN_FILES, str(hard), str(in_flight)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout.split() == [str(allowed), str(hard)]
    assert (f"--in-flight {in_flight} is reduced to {allowed}" in done.stderr) == (allowed < in_flight)
    assert done.stderr.count("\n") <= 1


def test_several_servers_share_the_files(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("agentsys.collect.limits.raise_open_files", lambda: 1128)
    models = [load_model("http://a:1/v1,http://b:1/v1"), load_model("http://a:1/v1,http://b:1/v1?temperature=0")]
    assert allowed_in_flight(600, models) == 500
    assert allowed_in_flight(600, models[:1]) == 500
