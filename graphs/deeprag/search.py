"""DeepRAG's binary tree search: each sub-query is answered from memory and from passages.

Stage I, imitation (section 3.3, Algorithm 1): uniform-cost search finds the correct path with the fewest retrievals;
its narrative is an SFT target. Large models may write sub-queries and read passages; the target model writes the
parametric answers. Stage II, calibration (section 3.4): the stage-I model writes everything, the whole tree is
expanded, and each sub-query of the best path gives a pair of decisions. A question without a correct path gives no
target. The ablations (tables 5 and 6): other paths to imitate, pairs from all nodes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Annotated, Any, Final, NotRequired, Protocol

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
from agentsys.graphs.deeprag.targets import (
    PairChoice,
    PathChoice,
    PathNode,
    Stage,
    best_decisions,
    calibration_pairs,
    choose_path,
    drop_reason,
    narrative_target,
)
from agentsys.knowledge.context import Knowledge, PassageDict
from agentsys.metrics.answers import Match, is_correct
from agentsys.metrics.golds import require_golds
from agentsys.models.errors import ModelError
from agentsys.prompt import one_line
from agentsys.roles import Role, RoleError
from agentsys.search import Child, Node, best_first, exhaustive, settled, tree_to_json
from agentsys.systems import System, ask, knob, role_options, sequence_graph
from agentsys.traces import Target

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
    prunes_twins: bool = False
    """Whether a retrieved answer that is the one from memory is left out: the writers see no documents, so its path is
    the other one with a retrieval more."""

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
        return await self._answer_both_ways(node, query)

    async def _answer_both_ways(self, node: PathNode, query: str) -> list[Child]:
        """delta = parametric at cost 0, and delta = retrieve at cost 1."""

        async def take_step(retrieve: bool) -> NarrativeStep:
            passages = await self.context.search(query) if retrieve else None
            key = f"{node.id}:{int(retrieve)}/answer"
            return await self.writer.answer_query(self.question, node.state, query, passages, self.context, key)

        results = await settled(take_step(False), take_step(True))
        if self.prunes_twins and _are_twins(*results):
            node.observation["twins"] = True
            results = results[:1]
        return [
            Child(None, float(i), {"retrieved": bool(i)}, result)
            if isinstance(result, ModelError)
            else Child((*node.state, result), float(i), {"step": result})
            for i, result in enumerate(results)
        ]

    async def decide(self, deeprag: DeepRAG, node: PathNode) -> None:
        """Stage II: record the model's own decision at a node; the call holds the exact prefix of a pair."""
        key, query = f"{node.id}/decide", node.observation["sub_query"]
        decision = await deeprag.decide_retrieval(self.question, node.state, query, self.context, key)
        node.observation |= {"decision": decision, "call": key}

    def is_goal(self, node: PathNode) -> bool:
        """R > -infinity: the answer is correct."""
        return bool(node.observation["correct"])


def _are_twins(parametric: NarrativeStep | ModelError, retrieved: NarrativeStep | ModelError) -> bool:
    """Whether both answers read the same in a prompt."""
    if isinstance(parametric, ModelError) or isinstance(retrieved, ModelError):
        return False
    return one_line(parametric["answer"]) == one_line(retrieved["answer"])


Found = tuple[PathNode | None, list[Target], str | None]
"""The best path, its targets, and why there are none."""


@dataclass(frozen=True)
class DeepRAGSearch(System):
    """The search and its training targets. `DeepRAGSearch(Imitation(reader=Role(...)))` replaces a role."""

    imitation: Imitation = Imitation()
    deeprag: DeepRAG = DeepRAG()

    async def search(self, state: State, runtime: Runtime[SearchContext]) -> dict[str, Any]:
        """Stage I or stage II. Raises ValueError for a record without a gold answer."""
        context, question = runtime.context, state["question"]
        root: PathNode = Node.root(())
        golds = require_golds(state, "no right answer")
        search = self._imitate if context.stage == "imitation" else self._calibrate
        goal, learned, dropped = await search(root, question, golds, context)
        result: dict[str, Any] = {"question": question, "tree": tree_to_json(root), "dropped": dropped}
        result["targets"] = [asdict(target) for target in learned]
        if goal is None:
            return result
        return result | {
            "steps": list(goal.state),
            "answer": goal.observation["answer"],
            "long_answer": goal.observation["long_answer"],
            "retrievals": count_retrievals(goal.state),
        }

    async def _imitate(self, root: PathNode, question: str, golds: list[str], context: SearchContext) -> Found:
        """Stage I: the narrative of a correct path."""
        least = context.path == "least"
        problem = QuestionProblem(question, golds, self.imitation, context, prunes_twins=least)
        if least:
            goal = await best_first(root, problem, parallel=context.parallel)
        else:
            goal = choose_path(await exhaustive(root, problem), context.path, f"{context.choice_seed}/{question}")
        if goal is None:
            return None, [], "no correct path"
        dropped = drop_reason(goal, context.stage)
        prompt = self.deeprag.decomposer.text
        return goal, [] if dropped else [narrative_target(question, goal, prompt)], dropped

    async def _calibrate(self, root: PathNode, question: str, golds: list[str], context: SearchContext) -> Found:
        """Stage II: pairs of decisions. The model decides only where a pair can come of it."""
        problem = QuestionProblem(question, golds, self.deeprag, context)
        goals = await exhaustive(root, problem)
        if not goals:
            return None, [], "no correct path"
        decisions = best_decisions(goals, context.pairs)
        results = await settled(*(problem.decide(self.deeprag, node) for node, _ in decisions))
        pairs = calibration_pairs(decisions)
        errors = [result for result in results if isinstance(result, ModelError)]
        dropped = drop_reason(goals[0], context.stage) or (None if pairs else f"no decision: {errors[0]}")
        return goals[0], [] if dropped else pairs, dropped

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
    path: PathChoice = knob(
        "least",
        "stage I: the correct path to imitate: the one with the least retrievals, with the most, or a random one",
    )
    pairs: PairChoice = knob(
        "path", "stage II: pairs from the best path, or from all nodes from which the right answer is reached"
    )
    choice_seed: int = knob(0, "seed of path random", highest_in_studio=2**53)
    parallel: int = knob(
        1, "stage I: nodes of one tree to expand in parallel", old_name="at_once", highest_in_studio=16
    )
    example: bool = knob(False, "stage II: show a worked example, for a model not trained on narratives")
    narrative_prompt: str = knob("", "stage II: prompt text in place of prompts/deeprag/narrative.md")

    def __post_init__(self) -> None:
        """Raises ValueError for an option of the wrong type or out of range, or an option of stage I in stage II."""
        super().__post_init__()
        self.at_least(max_steps=1, parallel=1)
        unused = "pairs" if self.stage == "imitation" else "path"
        if getattr(self, unused) not in ("path", "least"):
            raise ValueError(f"{unused}: {getattr(self, unused)} is not used in stage {self.stage}; leave it out")
        if self.stage == "calibration":
            for name in [f"{role}_{kind}" for role in STAGE_ONE_ROLES for kind in ("model", "prompt")]:
                if getattr(self, name):
                    raise ValueError(f"{name}: stage II has one model for all roles, `model`, and `narrative_prompt`")


builder = DeepRAGSearch().builder()
graph = builder.compile(name="deeprag_search")
