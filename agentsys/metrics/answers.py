"""Short answers against gold answers: exact match and token F1 with SQuAD's normalization (Rajpurkar et al. 2016).

SQuAD's script knows English and ASCII. For an ASCII text the normalization here is the script's; for any other text it
also makes equal what is the same in print: composed and decomposed accents, full-width forms, digits of all scripts,
quotation marks and other punctuation, white space beside a character of a script without spaces (docs/scores.md).
"""

from __future__ import annotations

import re
import string
import unicodedata
from collections import Counter
from collections.abc import Sequence
from functools import lru_cache
from typing import Final, Literal

from agentsys.text.words import SPACELESS

Match = Literal["exact", "contains"]

_ARTICLES = re.compile(r"\b(a|an|the)\b")
_LONG_ARTICLES = re.compile(r"\b(an|the)\b")
_PUNCTUATION = str.maketrans("", "", string.punctuation)
_WORD_SEPARATORS: Final = "\u0f0b\u0f0c\u1361"
"""Tibetan tsheg and Ethiopic wordspace: punctuation that stands for a space."""
_APOSTROPHES: Final = "\u00b4\u02b9\u02bb\u02bc\u02bd\u2032"
"""Letters and accents that people type for an apostrophe; NFKC would turn some into a space."""
_VOWEL_SIGNS: Final = (
    "\u0e31\u0e33-\u0e3a\u0e47-\u0e4e\u0eb1\u0eb3-\u0ebc\u0ec8-\u0ece"  # Thai, Lao
    "\u102b-\u103e\u1056-\u1059\u17b4-\u17d3\u17dd\u3099\u309a"  # Burmese, Khmer, Kana
)
"""Signs that belong to the character before them in a script without spaces."""
_SPACELESS_GAP: Final = re.compile(rf"(?<=[{SPACELESS}])\s+|\s+(?=[{SPACELESS}])")
_UNIT: Final = re.compile(rf"[{SPACELESS}][{_VOWEL_SIGNS}]*|[^{SPACELESS}]+")
_ENGLISH: Final = re.compile(r"(en|eng|english)\b", re.IGNORECASE)


def normalize_answer(answer: str, language: str = "") -> str:
    """Return the answer in lower case, without punctuation and articles, with single spaces.

    Articles are English ones. They stay if `language` (a code or an English name) is another language; "a" also stays
    in a text with letters that are not Latin: "维生素 A" is not "维生素".
    """
    text = (answer if answer.isascii() else _fold_unicode(answer)).lower().translate(_PUNCTUATION)
    if not answer.isascii() and not text.strip():  # only punctuation: not equal to everything else that is empty
        return "".join(unicodedata.normalize("NFKC", answer).split())
    if not language or _ENGLISH.match(language.strip()):
        text = (_ARTICLES if text.isascii() or _is_latin(text) else _LONG_ARTICLES).sub(" ", text)
    return " ".join(text.split())


def exact_match(answer: str, golds: Sequence[str], language: str = "") -> bool:
    """Whether the answer equals one of the golds (an answer and its aliases), both normalized."""
    return normalize_answer(answer, language) in {normalize_answer(gold, language) for gold in golds}


def contains_match(answer: str, golds: Sequence[str], language: str = "") -> bool:
    """Whether the answer contains a gold or a gold the answer, both normalized; an empty text matches nothing."""
    text = normalize_answer(answer, language)
    normalized_golds = [normalize_answer(gold, language) for gold in golds]
    return bool(text) and any(gold in text or text in gold for gold in normalized_golds if gold)


def is_correct(answer: str, golds: Sequence[str], match: Match = "exact", language: str = "") -> bool:
    """Whether the answer is correct by `exact_match` or `contains_match`."""
    return (exact_match if match == "exact" else contains_match)(answer, golds, language)


def token_f1(answer: str, golds: Sequence[str], language: str = "") -> float:
    """Return the best F1 of normalized tokens over the golds, 0-1. "yes", "no" and "noanswer" match only themselves.

    A token is a word; in scripts without spaces (Chinese, Japanese, Thai, Lao, Khmer, Burmese) it is a character with
    its marks. Korean is split at its spaces, so a particle is part of the token.
    """
    text = normalize_answer(answer, language)
    return max((_f1(text, normalize_answer(gold, language)) for gold in golds), default=0.0)


_CLOSED = {"yes", "no", "noanswer"}


def _f1(answer: str, gold: str) -> float:
    if answer != gold and (answer in _CLOSED or gold in _CLOSED):  # as in HotpotQA's script
        return 0.0
    answer_tokens, gold_tokens = Counter(answer_units(answer)), Counter(answer_units(gold))
    shared = (answer_tokens & gold_tokens).total()
    return 2 * shared / (answer_tokens.total() + gold_tokens.total()) if shared else 0.0


def answer_units(text: str) -> list[str]:
    """Split a normalized answer into the tokens of `token_f1`."""
    if text.isascii():
        return text.split()
    return [token for word in text.split() for token in _UNIT.findall(word)]


def _fold_unicode(text: str) -> str:
    """Return the text with NFKC, case folding and ASCII digits, without punctuation, currencies and invisible marks."""
    for apostrophe in _APOSTROPHES:
        text = text.replace(apostrophe, "'")
    folded = unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", text).casefold())
    return _SPACELESS_GAP.sub("", "".join(map(_fold_character, folded)))


@lru_cache(maxsize=8192)
def _fold_character(char: str) -> str:
    """Return what is left of a character: ASCII is kept, `normalize_answer` treats it."""
    if char.isascii():
        return char
    if char in _WORD_SEPARATORS:
        return " "
    category = unicodedata.category(char)
    if category == "Nd":
        return str(unicodedata.digit(char))
    # Pc to Ps: punctuation; Sc: currencies, since SQuAD's list has the dollar; Cf: zero-width and bidirectional marks.
    # The minus and the fraction slash are typographic forms of ASCII signs, tatweel only stretches a word.
    is_removed = category[0] == "P" or category in ("Sc", "Cf") or char in "\u2212\u2044\u0640"
    return "" if is_removed or "\ufe00" <= char <= "\ufe0f" or "\U000e0100" <= char <= "\U000e01ef" else char


def _is_latin(text: str) -> bool:
    return all(unicodedata.name(char, "LATIN").startswith("LATIN") for char in text if char.isalpha())
