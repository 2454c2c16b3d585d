"""Writing systems of texts and languages: which letters a text has, and which of them its language does not use."""

from __future__ import annotations

import re
import unicodedata
from functools import lru_cache
from typing import Final

_NAMES: Final = {"CJK": "Han", "HIRAGANA": "Kana", "KATAKANA": "Kana"}
"""First words of Unicode character names that differ from the script's name."""
_OF_CODES: Final = {
    "Hans": {"Han"}, "Hant": {"Han"}, "Hani": {"Han"}, "Jpan": {"Han", "Kana"}, "Kore": {"Hangul", "Han"},
    "Latn": {"Latin"}, "Cyrl": {"Cyrillic"}, "Grek": {"Greek"}, "Arab": {"Arabic"}, "Hebr": {"Hebrew"},
    "Deva": {"Devanagari"}, "Beng": {"Bengali"}, "Taml": {"Tamil"}, "Telu": {"Telugu"}, "Thai": {"Thai"},
    "Laoo": {"Lao"}, "Khmr": {"Khmer"}, "Mymr": {"Myanmar"}, "Geor": {"Georgian"}, "Armn": {"Armenian"},
    "Ethi": {"Ethiopic"},
}  # fmt: skip
"""Scripts of ISO 15924 codes."""


@lru_cache(maxsize=4096)
def script_of(character: str) -> str:
    """The script of a letter, such as "Latin", "Han" or "Kana"; "" for anything that is no letter."""
    if not character.isalpha():
        return ""
    first = unicodedata.name(character, "").partition(" ")[0]
    return _NAMES.get(first, first.capitalize())


def scripts_of(text: str) -> set[str]:
    """The scripts of the letters of a text."""
    return {script for script in map(script_of, text) if script}


@lru_cache(maxsize=256)
def language_scripts(language: str) -> frozenset[str]:
    """The scripts in which a language (a name or a code) is written; empty if it is unknown."""
    import langcodes

    try:
        is_code = re.fullmatch(r"[A-Za-z]{2,3}([-_]\w+)*", language)
        tag = langcodes.get(language) if is_code else langcodes.find(language)
        script = tag.maximize().script
    except (LookupError, ValueError):
        return frozenset()
    return frozenset(_OF_CODES.get(script or "", ()))


def letter_runs(text: str, script: str) -> list[tuple[int, int]]:
    """Spans of the runs of letters of one script; marks and apostrophes inside a run belong to it."""
    spans: list[tuple[int, int]] = []
    for match in re.finditer(r"[^\W\d_]+(?:['’-][^\W\d_]+)*", text):
        start = None
        for i in range(match.start(), match.end() + 1):
            inside = i < match.end() and script_of(text[i]) in (script, "")
            if inside and start is None:
                start = i
            elif not inside and start is not None:
                if any(script_of(character) == script for character in text[start:i]):
                    spans.append((start, i))
                start = None
    return spans
