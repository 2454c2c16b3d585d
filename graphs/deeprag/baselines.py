"""DeepRAG's baselines: one answer without decomposition.

Three strategies: direct, after thinking (CoT), and after thinking with the passages retrieved for the whole question
(CoT-Retrieve, table 1). The prompts are ours, because the paper does not print those of its baselines.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal, NotRequired

from langgraph.graph import StateGraph
from langgraph.runtime import Runtime
from typing_extensions import TypedDict

from agentsys.graphs.deeprag.narrative import FinalAnswer, parse_final_answer
from agentsys.knowledge.context import Knowledge, PassageDict
from agentsys.roles import Role
from agentsys.systems import System, ask, knob, role_options, sequence_graph

Strategy = Literal["direct", "cot", "cot_retrieve"]


class Input(TypedDict):
    """Graph input: a question."""

    question: str


class Output(TypedDict):
    """Graph output: the answer, and the number of retrievals (0 or 1)."""

    question: str
    answer: NotRequired[str]
    long_answer: NotRequired[str]
    well_formed: NotRequired[bool]
    retrievals: NotRequired[int]


class State(Output):
    """The question, its passages and its answer."""

    passages: NotRequired[list[PassageDict]]


def parse_answer(reply: str) -> FinalAnswer:
    """Parse the answer at the end of a reply, after the thoughts. Without tags the last line is both answers."""
    end = reply.rfind("<answer long>")
    if end < 0:
        end = reply.rfind("<answer short>")
    return parse_final_answer(reply[end:] if end >= 0 else reply.strip().rpartition("\n")[2])


@dataclass(frozen=True)
class Baselines(System):
    """The roles and nodes of the baselines. Truncated replies are accepted."""

    direct: Role[str] = Role("deeprag/direct", allow_truncated=True, sampling={"temperature": 0.0, "max_tokens": 150})
    cot: Role[str] = Role("deeprag/cot", allow_truncated=True, sampling={"temperature": 0.0, "max_tokens": 500})

    async def retrieve(self, state: State, runtime: Runtime[BaselineContext]) -> dict[str, Any]:
        """Retrieve passages for the question if the strategy is cot_retrieve."""
        context = runtime.context
        passages = await context.search(state["question"]) if context.strategy == "cot_retrieve" else []
        return {"passages": passages}

    async def answer(self, state: State, runtime: Runtime[BaselineContext]) -> dict[str, Any]:
        """Ask the role of the strategy once. Raises RoleError."""
        context = runtime.context
        role = self.direct if context.strategy == "direct" else self.cot
        reply = await ask(context, role, key="answer", question=state["question"], passages=state["passages"])
        answer = parse_answer(reply.value)
        return {
            "answer": answer.short,
            "long_answer": answer.long,
            "well_formed": answer.well_formed,
            "retrievals": int(context.strategy == "cot_retrieve"),
        }

    def builder(self) -> StateGraph[State, BaselineContext, Input, Output]:
        """Return the graph retrieve -> answer."""
        return sequence_graph(
            self.retrieve, self.answer, state=State, context=BaselineContext, input=Input, output=Output
        )


@dataclass(frozen=True)
@role_options(Baselines, shared_models={"direct": "", "cot": ""})
class BaselineContext(Knowledge):
    """Options of a run: the strategy, its model, prompts and retriever."""

    strategy: Strategy = knob("cot", "direct answer, chain of thought, or chain of thought with retrieved passages")


builder = Baselines().builder()
graph = builder.compile(name="deeprag_baselines")
