"""Rows: training examples cut from the targets of traces, filtered, and split so that no input is on both sides.

    python trainers/rows.py runs/drt --student qwen2.5-coder-0.5b --out rows

writes `rows/<kind>/train.parquet` and `validation.parquet` for each kind of target that the traces hold:
`sft` (composed, tokenized once with the student's template), `role` (one call, the engine's own ids) and `step`
(a preference pair, the engine's own ids). `trainers/teacher.py` adds a teacher's top-k to rows. Rows know targets and
nothing of the systems that made them. docs/training.md describes every column.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import product
from pathlib import Path
from typing import Any, ClassVar, Final, Literal

from agentsys.commands import command, knob, run_app
from agentsys.traces import Target, Trace, read_traces, shards
from agentsys.trainers.loading import TrainerError, load_tokenizer, tokenizer_digest
from agentsys.trainers.tokenize_rows import OtherTokenizer, RowTokenizer, lineage

Kind = Literal["sft", "role", "step"]
KINDS: Final[tuple[Kind, ...]] = ("sft", "role", "step")
TOKENIZER_KEY: Final = b"agentsys.tokenizer"
"""Key in the Parquet schema's metadata: the digest of the tokenizer whose ids the rows hold."""
SHORT: Final = 32
"""Characters below which a learned text is an answer that many inputs may share."""

Row = dict[str, Any]


@dataclass(frozen=True)
class Cut:
    """What rows are made from, and for whom."""

    panel: ClassVar[str] = "Rows"
    student: str = knob("qwen2.5-coder-0.5b", "whose tokenizer and template: folder, catalogue name or hub name")
    out: Path = knob(Path("rows"), "output folder")
    role: list[str] = knob((), "take `role` targets of this role only; may be repeated")
    retokenize: bool = knob(False, "make rows from texts where ids are another tokenizer's or were not told")


@dataclass(frozen=True)
class Filters:
    """Which rows stay, and on which side."""

    panel: ClassVar[str] = "Filter and split"
    min_score: float | None = knob(None, "drop sft and role targets that scored less (the system's scale)")
    min_margin: float = knob(0.0, "drop step targets whose two scores differ by no more than this")
    max_length: int = knob(4096, "drop rows longer than this, in tokens")
    near_duplicates: float = knob(0.9, "drop a text this similar to an earlier one (Jaccard, 5-grams); 1: keep all")
    validation: float = knob(0.1, "share of the inputs that is kept for validation, 0-1")
    seed: int = knob(0, "seed of the split")

    def __post_init__(self) -> None:
        """Raises TrainerError for a share out of range."""
        for name in ("near_duplicates", "validation"):
            if not 0 <= getattr(self, name) <= 1:
                raise TrainerError(f"--{name.replace('_', '-')} {getattr(self, name):g}: give a share from 0 to 1")


@dataclass
class Report:
    """What became rows, and what did not and why."""

    written: Counter[tuple[str, str]] = field(default_factory=Counter)
    tokens: Counter[tuple[str, str]] = field(default_factory=Counter)
    dropped: Counter[tuple[str, str]] = field(default_factory=Counter)


def rows_of(trace: Trace, row_tokenizer: RowTokenizer) -> Iterator[Row]:
    """One row for each target of a trace. Raises TrainerError, OtherTokenizer among them."""
    for number, target in enumerate(trace.targets):
        yield row_of(trace, number, target, row_tokenizer)


def row_of(trace: Trace, number: int, target: Target, row_tokenizer: RowTokenizer) -> Row:
    """The row of a trace's target. Raises TrainerError, OtherTokenizer among them."""
    row = {
        "id": f"{trace.run}/{trace.id}#{number}",
        "kind": target.kind,
        "source": trace.source,
        "input": _input_digest(trace),
        "lineage": json.dumps(lineage(target, trace), ensure_ascii=False),
        "scores": json.dumps(dict(target.scores)),
    }
    return row | (_step_columns if target.kind == "step" else _text_columns)(target, trace, row_tokenizer)


def _text_columns(target: Target, trace: Trace, row_tokenizer: RowTokenizer) -> Row:
    tokens = (row_tokenizer.composed if target.kind == "sft" else row_tokenizer.role)(target, trace)
    begin = tokens.learned.index(1) if 1 in tokens.learned else len(tokens.ids)
    decode = row_tokenizer.tokenizer.decode
    return {
        "input_ids": tokens.ids,
        "loss_mask": tokens.learned,
        "prompt": decode(tokens.ids[:begin]),
        "text": decode(tokens.ids[begin:], skip_special_tokens=True),
        "ids_source": tokens.source,
    }


