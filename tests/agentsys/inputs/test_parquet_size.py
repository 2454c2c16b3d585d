"""Parquet files that unpack to far more than they are: one column is refused, and memory is bounded."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest

from agentsys.inputs import parquet_size
from agentsys.inputs.lines import MAX_LINE
from agentsys.records import BadRecord, read_records

LIMIT = 200_000


@pytest.fixture(autouse=True)
def small_limits(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in ("parquet_size", "tables"):
        monkeypatch.setattr(f"agentsys.inputs.{module}.MAX_LINE", LIMIT)
    monkeypatch.setattr("agentsys.inputs.parquet_size.BATCH_BYTES", 10 * LIMIT)


def write(path: Path, *, dictionary: bool = False, **columns: Any) -> Path:
    pyarrow.parquet.write_table(pyarrow.table(columns), path, compression="zstd", use_dictionary=dictionary)
    return path


def reasons(path: Path) -> list[str]:
    """The reason of each record; "" for one that can be used."""
    return [r.reason if isinstance(r, BadRecord) else "" for r in read_records(path, required=["text"])]


def test_a_cell_beyond_the_limit_fails_its_records_only_if_it_is_needed(tmp_path: Path) -> None:
    long = "x" * (LIMIT * 5)
    [reason, *_] = reasons(write(tmp_path / "a.parquet", text=["a", long, "b"]))
    assert reason.startswith("field 'text': a cell of the column is longer than")
    assert reasons(write(tmp_path / "b.parquet", text=["a", "b", "c"], other=["", long, ""])) == ["", "", ""]
    assert reasons(write(tmp_path / "c.parquet", text=["a", "b"], other=[[long] * 4, []])) == ["", ""]


def test_a_cell_that_only_reading_shows_fails_its_record(tmp_path: Path) -> None:
    cells = [str(i) * 40 for i in range(5000)]
    cells[7] = "".join(map(str, range(LIMIT)))[: LIMIT + 1]  # packed too little for a bomb
    found = reasons(write(tmp_path / "a.parquet", text=cells))
    assert [number for number, reason in enumerate(found) if reason] == [7]
    assert "a cell is longer than" in found[7]


def test_a_column_packed_too_tightly_is_refused(tmp_path: Path) -> None:
    path = write(tmp_path / "a.parquet", text=["x" * (LIMIT // 2)] * 300)
    assert path.stat().st_size < 20_000
    found = reasons(path)
    assert len(found) == 300
    assert "bytes unpack to 30,0" in found[0] and "convert or remove it" in found[0]


def test_ordinary_repetition_is_read(tmp_path: Path) -> None:
    texts = [f"The {i % 9} lamps shone like a moon over {i} hills. " * 5 for i in range(4000)]
    for dictionary in (True, False):
        assert reasons(write(tmp_path / "a.parquet", dictionary=dictionary, text=texts)) == [""] * 4000
        assert reasons(write(tmp_path / "b.parquet", dictionary=dictionary, text=["same"] * 4000)) == [""] * 4000


@pytest.mark.parametrize("size", [10, 1000, LIMIT // 2])
@pytest.mark.parametrize("opened", [False, True])
def test_the_size_of_a_dictionary_is_read_from_its_header(tmp_path: Path, size: int, opened: bool) -> None:
    cells = pyarrow.DictionaryArray.from_arrays(pyarrow.array([0] * 300, pyarrow.int32()), ["x" * size])
    path = write(tmp_path / "a.parquet", dictionary=True, text=cells)
    group = pyarrow.parquet.ParquetFile(path).metadata.row_group(0)
    rows = parquet_size.rows_per_batch(io.BytesIO(path.read_bytes()) if opened else path, group)
    assert rows == min(256, 10 * LIMIT // (size + 4))
    assert reasons(path) == [""] * 300


def test_a_header_that_is_none_is_no_size() -> None:
    for data in (b"", b"\x15", b"\x15\x04\x16\x10", b"\xff" * 40, b"\x15\xff\xff", b"\x15\x04\x15\x01"):
        assert parquet_size._dictionary_size(io.BytesIO(data), 0) == 0
    assert parquet_size._dictionary_size(io.BytesIO(b"\x00\x15\x04\x15\xc8\x01"), 1) == 100


def test_the_limit_is_that_of_a_line() -> None:
    assert MAX_LINE == 64 * 2**20
