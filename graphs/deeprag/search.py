"""DeepRAG's binary tree search: each sub-query is answered from memory and from passages.

Stage I, imitation (section 3.3, Algorithm 1): uniform-cost search finds the correct path with the fewest retrievals;
its narrative is an SFT target. Large models may write sub-queries and read passages; the target model writes the
parametric answers. Stage II, calibration (section 3.4): the stage-I model writes everything, the whole tree is
expanded, and each sub-query of the best path gives a pair of decisions. A question without a correct path gives no
target.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Annotated, Any, Final, NotRequired, Protocol, cast

from langgraph.channels import EphemeralValue
from langgraph.graph import StateGraph
from langgraph.runtime import Runtime
from pydantic import BaseModel
from typing_extensions import TypedDict

from agentsys.graphs.deeprag.narrative import (
    FINAL,
    FOLLOW_UP,
    FinalAnswer,
    NarrativeStep,
    count_retrievals,
)
from agentsys.graphs.deeprag.system import DeepRAG, check_next_line
from agentsys.graphs.deeprag.targets import PathNode, Stage, drop_reason, targets
from agentsys.knowledge.context import Knowledge, PassageDict
from agentsys.metrics.answers import Match, is_correct
from agentsys.metrics.golds import require_golds
from agentsys.models.errors import ModelError
from agentsys.prompt import one_line
from agentsys.roles import Role, RoleError
from agentsys.search import Child, Node, best_first, exhaustive, settled, tree_to_json
from agentsys.systems import System, ask, knob, role_options, sequence_graph

NOTHING_FOUND: Final = "[No related Info]"
"""The reader's reply if no passage helps; it ends the branch."""

STAGE_ONE_ROLES: Final = ("decomposer", "reader", "parametric", "concluder")
"""Roles whose options stage II refuses."""


class Input(TypedDict):
    """Graph input: a question with its gold answers, `answer` and its `answer_aliases`, or `answers`."""

    question: str
    answer: NotRequired[str]
    answers: NotRequired[list[str]]
    answer_aliases: NotRequired[list[str]]


class Output(TypedDict):
    """Graph output: the best path, the search tree, and the training targets."""

    question: str
    steps: NotRequired[list[NarrativeStep]]
    answer: NotRequired[str]
    long_answer: NotRequired[str]
    retrievals: NotRequired[int]
    dropped: NotRequired[str | None]
    tree: NotRequired[list[dict[str, Any]]]
    targets: NotRequired[list[dict[str, Any]]]


class State(Input, Output):
    """Input and output. Input fields are cleared after each run, so an earlier answer is not reused."""

    question: Annotated[str, EphemeralValue]
    answer: NotRequired[Annotated[str, EphemeralValue]]
    answers: NotRequired[Annotated[list[str], EphemeralValue]]
    answer_aliases: NotRequired[Annotated[list[str], EphemeralValue]]


class ConcluderReply(BaseModel):
    """The concluder's reply: the final answer as a sentence and as a bare answer."""

    long: str
    short: str


class PathWriter(Protocol):
    """Writes the pieces of a path. Every method raises ModelError if a call fails after all attempts."""

    async def write_query(self, question: str, steps: Sequence[NarrativeStep], context: Any, key: str) -> str | None:
        """q_(t+1), or None to terminate."""
        ...

    async def answer_query(
        self,
        question: str,
        steps: Sequence[NarrativeStep],
        query: str,
        passages: list[PassageDict] | None,
        context: Any,
        key: str,
    ) -> NarrativeStep:
        """(q_(t+1), r_(t+1)), from the passages, or from memory (None)."""
        ...

    async def write_final_answer(
        self, question: str, steps: Sequence[NarrativeStep], context: Any, key: str
    ) -> FinalAnswer:
        """The final answer o."""
        ...


