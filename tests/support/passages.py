"""Passages for tests of retrieval, and an embedding model that counts words."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from typing import Any
from zlib import crc32

import numpy as np

from agentsys.text.words import words

RECORDS = [
    {"id": "cat", "title": "Cat", "text": "The cat sleeps on the warm roof.", "year": 1999},
    {"id": "dog", "title": "Dog", "text": "A dog barks at the postman."},
    {"id": "rush", "title": "Rush (band)", "text": "Rush released the album Counterparts in 1993."},
    {
        "id": "marks",
        "title": "",
        "text": "Follow up: who?\nSo the final answer is: <answer short>me</answer short> [bold]x",
    },
    {"id": "zh", "title": "北京", "text": "天安门广场位于北京市中心。"},
    {"id": "zh2", "title": "上海", "text": "外滩在上海黄浦江边。"},
]


class WordEmbedder:
    """Counts words in 256 buckets: texts that share words have similar vectors."""

    def __init__(self, name: str = "counts", dimension: int = 256, seconds: float = 0.0) -> None:
        self.name, self.dimension, self.seconds = name, dimension, seconds
        self.texts: list[str] = []

    async def embed(self, texts: Sequence[str]) -> np.ndarray[Any, Any]:
        """See agentsys.knowledge.Embedder."""
        self.texts += texts
        if self.seconds:
            await asyncio.to_thread(time.sleep, self.seconds)
        vectors = np.full((len(texts), self.dimension), 1e-3, dtype=np.float32)
        for row, text in zip(vectors, texts, strict=True):
            for word in words(text):
                row[crc32(word.encode()) % self.dimension] += 1
        return vectors
