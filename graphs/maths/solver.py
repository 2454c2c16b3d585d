"""The roles of stepwise maths: a policy that writes solutions step by step, and a judge. Neither sees the reference.

A solution has numbered steps; "Step k" ends step k - 1. The ids of this "Step k" are part of the prefix that step k
continues; its text is in neither step.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

from agentsys.logprobs import opening_logprobs
from agentsys.metrics.maths import Verdict
from agentsys.metrics.verifiers import check_verifier, expected_of, verify
from agentsys.models.reward import is_reward_spec, load_reward_model
from agentsys.models.spec import served_to_browsers
from agentsys.roles import Role, RoleError, check_no_thought
from agentsys.systems import BaseContext, System, ask, knob, role_options
from agentsys.traces import Call


@dataclass(frozen=True, slots=True)
class Step:
    """s_(t+1); two steps with the same text and the same end are equal.

    `ids` are the engine's, without the end of the turn, but with the "Step k" that ended the step. A `truncated` step
    reached its token limit and cannot be continued.
    """

    text: str
    final: bool
    key: str = field(compare=False)
    ids: tuple[int, ...] = field(compare=False)
    truncated: bool = field(compare=False)
    prior: float = field(compare=False)
    tokens: int = field(compare=False)
    all_ids: tuple[int, ...] = field(compare=False, default=())
    """The ids of the prompt and of all steps up to this one."""


Path = tuple[Step, ...]


class Completion(NamedTuple):
    """A whole solution: the key of the call that ended it, its text, its verdict, and the tokens of that call.

    `rest` is the text of that call, the part of the solution after the steps that it continued. `ids` are those of the
    prompt and the solution, none without an engine that returns them.
    """

    call: str
    text: str
    rest: str
    ids: tuple[int, ...]
    verdict: Verdict
    tokens: int


def join_steps(texts: Sequence[str]) -> str:
    """The texts of s_1 .. s_t as one solution, with the "Step k" between them that no step's text holds."""
    whole = ""
    for number, text in enumerate(texts, 1):
        if number > 1:
            whole += ("" if whole[-1:].isspace() else " ") + f"Step {number}"
        whole += text
    return whole


def _all_ids(call: Call) -> tuple[int, ...]:
    """The ids of a call's prompt and reply without the end of the turn; none if the server returned none."""
    if call.ids is None or call.prompt_ids is None:
        return ()
    return (*call.prompt_ids, *call.ids[: len(call.ids) - call.stop_ids])


def step_ends(steps: int) -> list[str]:
    """The stop strings of the step after `steps` steps: "Step k", alone or after a space.

    A space before "Step" is one token with it: the text ends between two tokens either way.
    """
    name = f"Step {steps + 2}"
    return [f" {name}", name]


def first_step(text: str, steps: int) -> str:
    """The first step of a text that continues a solution of `steps` steps."""
    return text[: min((text.find(end) for end in step_ends(steps) if end in text), default=len(text))]


def prior(logprobs: Sequence[float] | None) -> float:
    """P of a step as in MCTS-DPO: exp(sum of log-probabilities / length^1.25); 1 without log-probabilities."""
    return math.exp(sum(logprobs) / len(logprobs) ** 1.25) if logprobs else 1.0


def check_yes_or_no(word: str, inputs: Mapping[str, Any]) -> str | None:
    """Return why a judgment is invalid, or None."""
    return None if word.casefold().startswith(("yes", "no")) else "reply with Yes or No"


