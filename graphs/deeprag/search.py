"""DeepRAG's training data from binary tree search: each sub-query answered from memory and from passages.

Stage I, imitation (section 3.3, Algorithm 1): uniform-cost search by retrievals finds the correct path with the fewest;
its narrative is an SFT target. Large models may write sub-queries and read passages; the parametric answers are the
target model's own. Stage II, calibration (section 3.4): the stage-I model writes everything, the whole tree is grown,
and each sub-query of the best path gives a pair of decisions. A question without a correct path gives nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Annotated, Any, Literal, NotRequired, Protocol, cast

from langgraph.channels import EphemeralValue
from langgraph.graph import END, START, StateGraph
from langgraph.runtime import Runtime
from pydantic import BaseModel
from typing_extensions import TypedDict

from agentsys.graphs.deeprag.narrative import (
    ANSWER,
    FINAL,
    FOLLOW_UP,
    SEARCH,
    Conclusion,
    Step,
    final,
    golds,
    pieces,
    retrievals,
)
from agentsys.graphs.deeprag.system import DeepRAG, next_line_fault
from agentsys.knowledge.context import Knowledge, Passage
from agentsys.metrics.answers import Match, is_correct
from agentsys.models.errors import ModelError
from agentsys.prompt import one_line
from agentsys.roles import Role, RoleError
from agentsys.search import Child, Node, best_first, exhaustive, settled, tree_to_json
from agentsys.systems import System, ask, knob, role_options
from agentsys.traces import Segment, Target, masked

NOTHING_FOUND = "[No related Info]"
"""What the reader writes where no passage helps; it ends the branch."""


_KINDS = ("model", "prompt")


class Input(TypedDict):
    """A question with its right answers: `answer` and its `answer_aliases`, or `answers`."""

    question: str
    answer: NotRequired[str]
    answers: NotRequired[list[str]]
    answer_aliases: NotRequired[list[str]]


class Output(TypedDict):
    """The best path, the search tree, and what is worth learning."""

    question: str
    steps: NotRequired[list[Step]]
    answer: NotRequired[str]
    long_answer: NotRequired[str]
    retrievals: NotRequired[int]
    dropped: NotRequired[str | None]
    tree: NotRequired[list[dict[str, Any]]]
    targets: NotRequired[list[dict[str, Any]]]


class State(Input, Output):
    """Both. An input is that of one run: on a thread, what the last run found is no right answer of the next one."""

    question: Annotated[str, EphemeralValue]
    answer: NotRequired[Annotated[str, EphemeralValue]]
    answers: NotRequired[Annotated[list[str], EphemeralValue]]
    answer_aliases: NotRequired[Annotated[list[str], EphemeralValue]]


class Answered(BaseModel):
    """The concluder's reply."""

    long: str
    short: str


class Writer(Protocol):
    """Who writes the pieces of a path. Every method raises ModelError where a call failed for good."""

    async def next_query(self, question: str, steps: Sequence[Step], context: Any, key: str) -> str | None:
        """q_(t+1), or None to terminate."""
        ...

    async def answer(
        self, question: str, steps: Sequence[Step], query: str, passages: list[Passage] | None, context: Any, key: str
    ) -> Step:
        """(q_(t+1), r_(t+1)), from passages or (None) from memory."""
        ...

    async def conclude(self, question: str, steps: Sequence[Step], context: Any, key: str) -> Conclusion:
        """o."""
        ...


@dataclass(frozen=True)
class Imitation(System):
    """Stage I's roles, each with a prompt and perhaps a model of its own."""

    decomposer: Role[str] = Role(
        "deeprag/decomposer", check=next_line_fault, sampling={"temperature": 0.0, "max_tokens": 120, "stop": ["\n"]}
    )
    reader: Role[str] = Role("deeprag/reader", sampling={"temperature": 0.0, "max_tokens": 80, "stop": ["\n"]})
    parametric: Role[str] = Role("deeprag/parametric", sampling={"temperature": 0.0, "max_tokens": 80, "stop": ["\n"]})
    concluder: Role[Answered] = Role("deeprag/concluder", Answered, sampling={"temperature": 0.0, "max_tokens": 250})

    async def next_query(self, question: str, steps: Sequence[Step], context: Any, key: str) -> str | None:
        """q_(t+1), or None to terminate. Raises RoleError."""
        reply = await ask(context, self.decomposer, key=key, question=question, steps=steps)
        return None if reply.value.startswith(FINAL) else one_line(reply.value.removeprefix(FOLLOW_UP))

    async def answer(
        self, question: str, steps: Sequence[Step], query: str, passages: list[Passage] | None, context: Any, key: str
    ) -> Step:
        """(q_(t+1), r_(t+1)). Raises RoleError, also where no passage has anything to do with q."""
        if passages is None:
            reply = await ask(context, self.parametric, key=key, sub_query=query)
        else:
            reply = await ask(context, self.reader, key=key, sub_query=query, passages=passages)
            if NOTHING_FOUND.casefold() in reply.value.casefold():
                raise RoleError(f"reader ({key}): no passage has anything to do with it")
        return Step(sub_query=query, retrieved=passages is not None, passages=passages or [], answer=reply.value)

    async def conclude(self, question: str, steps: Sequence[Step], context: Any, key: str) -> Conclusion:
        """o. Raises RoleError."""
        reply = await ask(context, self.concluder, key=key, question=question, steps=steps)
        return Conclusion(reply.value.long, reply.value.short, bool(reply.value.long and reply.value.short))


