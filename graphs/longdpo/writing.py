"""Write and judge: one whole response to a request, and how good a judge model finds it.

This is how LongDPO is evaluated (Ping et al. 2025) on LongBench-Write (Bai et al. 2024, "LongWriter"). S_q: six
dimensions from 1 to 5, judged without regard to the length; of each the mean, as (mean - 1) * 25, and of the six the
mean. S_l, how well the length is kept, needs no model: agentsys/metrics/lengths.py.

The second half reads requests, and responses that were written elsewhere. graphs/longdpo_evaluate.py is the command.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import fmean
from typing import Annotated, Any, Final, NotRequired

from langgraph.graph import END, START, StateGraph
from langgraph.runtime import Runtime
from pydantic import BaseModel, Field
from typing_extensions import TypedDict

from agentsys.collect import RunOptions
from agentsys.evaluation.sample import read_rows, traces_over
from agentsys.metrics.lengths import required_words
from agentsys.models.errors import EndpointDown, ModelError
from agentsys.records import BadRecord, InputError, Record, read_records
from agentsys.roles import Role, RoleError
from agentsys.systems import BaseContext, System, ask, knob, role_options
from agentsys.traces import Trace

DIMENSIONS: Final = ("relevance", "accuracy", "coherence", "clarity", "breadth_and_depth", "reading_experience")
DECODING: Final = {"temperature": 1.0, "repetition_penalty": 1.1}
"""The released evaluation's sampling; 1.0 is its script's default, the paper names no temperature."""
JUDGING: Final = {"temperature": 0.5, "max_tokens": 1024}
"""LongBench-Write's."""
EMPTY: Final = "the response is empty"
Grade = Annotated[int, Field(ge=1, le=5)]


class Quality(BaseModel):
    """The judge's reply: six grades from 1 to 5."""

    analysis: str
    relevance: Grade
    accuracy: Grade
    coherence: Grade
    clarity: Grade
    breadth_and_depth: Grade
    reading_experience: Grade

    def grades(self) -> dict[str, int]:
        """The grade of each dimension, 1-5."""
        return {name: getattr(self, name) for name in DIMENSIONS}


def percent(grade: float) -> float:
    """A grade of 1-5, or a mean of grades, from 0 to 100."""
    return (grade - 1) * 25


def quality_score(grades: Mapping[str, int]) -> float:
    """S_q of one response, 0-100. No judgement is partial, so the mean of these is the mean of the six dimensions."""
    return percent(fmean(grades[name] for name in DIMENSIONS))


class Input(TypedDict):
    """A request. A `given` response is only judged."""

    prompt: str
    given: NotRequired[str]


class Found(TypedDict):
    """The response, whether the token limit cut it off (None: not known), its grades, and why there are none."""

    response: NotRequired[str]
    cut: NotRequired[bool | None]
    grades: NotRequired[dict[str, int] | None]
    unjudged: NotRequired[str | None]


class State(Input, Found):
    """The request and what came of it."""


class Output(Found):
    """What came of the request."""

    prompt: str


@dataclass(frozen=True)
class Writing(System):
    """The roles and nodes. A response may be cut off by the token limit: what is there is what counts."""

    writer: Role[str] = Role("writing/writer", allow_truncated=True, sampling=DECODING)
    quality: Role[Quality] = Role("writing/quality", Quality, sampling=JUDGING, attempts=5)

    async def write(self, state: State, runtime: Runtime[WritingContext]) -> dict[str, Any]:
        """One response, unless it is given. Raises ModelError.

        An empty reply is an empty response: one that came after a reminder would answer another request, so that it is
        asked once.
        """
        context = runtime.context
        if given := state.get("given"):
            return {"response": given, "cut": None}
        sampling = {**self.writer.sampling, "max_tokens": context.max_tokens}
        try:
            answer = await ask(
                context, replace(self.writer, sampling=sampling, attempts=1), key="write", prompt=state["prompt"]
            )
        except RoleError:  # for text there is one fault: it was empty, be it that all tokens went into its reasoning
            return {"response": "", "cut": None}
        return {"response": answer.value, "cut": answer.call.finish == "length"}

    async def judge(self, state: State, runtime: Runtime[WritingContext]) -> dict[str, Any]:
        """The six grades. A judgement that cannot be used stays missing, with the reason: no grade is made up."""
        response = state.get("response", "")
        if not runtime.context.judge:
            return {"grades": None, "unjudged": None}
        if not response.strip():
            return {"grades": None, "unjudged": EMPTY}
        try:
            asked = {"prompt": state["prompt"], "response": response}
            answer = await ask(runtime.context, self.quality, key="quality", **asked)
        except EndpointDown:
            raise
        except ModelError as err:
            return {"grades": None, "unjudged": str(err)}
        return {"grades": answer.value.grades(), "unjudged": None}

    def builder(self) -> StateGraph[State, WritingContext, Input, Output]:
        """write -> judge."""
        builder = StateGraph(State, context_schema=WritingContext, input_schema=Input, output_schema=Output)
        builder.add_node("write", self.write)
        builder.add_node("judge", self.judge)
        builder.add_edge(START, "write")
        builder.add_edge("write", "judge")
        builder.add_edge("judge", END)
        return builder


