"""Runs over HTTP: the limit on requests in flight, servers that fail or disappear, API keys."""

from __future__ import annotations

import asyncio
import json
import random
import re
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from langgraph.runtime import Runtime

from agentsys.collect import RunOptions, acollect
from agentsys.models import EndpointDown, load_model
from agentsys.models.endpoint import RetryPolicy
from agentsys.systems import ask
from agentsys.traces import read_traces
from tests.support.greeter import GREETER, UNCACHED, Context, greet
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
from tests.support.toys import call_drt, one_error, one_node, read_failed, read_manifest, sentences, write_lines


@contextmanager
def served(**settings: Any) -> Iterator[FakeServer]:
    """A server in its own thread, for a run with its own event loop."""
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
    """Shorten the retry delays of a spec's model, and return the spec."""
    load_model(spec).engine.endpoint.retry = RetryPolicy(attempts=3, first=0.01, longest=0.02)  # type: ignore[attr-defined]
    return spec


async def test_the_limit_on_requests_in_flight_is_reached_and_kept(
    tmp_path: Path, start_server: Callable[..., Any]
) -> None:
    server = await start_server(plan=lambda seen: Answer(delay=0.03))

    async def twice(state: Any, runtime: Runtime[Context]) -> dict[str, Any]:
        greetings = (ask(runtime.context, GREETER, key=f"greet/{i}", text=state["text"]) for i in range(2))
        await asyncio.gather(*greetings)
        return {}

    options = RunOptions(no_cache=True, in_flight=7)
    records = [f"t{i}" for i in range(40)]
    summary = await acollect(one_node(twice), records, tmp_path / "run", context=Context(server.url), options=options)
    assert summary.kept == 40
    assert server.high_water == 7


def test_an_endpoint_that_goes_down_ends_the_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    records = write_lines(tmp_path / "in.jsonl", sentences(30, 1000))
    arguments = ["--input", records, "--out", tmp_path / "run", "--cache", tmp_path / "c.sqlite", "--in-flight", 2]

    with served(plan=lambda seen: Answer(drt_reply(seen))) as server:
        spec = impatient(server.url)

        def stop_after(seen: Seen) -> Behavior:
            if len(server.seen) == 60:
                asyncio.get_running_loop().create_task(server.stop())
            return Answer(drt_reply(seen))

        server.plan = stop_after
        code, _, err = call_drt(capsys, "--model", spec, *arguments)
    assert code == 1
    line = one_error(err)
    assert f"no server is reachable at {server.address}" in line
    assert "finished records are saved: rerun the same command to resume" in line
    finished = len(list(read_traces(tmp_path / "run")))
    assert 0 < finished < 30
    assert read_manifest(tmp_path / "run")["counts"]["failed"] <= 2  # the records whose reply broke off
    assert read_manifest(tmp_path / "run")["totals"]["calls"] > 30


async def test_a_missing_server_leaves_no_folder(tmp_path: Path) -> None:
    spec = impatient("http://127.0.0.1:9/v1")
    with pytest.raises(EndpointDown, match=re.escape("http://127.0.0.1:9")):
        await acollect(one_node(greet), ["a"], tmp_path / "run", context=Context(spec), options=UNCACHED)
    assert not (tmp_path / "run").exists()


def test_an_api_key_goes_to_the_server_only(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    key = "sk-very-secret-12345"
    monkeypatch.setenv("AGENTSYS_API_KEY", key)
    records = write_lines(tmp_path / "in.jsonl", sentences(12))

    def plan(seen: Seen) -> Behavior:
        message = f"the key {key} has no right to this"  # some servers repeat the key
        return Status(403, text=message) if "7: " in str(seen.body) else Answer(drt_reply(seen))

    with served(plan=plan) as server:
        arguments = ["--input", records, "--out", tmp_path / "run", "--cache", tmp_path / "run" / "cache.sqlite"]
        code, out, err = call_drt(capsys, "--model", impatient(server.url), *arguments)
    assert code == 3
    assert server.seen[0].headers["Authorization"] == f"Bearer {key}"
    assert "status 403: the key *** has no right to this" in (tmp_path / "run" / "failed.jsonl").read_text()
    files = [path for path in (tmp_path / "run").iterdir() if path.is_file()]
    names = {"manifest.json", "README.md", "records.jsonl", "traces-00000.jsonl.zst", "view.html"}
    assert names < {path.name for path in files}
    assert [path.name for path in files if key.encode() in path.read_bytes()] == []
    assert key not in out + err


def drt_reply(seen: Seen) -> str:
    """A usable reply for each role of DRT."""
    schema = seen.body.get("response_format", {}).get("json_schema", {}).get("schema", {})
    question = seen.body["messages"][-1]["content"]
    if "keywords" in schema.get("properties", {}):
        return json.dumps({"keywords": [{"word": question.split()[0], "translation": "词"}]})
    if "score" in schema.get("properties", {}):
        return json.dumps({"reason": "so so", "score": random.Random(question).randrange(30, 100)})
    if decision := re.search(r"Final translation: (⟦\d+⟧)", question):
        marks = sorted({*re.findall(r"⟦\d+⟧", question)} - {decision[1]})
        return "\n\n".join(
            ["I begin.", *(f"I think of {mark}" for mark in marks), "So.", "Well.", f"I keep {decision[1]}"]
        )
    if "Assess the translation." in question:
        return '"译文" is stiff; write "翻译".'
    return f"译文{random.Random(str(seen.body)).randrange(10**6)}"


WRONG_SCHEMA = Answer('{"reason": "far too good", "score": 1000}')
FAULTS: list[Behavior] = [
    Status(500), Status(429, retry_after="0"), Drop(), Drop(midway=True), Hang(), EMPTY, BROKEN_JSON, NOT_A_REPLY,
    WRONG_SCHEMA, REPETITION,
]  # fmt: skip


def test_every_record_has_an_outcome_whatever_the_server_does(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The reply depends on the request's text and number of attempts, not on the order, so that all runs are equal."""
    tries: Counter[str] = Counter()
    behaviors: Counter[str] = Counter()

    def plan(seen: Seen) -> Behavior:
        text = str(seen.body["messages"])
        tries[text] += 1
        dice = random.Random(f"{text} {tries[text]}")
        behavior = dice.choice(FAULTS) if dice.random() < 0.3 else Answer(drt_reply(seen))
        behaviors["good" if isinstance(behavior, Answer) and behavior not in FAULTS else str(behavior)[:40]] += 1
        return behavior

    records = write_lines(tmp_path / "in.jsonl", sentences(40, 1000))
    with served(plan=plan) as server:
        options = ["--input", records, "--out", tmp_path / "run", "--cache", tmp_path / "c.sqlite", "--min-steps", 2]
        code, _, err = call_drt(capsys, "--model", impatient(f"{server.url}?timeout=1"), *options)
    assert code == 3
    assert "Traceback" not in err
    assert set(behaviors) == {"good", *(str(fault)[:40] for fault in FAULTS)}
    assert 0.2 < 1 - behaviors["good"] / behaviors.total() < 0.4
    ends: dict[str, Any] = {t.id: (t.outcome, t.reason) for t in read_traces(tmp_path / "run")}
    ends |= {line["id"]: ("failed", line["reason"]) for line in read_failed(tmp_path / "run")}
    assert set(ends) == {f"r{i}" for i in range(40)}
    assert {outcome for outcome, _ in ends.values()} == {"kept", "dropped", "failed"}
    assert all(reason for outcome, reason in ends.values() if outcome != "kept")
