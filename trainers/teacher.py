"""Score rows once with a teacher: its top-k log-probabilities at every learned position, for distillation.

    python trainers/teacher.py --rows rows/sft/train.parquet --teacher qwen2.5-coder-1.5b --out scored

writes `scored-00000.parquet` and so on: all columns of the rows and the four of trainers/topk.py, in the rows' order
(`datasets.load_dataset("parquet", data_files="scored/scored-*.parquet")`), and `manifest.json`. Scoring costs one
forward pass of the teacher; training then needs the teacher no more, however many epochs and settings are tried.

A shard appears whole or not at all, and rows that are in a shard are not scored again: after kill -9 the same command
goes on, and loses what was scored since the last shard.
"""

from __future__ import annotations

import hashlib
import sys
import time
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Final

from agentsys.commands import command, knob, run_app
from agentsys.trainers.loading import DType, TrainerError
from agentsys.trainers.rows import TOKENIZER_KEY

if TYPE_CHECKING:
    import pyarrow as pa

    from agentsys.trainers.scorers import Row, Scorer
    from agentsys.trainers.topk import ScoredFolder, TopK

SHARD_SECONDS: Final = 60.0
"""A shard is closed after this long even if it is small, so that a kill costs little on a slow machine."""
QUIET_SECONDS: Final = 10.0
"""Where the output is no terminal, a line this often takes the place of the bar."""


@dataclass(frozen=True)
class Scoring:
    """What is scored, by whom, and how much of it is kept."""

    panel: ClassVar[str] = "Teacher"
    rows: Path | None = knob(None, "row file (.parquet) of kind sft or role, from rows.py")
    out: Path | None = knob(None, "output folder; scoring that is there already goes on")
    teacher: str = knob(
        "qwen2.5-coder-1.5b",
        "folder, catalogue or hub name (with transformers, here), vllm:FOLDER (starts a server), http://host:port/v1",
    )
    teacher_tokenizer: str | None = knob(None, "folder of the teacher's tokenizer, needed for an http teacher")
    top_k: int = knob(32, "tokens kept at each position; 6 bytes each")


@dataclass(frozen=True)
class Speed:
    """What may be changed for speed and memory without changing the result beyond rounding."""

    panel: ClassVar[str] = "Speed"
    dtype: DType = knob("float32", "of the teacher's weights in transformers: float32 or bfloat16")
    batch_tokens: int = knob(8192, "tokens in one forward pass in transformers, padding included")
    in_flight: int = knob(64, "requests in flight to a server")
    shard_tokens: int = knob(200_000, "tokens in one output shard")

    def __post_init__(self) -> None:
        """Raises TrainerError for a number below 1."""
        for name in ("batch_tokens", "in_flight", "shard_tokens"):
            if getattr(self, name) < 1:
                raise TrainerError(f"--{name.replace('_', '-')} {getattr(self, name)}: at least 1 is needed")


@dataclass
class RowFile:
    """What must be known of a row file before a teacher is started."""

    path: Path
    sha256: str
    tokenizer: str | None
    """Digest of the tokenizer whose ids the rows hold."""
    lengths: dict[str, int] = field(default_factory=dict)
    """Tokens by row id."""
    learned: dict[str, int] = field(default_factory=dict)
    """Learned tokens by row id."""
    highest: int = 0
    """The highest token id."""

    def add(self, row_id: Any, ids: Sequence[int] | None, mask: Sequence[int] | None) -> None:
        """Take in one row. Raises TrainerError for a malformed one."""
        where = f"{self.path}, row {len(self.lengths)} (id {row_id!r})"
        if not isinstance(row_id, str) or row_id in self.lengths:
            raise TrainerError(f"{where}: every row needs an id of its own, as text")
        if not ids or mask is None or len(ids) != len(mask):
            sizes = f"{len(ids or ())} and {len(mask or ())}"
            raise TrainerError(f"{where}: input_ids and loss_mask must be as long as each other, not {sizes}")
        if mask[0] or not set(mask) <= {0, 1} or min(ids) < 0:
            raise TrainerError(f"{where}: loss_mask is 0 or 1, 0 at the first position, and ids are not negative")
        self.lengths[row_id], self.learned[row_id] = len(ids), sum(mask)
        self.highest = max(self.highest, *ids)


