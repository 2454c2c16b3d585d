"""One pass of a teacher over a row file: read and check the rows, score what is missing, write shards.

A shard appears whole or not at all, and rows of a finished shard are not scored again.
"""

from __future__ import annotations

import hashlib
import time
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from agentsys.progress import Progress
from agentsys.trainers.loading import TrainerError
from agentsys.trainers.row_files import TEXT_COLUMNS, TOKENIZER_KEY, Needs, check_row_file

if TYPE_CHECKING:
    import pyarrow as pa

    from agentsys.trainers.scorers import Row, Scorer
    from agentsys.trainers.topk import ScoredFolder, TopK

SHARD_SECONDS: Final = 60.0
"""A shard is written after this time even if it is small, so that a kill loses little on a slow machine."""


@dataclass
class RowFile:
    """Facts of a row file that are checked before a teacher is started."""

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
        """Add one row. Raises TrainerError for a malformed one."""
        row = f"{self.path}, row {len(self.lengths)} (id {row_id!r})"
        if not isinstance(row_id, str) or row_id in self.lengths:
            raise TrainerError(f"{row}: every row needs a unique string id")
        if not ids or mask is None or len(ids) != len(mask):
            sizes = f"{len(ids or ())} and {len(mask or ())}"
            raise TrainerError(f"{row}: input_ids and loss_mask must have the same length, not {sizes}")
        if mask[0] or not set(mask) <= {0, 1} or min(ids) < 0:
            raise TrainerError(f"{row}: loss_mask must be 0 or 1, 0 at the first position, and ids not negative")
        self.lengths[row_id], self.learned[row_id] = len(ids), sum(mask)
        self.highest = max(self.highest, *ids)


NEEDS: Final = Needs("teacher", ("id", *TEXT_COLUMNS), ("sft", "role"))


def scan_row_file(path: Path) -> RowFile:
    """Read the ids and masks. Raises TrainerError for a file without rows, or with a row that cannot be scored."""
    import pyarrow.parquet as pq

    if not path.exists():
        raise TrainerError(f"--rows {path}: no such file; trainers/rows.py (agentsys rows) writes it")
    if path.is_dir():
        row_files = [name for name in (path / "train.parquet", path / "sft" / "train.parquet") if name.is_file()]
        raise TrainerError(f"--rows {path} is a folder; give a row file" + (f": {row_files[0]}" if row_files else ""))
    check_row_file(path, NEEDS)
    parquet = pq.ParquetFile(path)
    digest = (parquet.schema_arrow.metadata or {}).get(TOKENIZER_KEY)
    with path.open("rb") as file:
        sha256 = hashlib.file_digest(file, "sha256").hexdigest()[:16]
    rows = RowFile(path, sha256, digest and digest.decode())
    for batch in parquet.iter_batches(1024, columns=list(NEEDS.columns)):
        for row in zip(*(batch[name].to_pylist() for name in NEEDS.columns), strict=True):
            rows.add(*row)
    return rows


def check_fit(rows: RowFile, scorer: Scorer, top_k: int) -> None:
    """Raises TrainerError if the teacher's tokenizer, vocabulary or context does not fit the rows."""
    if rows.tokenizer is None:
        raise TrainerError(f"{rows.path} does not name its tokenizer; make the rows with rows.py")
    if rows.tokenizer != scorer.digest:
        raise TrainerError(
            f"{rows.path} holds ids of another tokenizer ({rows.tokenizer[:12]}) than the teacher's "
            f"({scorer.digest[:12]}): take a teacher of the student's family"
        )
    if rows.highest >= scorer.width:
        raise TrainerError(f"{rows.path} holds token id {rows.highest}; the teacher has {scorer.width} tokens")
    if not 1 <= top_k <= scorer.width:
        raise TrainerError(f"--top-k {top_k}: give 1 to {scorer.width}, the teacher's number of tokens")
    context = scorer.context()
    if context is not None and (long := [n for n in rows.lengths.values() if n > context]):
        raise TrainerError(
            f"{len(long)} of {len(rows.lengths)} rows are longer than the teacher's context of {context} tokens "
            f"(up to {max(long)}); make the rows with --max-length {context}"
        )


