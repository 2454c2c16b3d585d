"""Scores of MiniPLM: the mean negative log-likelihood of each chunk under one model, computed once and kept.

Each shard of chunks is a complete job. A scorer takes the next shard that nobody holds (a lock file beside the result),
appends each finished batch to `scores-00000.part`, and at the end turns that into `scores-00000.parquet` (id, nll,
tokens). So any number of processes and commands share the work, and a killed one loses one batch. Batches are planned
from the whole shard, not from what is left of it, so that a score does not depend on where a run was interrupted.
"""

from __future__ import annotations

import hashlib
import multiprocessing
import os
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np
from filelock import FileLock, Timeout

from agentsys.trainers.loading import DType, TrainerError, folder_of, load_causal_lm, load_tokenizer, tokenizer_digest
from agentsys.trainers.pretrain.corpus import (
    ChunkFolder,
    Shard,
    lists_of,
    read_json,
    read_table,
    write_json,
    write_table,
)

if TYPE_CHECKING:
    from transformers import PreTrainedModel

_POLL_SECONDS: Final = 0.3


@dataclass(frozen=True, slots=True)
class Scoring:
    """What a process needs to know to take part in scoring."""

    chunks: Path
    model: str
    out: Path
    dtype: DType = "float32"
    batch_tokens: int = 16_384
    """Tokens in a batch, padding included."""
    threads: int | None = None
    """CPU threads of this process; None leaves torch's choice."""
    rank: int = 0
    """Which of the command's processes this is: the GPU it takes, if there are any."""

    @property
    def manifest(self) -> dict[str, Any]:
        """What the scores in a folder must have in common."""
        return {
            "model": self.model,
            "weights_sha256": _weights_digest(self.model),
            "dtype": self.dtype,
            "chunks_sha256": ChunkFolder(self.chunks).manifest["sha256"],
        }


def _weights_digest(model: str) -> str | None:
    """SHA-256 of a folder's weights (a second for a gigabyte); None for a hub name, whose weights are the hub's."""
    folder = Path(folder_of(model))
    if not folder.is_dir():
        return None
    digest = hashlib.sha256()
    for file in sorted([*folder.glob("*.safetensors"), *folder.glob("*.bin")]):
        with file.open("rb") as opened:
            digest.update(hashlib.file_digest(opened, "sha256").digest())
    return digest.hexdigest()


def score_all(scoring: Scoring, processes: int = 1, watch: Callable[[int], None] = lambda scored: None) -> int:
    """Score every chunk of a folder that has no score yet; how many this left to do and did.

    Returns when all shards are scored, those that another command works on too. `watch` is told how many chunks of the
    folder have scores. Raises TrainerError for a model, a folder or a setting that does not fit.
    """
    folder = ChunkFolder(scoring.chunks)
    _open(scoring, folder)
    before = scored_chunks(scoring.out, folder)
    watch(before)
    if finished(scoring.out, folder):
        return 0
    if processes == 1:
        scored = before

        def on_batch(chunks: int) -> None:
            nonlocal scored
            scored += chunks
            watch(scored)

        score_shards(scoring, on_batch)
    else:
        _share(scoring, processes, lambda: watch(scored_chunks(scoring.out, folder)))
    watch(folder.chunks)
    return folder.chunks - before


def _open(scoring: Scoring, folder: ChunkFolder) -> None:
    """Check model and output folder before anything is computed."""
    if scoring.batch_tokens < folder.manifest["max_length"]:
        raise TrainerError(
            f"--batch-tokens {scoring.batch_tokens}: at least one chunk of {folder.manifest['max_length']} must fit"
        )
    if tokenizer_digest(load_tokenizer(scoring.model)) != folder.manifest["tokenizer_sha256"]:
        raise TrainerError(
            f"{scoring.model} has another tokenizer than the chunks, which are {folder.manifest['tokenizer']}'s; "
            "chunk the corpus with this model's, or score with a model of that family"
        )
    scoring.out.mkdir(parents=True, exist_ok=True)
    path = scoring.out / "manifest.json"
    manifest = scoring.manifest
    with FileLock(scoring.out / ".lock"):
        if not path.exists():
            write_json(path, manifest)
        known = read_json(path, "")
    for name, ours in manifest.items():
        if known.get(name) != ours:
            raise TrainerError(
                f"{scoring.out} has scores with {name} {known.get(name)!r}, not {ours!r}; "
                "choose another --out or --name"
            )


