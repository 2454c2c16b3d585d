"""Reads XML files of translators unit by unit: one ill-formed unit costs that unit, and nothing is lost silently.

Such files often are not XML: a control character, a bare "&", an entity of HTML, a byte in another encoding. A parser
refuses all after it, or in its recovery mode drops text. So the file is decoded and cut at the tags of its units; each
unit is repaired where that loses no text, and parsed on its own with lxml. No DTD reaches the parser, nothing is
fetched, and a file whose DTD has external or nested entities is refused.
"""

from __future__ import annotations

import codecs
import html.entities
import logging
import re
from collections.abc import Callable, Generator, Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache, partial
from pathlib import Path
from typing import Any, BinaryIO, Final, NamedTuple
from xml.sax.saxutils import escape

from agentsys.display import plain
from agentsys.knowledge.passages import KnowledgeError
from agentsys.terms.packed import open_binary

_CHUNK: Final = 2**20
_EXAMPLES: Final = 5
LONGEST_UNIT: Final = 8 * 2**20
"""Maximum number of characters of a unit, or of anything before the first one."""

_NAME: Final = r"(?:[\w.-]+:)?"
_SKIPPED: Final = r"<!--(?:.*?-->)?|<!\[CDATA\[(?:.*?\]\]>)?"
"""A comment or CDATA, whose content is not read as tags; only the beginning of one that does not end."""
_OPENINGS: Final = ("<!--", "<![CDATA[")
_LONGEST_TAG: Final = 2**16
_BEFORE_ROOT: Final = r"(?:<\?.*?\?>|<!--.*?-->|\s)*"
_HEAD: Final = re.compile(
    rf"{_BEFORE_ROOT}(?:(?P<doctype><!DOCTYPE[^\[>]*(?:\[(?:<!--.*?-->|\"[^\"]*\"|'[^']*'|[^\]])*+\]\s*)?>){_BEFORE_ROOT})?",
    re.DOTALL,
)
_PREFIX: Final = re.compile(r"[<\s/]([A-Za-z_][\w.-]*):[A-Za-z_]")
_ROOT: Final = re.compile(rf"<({_NAME}[^\s/>!?]+)([^>]*)>")
_ENTITY: Final = re.compile(r"<!ENTITY\s+(%\s+)?([\w.:-]+)\s+(?:(SYSTEM|PUBLIC)\b|\"([^\"]*)\"|'([^']*)')")
_NAMESPACE: Final = re.compile(r"\s(xmlns(?::[\w.-]+)?\s*=\s*(?:\"[^\"]*\"|'[^']*'))")
_ENCODING: Final = re.compile(rb"""^\s*<\?xml[^>]*encoding\s*=\s*["']([A-Za-z0-9._-]+)["']""")
_CDATA: Final = re.compile(r"(<!\[CDATA\[.*?\]\]>)", re.DOTALL)
_REFERENCE: Final = re.compile(r"&(?:#([0-9]{1,9});|#[xX]([0-9a-fA-F]{1,8});|([A-Za-z_][\w.-]*);)?")
_ILLEGAL: Final = re.compile("[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")
_BARE_LESS: Final = re.compile(r"<(?![/!?A-Za-z_])")
_XML_ENTITIES: Final = frozenset(("amp", "lt", "gt", "quot", "apos"))


class Fault(NamedTuple):
    """A fault in a file: its place ("memory.tmx:17"), what is wrong, and whether the unit was repaired or left out."""

    place: str
    reason: str
    repaired: bool


OnFault = Callable[[Fault], None]


class Piece(NamedTuple):
    """A unit as an element, or the start tag of an element that holds units.

    `line` is the number of its first line, `number` that of the unit in the file, from 1.
    """

    name: str
    element: Any
    line: int
    number: int


@dataclass(frozen=True, slots=True)
class Layout:
    """What to look for: the names of the root, of the units, and of elements around units whose attributes matter."""

    roots: frozenset[str]
    units: frozenset[str]
    around: frozenset[str] = frozenset()
    kind: str = "XML"


