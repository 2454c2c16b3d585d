"""DeepRAG: a question answered step by step, each step from memory or from passages, as the model decides.

"DeepRAG: Thinking to Retrieve Step by Step for Large Language Models" (Guan et al. 2025). A Markov decision process
(section 3.1): the state s_t = [x, (q_1, r_1), ..., (q_t, r_t)], the action a_(t+1) = (sigma, delta) with the decision
sigma to continue or terminate and the atomic decision delta to retrieve or not. All roles here write one text together,
the retrieval narrative of graphs/deeprag/narrative.py. docs/deeprag.md says where this departs from the paper.
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
    Conclusion,
    Decision,
    Step,
    asked,
    narrative,
    parse_final,
    retrievals,
)
from agentsys.knowledge.context import Knowledge, Passage
from agentsys.logprobs import opening_logprobs
from agentsys.prompt import one_line
from agentsys.roles import Role, RoleError
from agentsys.systems import System, ask, knob, role_options


class Input(TypedDict):
    """What a person types: x."""

    question: str


class State(Input):
    """s_t, and the step being made."""

    steps: NotRequired[list[Step]]
    sub_query: NotRequired[str]
    decision: NotRequired[Decision | None]
    retrieve: NotRequired[bool | None]
    passages: NotRequired[list[Passage]]
    stop: NotRequired[str]
    answer: NotRequired[str]
    long_answer: NotRequired[str]
    well_formed: NotRequired[bool]
    retrievals: NotRequired[int]


class Output(TypedDict):
    """The final answer o and how it was found; `stop` says what ended the narrative."""

    question: str
    answer: NotRequired[str]
    long_answer: NotRequired[str]
    well_formed: NotRequired[bool]
    retrievals: NotRequired[int]
    steps: NotRequired[list[Step]]
    stop: NotRequired[str]


def next_line_fault(line: str, inputs: Mapping[str, Any]) -> str | None:
    """What is wrong with the decomposer's line: it is neither a sub-query nor the end, or asks what was asked."""
    if line.startswith(FINAL):
        return None
    if not line.startswith(FOLLOW_UP):
        return f'begin the next line with "{FOLLOW_UP}" or "{FINAL}"'
    query = one_line(line.removeprefix(FOLLOW_UP))
    if not query:
        return "ask something"
    known = query.casefold() in {step["sub_query"].casefold() for step in inputs["steps"]}
    return f'this was asked before; ask something else, or end with "{FINAL}"' if known else None


