"""Stepwise maths: Monte Carlo tree search over the steps of a solution, and preference pairs of steps.

The search of agentsys/search with another evaluator: LongDPO's judge reads a text, here the answer is checked against
a reference. The pairs follow Step-DPO (Lai et al. 2024) or MCTS-DPO (Xie et al. 2024): graphs/maths/targets.py.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal

from langgraph.graph import StateGraph
from langgraph.runtime import Runtime

from agentsys.graphs.maths.solver import Completion, Path, Solver, SolverContext, Step, first_step, join_steps
from agentsys.graphs.maths.state import Input, Output, Solution, State, question_of
from agentsys.graphs.maths.targets import mcts_pairs, no_pair_reason, step_pairs, tally
from agentsys.metrics.maths import check_answer, group_equal_answers, reference_of
from agentsys.models.errors import ModelError
from agentsys.roles import RoleError
from agentsys.search import MCTS, PUCT, Child, Limits, Node, settled, tree_to_json, walk
from agentsys.systems import System, knob, sequence_graph


@dataclass(frozen=True)
class Context(SolverContext):
    """Options of the search and of its pairs."""

    pairs: Literal["step", "mcts"] = knob("step", "pairs as in Step-DPO (step) or in MCTS-DPO (mcts)")
    value: Literal["rollout", "judge"] = knob(
        "rollout", "V of a step: by the share of its rollouts with the right answer, or by the judge"
    )
    rollouts: int = knob(4, "rollouts per step", highest_in_studio=16)
    margin: float = knob(
        0.5,
        "least share of right solutions after the chosen step; with --pairs mcts, half the least difference in Q",
        highest_in_studio=1,
    )
    simulations: int = knob(16, "Monte Carlo simulations per question", old_name="descents", highest_in_studio=256)
    width: int = knob(4, "candidate steps per prefix", highest_in_studio=16)
    depth: int = knob(8, "maximum number of steps; the last one is the rest of the solution", highest_in_studio=32)
    step_tokens: int = knob(256, "token limit of a step; a truncated step ends its branch", highest_in_studio=32_768)
    explore: float = knob(1.0, "c_init of PUCT: weight of the prior against Q", highest_in_studio=1000)
    budget: int = knob(
        0,
        "start no simulation after this many completion tokens per question; 0: no limit",
        highest_in_studio=1_000_000,
    )

    def __post_init__(self) -> None:
        """Raises ValueError for an option of the wrong type or out of range."""
        super().__post_init__()
        self.at_least(
            solution_tokens=1, rollouts=1, simulations=1, width=1, depth=1, step_tokens=1, explore=0, budget=0, margin=0
        )
        self.at_most(margin=1)


@dataclass
class SolutionProblem:
    """The solutions of one question as a search problem: a node's state is s_1 .. s_t.

    `tokens` counts the completion tokens of all steps, rollouts and judgments, including duplicate steps that became
    one child and replies that could not be used.
    """

    solver: Solver
    question: str
    reference: str
    context: Context
    tokens: int = 0
    expansions: int = 0

    async def expand(self, node: Node[Path], n: int) -> Sequence[Child]:
        """n steps after the path's exact ids. A step whose call failed or that is truncated ends its branch."""
        self.expansions += 1
        keys = [f"{node.id}/{i}" for i in range(n)]
        is_last = node.depth + 1 >= self.context.depth
        prefix = (self.question, self.context, node.state)
        limit = None if is_last else self.context.step_tokens
        steps = await settled(*(self.solver.write_step(*prefix, key, limit) for key in keys))
        return [self._child(node, key, step) for key, step in zip(keys, steps, strict=True)]

    def _child(self, node: Node[Path], key: str, step: Step | ModelError) -> Child:
        self.tokens += step.tokens
        if isinstance(step, ModelError):
            return Child(None, step={"call": key}, error=step)
        record = {"call": key, "tokens": step.tokens}
        if step.truncated:
            error = RoleError(f"solver ({key}): step truncated at {step.tokens} tokens; raise step_tokens")
            return Child(None, step=record, error=error)
        return Child((*node.state, step), step=record, prior=step.prior)

    async def evaluate(self, nodes: Sequence[Node[Path]]) -> Sequence[float | ModelError]:
        """V in [-1, 1] of each step."""
        return await settled(*(self._value_of(node) for node in nodes))

    async def _value_of(self, node: Node[Path]) -> float:
        """A final step is worth 1 or -1 by its answer, another step the mean of its rollouts; or the judge's opinion.

        Verdicts are recorded in the node's step. With the judge they do not enter V: the pairs and measures use them.
        """
        text = join_steps([step.text for step in node.state])
        if self.is_terminal(node):
            node.step.update((await check_answer(text, self.reference))._asdict())
        if self.context.value == "judge":
            key = f"{node.state[-1].key}/judge"
            try:
                probability, tokens = await self.solver.judge_solution(self.question, self.context, text, key)
            except ModelError as err:
                self.tokens += err.tokens
                raise
            self.tokens += tokens
            return 2 * probability - 1
        if not self.is_terminal(node):
            await self._roll_out(node)
        right, tried = tally(node)
        return 2 * right / tried - 1

    async def _roll_out(self, node: Node[Path]) -> None:
        """Complete the solution several times from this step. Raises ModelError if no call succeeds."""
        prefix = (self.question, self.context, node.state)
        keys = [f"{node.state[-1].key}/rollout/{i}" for i in range(self.context.rollouts)]
        results = await settled(*(self.solver.complete(*prefix, key, self.reference) for key in keys))
        completions = [result for result in results if not isinstance(result, ModelError)]
        self.tokens += sum(result.tokens for result in results)
        if not completions:
            raise next(result for result in results if isinstance(result, ModelError))
        node.step["rollouts"] = [_rollout_to_json(one, len(node.state)) for one in completions]

    def is_terminal(self, node: Node[Path]) -> bool:
        """Whether the solution has ended."""
        return bool(node.state) and node.state[-1].final


