"""Languages as people and files write them: "Chinese", "zh", "zh_CN", "zh-Hans", "ENG" become comparable tags."""

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
    """A primary subtag (ISO 639, "zh"), a script (ISO 15924, "Hans") and a territory ("CN"); "" where not given.

    A territory implies its usual script ("zh-TW" is Hant); a language alone implies none.
    """

    primary: str
    script: str = ""
    territory: str = ""

    def __str__(self) -> str:
        return "-".join(filter(None, (self.primary, self.script, self.territory)))

    def fit(self, other: Language) -> int:
        """How well a text in `other` serves who asked for this language: 0 not at all, more is better.

        The primary subtags must be the same, and the scripts where both sides have one. A territory only prefers:
        "en-US" serves for "en-GB" if there is nothing better, but "zh-TW" never for "zh-CN".
        """
        if self.primary != other.primary or (self.script and other.script and self.script != other.script):
            return 0
        return 1 + (self.script == other.script) + 2 * (self.territory == other.territory)


@lru_cache(maxsize=1024)
def language(name: str) -> Language | None:
    """The language of a code (BCP 47, also with "_", or ISO 639-2) or of a name in any language; None for neither."""
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
    """As `language`. Raises KnowledgeError for what is neither a code nor a name."""
    found = language(name)
    if found is None:
        raise KnowledgeError(f"'{name}' is no language; write a code such as en or zh-CN, or an English name")
    return found


def best_code(wanted: Language, codes: Iterable[str]) -> str | None:
    """The code that fits the wanted language best, the first of equals; None if none does."""
    fits = {code: wanted.fit(found) for code in codes if (found := language(code)) is not None}
    best = max(fits, key=lambda code: fits[code], default=None)
    return best if best is not None and fits[best] else None
