"""Term bases: TBX files (Basic, Core, Min and others; version 2 with langSet, version 3 with langSec)."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final, NamedTuple

from agentsys.terms.tmx import element_text, local_name
from agentsys.terms.units import Layout, OnFault, read_pieces

_LAYOUT: Final = Layout(frozenset(("martif", "tbx")), frozenset(("termEntry", "conceptEntry")), kind="TBX")
_LANGUAGE: Final = "{http://www.w3.org/XML/1998/namespace}lang"
_LANGUAGE_SECTIONS: Final = ("langSet", "langSec")
_TERM_SECTIONS: Final = ("tig", "ntig", "termSec")
_DEFINITIONS: Final = ("definition", "explanation")
_STATUS: Final = ("administrativeStatus", "normativeAuthorization")
_NOT_TO_USE: Final = ("deprecated", "superseded", "rejected", "obsolete", "forbidden")


class Concept(NamedTuple):
    """An entry: the line that it begins in, its terms by language code, and its definitions by code ("" for all)."""

    line: int
    terms: dict[str, list[str]]
    definitions: dict[str, str]


def read_tbx(path: Path, on_fault: OnFault) -> Iterator[Concept]:
    """Stream the entries of a TBX file; deprecated and superseded terms are left out.

    `on_fault` is called for each entry that was repaired or left out. Raises KnowledgeError.
    """
    for piece in read_pieces(path, _LAYOUT, on_fault):
        terms: dict[str, list[str]] = {}
        definitions = {"": _definition(piece.element)}
        for section in piece.element:
            if local_name(section) in _LANGUAGE_SECTIONS:
                code = section.get(_LANGUAGE) or section.get("lang") or ""
                terms.setdefault(code, []).extend(_terms(section))
                definitions.setdefault(code, _definition(section))
        yield Concept(piece.line, {code: listed for code, listed in terms.items() if listed}, definitions)


def _terms(section: Any) -> Iterator[str]:
    """Yield the terms of a language section, preferred ones first."""
    found: list[tuple[bool, str]] = []
    for term_section in section:
        if local_name(term_section) not in _TERM_SECTIONS:
            continue
        status = " ".join(_values(term_section, _STATUS)).lower()
        texts = (element_text(element) for element in term_section.iter() if local_name(element) == "term")
        text = " ".join(next(texts, "").split())
        if text and not any(word in status for word in _NOT_TO_USE):
            found.append(("preferred" not in status, text))
    return (text for _, text in sorted(found, key=lambda entry: entry[0]))


def _values(element: Any, names: tuple[str, ...]) -> Iterator[str]:
    """Yield the texts of data categories: `<descrip type="NAME">` (DCA style) or `<NAME>` (DCT style)."""
    for child in element.iter():
        name = local_name(child)
        if name in names or (name in ("descrip", "termNote", "admin", "note") and child.get("type") in names):
            yield " ".join(element_text(child).split())


def _definition(element: Any) -> str:
    """Return the definition of an entry or a section, but not that of a section inside it."""
    for child in element:
        is_section = local_name(child) in (*_LANGUAGE_SECTIONS, *_TERM_SECTIONS)
        if not is_section and (text := next(filter(None, _values(child, _DEFINITIONS)), "")):
            return text
    return ""
