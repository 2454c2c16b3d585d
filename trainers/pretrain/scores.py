"""Scores of MiniPLM: the mean negative log-likelihood of each chunk under one model, computed once and stored.

A scorer takes the next shard of chunks that is not locked, appends each finished batch to `scores-00000.part`, and
writes `scores-00000.parquet` (id, nll, tokens) at the end. So any number of processes and commands share the work, and
a killed one loses one batch. Batches are planned from all chunks of the shard, not from those without a score, so that
a score does not depend on where a run was interrupted.
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
    flatten_lists,
    read_json,
    read_table,
    write_json,
    write_table,
)

if TYPE_CHECKING:
    from transformers import PreTrainedModel

_POLL_SECONDS: Final = 0.3

RECORD: Final = np.dtype([("place", "<i4"), ("nll", "<f4"), ("tokens", "<i4")])
"""A chunk's place in its shard, its mean NLL in nats per token, and the number of those tokens."""


@dataclass(frozen=True, slots=True)
class ScoringJob:
    """What a scoring process needs: chunks, model, output folder and settings."""

    chunks: Path
    model: str
    out: Path
    dtype: DType = "float32"
    batch_tokens: int = 16_384
    """Tokens per batch, padding included."""
    threads: int | None = None
    """CPU threads of this process; None for torch's default."""
    rank: int = 0
    """Number of this process in its command, which decides its GPU."""

    @property
    def manifest(self) -> dict[str, Any]:
        """What all scores in a folder must have in common."""
        return {
            "model": self.model,
            "weights_sha256": _weights_digest(self.model),
            "dtype": self.dtype,
            "chunks_sha256": ChunkFolder(self.chunks).manifest["sha256"],
        }


def _weights_digest(model: str) -> str | None:
    """SHA-256 of a folder's weights (about 1 s per GB); None for a hub name."""
    folder = Path(folder_of(model))
    if not folder.is_dir():
        return None
    digest = hashlib.sha256()
    for file in sorted([*folder.glob("*.safetensors"), *folder.glob("*.bin")]):
        with file.open("rb") as opened:
            digest.update(hashlib.file_digest(opened, "sha256").digest())
    return digest.hexdigest()


def score_all(job: ScoringJob, processes: int = 1, watch: Callable[[int], None] = lambda scored: None) -> int:
    """Score all chunks of a folder that have no score. Returns the number of chunks that had none.

    Returns when all shards are scored, including those that another command is scoring. Calls `watch` with the number
    of chunks that have scores. Raises TrainerError for a model, a folder or a setting that does not fit.
    """
    folder = ChunkFolder(job.chunks)
    _check_job(job, folder)
    before = scored_chunks(job.out, folder)
    watch(before)
    if is_finished(job.out, folder):
        return 0
    if processes == 1:
        scored = before

        def on_batch(chunks: int) -> None:
            nonlocal scored
            scored += chunks
            watch(scored)

        score_shards(job, on_batch)
    else:
        _score_in_processes(job, processes, lambda: watch(scored_chunks(job.out, folder)))
    watch(folder.chunks)
    return folder.chunks - before


def _check_job(job: ScoringJob, folder: ChunkFolder) -> None:
    """Check model and output folder before anything is computed, and write the manifest."""
    if job.batch_tokens < folder.manifest["max_length"]:
        raise TrainerError(
            f"--batch-tokens {job.batch_tokens}: give at least {folder.manifest['max_length']}, the length of a chunk"
        )
    if tokenizer_digest(load_tokenizer(job.model)) != folder.manifest["tokenizer_sha256"]:
        raise TrainerError(
            f"{job.model} has another tokenizer than the chunks ({folder.manifest['tokenizer']}); "
            "chunk the corpus with this model's tokenizer, or score with a model of that family"
        )
    job.out.mkdir(parents=True, exist_ok=True)
    path = job.out / "manifest.json"
    manifest = job.manifest
    with FileLock(job.out / ".lock"):
        if not path.exists():
            write_json(path, manifest)
        stored = read_json(path, "")
    for name, value in manifest.items():
        if stored.get(name) != value:
            raise TrainerError(
                f"{job.out} has scores with {name} {stored.get(name)!r}, not {value!r}; give another --out or --name"
            )


