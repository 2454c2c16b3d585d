"""Texts whose class depends on the reader, and tiny models that read them."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Literal

import numpy as np

from tests.support.tiny import make_tiny, make_tokenizer

ANIMALS = ("cat", "dog", "owl", "fox", "hen", "cow")
FRUITS = ("fig", "kiwi", "plum", "pear", "lime", "date")


def write_tastes(file: Path, users: int = 40, texts: int = 24, *, times: bool = False, seed: int = 0) -> Path:
    """A CSV of users with opposite tastes: even ones like animals and dislike fruits, odd ones the other way round."""
    random = np.random.default_rng(seed)
    with file.open("w", newline="", encoding="utf-8") as content:
        writer = csv.writer(content)
        writer.writerow(["user", "text", "label", "time"])
        for user in range(users):
            for number in range(texts):
                animal = bool(random.integers(2))
                word = str(random.choice(ANIMALS if animal else FRUITS))
                liked = animal == (user % 2 == 0)
                time = number if times else ""
                writer.writerow([f"reader-{user}", f"the {word} of {number % 4}", "like" if liked else "dislike", time])
    return file


def make_tiny_encoder(folder: Path, *, hidden: int = 32, layers: int = 2, seed: int = 0) -> Path:
    """A random BERT with a byte-level tokenizer."""
    import torch
    from transformers import BertConfig, BertModel

    tokenizer = make_tokenizer()
    torch.manual_seed(seed)
    config = BertConfig(
        vocab_size=512,
        hidden_size=hidden,
        intermediate_size=2 * hidden,
        num_hidden_layers=layers,
        num_attention_heads=4,
        max_position_embeddings=128,
        pad_token_id=tokenizer.pad_token_id,
        initializer_range=0.1,
    )
    folder.mkdir(parents=True, exist_ok=True)
    BertModel(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def make_model(folder: Path, kind: Literal["encoder", "decoder"]) -> Path:
    """A tiny encoder or decoder."""
    return make_tiny_encoder(folder) if kind == "encoder" else make_tiny(folder)