class FaultCounter:
    """Counts faults and keeps a few."""

    def __init__(self) -> None:
        self.broken = self.repaired = 0
        self.examples: list[str] = []

    def add(self, fault: Fault) -> None:
        """Count a fault; of the examples those of units that were left out come first."""
        self.broken += not fault.repaired
        self.repaired += fault.repaired
        position = len(self.examples) if fault.repaired else self.broken - 1
        if position < _EXAMPLES:
            self.examples.insert(position, f"{fault.place}: {fault.reason}")
            del self.examples[_EXAMPLES:]


def log_faults(path: Path, faults: FaultCounter) -> None:
    """Log the number of faults and one of them as a warning, if there are any."""
    if faults.examples:
        logging.getLogger(__name__).warning(
            "%s: %d units left out, %d repaired; for example %s",
            plain(path),
            faults.broken,
            faults.repaired,
            plain(faults.examples[0]),
        )


def read_pieces(path: Path, layout: Layout, on_fault: OnFault) -> Iterator[Piece]:
    """Stream the units of a file; memory use does not grow with the file.

    Raises KnowledgeError, possibly after some units, if the file cannot be read or its root is another.
    """
    with open_binary(path) as file:
        yield from _Reader(path, layout, on_fault).read(_decode(file))


def _decode(file: BinaryIO) -> Iterator[str]:
    """Yield the text of a file; bytes that are not in its encoding become U+FFFD."""
    raw = file.read(_CHUNK)
    decoder = codecs.getincrementaldecoder(_detect_encoding(raw))(errors="replace")
    while raw:
        yield decoder.decode(raw)
        raw = file.read(_CHUNK)
    yield decoder.decode(b"", final=True)


def _detect_encoding(head: bytes) -> str:
    """Return the encoding by byte order mark, by the position of zero bytes, or as declared if that can be true."""
    for mark, encoding in (
        (codecs.BOM_UTF8, "utf-8-sig"),
        (codecs.BOM_UTF32_LE, "utf-32"),
        (codecs.BOM_UTF16_LE, "utf-16"),
        (codecs.BOM_UTF16_BE, "utf-16"),
        (b"<\0", "utf-16-le"),
        (b"\0<", "utf-16-be"),
    ):
        if head.startswith(mark):
            return encoding
    declared = match[1].decode() if (match := _ENCODING.match(head)) else "utf-8"
    try:
        name = codecs.lookup(declared).name
    except LookupError:
        return "utf-8"
    # Converted files keep their old declaration. One that can be read byte by byte is not in UTF-16, and a text with
    # accents in Latin-1 is no valid UTF-8.
    if name.startswith(("utf-16", "utf-32", "ascii")) or (name in ("iso8859-1", "cp1252") and _is_utf8(head)):
        return "utf-8"
    return name


def _is_utf8(head: bytes) -> bool:
    try:
        codecs.getincrementaldecoder("utf-8")().decode(head)
    except UnicodeDecodeError:
        return False
    return True


