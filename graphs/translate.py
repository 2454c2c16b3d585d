"""Translate and judge: one translation of a text, and what a judge model makes of it.

The judge's scores are those of DRT (Wang et al., Findings of ACL 2025, appendix C), from 0 to 100: GRF and GRB are
direct assessments without and with a reference, GEA is the rubric of DRT's evaluator.

The second half takes a test set through the graph: rows from a file of pairs, translations from a file or from a run.
graphs/drt_evaluate.py is the command.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Final, Literal, NotRequired

import orjson
from langgraph.graph import END, START, StateGraph
from langgraph.runtime import Runtime
from pydantic import BaseModel, Field
from typing_extensions import TypedDict

from agentsys.collect import Options, collect
from agentsys.collect.runner import Watcher
from agentsys.models import EndpointDown, ModelError
from agentsys.records import BadRecord, InputError, Record, read_records
from agentsys.roles import Role
from agentsys.systems import BaseContext, System, ask, knob
from agentsys.traces import load, read_traces
from graphs.drt import Evaluation

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


@dataclass(frozen=True)
class Context(BaseContext):
    """Models, prompts and knobs of a run."""

    model: str = knob("embedded", "model spec of the translator, and of every judge that has none of its own")
    translator_model: str = knob("", "model spec of the plain translator; empty: `model`")
    student_model: str = knob("", "model spec of a translator trained on DRT's long thoughts; empty: `model`")
    grf_model: str = knob("", "model spec of the judge without a reference; empty: `model`")
    grb_model: str = knob("", "model spec of the judge with a reference; empty: `model`")
    gea_model: str = knob("", "model spec of the judge with DRT's rubric; empty: `model`")
    style: Literal["plain", "thought"] = knob(
        "plain", "a plain translation, or <thought> and <output> as DRT trains them"
    )
    judge: bool = knob(True, "whether to ask the judges")
    source_language: str = knob("English", "language of the texts")
    target_language: str = knob("Chinese", "language of the translations")
    data: str = knob("", "names the texts of a run whose records must not mix with others'; empty: any")
    translator_prompt: str = knob("", "prompt text in place of prompts/evaluate/translator.md")
    student_prompt: str = knob("", "prompt text in place of prompts/drt/student.md")
    grf_prompt: str = knob("", "prompt text in place of prompts/evaluate/grf.md")
    grb_prompt: str = knob("", "prompt text in place of prompts/evaluate/grb.md")
    gea_prompt: str = knob("", "prompt text in place of prompts/evaluate/gea.md")

    @property
    def languages(self) -> dict[str, str]:
        """The variables that every prompt of this system gets."""
        return {"source_language": self.source_language, "target_language": self.target_language}


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

    translator: Role[str] = Role("evaluate/translator", sampling=DECODING, whole=False)
    student: Role[str] = Role("drt/student", sampling=DECODING, whole=False)
    grf: Role[Assessment] = Role("evaluate/grf", Assessment, sampling={"temperature": 0.0, "max_tokens": 50})
    grb: Role[Assessment] = Role("evaluate/grb", Assessment, sampling={"temperature": 0.0, "max_tokens": 50})
    gea: Role[Evaluation] = Role("evaluate/gea", Evaluation, sampling={"temperature": 0.0, "max_tokens": 200})

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


builder = Translate().builder()
graph = builder.compile(name="translate")


@dataclass(slots=True)
class Row:
    """One pair and what is known of it: `at` is its place in the file, `reason` says why it has no translation."""

    id: str
    at: str
    text: str
    reference: str
    translation: str | None = None
    reason: str | None = None
    well_formed: bool | None = None
    scores: dict[str, float] = field(default_factory=dict)
    unscored: dict[str, str] = field(default_factory=dict)


def read_pairs(path: Path, source_field: str, reference_field: str) -> list[Row | BadRecord]:
    """All pairs in the file's order. Pairs of the same words, without ids, are told apart by a number."""
    columns = {"text": source_field, "reference": reference_field}
    rows: list[Row | BadRecord] = []
    seen: Counter[str] = Counter()
    for record in read_records(path, fields=columns, required=columns):
        if isinstance(record, BadRecord):
            reason = record.reason.replace("--field text=", "--source-field ")
            rows.append(BadRecord(record.source, reason.replace("--field reference=", "--reference-field ")))
            continue
        seen[record.id] += 1
        count = seen[record.id]
        if count > 1 and record.data.get("id") is not None:
            rows.append(BadRecord(record.source, f"duplicate: two pairs have the id {record.id}"))
            continue
        name = record.id if count == 1 else f"{record.id}-{count}"
        rows.append(Row(name, record.source, record.data["text"], record.data["reference"]))
    return rows


