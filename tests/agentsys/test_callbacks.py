"""LangChain's callbacks see graphs, roles and calls: a tracer of the user's, token counts, LangSmith."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import pytest
from langchain_core.callbacks import BaseCallbackHandler, UsageMetadataCallbackHandler
from langchain_core.tracers.base import BaseTracer

from agentsys import callbacks
from agentsys.collect import RunOptions, acollect
from agentsys.graphs.drt.system import Context, graph
from agentsys.models import load_model
from agentsys.roles import RoleError
from tests.support.drt import TEXT, script_rules
from tests.support.paths import ROOT
from tests.support.roles import GREETER, JUDGE, scripted
from tests.support.servers import Answer, FakeServer
from tests.support.toys import environment, one_node, write_lines


class Tree(BaseTracer):
    """The roots of all runs, with their children."""

    def __init__(self) -> None:
        super().__init__()
        self.roots: list[Any] = []

    def _persist_run(self, run: Any) -> None:
        self.roots.append(run)


async def test_a_tracer_sees_the_graph_its_roles_and_their_calls(tmp_path: Path) -> None:
    script = write_lines(tmp_path / "replies.jsonl", script_rules([50, 60, 95]))
    tree = Tree()
    context = Context(f"scripted:{script}", max_rounds=3)
    await graph.ainvoke({"text": TEXT}, {"callbacks": [tree]}, context=context)
    [root] = tree.roots
    assert (root.name, root.run_type) == ("drt", "chain")
    [narrate] = [node for node in root.child_runs if node.name == "narrate"]
    [narrator] = [run for run in narrate.child_runs if run.name == "narrator"]
    assert narrator.run_type == "chain" and {"text", "steps"} & set(narrator.inputs)
    calls = narrator.child_runs
    assert [call.run_type for call in calls] == ["llm", "llm"]  # its first reply is refused
    assert [call.extra["metadata"]["agentsys_call"] for call in calls] == ["narrate", "narrate#1"]
    assert calls[0].extra["metadata"]["ls_model_name"] == "scripted"
    assert narrator.outputs["output"] == calls[1].outputs["generations"][0][0]["text"]


class Handler(BaseCallbackHandler):
    """The starts and ends of a chat model's calls."""

    def __init__(self) -> None:
        self.starts: list[dict[str, Any]] = []
        self.ends: list[Any] = []

    def on_chat_model_start(self, serialized: dict[str, Any], messages: Any, **settings: Any) -> None:
        self.starts.append({"serialized": serialized, "messages": messages, **settings})

    def on_llm_end(self, response: Any, **settings: Any) -> None:
        self.ends.append(response.generations[0][0].message)


async def test_handlers_get_tokens_model_and_provider_and_no_key(
    start_server: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AGENTSYS_API_KEY", "sk-the-key-of-the-user")
    server: FakeServer = await start_server(dialect="vllm")
    server.queue(Answer("Hello Ada!"))
    model = load_model(f"{server.url}?temperature=0.5")

    async def node(state: Any) -> dict[str, Any]:
        return {"reply": await GREETER(model, key="greet", name=state["text"])}

    handler, usage = Handler(), UsageMetadataCallbackHandler()
    output = await one_node(node).ainvoke({"text": "Ada"}, {"callbacks": [handler, usage]})
    assert output["reply"] == "Hello Ada!"
    [start], [end] = handler.starts, handler.ends
    expected = {"ls_provider": "vllm", "ls_model_name": "toy-model", "ls_temperature": 0.5, "agentsys_call": "greet"}
    assert {name: start["metadata"].get(name) for name in expected} == expected
    assert [message.content for message in start["messages"][0]] == ["Be kind.", "Greet Ada"]
    assert end.usage_metadata["output_tokens"] > 0
    assert usage.usage_metadata["toy-model"]["total_tokens"] == end.usage_metadata["total_tokens"]
    assert server.seen[0].headers["Authorization"] == "Bearer sk-the-key-of-the-user"
    assert "the-key" not in repr(start) + repr(end)


async def test_a_tracer_sees_why_a_role_failed() -> None:
    async def node(state: Any) -> dict[str, Any]:
        await JUDGE(scripted("I like it.")[0], key="judge", text="it")
        return {}

    tree = Tree()
    with pytest.raises(RoleError):
        await one_node(node).ainvoke({"text": "it"}, {"callbacks": [tree]})
    [role] = tree.roots[0].child_runs[0].child_runs
    assert role.name == "judge" and "no usable reply in 3 attempts" in role.error
    assert len(role.child_runs) == 3


async def test_a_bulk_run_without_callbacks_goes_past_langchain(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def node(state: Any) -> dict[str, Any]:
        assert not callbacks.has_callbacks()
        return {"reply": await GREETER(scripted("Hello")[0], key="greet", name="Ada")}

    monkeypatch.setattr(callbacks, "RunnableLambda", None)
    monkeypatch.setattr("agentsys.models.scripted.ScriptedChatModel.ainvoke", None)
    options = RunOptions(no_cache=True)
    summary = await acollect(one_node(node), [{"text": "x"}], tmp_path / "run", options=options)
    assert (summary.kept, summary.failed) == (1, 0)


class LangSmith(BaseHTTPRequestHandler):
    """The two routes of LangSmith's server that a client uses."""

    bodies: list[bytes]

    def do_GET(self) -> None:
        self._send(b"{}")

    def do_POST(self) -> None:
        self.bodies.append(self.rfile.read(int(self.headers["Content-Length"])))
        self._send(b"{}")

    def _send(self, body: bytes) -> None:
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *args: Any) -> None:
        """Nothing."""


@pytest.fixture
def langsmith() -> Iterator[tuple[str, list[bytes]]]:
    """The address of a server in LangSmith's place, and what it got."""
    bodies: list[bytes] = []
    with ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (LangSmith,), {"bodies": bodies})) as server:
        Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}", bodies
        server.shutdown()


def test_langsmith_gets_the_runs_of_a_command(tmp_path: Path, langsmith: tuple[str, list[bytes]]) -> None:
    address, bodies = langsmith
    script = write_lines(tmp_path / "replies.jsonl", script_rules([50, 60, 95]))
    records = write_lines(tmp_path / "in.jsonl", [{"id": "r1", "text": TEXT}])
    env = {
        "LANGSMITH_TRACING": "true",
        "LANGSMITH_ENDPOINT": address,
        "LANGSMITH_API_KEY": "lsv2_none",
        "LANGSMITH_DISABLE_RUN_COMPRESSION": "true",
    }
    command = [sys.executable, "-m", "agentsys", "collect", "drt", "--input", records, "--out", tmp_path / "run"]
    options = ["--model", f"scripted:{script}", "--max-rounds", "3", "--no-cache"]
    run = subprocess.run(
        [*map(str, command), *options],
        env=environment(tmp_path / "cache", env),
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert run.returncode == 0, run.stderr
    sent = b"\n".join(bodies)
    for name in ("drt", "advise", "advisor", "ScriptedChatModel"):
        assert f'"name":"{name}"'.encode() in sent
    assert b'"ls_model_name":"scripted"' in sent and b'"total_tokens"' in sent
