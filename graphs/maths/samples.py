"""Independent solutions of a question: the baselines that tree search is compared with.

One greedy solution, or several sampled ones, each with the score of the judge or of a process reward model, so that one
run gives accuracy, majority vote, pass@k and best-of-n for any number of tokens.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, Final

from langgraph.graph import StateGraph
from langgraph.runtime import Runtime

from agentsys.graphs.maths.solver import Solver, SolverContext
from agentsys.graphs.maths.state import Input, Output, Solution, State, question_of
from agentsys.metrics.maths import group_equal_answers
from agentsys.roles import RoleError
from agentsys.search import settled
from agentsys.systems import System, knob, sequence_graph

ROUNDS: Final = 16
"""Sampling stops after this many times `samples` solutions, for models that write almost nothing."""


@dataclass(frozen=True)
class SamplesContext(SolverContext):
    """How many solutions, and how they are sampled."""

    greedy: bool = knob(False, "one solution at temperature 0, not judged")
    samples: int = knob(8, "minimum number of solutions", highest_in_studio=64)
    budget: int = knob(
        0,
        "sample until this many completion tokens are written, judgments included; 0: stop at `samples`",
        highest_in_studio=1_000_000,
    )

    def __post_init__(self) -> None:
        """Raises ValueError for an option of the wrong type or out of range."""
        super().__post_init__()
        self.at_least(solution_tokens=1, samples=1, budget=0)
        self.check_value("judge")
        if self.greedy and (self.samples > 1 or self.budget):
            raise ValueError("greedy: decoding gives a single solution; set samples to 1 and budget to 0")


@dataclass(frozen=True)
class Samples(System):
    """The baselines. `Samples(Solver(judge=Role(...)))` replaces a role."""

    solver: Solver = Solver()

    async def sample(self, state: State, runtime: Runtime[SamplesContext]) -> dict[str, Any]:
        """Solutions in the order of their numbers; the `tokens` of each include those before it.

        Raises ValueError, and RoleError if no solution could be judged: best-of-n would be arbitrary.
        """
        context, question, expected = runtime.context, question_of(state), runtime.context.expected_of(state)
        solutions: list[Solution] = []
        errors: list[RoleError] = []
        tokens = 0
        while len(solutions) < context.samples or (
            tokens < context.budget and len(solutions) < ROUNDS * context.samples
        ):
            batch = range(len(solutions), len(solutions) + _batch_size(context, len(solutions), tokens))
            work = (self._sample_one(question, expected, context, f"sample/{i}") for i in batch)
            for result in await settled(*work):
                if isinstance(result, Exception):
                    raise result
                solution, error = result
                errors += [error] if error else []
                tokens += solution["tokens"]
                solutions.append({**solution, "tokens": tokens})
        if errors and len(errors) == sum(solution["how"] != "empty" for solution in solutions):
            raise errors[0]
        groups = await group_equal_answers([solution["answer"] for solution in solutions])
        return {
            "question": question,
            "solutions": [{**solution, "group": group} for solution, group in zip(solutions, groups, strict=True)],
        }

    async def _sample_one(
        self, question: str, expected: Any, context: SamplesContext, key: str
    ) -> tuple[Solution, RoleError | None]:
        """A solution with its verdict and score, and the error if its judgment failed.

        An empty solution is wrong; one without a judgment has the lowest score. A truncated one is not judged: it has
        no answer to choose, and tree search could not finish it either.
        """
        role = self.solver.solver
        role = replace(role, sampling={"temperature": 0.0}) if context.greedy else role
        solution = Solution(call=key, right=False, answer="", how="empty", score=-1.0, tokens=0, group=-1)
        try:
            completion = await self.solver.complete(question, context, (), key, expected, role)
        except RoleError as err:
            return {**solution, "tokens": err.tokens}, None
        right, answer, how = completion.verdict
        solution = {**solution, "right": right, "answer": answer, "how": how, "tokens": completion.tokens}
        if context.greedy or how == "empty":
            return solution, None
        try:
            score, tokens = await self.solver.score(question, context, completion.text, completion.ids, f"{key}/judge")
        except RoleError as err:
            return {**solution, "tokens": completion.tokens + err.tokens}, err
        return {**solution, "score": score, "tokens": completion.tokens + tokens}, None

    def builder(self) -> StateGraph[State, SamplesContext, Input, Output]:
        """One node: all solutions of a question."""
        return sequence_graph(self.sample, state=State, context=SamplesContext, input=Input, output=Output)


def _batch_size(context: SamplesContext, count: int, tokens: int) -> int:
    """How many solutions to sample in parallel: `samples` at first, then as many as should use up the budget."""
    if count < context.samples:
        return context.samples
    tokens_each = max(1, tokens // count)
    return max(1, min(context.samples, (context.budget - tokens) // tokens_each))


builder = Samples().builder()
graph = builder.compile(name="maths_samples")
