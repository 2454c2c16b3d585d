"""The questions of an evaluation, with their right answers."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from agentsys.collect import Options
from agentsys.records import BadRecord, read_records
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