def score_shards(scoring: Scoring, on_batch: Callable[[int], None] = lambda chunks: None) -> None:
    """Score in this process: first what nobody holds, then what others have left behind."""
    folder = ChunkFolder(scoring.chunks)
    model: PreTrainedModel | None = None
    for wait in (False, True):
        for shard in folder.shards:
            try:
                with FileLock(scoring.out / f".{shard.path.stem}.lock", blocking=wait):
                    if result_file(scoring.out, shard).exists():
                        part_file(scoring.out, shard).unlink(missing_ok=True)
                        continue
                    model = model or _load(scoring, folder)
                    _score_shard(model, scoring, shard, folder.end_id, on_batch)
            except Timeout:
                continue


def _load(scoring: Scoring, folder: ChunkFolder) -> PreTrainedModel:
    """The model on its device. Raises TrainerError where it cannot score these chunks."""
    import torch

    from agentsys.trainers.pretrain.nll import check_head

    if scoring.threads:
        torch.set_num_threads(scoring.threads)
    model = load_causal_lm(scoring.model, scoring.dtype)
    longest = folder.manifest["max_length"]
    limit = getattr(model.config, "max_position_embeddings", None) or longest
    if longest - 1 > limit:
        raise TrainerError(
            f"{scoring.model} reads {limit} tokens, the chunks have up to {longest}; "
            f"chunk with --max-length {limit + 1} or less"
        )
    gpus = torch.cuda.device_count()
    model.to(f"cuda:{scoring.rank % gpus}" if gpus else "cpu").eval()
    check_head(model)
    return model


def _score_shard(
    model: PreTrainedModel, scoring: Scoring, shard: Shard, end_id: int, on_batch: Callable[[int], None]
) -> None:
    import pyarrow as pa

    from agentsys.trainers.pretrain.nll import plan

    table = shard.read("id", "input_ids")
    values, bounds = lists_of(table.column("input_ids"))
    scores = np.zeros(table.num_rows, RECORD)
    done = np.zeros(table.num_rows, bool)
    part = part_file(scoring.out, shard)
    for record in kept_records(part):
        scores[record["place"]] = record
        done[record["place"]] = True
    with part.open("ab", buffering=0) as file:
        for batch in plan(np.diff(bounds), scoring.batch_tokens):
            if done[batch].all():
                continue
            chunks = [values[bounds[i] : bounds[i + 1]] for i in batch]
            nll, tokens = _score_batch(model, chunks, end_id, scoring, shard)
            scores[batch] = np.array(list(zip(batch, nll, tokens, strict=True)), RECORD)
            file.write(scores[batch].tobytes())
            on_batch(len(batch))
    columns = [table.column("id"), pa.array(scores["nll"], mask=scores["tokens"] == 0), pa.array(scores["tokens"])]
    write_table(pa.Table.from_arrays(columns, names=["id", "nll", "tokens"]), result_file(scoring.out, shard))
    part.unlink()


def _score_batch(
    model: PreTrainedModel, chunks: list[np.ndarray[Any, Any]], end_id: int, scoring: Scoring, shard: Shard
) -> tuple[list[float], list[int]]:
    import torch

    from agentsys.trainers.pretrain.nll import mean_nll

    try:
        nll, tokens = mean_nll(model, chunks, end_id)
    except torch.OutOfMemoryError:
        raise TrainerError(
            f"out of memory with {len(chunks)} chunks at once; lower --batch-tokens {scoring.batch_tokens} and run "
            "the same command again, finished batches are kept"
        ) from None
    if any(n and not np.isfinite(value) for value, n in zip(nll, tokens, strict=True)):
        raise TrainerError(
            f"{scoring.model} gives a loss that is no number in {shard.path}; score with another --dtype"
        )
    return nll, tokens