def _rollout_to_json(completion: Completion, depth: int) -> dict[str, Any]:
    """A rollout of a node as a checked sibling of its children: its first step, whether it is the last, the verdict."""
    first = first_step(completion.rest, depth)
    sibling = {"call": completion.call, "first": first, "final": first == completion.rest}
    return {**sibling, **completion.verdict._asdict()}


@dataclass(frozen=True)
class Maths(System):
    """The search. `Maths(Solver(judge=Role(...)))` replaces a role."""

    solver: Solver = Solver()

    async def search(self, state: State, runtime: Runtime[Context]) -> dict[str, Any]:
        """The whole search of one question, inside one node. Raises ValueError for a record that cannot be used."""
        context, question = runtime.context, question_of(state)
        root: Node[Path] = Node.root(())
        await grow_tree(root, SolutionProblem(self.solver, question, reference_of(state), context))
        solutions = await finished_solutions(root)
        pairs = (step_pairs if context.pairs == "step" else mcts_pairs)(root, context.margin)
        best = max(solutions, key=lambda solution: solution["score"], default=None)
        last_node = next((node for node in walk(root) if best and node.step.get("call") == best["call"]), root)
        return {
            "question": question,
            "response": join_steps([step.text for step in last_node.state]),
            "answer": best["answer"] if best else "",
            "right": bool(best and best["right"]),
            "solutions": solutions,
            "dropped": None if pairs else f"no pair: {no_pair_reason(root, context.margin)}",
            "tree": tree_to_json(root),
            "targets": [asdict(pair) for pair in pairs],
        }

    def builder(self) -> StateGraph[State, Context, Input, Output]:
        """One node: the whole search."""
        return sequence_graph(self.search, state=State, context=Context, input=Input, output=Output)


async def grow_tree(root: Node[Path], problem: SolutionProblem) -> None:
    """Run one simulation after another; each node records how many tokens were written when it joined the tree.

    Steps and rollouts of one expansion run in parallel; parallel simulations would blur the token count. Raises
    RoleError if no first step could be written, and if none could be judged.
    """
    context = problem.context
    limits = Limits(0, context.width, context.depth)
    search = MCTS(problem, PUCT(c_init=context.explore), limits)
    for _ in range(context.simulations + 1):  # the first run only expands the root
        before = problem.expansions
        await search.run(root)
        if problem.expansions == before:  # a finished solution was visited again: the tree is unchanged
            continue
        for node in walk(root):
            node.step.setdefault("spent", problem.tokens)
        if not any("tokens" in child.step for child in root.children):
            raise RoleError(str(root.children[0].error))
        if context.value == "judge" and (error := _judge_error(root)):
            raise RoleError(error)
        search.limits = replace(limits, simulations=1)
        over_budget = bool(context.budget) and problem.tokens >= context.budget
        if over_budget or not any(node.outcome == "open" and not problem.is_terminal(node) for node in walk(root)):
            return


def _judge_error(root: Node[Path]) -> str | None:
    """The judge's error if none of the first steps got a value, else None."""
    judged = [child for child in root.children if child.state]
    return judged[0].error if judged and all(child.outcome == "failed" for child in judged) else None


async def finished_solutions(root: Node[Path]) -> list[Solution]:
    """The finished solutions of a tree in the order in which they were written."""
    ends = [node for node in walk(root) if "answer" in node.step and node.outcome != "failed"]
    ends.sort(key=lambda node: node.step["spent"])
    groups = await group_equal_answers([node.step["answer"] for node in ends])
    return [
        Solution(
            call=node.step["call"], right=node.step["right"], answer=node.step["answer"], how=node.step["how"],
            score=node.value, tokens=node.step["spent"], group=group,
        )
        for node, group in zip(ends, groups, strict=True)
    ]  # fmt: skip


builder = Maths().builder()
graph = builder.compile(name="maths")
