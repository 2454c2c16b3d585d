"""Row files: their Arrow schema, writing, reading, and the limit on the length of a row."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Final, Literal

from agentsys.commands import knob
from agentsys.trainers.loading import TrainerError, tokenizer_digest
from agentsys.trainers.training import print_once

if TYPE_CHECKING:
    from datasets import Dataset

Kind = Literal["sft", "role", "step"]
KINDS: Final[tuple[Kind, ...]] = ("sft", "role", "step")
TOKENIZER_KEY: Final = b"agentsys.tokenizer"
"""Key in the Parquet schema's metadata: the digest of the tokenizer whose ids the rows hold."""

Row = dict[str, Any]


@dataclass(frozen=True)
class RowOptions:
    """The rows to learn from."""

    panel: ClassVar[str] = "Rows"
    rows: Path = knob(Path("rows/sft"), "folder with train.parquet and optionally validation.parquet, or a file")
    max_length: int = knob(2048, "maximum row length, in tokens")
    too_long: str = knob("drop", "what to do with longer rows: drop or truncate")

    def __post_init__(self) -> None:
        """Raises TrainerError for another way to treat long rows. Accepts `cut`, the former name of `truncate`."""
        if self.too_long == "cut":
            object.__setattr__(self, "too_long", "truncate")
        if self.too_long not in ("drop", "truncate"):
            raise TrainerError(f"--too-long {self.too_long}: give drop or truncate")


def row_schema(kind: str, tokenizer: str) -> Any:
    """The Arrow schema of a kind of rows; `tokenizer` is the digest of the tokenizer whose ids they hold."""
    import pyarrow as pa

    text = [(name, pa.string()) for name in ("id", "kind", "source", "input", "prompt", "text", "ids_source")]
    names = ("prompt_ids", "chosen_ids", "rejected_ids") if kind == "step" else ("input_ids",)
    ids = [(name, pa.list_(pa.int32())) for name in names]
    more = (
        [("rejected", pa.string()), ("margin", pa.float64())]
        if kind == "step"
        else [("loss_mask", pa.list_(pa.int8()))]
    )
    fields = [*text, *ids, *more, ("lineage", pa.string()), ("scores", pa.string())]
    return pa.schema(fields, metadata={TOKENIZER_KEY: tokenizer.encode()})


class RowWriter:
    """Writes Parquet files by kind and split; they get their final names only when all rows are written."""

    BATCH: Final = 256
    """Rows per write."""

    def __init__(self, out: Path, tokenizer: str) -> None:
        self.out, self.tokenizer = out, tokenizer
        self._rows: dict[tuple[str, str], list[Row]] = {}
        self._files: dict[tuple[str, str], Any] = {}

    def __enter__(self) -> RowWriter:
        return self

    def write(self, row: Row, split: str) -> None:
        """Add a row to its file."""
        rows = self._rows.setdefault((row["kind"], split), [])
        rows.append(row)
        if len(rows) == self.BATCH:
            self._flush((row["kind"], split))

    def __exit__(self, failed: object, *rest: object) -> None:
        for key in self._rows:
            self._flush(key)
        for (kind, split), file in self._files.items():
            file.close()
            part = self._part(kind, split)
            if failed:
                part.unlink()
            else:
                os.replace(part, self.out / kind / f"{split}.parquet")
        for kind, split in product(KINDS, ("train", "validation")):
            if not failed and (kind, split) not in self._files:  # rows of an earlier run, with another split
                (self.out / kind / f"{split}.parquet").unlink(missing_ok=True)

    def _part(self, kind: str, split: str) -> Path:
        return self.out / kind / f".{split}.parquet.part"

    def _flush(self, key: tuple[str, str]) -> None:
        import pyarrow as pa
        import pyarrow.parquet as pq

        rows = self._rows[key]
        if not rows:
            return
        schema = row_schema(key[0], self.tokenizer)
        if key not in self._files:
            self._part(*key).parent.mkdir(parents=True, exist_ok=True)
            self._files[key] = pq.ParquetWriter(self._part(*key), schema, compression="zstd")
        self._files[key].write_table(pa.Table.from_pylist(rows, schema))
        rows.clear()


def read_rows(path: Path, columns: Mapping[str, str], tokenizer: Any = None) -> dict[str, Dataset]:
    """Rows by split: `train`, and `validation` where there is one.

    `columns` maps each required column to the advice that an error gives: {"input_ids": "give rows of kind sft"}.
    Raises TrainerError for a missing, empty or malformed file, and for ids of another tokenizer than `tokenizer`.
    """
    files = {"train": path} if path.is_file() else {s: path / f"{s}.parquet" for s in ("train", "validation")}
    if not files["train"].is_file():
        raise TrainerError(f"{files['train']}: no such file; trainers/rows.py makes rows from traces")
    return {split: _read_file(file, columns, tokenizer) for split, file in files.items() if file.is_file()}


def _read_file(file: Path, columns: Mapping[str, str], tokenizer: Any) -> Dataset:
    import pyarrow as pa
    import pyarrow.parquet as pq
    from datasets import Dataset

    try:
        schema = pq.read_schema(file)
        count = pq.read_metadata(file).num_rows
    except (pa.ArrowException, OSError) as err:
        raise TrainerError(f"{file} is not a Parquet file: {' '.join(str(err).split())[:200]}") from None
    if missing := [name for name in columns if name not in schema.names]:
        raise TrainerError(f"{file} has no column {missing[0]}; {columns[missing[0]]}")
    if not count:
        raise TrainerError(f"{file} has no rows; trainers/rows.py reports which rows it dropped, and why")
    digest = (schema.metadata or {}).get(TOKENIZER_KEY, b"").decode()
    if tokenizer is not None and digest and digest != tokenizer_digest(tokenizer):
        raise TrainerError(f"{file} holds ids of another tokenizer; make the rows with the same --student as here")
    return Dataset.from_parquet(str(file))


def limit_length(rows: Dataset, options: RowOptions, name: str = "input_ids") -> Dataset:
    """Rows of at most --max-length tokens; longer ones are counted, and dropped or truncated.

    A truncated row without learned tokens is dropped. Raises TrainerError if no row is left.
    """
    lengths = [len(ids) for ids in rows[name]]
    long = sum(length > options.max_length for length in lengths)
    if not long:
        return rows
    message = f"{long} of {len(rows)} rows are longer than {options.max_length} tokens"
    if options.too_long == "drop":
        print_once(f"{message}: dropped (--too-long truncate keeps their beginning)")
        kept = rows.select([i for i, length in enumerate(lengths) if length <= options.max_length])
    else:
        truncated = rows.map(lambda row: _truncate(row, options.max_length), desc="truncating")
        kept = truncated.filter(lambda row: 1 in row["loss_mask"])
        print_once(f"{message}: truncated, {len(rows) - len(kept)} dropped because nothing is left to learn")
    if not len(kept):
        raise TrainerError(f"no row has at most {options.max_length} tokens; raise --max-length")
    return kept


def _truncate(row: Mapping[str, Any], length: int) -> dict[str, Any]:
    """The first `length` tokens of a row, and the teacher's values of the learned ones among them."""
    columns = {name: row[name][:length] for name in ("input_ids", "loss_mask")}
    if "teacher_tail" in row:
        learned, k = sum(columns["loss_mask"]), len(row["teacher_ids"]) // len(row["teacher_tail"])
        columns |= {name: row[name][: learned * k] for name in ("teacher_ids", "teacher_logprobs")}
        columns["teacher_tail"] = row["teacher_tail"][:learned]
    return columns
