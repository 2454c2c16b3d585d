"""agentsys/telemetry.py: spans of records, roles and calls, in the SDK's in-memory exporter, and their export."""

from __future__ import annotations

import asyncio
import gzip
import json
import subprocess
import sys
from collections.abc import Iterator, Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import pytest

from agentsys import telemetry
from agentsys.collect import RunOptions, acollect, collect
from agentsys.graphs.drt.system import Context, graph
from agentsys.models import ModelError, load_model
from agentsys.models.cache import RequestCache
from agentsys.roles import RoleError
from tests.support.drt import TEXT, script_rules
from tests.support.paths import ROOT
from tests.support.roles import GOOD, GREETER, JUDGE, recording, scripted
from tests.support.servers import Answer, FakeServer, Status
from tests.support.shards import shard_lines
from tests.support.toys import RULES, one_node, run_drt, sentences, write_lines

pytestmark = pytest.mark.needs("otel")
SECRET = "sk-THE-KEY-of-the-user-0123456789"


class Spans:
    """The finished spans of a test."""

    def __init__(self, exporter: Any) -> None:
        self._exporter = exporter

    def all(self) -> list[Any]:
        """In the order of their starts."""
        return sorted(self._exporter.get_finished_spans(), key=lambda span: span.start_time)

    def named(self, name: str) -> list[Any]:
        return [span for span in self.all() if span.name.startswith(name)]

    def below(self, parent: Any) -> list[Any]:
        """The children of a span."""
        return [span for span in self.all() if span.parent and span.parent.span_id == parent.context.span_id]


@pytest.fixture
def spans(monkeypatch: pytest.MonkeyPatch) -> Spans:
    """A tracer provider for one test: OpenTelemetry itself sets one only once for each process."""
    from opentelemetry import trace
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import SimpleSpanProcessor
    from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

    exporter = InMemorySpanExporter()
    provider = TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    monkeypatch.setattr(trace, "get_tracer_provider", lambda: provider)
    monkeypatch.delenv(telemetry.CAPTURE, raising=False)
    return Spans(exporter)


def run(tmp_path: Path, rules: list[dict[str, Any]], records: list[dict[str, str]], **knobs: Any) -> None:
    """DRT with a scripted model, without a request cache."""
    script = write_lines(tmp_path / "replies.jsonl", rules)
    options = RunOptions(no_cache=True)
    collect(graph, records, tmp_path / "run", context=Context(f"scripted:{script}", **knobs), options=options)


def test_a_run_of_drt_is_a_tree(spans: Spans, tmp_path: Path) -> None:
    run(tmp_path, script_rules([50, 60, 95]), [{"id": "r1", "text": TEXT}], max_rounds=3)
    [record] = spans.named("agentsys.record")
    assert record.parent is None and record.attributes["agentsys.record.outcome"] == "kept"
    tree = [(role.name, [call.name for call in spans.below(role)]) for role in spans.below(record)]
    round_of_calls = ["advisor", "evaluator", "refiner"]
    names = ["keywords", "draft", *round_of_calls, *round_of_calls, "advisor", "evaluator"]
    assert tree == [
        *((f"invoke_agent {name}", ["chat scripted"]) for name in names),
        ("invoke_agent narrator", ["chat scripted", "chat scripted"]),  # its first reply is refused
    ]
    assert len(spans.all()) == 1 + len(tree) + len(names) + 2


def test_the_attributes_of_record_role_and_call(spans: Spans, tmp_path: Path) -> None:
    run(tmp_path, script_rules([95]), [{"id": "r1", "text": TEXT}], max_rounds=3)
    [record], [role] = spans.named("agentsys.record"), spans.named("invoke_agent evaluator")
    [call] = spans.below(role)
    manifest = tmp_path / "run" / "manifest.json"
    assert dict(record.attributes) == {
        "agentsys.record.id": "r1",
        "agentsys.system": "drt",
        "agentsys.run": json.loads(manifest.read_bytes())["run"],
        "agentsys.record.outcome": "dropped",
        "agentsys.record.reason": record.attributes["agentsys.record.reason"],
    }
    assert record.status.is_ok and record.attributes["agentsys.record.reason"]
    assert dict(role.attributes) == {
        "gen_ai.operation.name": "invoke_agent",
        "gen_ai.agent.name": "evaluator",
        "agentsys.call.key": "evaluate/0",
    }
    usage = {name: call.attributes[f"gen_ai.usage.{name}_tokens"] for name in ("input", "output")}
    assert usage["input"] > 20 and usage["output"] == 6
    assert dict(call.attributes) == {
        "gen_ai.operation.name": "chat",
        "gen_ai.provider.name": "agentsys-scripted",
        "gen_ai.request.model": "scripted",
        "gen_ai.request.temperature": 0.0,
        "gen_ai.request.top_p": 1.0,
        "gen_ai.request.max_tokens": 300,
        "gen_ai.request.seed": call.attributes["gen_ai.request.seed"],
        "gen_ai.output.type": "json",
        "gen_ai.response.finish_reasons": ("stop",),
        "gen_ai.usage.input_tokens": usage["input"],
        "gen_ai.usage.output_tokens": usage["output"],
        "agentsys.call.key": "evaluate/0",
        "agentsys.cache_hit": False,
    }
    assert (role.kind.name, call.kind.name) == ("INTERNAL", "CLIENT")
    assert call.instrumentation_scope.name == "agentsys"


