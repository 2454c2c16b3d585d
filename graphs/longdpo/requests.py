"""The requests of LongDPO's evaluation, and the responses to them: from traces, collect runs or files."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from agentsys.evaluation.sample import SampleOptions, read_rows, read_run
from agentsys.graphs.longdpo.entries import Entries, read_entries
from agentsys.metrics.lengths import required_words
from agentsys.records import BadRecord, InputError, Record, read_records
from agentsys.traces import Trace


@dataclass(frozen=True, slots=True)
class Request:
    """A request, the required length of the response in words (0: none), and its location ("requests.jsonl:12").

    `entries`: what the response must consist of, if the request says it.
    """

    id: str
    prompt: str
    length: int
    source: str
    entries: Entries | None = None


@dataclass(frozen=True, slots=True)
class Response:
    """A system's response and its grades; `error` says why there is no text, `unjudged` why there are no grades."""

    text: str | None = None
    truncated: bool | None = None
    grades: Mapping[str, int] | None = None
    unjudged: str | None = None
    error: str | None = None


def read_requests(path: Path, options: SampleOptions) -> Iterator[Request | BadRecord]:
    """All requests in the file's order: `prompt`, and optionally `length` in words and `entries`. Raises InputError."""

    def read_request(record: Record) -> Request:
        length = required_words(record.data.get("length"))
        return Request(record.id, record.data["prompt"], length, record.source, read_entries(record.data))

    return read_rows(path, options, read_request, "request", required=["prompt"])


def read_responses(path: Path, sample: Sequence[Request]) -> list[Response]:
    """The response to each request, matched by prompt, from a collect run's folder or a file of records.

    A run's traces have `response` in their result, a file's records `prompt` and `response`. Raises InputError.
    """
    responses: dict[str, Response] = {}
    prompts = {row.prompt.strip() for row in sample}
    for prompt, response in _responses_in_run(path) if path.is_dir() else _responses_in_file(path):
        if prompt not in prompts:
            continue
        if responses.setdefault(prompt, response) != response:
            raise InputError(f"--responses {path}: two responses to one request ({prompt[:60]}); remove one")
    if not responses:
        raise InputError(f"--responses {path}: no response to any of the requests; responses are matched by prompt")
    missing = Response(error=f"no response in {path}")
    return [responses.get(row.prompt.strip(), missing) for row in sample]


def _responses_in_run(folder: Path) -> Iterator[tuple[str, Response]]:
    """Of kept and dropped records. LongDPO's own responses are truncated unless the model ended them."""
    for trace in read_run(folder, "--responses"):
        if not isinstance(prompt := trace.input.get("prompt"), str):
            raise InputError(f"--responses {folder}: its records have no prompt; name a run over requests")
        result = trace.result or {}
        if not isinstance(text := result.get("response"), str):
            raise InputError(
                f"--responses {folder}: its results have no response; name a run of longdpo_search or longbench_write"
            )
        stop = result.get("stop")
        truncated = result.get("truncated", result.get("cut")) if stop is None else stop != "end"
        if stop is not None and not text.strip():
            yield prompt.strip(), Response(error=f"nothing was written: {stop}")
        else:
            yield prompt.strip(), Response(text, truncated)


def _responses_in_file(path: Path) -> Iterator[tuple[str, Response]]:
    for record in read_records(path, required=["prompt"]):
        if isinstance(record, BadRecord):
            raise InputError(f"--responses {record.source}: {record.reason}")
        if not isinstance(text := record.data.get("response", False), str | None):
            raise InputError(f"--responses {record.source}: no field 'response' with text; name a file of responses")
        yield record.data["prompt"].strip(), Response(error=f"null in {path}") if text is None else Response(text)


def response_of(trace: Trace) -> Response:
    """The response in a trace of longbench_write."""
    if trace.result is None:
        return Response(error=trace.reason)
    result = trace.result
    return Response(result["response"], result["truncated"], result["grades"], result["unjudged"])