def score_shards(job: ScoringJob, on_batch: Callable[[int], None] = lambda chunks: None) -> None:
    """Score in this process: first the unlocked shards, then those that other processes left unfinished."""
    folder = ChunkFolder(job.chunks)
    model: PreTrainedModel | None = None
    for wait in (False, True):
        for shard in folder.shards:
            try:
                with FileLock(job.out / f".{shard.path.stem}.lock", blocking=wait):
                    if result_file(job.out, shard).exists():
                        part_file(job.out, shard).unlink(missing_ok=True)
                        continue
                    model = model or _load(job, folder)
                    _score_shard(model, job, shard, folder.end_id, on_batch)
            except Timeout:
                continue


def _load(job: ScoringJob, folder: ChunkFolder) -> PreTrainedModel:
    """The model on its device. Raises TrainerError if it cannot score these chunks."""
    import torch

    from agentsys.trainers.pretrain.nll import check_head

    if job.threads:
        torch.set_num_threads(job.threads)
    model = load_causal_lm(job.model, job.dtype)
    longest = folder.manifest["max_length"]
    limit = getattr(model.config, "max_position_embeddings", None) or longest
    if longest - 1 > limit:
        raise TrainerError(
            f"{job.model} reads {limit} tokens, the chunks have up to {longest}; "
            f"chunk with --max-length {limit + 1} or less"
        )
    gpus = torch.cuda.device_count()
    model.to(f"cuda:{job.rank % gpus}" if gpus else "cpu").eval()
    check_head(model)
    return model


def _score_shard(
    model: PreTrainedModel, job: ScoringJob, shard: Shard, end_id: int, on_batch: Callable[[int], None]
) -> None:
    import pyarrow as pa

    from agentsys.trainers.pretrain.nll import plan_batches

    table = shard.read("id", "input_ids")
    values, bounds = flatten_lists(table.column("input_ids"))
    scores = np.zeros(table.num_rows, RECORD)
    done = np.zeros(table.num_rows, bool)
    part = part_file(job.out, shard)
    for record in read_records(part):
        scores[record["place"]] = record
        done[record["place"]] = True
    with part.open("ab", buffering=0) as file:
        for batch in plan_batches(np.diff(bounds), job.batch_tokens):
            if done[batch].all():
                continue
            chunks = [values[bounds[i] : bounds[i + 1]] for i in batch]
            nll, tokens = _score_batch(model, chunks, end_id, job, shard)
            scores[batch] = np.array(list(zip(batch, nll, tokens, strict=True)), RECORD)
            file.write(scores[batch].tobytes())
            on_batch(len(batch))
    columns = [table.column("id"), pa.array(scores["nll"], mask=scores["tokens"] == 0), pa.array(scores["tokens"])]
    write_table(pa.Table.from_arrays(columns, names=["id", "nll", "tokens"]), result_file(job.out, shard))
    part.unlink()


def _score_batch(
    model: PreTrainedModel, chunks: list[np.ndarray[Any, Any]], end_id: int, job: ScoringJob, shard: Shard
) -> tuple[list[float], list[int]]:
    import torch

    from agentsys.trainers.pretrain.nll import mean_nll

    try:
        nll, tokens = mean_nll(model, chunks, end_id)
    except torch.OutOfMemoryError:
        raise TrainerError(
            f"out of memory with {len(chunks)} chunks per batch; lower --batch-tokens ({job.batch_tokens}) and rerun "
            "to resume"
        ) from None
    if any(n and not np.isfinite(value) for value, n in zip(nll, tokens, strict=True)):
        raise TrainerError(f"{job.model} gives a loss that is not finite in {shard.path}; score with another --dtype")
    return nll, tokens


