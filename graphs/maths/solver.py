"""The roles of stepwise maths: a policy that writes solutions step by step, and a judge. Neither sees the answer.

A solution is written in numbered steps; "Step k" ends step k - 1. Its tokens, which the engine wrote, stay in the ids
that the next step continues, and are in neither step's text.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

from agentsys.logprobs import opening_logprobs
from agentsys.metrics.maths import Verdict, check
from agentsys.roles import Role, RoleError
from agentsys.systems import BaseContext, System, ask, knob, role_options
from agentsys.traces import Call


@dataclass(frozen=True, slots=True)
class Step:
    """s_(t+1) as it was written; two with the same text and end are one step.

    `ids` are the engine's, without the end of the turn, but with the "Step k" that ended the step. From one that the
    token limit has `cut` nothing goes on.
    """

    text: str
    final: bool
    key: str = field(compare=False)
    ids: tuple[int, ...] = field(compare=False)
    cut: bool = field(compare=False)
    prior: float = field(compare=False)
    tokens: int = field(compare=False)


Path = tuple[Step, ...]


class Solved(NamedTuple):
    """A solution to its end: the call that ended it, the whole text, the verdict, and the tokens of that call."""

    call: str
    text: str
    verdict: Verdict
    tokens: int


def solution(steps: Sequence[str]) -> str:
    """The texts s_1 .. s_t as one, with the "Step k" between them that no text holds."""
    whole = ""
    for number, text in enumerate(steps, 1):
        if number > 1:
            whole += ("" if whole[-1:].isspace() else " ") + f"Step {number}"
        whole += text
    return whole


def prior(logprobs: Sequence[float] | None) -> float:
    """P of a step: exp(sum of log-probabilities / length^1.25), as MCTS-DPO has it; 1 where none are told."""
    return math.exp(sum(logprobs) / len(logprobs) ** 1.25) if logprobs else 1.0


def yes_or_no(word: str, inputs: Mapping[str, Any]) -> str | None:
    """What is wrong with a judgement."""
    return None if word.casefold().startswith(("yes", "no")) else "reply with Yes or No"


@dataclass(frozen=True)
class Solver(System):
    """The roles. `Solver(judge=Role(...))` replaces one."""

    solver: Role[str] = Role("maths/solver", allow_truncated=True, sampling={"temperature": 0.8, "top_p": 0.95})
    judge: Role[str] = Role(
        "maths/judge",
        allow_truncated=True,
        check=yes_or_no,
        sampling={"temperature": 0.0, "max_tokens": 1, "logprobs": 10},
    )

    async def step(self, question: str, context: Solving, path: Path, key: str, limit: int | None) -> Step:
        """One s_(t+1) of at most so many tokens after the very ids of s_1 .. s_t. Without a limit it is all the rest.

        Raises RoleError, ModelError.
        """
        limits: dict[str, Any] = {"max_tokens": context.solution_tokens}
        if limit is not None:  # a space before "Step" is one token with it: the text ends between two tokens either way
            after = f"Step {len(path) + 2}"
            limits = {"max_tokens": limit, "stop": [f" {after}", after]}
        written = await self._written(self.solver, question, context, path, key, limits)
        if written.ids is None:
            raise RoleError(f"solver ({key}): {written.model} tells no token ids, and only they can be continued")
        kept = tuple(written.ids[: len(written.ids) - written.stop_ids])
        cut = written.finish == "length"
        final = not cut and (limit is None or written.stop_ids > 0)
        return Step(written.text, final, key, kept, cut, prior(written.logprobs), written.completion_tokens)

    async def rest(
        self, question: str, context: Solving, path: Path, key: str, reference: str, role: Role[str] | None = None
    ) -> Solved:
        """A whole solution that begins with the steps of `path`. Raises RoleError, ModelError."""
        limits = {"max_tokens": context.solution_tokens}
        call = await self._written(role or self.solver, question, context, path, key, limits)
        text = solution([*(step.text for step in path), call.text])
        # What the limit cut off has no answer, whatever number it happens to end with.
        verdict = Verdict(False, "", "empty") if call.finish == "length" else await check(text, reference)
        return Solved(key, text, verdict, call.completion_tokens)

    async def _written(
        self, role: Role[str], question: str, context: Solving, path: Path, key: str, limits: Mapping[str, Any]
    ) -> Call:
        # Asked once: what came after a reminder of an empty reply would be no sibling of the others.
        role = replace(role, sampling={**role.sampling, **limits}, attempts=1)
        ids = [i for step in path for i in step.ids]
        return (await ask(context, role, key=key, continue_ids=ids, question=question)).call

    async def belief(self, question: str, context: Any, text: str, key: str) -> tuple[float, int]:
        """P(Yes) / (P(Yes) + P(No)) of a solution so far, from the judge's first token, and the tokens it wrote.

        1 or 0 where the server tells no log-probabilities. Raises RoleError.
        """
        answer = await ask(context, self.judge, key=key, question=question, solution=text)
        yes, no = await opening_logprobs(context, self.judge, answer.call, ("Yes", "No"))
        if yes is None and no is None:
            return float(answer.value.casefold().startswith("yes")), answer.call.completion_tokens
        chances = [0.0 if p is None else math.exp(p) for p in (yes, no)]
        return chances[0] / sum(chances), answer.call.completion_tokens


@dataclass(frozen=True)
@role_options(Solver)
class Solving(BaseContext):
    """The models and prompts of those who write and judge solutions."""

    solution_tokens: int = knob(1024, "tokens of a solution or of its rest; one that is cut off there counts as wrong")