class _Reader:
    """Cuts the text of a file into pieces."""

    def __init__(self, path: Path, layout: Layout, on_fault: OnFault) -> None:
        from lxml import etree

        self._path, self._layout, self._on_fault = path, layout, on_fault
        self._parser = etree.XMLParser(resolve_entities=False, no_network=True, load_dtd=False)
        self._buffer = ""
        self._position, self._line = 0, 1  # a position in the buffer, and the line that it is in
        self._entities: dict[str, str] = {}
        self._namespaces = ""
        self._number = 0

    def read(self, chunks: Iterator[str]) -> Iterator[Piece]:
        """Yield the pieces of a text."""
        root, root_name = self._read_head(chunks)
        if root_name in self._layout.around:
            yield from self._parse(0, root, root_name)
        if root.endswith("/>"):
            return
        self._drop(len(root))
        names = "|".join(map(re.escape, self._layout.units | self._layout.around))
        tag = re.compile(
            rf"{_SKIPPED}|<{_NAME}(?P<name>{names})(?=[\s/>])(?:(?:[^>\"']|\"[^\"]*\"|'[^']*')*+>)?"
            rf"|</{_NAME}{re.escape(root_name)}\s*>",
            re.DOTALL,
        )
        root_end = False
        while not root_end:
            chunk = next(chunks, None)
            self._buffer += chunk or ""
            root_end = yield from self._read_buffer(tag, is_last=chunk is None)
            if chunk is None and not root_end:
                self._fault(len(self._buffer), f"the file ends before </{root_name}>")
                return

    def _read_head(self, chunks: Iterator[str]) -> tuple[str, str]:
        """Read up to the start tag of the root, which then begins the buffer; return it and its local name."""
        for chunk in chunks:
            self._buffer += chunk
            head = _HEAD.match(self._buffer)
            if head and (root := _ROOT.match(self._buffer, head.end())):
                self._read_doctype(head["doctype"] or "")
                self._drop(head.end())
                name = root[1].rpartition(":")[2]
                if name not in self._layout.roots:
                    expected = " or ".join(f"<{name}>" for name in sorted(self._layout.roots))
                    raise KnowledgeError(
                        f"{self._path}: its root is <{root[1][:60]}>, not {expected}; give a {self._layout.kind} file"
                    )
                self._namespaces = " ".join(dict.fromkeys(_NAMESPACE.findall(root[2])))
                return root[0], name
            if len(self._buffer) > LONGEST_UNIT:
                break
        reason = "it does not begin with a tag" if self._buffer.strip() else "the file is empty"
        raise KnowledgeError(f"{self._path}: not well-formed XML ({reason}); give a {self._layout.kind} file")

    def _read_doctype(self, doctype: str) -> None:
        """Note the entities that a DTD defines. Raises KnowledgeError for external and nested ones."""
        for parameter, name, external, *values in _ENTITY.findall(doctype):
            value = "".join(values)
            if parameter or external or len(value) > 1000 or re.search(r"&(?!#\w{1,9};)|[%<]", value):
                raise KnowledgeError(
                    f"{self._path}: its DTD has an external or nested entity ({name}), which is refused; remove it"
                )
            self._entities[name] = html.unescape(value)

    def _read_buffer(self, tag: re.Pattern[str], *, is_last: bool) -> Generator[Piece, None, bool]:
        """Yield the complete pieces of the buffer and keep the rest; return whether the root has ended."""
        position = 0
        while match := tag.search(self._buffer, position):
            position, name = match.start(), match["name"]
            if match[0] in _OPENINGS and not is_last and len(self._buffer) - position < LONGEST_UNIT:
                break  # a comment that may end in the next chunk
            if match[0].startswith(_OPENINGS):
                position = match.end()
            elif name is None:
                return True
            elif name in self._layout.around:
                if not match[0].endswith(">") and not is_last and len(self._buffer) - position < _LONGEST_TAG:
                    break
                yield from self._parse(position, match[0], name)
                position = match.end()
            else:
                end, is_closed = self._find_end(match)
                if not is_closed:
                    if end == len(self._buffer) and not is_last and end - position < LONGEST_UNIT:
                        break  # the unit may end in the next chunk
                    self._number += 1
                    self._fault(position, f"<{name}> has no end")
                    position = match.end() if end == len(self._buffer) else end
                    continue
                yield from self._parse(position, self._buffer[position:end], name)
                position = end
        else:  # what is left may be the beginning of a tag
            position = max(position, len(self._buffer) - _LONGEST_TAG)
        self._drop(position)
        return False

    def _find_end(self, start: re.Match[str]) -> tuple[int, bool]:
        """Return where the unit ends, or if it does not, where the next one begins or the buffer ends, and False."""
        if start[0].endswith("/>"):
            return start.end(), True
        units = "|".join(map(re.escape, self._layout.units))
        pattern = _end_pattern(units, "|".join(self._layout.roots))
        for match in pattern.finditer(self._buffer, start.end()):
            if match["end"]:
                return match.end(), True
            if match["other"]:
                return match.start(), False
        return len(self._buffer), False

    def _parse(self, position: int, text: str, name: str) -> Iterator[Piece]:
        """Repair and parse a unit or a tag; a fault is reported, and nothing is yielded if it is ill-formed."""
        if name in self._layout.units:
            self._number += 1
        else:
            text = text.removesuffix(">").removesuffix("/") + "/>"
        line = self._line_at(position)
        if "\ufffd" in text:
            self._fault(position, f"<{name}> has bytes that are not in the file's encoding")
            return
        repaired, reasons = repair(text, self._entities)
        try:
            element = self._parse_element(repaired)
        except ValueError as err:
            self._fault(position, f"<{name}> is not well-formed XML ({err})")
            return
        if reasons:
            self._on_fault(Fault(f"{self._path.name}:{line}", f"<{name}>: {', '.join(reasons)}", True))
        yield Piece(name, element, line, self._number)

    def _parse_element(self, text: str) -> Any:
        """Parse an element with the namespaces of the root. Raises ValueError."""
        from lxml import etree

        extra = ""
        for _ in range(2):
            try:
                return etree.fromstring(f"<_ {self._namespaces} {extra}>{text}</_>", self._parser)[0]
            except etree.XMLSyntaxError as err:
                reason = re.sub(r",? (?:line|column) \d+", "", str(err.msg))
                prefixes = {*_PREFIX.findall(text)} - {"xml", "xmlns", *_PREFIX.findall(f" {self._namespaces}")}
                prefixes -= {*re.findall(r"xmlns:([\w.-]+)", f"{self._namespaces} {text}")}
                if extra or "amespace prefix" not in reason or not prefixes:
                    break
                # Declared by an element between the root and the unit.
                extra = " ".join(f'xmlns:{prefix}="{prefix}"' for prefix in sorted(prefixes))
        raise ValueError(reason)

    def _fault(self, position: int, reason: str) -> None:
        self._on_fault(Fault(f"{self._path.name}:{self._line_at(position)}", reason, False))

    def _line_at(self, position: int) -> int:
        """Return the line of a position, which is not before that of the last call."""
        self._line += self._buffer.count("\n", self._position, position)
        self._position = max(self._position, position)
        return self._line

    def _drop(self, position: int) -> None:
        self._line_at(position)
        self._buffer, self._position = self._buffer[position:], self._position - position


