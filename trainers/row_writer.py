"""Writes rows to Parquet files by kind and split."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Collection
from itertools import product
from pathlib import Path
from typing import Any, Final

from agentsys.trainers.row_files import KINDS, Row, row_schema

SPLITS: Final = ("train", "validation")


class RowWriter:
    """Writes Parquet files by kind and split; they get their final names only when all rows are written."""

    BATCH: Final = 256
    """Rows per write."""

    def __init__(self, out: str | Path, tokenizer: str) -> None:
        self.out, self.tokenizer = Path(out), tokenizer
        self.rows: Counter[tuple[str, str]] = Counter()
        """Rows by kind and split."""
        self.tokens: Counter[tuple[str, str]] = Counter()
        """Tokens by kind and split."""
        self._pending: dict[tuple[str, str], list[Row]] = {}
        self._files: dict[tuple[str, str], Any] = {}

    def __enter__(self) -> RowWriter:
        return self

    def write(self, row: Row, split: str) -> None:
        """Add a row to its file."""
        key = (row["kind"], split)
        self.rows[key] += 1
        self.tokens[key] += sum(len(row[name]) for name in row if name.endswith("_ids"))
        rows = self._pending.setdefault(key, [])
        rows.append(row)
        if len(rows) == self.BATCH:
            self._flush(key)

    def move(self, inputs: Collection[str]) -> None:
        """Move the rows of these inputs to the other split. Nothing can be written afterwards.

        A kind that has rows to move is read into memory.
        """
        self._close()
        for kind in {kind for kind, _ in self.rows} if inputs else ():
            if self._has_inputs(kind, inputs):
                self._move_rows(kind, inputs)

    def _has_inputs(self, kind: str, inputs: Collection[str]) -> bool:
        """Whether rows of this kind are of one of the inputs. Only that column is read, in batches."""
        import pyarrow.parquet as pq

        for file in (pq.ParquetFile(self._part(kind, split)) for split in SPLITS if self.rows[kind, split]):
            with file:
                batches = file.iter_batches(columns=["input"])
                if any(name in inputs for batch in batches for name in batch["input"].to_pylist()):
                    return True
        return False

    def _move_rows(self, kind: str, inputs: Collection[str]) -> None:
        import pyarrow as pa
        import pyarrow.compute as pc
        import pyarrow.parquet as pq

        empty = row_schema(kind, self.tokenizer).empty_table()
        tables = [pq.read_table(self._part(kind, s)) if self.rows[kind, s] else empty for s in SPLITS]
        moved = [pc.is_in(table["input"], pa.array(inputs, pa.string())) for table in tables]
        for split, own, other in ((0, 0, 1), (1, 1, 0)):
            parts = [tables[own].filter(pc.invert(moved[own])), tables[other].filter(moved[other])]
            table = pa.concat_tables(parts)
            key = (kind, SPLITS[split])
            lengths = [pc.sum(pc.list_value_length(table[n])).as_py() for n in table.schema.names if n.endswith("_ids")]
            self.rows[key], self.tokens[key] = table.num_rows, sum(length or 0 for length in lengths)
            pq.write_table(table, self._part(*key), compression="zstd")

    def __exit__(self, failed: object, *rest: object) -> None:
        self._close()
        for (kind, split), count in self.rows.items():
            part = self._part(kind, split)
            if failed or not count:
                part.unlink(missing_ok=True)
            else:
                os.replace(part, self.out / kind / f"{split}.parquet")
        for kind, split in product(KINDS, SPLITS):
            if not failed and not self.rows[kind, split]:  # rows of an earlier run, with another split
                (self.out / kind / f"{split}.parquet").unlink(missing_ok=True)

    def _close(self) -> None:
        for key in self._pending:
            self._flush(key)
        for file in self._files.values():
            file.close()
        self._files.clear()

    def _part(self, kind: str, split: str) -> Path:
        return self.out / kind / f".{split}.parquet.part"

    def _flush(self, key: tuple[str, str]) -> None:
        import pyarrow as pa
        import pyarrow.parquet as pq

        rows = self._pending[key]
        if not rows:
            return
        schema = row_schema(key[0], self.tokenizer)
        if key not in self._files:
            self._part(*key).parent.mkdir(parents=True, exist_ok=True)
            self._files[key] = pq.ParquetWriter(self._part(*key), schema, compression="zstd")
        self._files[key].write_table(pa.Table.from_pylist(rows, schema))
        rows.clear()
