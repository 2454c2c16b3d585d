"""Finds the terms of a large list in a text, in time independent of the list's length (Aho and Corasick 1975).

All terms form one automaton (pyahocorasick), which reads the text once. A match must be a whole word: in scripts with
spaces, no letter may precede or follow it. Chinese, Japanese and Thai have no such boundaries, and a particle may
follow a Korean word. Of nested or overlapping matches the longest is kept, of equally long ones the first.

Matching ignores case, full-width forms and kinds of apostrophe, hyphen and white space; but a word of two to four
capitals ("WHO", "IT") matches in capitals only. The only inflection is the regular English plural.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable
from typing import Any, Final

from agentsys.text.words import HANGUL, MARKS, SPACELESS

_SPACED: Final = re.compile(rf"[^\W{SPACELESS}]|[{MARKS}]")
_KOREAN: Final = re.compile(f"[{HANGUL}]")
_EQUIVALENT: Final = {"’": "'", "‘": "'", "\u2010": "-", "\u2011": "-"}
_LONGEST_ACRONYM: Final = 4
_SIBILANTS: Final = ("s", "x", "z", "ch", "sh")


class _Folding(dict[int, str]):
    """Maps each character to exactly one folded character, so that positions in the text do not change."""

    def __missing__(self, code: int) -> str:
        char = chr(code)
        folded = _EQUIVALENT.get(char) or (" " if char.isspace() else unicodedata.normalize("NFKC", char).casefold())
        # A character whose folded form is longer (the German sharp s) is kept.
        self[code] = folded if len(folded) == 1 else char
        return self[code]


_FOLDING: Final = _Folding()


def fold(text: str) -> str:
    """Fold a text for matching without changing its length; a combining accent remains a separate character."""
    return text.translate(_FOLDING)


def term_key(term: str) -> str:
    """Return the key that all spellings of a term share: composed accents, single spaces, folded."""
    return fold(unicodedata.normalize("NFC", " ".join(term.split())))


def is_acronym(term: str) -> bool:
    """Whether a term has two to four letters, all of them capitals."""
    return 2 <= len(term) <= _LONGEST_ACRONYM and term.isalpha() and term.isupper()


def name_key(term: str) -> str:
    """Return the key of a term in a text: `term_key`, but acronyms keep their capitals ("AIDS" is not "aids")."""
    text = unicodedata.normalize("NFKC", " ".join(term.split()))
    return text if is_acronym(text) else term_key(term)


def plural(term: str) -> str:
    """Return the regular English plural ("child" gives "childs"), "" if the term does not end in an ASCII letter."""
    last = term[-1:].lower()
    if not (last.isascii() and last.isalpha()):
        return ""
    if last == "y" and term[-2:-1].lower() not in tuple("aeiou"):
        return f"{term[:-1]}ies"
    return f"{term}{'es' if term.lower().endswith(_SIBILANTS) else 's'}"


def singular(term: str) -> str:
    """Guess the singular of a regular English plural, "" for none; the guess may not be a word ("seri")."""
    lower = term.lower()
    if term.endswith("s") and is_acronym(term[:-1]):
        return term[:-1]
    if len(lower) < 5 or not lower.endswith("s") or lower.endswith(("ss", "us", "is")):
        return ""
    if lower.endswith("ies"):
        return f"{term[:-3]}y"
    return term[:-2] if lower.endswith(tuple(f"{end}es" for end in ("ss", "x", "ch", "sh"))) else term[:-1]


def forms(term: str, language: str) -> tuple[str, ...]:
    """Return the forms under which a term may be listed: itself, and in English ("en") its plural and singular."""
    candidates = (term, plural(term), singular(term)) if language == "en" else (term,)
    return tuple(filter(None, dict.fromkeys(candidates)))


class TermIndex:
    """Finds terms in texts. `language` is their primary subtag; with "en", plurals match too.

    Raises ImportError if pyahocorasick is not installed.
    """

    def __init__(self, terms: Iterable[str], language: str = "") -> None:
        import ahocorasick

        patterns: dict[str, list[str]] = {}
        for term in dict.fromkeys(terms):
            # Not the singular: in running text "mean" is rarely the listed term "means".
            spellings = (term, plural(term)) if language == "en" else (term,)
            for pattern in filter(None, dict.fromkeys(map(term_key, spellings))):
                patterns.setdefault(pattern, []).append(term)
        self._automaton: Any = ahocorasick.Automaton()
        for pattern, pattern_terms in patterns.items():
            self._automaton.add_word(pattern, (len(pattern), tuple(pattern_terms)))
        if patterns:
            self._automaton.make_automaton()
        self._empty = not patterns

    def spans(self, text: str) -> list[tuple[int, int, str]]:
        """Return the terms in a text as (start, end, listed term), in order and without overlaps.

        Of terms that differ only in case ("Polish", "polish") it is the one that the text has, else the first.
        """
        if self._empty:
            return []
        matches: list[tuple[int, int, str]] = []
        for last, (length, terms) in self._automaton.iter(fold(text)):
            start, end = last + 1 - length, last + 1
            word_ends = _is_boundary(text, end) or _KOREAN.match(text, end - 1)
            if _is_boundary(text, start) and word_ends and (term := _matching_term(text[start:end], terms)):
                matches.append((start, end, term))
        return _remove_overlaps(matches, len(text))


def _is_boundary(text: str, position: int) -> bool:
    """Whether a word can start or end at this position."""
    if not 0 < position < len(text):
        return True
    return not (_SPACED.match(text, position - 1) and _SPACED.match(text, position))


def _matching_term(surface: str, terms: tuple[str, ...]) -> str:
    """Return the term that a piece of text matches; "" if all terms need capitals that it does not have."""
    if surface in terms:
        return surface
    return next((term for term in terms if not is_acronym(term) or surface.startswith(term)), "")


def _remove_overlaps(matches: list[tuple[int, int, str]], length: int) -> list[tuple[int, int, str]]:
    taken = bytearray(length)
    kept = []
    for start, end, term in sorted(matches, key=lambda span: (span[0] - span[1], span[0])):
        # Spans that were kept are at least as long, so an overlap always covers one of the ends.
        if not (taken[start] or taken[end - 1]):
            taken[start:end] = b"\1" * (end - start)
            kept.append((start, end, term))
    return sorted(kept)
