"""The questions of an evaluation: read, and checked against what a model was trained on and what was asked before."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from agentsys.answers import normalised
from agentsys.collect import Options
from agentsys.records import BadRecord, InputError, read_records
from agentsys.traces import Trace, load, read_traces, shards
from graphs.deeprag_protocol import golds


@dataclass(frozen=True, slots=True)
class Asked:
    """A question, its right answers, and its place in the file."""

    id: str
    question: str
    golds: list[str]
    at: str


def read_questions(path: Path, options: Options) -> Iterator[Asked | BadRecord]:
    """All questions in the file's order. Raises InputError."""
    seen: set[str] = set()
    for record in read_records(path, fields=options.fields, id_field=options.id_field, required=["question"]):
        if isinstance(record, BadRecord):
            yield record
        elif not (right := golds(record.data)):
            reason = "no right answer in the fields answer, answers, answer_aliases; --field answer=COLUMN names it"
            yield BadRecord(record.source, reason)
        elif record.id in seen:
            yield BadRecord(record.source, f"duplicate: two questions have the id {record.id}")
        else:
            seen.add(record.id)
            yield Asked(record.id, record.data["question"], right, record.source)


def check_overlap(sample: Sequence[Asked], runs: Sequence[Path]) -> None:
    """Raises InputError where a run has a question with the id of one of the sample, or with its normalised text."""
    ids = {row.id: row for row in sample}
    texts = {normalised(row.question): row for row in sample}
    for folder in runs:
        if not shards(folder):
            raise InputError(f"--trained-on {folder}: no traces there; name the --out folder of a collect run")
        met: dict[str, str] = {}
        for trace in read_traces(folder):
            if not isinstance(text := trace.input.get("question"), str):
                raise InputError(f"--trained-on {folder}: its records have no question; name a run over questions")
            if row := ids.get(trace.id):
                met[row.id] = f"id {row.id}: {row.question}"
            elif row := texts.get(normalised(text)):
                met[row.id] = f"the same words, {row.id}: {row.question}"
        if met:
            raise InputError(
                f"--questions: {len(met)} of {len(sample)} are in {folder} too ({next(iter(met.values()))}); "
                "evaluate on questions that no model was trained on"
            )


def finished(folder: Path) -> Iterator[Trace]:
    """The traces of a run, those of rejected records last; a line that a kill has torn is left out."""
    yield from read_traces(folder)
    rejected = folder / "rejected.jsonl"
    if rejected.exists():
        with rejected.open("rb") as lines:
            yield from (load(line) for line in lines if line.endswith(b"\n"))


def check_folder(folder: Path, sample: Sequence[Asked]) -> None:
    """Raises InputError where a run has answered another question under the id of one of the sample."""
    texts = {row.id: row.question for row in sample}
    for trace in finished(folder):
        if trace.id in texts and trace.input.get("question") != texts[trace.id]:
            raise InputError(f"{folder}: question {trace.id} has other words there; choose another --out")
