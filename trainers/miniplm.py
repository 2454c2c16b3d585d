"""MiniPLM: distillation for pre-training by difference sampling (arXiv 2410.17215), in four steps.

    python trainers/miniplm.py chunk --corpus books.jsonl --tokenizer qwen2.5-coder-0.5b --out miniplm/chunks
    python trainers/miniplm.py score --chunks miniplm/chunks --name teacher --model TEACHER --out miniplm/scores
    python trainers/miniplm.py score --chunks miniplm/chunks --name reference --model REFERENCE --out miniplm/scores
    python trainers/miniplm.py select --alpha 0.5 --out miniplm/selected
    python trainers/miniplm.py train --corpus miniplm/selected --from-config STUDENT --out student

The teacher scores the corpus once, before training; then a student of any family learns from the selected text.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from agentsys.commands import command, knob, run_app
from agentsys.config import save_config
from agentsys.display import show
from agentsys.progress import Progress
from agentsys.trainers.loading import DType, TrainerError, load_tokenizer
from agentsys.trainers.pretrain.chunks import Encoder, chunk_documents
from agentsys.trainers.pretrain.corpus import ChunkFolder, ChunkWriter, describe_format, read_documents, write_chunks
from agentsys.trainers.pretrain.scores import ScoringJob, score_all, scored_chunks
from agentsys.trainers.pretrain.train import PretrainingOptions, pretrain
from agentsys.trainers.training import TrainingOptions, memory_errors

if TYPE_CHECKING:
    from collections.abc import Callable


@dataclass(frozen=True)
class ChunkOptions:
    """The corpus and its chunks."""

    panel: ClassVar[str] = "Chunks"
    corpus: list[Path] = knob(
        (), "jsonl, json, csv or parquet (text, optionally domain) or txt (one document); repeatable"
    )
    tokenizer: str = knob("qwen2.5-coder-0.5b", "model with the teacher's tokenizer: folder or name")
    max_length: int = knob(1025, "maximum chunk length, in tokens; a model reads one less")
    out: Path = knob(Path("miniplm/chunks"), "output folder")

    def __post_init__(self) -> None:
        """Raises TrainerError for no corpus, or too short chunks."""
        if not self.corpus:
            raise TrainerError("--corpus: give at least one file")
        if self.max_length < 8:
            raise TrainerError(f"--max-length {self.max_length}: give at least 8")


@dataclass(frozen=True)
class ScoreOptions:
    """The chunks and the model that scores them."""

    panel: ClassVar[str] = "Scores"
    chunks: Path = knob(Path("miniplm/chunks"), "chunk folder")
    model: str = knob("", "model that scores: folder or name")
    name: str = knob("teacher", "name of the scores: teacher or reference")
    out: Path = knob(Path("miniplm/scores"), "output folder; the scores are in its subfolder <name>")
    dtype: DType = knob("float32", "type of the weights")
    batch_tokens: int = knob(16_384, "tokens per forward pass, padding included")
    processes: int = knob(1, "processes on this machine; with several GPUs, one for each")

    def __post_init__(self) -> None:
        """Raises TrainerError for no model, a name that is a path, or no process."""
        if not self.model:
            raise TrainerError("--model: give the model that scores")
        if not self.name or Path(self.name).name != self.name:
            raise TrainerError(f"--name {self.name!r}: give a plain name such as teacher or reference")
        if self.processes < 1:
            raise TrainerError(f"--processes {self.processes}: give at least 1")


@dataclass(frozen=True)
class SelectOptions:
    """The scores, and the share of chunks to keep."""

    panel: ClassVar[str] = "Selection"
    chunks: Path = knob(Path("miniplm/chunks"), "chunk folder")
    teacher: Path = knob(Path("miniplm/scores/teacher"), "the teacher's scores")
    reference: Path = knob(Path("miniplm/scores/reference"), "the reference model's scores")
    alpha: float = knob(0.5, "share of the chunks to keep, 0-1")
    samples: int = knob(10, "chunks per section of samples.md")
    out: Path = knob(Path("miniplm/selected"), "output folder")


def chunk(options: ChunkOptions) -> None:
    """Tokenize a corpus and split it into chunks that end with a sentence."""
    started = time.perf_counter()
    writer = ChunkWriter(options.out)
    tokenizer = load_tokenizer(options.tokenizer)
    encoder = Encoder(tokenizer)
    documents = read_documents(options.corpus)
    format_facts = describe_format(encoder, tokenizer, options.tokenizer, options.max_length)
    with Progress("chunks") as progress:
        chunks = _count_chunks(chunk_documents(documents, encoder, options.max_length), progress.update)
        folder = write_chunks(chunks, writer, **format_facts)
    save_config(options.out)
    seconds = time.perf_counter() - started
    _print_folder(folder, f"in {seconds:.0f} s; documents end with {encoder.end_token}")


def score(options: ScoreOptions) -> None:
    """Score all chunks with one model. Rerun it to resume; several commands may share the work."""
    started = time.perf_counter()
    job = ScoringJob(options.chunks, options.model, options.out / options.name, options.dtype, options.batch_tokens)
    chunks = ChunkFolder(options.chunks)
    with Progress("chunks", chunks.chunks, done=scored_chunks(job.out, chunks), step="scoring") as progress:
        scored = score_all(job, options.processes, progress.update)
    seconds = time.perf_counter() - started
    show(f"{scored} chunks scored in {seconds:.1f} s ({scored / seconds:.1f} chunks/s): {job.out}")


def select(options: SelectOptions) -> None:
    """Keep the share of chunks with the highest difference (reference - teacher), in the order of the corpus."""
    from agentsys.trainers.pretrain.difference import select as write_selected

    selected = write_selected(
        options.chunks, options.teacher, options.reference, options.alpha, options.out, options.samples
    )
    save_config(options.out)
    _print_folder(selected, f"of {ChunkFolder(options.chunks).chunks}", ChunkFolder(options.chunks))


def train(options: PretrainingOptions, training: TrainingOptions) -> None:
    """Pre-train a student on a selected corpus with the language-model loss."""
    with memory_errors(training.micro_batch):
        pretrain(options, training)


def _count_chunks(chunks: Iterator[Any], advance: Callable[[int], None]) -> Iterator[Any]:
    for number, chunk in enumerate(chunks, 1):
        yield chunk
        advance(number)


def _print_folder(folder: ChunkFolder, more: str, whole: ChunkFolder | None = None) -> None:
    """Print chunks and tokens per domain; with `whole`, also their share of its chunks."""
    manifest = folder.manifest
    show(f"{manifest['chunks']} chunks, {manifest['tokens']} tokens {more}: {folder.folder}")
    domains: Sequence[str] = list(whole.manifest["domains"] if whole else manifest["domains"])
    for domain in domains:
        counts = manifest["domains"].get(domain, {"chunks": 0, "tokens": 0})
        share = f" ({counts['chunks'] / whole.manifest['domains'][domain]['chunks']:.1%})" if whole else ""
        show(f"  {domain}: {counts['chunks']} chunks{share}, {counts['tokens']} tokens")


app = command(chunk, score, select, train, name="train miniplm")

if __name__ == "__main__":
    sys.exit(run_app(app))
