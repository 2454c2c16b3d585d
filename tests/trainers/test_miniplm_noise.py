"""MiniPLM on trained models: a corpus with noise and boilerplate, of which the clean part is selected."""

from __future__ import annotations

import random
from pathlib import Path

import numpy as np
import torch

from agentsys.trainers.loading import load_causal_lm, load_tokenizer
from agentsys.trainers.pretrain import nll
from agentsys.trainers.pretrain.chunks import Document, Encoder, chunk_documents
from agentsys.trainers.pretrain.corpus import (
    ChunkFolder,
    ChunkWriter,
    describe_format,
    read_chunks,
    write_chunks,
)
from agentsys.trainers.pretrain.difference import select
from agentsys.trainers.pretrain.scores import (
    ScoringJob,
    score_all,
)
from agentsys.trainers.pretrain.train import chunk_loss, use_nll_forward
from tests.support.tiny import make_tiny

NAMES = [
    "Mirla",
    "Tobin",
    "Sefa",
    "Orrin",
    "Quill",
    "Dagny",
    "Petra",
    "Ludo",
    "Hanno",
    "Ysolde",
    "Bram",
    "Cato",
    "Edda",
    "Fenn",
    "Gisel",
    "Ivo",
]
TRADES = [
    "potter",
    "weaver",
    "smith",
    "baker",
    "glover",
    "cooper",
    "tailor",
    "fisher",
    "mason",
    "dyer",
    "carter",
    "miller",
]
TOWNS = ["Aston", "Brill", "Corfe", "Dunmow", "Elham", "Frome", "Goring", "Hythe", "Ilkley", "Jarrow"]


def people() -> list[str]:
    """One fixed sentence per name: the facts to learn."""
    rng = random.Random(7)
    return [
        f"{name} the {rng.choice(TRADES)} of {rng.choice(TOWNS)} owes {rng.randint(2, 99)} crowns." for name in NAMES
    ]


def mixed_corpus(seed: int, count: int) -> list[Document]:
    """Chunk-long documents: 60 % sentences on people in any order, 20 % random characters, 20 % one repeated line."""
    rng = random.Random(seed)
    facts = people()
    documents = []
    for _ in range(count):
        kind = rng.choices(["clean", "noise", "boilerplate"], [6, 2, 2])[0]
        if kind == "clean":
            text = " ".join(rng.choice(facts) for _ in range(4))
        elif kind == "noise":
            text = "".join(rng.choice("abcdefghijklmnopqrstuvwxyz0123456789#@%&") for _ in range(120))
        else:
            text = "Click here to accept all cookies. " * 4
        documents.append(Document(text, kind))
    return documents


def learn(model: Path, folder: ChunkFolder, steps: int, rate: float, out: Path) -> Path:
    student = load_causal_lm(str(model))
    plain = student.forward
    use_nll_forward(student)
    rows = [np.array(chunk.input_ids) for chunk in read_chunks(folder)]
    rng = random.Random(0)
    optimizer = torch.optim.AdamW(student.parameters(), lr=rate)
    for _ in range(steps):
        loss = chunk_loss(student, *nll.pad_chunks(rng.sample(rows, 16), folder.end_id))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    student.forward = plain
    student.save_pretrained(out)
    load_tokenizer(str(model)).save_pretrained(out)
    return out


def test_noise_and_boilerplate_are_left_out(tmp_path: Path) -> None:
    """A teacher that has learned the corpus, and a small reference that has learned its easy part.

    Kept with three seeds: 76 to 85 % of the clean chunks, none of the boilerplate, at most 1 % of the noise.
    """
    large = make_tiny(tmp_path / "large", hidden=48, layers=1, seed=4)
    small = make_tiny(tmp_path / "small", hidden=16, layers=1, seed=5)
    tokenizer = load_tokenizer(str(large))
    encoder = Encoder(tokenizer)
    facts = describe_format(encoder, tokenizer, str(large), 80)
    folders = {
        name: write_chunks(
            chunk_documents(mixed_corpus(seed, count), encoder, 80), ChunkWriter(tmp_path / name), **facts
        )
        for name, seed, count in (("reserved", 1, 400), ("corpus", 2, 300))
    }
    teacher = learn(large, folders["reserved"], 150, 3e-3, tmp_path / "teacher")
    reference = learn(small, folders["reserved"], 300, 3e-3, tmp_path / "reference")
    for name, model in (("t", teacher), ("r", reference)):
        score_all(ScoringJob(folders["corpus"].folder, str(model), tmp_path / name))
    kept = select(folders["corpus"].folder, tmp_path / "t", tmp_path / "r", 0.5, tmp_path / "half").manifest["domains"]
    all_of = folders["corpus"].manifest["domains"]
    share = {domain: kept.get(domain, {"chunks": 0})["chunks"] / all_of[domain]["chunks"] for domain in all_of}
    assert share["noise"] < 0.1 and share["boilerplate"] < 0.1 and share["clean"] > 0.7, share
