"""Stepwise maths: a search over the steps of a solution, and what it teaches.

The searches of agentsys/search with another evaluator: LongDPO's judge reads a text, here the answer is checked against
a reference. The pairs follow Step-DPO (Lai et al. 2024) or MCTS-DPO (Xie et al. 2024): graphs/maths/targets.py.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any, Literal

from langgraph.graph import StateGraph
from langgraph.runtime import Runtime

from agentsys.graphs.maths.problem import ROLLOUT, SolutionProblem, StepLimits
from agentsys.graphs.maths.solutions import Chosen, solution_targets
from agentsys.graphs.maths.solver import Path, Solver, SolverContext, join_steps
from agentsys.graphs.maths.state import Input, Output, Solution, State, question_of
from agentsys.graphs.maths.targets import mcts_pairs, no_pair_reason, step_pairs
from agentsys.metrics.maths import group_equal_answers
from agentsys.roles import RoleError
from agentsys.search import Node, SearchName, SearchSettings, grow_tree, process_rewards, tally, tree_to_json, walk
from agentsys.systems import System, knob, prompt_of, sequence_graph
from agentsys.traces import Target


@dataclass(frozen=True)
class Context(SolverContext):
    """Options of the search and of what is learned from it."""

    pairs: Literal["step", "mcts", "whole", "none"] = knob(
        "step", "pairs of steps as in Step-DPO (step) or in MCTS-DPO (mcts), or of whole solutions (whole)"
    )
    margin: float = knob(
        0.5,
        "least share of right solutions after the chosen step; with --pairs mcts, half the least difference in Q",
        highest_in_studio=1,
    )
    solutions: Chosen = knob("none", "right solutions for SFT: the best, the shortest, or the most different ones")
    solutions_kept: int = knob(4, "right solutions, and pairs of whole solutions, per question", highest_in_studio=64)
    process_rewards: bool = knob(False, "targets for a process reward model: the steps with their shares of right ones")
    search: SearchName = knob("mcts", "search of the tree")
    value: str = knob(
        ROLLOUT,
        "V of a step: rollout, the share of its rollouts with the right answer; judge; or prm:FOLDER or prm:URL, a "
        "process reward model",
        required=True,
    )
    rollouts: int = knob(4, "rollouts per step", highest_in_studio=16)
    simulations: int = knob(16, "mcts: simulations per question", old_name="descents", highest_in_studio=256)
    samples: int = knob(16, "other searches: solutions at a time", highest_in_studio=64)
    width: int = knob(4, "candidate steps per prefix", highest_in_studio=16)
    depth: int = knob(8, "maximum number of steps; the last one is the rest of the solution", highest_in_studio=32)
    step_tokens: int = knob(256, "token limit of a step; a truncated step ends its branch", highest_in_studio=32_768)
    explore: float = knob(1.0, "c_init of PUCT: weight of the prior against Q", highest_in_studio=1000)
    budget: int = knob(
        0,
        "stop after this many completion tokens per question; other searches than mcts begin again until then; 0: no "
        "limit",
        highest_in_studio=1_000_000,
    )
    stop_after: int = knob(
        0, "stop when all or none of this many finished solutions are right, rollouts included; 0: never",
        highest_in_studio=1_000,
    )  # fmt: skip
    difficulty_samples: int = knob(
        0, "solutions before the search, which only follows if the share of right ones is in the range; 0: none",
        highest_in_studio=64,
    )  # fmt: skip
    easiest: float = knob(0.9, "highest share of right solutions before the search", highest_in_studio=1)
    hardest: float = knob(0.1, "lowest share of right solutions before the search", highest_in_studio=1)

    def __post_init__(self) -> None:
        """Raises ValueError for an option of the wrong type or out of range."""
        super().__post_init__()
        self.at_least(
            solution_tokens=1, rollouts=1, simulations=1, width=1, depth=1, step_tokens=1, explore=0, budget=0,
            margin=0, samples=1, solutions_kept=1, stop_after=0, difficulty_samples=0, easiest=0, hardest=0,
        )  # fmt: skip
        self.at_most(margin=1, easiest=1, hardest=1)
        self.check_value(ROLLOUT, "judge")

    @property
    def search_settings(self) -> SearchSettings:
        """The search that the options name. Without a budget it ends by itself."""
        return SearchSettings(
            self.search, self.samples, self.width, self.depth, self.simulations, self.explore, self.budget > 0
        )

    @property
    def step_limits(self) -> StepLimits:
        """Sizes of the search problem."""
        return StepLimits(self.depth, self.step_tokens, self.rollouts, self.search == "uniform-cost")


@dataclass(frozen=True)
class Maths(System):
    """The search. `Maths(Solver(judge=Role(...)))` replaces a role."""

    solver: Solver = Solver()

    async def search(self, state: State, runtime: Runtime[Context]) -> dict[str, Any]:
        """The whole search of one question, inside one node. Raises ValueError for a record that cannot be used."""
        context, question = runtime.context, question_of(state)
        root: Node[Path] = Node.root(())
        problem = SolutionProblem(self.solver, question, context.expected_of(state), context, context.step_limits)
        dropped = await too_easy_or_hard(root, problem, context)
        if not dropped:
            await grow_tree(root, problem, context.search_settings, grown(root, problem, context))
        solutions = await finished_solutions(root)
        targets = [] if dropped else self.targets(root, question, context)
        best = max(solutions, key=lambda solution: solution["score"], default=None)
        last_node = next((node for node in walk(root) if best and node.step.get("call") == best["call"]), root)
        return {
            "question": question,
            "response": join_steps([step.text for step in last_node.state]),
            "answer": best["answer"] if best else "",
            "right": bool(best and best["right"]),
            "solutions": solutions,
            "dropped": dropped or (None if targets else _no_target_reason(root, context)),
            "tree": tree_to_json(root),
            "targets": [asdict(target) for target in targets],
        }

    def targets(self, root: Node[Path], question: str, context: Context) -> list[Target]:
        """What the options say is to be learned from a tree."""
        pairs: dict[str, Callable[[Node[Path], float], list[Target]]] = {"step": step_pairs, "mcts": mcts_pairs}
        targets = pairs[context.pairs](root, context.margin) if context.pairs in pairs else []
        messages = prompt_of(context, self.solver.solver).render({"question": question})
        targets += solution_targets(
            root, messages, context.solutions, context.solutions_kept, whole_pairs=context.pairs == "whole"
        )
        return targets + (process_rewards(root) if context.process_rewards else [])

    def builder(self) -> StateGraph[State, Context, Input, Output]:
        """One node: the whole search."""
        return sequence_graph(self.search, state=State, context=Context, input=Input, output=Output)


async def too_easy_or_hard(root: Node[Path], problem: SolutionProblem, context: Context) -> str | None:
    """Why a question is not searched: too many or too few of its first solutions are right. None if it is.

    The solutions are rollouts of the root. Raises ModelError if none could be written.
    """
    if not context.difficulty_samples:
        return None
    await problem.roll_out(root, context.difficulty_samples, "root")
    right, tried = tally(root)
    if right > context.easiest * tried:
        return "too easy: too many of its first solutions are right"
    return "too hard: too few of its first solutions are right" if right < context.hardest * tried else None


def grown(root: Node[Path], problem: SolutionProblem, context: Context) -> Callable[[], bool]:
    """What is done when the tree has grown: each new node gets the number of tokens written until then.

    Returns whether the search is to stop: the budget is spent, or the question is decided. Steps and rollouts of one
    expansion, and of one level, run in parallel, so their nodes have the same number. Raises RoleError if no first step
    could be written, and if none could be scored.
    """

    def record() -> bool:
        for node in walk(root):
            node.step.setdefault("spent", problem.tokens)
        if not any("tokens" in child.step for child in root.children):
            raise RoleError(str(root.children[0].error if root.children else root.error))
        if context.value != ROLLOUT and (error := _score_error(root)):
            raise RoleError(error)
        return (0 < context.budget <= problem.tokens) or _is_decided(root, context.stop_after)

    return record


def _is_decided(root: Node[Path], count: int) -> bool:
    """Whether at least `count` solutions have ended, and all or none of them are right. Never with a count of 0."""
    right, tried = tally(root) if count else (0, 0)
    return 0 < count <= tried and right in (0, tried)


def _score_error(root: Node[Path]) -> str | None:
    """The error of the judge or the reward model if none of the first steps got a value, else None."""
    scored = [child for child in root.children if child.state]
    return scored[0].error if scored and all(child.outcome == "failed" for child in scored) else None


def _no_target_reason(root: Node[Path], context: Context) -> str:
    if context.pairs in ("step", "mcts"):
        return f"no pair: {no_pair_reason(root, context.margin)}"
    right, tried = tally(root)
    if not tried:
        return "no solution came to its end"
    return "every solution is right" if right == tried else "no solution is right"


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
