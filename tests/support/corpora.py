"""A small corpus, its chunks and tiny models to score them with; shared by the tests of MiniPLM."""

from __future__ import annotations

import os
import random
import subprocess
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import orjson
import pyarrow as pa
import torch

from agentsys.commands import command, run_app
from agentsys.trainers import miniplm
from agentsys.trainers.loading import load_tokenizer
from agentsys.trainers.pretrain.chunks import Chunk, Document, Encoder, chunk_documents
from agentsys.trainers.pretrain.corpus import ChunkFolder, ChunkWriter, describe_format, read_documents, write_chunks
from tests.support.paths import ROOT
from tests.support.tiny import SENTENCES, make_tiny

LENGTH = 33
"""Tokens per chunk."""


def make_models(folder: Path) -> Path:
    """A teacher and a reference model of one family, and a student of another."""
    make_tiny(folder / "teacher", seed=1, hidden=48)
    make_tiny(folder / "reference", seed=2, hidden=16)
    make_tiny(folder / "llama", family="llama", vocab=400, seed=3)
    return folder


def make_corpus(folder: Path) -> Path:
    """120 documents in two domains."""
    rng = random.Random(0)
    documents = [
        {"text": " ".join(rng.choices(SENTENCES, k=rng.randint(1, 4))), "domain": rng.choice(["tales", "notes"])}
        for _ in range(120)
    ]
    return write_jsonl(folder / "corpus.jsonl", documents)


def write_jsonl(path: Path, rows: Iterable[dict[str, Any]]) -> Path:
    path.write_bytes(b"".join(orjson.dumps(row) + b"\n" for row in rows))
    return path


def make_chunks(corpus: Path, model: Path, out: Path, *, shard: int = 10_000, length: int = LENGTH) -> ChunkFolder:
    tokenizer = load_tokenizer(str(model))
    encoder = Encoder(tokenizer)
    chunks = chunk_documents(read_documents([corpus]), encoder, length)
    return write_chunks(chunks, ChunkWriter(out, shard), **describe_format(encoder, tokenizer, str(model), length))


def documents_of(chunks: Iterable[Chunk]) -> dict[str, list[str]]:
    """The documents of each domain, from the texts and document ends of chunks."""
    texts_by_domain: dict[str, list[str]] = {}
    for chunk in chunks:
        open_documents = texts_by_domain.setdefault(chunk.domain, [""])
        start = 0
        for end in chunk.document_ends:
            open_documents[-1] += chunk.text[start:end]
            open_documents.append("")
            start = end
        open_documents[-1] += chunk.text[start:]
    for domain, documents in texts_by_domain.items():
        assert documents.pop() == "", f"the last document of {domain} is open"
    return texts_by_domain


def by_domain(documents: Iterable[Document]) -> dict[str, list[str]]:
    texts_by_domain: dict[str, list[str]] = {}
    for document in documents:
        texts_by_domain.setdefault(document.domain, []).append(document.text)
    return texts_by_domain


def all_rows(folder: Path) -> list[dict[str, Any]]:
    return pa.concat_tables([shard.read() for shard in ChunkFolder(folder).shards]).to_pylist()


def run(*arguments: object) -> int:
    """Run the command in this process. Returns the exit code."""
    app = command(miniplm.chunk, miniplm.score, miniplm.select, miniplm.train)
    return run_app(app, [str(argument) for argument in arguments])


def start(*arguments: object) -> subprocess.Popen[str]:
    """Start the command in its own process."""
    script = [sys.executable, ROOT / "trainers" / "miniplm.py", *arguments]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    return subprocess.Popen(
        [str(part) for part in script], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment
    )


def naive(model: Any, ids: Sequence[int], end_id: int) -> tuple[float, int]:
    """Mean NLL and number of predicted tokens, one token at a time from the full logits."""
    with torch.no_grad():
        logits = model(torch.tensor([ids])).logits[0].double()
    losses = [
        float(-logits[t - 1].log_softmax(-1)[ids[t]]) for t in range(1, len(ids)) if ids[t - 1] != end_id
    ]  # fmt: skip
    return sum(losses) / len(losses), len(losses)