def _share(scoring: Scoring, processes: int, on_poll: Callable[[], None]) -> None:
    """Score in several processes of this machine: what one that dies has left, another finishes.

    Raises TrainerError with the words of the first that failed, if something is left.
    """
    context = multiprocessing.get_context("spawn")
    workers = []
    for rank in range(processes):
        receive, send = context.Pipe(duplex=False)
        worker = context.Process(target=_work, args=(scoring, rank, processes, send), daemon=True)
        worker.start()
        send.close()
        workers.append((worker, receive))
    try:
        while any(worker.is_alive() for worker, _ in workers):
            time.sleep(_POLL_SECONDS)
            on_poll()
    finally:
        for worker, _ in workers:
            worker.terminate()
    if finished(scoring.out, ChunkFolder(scoring.chunks)):
        return
    for worker, receive in workers:
        if worker.exitcode:
            raise TrainerError(
                _last_words(receive) or f"a scoring process ended with code {worker.exitcode}; run again"
            )


def _last_words(receive: Any) -> str:
    try:
        return str(receive.recv()) if receive.poll() else ""
    except EOFError:
        return ""


def _work(scoring: Scoring, rank: int, processes: int, send: Any) -> None:
    """The main function of a scoring process; it ends with its parent."""
    parent = multiprocessing.parent_process()
    threads = max(1, (os.cpu_count() or 1) // processes)

    def on_batch(chunks: int) -> None:
        if parent is not None and not parent.is_alive():
            raise SystemExit(1)

    try:
        score_shards(replace(scoring, rank=rank, threads=threads), on_batch)
    except ValueError as err:
        send.send(str(err))
        raise SystemExit(2) from None
    except KeyboardInterrupt:  # the parent says so
        raise SystemExit(130) from None


RECORD: Final = np.dtype([("place", "<i4"), ("nll", "<f4"), ("tokens", "<i4")])


"""A chunk's place in its shard, its mean NLL in nats a token, and how many tokens that is the mean of."""


def kept_records(part: Path) -> np.ndarray[Any, Any]:
    """The records of finished batches (n,); a torn one at the end is cut off."""
    if not part.exists():
        return np.zeros(0, RECORD)
    size = part.stat().st_size
    os.truncate(part, size - size % RECORD.itemsize)
    return np.fromfile(part, RECORD)


def result_file(out: Path, shard: Shard) -> Path:
    """Where the scores of a shard are once all are there."""
    return out / f"{shard.path.stem.replace('chunks', 'scores')}.parquet"


def part_file(out: Path, shard: Shard) -> Path:
    """Where they are until then."""
    return result_file(out, shard).with_suffix(".part")


def scored_chunks(out: Path, folder: ChunkFolder) -> int:
    """How many chunks have a score, read from the sizes of files that any process may be writing."""
    return sum(_scored(out, shard) for shard in folder.shards)


def finished(out: Path, folder: ChunkFolder) -> bool:
    """Whether every shard is scored."""
    return all(result_file(out, shard).exists() for shard in folder.shards)


def _scored(out: Path, shard: Shard) -> int:
    if result_file(out, shard).exists():
        return shard.chunks
    part = part_file(out, shard)
    try:
        return min(shard.chunks, part.stat().st_size // RECORD.itemsize)
    except FileNotFoundError:
        return 0


def read_scores(out: Path, folder: ChunkFolder) -> Iterator[tuple[Shard, Any]]:
    """The finished scores of a folder shard by shard: a table (id, nll, tokens), one row a chunk, in its order.

    Raises TrainerError unless every chunk of `folder` has its score here, under its own id.
    """
    manifest = read_json(out / "manifest.json", f"{out} has no scores; make them with the step score")
    if manifest.get("chunks_sha256") != folder.manifest["sha256"]:
        raise TrainerError(f"{out} has the scores of other chunks than those in {folder.folder}; score these")
    for shard in folder.shards:
        if not result_file(out, shard).exists():
            have = scored_chunks(out, folder)
            raise TrainerError(f"{out} has scores for {have} of {folder.chunks} chunks; let the step score finish")
        table = read_table(result_file(out, shard))
        if table.num_rows != shard.chunks or table.column("id") != shard.read("id").column("id"):
            raise TrainerError(
                f"{result_file(out, shard)} has {table.num_rows} scores for the {shard.chunks} chunks of {shard.path}, "
                "or in another order; remove it and run the step score again"
            )
        yield shard, table
