"""Translate and judge: one translation of a text, and its scores by a judge model.

The judge's scores are those of DRT (Wang et al., Findings of ACL 2025, appendix C), from 0 to 100: GRF and GRB are
direct assessments without and with a reference, GEA is the rubric of DRT's evaluator.

graphs/translate_evaluate.py runs a test set through this graph.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import Annotated, Any, Final, Literal, NotRequired

from langgraph.graph import StateGraph
from langgraph.runtime import Runtime
from pydantic import BaseModel, Field
from typing_extensions import TypedDict

from agentsys.graphs.drt.state import Evaluation
from agentsys.models import EndpointDown, ModelError
from agentsys.roles import Role
from agentsys.systems import BaseContext, LanguagePair, System, ask, knob, role_options, sequence_graph

DECODING: Final = {"temperature": 0.1, "repetition_penalty": 1.05, "max_tokens": 2048}
"""The inference settings of DRT's paper (section 3.1); the token limit is that of its published example."""


class NoTranslation(ModelError):
    """A reply without a translation: the record has failed."""


class Assessment(BaseModel):
    """The reply of a direct assessment."""

    score: Annotated[int, Field(ge=0, le=100)]


class Input(TypedDict):
    """Graph input. An existing `translation` is judged, not written again; GRB needs a `reference`."""

    text: str
    reference: NotRequired[str]
    translation: NotRequired[str]


class Result(TypedDict):
    """The results of the nodes: the form of the reply, the scores, and why one is missing."""

    well_formed: NotRequired[bool]
    scores: NotRequired[dict[str, float]]
    unscored: NotRequired[dict[str, str]]


class State(Input, Result):
    """The input and its results."""


class Output(Result):
    """Graph output."""

    text: str
    translation: NotRequired[str]


def parse_thought(reply: str) -> tuple[str, bool]:
    """The translation in a reply of the form <thought>...</thought><output>...</output>, and whether it has that form.

    If tags are missing, the translation is the text in (or after) <output>, else the text after the thought, else the
    whole reply if it has no tags. A thought without an end has no translation: "".
    """
    thought, ended, rest = reply.rpartition("</thought>")
    _, opened, output = rest.partition("<output>")
    if not opened and not ended and "<thought>" in rest:
        return "", False
    translation, closed, _ = (output if opened else rest).partition("</output>")
    return translation.strip(), all((ended, opened, closed)) and thought.lstrip().startswith("<thought>")


@dataclass(frozen=True)
class Translate(System):
    """The roles and nodes. A translator's truncated reply is accepted."""

    translator: Role[str] = Role("translate/translator", sampling=DECODING, allow_truncated=True)
    student: Role[str] = Role("drt/student", sampling=DECODING, allow_truncated=True)
    grf: Role[Assessment] = Role("translate/grf", Assessment, sampling={"temperature": 0.0, "max_tokens": 50})
    grb: Role[Assessment] = Role("translate/grb", Assessment, sampling={"temperature": 0.0, "max_tokens": 50})
    gea: Role[Evaluation] = Role("translate/gea", Evaluation, sampling={"temperature": 0.0, "max_tokens": 200})

    async def translate(self, state: State, runtime: Runtime[Context]) -> dict[str, Any]:
        """One translation, unless the input has one. Raises NoTranslation."""
        context = runtime.context
        if state.get("translation"):
            return {}
        if context.style == "plain":
            plain = await ask(context, self.translator, key="translate", text=state["text"], **context.languages)
            return {"translation": plain.value}
        answer = await ask(context, self.student, key="translate", text=state["text"], **context.languages)
        thought = f"<thought>{answer.call.reasoning}</thought>" if answer.call.reasoning else ""
        translation, well_formed = parse_thought(thought + answer.value)
        if not translation:
            raise NoTranslation(f"no translation in the reply of {answer.call.completion_tokens} tokens")
        return {"translation": translation} | ({"well_formed": well_formed} if context.style == "thought" else {})

    async def judge(self, state: State, runtime: Runtime[Context]) -> dict[str, Any]:
        """GRF, GEA and, with a reference, GRB. If a judge fails, only its score is missing."""
        context = runtime.context
        if not context.judge:
            return {}
        judges: list[Role[Any]] = [self.grf, self.gea, *([self.grb] if state.get("reference") else [])]
        scores = await asyncio.gather(*(self._score(judge, state, context) for judge in judges))
        by_name = [(judge.name.upper(), value) for judge, value in zip(judges, scores, strict=True)]
        return {
            "scores": {name: value for name, value in by_name if isinstance(value, float)},
            "unscored": {name: value for name, value in by_name if isinstance(value, str)},
        }

    async def _score(self, judge: Role[Any], state: State, context: Context) -> float | str:
        """The score, or the reason why there is none."""
        inputs = {name: state.get(name, "") for name in ("text", "reference", "translation")}
        try:
            answer = await ask(context, judge, key=f"judge/{judge.name}", **inputs, **context.languages)
        except EndpointDown:
            raise
        except ModelError as err:
            return str(err)
        return float(answer.value.score)

    def builder(self) -> StateGraph[State, Context, Input, Output]:
        """translate -> judge."""
        return sequence_graph(self.translate, self.judge, state=State, context=Context, input=Input, output=Output)


@dataclass(frozen=True)
@role_options(Translate)
class Context(BaseContext, LanguagePair):
    """Models, prompts and options of a run."""

    model: str = knob("embedded", "model spec of the translator, and of every judge without its own", required=True)
    style: Literal["plain", "thought", "direct"] = knob(
        "plain", "a plain translation; DRT's chat format with <thought> and <output>, or with the translation alone"
    )
    judge: bool = knob(True, "whether to ask the judges")
    source_language: str = knob("English", "language of the texts", required=True)
    target_language: str = knob("Chinese", "language of the translations", required=True)
    data: str = knob("", "names the texts of a run, so that it is not resumed with other texts; empty: any")


builder = Translate().builder()
graph = builder.compile(name="translate")