async def test_parallel_records_do_not_mix(spans: Spans, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(telemetry.CAPTURE, "true")

    async def node(state: Any) -> dict[str, Any]:
        async def greet(number: int) -> str:
            await asyncio.sleep(0.001 * (number + len(state["text"]) % 3))
            return await GREETER(scripted("Hello")[0], key=f"greet/{number}", name=f"{state['text']}-{number}")

        await asyncio.gather(*map(greet, range(3)))
        return {"reply": "done"}

    records = [{"id": f"r{i}", "text": "x" * i} for i in range(1, 9)]
    await acollect(one_node(node), records, tmp_path / "run", options=RunOptions(no_cache=True, in_flight=8))
    roots = spans.named("agentsys.record")
    assert len({root.context.trace_id for root in roots}) == len(roots) == 8
    assert roots[-1].start_time < min(root.end_time for root in roots)  # all were in progress at once
    for root in roots:
        roles = spans.below(root)
        calls = [call for role in roles for call in spans.below(role)]
        assert sorted(call.attributes["agentsys.call.key"] for call in calls) == ["greet/0", "greet/1", "greet/2"]
        name = "x" * int(root.attributes["agentsys.record.id"].removeprefix("r"))
        assert all(f"Greet {name}-" in call.attributes["gen_ai.input.messages"] for call in calls)


async def test_outcomes_and_errors_of_records(spans: Spans, tmp_path: Path) -> None:
    async def node(state: Any) -> dict[str, Any]:
        match state["text"]:
            case "fail":
                raise ModelError("the server gave up")
            case "drop":
                return {"dropped": "too dull"}
            case "object":
                return {"reply": object()}
        return {"reply": "fine"}

    records = [{"id": name, "text": name} for name in ("keep", "drop", "fail", "object")]
    options = RunOptions(no_cache=True, max_failures="none")
    await acollect(one_node(node), records, tmp_path / "run", options=options)
    by_id = {span.attributes["agentsys.record.id"]: span for span in spans.named("agentsys.record")}
    seen = {
        name: (span.status.status_code.name, span.attributes["agentsys.record.outcome"]) for name, span in by_id.items()
    }
    assert seen == {
        "keep": ("UNSET", "kept"),
        "drop": ("UNSET", "dropped"),
        "fail": ("ERROR", "failed"),
        "object": ("ERROR", "failed"),
    }
    assert by_id["drop"].attributes["agentsys.record.reason"] == "too dull"
    failed = by_id["fail"]
    assert (failed.attributes["error.type"], failed.status.description) == (
        "ModelError",
        "ModelError: the server gave up",
    )
    assert "agentsys.record.reason" not in by_id["keep"].attributes


async def test_a_refused_reply_is_an_event_of_the_role(spans: Spans) -> None:
    model, _ = scripted("I like it.", GOOD)
    await JUDGE(model, key="judge", text="it")
    [role] = spans.named("invoke_agent")
    assert [call.attributes["agentsys.call.key"] for call in spans.below(role)] == ["judge", "judge#1"]
    [event] = role.events
    assert event.name == "agentsys.unusable_reply"
    assert event.attributes["agentsys.call.key"] == "judge"
    assert event.attributes["agentsys.reason"].startswith("not the JSON that was asked for")
    assert role.status.status_code.name == "UNSET"


async def test_errors_of_roles_and_calls(spans: Spans, server: FakeServer) -> None:
    with pytest.raises(RoleError):
        await JUDGE(scripted("I like it.")[0], key="judge", text="it")
    [role] = spans.named("invoke_agent")
    assert (role.status.status_code.name, role.attributes["error.type"]) == ("ERROR", "RoleError")
    assert [call.status.status_code.name for call in spans.below(role)] == ["UNSET"] * 3
    server.queue(Status(422, text="no such field"))
    with pytest.raises(ModelError):
        await GREETER(load_model(server.url), key="greet", name="Ada")
    call = spans.named("chat")[-1]
    assert (call.status.status_code.name, call.attributes["error.type"]) == ("ERROR", "RequestRefused")
    assert "no such field" in call.status.description


async def test_a_call_names_its_server_and_cached_tokens(spans: Spans, start_server: Any) -> None:
    server = await start_server(dialect="vllm")
    server.queue(Answer("Hello", cached=3))
    model = load_model(f"{server.url}?temperature=0.5&seed=7")
    await GREETER(model, key="greet", name="Ada")
    [call] = spans.named("chat")
    host, _, port = server.address.removeprefix("http://").partition(":")
    expected = {
        "gen_ai.provider.name": "vllm",
        "gen_ai.request.model": "toy-model",
        "gen_ai.request.temperature": 0.5,
        "gen_ai.request.seed": 7,
        "gen_ai.usage.cache_read.input_tokens": 3,
        "server.address": host,
        "server.port": int(port),
    }
    assert {name: call.attributes.get(name) for name in expected} == expected


async def test_a_reply_from_the_request_cache_costs_no_tokens(spans: Spans, tmp_path: Path) -> None:
    cache = RequestCache(tmp_path / "cache.sqlite")
    for _ in range(2):
        with recording(cache=cache):
            await GREETER(scripted("Hello")[0], key="greet", name="Ada")
    cache.close()
    asked, cached = spans.named("chat")
    assert (asked.attributes["agentsys.cache_hit"], asked.attributes["gen_ai.usage.output_tokens"]) == (False, 1)
    assert cached.attributes["agentsys.cache_hit"]
    assert not [name for name in cached.attributes if name.startswith(("gen_ai.usage", "server"))]


@pytest.mark.parametrize(
    ("setting", "captures"), [("", False), ("event_only", False), ("true", True), ("SPAN_ONLY", True)]
)
async def test_messages_only_on_request(
    setting: str, captures: bool, spans: Spans, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(telemetry.CAPTURE, setting)
    await GREETER(scripted("<think>Short.</think>Hello Ada!")[0], key="greet", name="Ada")
    texts = everything(spans)
    if not captures:
        assert "Ada" not in texts and "Be kind" not in texts
        return
    [call] = spans.named("chat")
    assert json.loads(call.attributes["gen_ai.input.messages"]) == [
        {"role": "system", "parts": [{"type": "text", "content": "Be kind."}]},
        {"role": "user", "parts": [{"type": "text", "content": "Greet Ada"}]},
    ]
    parts = [{"type": "reasoning", "content": "Short."}, {"type": "text", "content": "Hello Ada!"}]
    assert json.loads(call.attributes["gen_ai.output.messages"]) == [
        {"role": "assistant", "parts": parts, "finish_reason": "stop"}
    ]


def everything(spans: Spans) -> str:
    """All that the spans hold."""
    return "\n".join(span.to_json() for span in spans.all())


async def test_no_span_has_a_key(
    spans: Spans, server: FakeServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AGENTSYS_API_KEY", SECRET)
    monkeypatch.setenv(telemetry.CAPTURE, "true")
    server.plan = lambda seen: Status(422, text=f"Bearer {SECRET} is not enough")

    async def node(state: Any) -> dict[str, Any]:
        if state["text"] == "bug":
            raise LookupError(f"my key is {SECRET}")
        return {"reply": await GREETER(load_model(server.url), key="greet", name=SECRET)}

    records = [{"id": name, "text": name} for name in ("bug", "call")]
    await acollect(one_node(node), records, tmp_path / "run", options=RunOptions(no_cache=True, max_failures="none"))
    assert server.seen[0].headers["Authorization"] == f"Bearer {SECRET}"
    assert len(spans.named("chat")) == 1 and len(spans.named("agentsys.record")) == 2
    assert "***" in everything(spans) and SECRET not in everything(spans)


async def test_without_a_provider_there_is_no_span(monkeypatch: pytest.MonkeyPatch) -> None:
    from opentelemetry import trace

    provider = trace.get_tracer_provider()
    assert isinstance(provider, trace.ProxyTracerProvider), "another test set a provider for the whole process"
    assert telemetry._tracer() is None
    with telemetry.record_span("r", "drt", "run") as span:
        assert span is telemetry._NO_SPAN
    monkeypatch.setattr(trace, "get_tracer_provider", trace.NoOpTracerProvider)
    assert telemetry._tracer() is None


def test_our_modules_do_not_import_opentelemetry() -> None:
    """LangSmith's client, which LangGraph imports, does if it is installed."""
    code = "import sys, agentsys.telemetry; print([name for name in sys.modules if name.startswith('opentelemetry')])"
    run = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert (run.stdout.strip(), run.stderr) == ("[]", "")


# The export of commands


class Collector(BaseHTTPRequestHandler):
    """A collector of OTLP over HTTP, which keeps the bodies of its requests."""

    bodies: list[bytes]

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        is_packed = self.headers.get("Content-Encoding") == "gzip"
        self.bodies.append(gzip.decompress(body) if is_packed else body)
        self.send_response(200 if self.path == "/v1/traces" else 404)
        self.end_headers()

    def log_message(self, *args: Any) -> None:
        """Nothing."""


@pytest.fixture
def collector() -> Iterator[tuple[str, list[bytes]]]:
    """The address of a collector, and what it got."""
    bodies: list[bytes] = []
    handler = type("Handler", (Collector,), {"bodies": bodies})
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}", bodies
        server.shutdown()


def test_a_command_exports_its_spans(tmp_path: Path, collector: tuple[str, list[bytes]]) -> None:
    from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

    address, bodies = collector
    script = write_lines(tmp_path / "rules.jsonl", RULES)
    records = write_lines(tmp_path / "in.jsonl", sentences(2))
    env = {"OTEL_EXPORTER_OTLP_ENDPOINT": address, "OTEL_RESOURCE_ATTRIBUTES": "team=translators"}
    options = ("--input", records, "--out", tmp_path / "run", "--model", f"scripted:{script}")
    code, _, error = run_drt(tmp_path / "cache", *options, env=env)
    assert code in (0, 3), error
    resources = [part for body in bodies for part in ExportTraceServiceRequest.FromString(body).resource_spans]
    spans = [span for part in resources for scope in part.scope_spans for span in scope.spans]
    names = [span.name for span in spans]
    assert names.count("agentsys.record") == 2 and "chat scripted" in names and "invoke_agent draft" in names
    attributes = {item.key: item.value.string_value for item in resources[0].resource.attributes}
    assert (attributes["service.name"], attributes["team"]) == ("agentsys", "translators")
    assert "The lamp shone" not in str(bodies)


def test_a_command_without_a_collector_finishes_its_run(tmp_path: Path) -> None:
    script = write_lines(tmp_path / "rules.jsonl", RULES)
    records = write_lines(tmp_path / "in.jsonl", sentences(2))
    env = {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:9", "OTEL_EXPORTER_OTLP_TIMEOUT": "1"}
    options = ("--input", records, "--out", tmp_path / "run", "--model", f"scripted:{script}")
    code, _, error = run_drt(tmp_path / "cache", *options, env=env)
    assert code in (0, 3), error
    assert "Failed to export" in error and shard_lines(tmp_path / "run")


@pytest.mark.parametrize(
    ("variables", "message"),
    [
        ({}, ""),
        ({"OTEL_SDK_DISABLED": "true"}, ""),
        ({"OTEL_TRACES_EXPORTER": "none"}, ""),
        ({"OTEL_EXPORTER_OTLP_PROTOCOL": "grpc"}, "pip install opentelemetry-exporter-otlp-proto-grpc"),
        ({"OTEL_EXPORTER_OTLP_PROTOCOL": "http/json"}, "no exporter for http/json is installed"),
        ({"OTEL_EXPORTER_OTLP_TRACES_PROTOCOL": "http/protobuf"}, "[otel]"),
    ],
)
def test_what_is_missing_for_an_export(
    variables: Mapping[str, str],
    message: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """A machine may have the variables of OpenTelemetry for other programs: that is a line, and no error."""
    if variables:
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", "http://127.0.0.1:9")
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(telemetry, "entry_points", lambda **query: ())
    telemetry.export_spans()
    error = capsys.readouterr().err
    assert message in error and (message or not error)