def score_rows(rows: RowFile, scorer: Scorer, folder: ScoredFolder, shard_tokens: int) -> int:
    """Score the rows that have no scores yet. Returns the number of their tokens.

    Finished scores are written even after an error.
    """
    done = folder.read_ids()
    if len(done) < len(rows.lengths):
        scorer.load()
    shards = _Shards(rows, folder, shard_tokens, len(done))
    waiting: deque[pa.Table] = deque()

    def unfinished() -> Iterator[Row]:
        for table, row in _read_rows(rows.path, done):
            waiting.append(table)
            yield row

    scored_before = sum(rows.lengths[i] for i in done)
    with Progress("tokens", sum(rows.lengths.values()), done=scored_before, step="scoring") as progress:
        try:
            for group in scorer.score(unfinished()):
                shards.add([waiting.popleft() for _ in group], group)
                progress.update(scored_before + shards.tokens)
        finally:
            shards.flush()
    return shards.tokens


def _read_rows(path: Path, done: set[str]) -> Iterator[tuple[pa.Table, Row]]:
    """Each row that is not done, as a table of one row and as the teacher's Row."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    from agentsys.trainers.scorers import Row

    for batch in pq.ParquetFile(path).iter_batches(1024):
        table = pa.Table.from_batches([batch])
        for i, row_id in enumerate(batch["id"].to_pylist()):
            if row_id not in done:
                yield table.slice(i, 1), Row(batch["input_ids"][i].as_py(), batch["loss_mask"][i].as_py())


class _Shards:
    """Collects scored rows and writes them in shards."""

    def __init__(self, rows: RowFile, folder: ScoredFolder, shard_tokens: int, row_count: int) -> None:
        self.folder = folder
        self.tokens = 0
        """Tokens scored by this process."""
        self._rows, self._limit, self._row_count = rows, shard_tokens, row_count
        self._before = float(folder.manifest.get("seconds", 0.0))
        self._started = self._flushed = time.monotonic()
        self._pending: list[tuple[pa.Table, TopK]] = []
        self._pending_tokens = 0

    def add(self, tables: Sequence[pa.Table], scores: Sequence[TopK]) -> None:
        """Add a group of rows; a shard is written only between groups."""
        self._pending += zip(tables, scores, strict=True)
        new = sum(self._rows.lengths[table["id"][0].as_py()] for table in tables)
        self.tokens += new
        self._pending_tokens += new
        if self._pending_tokens >= self._limit or time.monotonic() - self._flushed > SHARD_SECONDS:
            self.flush()

    def flush(self) -> None:
        """Write the pending rows as a shard, and the manifest."""
        import pyarrow as pa

        from agentsys.trainers.topk import add_scores

        if self._pending:
            tables, scores = zip(*self._pending, strict=True)
            metadata = {"agentsys.teacher": self.folder.manifest["teacher"]}
            metadata["agentsys.top_k"] = str(self.folder.manifest["top_k"])
            self.folder.add(add_scores(pa.concat_tables(tables), scores, metadata))
            self._row_count += len(self._pending)
        self._pending, self._pending_tokens, self._flushed = [], 0, time.monotonic()
        seconds = time.monotonic() - self._started
        last_rate = self.folder.manifest.get("tokens_per_second", 0.0)
        self.folder.write_manifest(
            rows=self._rows.path.name,
            rows_total=len(self._rows.lengths),
            rows_scored=self._row_count,
            tokens_total=sum(self._rows.lengths.values()),
            learned_tokens_total=sum(self._rows.learned.values()),
            seconds=round(self._before + seconds, 1),
            tokens_per_second=round(self.tokens / max(seconds, 1e-9), 1) if self.tokens else last_rate,
            complete=self._row_count == len(self._rows.lengths),
        )
