"""Records are counted before they are read, where that is cheap."""

from __future__ import annotations

import gzip
from pathlib import Path
from typing import Any

import pytest

from agentsys.inputs import count
from agentsys.inputs.count import count_records


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    pa = pytest.importorskip("pyarrow")
    import pyarrow.parquet as pq

    (tmp_path / "in.jsonl").write_text('{"text": "a"}\n\n{"text": "b"}\nno JSON')
    (tmp_path / "in.txt").write_text("a\n \nb\n")
    (tmp_path / "in.csv").write_text('text\na\n"b\nb"\nc\n')
    (tmp_path / "in.json").write_text('[{"text": "a"}, {"text": "b"}]')
    (tmp_path / "in.jsonl.gz").write_bytes(gzip.compress(b'{"text": "a"}\n'))
    (tmp_path / "damaged.parquet").write_bytes(b"PAR1 and no more")
    pq.write_table(pa.table({"text": list("abcd")}), tmp_path / "in.parquet", row_group_size=3)
    (tmp_path / "all").mkdir()
    for name in "ab":
        (tmp_path / "all" / f"{name}.jsonl").write_text('{"text": "a"}\n' * 3)
    return tmp_path


@pytest.mark.parametrize(
    ("name", "records"),
    [("in.jsonl", 3), ("in.txt", 2), ("in.csv", 3), ("in.json", 2), ("in.parquet", 4), ("all", 6), ("all/*.jsonl", 6)],
)
def test_files_are_counted(folder: Path, name: str, records: int) -> None:
    assert count_records(folder / name) == count_records(str(folder / name), records + 1) == records
    assert count_records(folder / name, records - 1) == records - 1


@pytest.mark.parametrize("name", ["in.jsonl.gz", "damaged.parquet", "missing.jsonl", "missing/*.jsonl"])
def test_other_files_are_not(folder: Path, name: str) -> None:
    assert count_records(folder / name) is None
    assert count_records(folder / name, 7) == 7


@pytest.mark.parametrize(
    "source", ["-", "hf:name", "s3://bucket/file.jsonl", Path("s3://bucket/file.jsonl"), iter("ab")]
)
def test_no_pipe_address_or_iterator_is_read(source: Any) -> None:
    assert count_records(source) is None
    assert count_records(source, 7) == 7


def test_what_has_a_length_is_not_read() -> None:
    assert count_records(["a", "b"]) == 2 and count_records(["a", "b"], 1) == 1


def test_large_files_are_not_read(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With a limit, the lines up to it are."""
    monkeypatch.setattr(count, "MAX_COUNTED_BYTES", 3)
    monkeypatch.setattr(count, "MAX_READ_BYTES", 3)
    assert count_records(folder / "in.jsonl") is None and count_records(folder / "in.jsonl", 2) == 2
    assert count_records(folder / "in.csv") is None and count_records(folder / "in.csv", 9) == 9
    assert count_records(folder / "in.parquet") == 4, "its metadata has the number"
