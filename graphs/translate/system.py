"""Translate and judge: one translation of a text, and what a judge model makes of it.

The judge's scores are those of DRT (Wang et al., Findings of ACL 2025, appendix C), from 0 to 100: GRF and GRB are
direct assessments without and with a reference, GEA is the rubric of DRT's evaluator.

graphs/translate_evaluate.py and graphs/drt_evaluate.py take a test set through this graph.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import Annotated, Any, Final, Literal, NotRequired

from langgraph.graph import END, START, StateGraph
from langgraph.runtime import Runtime
from pydantic import BaseModel, Field
from typing_extensions import TypedDict

from agentsys.graphs.drt.state import Evaluation
from agentsys.models import EndpointDown, ModelError
from agentsys.roles import Role
from agentsys.systems import BaseContext, LanguagePair, System, ask, knob, role_options

DECODING: Final = {"temperature": 0.1, "repetition_penalty": 1.05, "max_tokens": 2048}
"""The paper's inference settings (section 3.1); the token limit is the one of its published example."""


class NoTranslation(ModelError):
    """A reply that has no translation in it: the record is rejected."""


class Assessment(BaseModel):
    """The reply of a direct assessment."""

    score: Annotated[int, Field(ge=0, le=100)]


class Input(TypedDict):
    """What a person types. A `translation` that is there already is only judged; GRB needs a `reference`."""

    text: str
    reference: NotRequired[str]
    translation: NotRequired[str]


class Judged(TypedDict):
    """What the nodes find out."""

    well_formed: NotRequired[bool]
    scores: NotRequired[dict[str, float]]
    unscored: NotRequired[dict[str, str]]


class State(Input, Judged):
    """The input and what is found out about it."""


class Output(Judged):
    """The translation, whether its reply kept to the format, the scores, and why one is not there."""

    text: str
    translation: NotRequired[str]


def parse_thought(reply: str) -> tuple[str, bool]:
    """The translation in a reply of the form <thought>...</thought><output>...</output>, and whether it has that form.

    What misses tags is read as far as it can be: the text in (or after) <output>, else what follows the thought, else a
    reply without any tags as a whole. A thought that never ends has no translation: "".
    """
    thought, ended, rest = reply.rpartition("</thought>")
    _, opened, output = rest.partition("<output>")
    if not opened and not ended and "<thought>" in rest:
        return "", False
    translation, closed, _ = (output if opened else rest).partition("</output>")
    return translation.strip(), all((ended, opened, closed)) and thought.lstrip().startswith("<thought>")


@dataclass(frozen=True)
class Translate(System):
    """The roles and nodes. A translator's reply may be cut off by the token limit: what is there is what counts."""

    translator: Role[str] = Role("translate/translator", sampling=DECODING, allow_truncated=True)
    student: Role[str] = Role("drt/student", sampling=DECODING, allow_truncated=True)
    grf: Role[Assessment] = Role("translate/grf", Assessment, sampling={"temperature": 0.0, "max_tokens": 50})
    grb: Role[Assessment] = Role("translate/grb", Assessment, sampling={"temperature": 0.0, "max_tokens": 50})
    gea: Role[Evaluation] = Role("translate/gea", Evaluation, sampling={"temperature": 0.0, "max_tokens": 200})

    async def translate(self, state: State, runtime: Runtime[Context]) -> dict[str, Any]:
        """One translation, unless there is one. Raises NoTranslation."""
        context = runtime.context
        if state.get("translation"):
            return {}
        if context.style == "plain":
            plain = await ask(context, self.translator, key="translate", text=state["text"], **context.languages)
            return {"translation": plain.value}
        answer = await ask(context, self.student, key="translate", text=state["text"], **context.languages)
        translation, well_formed = parse_thought(answer.value)
        if not translation:
            raise NoTranslation(f"no translation in the reply of {answer.call.completion_tokens} tokens")
        return {"translation": translation, "well_formed": well_formed}

    async def judge(self, state: State, runtime: Runtime[Context]) -> dict[str, Any]:
        """GRF, GEA and, with a reference, GRB. A judge that fails leaves its score out and no more."""
        context = runtime.context
        if not context.judge:
            return {}
        judges: list[Role[Any]] = [self.grf, self.gea, *([self.grb] if state.get("reference") else [])]
        found = await asyncio.gather(*(self._score(judge, state, context) for judge in judges))
        named = [(judge.name.upper(), value) for judge, value in zip(judges, found, strict=True)]
        return {
            "scores": {name: value for name, value in named if isinstance(value, float)},
            "unscored": {name: value for name, value in named if isinstance(value, str)},
        }

    async def _score(self, judge: Role[Any], state: State, context: Context) -> float | str:
        """The score, or why there is none."""
        shown = {name: state.get(name, "") for name in ("text", "reference", "translation")}
        try:
            answer = await ask(context, judge, key=f"judge/{judge.name}", **shown, **context.languages)
        except EndpointDown:
            raise
        except ModelError as err:
            return str(err)
        return float(answer.value.score)

    def builder(self) -> StateGraph[State, Context, Input, Output]:
        """translate -> judge."""
        builder = StateGraph(State, context_schema=Context, input_schema=Input, output_schema=Output)
        builder.add_node("translate", self.translate)
        builder.add_node("judge", self.judge)
        builder.add_edge(START, "translate")
        builder.add_edge("translate", "judge")
        builder.add_edge("judge", END)
        return builder


@dataclass(frozen=True)
@role_options(Translate)
class Context(BaseContext, LanguagePair):
    """Models, prompts and knobs of a run."""

    model: str = knob("embedded", "model spec of the translator, and of every judge that has none of its own")
    style: Literal["plain", "thought"] = knob(
        "plain", "a plain translation, or <thought> and <output> as DRT trains them"
    )
    judge: bool = knob(True, "whether to ask the judges")
    source_language: str = knob("English", "language of the texts")
    target_language: str = knob("Chinese", "language of the translations")
    data: str = knob("", "names the texts of a run whose records must not mix with others'; empty: any")


builder = Translate().builder()
graph = builder.compile(name="translate")
