"""Words of a text as BM25 counts them, in any script.

A word is a run of letters, digits and marks, NFKC-normalized and casefolded. Scripts that put no space between words
(Chinese, Japanese, Thai, Lao, Khmer, Burmese) give the pairs of neighbouring characters, which finds words without a
dictionary; a character that stands alone is kept as it is. There is no stemming and no list of stop words: on the
three question sets of docs/knowledge.md they moved recall by less than the noise, and each would hold for one language.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterator
from typing import Final

_SPACELESS: Final = (
    "\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff"  # Thai and Lao, Burmese, Khmer
    "\u3005\u3040-\u30ff\u31f0-\u31ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003ffff"  # Kana and Han
)
_HANGUL: Final = "\uac00-\ud7a3"
"""Korean syllables: a particle follows its noun without a space."""
_MARKS: Final = "\u0300-\u036f\u0590-\u05cf\u0610-\u061a\u064b-\u065f\u0900-\u0963\u0966-\u0dff"
"""Vowel signs and accents, which Python's regular expressions do not count as part of a word."""

_WORD: Final = re.compile(rf"[{_SPACELESS}]+|[^\W{_SPACELESS}](?:[^\W{_SPACELESS}]|[{_MARKS}])*")
_SPACELESS_RUN: Final = re.compile(rf"[{_SPACELESS}]")
_ASCII_WORD: Final = re.compile(r"\w+", re.ASCII)
_UNIT: Final = re.compile(rf"[{_SPACELESS}]|[^\s{_SPACELESS}]+")


def words(text: str) -> list[str]:
    """The words of a text in order, repeated ones included."""
    if text.isascii():
        return _ASCII_WORD.findall(text.lower())
    found: list[str] = []
    for run in _WORD.findall(unicodedata.normalize("NFKC", text).casefold()):
        if _SPACELESS_RUN.match(run):
            found += [run[i : i + 2] for i in range(len(run) - 1)] or [run]
        else:
            found.append(run)
    return found


def units(text: str) -> list[str]:
    """What stands between spaces, or one character of a script without spaces."""
    return _UNIT.findall(text)


def windows(text: str, size: int, overlap: int) -> Iterator[str]:
    """Cut a text into windows of `size` units, each with the last `overlap` (< size) units of the one before.

    White space inside is kept. A unit: see `units`.
    """
    spans = [match.span() for match in _UNIT.finditer(text)]
    for start in range(0, max(len(spans) - overlap, 1), size - overlap):
        window = spans[start : start + size]
        yield text[window[0][0] : window[-1][1]]
