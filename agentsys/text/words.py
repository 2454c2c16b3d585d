"""Words of a text in any script, as BM25 counts them.

A word is a run of letters, digits and marks, NFKC-normalized and casefolded. Scripts without spaces between words
(Chinese, Japanese, Thai, Lao, Khmer, Burmese) give pairs of adjacent characters, which need no dictionary; a single
character is kept. There is no stemming and no stop-word list: on the three question sets of docs/knowledge.md they
changed recall by less than the noise, and each would work for one language only.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterator
from typing import Final

SPACELESS: Final = (
    "\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff"  # Thai and Lao, Burmese, Khmer
    "\u3005\u3040-\u30ff\u31f0-\u31ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003ffff"  # Kana and Han
)
"""Character ranges of scripts without spaces between words."""
HANGUL: Final = "\uac00-\ud7a3"
"""Character range of Korean syllables: a particle follows its noun without a space."""
MARKS: Final = "\u0300-\u036f\u0590-\u05cf\u0610-\u061a\u064b-\u065f\u0900-\u0963\u0966-\u0dff"
"""Character ranges of vowel signs and accents, which `\\w` does not match."""

_WORD: Final = re.compile(rf"[{SPACELESS}]+|[^\W{SPACELESS}](?:[^\W{SPACELESS}]|[{MARKS}])*")
_SPACELESS_RUN: Final = re.compile(rf"[{SPACELESS}]")
_ASCII_WORD: Final = re.compile(r"\w+", re.ASCII)
_UNIT: Final = re.compile(rf"[{SPACELESS}]|[^\s{SPACELESS}]+")


def words(text: str) -> list[str]:
    """Return the words of a text in order, with repetitions."""
    if text.isascii():
        return _ASCII_WORD.findall(text.lower())
    result: list[str] = []
    for run in _WORD.findall(unicodedata.normalize("NFKC", text).casefold()):
        if _SPACELESS_RUN.match(run):
            result += [run[i : i + 2] for i in range(len(run) - 1)] or [run]
        else:
            result.append(run)
    return result


def units(text: str) -> list[str]:
    """Split a text at spaces; each character of a script without spaces is one unit."""
    return _UNIT.findall(text)


def windows(text: str, size: int, overlap: int) -> Iterator[str]:
    """Cut a text into windows of `size` units (see `units`), each repeating the last `overlap` (< size) units.

    White space inside a window is kept.
    """
    spans = [match.span() for match in _UNIT.finditer(text)]
    for start in range(0, max(len(spans) - overlap, 1), size - overlap):
        window = spans[start : start + size]
        yield text[window[0][0] : window[-1][1]]
