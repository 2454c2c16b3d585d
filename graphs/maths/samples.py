"""Solutions of a question that are written independently of each other: what tree search is compared with.

One greedy solution, or several sampled ones, each with the judge's score, so that one run gives accuracy, majority
vote, pass@k and best-of-n at any number of tokens.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, Final

from langgraph.graph import END, START, StateGraph
from langgraph.runtime import Runtime

from agentsys.graphs.maths.search import Find, Input, Output, State, question_of
from agentsys.graphs.maths.solver import Solver, Solving
from agentsys.metrics.maths import alike, reference_of
from agentsys.roles import RoleError
from agentsys.search import settled
from agentsys.systems import System, knob

ROUNDS: Final = 16
"""Times `samples` after which a token budget is given up: for a model that writes next to nothing."""


@dataclass(frozen=True)
class SamplesContext(Solving):
    """How many solutions, and how."""

    greedy: bool = knob(False, "one solution at temperature 0, not judged")
    samples: int = knob(8, "solutions at least")
    budget: int = knob(0, "go on until so many tokens are written, judgements included; 0: no more than `samples`")

    def __post_init__(self) -> None:
        """Raises ValueError for a knob of the wrong type or out of range."""
        super().__post_init__()
        self.at_least(solution_tokens=1, samples=1, budget=0)
        if self.greedy and (self.samples > 1 or self.budget):
            raise ValueError("greedy: one solution is all there is; leave samples at 1 and budget at 0")


@dataclass(frozen=True)
class Samples(System):
    """`Samples(Solver(judge=Role(...)))` replaces a role."""

    roles: Solver = Solver()

    async def sample(self, state: State, runtime: Runtime[SamplesContext]) -> dict[str, Any]:
        """Solutions in the order of their numbers; `tokens` of each counts those before it.

        Raises ValueError, and RoleError where no judgement could be used: none of the solutions would be the best one.
        """
        context, question, reference = runtime.context, question_of(state), reference_of(state)
        finds: list[Find] = []
        faults: list[RoleError] = []
        spent = 0
        while len(finds) < context.samples or (spent < context.budget and len(finds) < ROUNDS * context.samples):
            keys = [f"sample/{len(finds) + i}" for i in range(self._due(context, len(finds), spent))]
            for found in await settled(*(self._one(question, reference, context, key) for key in keys)):
                if isinstance(found, Exception):
                    raise found
                find, fault = found
                faults += [fault] if fault else []
                spent += find["tokens"]
                finds.append({**find, "tokens": spent})
        if faults and len(faults) == sum(find["how"] != "empty" for find in finds):
            raise faults[0]
        groups = await alike([find["answer"] for find in finds])
        return {
            "question": question,
            "finds": [{**find, "group": group} for find, group in zip(finds, groups, strict=True)],
        }

    def _due(self, context: SamplesContext, there: int, spent: int) -> int:
        """How many are written at once: `samples`, and for the rest of a budget as many as should fill it."""
        if there < context.samples:
            return context.samples
        each = max(1, spent // there)
        return max(1, min(context.samples, (context.budget - spent) // each))

    async def _one(
        self, question: str, reference: str, context: SamplesContext, key: str
    ) -> tuple[Find, RoleError | None]:
        """A solution with its verdict and score, and why there is no judgement where one was asked for.

        An empty one is wrong, one without a judgement is the last.
        One that was cut off is not judged: it has no answer to choose, and no end that tree search could reach.
        """
        role = replace(self.roles.solver, sampling={"temperature": 0.0}) if context.greedy else self.roles.solver
        find = Find(call=key, right=False, answer="", how="empty", score=-1.0, tokens=0, group=-1)
        try:
            solved = await self.roles.rest(question, context, (), key, reference, role)
        except RoleError as err:
            return {**find, "tokens": err.tokens}, None
        right, answer, how = solved.verdict
        find = {**find, "right": right, "answer": answer, "how": how, "tokens": solved.tokens}
        if context.greedy or how == "empty":
            return find, None
        try:
            chance, tokens = await self.roles.belief(question, context, solved.text, f"{key}/judge")
        except RoleError as err:
            return {**find, "tokens": solved.tokens + err.tokens}, err
        return {**find, "score": 2 * chance - 1, "tokens": solved.tokens + tokens}, None

    def builder(self) -> StateGraph[State, SamplesContext, Input, Output]:
        """One node."""
        builder = StateGraph(State, context_schema=SamplesContext, input_schema=Input, output_schema=Output)
        builder.add_node("sample", self.sample)
        builder.add_edge(START, "sample")
        builder.add_edge("sample", END)
        return builder


builder = Samples().builder()
graph = builder.compile(name="maths_samples")
