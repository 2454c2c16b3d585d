"""Stepwise maths: Monte Carlo tree search over the steps of a solution, and preference pairs of steps.

A second evaluator for the search: where LongDPO's judge reads a text, the answer here can be checked. The pairs are in
the manner of Step-DPO (Lai et al. 2024) or MCTS-DPO (Xie et al. 2024): graphs/maths/targets.py.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Annotated, Any, Literal, NotRequired

from langgraph.channels import EphemeralValue
from langgraph.graph import END, START, StateGraph
from langgraph.runtime import Runtime
from pydantic.json_schema import SkipJsonSchema
from typing_extensions import TypedDict

from agentsys.graphs.maths.solver import Path, Solver, Solving, Step, solution
from agentsys.graphs.maths.targets import mcts_pairs, step_pairs, tally
from agentsys.metrics.maths import alike, check, reference_of
from agentsys.models.errors import ModelError
from agentsys.roles import RoleError
from agentsys.search import MCTS, PUCT, Child, Limits, Node, settled, tree_to_json, walk
from agentsys.systems import System, knob


class Input(TypedDict):
    """A record of GSM8K (question, answer) or of MATH (problem, solution, answer); Studio's form has GSM8K's fields."""

    question: NotRequired[str]
    problem: NotRequired[SkipJsonSchema[str]]
    answer: NotRequired[str]
    solution: NotRequired[SkipJsonSchema[str]]


class Find(TypedDict):
    """A finished solution: its answer as found, whether that is right, and what it took to come to it.

    `score` is V in [-1, 1], `tokens` what had been written when the solution was there, everything included; `group`
    is the index of the first find with an equal answer. `how` is the checker's (agentsys.maths.Verdict).
    """

    call: str
    right: bool
    answer: str
    how: str
    score: float
    tokens: int
    group: int


class Output(TypedDict):
    """The best solution, all that were found, the search tree and the pairs."""

    question: NotRequired[str]
    response: NotRequired[str]
    answer: NotRequired[str]
    right: NotRequired[bool]
    finds: NotRequired[list[Find]]
    dropped: NotRequired[str | None]
    tree: NotRequired[list[dict[str, Any]]]
    targets: NotRequired[list[dict[str, Any]]]


class State(Input, Output):
    """Both. An input is that of one run: on a thread, what the last run found is no right answer of the next one."""

    question: NotRequired[Annotated[str, EphemeralValue]]
    problem: NotRequired[Annotated[str, EphemeralValue]]
    answer: NotRequired[Annotated[str, EphemeralValue]]
    solution: NotRequired[Annotated[str, EphemeralValue]]


@dataclass(frozen=True)
class Context(Solving):
    """The search and its pairs."""

    pairs: Literal["step", "mcts"] = knob("step", "pairs in the manner of Step-DPO, or of MCTS-DPO")
    value: Literal["rollout", "judge"] = knob(
        "rollout", "V of a step: how often rollouts from it end in the right answer, or what the judge thinks of it"
    )
    rollouts: int = knob(2, "rollouts from a step")
    simulations: int = knob(16, "Monte Carlo simulations")
    width: int = knob(4, "steps that are tried after each prefix")
    depth: int = knob(8, "steps at most; the last one is the rest of the solution")
    step_tokens: int = knob(256, "tokens of a step; one that is cut off there ends its branch")
    explore: float = knob(1.0, "c_init of PUCT: weight of a step's prior against what was found below it")
    budget: int = knob(0, "tokens written for a question after which no simulation begins; 0: no such bound")

    def __post_init__(self) -> None:
        """Raises ValueError for a knob of the wrong type or out of range."""
        super().__post_init__()
        self.at_least(
            solution_tokens=1, rollouts=1, simulations=1, width=1, depth=1, step_tokens=1, explore=0, budget=0
        )


def question_of(given: Mapping[str, Any]) -> str:
    """The question of a record. Raises ValueError."""
    for name in ("question", "problem"):
        if isinstance(text := given.get(name), str) and text.strip():
            return text
    raise ValueError("no question: a record needs `question` or `problem`; --field question=COLUMN names it")


@dataclass
class Solutions:
    """The solutions of one question as a search problem: a node's state is s_1 .. s_t.

    `written` counts the tokens of all steps (of equal ones that became one child, too), rollouts and judgements, those
    that could not be used included.
    """

    solver: Solver
    question: str
    reference: str
    context: Context
    written: int = 0
    expansions: int = 0

    async def expand(self, node: Node[Path], n: int) -> Sequence[Child]:
        """n steps after the path's exact ids. One whose call failed, or that is too long, ends its branch."""
        self.expansions += 1
        keys = [f"{node.id}/{i}" for i in range(n)]
        last = node.depth + 1 >= self.context.depth
        given = (self.question, self.context, node.state)
        limit = None if last else self.context.step_tokens
        written = await settled(*(self.solver.step(*given, key, limit) for key in keys))
        return [self._child(node, key, step) for key, step in zip(keys, written, strict=True)]

    def _child(self, node: Node[Path], key: str, step: Step | ModelError) -> Child:
        self.written += step.tokens
        if isinstance(step, ModelError):
            return Child(None, step={"call": key}, error=step)
        about = {"call": key, "tokens": step.tokens}
        if step.cut:
            return Child(None, step=about, error=RoleError(f"solver ({key}): cut off at {step.tokens} tokens"))
        return Child((*node.state, step), step=about, prior=step.prior)

    async def evaluate(self, nodes: Sequence[Node[Path]]) -> Sequence[float | ModelError]:
        """V in [-1, 1] of each step."""
        return await settled(*(self._value(node) for node in nodes))

    async def _value(self, node: Node[Path]) -> float:
        """An end is worth 1 or -1 by its answer, another step the mean of its rollouts; or what the judge thinks.

        What was found goes into the node's step. The judge's V knows no verdict: those of ends are noted for the pairs
        and for measuring.
        """
        text = solution([step.text for step in node.state])
        if self.is_terminal(node):
            node.step.update((await check(text, self.reference))._asdict())
        if self.context.value == "judge":
            key = f"{node.state[-1].key}/judge"
            try:
                chance, tokens = await self.solver.belief(self.question, self.context, text, key)
            except ModelError as err:
                self.written += err.tokens
                raise
            self.written += tokens
            return 2 * chance - 1
        if not self.is_terminal(node):
            await self._roll_out(node)
        right, tried = tally(node)
        return 2 * right / tried - 1

    async def _roll_out(self, node: Node[Path]) -> None:
        """Monte Carlo: solutions from this step to their ends. Raises ModelError if none could be written."""
        given = (self.question, self.context, node.state)
        keys = [f"{node.state[-1].key}/rollout/{i}" for i in range(self.context.rollouts)]
        found = await settled(*(self.solver.rest(*given, key, self.reference) for key in keys))
        ended = [one for one in found if not isinstance(one, ModelError)]
        self.written += sum(one.tokens for one in found)
        if not ended:
            raise next(one for one in found if isinstance(one, ModelError))
        node.step["rollouts"] = [{"call": one.call, **one.verdict._asdict()} for one in ended]

    def is_terminal(self, node: Node[Path]) -> bool:
        """Whether the solution has ended."""
        return bool(node.state) and node.state[-1].final


