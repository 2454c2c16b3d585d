"""Translation memories: TMX files (1.1 to 1.4) and XLIFF files (1.2 and 2), read one unit at a time.

Units are parsed with lxml, which sacreBLEU already requires: the reader of translate-toolkit is under the GPL. Files
may be compressed (agentsys.terms.packed). A unit that is not XML is repaired or left out, and reported
(agentsys.terms.units).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from agentsys.terms.packed import bare_suffix
from agentsys.terms.units import FaultCounter, Layout, OnFault, Piece, log_faults, read_pieces

XLIFF_SUFFIXES: Final = (".xlf", ".xliff", ".sdlxliff", ".mxliff", ".mqxliff")
_TMX: Final = Layout(frozenset(("tmx",)), frozenset(("tu",)), kind="TMX")
_XLIFF: Final = Layout(
    frozenset(("xliff",)), frozenset(("trans-unit", "unit")), frozenset(("xliff", "file")), kind="XLIFF"
)
_LANGUAGE: Final = "{http://www.w3.org/XML/1998/namespace}lang"
_CODES: Final = ("bpt", "ept", "it", "ph", "ut", "x", "bx", "ex")
"""Inline elements that hold formatting codes, not text."""
_UNTRANSLATED: Final = ("new", "needs-translation", "initial")
"""States of an XLIFF target that is no translation yet, often a copy of the source."""


@dataclass(frozen=True, slots=True)
class Unit:
    """A translation unit: its tuid (or "#" and its number, from 1), its texts by language code, and its note.

    Codes are as in the file. The first of several texts with the same code is used. White space becomes single spaces.
    `line` is the line that it begins in.
    """

    id: str
    texts: dict[str, str]
    note: str = ""
    line: int = field(default=0, compare=False)


def is_memory(path: Path) -> bool:
    """Whether a file is a translation memory by its name, compressed or not."""
    return bare_suffix(path) in (".tmx", *XLIFF_SUFFIXES)


def read_units(path: str | Path, on_fault: OnFault | None = None) -> Iterator[Unit]:
    """Stream the units of a memory: XLIFF by the suffix of the file, else TMX. See `read_tmx`."""
    return (read_xliff if bare_suffix(Path(path)) in XLIFF_SUFFIXES else read_tmx)(path, on_fault)


def read_tmx(path: str | Path, on_fault: OnFault | None = None) -> Iterator[Unit]:
    """Stream the units of a TMX file, in any encoding that it declares; memory use does not grow with the file.

    `on_fault` is called for each unit that was repaired or left out; without it, their number is logged as a warning.
    Raises KnowledgeError, possibly after some units, if the file cannot be read or is not TMX.
    """
    for piece in _pieces(Path(path), _TMX, on_fault):
        yield _parse_unit(piece)


def read_xliff(path: str | Path, on_fault: OnFault | None = None) -> Iterator[Unit]:
    """Stream the units of an XLIFF file, 1.2 or 2: one for each source, with its target if it is translated.

    Raises what `read_tmx` raises.
    """
    source_language = target_language = ""
    number = 0
    for piece in _pieces(Path(path), _XLIFF, on_fault):
        element = piece.element
        if piece.name in ("xliff", "file"):
            source_language = element.get("source-language") or element.get("srcLang") or source_language
            target_language = element.get("target-language") or element.get("trgLang") or target_language
            continue
        for segment in _segments(element):
            number += 1
            yield _parse_segment(piece, element, segment, number, (source_language, target_language))


def _pieces(path: Path, layout: Layout, on_fault: OnFault | None) -> Iterator[Piece]:
    if on_fault is not None:
        yield from read_pieces(path, layout, on_fault)
        return
    faults = FaultCounter()
    yield from read_pieces(path, layout, faults.add)
    log_faults(path, faults)


def _parse_unit(piece: Piece) -> Unit:
    texts: dict[str, str] = {}
    note = ""
    for child in piece.element:
        if local_name(child) == "tuv":
            code = child.get(_LANGUAGE) or child.get("lang") or ""
            for segment in child:
                if local_name(segment) == "seg" and (text := " ".join(element_text(segment).split())):
                    texts.setdefault(code, text)
        elif local_name(child) == "note" or (local_name(child) == "prop" and child.get("type") == "note"):
            note = note or " ".join((child.text or "").split())
    return Unit(piece.element.get("tuid") or f"#{piece.number}", texts, note, piece.line)


def _segments(unit: Any) -> list[Any]:
    """Return the elements of a unit that have a source and a target: itself in XLIFF 1.2, its segments in XLIFF 2."""
    segments = [child for child in unit if local_name(child) == "segment"]
    return segments or [unit]


def _parse_segment(piece: Piece, unit: Any, segment: Any, number: int, languages: tuple[str, str]) -> Unit:
    texts: dict[str, str] = {}
    for child in segment:  # not the alternatives of XLIFF 1.2, which are in alt-trans
        is_target = local_name(child) == "target"
        if not is_target and local_name(child) != "source":
            continue
        state = (child.get("state") or segment.get("state") or "") if is_target else ""
        text = " ".join(element_text(child).split())
        if text and state not in _UNTRANSLATED:
            texts.setdefault(child.get(_LANGUAGE) or languages[is_target], text)
    notes = (element_text(note) for note in unit.iter() if local_name(note) == "note")
    name = segment.get("id") or ""
    unit_id = unit.get("id") or unit.get("resname") or ""
    full_id = f"{unit_id}-{name}" if unit_id and name and segment is not unit else unit_id or name or f"#{number}"
    return Unit(full_id, texts, " ".join(next(notes, "").split()), piece.line)


def element_text(element: Any) -> str:
    """Return the text of an element without its inline codes."""
    parts = [element.text or ""]
    for child in element:
        if local_name(child) not in ("", *_CODES):
            parts.append(element_text(child))
        parts.append(child.tail or "")
    return "".join(parts)


def local_name(element: Any) -> str:
    """Return an element's name without its namespace; "" for a comment, an instruction or an entity."""
    return element.tag.rpartition("}")[2] if isinstance(element.tag, str) else ""