def read_row_file(path: Path) -> RowFile:
    """Read ids and masks once. Raises TrainerError for a file without rows, or a row that cannot be scored."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        parquet = pq.ParquetFile(path)
    except (pa.ArrowInvalid, FileNotFoundError, IsADirectoryError) as err:
        raise TrainerError(f"--rows {path}: no Parquet file ({' '.join(str(err).split())[:100]})") from None
    needed = ("id", "input_ids", "loss_mask")
    if missing := [name for name in needed if name not in parquet.schema_arrow.names]:
        raise TrainerError(f"--rows {path} has no column {missing[0]}; give rows of kind sft or role, from rows.py")
    digest = (parquet.schema_arrow.metadata or {}).get(TOKENIZER_KEY)
    with path.open("rb") as file:
        sha256 = hashlib.file_digest(file, "sha256").hexdigest()[:16]
    rows = RowFile(path, sha256, digest and digest.decode())
    for batch in parquet.iter_batches(1024, columns=list(needed)):
        for row in zip(*(batch[name].to_pylist() for name in needed), strict=True):
            rows.add(*row)
    if not rows.lengths:
        raise TrainerError(f"--rows {path} has no rows")
    return rows


def check_fit(rows: RowFile, scorer: Scorer, top_k: int) -> None:
    """Raises TrainerError where the teacher's ids, width or context are not the rows'."""
    if rows.tokenizer is None:
        raise TrainerError(f"{rows.path} does not say whose token ids it holds; make the rows with rows.py")
    if rows.tokenizer != scorer.digest:
        raise TrainerError(
            f"{rows.path} holds ids of another tokenizer ({rows.tokenizer[:12]}) than the teacher's "
            f"({scorer.digest[:12]}), where they mean other tokens: take a teacher of the student's family"
        )
    if rows.highest >= scorer.width:
        raise TrainerError(f"{rows.path} holds token id {rows.highest}; the teacher has {scorer.width} tokens")
    if not 1 <= top_k <= scorer.width:
        raise TrainerError(f"--top-k {top_k}: between 1 and the teacher's {scorer.width} tokens")
    context = scorer.context()
    if context is not None and (long := [n for n in rows.lengths.values() if n > context]):
        raise TrainerError(
            f"{len(long)} of {len(rows.lengths)} rows are longer than the teacher's context of {context} tokens "
            f"(up to {max(long)}); make the rows with --max-length {context}"
        )


def score_rows(rows: RowFile, scorer: Scorer, folder: ScoredFolder, shard_tokens: int) -> int:
    """Score what is not scored yet and write it to the folder. Returns how many tokens that was.

    What is scored is written even if an error ends it.
    """
    done = folder.finished()
    if len(done) < len(rows.lengths):
        scorer.load()
    shards = _Shards(rows, folder, shard_tokens, len(done))
    waiting: deque[pa.Table] = deque()

    def unfinished() -> Iterator[Row]:
        for table, row in _read(rows.path, done):
            waiting.append(table)
            yield row

    with _Progress(sum(rows.lengths.values()), sum(rows.lengths[i] for i in done)) as progress:
        try:
            for group in scorer.score(unfinished()):
                shards.add([waiting.popleft() for _ in group], group)
                progress.show(shards.tokens)
        finally:
            shards.flush()
    return shards.tokens


def _read(path: Path, done: set[str]) -> Iterator[tuple[pa.Table, Row]]:
    """Each row that is not done, as a table of one row and as what the teacher reads."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    from agentsys.trainers.scorers import Row

    for batch in pq.ParquetFile(path).iter_batches(1024):
        table = pa.Table.from_batches([batch])
        for i, row_id in enumerate(batch["id"].to_pylist()):
            if row_id not in done:
                yield table.slice(i, 1), Row(batch["input_ids"][i].as_py(), batch["loss_mask"][i].as_py())


