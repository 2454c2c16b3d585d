"""A `user` of the record: a number in the rows, and the same split for the same text of two users."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pyarrow.parquet as pq

from agentsys.trainers.row_filter import Filters
from agentsys.trainers.rows import TargetOptions, make_rows
from tests.support.tiny import make_tiny
from tests.support.traces import make_trace, run_folder, sft_target


def test_rows_have_a_number_in_the_place_of_a_user(tmp_path: Path) -> None:
    traces = []
    for number, user in enumerate(("eve", "bob", "eve", None)):
        trace = make_trace(str(number), [], [sft_target("Say it.", (f"Answer {number}.", True))])
        fields = {"text": "the same text"} | ({"user": user} if user else {})
        traces.append(replace(trace, input=fields))
    run = run_folder(tmp_path / "run", *traces)
    student = make_tiny(tmp_path / "student")
    make_rows([run], TargetOptions(str(student), tmp_path / "rows"), Filters(validation=0))
    rows = pq.read_table(tmp_path / "rows" / "sft" / "train.parquet").to_pylist()
    assert {row["text"]: row["user"] for row in rows} == {
        "Answer 0.": 0,
        "Answer 1.": 1,
        "Answer 2.": 0,
        "Answer 3.": None,
    }
    assert len({row["input"] for row in rows}) == 1
    for file in (tmp_path / "rows").rglob("*"):
        assert not file.is_file() or not any(name in file.read_bytes() for name in (b"eve", b"bob")), file