def _score_in_processes(job: ScoringJob, processes: int, on_poll: Callable[[], None]) -> None:
    """Score in several processes of this machine; a shard of a process that dies is finished by another.

    Raises TrainerError with the message of the first failed process if chunks are left without scores.
    """
    context = multiprocessing.get_context("spawn")
    workers = []
    for rank in range(processes):
        receive, send = context.Pipe(duplex=False)
        worker = context.Process(target=_work, args=(job, rank, processes, send), daemon=True)
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
    if is_finished(job.out, ChunkFolder(job.chunks)):
        return
    for worker, receive in workers:
        if worker.exitcode:
            raise TrainerError(
                _error_message(receive) or f"a scoring process ended with code {worker.exitcode}; rerun to resume"
            )


def _error_message(receive: Any) -> str:
    try:
        return str(receive.recv()) if receive.poll() else ""
    except EOFError:
        return ""


def _work(job: ScoringJob, rank: int, processes: int, send: Any) -> None:
    """The main function of a scoring process, which ends with its parent."""
    parent = multiprocessing.parent_process()
    threads = max(1, (os.cpu_count() or 1) // processes)

    def on_batch(chunks: int) -> None:
        if parent is not None and not parent.is_alive():
            raise SystemExit(1)

    try:
        score_shards(replace(job, rank=rank, threads=threads), on_batch)
    except ValueError as err:
        send.send(str(err))
        raise SystemExit(2) from None
    except KeyboardInterrupt:  # the parent reports it
        raise SystemExit(130) from None


def read_records(part: Path) -> np.ndarray[Any, Any]:
    """The records of finished batches (n,). Removes an incomplete record at the end of the file."""
    if not part.exists():
        return np.zeros(0, RECORD)
    size = part.stat().st_size
    os.truncate(part, size - size % RECORD.itemsize)
    return np.fromfile(part, RECORD)


def result_file(out: Path, shard: Shard) -> Path:
    """The file of a shard's scores, once all are computed."""
    return out / f"{shard.path.stem.replace('chunks', 'scores')}.parquet"


def part_file(out: Path, shard: Shard) -> Path:
    """The file of a shard's scores until then."""
    return result_file(out, shard).with_suffix(".part")


def scored_chunks(out: Path, folder: ChunkFolder) -> int:
    """The number of chunks with a score, from the sizes of files that other processes may be writing."""
    return sum(_count_scores(out, shard) for shard in folder.shards)


def is_finished(out: Path, folder: ChunkFolder) -> bool:
    """Whether every shard is scored."""
    return all(result_file(out, shard).exists() for shard in folder.shards)


def _count_scores(out: Path, shard: Shard) -> int:
    if result_file(out, shard).exists():
        return shard.chunks
    part = part_file(out, shard)
    try:
        return min(shard.chunks, part.stat().st_size // RECORD.itemsize)
    except FileNotFoundError:
        return 0


def read_scores(out: Path, folder: ChunkFolder) -> Iterator[tuple[Shard, Any]]:
    """The scores of a folder, shard by shard: a table (id, nll, tokens) with one row per chunk, in the chunks' order.

    Raises TrainerError unless every chunk of `folder` has a score under its id.
    """
    manifest = read_json(out / "manifest.json", f"{out} has no scores; make them with the command score")
    if manifest.get("chunks_sha256") != folder.manifest["sha256"]:
        raise TrainerError(f"{out} has scores of other chunks than {folder.folder}; score these chunks")
    for shard in folder.shards:
        if not result_file(out, shard).exists():
            count = scored_chunks(out, folder)
            raise TrainerError(f"{out} has scores for {count} of {folder.chunks} chunks; rerun score to finish them")
        table = read_table(result_file(out, shard))
        if table.num_rows != shard.chunks or table.column("id") != shard.read("id").column("id"):
            raise TrainerError(
                f"{result_file(out, shard)} has {table.num_rows} scores for the {shard.chunks} chunks of {shard.path}, "
                "or has them in another order; remove it and rerun score"
            )
        yield shard, table
