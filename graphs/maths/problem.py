"""The solutions of a question as a search problem: steps that a policy writes, and what they are worth."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from agentsys.graphs.maths.solver import Completion, Path, Solver, SolverContext, Step, first_step, join_steps
from agentsys.models.errors import ModelError
from agentsys.roles import RoleError
from agentsys.search import Child, Node, settled, tally

ROLLOUT: Final = "rollout"


@dataclass(frozen=True)
class StepLimits:
    """Sizes of the search problem: the greatest number of steps, tokens of a step, rollouts of a step."""

    depth: int
    step_tokens: int
    rollouts: int
    costs: bool = False
    """Whether a step has a cost, -log of its prior, for uniform-cost search."""


@dataclass
class SolutionProblem:
    """The solutions of one question: a node's state is s_1 .. s_t.

    `tokens` counts the completion tokens of all steps, rollouts and judgments, including duplicate steps that became
    one child and replies that could not be used.
    """

    solver: Solver
    question: str
    expected: Any
    """What the verifier compares answers with."""
    context: SolverContext
    limits: StepLimits
    tokens: int = 0
    _written: dict[str, int] = field(default_factory=dict)
    """How many steps were requested from each node."""

    async def expand(self, node: Node[Path], n: int) -> Sequence[Child]:
        """n steps after the path's exact ids. A step whose call failed or that is truncated ends its branch."""
        first = self._written.get(node.id, 0)
        self._written[node.id] = first + n
        keys = [f"{node.id}/{i}" for i in range(first, first + n)]
        is_last = node.depth + 1 >= self.limits.depth
        prefix = (self.question, self.context, node.state)
        limit = None if is_last else self.limits.step_tokens
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
        cost = -math.log(max(step.prior, 1e-300)) if self.limits.costs else 0.0
        return Child((*node.state, step), cost, record, prior=step.prior)

    async def evaluate(self, nodes: Sequence[Node[Path]]) -> Sequence[float | ModelError]:
        """V in [-1, 1] of each step."""
        return await settled(*(self._value_of(node) for node in nodes))

    async def _value_of(self, node: Node[Path]) -> float:
        """A final step is worth 1 or -1 by its answer, another step the mean of its rollouts; or what scores it.

        Verdicts are recorded in the node's step. With a judge or a process reward model they do not enter V: the pairs
        and measures use them.
        """
        text = join_steps([step.text for step in node.state])
        last = node.state[-1]
        if self.is_terminal(node):
            node.step.update((await self.context.verify(text, self.expected))._asdict())
        if self.context.value != ROLLOUT:
            try:
                value, tokens = await self.solver.score(
                    self.question, self.context, text, last.all_ids, f"{last.key}/judge"
                )
            except ModelError as err:
                self.tokens += err.tokens
                raise
            self.tokens += tokens
            return value
        if not self.is_terminal(node):
            await self.roll_out(node, self.limits.rollouts, last.key)
        right, tried = tally(node)
        return 2 * right / tried - 1

    async def roll_out(self, node: Node[Path], count: int, key: str) -> None:
        """Complete the solution several times from this step. Raises ModelError if no call succeeds."""
        prefix = (self.question, self.context, node.state)
        keys = [f"{key}/rollout/{i}" for i in range(count)]
        results = await settled(*(self.solver.complete(*prefix, key, self.expected) for key in keys))
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
    sibling = {"call": completion.call, "first": first, "final": first == completion.rest, "rest": completion.rest}
    return {**sibling, **completion.verdict._asdict()}
