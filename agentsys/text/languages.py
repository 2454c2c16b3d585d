"""Language names and codes: "Chinese", "zh", "zh_CN", "zh-Hans" and "ENG" become comparable tags."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache
from typing import Final

from agentsys.knowledge.passages import KnowledgeError

_CODE: Final = re.compile(r"[A-Za-z]{2,3}(?:[-_][A-Za-z0-9]+)*")


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
        raise KnowledgeError(f"'{name}' is not a language; write a code such as en or zh-CN, or an English name")
    return parsed


def fitting_codes(target: Language, codes: Iterable[str]) -> list[str]:
    """Return the codes that fit the target language, best first."""
    fits = {code: target.fit(parsed) for code in codes if (parsed := language(code)) is not None}
    return sorted((code for code, fit in fits.items() if fit), key=lambda code: -fits[code])


def best_code(target: Language, codes: Iterable[str]) -> str | None:
    """Return the code that fits the target language best, the first of equal ones; None if none fits."""
    return next(iter(fitting_codes(target, codes)), None)