@dataclass(frozen=True)
class Imitation(System):
    """The roles of stage I, each with its own prompt and, if set, its own model."""

    decomposer: Role[str] = Role(
        "deeprag/decomposer", check=check_next_line, sampling={"temperature": 0.0, "max_tokens": 120, "stop": ["\n"]}
    )
    reader: Role[str] = Role("deeprag/reader", sampling={"temperature": 0.0, "max_tokens": 80, "stop": ["\n"]})
    parametric: Role[str] = Role("deeprag/parametric", sampling={"temperature": 0.0, "max_tokens": 80, "stop": ["\n"]})
    concluder: Role[ConcluderReply] = Role(
        "deeprag/concluder", ConcluderReply, sampling={"temperature": 0.0, "max_tokens": 250}
    )

    async def write_query(self, question: str, steps: Sequence[NarrativeStep], context: Any, key: str) -> str | None:
        """q_(t+1), or None to terminate. Raises RoleError."""
        reply = await ask(context, self.decomposer, key=key, question=question, steps=steps)
        return None if reply.value.startswith(FINAL) else one_line(reply.value.removeprefix(FOLLOW_UP))

    async def answer_query(
        self,
        question: str,
        steps: Sequence[NarrativeStep],
        query: str,
        passages: list[PassageDict] | None,
        context: Any,
        key: str,
    ) -> NarrativeStep:
        """(q_(t+1), r_(t+1)). Raises RoleError, also if no passage is relevant to q_(t+1)."""
        if passages is None:
            reply = await ask(context, self.parametric, key=key, sub_query=query)
        else:
            reply = await ask(context, self.reader, key=key, sub_query=query, passages=passages)
            if NOTHING_FOUND.casefold() in reply.value.casefold():
                raise RoleError(f"reader ({key}): no passage is relevant")
        return NarrativeStep(
            sub_query=query, retrieved=passages is not None, passages=passages or [], answer=reply.value
        )

    async def write_final_answer(
        self, question: str, steps: Sequence[NarrativeStep], context: Any, key: str
    ) -> FinalAnswer:
        """The final answer o. Raises RoleError."""
        reply = await ask(context, self.concluder, key=key, question=question, steps=steps)
        return FinalAnswer(reply.value.long, reply.value.short, bool(reply.value.long and reply.value.short))


@dataclass
class QuestionProblem:
    """The search problem of one question x with its gold answers y: a node's state is s_t, its cost T(s_t)."""

    question: str
    golds: list[str]
    writer: PathWriter
    context: SearchContext
    deeprag: DeepRAG | None = None
    """Stage II: decides at every sub-query; the call holds the exact prefix of a pair."""

    async def expand(self, node: PathNode) -> Sequence[Child]:
        """Algorithm 1, lines 3-5: q, then both answers in parallel; at the end or after T steps o, and no children."""
        steps, context = node.state, self.context
        query = None
        if len(steps) < context.max_steps:
            query = await self.writer.write_query(self.question, steps, context, f"{node.id}/decompose")
        if query is None:
            answer = await self.writer.write_final_answer(self.question, steps, context, f"{node.id}/conclude")
            correct = is_correct(answer.short, self.golds, context.match)
            node.observation = {"answer": answer.short, "long_answer": answer.long, "well_formed": answer.well_formed}
            node.observation |= {"correct": correct, "call": f"{node.id}/conclude"}
            return []
        node.observation = {"sub_query": query}
        children, failure = await settled(self._answer_both_ways(node, query), self._record_decision(node, query))
        if isinstance(failure, ModelError):
            raise failure
        return cast("list[Child]", children)

    async def _record_decision(self, node: PathNode, query: str) -> None:
        """Stage II: the model's own decision. Both answers are written in any case and do not wait for it."""
        if self.deeprag is not None:
            key = f"{node.id}/decide"
            decision = await self.deeprag.decide_retrieval(self.question, node.state, query, self.context, key)
            node.observation |= {"decision": decision, "call": key}

    async def _answer_both_ways(self, node: PathNode, query: str) -> list[Child]:
        """delta = parametric at cost 0, and delta = retrieve at cost 1."""

        async def take_step(retrieve: bool) -> NarrativeStep:
            passages = await self.context.search(query) if retrieve else None
            key = f"{node.id}:{int(retrieve)}/answer"
            return await self.writer.answer_query(self.question, node.state, query, passages, self.context, key)

        results = await settled(take_step(False), take_step(True))
        return [
            Child(None, float(i), {"retrieved": bool(i)}, result)
            if isinstance(result, ModelError)
            else Child((*node.state, result), float(i), {"step": result})
            for i, result in enumerate(results)
        ]

    def is_goal(self, node: PathNode) -> bool:
        """R > -infinity: the answer is correct."""
        return bool(node.observation["correct"])