class _Shards:
    """Gathers scored rows until there are enough for a shard."""

    def __init__(self, rows: RowFile, folder: ScoredFolder, shard_tokens: int, finished: int) -> None:
        self.folder = folder
        self.tokens = 0
        """Tokens scored by this process."""
        self._rows, self._limit, self._finished = rows, shard_tokens, finished
        self._before = float(folder.manifest.get("seconds", 0.0))
        self._started = self._flushed = time.monotonic()
        self._held: list[tuple[pa.Table, TopK]] = []
        self._held_tokens = 0

    def add(self, tables: Sequence[pa.Table], scores: Sequence[TopK]) -> None:
        """Take in a group; a shard is written only between groups."""
        self._held += zip(tables, scores, strict=True)
        new = sum(self._rows.lengths[table["id"][0].as_py()] for table in tables)
        self.tokens += new
        self._held_tokens += new
        if self._held_tokens >= self._limit or time.monotonic() - self._flushed > SHARD_SECONDS:
            self.flush()

    def flush(self) -> None:
        """Write what is held as a shard, and the manifest."""
        import pyarrow as pa

        from agentsys.trainers.topk import with_scores

        if self._held:
            tables, scores = zip(*self._held, strict=True)
            names = {"agentsys.teacher": self.folder.manifest["teacher"]}
            names["agentsys.top_k"] = str(self.folder.manifest["top_k"])
            self.folder.add(with_scores(pa.concat_tables(tables), scores, names))
            self._finished += len(self._held)
        self._held, self._held_tokens, self._flushed = [], 0, time.monotonic()
        seconds = time.monotonic() - self._started
        before = self.folder.manifest.get("tokens_per_second", 0.0)
        self.folder.write_manifest(
            rows=self._rows.path.name,
            rows_in_all=len(self._rows.lengths),
            rows_scored=self._finished,
            tokens_in_all=sum(self._rows.lengths.values()),
            learned_tokens_in_all=sum(self._rows.learned.values()),
            seconds=round(self._before + seconds, 1),
            tokens_per_second=round(self.tokens / max(seconds, 1e-9), 1) if self.tokens else before,
            complete=self._finished == len(self._rows.lengths),
        )


class _Progress:
    """A bar over tokens on a terminal; elsewhere a line now and then. Both go to stderr."""

    def __init__(self, total: int, done: int) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn

        console = Console(stderr=True)
        columns = (BarColumn(), TaskProgressColumn(), TextColumn("{task.description}"), TimeRemainingColumn())
        self._bar = Progress(*columns, console=console, disable=not console.is_terminal, transient=True)
        self._task = self._bar.add_task("scoring", total=total, completed=done)
        self._total, self._done = total, done
        self._started = self._said = time.monotonic()

    def __enter__(self) -> _Progress:
        self._bar.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self._bar.stop()

    def show(self, tokens: int) -> None:
        """`tokens` have been scored by this process."""
        now = time.monotonic()
        line = f"{tokens / max(now - self._started, 1e-9):,.0f} tokens/s"
        self._bar.update(self._task, completed=self._done + tokens, description=line)
        if self._bar.disable and now - self._said > QUIET_SECONDS:
            self._said = now
            print(f"{self._done + tokens:,} of {self._total:,} tokens, {line}", file=sys.stderr)


def main(scoring: Scoring, speed: Speed) -> None:
    """Score rows once with a teacher: top-k log-probabilities and the mass outside, for every learned token."""
    from agentsys.trainers.scorers import Settings, make_scorer
    from agentsys.trainers.topk import ScoredFolder

    if scoring.rows is None or scoring.out is None:
        raise TrainerError(f"--{'rows' if scoring.rows is None else 'out'} is needed; --help shows an example")
    rows = read_row_file(scoring.rows)
    settings = Settings(scoring.top_k, speed.dtype, speed.batch_tokens, speed.in_flight)
    longest = max(rows.lengths.values())
    scorer = make_scorer(scoring.teacher, settings, tokenizer=scoring.teacher_tokenizer, longest=longest)
    try:
        check_fit(rows, scorer, scoring.top_k)
        what = {"tokenizer": scorer.digest, "top_k": scoring.top_k, "rows_sha256": rows.sha256}
        folder = ScoredFolder(scoring.out, scorer.identity() | what)
        try:
            scored = score_rows(rows, scorer, folder, speed.shard_tokens)
        finally:
            folder.close()
    finally:
        scorer.close()
    print(_summary(folder, scored))


def _summary(folder: ScoredFolder, scored: int) -> str:
    manifest = folder.manifest
    speed = f"{manifest['tokens_per_second']:,.0f} tokens/s in this run" if scored else "nothing was left to score"
    return (
        f"{manifest['rows_scored']} rows with {manifest['learned_tokens_in_all']:,} learned tokens of "
        f"{manifest['tokens_in_all']:,} scored by {manifest['teacher']}; {speed}: {folder.folder}/scored-*.parquet"
    )


if __name__ == "__main__":
    sys.exit(run_app(command(main)))
