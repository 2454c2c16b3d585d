"""LongBench-Write: write one whole response to a request, and have a judge model grade its quality.

LongDPO (Ping et al. 2025) is evaluated on LongBench-Write (Bai et al. 2024, "LongWriter"). S_q, the quality, has six
dimensions, graded from 1 to 5 without regard to the length; S_q is the mean over responses and dimensions of
(grade - 1) * 25. S_l, the length score, needs no model: agentsys/metrics/lengths.py.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from statistics import fmean
from typing import Annotated, Any, Final, NotRequired

from langgraph.graph import StateGraph
from langgraph.runtime import Runtime
from pydantic import BaseModel, Field
from typing_extensions import TypedDict

from agentsys.models.errors import EndpointDown, ModelError
from agentsys.roles import Role, RoleError
from agentsys.systems import BaseContext, System, ask, knob, role_options, sequence_graph

DIMENSIONS: Final = ("relevance", "accuracy", "coherence", "clarity", "breadth_and_depth", "reading_experience")
DECODING: Final = {"temperature": 1.0, "repetition_penalty": 1.1}
"""The released evaluation's sampling; 1.0 is its script's default, the paper reports no temperature."""
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
    """A grade of 1-5, or a mean of grades, on the scale from 0 to 100."""
    return (grade - 1) * 25


def quality_score(grades: Mapping[str, int]) -> float:
    """S_q of one response, 0-100. No judgment is partial, so the mean of these is the mean of the six dimensions."""
    return percent(fmean(grades[name] for name in DIMENSIONS))


class Input(TypedDict):
    """A request. An existing response is judged, not written again."""

    prompt: str
    existing_response: NotRequired[str]


class Result(TypedDict):
    """The response, whether the token limit truncated it (None: unknown), its grades, and why there are none."""

    response: NotRequired[str]
    truncated: NotRequired[bool | None]
    grades: NotRequired[dict[str, int] | None]
    unjudged: NotRequired[str | None]


class State(Input, Result):
    """The request and its result."""


class Output(Result):
    """Graph output."""

    prompt: str


@dataclass(frozen=True)
class LongBenchWrite(System):
    """The roles and nodes. A truncated response is judged as it is."""

    writer: Role[str] = Role("longbench_write/writer", allow_truncated=True, sampling=DECODING)
    quality: Role[Quality] = Role("longbench_write/quality", Quality, sampling=JUDGING, attempts=5)

    async def write(self, state: State, runtime: Runtime[LongBenchWriteContext]) -> dict[str, Any]:
        """One response, unless there is an existing one. Raises ModelError.

        There is one attempt, and an empty reply is an empty response: a reply to a reminder would answer a different
        request.
        """
        context = runtime.context
        if response := state.get("existing_response"):
            return {"response": response, "truncated": None}
        sampling = {**self.writer.sampling, "max_tokens": context.max_tokens}
        writer = replace(self.writer, sampling=sampling, attempts=1)
        try:
            answer = await ask(context, writer, key="write", prompt=state["prompt"])
        except RoleError:  # the reply was empty; perhaps its reasoning used all tokens
            return {"response": "", "truncated": None}
        return {"response": answer.value, "truncated": answer.call.finish == "length"}

    async def judge(self, state: State, runtime: Runtime[LongBenchWriteContext]) -> dict[str, Any]:
        """The six grades, or the reason why there is no usable judgment: no grade is invented."""
        response = state.get("response", "")
        if not runtime.context.judge:
            return {"grades": None, "unjudged": None}
        if not response.strip():
            return {"grades": None, "unjudged": EMPTY}
        try:
            inputs = {"prompt": state["prompt"], "response": response}
            answer = await ask(runtime.context, self.quality, key="quality", **inputs)
        except EndpointDown:
            raise
        except ModelError as err:
            return {"grades": None, "unjudged": str(err)}
        return {"grades": answer.value.grades(), "unjudged": None}

    def builder(self) -> StateGraph[State, LongBenchWriteContext, Input, Output]:
        """write -> judge."""
        return sequence_graph(
            self.write, self.judge, state=State, context=LongBenchWriteContext, input=Input, output=Output
        )


@dataclass(frozen=True)
@role_options(LongBenchWrite)
class LongBenchWriteContext(BaseContext):
    """Models, prompts and options of a run."""

    model: str = knob("embedded", "model spec of the writer, and of the judge if it has none of its own", required=True)
    judge: bool = knob(True, "whether to judge the response")
    max_tokens: int = knob(32768, "token limit of a response", highest_in_studio=131_072)

    def __post_init__(self) -> None:
        """Raises ValueError for an option of the wrong type or out of range."""
        super().__post_init__()
        self.at_least(max_tokens=1)


builder = LongBenchWrite().builder()
graph = builder.compile(name="longbench_write")