@dataclass(frozen=True)
class DeepRAG(System):
    """The roles and nodes of DeepRAG's inference (section 3.2). `DeepRAG(answerer=Role(...))` replaces a role."""

    decomposer: Role[str] = Role(  # of the last line only its beginning is needed: the concluder writes the answer
        "deeprag/narrative",
        check=next_line_fault,
        sampling={"temperature": 0.0, "max_tokens": 120, "stop": ["\n", "<answer"]},
    )
    decider: Role[str] = Role(
        "deeprag/narrative",
        allow_truncated=True,
        sampling={"temperature": 0.0, "max_tokens": 12, "stop": ["\n"], "logprobs": 20},
    )
    answerer: Role[str] = Role("deeprag/narrative", sampling={"temperature": 0.0, "max_tokens": 120, "stop": ["\n"]})
    concluder: Role[str] = Role("deeprag/narrative", sampling={"temperature": 0.0, "max_tokens": 250, "stop": ["\n"]})

    async def next_query(self, question: str, steps: Sequence[Step], context: Any, key: str) -> str | None:
        """sigma, and q_(t+1) if it is `continue`; None terminates. Raises RoleError."""
        line = await self._go_on(self.decomposer, question, steps, "", context, key)
        return None if line.value.startswith(FINAL) else one_line(line.value.removeprefix(FOLLOW_UP))

    async def decide(self, question: str, steps: Sequence[Step], query: str, context: Any, key: str) -> Decision:
        """delta for q_(t+1), with the log-probabilities of both openings. Raises RoleError.

        Only the whole sentence is a retrieval. A model that writes neither opening has not asked for one.
        """
        reply = await self._go_on(self.decider, question, steps, asked(query), context, key)
        chances = await opening_logprobs(context, self.decider, reply.call, (SEARCH, ANSWER))
        retrieve = reply.value.startswith(SEARCH)
        return {
            "retrieve": retrieve,
            "log_p_retrieve": chances[0],
            "log_p_parametric": chances[1],
            "stated": retrieve or reply.value.startswith(ANSWER),
        }

    async def answer(
        self, question: str, steps: Sequence[Step], query: str, passages: list[Passage] | None, context: Any, key: str
    ) -> Step:
        """(q_(t+1), r_(t+1)): from the passages, or where there are none (None) from memory. Raises RoleError."""
        step: Step = {
            "sub_query": query,
            "retrieved": passages is not None,
            "passages": passages or [],
            "answer": "",
        }
        so_far = narrative([step])
        begun = so_far[: so_far.rindex(ANSWER) + len(ANSWER)]
        reply = await self._go_on(self.answerer, question, steps, begun, context, key)
        return {**step, "answer": reply.value}

    async def conclude(self, question: str, steps: Sequence[Step], context: Any, key: str) -> Conclusion:
        """o. Raises RoleError."""
        return parse_final((await self._go_on(self.concluder, question, steps, FINAL, context, key)).value)

    async def _go_on(
        self, role: Role[str], question: str, steps: Sequence[Step], begun: str, context: Any, key: str
    ) -> Any:
        """The model goes on from the narrative of s_t and the beginning of the next piece."""
        text = narrative(steps, begun)
        return await ask(
            context, role, key=key, question=question, steps=steps, narrative=text, example=context.example
        )

    async def begin(self, state: State) -> dict[str, Any]:
        """s_0 = [x], whatever a thread held before."""
        return {"steps": [], "stop": ""}

    async def decompose_node(self, state: State, runtime: Runtime[Context]) -> dict[str, Any]:
        """sigma and q_(t+1); the end is forced after T sub-queries."""
        steps = state["steps"]
        if len(steps) >= runtime.context.max_steps:
            return {"stop": "max_steps"}
        try:
            query = await self.next_query(state["question"], steps, runtime.context, f"{len(steps)}/decompose")
        except RoleError as err:
            return _forced_end(err)
        if query is None:
            return {"stop": "terminate"}
        forced = {"model": None, "retrieve": True, "parametric": False}[runtime.context.decisions]
        return {"sub_query": query, "decision": None, "retrieve": forced, "passages": []}

    async def decide_node(self, state: State, runtime: Runtime[Context]) -> dict[str, Any]:
        """delta."""
        steps = state["steps"]
        key = f"{len(steps)}/decide"
        try:
            decision = await self.decide(state["question"], steps, state["sub_query"], runtime.context, key)
        except RoleError as err:
            return _forced_end(err)
        return {"decision": decision, "retrieve": decision["retrieve"]}

    async def retrieve_node(self, state: State, runtime: Runtime[Context]) -> dict[str, Any]:
        """d_(t+1)."""
        return {"passages": await runtime.context.search(state["sub_query"])}

    async def answer_node(self, state: State, runtime: Runtime[Context]) -> dict[str, Any]:
        """ia_(t+1), and so s_(t+1)."""
        steps = state["steps"]
        found = state["passages"] if state["retrieve"] else None
        key = f"{len(steps)}/answer"
        try:
            step = await self.answer(state["question"], steps, state["sub_query"], found, runtime.context, key)
        except RoleError as err:
            return _forced_end(err)
        return {"steps": [*steps, {**step, "decision": state["decision"]}]}

    async def conclude_node(self, state: State, runtime: Runtime[Context]) -> dict[str, Any]:
        """o."""
        end = await self.conclude(state["question"], state["steps"], runtime.context, "conclude")
        return {
            "answer": end.short,
            "long_answer": end.long,
            "well_formed": end.well_formed,
            "retrievals": retrievals(state["steps"]),
        }

    def builder(self) -> StateGraph[State, Context, Input, Output]:
        """The state machine: one turn of the loop is one transition of the process."""
        builder = StateGraph(State, context_schema=Context, input_schema=Input, output_schema=Output)
        builder.add_node("begin", self.begin)
        builder.add_node("decompose", self.decompose_node)
        builder.add_node("decide", self.decide_node)
        builder.add_node("retrieve", self.retrieve_node)
        builder.add_node("answer", self.answer_node)
        builder.add_node("conclude", self.conclude_node)
        builder.add_edge(START, "begin")
        builder.add_edge("begin", "decompose")
        builder.add_conditional_edges("decompose", _after_query, ["conclude", "decide", "retrieve", "answer"])
        builder.add_conditional_edges("decide", _after_query, ["conclude", "retrieve", "answer"])
        builder.add_edge("retrieve", "answer")
        builder.add_conditional_edges(
            "answer", lambda state: "conclude" if state["stop"] else "decompose", ["conclude", "decompose"]
        )
        builder.add_edge("conclude", END)
        return builder


@dataclass(frozen=True)
@role_options(DeepRAG)
class Context(Knowledge):
    """The model, its prompt and the knobs of a run."""

    decisions: Literal["model", "retrieve", "parametric"] = knob(
        "model", "who decides: the model, or every sub-query is looked up, or none is"
    )
    max_steps: int = knob(6, "T: sub-queries after which the final answer is forced")
    example: bool = knob(True, "show a worked example; a model that was trained on narratives needs none")

    def __post_init__(self) -> None:
        """Raises ValueError for a knob of the wrong type or out of range."""
        super().__post_init__()
        self.at_least(max_steps=1)


def _forced_end(err: RoleError) -> dict[str, Any]:
    """A role that fails ends the narrative; what was found so far is still concluded from."""
    return {"stop": str(err)}


def _after_query(state: State) -> str:
    """Where q_(t+1) goes on: an undecided one is decided."""
    if state["stop"]:
        return "conclude"
    return {None: "decide", True: "retrieve", False: "answer"}[state["retrieve"]]


builder = DeepRAG().builder()
graph = builder.compile(name="deeprag")
