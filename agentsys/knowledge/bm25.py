"""BM25 (Robertson and Zaragoza 2009) with bm25s: each word's score in each passage is computed at build time.

A search then adds up the rows of the query's words, each counted once, and takes the best; passages that share no word
with the query are no hits. The matrix is memory-mapped.
"""

from __future__ import annotations

import asyncio
import shutil
from array import array
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from agentsys.knowledge.passages import KnowledgeError
from agentsys.text.words import words

if TYPE_CHECKING:
    import numpy as np

FOLDER: Final = "bm25"
_FLUSH: Final = 1 << 20

Ranking = list[tuple[int, float]]
"""Positions of passages with their scores, best first."""


class _Documents:
    """The passages as lists of word ids, read one at a time: as Python lists all of them would be gigabytes."""

    def __init__(self, ids: np.ndarray[Any, Any], bounds: array[int]) -> None:
        self._ids, self._bounds = ids, bounds

    def __len__(self) -> int:
        return len(self._bounds) - 1

    def __iter__(self) -> Iterator[list[int]]:
        return (self._ids[start:end].tolist() for start, end in pairwise(self._bounds))


def build(texts: Iterable[str], folder: Path, *, k1: float, b: float, show: Callable[[int], None]) -> None:
    """Index `texts` (at least one) into `<folder>/bm25`, in place of what is there. `show` is told how many are read.

    Takes about 40 bytes of memory for each distinct word of each text, more than the finished index on disk.
    """
    bm25s = _bm25s()
    import numpy as np

    temporary = folder / f"{FOLDER}.tmp"
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir()
    ids_file = temporary / "ids.int32"
    vocabulary, bounds = _number(texts, ids_file, show)
    ids = np.memmap(ids_file, dtype=np.int32, mode="r") if bounds[-1] else np.empty(0, dtype=np.int32)
    index = bm25s.BM25(k1=k1, b=b)
    with np.errstate(invalid="ignore"):  # texts without a single word have the mean length 0
        index.scores = index.build_index_from_ids(range(len(vocabulary)), _Documents(ids, bounds), show_progress=False)
    index.vocab_dict = vocabulary
    index.save(temporary, show_progress=False)
    del ids
    ids_file.unlink()
    shutil.rmtree(folder / FOLDER, ignore_errors=True)
    temporary.rename(folder / FOLDER)


def _number(texts: Iterable[str], file: Path, show: Callable[[int], None]) -> tuple[dict[str, int], array[int]]:
    """Write the word ids of all texts as int32; the vocabulary, and where each text begins and ends."""
    vocabulary: dict[str, int] = {"": 0}  # never empty, whatever the texts
    bounds, held = array("q", [0]), array("i")
    with file.open("wb") as out:
        for count, text in enumerate(texts, 1):
            found = [vocabulary.setdefault(word, len(vocabulary)) for word in words(text)]
            held.extend(found)
            bounds.append(bounds[-1] + len(found))
            if len(held) > _FLUSH:
                held.tofile(out)
                del held[:]
                show(count)
        held.tofile(out)
    return vocabulary, bounds


class Bm25:
    """Ranks passages by BM25. Raises KnowledgeError if the index cannot be read."""

    def __init__(self, folder: Path) -> None:
        bm25s = _bm25s()
        try:
            self._index = bm25s.BM25.load(folder / FOLDER, mmap=True)
        except (OSError, ValueError) as err:
            reason = " ".join(str(err).split())[:200]
            raise KnowledgeError(
                f"{folder}: BM25 cannot be read ({reason}); remove the folder and build it again"
            ) from None

    async def rank(self, queries: Sequence[str], k: int) -> list[Ranking]:
        """At most `k` passages for each query, off the event loop."""
        return await asyncio.to_thread(lambda: [self._one(query, k) for query in queries])

    def _one(self, query: str, k: int) -> Ranking:
        known = self._index.vocab_dict
        ids = [known[word] for word in dict.fromkeys(words(query)) if word in known]
        return best(self._index.get_scores_from_ids(ids), k) if ids else []

    async def aclose(self) -> None:
        """Nothing to close."""


def best(scores: np.ndarray[Any, Any], k: int) -> Ranking:
    """The `k` highest of `scores` (passages,) that are above 0; of equal ones the first."""
    import numpy as np

    k = min(k, len(scores))
    least = np.partition(scores, -k)[-k]
    found = np.flatnonzero(scores >= least if least > 0 else scores > 0)
    order = found[np.argsort(-scores[found], kind="stable")][:k]
    return list(zip(order.tolist(), scores[order].tolist(), strict=True))


def _bm25s() -> Any:
    try:
        import bm25s
    except ImportError:
        raise KnowledgeError("BM25 needs bm25s: pip install 'agentsys[knowledge]'") from None
    return bm25s