@dataclass(frozen=True)
class DeepRAGSearch(System):
    """The search and its training targets. `DeepRAGSearch(Imitation(reader=Role(...)))` replaces a role."""

    imitation: Imitation = Imitation()
    deeprag: DeepRAG = DeepRAG()

    async def search(self, state: State, runtime: Runtime[SearchContext]) -> dict[str, Any]:
        """Stage I or stage II. Raises ValueError for a record without a gold answer."""
        context = runtime.context
        root: PathNode = Node.root(())
        golds = require_golds(state, "no right answer")
        if context.stage == "imitation":
            problem = QuestionProblem(state["question"], golds, self.imitation, context)
            goal = await best_first(root, problem, parallel=context.parallel)
        else:
            problem = QuestionProblem(state["question"], golds, self.deeprag, context, self.deeprag)
            goal = next(iter(await exhaustive(root, problem)), None)
        if goal is None:
            return {
                "question": state["question"],
                "tree": tree_to_json(root),
                "dropped": "no correct path",
                "targets": [],
            }
        dropped = drop_reason(goal, context.stage)
        prompt = self.deeprag.decomposer.text
        learned = targets(state["question"], goal, context.stage, prompt) if dropped is None else []
        return {
            "question": state["question"],
            "steps": list(goal.state),
            "answer": goal.observation["answer"],
            "long_answer": goal.observation["long_answer"],
            "retrievals": count_retrievals(goal.state),
            "tree": tree_to_json(root),
            "dropped": dropped,
            "targets": [asdict(target) for target in learned],
        }

    def builder(self) -> StateGraph[State, SearchContext, Input, Output]:
        """Return the graph of one node: with a super-step per expansion, all branches would wait for the slowest."""
        return sequence_graph(self.search, state=State, context=SearchContext, input=Input, output=Output)


@dataclass(frozen=True)
@role_options(DeepRAGSearch, shared_models={"decider": "", "answerer": ""})
class SearchContext(Knowledge):
    """Options of a search: the stage, its models, the retriever and the limits."""

    stage: Stage = knob("imitation", "imitation is stage I, calibration is stage II")
    model: str = knob(
        "embedded", "model spec of every role without its own; stage II: the stage-I model", required=True
    )
    decomposer_model: str = knob("", "stage I: model spec of the role that writes sub-queries; empty: `model`")
    reader_model: str = knob("", "stage I: model spec of the role that answers from passages; empty: `model`")
    concluder_model: str = knob("", "stage I: model spec of the role that writes the final answer; empty: `model`")
    parametric_model: str = knob(
        "", "stage I: model spec of the target model, which answers from memory; empty: `model`"
    )
    max_steps: int = knob(
        4, "T: sub-queries before the final answer is forced (the paper does not report T)", highest_in_studio=32
    )
    match: Match = knob("exact", "correct answers: SQuAD-normalized exact match, or one contains the other")
    parallel: int = knob(
        1, "stage I: nodes of one tree to expand in parallel", old_name="at_once", highest_in_studio=16
    )
    example: bool = knob(False, "stage II: show a worked example, for a model not trained on narratives")
    narrative_prompt: str = knob("", "stage II: prompt text in place of prompts/deeprag/narrative.md")

    def __post_init__(self) -> None:
        """Raises ValueError for an option of the wrong type or out of range, or an option of stage I in stage II."""
        super().__post_init__()
        self.at_least(max_steps=1, parallel=1)
        if self.stage == "calibration":
            for name in [f"{role}_{kind}" for role in STAGE_ONE_ROLES for kind in ("model", "prompt")]:
                if getattr(self, name):
                    raise ValueError(f"{name}: stage II has one model for all roles, `model`, and `narrative_prompt`")


builder = DeepRAGSearch().builder()
graph = builder.compile(name="deeprag_search")
