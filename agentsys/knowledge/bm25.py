"""BM25 (Robertson and Zaragoza 2009) with bm25s: the score of each word in each passage is computed at build time.

A search sums the rows of the query's words, each counted once, and returns the highest sums; passages that share no
word with the query are not returned. The matrix is memory-mapped.
"""

from __future__ import annotations

import asyncio
import shutil
from array import array
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import orjson

from agentsys.installation import install_command
from agentsys.knowledge.passages import KnowledgeError, damaged
from agentsys.text.words import words

if TYPE_CHECKING:
    import numpy as np

FOLDER: Final = "bm25"
_FLUSH: Final = 1 << 20

Ranking = list[tuple[int, float]]
"""Positions of passages with their scores, best first."""


class _WordIdLists:
    """The passages as lists of word ids, created one at a time: all of them as Python lists would take gigabytes."""

    def __init__(self, ids: np.ndarray[Any, Any], bounds: array[int]) -> None:
        self._ids, self._bounds = ids, bounds

    def __len__(self) -> int:
        return len(self._bounds) - 1

    def __iter__(self) -> Iterator[list[int]]:
        return (self._ids[start:end].tolist() for start, end in pairwise(self._bounds))


def build(texts: Iterable[str], folder: Path, *, k1: float, b: float, show: Callable[[int], None]) -> None:
    """Index `texts` (at least one) in `<folder>/bm25`, replacing the old index. `show` gets the number of texts read.

    Takes about 40 bytes of memory per distinct word of each text, more than the finished index on disk.
    """
    bm25s = _bm25s()
    import numpy as np

    temporary = folder / f"{FOLDER}.tmp"
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir()
    ids_file = temporary / "ids.int32"
    vocabulary, bounds = _write_word_ids(texts, ids_file, show)
    ids = np.memmap(ids_file, dtype=np.int32, mode="r") if bounds[-1] else np.empty(0, dtype=np.int32)
    index = bm25s.BM25(k1=k1, b=b)
    with np.errstate(invalid="ignore"):  # texts without a single word have the mean length 0
        index.scores = index.build_index_from_ids(
            range(len(vocabulary)), _WordIdLists(ids, bounds), show_progress=False
        )
    index.vocab_dict = vocabulary
    index.save(temporary, show_progress=False)
    del ids
    ids_file.unlink()
    shutil.rmtree(folder / FOLDER, ignore_errors=True)
    temporary.rename(folder / FOLDER)


def _write_word_ids(texts: Iterable[str], file: Path, show: Callable[[int], None]) -> tuple[dict[str, int], array[int]]:
    """Write the word ids of all texts as int32; return the vocabulary and the bounds of the texts in the file."""
    vocabulary: dict[str, int] = {"": 0}  # not empty even if no text has a word
    bounds, buffer = array("q", [0]), array("i")
    with file.open("wb") as out:
        for count, text in enumerate(texts, 1):
            ids = [vocabulary.setdefault(word, len(vocabulary)) for word in words(text)]
            buffer.extend(ids)
            bounds.append(bounds[-1] + len(ids))
            if len(buffer) > _FLUSH:
                buffer.tofile(out)
                del buffer[:]
                show(count)
        buffer.tofile(out)
    return vocabulary, bounds


class Bm25:
    """Ranks passages by BM25. Raises KnowledgeError if the index cannot be read, or is not of `passages` passages."""

    def __init__(self, folder: Path, passages: int | None = None) -> None:
        bm25s = _bm25s()
        self._folder = folder / FOLDER
        try:
            self._index = bm25s.BM25.load(self._folder, mmap=True)
            shape = _check_matrix(self._index.scores, self._index.vocab_dict)
        except Exception as err:  # a damaged file can raise nearly anything: TypeError, IndexError, TokenError ...
            raise self._damaged(err) from None
        if passages is not None and shape != passages:
            raise self._damaged(ValueError(f"its scores are of {shape} passages, not of {passages}"))

    def _damaged(self, err: Exception) -> KnowledgeError:
        name = find_unreadable(self._folder)
        fault = getattr(err, "strerror", None) or f"{type(err).__name__}: {err}"
        return damaged(self._folder / name if name else self._folder, fault)

    async def rank(self, queries: Sequence[str], k: int) -> list[Ranking]:
        """Return at most `k` passages per query, without blocking the event loop."""
        return await asyncio.to_thread(lambda: [self._rank_one(query, k) for query in queries])

    def _rank_one(self, query: str, k: int) -> Ranking:
        vocabulary = self._index.vocab_dict
        ids = [vocabulary[word] for word in dict.fromkeys(words(query)) if word in vocabulary]
        if not ids:
            return []
        try:
            return top_k(self._index.get_scores_from_ids(ids), k)
        except (IndexError, ValueError, TypeError) as err:
            raise self._damaged(err) from None

    async def aclose(self) -> None:
        """Do nothing: there is nothing to close."""


def _check_matrix(scores: Mapping[str, Any], vocabulary: Any) -> int:
    """The number of passages of a matrix of scores. Raises ValueError if its parts do not fit to each other."""
    if not isinstance(vocabulary, dict) or not all(isinstance(number, int) for number in vocabulary.values()):
        raise ValueError("the vocabulary does not map words to numbers")
    data, indices, indptr, passages = (scores[name] for name in ("data", "indices", "indptr", "num_docs"))
    columns_fit = indptr[0] == 0 and len(data) == len(indices) == indptr[-1]
    if not columns_fit or len(indptr) <= max(vocabulary.values()) or type(passages) is not int:
        raise ValueError("the arrays of scores do not fit to each other")
    return passages


def find_unreadable(folder: Path) -> str:
    """The name of the first file of a folder that is no JSON or array; "" if there is none."""
    import numpy as np

    for path in sorted(folder.glob("*")):
        try:
            if path.suffix == ".json":
                orjson.loads(path.read_bytes())
            else:
                np.load(path, mmap_mode="r")
        except Exception:  # see Bm25
            return path.name
    return ""


def top_k(scores: np.ndarray[Any, Any], k: int) -> Ranking:
    """Return the `k` highest of `scores` (passages,) that are above 0; of equal ones the first."""
    import numpy as np

    k = min(k, len(scores))
    threshold = np.partition(scores, -k)[-k]
    positions = np.flatnonzero(scores >= threshold if threshold > 0 else scores > 0)
    order = positions[np.argsort(-scores[positions], kind="stable")][:k]
    return list(zip(order.tolist(), scores[order].tolist(), strict=True))


def _bm25s() -> Any:
    try:
        import bm25s
    except ImportError:
        raise KnowledgeError(f"BM25 needs bm25s: {install_command('knowledge')}") from None
    return bm25s