@dataclass(frozen=True)
class Solver(System):
    """The two roles. `Solver(judge=Role(...))` replaces one."""

    solver: Role[str] = Role("maths/solver", allow_truncated=True, sampling={"temperature": 0.8, "top_p": 0.95})
    judge: Role[str] = Role(
        "maths/judge",
        allow_truncated=True,
        check=check_yes_or_no,
        sampling={"temperature": 0.0, "max_tokens": 1, "logprobs": 10},
    )

    async def write_step(self, question: str, context: SolverContext, path: Path, key: str, limit: int | None) -> Step:
        """One s_(t+1) of at most `limit` tokens after the exact ids of s_1 .. s_t; without a limit all the rest.

        Raises RoleError, ModelError.
        """
        limits: dict[str, Any] = {"max_tokens": context.solution_tokens}
        if limit is not None:
            limits = {"max_tokens": limit, "stop": step_ends(len(path))}
        call = await self._continue(self.solver, question, context, path, key, limits)
        if call.ids is None:
            raise RoleError(
                f"solver ({key}): {call.model} returns no token ids, so a step cannot be continued; use embedded, "
                "llama.cpp or vLLM"
            )
        check_no_thought(call)
        ids = tuple(call.ids[: len(call.ids) - call.stop_ids])
        truncated = call.finish == "length"
        final = not truncated and (limit is None or call.stop_ids > 0)
        return Step(call.text, final, key, ids, truncated, prior(call.logprobs), call.completion_tokens, _all_ids(call))

    async def complete(
        self, question: str, context: SolverContext, path: Path, key: str, expected: Any, role: Role[str] | None = None
    ) -> Completion:
        """A whole solution that begins with the steps of `path`; `expected` is the verifier's, which checks it.

        Raises RoleError, ModelError.
        """
        limits = {"max_tokens": context.solution_tokens}
        call = await self._continue(role or self.solver, question, context, path, key, limits)
        text = join_steps([*(step.text for step in path), call.text])
        # A truncated solution has no answer, whatever number it happens to end with.
        verdict = Verdict(False, "", "empty") if call.finish == "length" else await context.verify(text, expected)
        return Completion(key, text, call.text, _all_ids(call), verdict, call.completion_tokens)

    async def _continue(
        self, role: Role[str], question: str, context: SolverContext, path: Path, key: str, limits: Mapping[str, Any]
    ) -> Call:
        # One attempt: a reply to a reminder about an empty reply would not be a sibling of the others.
        role = replace(role, sampling={**role.sampling, **limits}, attempts=1)
        ids = [i for step in path for i in step.ids]
        return (await ask(context, role, key=key, continue_ids=ids, question=question)).call

    async def score(
        self, question: str, context: SolverContext, text: str, ids: Sequence[int], key: str
    ) -> tuple[float, int]:
        """V in [-1, 1] of a solution so far, by the judge or a process reward model, and the tokens written for it.

        Neither needs the reference. Raises RoleError, ModelError, SpecError.
        """
        if not is_reward_spec(context.value):
            probability, tokens = await self.judge_solution(question, context, text, key)
            return 2 * probability - 1, tokens
        if not ids:
            raise RoleError(f"solver ({key}): a process reward model reads token ids, which the server does not return")
        [probability] = await load_reward_model(context.value).score([ids])
        return 2 * probability - 1, 0

    async def judge_solution(self, question: str, context: SolverContext, text: str, key: str) -> tuple[float, int]:
        """P(Yes) / (P(Yes) + P(No)) of a solution so far, from the judge's first token, and the judge's tokens.

        1 or 0 if the server returns no log-probabilities. Raises RoleError.
        """
        answer = await ask(context, self.judge, key=key, question=question, solution=text)
        yes, no = await opening_logprobs(context, self.judge, answer.call, ("Yes", "No"))
        if yes is None and no is None:
            return float(answer.value.casefold().startswith("yes")), answer.call.completion_tokens
        probabilities = [0.0 if p is None else math.exp(p) for p in (yes, no)]
        return probabilities[0] / sum(probabilities), answer.call.completion_tokens


@dataclass(frozen=True)
@role_options(Solver)
class SolverContext(BaseContext):
    """Models and prompts of the solver's roles, the length of a solution, what scores it, and what checks it."""

    verifier: str = knob(
        "maths", "what checks an answer: maths, exact, contains, choice, code (runs the record's `tests`), or "
        "python:MODULE:FUNCTION", required=True,
    )  # fmt: skip
    unsafe_code: bool = knob(False, "run generated code also where there is no sandbox, with your rights and network")
    value: str = knob(
        "judge", "what scores a solution: judge, or prm:FOLDER or prm:URL, a process reward model", required=True
    )
    solution_tokens: int = knob(
        1024, "token limit of a solution or of its rest; a truncated one counts as wrong", highest_in_studio=131_072
    )

    def __post_init__(self) -> None:
        """Raises ValueError for an option of the wrong type, or a verifier that is unknown or not allowed."""
        super().__post_init__()
        check_verifier(self.verifier)
        if self.unsafe_code and served_to_browsers():
            raise ValueError("unsafe_code: in Studio, generated code is not run")

    def expected_of(self, record: Mapping[str, Any]) -> Any:
        """What the verifier compares an answer with. Raises ValueError for a record that lacks it."""
        return expected_of(self.verifier, record)

    async def verify(self, text: str, expected: Any) -> Verdict:
        """Check a solution."""
        return await verify(self.verifier, text, expected, unsafe_code=self.unsafe_code)

    def check_value(self, *names: str) -> None:
        """Raises ValueError unless `value` is one of these or a process reward model."""
        if self.value not in names and not is_reward_spec(self.value):
            raise ValueError(f"value: '{self.value}' is none of {', '.join(names)}, prm:FOLDER and prm:URL")