def _step_columns(target: Target, trace: Trace, row_tokenizer: RowTokenizer) -> Row:
    pair = row_tokenizer.step(target, trace)
    decode = row_tokenizer.tokenizer.decode
    return {
        "prompt_ids": pair.prompt_ids,
        "chosen_ids": pair.chosen_ids,
        "rejected_ids": pair.rejected_ids,
        "prompt": decode(pair.prompt_ids),
        "text": decode(pair.chosen_ids, skip_special_tokens=True),
        "rejected": decode(pair.rejected_ids, skip_special_tokens=True),
        "margin": float(target.scores.get("margin", 0.0)),
        "ids_source": pair.source,
    }


def _input_digest(trace: Trace) -> str:
    """The same for records with the same content, whatever their ids and files: case and spaces do not count."""
    content = {
        name: " ".join(value.casefold().split()) if isinstance(value, str) else value
        for name, value in trace.input.items()
        if name != "id"
    }
    return hashlib.sha256(json.dumps(content, sort_keys=True, default=str).encode()).hexdigest()[:16]


class RowFilter:
    """Decides row by row: a reason to drop it, or the side it belongs to."""

    def __init__(self, filters: Filters) -> None:
        self.filters = filters
        self._ids: set[str] = set()
        self._seen: dict[str, Any] = {}
        self._sketches: list[Any] = []

    def reason(self, row: Row) -> str | None:
        """Why a row is dropped; None if it stays."""
        filters, scores = self.filters, json.loads(row["scores"])
        if row["id"] in self._ids:
            return "the same record of the same run twice"
        self._ids.add(row["id"])
        if row["kind"] == "step":
            length = len(row["prompt_ids"]) + max(len(row["chosen_ids"]), len(row["rejected_ids"]))
            if row["chosen_ids"] == row["rejected_ids"]:
                return "chosen and rejected are the same"
            if row["margin"] <= filters.min_margin:
                return f"margin is not above {filters.min_margin:g}"
        else:
            length = len(row["input_ids"])
            if 1 not in row["loss_mask"]:
                return "nothing to learn"
            if filters.min_score is not None and scores.get("score", float("-inf")) < filters.min_score:
                return f"score below {filters.min_score:g}"
        if length > filters.max_length:
            return f"longer than {filters.max_length} tokens"
        return "near-duplicate" if filters.near_duplicates < 1 and self._repeats(row) else None

    def side(self, row: Row) -> str:
        """`train` or `validation`, from the input alone, so that all rows of one input go the same way."""
        digest = hashlib.sha256(f"{self.filters.seed}:{row['input']}".encode()).digest()
        return "validation" if int.from_bytes(digest[:6]) / 2**48 < self.filters.validation else "train"

    def _repeats(self, row: Row) -> bool:
        """Whether an earlier text is as similar. Only a longer sft row is compared with those of other inputs: a judge
        may well give two inputs the same answer, and "true", a name or a number answers many questions."""
        from datasketch import MinHash, MinHashLSH

        limit = self.filters.near_duplicates
        text = " ".join((row["text"] + row.get("rejected", "")).split())
        mark = "" if row["kind"] == "sft" and len(text) >= SHORT else row["input"]
        if row["kind"] == "step":  # the same decision after another prefix is another pair
            mark += hashlib.sha256(row["prompt"].encode()).hexdigest()
        sketch = MinHash(num_perm=128)
        sketch.update_batch([(mark + text[i : i + 5]).encode() for i in range(max(1, len(text) - 4))])
        index = self._seen.setdefault(row["kind"], MinHashLSH(threshold=limit, num_perm=128))
        if any(sketch.jaccard(self._sketches[near]) >= limit for near in index.query(sketch)):
            return True
        self._sketches.append(sketch)
        index.insert(len(self._sketches) - 1, sketch)
        return False


def make_rows(runs: Iterable[Path], cut: Cut, filters: Filters) -> Report:
    """Rows of all kept traces. Files appear whole at the end, and those of an earlier run go. Raises TrainerError.

    A target that cannot be cut is counted with the reason.
    """
    tokenizer = load_tokenizer(cut.student)
    row_tokenizer, row_filter, report = RowTokenizer(tokenizer, cut.retokenize), RowFilter(filters), Report()
    unreadable: list[OtherTokenizer] = []
    with Writer(cut.out, tokenizer_digest(tokenizer)) as writer:
        for trace, number, target in _targets(runs, cut.role):
            try:
                row = row_of(trace, number, target, row_tokenizer)
            except OtherTokenizer as err:
                unreadable.append(err)
                report.dropped[target.kind, "token ids of another tokenizer, or none (--retokenize)"] += 1
            except TrainerError as err:
                report.dropped[target.kind, str(err).partition(": ")[2] or str(err)] += 1
            else:
                _take(row, row_filter, report, writer)
        if unreadable and not report.written:
            raise unreadable[0]
        if not report.written:
            raise TrainerError(f"no rows: {_reasons(report) or 'no kept trace has a target'}")
    return report