@dataclass(frozen=True)
@role_options(Writing)
class WritingContext(BaseContext):
    """Models, prompts and knobs of a run."""

    model: str = knob("embedded", "model spec of the writer, and of the judge if it has none of its own")
    judge: bool = knob(True, "whether to ask the judge")
    max_tokens: int = knob(32768, "tokens of a response at most")

    def __post_init__(self) -> None:
        """Raises ValueError for a knob of the wrong type or out of range."""
        super().__post_init__()
        self.at_least(max_tokens=1)


builder = Writing().builder()
graph = builder.compile(name="writing")


@dataclass(frozen=True, slots=True)
class Request:
    """A request, the words that the response should have (0: it does not say), and its place in the file."""

    id: str
    prompt: str
    length: int
    at: str


@dataclass(frozen=True, slots=True)
class Response:
    """What a system wrote to a request, and its grades; `error` says why there is no text, `unjudged` why no grades."""

    text: str | None = None
    cut: bool | None = None
    grades: Mapping[str, int] | None = None
    unjudged: str | None = None
    error: str | None = None


def read_requests(path: Path, options: RunOptions) -> Iterator[Request | BadRecord]:
    """All requests in the file's order: `prompt`, and perhaps `length` in words. Raises InputError."""

    def request(record: Record) -> Request:
        length = required_words(record.data.get("length"))
        return Request(record.id, record.data["prompt"], length, record.source)

    return read_rows(path, options, request, "request", required=["prompt"])


def read_responses(path: Path, sample: Sequence[Request]) -> list[Response]:
    """The response to each request, found by the prompt's words, from a collect run's folder or a file of records.

    A run's traces have `response` in their result, a file's records `prompt` and `response`. Raises InputError.
    """
    found: dict[str, Response] = {}
    wanted = {row.prompt.strip() for row in sample}
    for prompt, response in _from_run(path) if path.is_dir() else _from_file(path):
        if prompt not in wanted:
            continue
        if found.setdefault(prompt, response) != response:
            raise InputError(f"--responses {path}: two responses to one request ({prompt[:60]}); leave one")
    if not found:
        raise InputError(f"--responses {path}: no response to any of the requests; they are found by their prompt")
    missing = Response(error=f"no response in {path}")
    return [found.get(row.prompt.strip(), missing) for row in sample]


def _from_run(folder: Path) -> Iterator[tuple[str, Response]]:
    """Kept and dropped records. LongDPO's own responses are cut unless the model ended them."""
    for trace in traces_over(folder, "prompt", "request", "--responses"):
        result = trace.result or {}
        if not isinstance(text := result.get("response"), str):
            raise InputError(f"--responses {folder}: its results have no response; name a run of LongDPO or of writing")
        stop = result.get("stop")
        cut = result.get("cut") if stop is None else stop != "end"
        blank = stop is not None and not text.strip()
        failed = Response(error=f"nothing was written: {stop}")
        yield trace.input["prompt"].strip(), failed if blank else Response(text, cut)


def _from_file(path: Path) -> Iterator[tuple[str, Response]]:
    for record in read_records(path, required=["prompt"]):
        if isinstance(record, BadRecord):
            raise InputError(f"--responses {record.source}: {record.reason}")
        if not isinstance(text := record.data.get("response", False), str | None):
            raise InputError(f"--responses {record.source}: no field 'response' with text; name a file of responses")
        yield record.data["prompt"].strip(), Response(error=f"null in {path}") if text is None else Response(text)


def response_of(trace: Trace) -> Response:
    """What a trace of this graph says."""
    if trace.result is None:
        return Response(error=trace.reason)
    found = trace.result
    return Response(found["response"], found["cut"], found["grades"], found["unjudged"])
