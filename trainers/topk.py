"""The stored top-k of a teacher for each learned token: 198 bytes at k = 32, before compression.

    teacher_ids            k x int32     the k likeliest tokens, likeliest first
    teacher_logprobs       k x float16   their log-probabilities, at temperature 1
    teacher_tail           float32       the probability of all other tokens together
    teacher_token_logprob  float16       the log-probability of the row's own token

A row's lists are flat: with T' learned positions, in order, T' x k, T' x k, T' and T' values. The tail is summed over
the other tokens before the log-probabilities are rounded to float16: one minus the rounded probabilities goes negative,
and float16 has no digits for a small one. Rounding changes the sum of probabilities by about 1e-4, so a reader
normalizes (losses.teacher_buckets).
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import numpy.typing as npt
import orjson
import pyarrow as pa
import pyarrow.parquet as pq
from filelock import FileLock, Timeout

from agentsys.paths import make_private_folder, replace_file
from agentsys.trainers.loading import TrainerError

if TYPE_CHECKING:
    from torch import Tensor

COLUMNS: Final = ("teacher_ids", "teacher_logprobs", "teacher_tail", "teacher_token_logprob")
MANIFEST: Final = "manifest.json"


@dataclass(frozen=True, slots=True)
class TopK:
    """A teacher's k likeliest tokens at T positions, and the mass outside them."""

    ids: npt.NDArray[np.int32]
    """(T, k)"""
    logprobs: npt.NDArray[np.float16]
    """(T, k)"""
    tail: npt.NDArray[np.float32]
    """(T,), a probability, never negative"""
    token_logprob: npt.NDArray[np.float16]
    """(T,)"""

    def split(self, lengths: Sequence[int]) -> list[TopK]:
        """Split into rows with these numbers of positions."""
        ends = np.cumsum(lengths)[:-1]
        pieces = (np.split(part, ends) for part in (self.ids, self.logprobs, self.tail, self.token_logprob))
        return [TopK(*row) for row in zip(*pieces, strict=True)]

    @property
    def nbytes(self) -> int:
        """Bytes as stored, before compression."""
        return sum(part.nbytes for part in (self.ids, self.logprobs, self.tail, self.token_logprob))


def from_logits(logits: Tensor, tokens: Tensor, k: int) -> TopK:
    """The top k of `logits` (T, V) in fp32, which are overwritten; `tokens` (T,) are the row's own."""
    top = logits.topk(k, dim=1)
    total = logits.logsumexp(1, keepdim=True)
    own = logits.gather(1, tokens[:, None]) - total
    others = logits.scatter_(1, top.indices, -float("inf")).sub_(total).exp_()
    return TopK(
        top.indices.cpu().numpy().astype(np.int32),
        _half((top.values - total).cpu().numpy()),
        others.sum(1).cpu().numpy().astype(np.float32),
        _half(own[:, 0].cpu().numpy()),
    )


def from_alternatives(positions: Sequence[Mapping[int, float]], tokens: Sequence[int], k: int, width: int) -> TopK:
    """The top k from a server's log-probabilities by id, of the k likeliest tokens and the row's own at T positions.

    Ids from `width` on are padding rows of the teacher's head and are left out. If fewer than k tokens remain, the list
    is filled with the lowest other ids, each with the mean mass of the tokens in the tail. The tail is one minus the
    mass of the list, so below about 1e-6 it is noise. Raises KeyError where a token is missing.
    """
    ids, values = np.zeros((len(tokens), k), np.int32), np.zeros((len(tokens), k))
    tail = np.zeros(len(tokens))
    for t, position in enumerate(positions):
        top = sorted(((i, v) for i, v in position.items() if i < width), key=lambda pair: -pair[1])[:k]
        tail[t] = max(0.0, 1.0 - float(np.exp([value for _, value in top]).sum()))
        if missing := k - len(top):
            mean = max(tail[t] / max(width - len(top), 1), 1e-12)
            taken = {i for i, _ in top}
            top += [(i, float(np.log(mean))) for i in range(k) if i not in taken][:missing]
            tail[t] = max(0.0, tail[t] - missing * mean)
        ids[t], values[t] = zip(*top, strict=True)
    own = np.array([position[token] for position, token in zip(positions, tokens, strict=True)])
    return TopK(ids, _half(values), tail.astype(np.float32), _half(own))


