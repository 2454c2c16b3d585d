"""MiniPLM: distillation for pre-training by difference sampling (arXiv 2410.17215), in four steps.

    python trainers/miniplm.py chunk --corpus books.jsonl --tokenizer qwen2.5-coder-0.5b --out miniplm/chunks
    python trainers/miniplm.py score --chunks miniplm/chunks --name teacher --model TEACHER --out miniplm/scores
    python trainers/miniplm.py score --chunks miniplm/chunks --name reference --model REFERENCE --out miniplm/scores
    python trainers/miniplm.py select --alpha 0.5 --out miniplm/selected
    python trainers/miniplm.py train --corpus miniplm/selected --from-config STUDENT --out student

The teacher is asked once, before any training; after that a student of any family learns from plain text.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from agentsys.commands import command, knob, run_app
from agentsys.trainers.loading import DType, TrainerError, load_tokenizer
from agentsys.trainers.pretrain.chunks import Encoder, chunked
from agentsys.trainers.pretrain.corpus import ChunkFolder, Writer, facts_of, read_documents, write_chunks
from agentsys.trainers.pretrain.scores import Scoring, score_all
from agentsys.trainers.pretrain.train import PretrainingOptions, pretrain
from agentsys.trainers.training import TrainingOptions

if TYPE_CHECKING:
    from collections.abc import Callable


@dataclass(frozen=True)
class ChunkOptions:
    """What becomes chunks, and how."""

    panel: ClassVar[str] = "Chunks"
    corpus: list[Path] = knob(
        (), "jsonl, json, csv or parquet (text, perhaps domain) or txt (one document); repeatable"
    )
    tokenizer: str = knob("qwen2.5-coder-0.5b", "model whose tokenizer the teacher has: folder or name")
    max_length: int = knob(1025, "tokens of a chunk at most; a model reads one less")
    out: Path = knob(Path("miniplm/chunks"), "output folder")

    def __post_init__(self) -> None:
        """Raises TrainerError for no corpus, or chunks too short to predict anything."""
        if not self.corpus:
            raise TrainerError("--corpus: name at least one file")
        if self.max_length < 8:
            raise TrainerError(f"--max-length {self.max_length}: at least 8 tokens are needed")


@dataclass(frozen=True)
class ScoreOptions:
    """What is scored, and with what."""

    panel: ClassVar[str] = "Scores"
    chunks: Path = knob(Path("miniplm/chunks"), "chunk folder")
    model: str = knob("", "model that scores: folder or name")
    name: str = knob("teacher", "what the scores are called: teacher or reference")
    out: Path = knob(Path("miniplm/scores"), "the scores go into a folder of that name in here")
    dtype: DType = knob("float32", "type of the weights")
    batch_tokens: int = knob(16_384, "tokens of one forward pass, padding included")
    processes: int = knob(1, "processes on this machine; with several GPUs, as many as those")

    def __post_init__(self) -> None:
        """Raises TrainerError for no model, a name that is a path, or no process."""
        if not self.model:
            raise TrainerError("--model: name the model that scores")
        if not self.name or Path(self.name).name != self.name:
            raise TrainerError(f"--name {self.name!r}: give a plain name such as teacher or reference")
        if self.processes < 1:
            raise TrainerError(f"--processes {self.processes}: at least 1 is needed")


@dataclass(frozen=True)
class SelectOptions:
    """What is kept."""

    panel: ClassVar[str] = "Selection"
    chunks: Path = knob(Path("miniplm/chunks"), "chunk folder")
    teacher: Path = knob(Path("miniplm/scores/teacher"), "the teacher's scores")
    reference: Path = knob(Path("miniplm/scores/reference"), "the reference model's scores")
    alpha: float = knob(0.5, "share of the chunks to keep, 0-1")
    samples: int = knob(10, "chunks in each part of samples.md")
    out: Path = knob(Path("miniplm/selected"), "output folder")


def chunk(options: ChunkOptions) -> None:
    """Tokenize a corpus and cut it into chunks that end where sentences do."""
    started = time.perf_counter()
    writer = Writer(options.out)
    tokenizer = load_tokenizer(options.tokenizer)
    encoder = Encoder(tokenizer)
    documents = read_documents(options.corpus)
    facts = facts_of(encoder, tokenizer, options.tokenizer, options.max_length)
    with _bar("chunks", None) as advance:
        chunks = _counted(chunked(documents, encoder, options.max_length), advance)
        folder = write_chunks(chunks, writer, **facts)
    seconds = time.perf_counter() - started
    _say(folder, f"in {seconds:.0f} s; documents end with {encoder.end_token}")


def score(options: ScoreOptions) -> None:
    """Score every chunk with one model; started again, or several times at once, it goes on with what is left."""
    started = time.perf_counter()
    scoring = Scoring(options.chunks, options.model, options.out / options.name, options.dtype, options.batch_tokens)
    with _bar("scored", ChunkFolder(options.chunks).chunks) as advance:
        scored = score_all(scoring, options.processes, advance)
    seconds = time.perf_counter() - started
    print(f"{scored} chunks scored in {seconds:.1f} s ({scored / seconds:.1f} chunks/s): {scoring.out}")


def select(options: SelectOptions) -> None:
    """Keep the share of chunks with the highest difference, reference minus teacher, in the corpus's order."""
    from agentsys.trainers.pretrain.difference import select as write

    selected = write(options.chunks, options.teacher, options.reference, options.alpha, options.out, options.samples)
    _say(selected, f"of {ChunkFolder(options.chunks).chunks}", ChunkFolder(options.chunks))


def train(options: PretrainingOptions, training: TrainingOptions) -> None:
    """Pre-train a student on a selected corpus with the plain language-model loss."""
    pretrain(options, training)


def _counted(chunks: Iterator[Any], advance: Callable[[int], None]) -> Iterator[Any]:
    for number, one in enumerate(chunks, 1):
        yield one
        advance(number)


@contextmanager
def _bar(label: str, total: int | None) -> Iterator[Callable[[int], None]]:
    """A bar on a terminal (nothing elsewhere); what it yields is told how many are done."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    columns = (TextColumn(label), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    console = Console(stderr=True)
    with Progress(*columns, console=console, transient=True, disable=not sys.stderr.isatty()) as progress:
        task = progress.add_task(label, total=total)
        yield lambda done: progress.update(task, completed=done)


def _say(folder: ChunkFolder, more: str, whole: ChunkFolder | None = None) -> None:
    """Chunks and tokens of each domain; with `whole`, what share of the domain that is."""
    facts = folder.manifest
    print(f"{facts['chunks']} chunks, {facts['tokens']} tokens {more}: {folder.folder}")
    domains: Sequence[str] = list(whole.manifest["domains"] if whole else facts["domains"])
    for domain in domains:
        counts = facts["domains"].get(domain, {"chunks": 0, "tokens": 0})
        share = f" ({counts['chunks'] / whole.manifest['domains'][domain]['chunks']:.1%})" if whole else ""
        print(f"  {domain}: {counts['chunks']} chunks{share}, {counts['tokens']} tokens")


if __name__ == "__main__":
    raise SystemExit(run_app(command(chunk, score, select, train)))
