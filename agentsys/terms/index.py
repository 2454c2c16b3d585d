"""Finding the terms of a large list in a text, in time that does not grow with the list (Aho and Corasick 1975).

All terms become one automaton (pyahocorasick), which reads the text once. What it finds counts if it is a whole word:
next to a letter of a script with spaces no other such letter stands, while Chinese, Japanese and Thai have no such
borders, and a Korean word may go on with a particle. Of nested or overlapping finds the longest stays, of equally long
ones the first.

Case does not count, nor do full-width letters and kinds of apostrophe, hyphen and white space; but a word of two to
four capitals ("WHO", "IT") is found in capitals only. Of inflection only the regular English plural is known.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable
from typing import Any, Final

from agentsys.text.words import _HANGUL, _MARKS, _SPACELESS

_SPACED: Final = re.compile(rf"[^\W{_SPACELESS}]|[{_MARKS}]")
_KOREAN: Final = re.compile(f"[{_HANGUL}]")
_ALIKE: Final = {"’": "'", "‘": "'", "\u2010": "-", "\u2011": "-"}
_LONGEST_ACRONYM: Final = 4
_HISSING: Final = ("s", "x", "z", "ch", "sh")


class _Folding(dict[int, str]):
    """Characters and what they are compared as, always one for one, so that places in the text stay the same."""

    def __missing__(self, code: int) -> str:
        char = chr(code)
        found = _ALIKE.get(char) or (" " if char.isspace() else unicodedata.normalize("NFKC", char).casefold())
        # Where folding makes two characters of one (the German sharp s), the character stays.
        self[code] = found if len(found) == 1 else char
        return self[code]


_FOLDING: Final = _Folding()


def fold(text: str) -> str:
    """The text as it is compared: as long as it was, so an accent that is a character of its own stays one."""
    return text.translate(_FOLDING)


def term_key(term: str) -> str:
    """What two writings of one term have in common: composed accents, single spaces, folded."""
    return fold(unicodedata.normalize("NFC", " ".join(term.split())))


def is_acronym(term: str) -> bool:
    """Whether capitals are part of the term: two to four letters, all of them capitals."""
    return 2 <= len(term) <= _LONGEST_ACRONYM and term.isalpha() and term.isupper()


def name_key(term: str) -> str:
    """What tells one term of a text from another: `term_key`, but an acronym keeps its capitals ("AIDS", "aids")."""
    plain = unicodedata.normalize("NFKC", " ".join(term.split()))
    return plain if is_acronym(plain) else term_key(term)


def plural(term: str) -> str:
    """The regular English plural, "" for a term that ends in no ASCII letter. "child" gives "childs"."""
    last = term[-1:].lower()
    if not (last.isascii() and last.isalpha()):
        return ""
    if last == "y" and term[-2:-1].lower() not in tuple("aeiou"):
        return f"{term[:-1]}ies"
    return f"{term}{'es' if term.lower().endswith(_HISSING) else 's'}"


def singular(term: str) -> str:
    """What the English term may be the regular plural of, "" for none; a guess that is no word for some ("seri")."""
    small = term.lower()
    if term.endswith("s") and is_acronym(term[:-1]):
        return term[:-1]
    if len(small) < 5 or not small.endswith("s") or small.endswith(("ss", "us", "is")):
        return ""
    if small.endswith("ies"):
        return f"{term[:-3]}y"
    return term[:-2] if small.endswith(tuple(f"{end}es" for end in ("ss", "x", "ch", "sh"))) else term[:-1]


def forms(term: str, language: str) -> tuple[str, ...]:
    """The term, and in English ("en") its plural and its singular: what a term of a text may be listed as."""
    found = (term, plural(term), singular(term)) if language == "en" else (term,)
    return tuple(filter(None, dict.fromkeys(found)))


class TermIndex:
    """Finds terms in texts. `language` is their primary subtag; with "en" their plurals are found too.

    Raises ImportError if pyahocorasick is not installed.
    """

    def __init__(self, terms: Iterable[str], language: str = "") -> None:
        import ahocorasick

        patterns: dict[str, list[str]] = {}
        for term in dict.fromkeys(terms):
            # No singular: in running text "mean" is rarely a listed "means".
            written = (term, plural(term)) if language == "en" else (term,)
            for pattern in filter(None, dict.fromkeys(map(term_key, written))):
                patterns.setdefault(pattern, []).append(term)
        self._automaton: Any = ahocorasick.Automaton()
        for pattern, found in patterns.items():
            self._automaton.add_word(pattern, (len(pattern), tuple(found)))
        if patterns:
            self._automaton.make_automaton()
        self._empty = not patterns

    def spans(self, text: str) -> list[tuple[int, int, str]]:
        """Where terms stand in the text: start, end and the term as it was given, in order, none over another.

        Where several terms are written alike ("Polish", "polish"), it is the one that the text has, else the first.
        """
        if self._empty:
            return []
        found: list[tuple[int, int, str]] = []
        for last, (length, terms) in self._automaton.iter(fold(text)):
            start, end = last + 1 - length, last + 1
            ends = _border(text, end) or _KOREAN.match(text, end - 1)
            if _border(text, start) and ends and (term := _written(text[start:end], terms)):
                found.append((start, end, term))
        return _longest(found, len(text))


def _border(text: str, place: int) -> bool:
    """Whether a word can begin or end before this place."""
    if not 0 < place < len(text):
        return True
    return not (_SPACED.match(text, place - 1) and _SPACED.match(text, place))


def _written(surface: str, terms: tuple[str, ...]) -> str:
    """The term that a piece of text stands for; "" if all of them need capitals that it does not have."""
    if surface in terms:
        return surface
    return next((term for term in terms if not is_acronym(term) or surface.startswith(term)), "")


def _longest(found: list[tuple[int, int, str]], length: int) -> list[tuple[int, int, str]]:
    taken = bytearray(length)
    kept = []
    for start, end, term in sorted(found, key=lambda span: (span[0] - span[1], span[0])):
        # What was taken is at least as long: it cannot lie inside without touching an end.
        if not (taken[start] or taken[end - 1]):
            taken[start:end] = b"\1" * (end - start)
            kept.append((start, end, term))
    return sorted(kept)