def _targets(runs: Iterable[Path], roles: Sequence[str]) -> Iterator[tuple[Trace, int, Target]]:
    """The targets of kept traces with their numbers; of kind `role` only those of these roles, if any are named."""
    for trace in _kept(runs):
        by_key = {call.key: call.role for call in trace.calls}
        for number, target in enumerate(trace.targets):
            wrote = {by_key.get(segment.call) for segment in target.segments if segment.call}
            if target.kind != "role" or not roles or wrote & set(roles):
                yield trace, number, target


def _take(row: Row, row_filter: RowFilter, report: Report, writer: Writer) -> None:
    if reason := row_filter.reason(row):
        report.dropped[row["kind"], reason] += 1
        return
    side = row_filter.side(row)
    writer.write(row, side)
    report.written[row["kind"], side] += 1
    report.tokens[row["kind"], side] += sum(len(row[name]) for name in row if name.endswith("_ids"))


def _kept(runs: Iterable[Path]) -> Iterator[Trace]:
    for run in runs:
        if not shards(run):
            raise TrainerError(f"{run}: no traces-*.jsonl here; name the output folder of a collect run")
        yield from (trace for trace in read_traces(run) if trace.outcome == "kept")


def _reasons(report: Report) -> str:
    return "; ".join(f"{count} {kind}: {reason}" for (kind, reason), count in report.dropped.items())


class Writer:
    """Parquet files by kind and side, under their final names only when all is written."""

    AT_ONCE: Final = 256

    def __init__(self, out: Path, tokenizer: str) -> None:
        self.out, self.tokenizer = out, tokenizer
        self._rows: dict[tuple[str, str], list[Row]] = {}
        self._files: dict[tuple[str, str], Any] = {}

    def __enter__(self) -> Writer:
        return self

    def write(self, row: Row, side: str) -> None:
        """Add a row to its file."""
        rows = self._rows.setdefault((row["kind"], side), [])
        rows.append(row)
        if len(rows) == self.AT_ONCE:
            self._flush((row["kind"], side))

    def __exit__(self, failed: object, *rest: object) -> None:
        for key in self._rows:
            self._flush(key)
        for (kind, side), file in self._files.items():
            file.close()
            part = self._part(kind, side)
            if failed:
                part.unlink()
            else:
                os.replace(part, self.out / kind / f"{side}.parquet")
        for kind, side in product(KINDS, ("train", "validation")):
            if not failed and (kind, side) not in self._files:  # an earlier run's rows: not split as these are
                (self.out / kind / f"{side}.parquet").unlink(missing_ok=True)

    def _part(self, kind: str, side: str) -> Path:
        return self.out / kind / f".{side}.parquet.part"

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


def row_schema(kind: str, tokenizer: str) -> Any:
    """The Arrow schema of a kind of rows; `tokenizer` is the digest of the tokenizer whose ids they hold."""
    import pyarrow as pa

    text = [(name, pa.string()) for name in ("id", "kind", "source", "input", "prompt", "text", "ids_source")]
    ids = ("prompt_ids", "chosen_ids", "rejected_ids") if kind == "step" else ("input_ids",)
    numbers = [(name, pa.list_(pa.int32())) for name in ids]
    own = (
        [("rejected", pa.string()), ("margin", pa.float64())]
        if kind == "step"
        else [("loss_mask", pa.list_(pa.int8()))]
    )
    fields = [*text, *numbers, *own, ("lineage", pa.string()), ("scores", pa.string())]
    return pa.schema(fields, metadata={TOKENIZER_KEY: tokenizer.encode()})


def print_report(report: Report, out: Path) -> None:
    """What was written and what was dropped, as a table."""
    from rich.console import Console
    from rich.table import Table

    table = Table("kind", "split", "rows", "tokens", title=f"rows in {out}")
    for (kind, side), count in sorted(report.written.items()):
        table.add_row(kind, side, f"{count:,}", f"{report.tokens[kind, side]:,}")
    console = Console()
    console.print(table)
    for (kind, reason), count in sorted(report.dropped.items()):
        console.print(f"dropped {count:,} {kind}: {reason}", highlight=False)


def main(runs: list[Path], cut: Cut, filters: Filters) -> None:
    """Cut training rows from the traces of collect runs."""
    print_report(make_rows(runs, cut, filters), cut.out)


if __name__ == "__main__":
    raise SystemExit(run_app(command(main)))
