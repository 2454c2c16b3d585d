"""Studio's server under the worst that a page may post: it refuses, or ends the run, and goes on answering."""

from __future__ import annotations

import contextlib
import importlib
import json
import os
import signal
import threading
import time
from collections.abc import Iterator, Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any, get_type_hints

import httpx
import pytest

from agentsys.knobs import studio_bound
from tests.support.paths import ROOT
from tests.support.servers import Answer, FakeServer
from tests.support.studio_cases import CASES
from tests.support.studio_server import (
    Studio,
    langgraph_dev,
    langgraph_process,
    serving,
    studio_in,
    without_models,
)

GRAPHS: dict[str, Any] = json.loads((ROOT / "langgraph.json").read_text())["graphs"]
CALLS = 60
"""Calls that one run may make here."""
ANSWER_SECONDS = 40.0
"""The longest that /ok may take: a server whose loop is blocked gives no answer at all, a busy machine a late one."""
every_graph = pytest.mark.parametrize("graph", GRAPHS)


@pytest.fixture(scope="module")
def studio(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Studio]:
    with studio_in(tmp_path_factory.mktemp("worst"), AGENTSYS_STUDIO_CALLS=str(CALLS)) as server:
        yield server


def numeric_knobs(graph: str) -> dict[str, Any]:
    """The numeric options of a graph, by name."""
    module, _, name = GRAPHS[graph]["path"].partition(":")
    context = getattr(importlib.import_module(module), name).context_schema
    hints = get_type_hints(context)
    return {item.name: item for item in fields(context) if hints[item.name] in (int, float)}


WORST = [(graph, name) for graph in GRAPHS for name in numeric_knobs(graph)]


class Watch:
    """Asks /ok all the time, from a thread; `longest` is the longest wait in seconds."""

    def __init__(self, http: httpx.Client) -> None:
        self._http, self._done, self.longest = http, threading.Event(), 0.0
        self._thread = threading.Thread(target=self._ask)

    def _ask(self) -> None:
        while not self._done.is_set():
            started = time.monotonic()
            answered = self._http.get("/ok", timeout=60).status_code == 200
            self.longest = max(self.longest, time.monotonic() - started if answered else float("inf"))
            self._done.wait(0.1)

    def __enter__(self) -> Watch:
        self._thread.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self._done.set()
        self._thread.join()
        assert self.longest < ANSWER_SECONDS


def test_every_paper_with_numbers_is_here() -> None:
    assert {graph for graph, _ in WORST} >= {"drt", "deeprag", "deeprag_search", "longdpo", "maths", "crat", "ragtrans"}


@pytest.mark.parametrize("value", [10**6 + 10**7, 2**62], ids=["millions", "62-bits"])
@every_graph
def test_a_number_without_measure_is_refused(studio: Studio, graph: str, value: int) -> None:
    names = [name for name, item in numeric_knobs(graph).items() if (studio_bound(item) or 0) < value]
    messages = studio.failures(graph, [{name: value} for name in names]) if names else []
    for name, message in zip(names, messages, strict=True):
        assert message.startswith(f"ValueError: {name}: {value} is above ")


@every_graph
def test_the_highest_numbers_together_end(studio: Studio, graph: str) -> None:
    """Each is allowed, but width times depth times rollouts is not: the run ends at its limit of calls."""
    case, server = CASES[graph], studio.vllm
    highest = {name: int(studio_bound(item) or 0) for name, item in numeric_knobs(graph).items()}
    highest |= {name: min(value, 4096) for name, value in highest.items() if name.endswith("tokens")}
    highest |= {"greedy": False} if graph == "maths_samples" else {}
    before = len(studio.requests)
    with Watch(studio.http):
        state = studio.run(graph, input=case.input, context={**case.context(studio, "vllm"), **highest})
    error = state.get("__error__", {"error": "TooManyCalls", "message": f"this run made {CALLS} model calls"})
    assert error["error"] == "TooManyCalls", error
    assert error["message"].startswith(f"this run made {CALLS} model calls")
    assert len(server.seen) > 0
    assert len(studio.requests) - before <= CALLS


def test_some_runs_do_reach_the_limit(studio: Studio) -> None:
    case = CASES["maths_samples"]
    context = {**case.context(studio), "samples": 64, "greedy": False}
    state = studio.run("maths_samples", input=case.input, context=context)
    assert state["__error__"]["error"] == "TooManyCalls"
    assert "AGENTSYS_STUDIO_CALLS" in state["__error__"]["message"]
    again = studio.run("drt", input=CASES["drt"].input, context=CASES["drt"].context(studio))
    assert "__error__" not in again, "each run has its own count"


# Who may ask


PREFLIGHT = {"Access-Control-Request-Method": "POST", "Access-Control-Request-Headers": "content-type,x-auth-scheme"}