@dataclass
class Question:
    """The search problem of one question x with its golds y: a node's state is s_t, its cost T(s_t)."""

    question: str
    golds: list[str]
    writer: Writer
    context: SearchContext
    narrator: DeepRAG | None = None
    """Stage II: asked for its own decision at every sub-query; its call holds the exact prefix of a pair."""

    async def expand(self, node: Node[tuple[Step, ...]]) -> Sequence[Child]:
        """Algorithm 1, lines 3-5: q, then both answers at once; or o, and no step, at the end or after T steps."""
        steps, context = node.state, self.context
        query = None
        if len(steps) < context.max_steps:
            query = await self.writer.next_query(self.question, steps, context, f"{node.id}/decompose")
        if query is None:
            end = await self.writer.conclude(self.question, steps, context, f"{node.id}/conclude")
            correct = is_correct(end.short, self.golds, context.match)
            node.observation = {"answer": end.short, "long_answer": end.long, "well_formed": end.well_formed}
            node.observation |= {"correct": correct, "call": f"{node.id}/conclude"}
            return []
        node.observation = {"sub_query": query}
        children, failure = await settled(self._answers(node, query), self._decision(node, query))
        if isinstance(failure, ModelError):
            raise failure
        return cast("list[Child]", children)

    async def _decision(self, node: Node[tuple[Step, ...]], query: str) -> None:
        """Stage II: what the model itself would do. Both answers are written anyway: none waits for it."""
        if self.narrator is not None:
            key = f"{node.id}/decide"
            decision = await self.narrator.decide(self.question, node.state, query, self.context, key)
            node.observation |= {"decision": decision, "call": key}

    async def _answers(self, node: Node[tuple[Step, ...]], query: str) -> list[Child]:
        """delta = parametric, at no cost, and delta = retrieve, at the cost of one."""

        async def step(retrieve: bool) -> Step:
            passages = await self.context.search(query) if retrieve else None
            key = f"{node.id}:{int(retrieve)}/answer"
            return await self.writer.answer(self.question, node.state, query, passages, self.context, key)

        results = await settled(step(False), step(True))
        return [
            Child(None, float(i), {"retrieved": bool(i)}, result)
            if isinstance(result, ModelError)
            else Child((*node.state, result), float(i), {"step": result})
            for i, result in enumerate(results)
        ]

    def is_goal(self, node: Node[tuple[Step, ...]]) -> bool:
        """R > -infinity: the answer is right."""
        return bool(node.observation["correct"])


@dataclass(frozen=True)
class DeepRAGSearch(System):
    """The search and what is learned from it. `DeepRAGSearch(Imitation(reader=Role(...)))` replaces a role."""

    imitation: Imitation = Imitation()
    narrator: DeepRAG = DeepRAG()

    async def search(self, state: State, runtime: Runtime[SearchContext]) -> dict[str, Any]:
        """Stage I or stage II, inside one node."""
        context = runtime.context
        root: Node[tuple[Step, ...]] = Node.root(())
        right = golds(state)
        if not right:
            raise ValueError("no right answer: a record needs `answer` or `answers`; --field answer=COLUMN names it")
        if context.stage == "imitation":
            problem = Question(state["question"], right, self.imitation, context)
            goal = await best_first(root, problem, parallel=context.parallel)
        else:
            problem = Question(state["question"], right, self.narrator, context, self.narrator)
            goal = next(iter(await exhaustive(root, problem)), None)
        if goal is None:
            return {
                "question": state["question"],
                "tree": tree_to_json(root),
                "dropped": "no correct path",
                "targets": [],
            }
        fault = _unfit(goal, context.stage)
        found = targets(state["question"], goal, context, self.narrator) if fault is None else []
        return {
            "question": state["question"],
            "steps": list(goal.state),
            "answer": goal.observation["answer"],
            "long_answer": goal.observation["long_answer"],
            "retrievals": retrievals(goal.state),
            "tree": tree_to_json(root),
            "dropped": fault,
            "targets": [asdict(target) for target in found],
        }

    def builder(self) -> StateGraph[State, SearchContext, Input, Output]:
        """One node: a super-step for each expansion would make all branches wait for the slowest."""
        builder = StateGraph(State, context_schema=SearchContext, input_schema=Input, output_schema=Output)
        builder.add_node("search", self.search)
        builder.add_edge(START, "search")
        builder.add_edge("search", END)
        return builder


