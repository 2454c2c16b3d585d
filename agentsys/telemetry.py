"""OpenTelemetry spans of records, roles and calls, after the GenAI semantic conventions (docs/telemetry.md).

agentsys.record                one record of a run
  invoke_agent advisor         one ask of a role, with the calls that repeat it
    chat qwen2.5-coder-1.5b    one call

Spans are made if the process has a tracer provider. opentelemetry is not imported to look for one.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from functools import lru_cache
from importlib.metadata import PackageNotFoundError, entry_points
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import urlsplit

import orjson

from agentsys.display import say
from agentsys.installation import install_command, version
from agentsys.models.secrets import mask_key

if TYPE_CHECKING:
    from agentsys.traces import Call, Trace

CAPTURE: Final = "OTEL_INSTRUMENTATION_GENAI_CAPTURE_MESSAGE_CONTENT"
"""Environment variable of the conventions: `true`, `span_only` or `span_and_event` puts messages into spans."""
ENDPOINTS: Final = ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "OTEL_EXPORTER_OTLP_ENDPOINT")
PROTOCOLS: Final = ("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL", "OTEL_EXPORTER_OTLP_PROTOCOL")
_EXPORTERS: Final = {"http/protobuf": "otlp_proto_http", "grpc": "otlp_proto_grpc"}
_SETTINGS: Final = {
    "temperature": "gen_ai.request.temperature",
    "top_p": "gen_ai.request.top_p",
    "top_k": "gen_ai.request.top_k",
    "max_tokens": "gen_ai.request.max_tokens",
    "frequency_penalty": "gen_ai.request.frequency_penalty",
    "presence_penalty": "gen_ai.request.presence_penalty",
    "stop": "gen_ai.request.stop_sequences",
}


@dataclass(frozen=True, slots=True)
class Span:
    """A span of OpenTelemetry. Without one (no tracer provider, or not sampled) the methods do nothing."""

    otel: Any = None

    def add_trace(self, trace: Trace | None) -> None:
        """Set the outcome of a record; None for one that a stopped run left unfinished."""
        if self.otel is None:
            return
        self.otel.set_attribute("agentsys.record.outcome", trace.outcome if trace else "unfinished")
        if trace and trace.reason:
            self.otel.set_attribute("agentsys.record.reason", mask_key(trace.reason))
        if trace and trace.outcome == "failed":
            _set_error(self.otel, (trace.reason or "").partition(":")[0], trace.reason or "")

    def add_refusal(self, call: Call) -> None:
        """Note on a role's span that a reply could not be used, and why."""
        if self.otel is not None:
            attributes = {"agentsys.call.key": call.key, "agentsys.reason": mask_key(call.error or "")}
            self.otel.add_event("agentsys.unusable_reply", attributes)

    def add_call(self, call: Call) -> None:
        """Set the request and the reply of a finished call.

        The tokens of a reply from the request cache are not counted again.
        """
        if self.otel is None:
            return
        is_cached = bool(call.measured.get("cache_hit"))
        attributes: dict[str, Any] = {
            "gen_ai.response.finish_reasons": (call.finish,),
            "gen_ai.output.type": "json" if call.schema_sha256 else "text",
            "agentsys.cache_hit": is_cached,
        }
        settings = {_SETTINGS[name]: value for name, value in call.sampling.items() if name in _SETTINGS}
        attributes |= {name: value for name, value in settings.items() if value is not None}
        if call.seed is not None:
            attributes["gen_ai.request.seed"] = call.seed
        if not is_cached:
            attributes |= _usage(call) | _server(call.measured.get("address", ""))
        if captures_messages():
            attributes["gen_ai.input.messages"] = _dump([_input_message(message) for message in call.messages])
            attributes["gen_ai.output.messages"] = _dump([_output_message(call)])
        self.otel.set_attributes(attributes)


_NO_SPAN: Final = Span()


def record_span(record: str, system: str, run: str) -> AbstractContextManager[Span]:
    """The span of a record, with its id, the name of its graph and the id of the run."""
    attributes = {"agentsys.record.id": record, "agentsys.system": system, "agentsys.run": run}
    return _span("agentsys.record", "INTERNAL", attributes)


def role_span(role: str, key: str) -> AbstractContextManager[Span]:
    """The span of one ask of a role; `key` is that of its first call."""
    attributes = {"gen_ai.operation.name": "invoke_agent", "gen_ai.agent.name": role, "agentsys.call.key": key}
    return _span(f"invoke_agent {role}", "INTERNAL", attributes)


def call_span(model: str, provider: str, key: str) -> AbstractContextManager[Span]:
    """The span of one call, retries included; `provider` names the server's dialect or the LangChain integration."""
    attributes = {
        "gen_ai.operation.name": "chat",
        "gen_ai.provider.name": provider,
        "gen_ai.request.model": model,
        "agentsys.call.key": key,
    }
    return _span(f"chat {model}", "CLIENT", attributes)