def _why(root: Node[Path]) -> str:
    """Why a tree has no pair, in few enough words that the table can count them."""
    right, tried = tally(root)
    if not tried:
        return "no solution came to its end"
    if not right:
        return "no solution is right"
    return "every solution is right" if right == tried else "no step has a worse one beside it"


@dataclass(frozen=True)
class Maths(System):
    """The search. `Maths(Solver(judge=Role(...)))` replaces a role."""

    roles: Solver = Solver()

    async def search(self, state: State, runtime: Runtime[Context]) -> dict[str, Any]:
        """The whole search of one question, inside one node. Raises ValueError for a record that cannot be used."""
        context, question = runtime.context, question_of(state)
        root: Node[Path] = Node.root(())
        await grow(root, Solutions(self.roles, question, reference_of(state), context))
        finds = await finds_of(root)
        pairs = (step_pairs if context.pairs == "step" else mcts_pairs)(root)
        best = max(finds, key=lambda find: find["score"], default=None)
        response = next((node for node in walk(root) if best and node.step.get("call") == best["call"]), root)
        return {
            "question": question,
            "response": solution([step.text for step in response.state]),
            "answer": best["answer"] if best else "",
            "right": bool(best and best["right"]),
            "finds": finds,
            "dropped": None if pairs else f"no pair: {_why(root)}",
            "tree": tree_to_json(root),
            "targets": [asdict(pair) for pair in pairs],
        }

    def builder(self) -> StateGraph[State, Context, Input, Output]:
        """One node: the calls of many trees share one client, and nothing waits for the slowest."""
        builder = StateGraph(State, context_schema=Context, input_schema=Input, output_schema=Output)
        builder.add_node("search", self.search)
        builder.add_edge(START, "search")
        builder.add_edge("search", END)
        return builder


async def grow(root: Node[Path], problem: Solutions) -> None:
    """Descend one at a time, and note in each node how many tokens had been written when it joined the tree.

    The steps and rollouts of one expansion are written together; more than one simulation at a time would blur the count.
    Raises RoleError where no first step could be written, and where no judgement of one could be used.
    """
    context = problem.context
    limits = Limits(0, context.width, context.depth)
    search = MCTS(problem, PUCT(c_init=context.explore), limits)
    for _ in range(context.simulations + 1):  # none at first: the root's children
        before = problem.expansions
        await search.run(root)
        if problem.expansions == before:  # an end was visited again: nothing is new in the tree
            continue
        for node in walk(root):
            node.step.setdefault("spent", problem.written)
        if not any("tokens" in child.step for child in root.children):
            raise RoleError(str(root.children[0].error))
        if context.value == "judge" and (fault := _unjudged(root)):
            raise RoleError(fault)
        search.limits = replace(limits, simulations=1)
        spent = bool(context.budget) and problem.written >= context.budget
        if spent or not any(node.outcome == "open" and not problem.is_terminal(node) for node in walk(root)):
            return


def _unjudged(root: Node[Path]) -> str | None:
    """Why no first step that was judged has a value, if so: nothing comes after it."""
    judged = [child for child in root.children if child.state]
    return judged[0].error if judged and all(child.outcome == "failed" for child in judged) else None


async def finds_of(root: Node[Path]) -> list[Find]:
    """The tree's finished solutions in the order in which they were found."""
    ends = [node for node in walk(root) if "answer" in node.step and node.outcome != "failed"]
    ends.sort(key=lambda node: node.step["spent"])
    groups = await alike([node.step["answer"] for node in ends])
    return [
        Find(
            call=node.step["call"], right=node.step["right"], answer=node.step["answer"], how=node.step["how"],
            score=node.value, tokens=node.step["spent"], group=group,
        )
        for node, group in zip(ends, groups, strict=True)
    ]  # fmt: skip


builder = Maths().builder()
graph = builder.compile(name="maths")
