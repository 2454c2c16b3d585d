"""Part 4 of benchmarks/teaches.py: difference sampling on a corpus with planted noise and boilerplate."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import numpy as np

from agentsys.trainers.loading import folder_of, load_tokenizer
from agentsys.trainers.pretrain.chunks import Encoder, chunk_documents
from agentsys.trainers.pretrain.corpus import ChunkFolder, ChunkWriter, describe_format, read_documents, write_chunks
from agentsys.trainers.pretrain.difference import select, write_selection
from agentsys.trainers.pretrain.scores import ScoringJob, score_all
from agentsys.trainers.pretrain.train import PretrainingOptions, pretrain
from agentsys.trainers.training import TrainingOptions

TEACHER = "smollm2-135m"
LENGTH = 129
"""Tokens per chunk."""
BOILERPLATE = "All rights are kept by their holders. Read the terms before you go on to the next page of this site."


def difference_sampling(passages: list[str], out: Path, clean: int, seed: int) -> dict[str, Any]:
    """Plant noise and boilerplate among clean passages, select half, and pre-train a small student on it.

    Of the passages, the first `clean` go into the corpus, as many after them into the reference data, and 100 more
    are the clean text on which students are measured. Of corpus and reference data a fifth each is noise (shuffled
    letters) and a fifth boilerplate: the reference data is from the same collection, as in the paper.
    """
    rng = random.Random(seed)
    tokenizer, config = load_tokenizer(TEACHER), small_configuration(out / "config")
    folders = {
        "corpus": mixture(passages[:clean], rng),
        "reference": mixture(passages[clean : 2 * clean], rng),
        "test": label_texts("clean", passages[2 * clean : 2 * clean + 100]),
    }
    chunks = {name: make_chunks(documents, tokenizer, out / name) for name, documents in folders.items()}
    reference = learn(config, chunks["reference"].folder, chunks["test"].folder, out / "reference-model", epochs=8)
    for name, model in (("teacher", TEACHER), ("reference", str(out / "reference-model" / "model"))):
        score_all(ScoringJob(out / "corpus", model, out / "scores" / name))
    scores = (out / "scores" / "teacher", out / "scores" / "reference")
    selected = select(out / "corpus", *scores, 0.5, out / "selected", 10)
    sampled = select_at_random(chunks["corpus"], selected.chunks, out / "random", seed)
    students = {
        name: learn(config, folder.folder, out / "test", out / f"{name}-model", epochs=8)
        for name, folder in (("selected", selected), ("random", sampled))
    }
    return {
        "share kept": {
            name: shares(folder, chunks["corpus"]) for name, folder in (("selected", selected), ("random", sampled))
        },
        "tokens": {"corpus": chunks["corpus"].manifest["tokens"], "selected": selected.manifest["tokens"]},
        "loss on clean text": {"reference": reference, **students},
    }


def label_texts(domain: str, texts: list[str]) -> list[dict[str, str]]:
    """Documents of a domain."""
    return [{"text": text, "domain": domain} for text in texts]


def mixture(clean: list[str], rng: random.Random) -> list[dict[str, str]]:
    """Clean texts, and a third as many of noise and of boilerplate, shuffled."""
    noise = ["".join(rng.sample(text, len(text))) for text in clean[: len(clean) // 3]]
    length = sum(map(len, noise)) // max(1, len(noise))
    line = " ".join([BOILERPLATE] * (length // len(BOILERPLATE) + 1))
    documents = (
        label_texts("clean", clean) + label_texts("noise", noise) + label_texts("boilerplate", [line] * len(noise))
    )
    rng.shuffle(documents)
    return documents


def make_chunks(documents: list[dict[str, str]], tokenizer: Any, out: Path) -> ChunkFolder:
    """The chunk folder of documents, in the teacher's tokens."""
    file = out.with_suffix(".jsonl")
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text("".join(json.dumps(d, ensure_ascii=False) + "\n" for d in documents), encoding="utf-8")
    encoder = Encoder(tokenizer)
    format_facts = describe_format(encoder, tokenizer, TEACHER, LENGTH)
    return write_chunks(chunk_documents(read_documents([file]), encoder, LENGTH), ChunkWriter(out), **format_facts)


def small_configuration(folder: Path) -> Path:
    """The teacher's family with 4 layers of width 128, for the reference and the students."""
    from transformers import AutoConfig

    config = AutoConfig.from_pretrained(folder_of(TEACHER))
    config.num_hidden_layers, config.hidden_size, config.intermediate_size = 4, 128, 384
    config.num_attention_heads, config.num_key_value_heads, config.head_dim = 4, 2, 32
    config.save_pretrained(folder)
    load_tokenizer(TEACHER).save_pretrained(folder)
    return folder


def learn(config: Path, corpus: Path, test: Path, out: Path, epochs: int) -> float:
    """Pre-train from new weights. Returns the loss on clean text, in nats per token."""
    options = PretrainingOptions(corpus, validation=test, from_config=str(config))
    training = TrainingOptions(
        out, epochs=epochs, learning_rate=2e-3, batch=4, micro_batch=4, checkpoint_every=10_000, evaluate_every=10_000
    )
    return round(pretrain(options, training)["eval_loss"], 4)


def select_at_random(corpus: ChunkFolder, count: int, out: Path, seed: int) -> ChunkFolder:
    """A random selection of `count` chunks."""
    keep = np.zeros(corpus.chunks, bool)
    keep[np.random.default_rng(seed).choice(corpus.chunks, count, replace=False)] = True
    return write_selection(corpus, keep, out)


def shares(kept: ChunkFolder, whole: ChunkFolder) -> dict[str, float]:
    """The share of chunks kept, by domain."""
    counts = kept.manifest["domains"]
    return {
        name: round(counts.get(name, {"chunks": 0})["chunks"] / of["chunks"], 3)
        for name, of in whole.manifest["domains"].items()
    }