@contextmanager
def _span(name: str, kind: str, attributes: Mapping[str, Any]) -> Iterator[Span]:
    tracer = _tracer()
    if tracer is None:
        yield _NO_SPAN
        return
    kinds = sys.modules["opentelemetry.trace"].SpanKind
    with tracer.start_as_current_span(
        name, kind=kinds[kind], attributes=attributes, record_exception=False, set_status_on_exception=False
    ) as span:
        try:
            yield Span(span if span.is_recording() else None)
        except BaseException as err:
            _set_error(span, type(err).__qualname__, str(err))
            raise


def _set_error(span: Any, kind: str, message: str) -> None:
    status = sys.modules["opentelemetry.trace"].StatusCode.ERROR
    span.set_attribute("error.type", kind)
    span.set_status(status, mask_key(message))


def _tracer() -> Any:
    """The tracer of the process's provider, or None. A process that has one has imported opentelemetry."""
    trace: Any = sys.modules.get("opentelemetry.trace")
    provider = trace.get_tracer_provider() if hasattr(trace, "get_tracer_provider") else None
    if provider is None or isinstance(provider, (trace.ProxyTracerProvider, trace.NoOpTracerProvider)):
        return None
    return _tracer_of(provider)


@lru_cache(maxsize=1)
def _tracer_of(provider: Any) -> Any:
    try:
        return provider.get_tracer("agentsys", version())
    except PackageNotFoundError:  # copied, not installed
        return provider.get_tracer("agentsys")


def captures_messages() -> bool:
    """Whether the user wants prompts and replies in spans."""
    return os.environ.get(CAPTURE, "").strip().lower() in ("true", "span_only", "span_and_event")


def _usage(call: Call) -> dict[str, int]:
    usage = {"gen_ai.usage.input_tokens": call.prompt_tokens, "gen_ai.usage.output_tokens": call.completion_tokens}
    if (cached := call.measured.get("cached_tokens")) is not None:
        usage["gen_ai.usage.cache_read.input_tokens"] = cached
    return usage


def _server(address: str) -> dict[str, Any]:
    parts = urlsplit(address)
    if not parts.hostname:
        return {}
    port = parts.port or (443 if parts.scheme == "https" else 80)
    return {"server.address": parts.hostname, "server.port": port}


def _input_message(message: Mapping[str, Any]) -> dict[str, Any]:
    """A message of a prompt; of parts that are no text, such as pictures, only the type."""
    content = message["content"]
    parts = [_text_part(content)] if isinstance(content, str) else [_part(part) for part in content]
    return {"role": message["role"], "parts": parts}


def _part(part: Mapping[str, Any]) -> dict[str, Any]:
    return _text_part(part["text"]) if part.get("type") == "text" else {"type": part.get("type", "")}


def _output_message(call: Call) -> dict[str, Any]:
    thought = [{"type": "reasoning", "content": call.reasoning}] if call.reasoning else []
    return {"role": "assistant", "parts": [*thought, _text_part(call.text)], "finish_reason": call.finish}


def _text_part(text: str) -> dict[str, Any]:
    return {"type": "text", "content": text}


def _dump(messages: Sequence[Any]) -> str:
    return mask_key(orjson.dumps(messages).decode())


def export_spans() -> None:
    """Set a tracer provider that exports to OTEL_EXPORTER_OTLP_ENDPOINT, if that is set and the process has none.

    For commands; a program sets its own provider. The exporter and the SDK read their further variables themselves.
    """
    endpoint = next(filter(os.environ.get, ENDPOINTS), None)
    is_disabled = os.environ.get("OTEL_SDK_DISABLED", "").strip().lower() == "true"
    if endpoint is None or is_disabled or os.environ.get("OTEL_TRACES_EXPORTER") == "none" or _tracer() is not None:
        return
    protocol = next(filter(None, map(os.environ.get, PROTOCOLS)), "http/protobuf")
    exporters = entry_points(group="opentelemetry_traces_exporter", name=_EXPORTERS.get(protocol, protocol))
    try:
        from opentelemetry import trace
        from opentelemetry.sdk.resources import OTELResourceDetector, Resource
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor

        exporter = next(iter(exporters)).load()
    except (ImportError, StopIteration):
        fix = "pip install opentelemetry-exporter-otlp-proto-grpc" if protocol == "grpc" else install_command("otel")
        say(f"{endpoint} is set, but no exporter for {protocol} is installed, so no spans are sent: {fix}")
        return
    resource = Resource.create({"service.name": "agentsys", **OTELResourceDetector().detect().attributes})
    provider = TracerProvider(resource=resource)
    provider.add_span_processor(BatchSpanProcessor(exporter()))
    trace.set_tracer_provider(provider)
