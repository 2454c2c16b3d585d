"""The split by inputs: the same for all kinds, and with few inputs something on both sides."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from agentsys.trainers.row_files import Row
from agentsys.trainers.row_split import FEWEST_INPUTS, InputSplit
from agentsys.trainers.row_writer import RowWriter
from tests.support.training import DIGEST, sft_row


def row(kind: str, name: str) -> Row:
    return {"kind": kind, "input": name}


def split_all(
    inputs_by_kind: dict[str, list[str]], share: float = 0.1, seed: int = 0
) -> dict[str, dict[str, set[str]]]:
    """The inputs by kind and split, after the moves."""
    split = InputSplit(share, seed)
    first = {kind: {name: split.split_of(row(kind, name)) for name in names} for kind, names in inputs_by_kind.items()}
    moved = split.inputs_to_move()
    other = {"train": "validation", "validation": "train"}
    return {
        kind: {
            side: {name for name, s in names.items() if (other[s] if name in moved else s) == side} for side in other
        }
        for kind, names in first.items()
    }


@pytest.mark.parametrize("seed", range(40))
@pytest.mark.parametrize("count", [1, 2, FEWEST_INPUTS, 5, 12])
def test_few_inputs_have_something_on_both_sides(count: int, seed: int) -> None:
    sides = split_all({"sft": [f"input {i}" for i in range(count)]}, seed=seed)["sft"]
    assert sides["train"]
    assert sides["validation"] or count < FEWEST_INPUTS


@pytest.mark.parametrize("seed", range(40))
def test_an_input_is_on_one_side_for_all_kinds_and_no_kind_lacks_training_rows(seed: int) -> None:
    names = [f"input {i}" for i in range(6)]
    sides = split_all({"sft": names, "role": names, "step": names[:1]}, seed=seed)
    everywhere = {side: set.union(*(kind[side] for kind in sides.values())) for side in ("train", "validation")}
    assert not everywhere["train"] & everywhere["validation"]
    assert all(kind["train"] for kind in sides.values())
    assert sides["sft"]["validation"] == sides["role"]["validation"] != set()


def test_many_inputs_and_extreme_shares_are_split_by_position_alone() -> None:
    many = [f"input {i}" for i in range(1000)]
    sides = split_all({"sft": many})["sft"]
    assert 70 < len(sides["validation"]) < 130
    assert not split_all({"sft": many[:5]}, share=0)["sft"]["validation"]
    assert not split_all({"sft": many[:5]}, share=1)["sft"]["train"]


def test_rows_that_were_written_change_sides_with_their_input(tmp_path: Path) -> None:
    rows = [sft_row(i) | {"input": f"input {i % 3}"} for i in range(600)]
    with RowWriter(tmp_path, DIGEST) as writer:
        for one in rows:
            writer.write(one, "train")
        writer.move({"input 1"})
    train, validation = (pq.read_table(tmp_path / "sft" / f"{s}.parquet") for s in ("train", "validation"))
    assert set(validation["input"].to_pylist()) == {"input 1"}
    assert set(train["input"].to_pylist()) == {"input 0", "input 2"}
    assert train.schema.metadata == validation.schema.metadata != {}
    assert (writer.rows["sft", "train"], writer.rows["sft", "validation"]) == (400, 200)
    assert writer.tokens["sft", "validation"] == sum(len(one["input_ids"]) for one in rows[1::3])
    assert not list(tmp_path.rglob("*.part"))


def test_rows_of_a_kind_without_inputs_to_move_are_not_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tables: list[Path] = []
    read_table = pq.read_table

    def record(file: Path) -> pa.Table:
        tables.append(file)
        return read_table(file)

    monkeypatch.setattr(pq, "read_table", record)
    with RowWriter(tmp_path, DIGEST) as writer:
        for number in range(3):
            writer.write(sft_row(number), "train")
            writer.write(sft_row(number) | {"kind": "role", "input": f"other {number}"}, "train")
        writer.write(sft_row(4) | {"kind": "role", "input": "other 4"}, "validation")
        writer.move({"1"})
    assert {file.parent.name for file in tables} == {"sft"}
    counts = {(kind, split): writer.rows[kind, split] for kind in ("sft", "role") for split in ("train", "validation")}
    assert list(counts.values()) == [2, 1, 3, 1]
    for (kind, split), count in counts.items():
        assert read_table(tmp_path / kind / f"{split}.parquet").num_rows == count
