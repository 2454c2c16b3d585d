"""DeepRAG's inference: a question answered step by step, each step from memory or from passages, as the model decides.

A Markov decision process (section 3.1): the state s_t = [x, (q_1, r_1), ..., (q_t, r_t)], the action a_(t+1) = (sigma,
delta) with the decision sigma to continue or terminate and the atomic decision delta to retrieve or not. All roles here
write one text together, the retrieval narrative of narrative.py. docs/deeprag.md lists the departures from the paper.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NotRequired

from langgraph.graph import END, START, StateGraph
from langgraph.runtime import Runtime
from typing_extensions import TypedDict

from agentsys.graphs.deeprag.narrative import (
    ANSWER,
    FINAL,
    FOLLOW_UP,
    SEARCH,
    AtomicDecision,
    FinalAnswer,
    NarrativeStep,
    count_retrievals,
    format_follow_up,
    format_narrative,
    parse_final_answer,
)
from agentsys.knowledge.context import Knowledge, PassageDict
from agentsys.logprobs import opening_logprobs
from agentsys.prompt import one_line
from agentsys.roles import Answer, Role, RoleError
from agentsys.systems import System, ask, knob, role_options


class Input(TypedDict):
    """Graph input: the question x."""

    question: str


class State(Input):
    """s_t, and the current step."""

    steps: NotRequired[list[NarrativeStep]]
    sub_query: NotRequired[str]
    decision: NotRequired[AtomicDecision | None]
    retrieve: NotRequired[bool | None]
    passages: NotRequired[list[PassageDict]]
    stop: NotRequired[str]
    answer: NotRequired[str]
    long_answer: NotRequired[str]
    well_formed: NotRequired[bool]
    retrievals: NotRequired[int]


class Output(TypedDict):
    """Graph output: the final answer o and its steps; `stop` is the reason why the narrative ended."""

    question: str
    answer: NotRequired[str]
    long_answer: NotRequired[str]
    well_formed: NotRequired[bool]
    retrievals: NotRequired[int]
    steps: NotRequired[list[NarrativeStep]]
    stop: NotRequired[str]


def check_next_line(line: str, inputs: Mapping[str, Any]) -> str | None:
    """Return why the decomposer's line is refused, or None: it must be a new sub-query or the end."""
    if line.startswith(FINAL):
        return None
    if not line.startswith(FOLLOW_UP):
        return f'begin the next line with "{FOLLOW_UP}" or "{FINAL}"'
    query = one_line(line.removeprefix(FOLLOW_UP))
    if not query:
        return "ask something"
    if query.casefold() in {step["sub_query"].casefold() for step in inputs["steps"]}:
        return f'this was asked before; ask something else, or end with "{FINAL}"'
    return None