def _half(values: npt.NDArray[Any]) -> npt.NDArray[np.float16]:
    """Log-probabilities in float16, clipped to its range."""
    lowest = float(np.finfo(np.float16).min)
    return np.asarray(np.clip(values, lowest, 0.0), dtype=np.float16)


def add_scores(rows: pa.Table, scores: Sequence[TopK], metadata: Mapping[str, str]) -> pa.Table:
    """The rows with the four columns added, and `metadata` added to that of their schema."""
    for name in COLUMNS:
        lists = [getattr(one, name.removeprefix("teacher_")).reshape(-1) for one in scores]
        offsets = np.cumsum([0, *(values.size for values in lists)]).astype(np.int32)
        rows = rows.append_column(name, pa.ListArray.from_arrays(offsets, np.concatenate(lists)))
    kept = {name: value for name, value in (rows.schema.metadata or {}).items() if name != b"huggingface"}
    return rows.replace_schema_metadata(kept | {name.encode(): value.encode() for name, value in metadata.items()})


def check_scored_folder(folder: Path, identity: Mapping[str, Any]) -> None:
    """Raises TrainerError if a folder has the scores of a run with another `identity`, a part of its manifest."""
    _read_manifest(folder, identity)


def _read_manifest(folder: Path, identity: Mapping[str, Any]) -> dict[str, Any]:
    path = folder / MANIFEST
    try:
        manifest = dict(orjson.loads(path.read_bytes())) if path.exists() else {}
    except orjson.JSONDecodeError:
        raise TrainerError(f"{path} is not JSON; remove it, or give another --out") from None
    if not manifest and any(folder.glob("scored-*.parquet")):
        raise TrainerError(f"{folder} has scored rows but no {MANIFEST}; give another --out")
    changed = [name for name in identity if manifest and manifest.get(name) != identity[name]]
    if changed:
        differences = "; ".join(f"{name}: {manifest.get(name)} -> {identity[name]}" for name in changed)
        raise TrainerError(f"{folder} has the scores of another run ({differences}); give another --out")
    return manifest


class ScoredFolder:
    """Scored rows on disk: Parquet shards and a manifest, locked by one process at a time.

    A shard is written under a temporary name and renamed, so that every shard is complete, even after kill -9.
    """

    def __init__(self, folder: Path, identity: Mapping[str, Any]) -> None:
        """Raises TrainerError if another process writes there, or it has scores of another teacher, k or row file."""
        self.folder = folder
        make_private_folder(folder)
        self._lock = FileLock(folder / ".lock")
        try:
            self._lock.acquire(blocking=False)
        except Timeout:
            raise TrainerError(
                f"{folder}: another process is writing there; wait for it, or give another --out"
            ) from None
        try:
            self.manifest = self._open(dict(identity))
        except TrainerError:
            self._lock.release()
            raise

    def _open(self, identity: dict[str, Any]) -> dict[str, Any]:
        manifest = _read_manifest(self.folder, identity)
        for torn in self.folder.glob(".scored-*.tmp"):
            torn.unlink()
        return manifest | identity

    def shards(self) -> list[Path]:
        """The finished shards, in order."""
        return sorted(self.folder.glob("scored-*.parquet"))

    def read_ids(self) -> set[str]:
        """The ids of the rows that are scored."""
        return {str(i) for shard in self.shards() for i in pq.read_table(shard, columns=["id"])["id"].to_pylist()}

    def add(self, rows: pa.Table) -> None:
        """Write the next shard atomically."""
        shards = self.shards()
        number = int(shards[-1].stem.split("-")[1]) + 1 if shards else 0
        temporary = self.folder / f".scored-{number:05d}.parquet.tmp"
        pq.write_table(rows, temporary, compression="zstd", use_dictionary=["kind", "source", "ids_source"])
        with temporary.open("rb+") as file:
            os.fsync(file.fileno())
        os.replace(temporary, self.folder / f"scored-{number:05d}.parquet")

    def write_manifest(self, **values: Any) -> None:
        """Update the manifest with `values`, atomically."""
        self.manifest |= values
        replace_file(self.folder / MANIFEST, orjson.dumps(self.manifest, option=orjson.OPT_INDENT_2))

    def close(self) -> None:
        """Release the lock."""
        self._lock.release()
