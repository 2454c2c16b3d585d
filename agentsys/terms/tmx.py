"""Translation memories: TMX files (1.1 to 1.4), read one unit at a time.

They are parsed with lxml, which sacreBLEU already requires: the reader of translate-toolkit is under the GPL, and the
standard library's parser would need defusedxml to be safe. Nothing is fetched and no entity that the file defines is
expanded; a DOCTYPE, which TMX files often have, is ignored.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from agentsys.knowledge.passages import KnowledgeError

_LANGUAGE: Final = "{http://www.w3.org/XML/1998/namespace}lang"
_CODES: Final = ("bpt", "ept", "it", "ph", "ut")
"""Inline elements that hold formatting codes, not text."""


@dataclass(frozen=True, slots=True)
class Unit:
    """A translation unit: its tuid (or "#" and its number, from 1), its texts by language code, and its note.

    Codes are as in the file. The first of several texts with the same code is used. White space becomes single spaces.
    """

    id: str
    texts: dict[str, str]
    note: str = ""


def read_tmx(path: str | Path) -> Iterator[Unit]:
    """Stream the units of a TMX file, in any encoding that it declares; memory use does not grow with the file.

    Raises KnowledgeError, possibly after some units, if the file cannot be read or is not XML or not TMX.
    """
    from lxml import etree

    try:
        with Path(path).open("rb") as file:
            yield from _read_units(path, file)
    except OSError as err:
        raise KnowledgeError(f"{path}: cannot be read ({err.strerror}); check the path") from None
    except etree.XMLSyntaxError as err:
        reason = str(err.msg).rpartition(", line")[0] or err.msg or "the file is empty"
        where = f"{path}:{err.lineno}" if err.lineno else str(path)
        raise KnowledgeError(f"{where}: not well-formed XML ({reason}); export the memory again") from None


def _read_units(path: str | Path, file: Any) -> Iterator[Unit]:
    from lxml import etree

    events = etree.iterparse(file, events=("start", "end"), resolve_entities=False, no_network=True, load_dtd=False)
    number = 0
    for event, element in events:
        if event == "start":
            if element.getparent() is None and etree.QName(element).localname != "tmx":
                raise KnowledgeError(f"{path}: its root is <{element.tag}>, not <tmx>; give a TMX file")
        elif _name(element) == "tu":
            number += 1
            yield _parse_unit(element, number)
            element.clear()
            # Units that were read would stay in memory as empty siblings.
            while (previous := element.getprevious()) is not None:
                element.getparent().remove(previous)


def _parse_unit(element: Any, number: int) -> Unit:
    texts: dict[str, str] = {}
    note = ""
    for child in element:
        if _name(child) == "tuv":
            code = child.get(_LANGUAGE) or child.get("lang") or ""
            for segment in child:
                if _name(segment) == "seg" and (text := " ".join(_text(segment).split())):
                    texts.setdefault(code, text)
        elif _name(child) == "note" or (_name(child) == "prop" and child.get("type") == "note"):
            note = note or " ".join((child.text or "").split())
    return Unit(element.get("tuid") or f"#{number}", texts, note)


def _text(element: Any) -> str:
    """Return the text of a segment without its inline codes."""
    parts = [element.text or ""]
    for child in element:
        if _name(child) not in ("", *_CODES):
            parts.append(_text(child))
        parts.append(child.tail or "")
    return "".join(parts)


def _name(element: Any) -> str:
    """Return an element's name without its namespace; "" for a comment, an instruction or an entity."""
    return element.tag.rpartition("}")[2] if isinstance(element.tag, str) else ""