def add_translations(rows: list[Row | BadRecord], path: Path) -> None:
    """Give each row its translation from a file: records with a field `translation`, or plain text, one a line.

    Records with an `id` are matched by it; all else is in the order of the pairs. Raises InputError.
    """
    records = path.suffix.lower() in (".jsonl", ".ndjson", ".json", ".csv", ".tsv", ".parquet")
    found = _translation_records(path) if records else _plain_lines(path)
    if isinstance(found, list):
        if len(found) != len(rows):
            raise InputError(f"{path}: {len(found)} translations for {len(rows)} pairs; give one a pair, or ids")
        found = {row.id: text for row, text in zip(rows, found, strict=True) if isinstance(row, Row)}
    for row in rows:
        if isinstance(row, Row):
            row.translation = found.get(row.id, "").strip() or None
            row.reason = None if row.translation else f"no translation in {path}"
    if not any(isinstance(row, Row) and row.translation for row in rows):
        raise InputError(f"{path}: no translation of any pair; records need 'translation', and their 'id' if pairs do")


def _plain_lines(path: Path) -> dict[str, str] | list[str]:
    try:
        return path.read_text(encoding="utf-8-sig").removesuffix("\n").split("\n")
    except OSError as err:
        raise InputError(f"{path}: {err.strerror}; give a file of translations") from None
    except UnicodeDecodeError:
        raise InputError(f"{path}: not UTF-8 text; convert it") from None


def _translation_records(path: Path) -> dict[str, str] | list[str]:
    records = [
        (record.id if record.data.get("id") is not None else None, str(record.data.get("translation") or ""))
        if isinstance(record, Record)
        else None
        for record in read_records(path)
    ]
    good = [record for record in records if record]
    by_id = {name: text for name, text in good if name is not None}
    if by_id and len(by_id) < len(good):
        raise InputError(f"{path}: an id is missing or there twice; give each translation its own, or none an id")
    return by_id or [record[1] if record else "" for record in records]


def run_over(rows: list[Row], out: Path, context: Context, *, in_flight: int, watch: Watcher) -> dict[str, Any]:
    """Collect the rows into `out` and write into them what the graph found; the run's manifest.

    What failed in an earlier run is tried again. Raises what `collect` raises, and KeyboardInterrupt if it was stopped.
    """
    inputs = [
        {"id": row.id, "text": row.text, "reference": row.reference}
        | ({"translation": row.translation} if row.translation else {})
        for row in rows
        if not row.reason
    ]
    options = Options(in_flight=in_flight, retry_rejected=True)
    if collect(graph, inputs, out, context=context, options=options, watch=watch).stopped:
        raise KeyboardInterrupt
    by_id = {row.id: row for row in rows}
    with (out / "rejected.jsonl").open("rb") as lines:
        rejected = [load(line) for line in lines]
    for trace in [*read_traces(out), *rejected]:
        row = by_id.get(trace.id)
        if row is None:
            continue  # an earlier run with another sample of the same pairs
        result = trace.result or {}
        row.translation, row.reason = result.get("translation", row.translation), trace.reason
        row.well_formed = result.get("well_formed")
        row.scores, row.unscored = result.get("scores", {}), result.get("unscored", {})
    manifest: dict[str, Any] = orjson.loads((out / "manifest.json").read_bytes())
    return manifest