@pytest.mark.parametrize("private_network", [False, True])
@pytest.mark.parametrize(
    ("origin", "is_allowed"),
    [
        ("https://smith.langchain.com", True),
        ("https://eu.smith.langchain.com", True),
        ("http://localhost:3000", True),
        ("http://127.0.0.1:2024", True),
        ("http://[::1]:8080", True),
        ("http://evil.example", False),
        ("null", False),
        ("http://smith.langchain.com", False),
        ("https://smith.langchain.com.evil.example", False),
        ("https://evil.smith.langchain.com", False),
        ("http://localhost.evil.example", False),
        ("http://localhost:3000@evil.example", False),
        ("http://127.0.0.1.evil.example", False),
    ],
)
def test_pages(studio: Studio, origin: str, is_allowed: bool, private_network: bool) -> None:
    """The preflight, the request itself, and the one without a preflight (a form's content type)."""
    asked = {"Access-Control-Request-Private-Network": "true"} if private_network else {}
    preflight = studio.http.options("/runs/wait", headers={"Origin": origin, **PREFLIGHT, **asked})
    assert (preflight.status_code == 200) is is_allowed
    assert preflight.headers.get("access-control-allow-origin") == (origin if is_allowed else None)
    for content_type in ("application/json", "text/plain"):
        headers = {"Origin": origin, "Content-Type": content_type}
        reply = studio.http.post("/assistants/search", content=b"{}", headers=headers)
        assert reply.status_code == (200 if is_allowed else 403)
        assert reply.headers.get("access-control-allow-origin") == (origin if is_allowed else None)


@pytest.mark.parametrize(
    ("host", "status"),
    [
        ("localhost", 200),
        ("LOCALHOST:80", 200),
        ("127.0.0.1", 200),
        ("127.1.2.3:2024", 200),
        ("[::1]:2024", 200),
        ("evil.example", 400),
        ("evil.example:2024", 400),
        ("localhost.evil.example", 400),
        ("localhost@evil.example", 400),
        ("127.0.0.1.evil.example", 400),
        ("10.0.0.1", 400),
    ],
)
def test_hosts(studio: Studio, host: str, status: int) -> None:
    """A foreign name that resolves to this machine (DNS rebinding) is refused."""
    assert studio.http.get("/ok", headers={"Host": host}).status_code == status


def test_a_body_without_measure_is_refused(studio: Studio) -> None:
    body = json.dumps({"assistant_id": studio.assistants["drt"], "input": {"text": "x" * (17 * 2**20)}})
    with httpx.Client(base_url=studio.http.base_url, trust_env=False) as http:
        assert http.post("/runs/wait", content=body).status_code == 413

    def pieces() -> Iterator[bytes]:
        for _ in range(17):
            yield b" " * 2**20

    client = httpx.Client(base_url=studio.http.base_url, trust_env=False)
    with client as http, contextlib.suppress(httpx.HTTPError):  # the connection is closed
        assert http.post("/runs/wait", content=pieces()).status_code >= 400
    assert studio.get("/ok")["ok"] is True


# After a restart


@pytest.mark.parametrize(
    ("graph", "context"),
    [("longdpo", {"width": 10**6}), ("maths", {"width": 16, "depth": 32, "rollouts": 16, "simulations": 256})],
)
def test_a_restart_with_a_queued_run(tmp_path: Path, graph: str, context: Mapping[str, Any]) -> None:
    """The server is killed while the run is queued or under way; the next one takes it up again and lives."""
    with serving(chat := FakeServer(dialect="llamacpp", plan=lambda seen: Answer("a step", delay=0.3))):
        environment = os.environ | without_models(tmp_path)
        environment |= {"AGENTSYS_ENDPOINTS": chat.url, "AGENTSYS_STUDIO_CALLS": "20"}
        with langgraph_process(tmp_path, environment) as (http, process):
            assistants = {
                a["graph_id"]: a["assistant_id"] for a in http.post("/assistants/search", json={"limit": 100}).json()
            }
            thread = http.post("/threads", json={}).json()["thread_id"]
            body = {"assistant_id": assistants[graph], "context": {"model": chat.url, **context}}
            run = http.post(f"/threads/{thread}/runs", json=body | {"input": CASES[graph].input}).json()["run_id"]
            time.sleep(12)  # the server writes its queue every ten seconds
            os.killpg(process.pid, signal.SIGKILL)
        with langgraph_dev(tmp_path, environment) as http, Watch(http):
            deadline = time.monotonic() + 60
            status = "pending"
            while status in ("pending", "running") and time.monotonic() < deadline:
                reply = http.get(f"/threads/{thread}/runs/{run}")
                status = reply.json()["status"] if reply.status_code == 200 else "forgotten"
                time.sleep(0.2)
            assert status in ("error", "success", "forgotten", "timeout", "interrupted")
