"""Documents of a text: paragraphs, truncation to a token limit, leaks of the reference, MMR.

A token is estimated as four bytes of UTF-8, so that documents can be truncated without a model's tokenizer. Compared
with Qwen2.5's, the estimate is 19 % too high for English, 4 % too high for Chinese and 5 % too low for French
(docs/ragtrans.md).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Final, Literal

from agentsys.text.chinese import to_simplified
from agentsys.text.words import words

BYTES_PER_TOKEN: Final = 4
JOIN: Final = "  "
"""Separator of a document's paragraphs, as in the published records of RAGtrans."""
GRAM: Final = 8
"""Words (in scripts without spaces: pairs of characters) per n-gram of the leak detection."""
LEAK_SHARE: Final = 0.5
"""A document leaks a reference if shared n-grams cover this share of the reference's words."""

MAX_CACHED: Final = 2000
"""Maximum characters of a paragraph whose words are cached; paragraphs are compared with many texts."""

_BREAK: Final = re.compile(r"\s*\n\s*|[ \t\u3000]{2,}")
_SPACE: Final = re.compile(r"\s")


def split_paragraphs(document: str) -> list[str]:
    """The paragraphs of a document, separated by line breaks or by two or more spaces."""
    return [piece for part in _BREAK.split(document) if (piece := part.strip())]


def count_tokens(text: str) -> int:
    """The estimated number of tokens of a text."""
    return -(-len(text.encode()) // BYTES_PER_TOKEN)


@dataclass(frozen=True, slots=True)
class FittedDocument:
    """A truncated document; `of_tokens` and `of_paragraphs` are those of the whole."""

    paragraphs: list[str]
    tokens: int
    of_tokens: int
    of_paragraphs: int

    def as_json(self) -> dict[str, int]:
        """The counts, for a trace."""
        tokens = {"tokens": self.tokens, "of_tokens": self.of_tokens}
        return tokens | {"paragraphs": len(self.paragraphs), "of_paragraphs": self.of_paragraphs}


def fit(paragraphs: Sequence[str], limit: int) -> FittedDocument:
    """The first paragraphs that have at most `limit` tokens together.

    Paragraphs stay whole; only a first one that exceeds the limit by itself is truncated, at white space if possible.
    Raises ValueError for a limit below 1.
    """
    if limit < 1:
        raise ValueError(f"a limit of {limit} tokens: at least 1 is needed")
    sizes = [count_tokens(paragraph) for paragraph in paragraphs]
    kept, used = 0, 0
    while kept < len(sizes) and used + sizes[kept] <= limit:
        used += sizes[kept]
        kept += 1
    left = list(paragraphs[:kept])
    if not kept and paragraphs:
        left = [truncate_text(paragraphs[0], limit)]
        used = count_tokens(left[0])
    return FittedDocument(left, used, sum(sizes), len(paragraphs))


def truncate_text(text: str, limit: int) -> str:
    """The first `limit` tokens of a text, cut at white space if there is some in the last quarter."""
    cut = text.encode()[: limit * BYTES_PER_TOKEN].decode(errors="ignore")
    if len(cut) == len(text):
        return text
    spaces = [match.start() for match in _SPACE.finditer(cut, len(cut) * 3 // 4)]
    return cut[: spaces[-1]].rstrip() if spaces else cut


class Reference:
    """A text that must not occur in a document, such as the reference translation.

    Texts are compared after NFKC and casefolding, in simplified Chinese characters and without punctuation. A document
    leaks the reference if (1) it contains all of it or (2) shared n-grams of GRAM words cover at least LEAK_SHARE of
    its words. A reference of fewer than GRAM words is a name or a heading, which may occur anywhere: only an equal
    paragraph is a leak.
    """

    def __init__(self, text: str) -> None:
        self._words = _words(text)
        self._line = _line(self._words)
        self._grams = _grams(self._words)

    def leak(self, text: str) -> Literal["contained", "overlap"] | None:
        """How a text leaks the reference, None if it does not."""
        text_words = _words(text)
        if not self._words or not text_words:
            return None
        if len(self._words) < GRAM:
            return "contained" if text_words == self._words else None
        if self._line in _line(text_words):
            return "contained"
        text_grams = set(_grams(text_words))
        covered = {i + j for i, gram in enumerate(self._grams) if gram in text_grams for j in range(GRAM)}
        return "overlap" if len(covered) >= LEAK_SHARE * len(self._words) else None


def remove_leaks(paragraphs: Iterable[str], references: Sequence[Reference]) -> tuple[list[str], int]:
    """The paragraphs that leak none of the references, and the number of those removed.

    If the remaining ones leak a reference together, none remains.
    """
    pieces = list(paragraphs)
    clean = [text for text in pieces if not any(reference.leak(text) for reference in references)]
    if any(reference.leak(JOIN.join(clean)) for reference in references):
        clean = []
    return clean, len(pieces) - len(clean)


def overlap(one: str, other: str) -> float:
    """Cosine of two texts' word sets, 0-1; texts in different languages share at most names and numbers."""
    left, right = _word_set(one), _word_set(other)
    return len(left & right) / (len(left) * len(right)) ** 0.5 if left and right else 0.0


def mmr(relevance: Sequence[float], similarity: Callable[[int, int], float], k: int, weight: float) -> list[int]:
    """Maximal Marginal Relevance (Carbonell and Goldstein 1998): at most `k` items, in the order of selection.

    `relevance` (n,) is each item's similarity to the query, `similarity(i, j)` that of two items. The next item has the
    greatest `weight` x relevance - (1 - `weight`) x maximum similarity to the selected ones; of equal ones the first.
    Raises ValueError for a weight (the paper's lambda) outside 0-1.
    """
    if not 0 <= weight <= 1:
        raise ValueError(f"MMR's lambda {weight:g} is not between 0 and 1")
    selected: list[int] = []
    redundancy = dict.fromkeys(range(len(relevance)), 0.0)
    while redundancy and len(selected) < k:
        best = max(redundancy, key=lambda i: weight * relevance[i] - (1 - weight) * redundancy[i])
        selected.append(best)
        del redundancy[best]
        for i in redundancy:  # 0 only while nothing is selected: cosines may be negative
            maximum = redundancy[i] if len(selected) > 1 else -1.0
            redundancy[i] = max(maximum, similarity(i, best))
    return selected


def _words(text: str) -> tuple[str, ...]:
    return _cached_words(text)[0] if len(text) <= MAX_CACHED else tuple(words(to_simplified(text)))


def _word_set(text: str) -> frozenset[str]:
    return _cached_words(text)[1] if len(text) <= MAX_CACHED else frozenset(words(to_simplified(text)))


@lru_cache(maxsize=4096)
def _cached_words(text: str) -> tuple[tuple[str, ...], frozenset[str]]:
    text_words = tuple(words(to_simplified(text)))
    return text_words, frozenset(text_words)


def _line(text_words: Sequence[str]) -> str:
    return f" {' '.join(text_words)} "


def _grams(text_words: Sequence[str]) -> list[tuple[str, ...]]:
    return [tuple(text_words[i : i + GRAM]) for i in range(len(text_words) - GRAM + 1)]
