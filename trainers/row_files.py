"""Row files: their Arrow schema, checking, reading, and the limit on the length of a row."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Final, Literal

from agentsys.commands import knob
from agentsys.shards import find_shards
from agentsys.trainers.loading import TrainerError, tokenizer_digest
from agentsys.trainers.processes import print_once

if TYPE_CHECKING:
    from datasets import Dataset

Kind = Literal["sft", "role", "step", "sft-plain", "prm", "vision"]
KINDS: Final[tuple[Kind, ...]] = ("sft", "role", "step", "sft-plain", "prm", "vision")
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
    end = [("lineage", pa.string()), ("scores", pa.string()), ("user", pa.int32())]
    if kind == "vision":
        block = pa.struct([("type", pa.string()), ("text", pa.string())])
        message = pa.struct([("role", pa.string()), ("content", pa.list_(block))])
        return pa.schema([*text, ("messages", pa.list_(message)), ("images", pa.list_(pa.string())), *end])
    names = ("prompt_ids", "chosen_ids", "rejected_ids") if kind == "step" else ("input_ids",)
    ids = [(name, pa.list_(pa.int32())) for name in names]
    more = {
        "step": [("rejected", pa.string()), ("margin", pa.float64())],
        "prm": [
            ("step_ends", pa.list_(pa.int32())),
            ("step_labels", pa.list_(pa.float64())),
            ("step_visits", pa.list_(pa.int32())),
        ],
    }.get(kind, [("loss_mask", pa.list_(pa.int8()))])
    fields = [*text, *ids, *more, *end]
    return pa.schema(fields, metadata={TOKENIZER_KEY: tokenizer.encode()})


@dataclass(frozen=True, slots=True)
class Needs:
    """The rows that a trainer reads: their columns and kinds."""

    trainer: str
    columns: tuple[str, ...]
    kinds: tuple[Kind, ...]

    @property
    def advice(self) -> str:
        """What to give, for error messages."""
        return f"{self.trainer} needs rows of kind {' or '.join(self.kinds)}, such as rows/{self.kinds[0]}"


TEXT_COLUMNS: Final = ("input_ids", "loss_mask")


def find_row_files(path: Path, needs: Needs, option: str = "--rows") -> dict[str, Path]:
    """The row file of each split: `train`, and `validation` where there is one. Only their schemas are read.

    Raises TrainerError for a missing or malformed file, a file without rows, and rows of another kind.
    """
    if not path.exists():
        raise TrainerError(f"{option} {path}: no such folder; trainers/rows.py (agentsys rows) writes it")
    files = {"train": path} if path.is_file() else {s: path / f"{s}.parquet" for s in ("train", "validation")}
    if not files["train"].is_file():
        raise TrainerError(f"{option} {path}: {_describe_folder(path, needs)}")
    files = {split: file for split, file in files.items() if file.is_file()}
    for file in files.values():
        check_row_file(file, needs, option)
    return files


def _describe_folder(path: Path, needs: Needs) -> str:
    """What is in a folder without train.parquet, and what to give instead."""
    if kinds := [kind for kind in KINDS if (path / kind / "train.parquet").is_file()]:
        fitting = [path / kind for kind in kinds if kind in needs.kinds]
        folders = " or ".join(str(folder) for folder in fitting)
        return f"give one of its folders: {folders}" if fitting else f"it has rows of kind {kinds[0]}; {needs.advice}"
    if find_shards(path):
        return f"a run, not rows; make rows of it first: agentsys rows {path}"
    if any(path.glob("scored-*.parquet")):
        return f"rows with a teacher's scores; {needs.advice}"
    if (path / "validation.parquet").is_file():
        return "only validation rows; make rows of more records, or with a lower --validation"
    return "no train.parquet; trainers/rows.py (agentsys rows) writes it"


def check_row_file(file: Path, needs: Needs, option: str = "--rows") -> None:
    """Raises TrainerError for no Parquet file, missing columns, or no rows. Only the schema is read."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        schema = pq.read_schema(file)
        count = pq.read_metadata(file).num_rows
    except (pa.ArrowException, OSError) as err:
        raise TrainerError(f"{file} is not a Parquet file: {' '.join(str(err).split())[:200]}") from None
    if missing := [name for name in needs.columns if name not in schema.names]:
        pairs = "chosen_ids" in schema.names
        scored = set(missing) <= {"teacher_ids", "teacher_logprobs", "teacher_tail"}
        if scored and not pairs:
            raise TrainerError(f"{option} {file} has no teacher's scores; {score_advice(file)}")
        holds = "preference pairs" if pairs else f"no column {missing[0]}"
        place = file.parent if pairs and file.name == "train.parquet" else file
        raise TrainerError(f"{option} {place} holds {holds}; {needs.advice}")
    if not count:
        raise TrainerError(f"{file} has no rows; trainers/rows.py reports which rows it dropped, and why")


def score_advice(rows: Path) -> str:
    """The command that adds a teacher's scores to a row file."""
    return f"trainers/teacher.py adds them: agentsys train teacher --rows {rows} --out scored"


def read_rows(path: str | Path, needs: Needs, tokenizer: Any = None) -> dict[str, Dataset]:
    """Rows by split: `train`, and `validation` where there is one.

    Raises TrainerError as `find_row_files` does, and for ids of another tokenizer than `tokenizer`.
    """
    files = find_row_files(Path(path), needs)
    return {split: read_row_file(file, tokenizer) for split, file in files.items()}


def read_row_file(file: str | Path, tokenizer: Any = None) -> Dataset:
    """All rows of a file. Raises TrainerError for damaged rows, and for ids of another tokenizer than `tokenizer`."""
    import pyarrow.parquet as pq
    from datasets import Dataset
    from datasets.exceptions import DatasetGenerationError

    digest = (pq.read_schema(file).metadata or {}).get(TOKENIZER_KEY, b"").decode()
    if tokenizer is not None and digest and digest != tokenizer_digest(tokenizer):
        raise TrainerError(f"{file} holds ids of another tokenizer; make the rows with the same --student as here")
    try:
        return Dataset.from_parquet(str(file))
    except DatasetGenerationError as err:
        cause = " ".join(str(err.__cause__ or err).split())[:200]
        raise TrainerError(f"{file} is damaged: {cause}; make the rows again") from None


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
