"""A question answered in one go, without decomposition: what DeepRAG is compared with.

The answer at once, after thinking (CoT), and after thinking with the passages that the whole question finds
(CoT-Retrieve in table 1 of Guan et al. 2025). The prompts are ours: the paper does not print those of its baselines.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal, NotRequired

from langgraph.graph import END, START, StateGraph
from langgraph.runtime import Runtime
from typing_extensions import TypedDict

from agentsys.graphs.deeprag.narrative import Conclusion, parse_final
from agentsys.knowledge.context import Knowledge, Passage
from agentsys.roles import Role
from agentsys.systems import System, ask, knob, role_options

Strategy = Literal["direct", "cot", "cot_retrieve"]


class Input(TypedDict):
    """What a person types."""

    question: str


class Output(TypedDict):
    """The answer, and the number of searches: 0 or 1."""

    question: str
    answer: NotRequired[str]
    long_answer: NotRequired[str]
    well_formed: NotRequired[bool]
    retrievals: NotRequired[int]


class State(Output):
    """The question, its passages and its answer."""

    passages: NotRequired[list[Passage]]


def parse_answer(reply: str) -> Conclusion:
    """The answer at the end of a reply, after the thoughts. Without tags its last line is both answers."""
    end = reply.rfind("<answer long>")
    if end < 0:
        end = reply.rfind("<answer short>")
    return parse_final(reply[end:] if end >= 0 else reply.strip().rpartition("\n")[2])


@dataclass(frozen=True)
class Question(System):
    """The roles and nodes. A reply may be cut off by the token limit: what is there is what counts."""

    direct: Role[str] = Role("question/direct", allow_truncated=True, sampling={"temperature": 0.0, "max_tokens": 150})
    cot: Role[str] = Role("question/cot", allow_truncated=True, sampling={"temperature": 0.0, "max_tokens": 500})

    async def retrieve(self, state: State, runtime: Runtime[BaselineContext]) -> dict[str, Any]:
        """The passages that the question finds; none unless the strategy looks them up."""
        context = runtime.context
        found = await context.search(state["question"]) if context.strategy == "cot_retrieve" else []
        return {"passages": found}

    async def answer(self, state: State, runtime: Runtime[BaselineContext]) -> dict[str, Any]:
        """One call of one role. Raises RoleError."""
        context = runtime.context
        role = self.direct if context.strategy == "direct" else self.cot
        reply = await ask(context, role, key="answer", question=state["question"], passages=state["passages"])
        end = parse_answer(reply.value)
        return {
            "answer": end.short,
            "long_answer": end.long,
            "well_formed": end.well_formed,
            "retrievals": int(context.strategy == "cot_retrieve"),
        }

    def builder(self) -> StateGraph[State, BaselineContext, Input, Output]:
        """retrieve -> answer."""
        builder = StateGraph(State, context_schema=BaselineContext, input_schema=Input, output_schema=Output)
        builder.add_node("retrieve", self.retrieve)
        builder.add_node("answer", self.answer)
        builder.add_edge(START, "retrieve")
        builder.add_edge("retrieve", "answer")
        builder.add_edge("answer", END)
        return builder


@dataclass(frozen=True)
@role_options(Question, shared_models={"direct": "", "cot": ""})
class BaselineContext(Knowledge):
    """The strategy, its model and its prompt."""

    strategy: Strategy = knob("cot", "answer at once, think first, or look the question up and think")


builder = Question().builder()
graph = builder.compile(name="question")
