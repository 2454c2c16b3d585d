"""Language names and codes: "Chinese", "zh", "zh_CN", "zh-Hans" and "ENG" become comparable tags, and codes names."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache
from typing import Final

_CODE: Final = re.compile(r"[A-Za-z]{2,3}(?:[-_][A-Za-z0-9]+)*")
_PLAIN_CODE: Final = re.compile(r"[A-Za-z]{2,3}(?:[-_][A-Za-z]{4})?(?:[-_](?:[A-Za-z]{2}|[0-9]{3}))?")
"""A language with a script and a territory: what is surely meant as a code, even if there is no such code."""


@dataclass(frozen=True, slots=True)
class Language:
    """A primary subtag (ISO 639, "zh"), a script (ISO 15924, "Hans") and a territory ("CN"); "" if unspecified.

    A territory implies its usual script ("zh-TW" is Hant); a language alone implies none.
    """

    primary: str
    script: str = ""
    territory: str = ""

    def __str__(self) -> str:
        return "-".join(filter(None, (self.primary, self.script, self.territory)))

    def fit(self, other: Language) -> int:
        """Return how well a text in `other` fits a request for this language: 0 not at all, higher is better.

        The primary subtags must be equal, and the scripts if both have one. A territory is only a preference: "en-US"
        fits "en-GB" if there is nothing better, but "zh-TW" never fits "zh-CN".
        """
        if self.primary != other.primary or (self.script and other.script and self.script != other.script):
            return 0
        return 1 + (self.script == other.script) + 2 * (self.territory == other.territory)


@lru_cache(maxsize=1024)
def language(name: str) -> Language | None:
    """Parse a code (BCP 47, also with "_", or ISO 639-2) or a name in any language; None if it is neither."""
    import langcodes

    try:
        if _CODE.fullmatch(name.strip()):
            tag = langcodes.Language.get(name.strip()).prefer_macrolanguage()
            if not tag.is_valid():
                return None
        else:
            tag = langcodes.find(name)
    except (LookupError, ValueError):
        return None
    script = tag.script or (tag.maximize().script if tag.territory else None)
    return Language(tag.language or "", script or "", tag.territory or "")


def known_language(name: str) -> Language:
    """Parse a code or a name like `language`. Raises KnowledgeError if it is neither."""
    parsed = language(name)
    if parsed is None:
        from agentsys.knowledge.passages import KnowledgeError

        raise KnowledgeError(f"'{name}' is not a language; write a code such as en or zh-CN, or an English name")
    return parsed


@lru_cache(maxsize=1024)
def language_name(text: str) -> str:
    """Return the English name of a code: "Chinese" for "zh", "Chinese (Traditional, Taiwan)" for "zh-TW".

    Another text is returned as it is: a name, or a description such as "German as lawyers write it". Raises ValueError
    for what looks like a code and is none.
    """
    code = text.strip()
    if not _CODE.fullmatch(code):
        return text
    from langcodes import Language as Tag

    try:
        tag = Tag.get(code)
        is_code = tag.is_valid() and not tag.language_name("en").startswith("Unknown language")
    except ValueError:
        is_code = False
    if is_code:
        script = tag.maximize().script if tag.territory else tag.script
        if script and script != Tag.get(tag.language or "und").maximize().script:
            tag = tag.update_dict({"script": script})
        return str(tag.display_name("en"))
    if _PLAIN_CODE.fullmatch(code):
        raise ValueError(f"'{text}' is not a language code; write one such as zh or pt-BR, or the language's name")
    return text


def fitting_codes(target: Language, codes: Iterable[str]) -> list[str]:
    """Return the codes that fit the target language, best first."""
    fits = {code: target.fit(parsed) for code in codes if (parsed := language(code)) is not None}
    return sorted((code for code, fit in fits.items() if fit), key=lambda code: -fits[code])


def best_code(target: Language, codes: Iterable[str]) -> str | None:
    """Return the code that fits the target language best, the first of equal ones; None if none fits."""
    return next(iter(fitting_codes(target, codes)), None)