@dataclass(frozen=True)
@role_options(DeepRAGSearch, shared_models={"decider": "", "answerer": ""})
class SearchContext(Knowledge):
    """The stage, its models and knobs."""

    stage: Literal["imitation", "calibration"] = knob("imitation", "stage I or stage II")
    model: str = knob("embedded", "model spec of every role that has none of its own; stage II: the stage-I model")
    max_steps: int = knob(4, "T: sub-queries after which the final answer is forced (the paper does not tell its own)")
    match: Match = knob("exact", "what counts as correct: SQuAD-normalized exact match, or the lenient containment")
    parallel: int = knob(1, "stage I: nodes of one tree that are expanded at once")
    example: bool = knob(False, "stage II: show a worked example, for a model that was not trained on narratives")
    narrative_prompt: str = knob("", "stage II: prompt text in place of prompts/deeprag/narrative.md")

    def __post_init__(self) -> None:
        """Raises ValueError for a knob of the wrong type or out of range."""
        super().__post_init__()
        self.at_least(max_steps=1, parallel=1)
        own = [f"{role}_{kind}" for role in ("decomposer", "reader", "parametric", "concluder") for kind in _KINDS]
        if self.stage == "calibration" and (given := [name for name in own if getattr(self, name)]):
            raise ValueError(f"{given[0]}: stage II has one model for all roles, `model`, and `narrative_prompt`")


def _unfit(goal: Node[tuple[Step, ...]], stage: str) -> str | None:
    """Why a correct path is no example: stage I has the filter of the released code, which the paper does not tell."""
    if not goal.state:
        return "answered without a sub-query"
    if stage == "calibration":
        return None
    if not goal.observation["well_formed"]:
        return "the final answer has no tags"
    listed = any(step["answer"].startswith(("1. ", "2. ", "3. ")) for step in goal.state)
    return "an answer is a list" if listed else None


def targets(question: str, goal: Node[tuple[Step, ...]], context: SearchContext, narrator: DeepRAG) -> list[Target]:
    """Stage I: the path's narrative. Stage II: a pair for every sub-query of the path."""
    if context.stage == "imitation":
        return [imitation_target(question, goal, narrator)]
    return [calibration_pair(node, child) for node, child in zip(goal.path, goal.path[1:], strict=False)]


def imitation_target(question: str, goal: Node[tuple[Step, ...]], narrator: DeepRAG) -> Target:
    """The narrative with its documents masked; decisions, sub-queries and answers are learned (appendix B.1)."""
    asked = narrator.decomposer.text.render({"question": question, "narrative": "", "example": False, "steps": []})
    prompt = masked(message for message in asked if message["role"] != "assistant")
    end = Conclusion(goal.observation["long_answer"], goal.observation["answer"], True)
    told = [*pieces(goal.state), (final(end), True)]
    answer = [Segment("assistant", learned, text=text) for text, learned in told]
    scores = {"retrievals": goal.cost, "steps": float(len(goal.state))}
    return Target("sft", (*prompt, *answer), scores=scores)


def calibration_pair(node: Node[tuple[Step, ...]], child: Node[tuple[Step, ...]]) -> Target:
    """After s_(i-1) and q_i: the decision of the best path is chosen, the other one rejected (appendix B.2).

    Only the opening differs; neither answers nor documents of step i are in the pair. The sentence keeps the end of its
    line: a tokenizer may join the two, and without it the pair would teach a last token that no narrative has.
    """
    sent = Segment("user", False, prompt=node.observation["call"])
    openings = [Segment("assistant", True, text=text) for text in (f"{SEARCH}\n", ANSWER)]
    chosen, rejected = openings if child.state[-1]["retrieved"] else reversed(openings)
    scores = {"margin": 1.0, "retrievals": child.cost, "step": float(child.depth)}
    return Target("step", (sent, chosen), (sent, rejected), scores=scores)


builder = DeepRAGSearch().builder()
graph = builder.compile(name="deeprag_search")
