"""The long thought of stage C: the marks that stand for translations in it, and the text that takes their places."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any, Final

from agentsys.graphs.drt.state import ShortThought
from agentsys.text.scripts import scripts_of

MARK: Final = re.compile(r"[\"“「']?⟦\s*(\d+)\s*⟧[\"”」']?")
"""How the narrator quotes translation n: ⟦n⟧. `clean` removes these brackets from all data that it reads."""
ORDINALS: Final = ("first", "second", "third", "fourth", "fifth", "sixth", "seventh", "eighth", "ninth", "tenth")
MIN_PARAGRAPHS: Final = 4
MAX_PARAGRAPHS: Final = 8
"""Paragraphs of a long thought. The released ones have 5.5 on average, and 95 % have at most 8."""


def clean(value: Any) -> Any:
    """The value with the brackets of marks replaced by ordinary ones, in texts at any depth: data holds no mark."""
    if isinstance(value, str):
        return value.replace("⟦", "[").replace("⟧", "]")
    if isinstance(value, Mapping):
        return {name: clean(item) for name, item in value.items()}
    return [clean(item) for item in value] if isinstance(value, list | tuple) else value


def check_thought(thought: str, inputs: Mapping[str, Any]) -> str | None:
    """Return why a thought is refused, or None: it quotes each translation, ends with the decision, copies no notes."""
    if re.search(r"^\W*(⟦\s*\d+\s*⟧ *=|score:|comment:|(final translation|decision): *⟦)", thought, re.M | re.I):
        return "retell the notes in sentences of your own, do not copy their lines"
    numbers = [int(number) for number in MARK.findall(thought)]
    attempts = set(range(1, len(inputs["steps"]) + 1))
    if missing := sorted(attempts - {*numbers}):
        return f"the translations {', '.join(f'⟦{i}⟧' for i in missing)} are missing; put each mark in its place"
    if {*numbers} - attempts:
        return f"there are only {len(attempts)} translations"
    decision = inputs["decision"]
    return None if numbers[-1] == decision else f"end with the final translation, ⟦{decision}⟧"


def check_long_thought(thought: str, inputs: Mapping[str, Any]) -> str | None:
    """Return why a long thought is refused, or None: as `check_thought`, in prose of four to eight paragraphs."""
    if reason := check_thought(thought, inputs):
        return reason
    paragraphs = [paragraph for paragraph in re.split(r"\n\s*\n", thought) if paragraph.strip()]
    if not MIN_PARAGRAPHS <= len(paragraphs) <= MAX_PARAGRAPHS:
        return f"write {MIN_PARAGRAPHS} to {MAX_PARAGRAPHS} paragraphs with an empty line between them"
    if re.search(r"^\s*([-*•#]|\d+[.)])\s", thought, re.M):
        return "write prose: no list, no heading"
    return None


def insert_translations(thought: str, translations: Sequence[str]) -> str:
    """The thought with the translations in place of their marks.

    A translation stands where it is first quoted, and the decision once more at the end; other marks become "the first
    translation" and so on.
    """
    marks = list(MARK.finditer(thought))
    first = {mark[1]: mark.start() for mark in reversed(marks)}
    pieces, end = [], 0
    for mark in marks:
        is_quoted = mark.start() == first[mark[1]] or mark is marks[-1]
        i = int(mark[1]) - 1
        pieces += [thought[end : mark.start()], _quote(translations[i]) if is_quoted else _name(i, len(translations))]
        end = mark.end()
    return "".join([*pieces, thought[end:]])


def check_short_thought(reply: ShortThought, inputs: Mapping[str, Any]) -> str | None:
    """Return why the parts of a short thought are refused, or None: as many versions as translations, none empty."""
    n = len(inputs["steps"])
    if len(reply.versions) != n:
        return f"write {n} versions, one for each translation"
    parts = [reply.keywords, reply.decision, *(text for v in reply.versions for text in (v.lead, v.judgement))]
    return None if all(part.strip() for part in parts) else "leave no part empty"


def compose_short_thought(parts: ShortThought, translations: Sequence[str], decision: int) -> str:
    """The paragraphs of a short thought with the translations in their places; `decision` counts from 1."""
    paragraphs = [parts.keywords.strip()]
    for version, translation in zip(parts.versions, translations, strict=True):
        paragraphs.append(f"{version.lead.strip()} {_quote(translation)} {version.judgement.strip()}")
    return "\n\n".join([*paragraphs, f"{parts.decision.strip()} {_quote(translations[decision - 1])}"])


def _quote(translation: str) -> str:
    """The translation; in quotation marks if only they separate it from the thought, which is English."""
    return f'"{translation}"' if "Latin" in scripts_of(translation) else translation


def _name(i: int, n: int) -> str:
    ordinal = ORDINALS[i] if i < len(ORDINALS) else f"{i + 1}th"
    return f"the {'only' if n == 1 else ordinal} translation"
