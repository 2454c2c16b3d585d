"""Three further judges of translations: error spans with severities, preference against a baseline, whole documents.

- *Error spans*: the judge lists the errors of one translation, as GEMBA-MQM does (Kocmi and Federmann, 2023,
  "GEMBA-MQM: Detecting Translation Quality Error Spans with GPT-4"). The score is MQM's: `mqm_score`.
- *Preference*: the judge compares a translation with the baseline's in both orders, so that a preference for the first
  or the second place cancels out.
- *Document*: the judge sees all sentences of a document with their translations, and scores them from 0 to 100.

The judges of single translations (GRF, GRB, GEA) are in system.py; judging.py runs all of them. Studio does not serve
this graph, whose inputs are finished translations of several systems.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Final, Literal, NotRequired

from langgraph.graph import StateGraph
from langgraph.runtime import Runtime
from pydantic import BaseModel, Field
from typing_extensions import TypedDict

from agentsys.models import EndpointDown, ModelError
from agentsys.roles import Role
from agentsys.systems import BaseContext, LanguagePair, System, ask, knob, role_options, sequence_graph

Severity = Literal["critical", "major", "minor", "no"]
Category = Literal[
    "accuracy/addition",
    "accuracy/mistranslation",
    "accuracy/omission",
    "accuracy/untranslated text",
    "fluency/grammar",
    "fluency/inconsistency",
    "fluency/punctuation",
    "fluency/register",
    "fluency/spelling",
    "locale convention",
    "style/awkward",
    "terminology/inappropriate",
    "terminology/inconsistent",
    "non-translation",
    "other",
]
"""The error types of MQM that GEMBA-MQM names."""

WEIGHTS: Final[dict[Severity, int]] = {"critical": 25, "major": 5, "minor": 1, "no": 0}
"""The penalty of an error (Freitag et al., 2021, "Experts, Errors, and Context"; a critical one as in GEMBA-MQM)."""
MAX_PENALTY: Final = 25
COUNTED_ERRORS: Final = 5
"""GEMBA-MQM counts the five worst errors of a segment, and a penalty of 25 at most."""


class Error(TypedDict):
    """An error of a translation, as a run's result and translations.jsonl have it."""

    span: str
    category: Category
    severity: Severity


class ErrorSpan(BaseModel):
    """One error in the reply of the judge `mqm`."""

    span: Annotated[str, Field(description="the words with the error, copied; for an omission from the source")]
    category: Category
    severity: Severity


class ErrorSpans(BaseModel):
    """The reply of the judge `mqm`: an empty list for a translation without errors."""

    errors: list[ErrorSpan]


class Preference(BaseModel):
    """The reply of the judge `preference`, the reason before the verdict."""

    reason: str
    better: Literal["first", "second", "equal"]


class DocumentAssessment(BaseModel):
    """The reply of the judge `document`, the reason before the score."""

    reason: str
    score: Annotated[int, Field(ge=0, le=100)]


class SentencePair(TypedDict):
    """A sentence of a document and its translation."""

    source: str
    translation: str


class Input(TypedDict):
    """Graph input: a text and its translation, with the baseline's for a preference; or the sentences of a document."""

    text: NotRequired[str]
    translation: NotRequired[str]
    baseline: NotRequired[str]
    sentences: NotRequired[list[SentencePair]]


class Output(TypedDict):
    """Graph output. `preference` is 1 for the translation, 0 for the baseline's, 0.5 for neither.

    `unscored` is why there is no result.
    """

    errors: NotRequired[list[Error]]
    verdicts: NotRequired[list[str]]
    preference: NotRequired[float]
    score: NotRequired[float]
    unscored: NotRequired[str]


class State(Input, Output):
    """The input and the result."""


def mqm_score(errors: Sequence[Error]) -> float:
    """The MQM score of a translation, from -25 to 0: minus the penalties of its five worst errors.

    A non-translation is critical, whatever the judge says of its severity.
    """
    penalties = sorted(map(_penalty, errors), reverse=True)
    return 0.0 - min(sum(penalties[:COUNTED_ERRORS]), MAX_PENALTY)


def _penalty(error: Error) -> int:
    return WEIGHTS["critical" if error["category"] == "non-translation" else error["severity"]]


_GREEDY: Final = {"temperature": 0.0}


@dataclass(frozen=True)
class Judges(System):
    """The judges' roles, and the node that asks the one of the run's `task`."""

    mqm: Role[ErrorSpans] = Role("translate/mqm", ErrorSpans, sampling={**_GREEDY, "max_tokens": 1000})
    preference: Role[Preference] = Role("translate/preference", Preference, sampling={**_GREEDY, "max_tokens": 200})
    document: Role[DocumentAssessment] = Role(
        "translate/document", DocumentAssessment, sampling={**_GREEDY, "max_tokens": 300}
    )

    async def judge(self, state: State, runtime: Runtime[JudgeContext]) -> dict[str, Any]:
        """The result of one judge; if it fails, the reason in `unscored`."""
        context = runtime.context
        task = {"mqm": self._list_errors, "preference": self._compare, "document": self._score_document}[context.task]
        try:
            return await task(state, context)
        except EndpointDown:
            raise
        except ModelError as err:
            return {"unscored": str(err)}

    async def _list_errors(self, state: State, context: JudgeContext) -> dict[str, Any]:
        inputs = {"text": state["text"], "translation": state["translation"]}
        answer = await ask(context, self.mqm, key="errors", **inputs, **context.languages)
        return {"errors": [error.model_dump() for error in answer.value.errors]}

    async def _compare(self, state: State, context: JudgeContext) -> dict[str, Any]:
        """Both orders. The preference is the mean of the two verdicts, rounded to a win, a loss or a tie."""
        rivals = [state["baseline"], state["translation"]]

        async def verdict(order: int) -> str:
            first, second = rivals if order == 0 else reversed(rivals)
            inputs = {"text": state["text"], "first": first, "second": second}
            answer = await ask(context, self.preference, key=f"compare/{order}", **inputs, **context.languages)
            return answer.value.better

        verdicts = list(await asyncio.gather(verdict(0), verdict(1)))
        points = {"equal": 0, "first": -1, "second": 1}
        total = points[verdicts[0]] - points[verdicts[1]]
        return {"verdicts": verdicts, "preference": 1.0 if total > 0 else 0.0 if total < 0 else 0.5}

    async def _score_document(self, state: State, context: JudgeContext) -> dict[str, Any]:
        answer = await ask(context, self.document, key="document", sentences=state["sentences"], **context.languages)
        return {"score": float(answer.value.score)}

    def builder(self) -> StateGraph[State, JudgeContext, Input, Output]:
        """Return the graph of one node."""
        return sequence_graph(self.judge, state=State, context=JudgeContext, input=Input, output=Output)


@dataclass(frozen=True)
@role_options(Judges)
class JudgeContext(BaseContext, LanguagePair):
    """Options of a run of one judge."""

    task: Literal["mqm", "preference", "document"] = knob("mqm", "which judge is asked")
    model: str = knob("embedded", "model spec of the judge", required=True)
    source_language: str = knob("English", "language of the texts", required=True)
    target_language: str = knob("Chinese", "language of the translations", required=True)
    data: str = knob("", "names the translations of a run, so that it is not resumed with others; empty: any")


builder = Judges().builder()
