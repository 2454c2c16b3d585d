"""Check DRT's evaluator against pairs of translations with a known order, as the paper does (200 sentences).

Each pair is scored by the evaluator, without a comment, and compared by the comparer in both orders.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NotRequired, TypeVar

from langgraph.graph import StateGraph
from langgraph.runtime import Runtime
from typing_extensions import TypedDict

from agentsys.graphs.drt.state import Comparison, Evaluation
from agentsys.graphs.drt.system import DRT, gather_answers
from agentsys.logprobs import expected_score
from agentsys.roles import Role, RoleError
from agentsys.systems import BaseContext, LanguagePair, System, ask, knob, role_options, sequence_graph
from agentsys.text.languages import language_name

T = TypeVar("T")


class Input(TypedDict):
    """Graph input: two translations of a text, the better one known; languages other than the context's."""

    text: str
    better: str
    worse: str
    source_language: NotRequired[str]
    target_language: NotRequired[str]


class Output(TypedDict):
    """Graph output; a method without a usable reply has no key, and its reason is in `unusable`.

    `stated` and `expected` are the scores of the better and of the worse translation; `pairwise` says for both orders
    whether the better one won.
    """

    stated: NotRequired[list[float]]
    expected: NotRequired[list[float | None]]
    pairwise: NotRequired[list[bool]]
    unusable: NotRequired[dict[str, str]]


class State(Input, Output):
    """The input and its results."""


@dataclass(frozen=True)
class EvaluatorCheck(System):
    """DRT's two evaluators, and the nodes that ask them."""

    evaluator: Role[Evaluation] = DRT.evaluator
    comparer: Role[Comparison] = DRT.comparer

    async def score(self, state: State, runtime: Runtime[Context]) -> dict[str, Any]:
        """The stated and the expected score of both translations. They have no comment: see docs/drt-evaluator.md."""
        context = runtime.context
        inputs = {"text": state["text"], "feedback": "", **_languages(state, context)}
        sides = {"better": state["better"], "worse": state["worse"]}
        try:
            answers = await gather_answers(
                ask(context, self.evaluator, key=f"evaluate/{side}", translation=translation, **inputs)
                for side, translation in sides.items()
            )
        except RoleError as err:
            return {"unusable": {"stated": str(err), "expected": str(err)}}
        stated = [float(answer.value.score) for answer in answers]
        expected = [
            await expected_score(context, self.evaluator, answer.call, score)
            for answer, score in zip(answers, stated, strict=True)
        ]
        rounded = [None if score is None else round(score, 1) for score in expected]
        return {"stated": stated, "expected": rounded, "unusable": {}}

    async def compare(self, state: State, runtime: Runtime[Context]) -> dict[str, Any]:
        """Whether the better translation wins, as the first and as the second."""
        context = runtime.context
        inputs = {"text": state["text"], **_languages(state, context)}
        orders = [(state["better"], state["worse"]), (state["worse"], state["better"])]
        try:
            answers = await gather_answers(
                ask(context, self.comparer, key=f"compare/{order}", first=first, second=second, **inputs)
                for order, (first, second) in enumerate(orders)
            )
        except RoleError as err:
            return {"unusable": {**state.get("unusable", {}), "pairwise": str(err)}}
        return {"pairwise": [answers[0].value.better == "first", answers[1].value.better == "second"]}

    def builder(self) -> StateGraph[State, Context, Input, Output]:
        """score -> compare."""
        return sequence_graph(self.score, self.compare, state=State, context=Context, input=Input, output=Output)


@dataclass(frozen=True)
@role_options(EvaluatorCheck)
class Context(BaseContext, LanguagePair):
    """Models, prompts and languages of a check."""

    source_language: str = knob("English", "language of the texts, where a pair names none", required=True)
    target_language: str = knob("Chinese", "language of the translations, where a pair names none", required=True)


def _languages(state: State, context: Context) -> dict[str, str]:
    """The languages of a pair, codes as names."""
    own = {name: language_name(str(state.get(name) or "")) for name in context.languages}
    return {name: own[name] or default for name, default in context.languages.items()}
