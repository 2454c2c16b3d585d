"""Documents beside a text: their paragraphs, what fits into a prompt, whether they give the answer away, which to mix.

A token is estimated as four bytes of UTF-8, so that documents can be cut without a model's tokenizer. With Qwen2.5's
the estimate was 19 % too high for English, 4 % too high for Chinese and 5 % too low for French (docs/ragtrans.md).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Final, Literal

from agentsys.text.chinese import simplified
from agentsys.text.words import words

BYTES_A_TOKEN: Final = 4
JOIN: Final = "  "
"""Between the paragraphs of a document, as in the published records of RAGtrans."""
GRAM: Final = 8
"""Words (in Chinese and the like: pairs of characters) of the runs that a leak is looked for with."""
SHARE: Final = 0.5
"""A document whose runs cover this share of a reference's words gives the reference away."""

REMEMBERED: Final = 2000
"""Characters up to which the words of a paragraph, which is compared with many texts, are kept for the next time."""

_BREAK: Final = re.compile(r"\s*\n\s*|[ \t\u3000]{2,}")
_SPACE: Final = re.compile(r"\s")


def paragraphs_of(document: str) -> list[str]:
    """The paragraphs of a document: what stands between line breaks, or between two spaces and more."""
    return [piece for part in _BREAK.split(document) if (piece := part.strip())]


def count_tokens(text: str) -> int:
    """The estimated number of tokens of a text."""
    return -(-len(text.encode()) // BYTES_A_TOKEN)


@dataclass(frozen=True, slots=True)
class Fitted:
    """What is left of a document, and how many tokens and paragraphs there were."""

    paragraphs: list[str]
    tokens: int
    of_tokens: int
    of_paragraphs: int

    def as_json(self) -> dict[str, int]:
        """The numbers, for a trace."""
        names = {"tokens": self.tokens, "of_tokens": self.of_tokens}
        return names | {"paragraphs": len(self.paragraphs), "of_paragraphs": self.of_paragraphs}


def fit(paragraphs: Sequence[str], limit: int) -> Fitted:
    """The first paragraphs that have at most `limit` tokens together.

    Paragraphs stay whole; only a first one that is longer than the limit by itself is cut, at white space where there
    is some. Raises ValueError for a limit below 1.
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
        left = [beginning(paragraphs[0], limit)]
        used = count_tokens(left[0])
    return Fitted(left, used, sum(sizes), len(paragraphs))


def beginning(text: str, limit: int) -> str:
    """The beginning of a text that has at most `limit` tokens, up to white space if any is in its last quarter."""
    cut = text.encode()[: limit * BYTES_A_TOKEN].decode(errors="ignore")
    if len(cut) == len(text):
        return text
    spaces = [match.start() for match in _SPACE.finditer(cut, len(cut) * 3 // 4)]
    return cut[: spaces[-1]].rstrip() if spaces else cut


class Reference:
    """A text that must not stand in a document, such as the translation that is asked for.

    A document leaks it if, after NFKC and casefolding, in simplified Chinese characters and without punctuation, (1) it
    contains all of it or (2) the runs of GRAM words that both have cover at least SHARE of its words. A reference of
    fewer words than that is a name or a heading, which may stand anywhere: only a paragraph that equals it is a leak.
    """

    def __init__(self, text: str) -> None:
        self._words = _words(text)
        self._line = _line(self._words)
        self._grams = _grams(self._words)

    def leak(self, text: str) -> Literal["contained", "overlap"] | None:
        """How a text leaks the reference, if it does."""
        found = _words(text)
        if not self._words or not found:
            return None
        if len(self._words) < GRAM:
            return "contained" if found == self._words else None
        if self._line in _line(found):
            return "contained"
        there = set(_grams(found))
        covered = {i + j for i, gram in enumerate(self._grams) if gram in there for j in range(GRAM)}
        return "overlap" if len(covered) >= SHARE * len(self._words) else None


def without_leaks(paragraphs: Iterable[str], references: Sequence[Reference]) -> tuple[list[str], int]:
    """The paragraphs that leak none of the references, and how many were taken out.

    Where those that are left leak one together, none is left.
    """
    given = list(paragraphs)
    clean = [text for text in given if not any(reference.leak(text) for reference in references)]
    if any(reference.leak(JOIN.join(clean)) for reference in references):
        clean = []
    return clean, len(given) - len(clean)


def overlap(one: str, other: str) -> float:
    """Cosine of two texts as sets of words, 0-1; texts in different languages share names and numbers at most."""
    left, right = _word_set(one), _word_set(other)
    return len(left & right) / (len(left) * len(right)) ** 0.5 if left and right else 0.0


def mmr(relevance: Sequence[float], similarity: Callable[[int, int], float], k: int, weight: float) -> list[int]:
    """Maximal Marginal Relevance (Carbonell and Goldstein 1998): at most `k` items, in the order of their choice.

    `relevance` (n,) is each item's similarity to the query, `similarity(i, j)` that of two items. The next one has the
    greatest `weight` x relevance - (1 - `weight`) x the greatest similarity to one chosen before; of equal ones the
    first. Raises ValueError for a weight (the paper's lambda) outside 0-1.
    """
    if not 0 <= weight <= 1:
        raise ValueError(f"MMR's lambda {weight:g} is not from 0 to 1")
    chosen: list[int] = []
    repeated = dict.fromkeys(range(len(relevance)), 0.0)
    while repeated and len(chosen) < k:
        best = max(repeated, key=lambda i: weight * relevance[i] - (1 - weight) * repeated[i])
        chosen.append(best)
        del repeated[best]
        for i in repeated:  # nothing is below 0 for the first choice; later a cosine may be
            known = repeated[i] if len(chosen) > 1 else -1.0
            repeated[i] = max(known, similarity(i, best))
    return chosen


def _words(text: str) -> tuple[str, ...]:
    return _remembered(text)[0] if len(text) <= REMEMBERED else tuple(words(simplified(text)))


def _word_set(text: str) -> frozenset[str]:
    return _remembered(text)[1] if len(text) <= REMEMBERED else frozenset(words(simplified(text)))


@lru_cache(maxsize=4096)
def _remembered(text: str) -> tuple[tuple[str, ...], frozenset[str]]:
    found = tuple(words(simplified(text)))
    return found, frozenset(found)


def _line(found: Sequence[str]) -> str:
    return f" {' '.join(found)} "


def _grams(found: Sequence[str]) -> list[tuple[str, ...]]:
    return [tuple(found[i : i + GRAM]) for i in range(len(found) - GRAM + 1)]