@lru_cache(maxsize=16)
def _end_pattern(units: str, roots: str) -> re.Pattern[str]:
    """Return a pattern of a unit's end, or of what shows that it has none: the next unit, the end of the root."""
    return re.compile(
        rf"{_SKIPPED}|(?P<end></{_NAME}(?:{units})\s*>)|(?P<other><{_NAME}(?:{units})(?=[\s/>])|</{_NAME}(?:{roots})\s*>)",
        re.DOTALL,
    )


def repair(text: str, entities: Mapping[str, str]) -> tuple[str, list[str]]:
    """Return a unit as XML without losing text, and what was changed: for entities of HTML nothing is reported."""
    reasons: dict[str, None] = {}
    parts = _CDATA.split(text)
    for index, part in enumerate(parts):
        if _ILLEGAL.search(part):
            reasons["a control character was removed"] = None
            part = _ILLEGAL.sub("", part)
        if index % 2 == 0:  # outside of CDATA
            if "&" in part:
                part = _REFERENCE.sub(partial(_resolve, entities=entities, reasons=reasons), part)
            if _BARE_LESS.search(part):
                reasons['a bare "<" was read as text'] = None
                part = _BARE_LESS.sub("&lt;", part)
        parts[index] = part
    return "".join(parts), list(reasons)


def _resolve(match: re.Match[str], entities: Mapping[str, str], reasons: dict[str, None]) -> str:
    """Return a reference as XML without a DTD has it."""
    decimal, hexadecimal, name = match.groups()
    if decimal or hexadecimal:
        code = int(decimal) if decimal else int(hexadecimal, 16)
        if code < 0x110000 and not _ILLEGAL.match(chr(code)):
            return match[0]
        reasons["a control character was removed"] = None
        return ""
    if name in _XML_ENTITIES:
        return match[0]
    if name is not None and (value := entities.get(name) or html.entities.html5.get(f"{name};")):
        return escape(value)
    if name is None:
        reasons['a bare "&" was read as text'] = None
    else:
        reasons[f"the unknown entity &{name}; was kept as text"] = None
    return f"&amp;{match[0][1:]}"
