"""The questions of an evaluation, with their right answers."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from agentsys.collect import Options
from agentsys.records import BadRecord, Record
from graphs.deeprag_protocol import golds
from graphs.evaluations import Asked, read_rows


def read_questions(path: Path, options: Options) -> Iterator[Asked | BadRecord]:
    """All questions in the file's order. Raises InputError."""

    def asked(record: Record) -> Asked:
        if not (right := golds(record.data)):
            raise ValueError(
                "no right answer in the fields answer, answers, answer_aliases; --field answer=COLUMN names it"
            )
        return Asked(record.id, record.data["question"], right, record.source)

    return read_rows(path, options, asked, "question", required=["question"])