@dataclass(frozen=True)
class DeepRAG(System):
    """The roles and nodes of DeepRAG's inference (section 3.2). `DeepRAG(answerer=Role(...))` replaces a role."""

    decomposer: Role[str] = Role(  # stops in the last line at its tags: the concluder writes the final answer
        "deeprag/narrative",
        check=check_next_line,
        sampling={"temperature": 0.0, "max_tokens": 120, "stop": ["\n", "<answer"]},
    )
    decider: Role[str] = Role(
        "deeprag/narrative",
        allow_truncated=True,
        sampling={"temperature": 0.0, "max_tokens": 12, "stop": ["\n"], "logprobs": 20},
    )
    answerer: Role[str] = Role("deeprag/narrative", sampling={"temperature": 0.0, "max_tokens": 120, "stop": ["\n"]})
    concluder: Role[str] = Role("deeprag/narrative", sampling={"temperature": 0.0, "max_tokens": 250, "stop": ["\n"]})

    async def write_query(self, question: str, steps: Sequence[NarrativeStep], context: Any, key: str) -> str | None:
        """sigma, and q_(t+1) if it is `continue`; None terminates. Raises RoleError."""
        line = await self._continue_narrative(self.decomposer, question, steps, "", context, key)
        return None if line.value.startswith(FINAL) else one_line(line.value.removeprefix(FOLLOW_UP))

    async def decide_retrieval(
        self, question: str, steps: Sequence[NarrativeStep], query: str, context: Any, key: str
    ) -> AtomicDecision:
        """delta for q_(t+1), with the log-probabilities of both openings. Raises RoleError.

        Only the whole sentence is a retrieval; a reply with neither opening counts as parametric.
        """
        reply = await self._continue_narrative(self.decider, question, steps, format_follow_up(query), context, key)
        logprobs = await opening_logprobs(context, self.decider, reply.call, (SEARCH, ANSWER))
        retrieve = reply.value.startswith(SEARCH)
        return {
            "retrieve": retrieve,
            "log_p_retrieve": logprobs[0],
            "log_p_parametric": logprobs[1],
            "stated": retrieve or reply.value.startswith(ANSWER),
        }

    async def answer_query(
        self,
        question: str,
        steps: Sequence[NarrativeStep],
        query: str,
        passages: list[PassageDict] | None,
        context: Any,
        key: str,
    ) -> NarrativeStep:
        """(q_(t+1), r_(t+1)): from the passages, or from memory (None). Raises RoleError."""
        step: NarrativeStep = {
            "sub_query": query,
            "retrieved": passages is not None,
            "passages": passages or [],
            "answer": "",
        }
        text = format_narrative([step])
        opening = text[: text.rindex(ANSWER) + len(ANSWER)]
        reply = await self._continue_narrative(self.answerer, question, steps, opening, context, key)
        return {**step, "answer": reply.value}

    async def write_final_answer(
        self, question: str, steps: Sequence[NarrativeStep], context: Any, key: str
    ) -> FinalAnswer:
        """The final answer o. Raises RoleError."""
        reply = await self._continue_narrative(self.concluder, question, steps, FINAL, context, key)
        return parse_final_answer(reply.value)

    async def _continue_narrative(
        self, role: Role[str], question: str, steps: Sequence[NarrativeStep], opening: str, context: Any, key: str
    ) -> Answer[str]:
        """Ask a role to continue the narrative of s_t, followed by the opening of the next piece."""
        text = format_narrative(steps, opening)
        return await ask(
            context, role, key=key, question=question, steps=steps, narrative=text, example=context.example
        )

    async def begin(self, state: State) -> dict[str, Any]:
        """s_0 = [x]; clears the steps of an earlier question on the same thread."""
        return {"steps": [], "stop": ""}

    async def decompose(self, state: State, runtime: Runtime[Context]) -> dict[str, Any]:
        """Make the decision sigma and write q_(t+1); after T sub-queries the end is forced."""
        steps = state["steps"]
        if len(steps) >= runtime.context.max_steps:
            return {"stop": "max_steps"}
        try:
            query = await self.write_query(state["question"], steps, runtime.context, f"{len(steps)}/decompose")
        except RoleError as err:
            return _end_narrative(err)
        if query is None:
            return {"stop": "terminate"}
        forced = {"model": None, "retrieve": True, "parametric": False}[runtime.context.decisions]
        return {"sub_query": query, "decision": None, "retrieve": forced, "passages": []}

    async def decide(self, state: State, runtime: Runtime[Context]) -> dict[str, Any]:
        """Make the atomic decision delta."""
        steps = state["steps"]
        key = f"{len(steps)}/decide"
        try:
            decision = await self.decide_retrieval(state["question"], steps, state["sub_query"], runtime.context, key)
        except RoleError as err:
            return _end_narrative(err)
        return {"decision": decision, "retrieve": decision["retrieve"]}

    async def retrieve(self, state: State, runtime: Runtime[Context]) -> dict[str, Any]:
        """Retrieve d_(t+1)."""
        return {"passages": await runtime.context.search(state["sub_query"])}

    async def answer(self, state: State, runtime: Runtime[Context]) -> dict[str, Any]:
        """Answer q_(t+1) with ia_(t+1), which completes s_(t+1)."""
        steps = state["steps"]
        passages = state["passages"] if state["retrieve"] else None
        key = f"{len(steps)}/answer"
        try:
            step = await self.answer_query(state["question"], steps, state["sub_query"], passages, runtime.context, key)
        except RoleError as err:
            return _end_narrative(err)
        return {"steps": [*steps, {**step, "decision": state["decision"]}]}

    async def conclude(self, state: State, runtime: Runtime[Context]) -> dict[str, Any]:
        """Write the final answer o."""
        answer = await self.write_final_answer(state["question"], state["steps"], runtime.context, "conclude")
        return {
            "answer": answer.short,
            "long_answer": answer.long,
            "well_formed": answer.well_formed,
            "retrievals": count_retrievals(state["steps"]),
        }

    def builder(self) -> StateGraph[State, Context, Input, Output]:
        """Return the state machine: one turn of the loop is one transition of the decision process."""
        builder = StateGraph(State, context_schema=Context, input_schema=Input, output_schema=Output)
        builder.add_node("begin", self.begin)
        builder.add_node("decompose", self.decompose)
        builder.add_node("decide", self.decide)
        builder.add_node("retrieve", self.retrieve)
        builder.add_node("answer", self.answer)
        builder.add_node("conclude", self.conclude)
        builder.add_edge(START, "begin")
        builder.add_edge("begin", "decompose")
        builder.add_conditional_edges("decompose", _route_query, ["conclude", "decide", "retrieve", "answer"])
        builder.add_conditional_edges("decide", _route_query, ["conclude", "retrieve", "answer"])
        builder.add_edge("retrieve", "answer")
        builder.add_conditional_edges(
            "answer", lambda state: "conclude" if state["stop"] else "decompose", ["conclude", "decompose"]
        )
        builder.add_edge("conclude", END)
        return builder


@dataclass(frozen=True)
@role_options(DeepRAG)
class Context(Knowledge):
    """Options of a run: the retriever, the decisions, and a model for each role."""

    decisions: Literal["model", "retrieve", "parametric"] = knob(
        "model", "retrieval decisions: by the model, or always retrieve, or always parametric"
    )
    max_steps: int = knob(6, "T: sub-queries before the final answer is forced", highest_in_studio=64)
    example: bool = knob(True, "show a worked example; off for a model trained on narratives")

    def __post_init__(self) -> None:
        """Raises ValueError for an option of the wrong type or out of range."""
        super().__post_init__()
        self.at_least(max_steps=1)


def _end_narrative(err: RoleError) -> dict[str, Any]:
    """A failed role ends the narrative: the final answer is written from the steps so far."""
    return {"stop": str(err)}


def _route_query(state: State) -> str:
    """The node after q_(t+1): `decide` unless delta is already decided."""
    if state["stop"]:
        return "conclude"
    return {None: "decide", True: "retrieve", False: "answer"}[state["retrieve"]]


builder = DeepRAG().builder()
graph = builder.compile(name="deeprag")
