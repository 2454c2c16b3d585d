"""Bilingual term lists and dictionaries, read from files into items by term.

A term list (CSV, TSV, JSONL, XLSX) has a column of terms and one of translations; a dictionary has headwords with
translations, glosses or both, several per cell (a JSON list, or separated by ";" or "|"). Columns are recognized by
common names or by a language; other names are given as `?source=COL&target=COL&meaning=COL`. Term bases (TBX) and XLIFF
files name their languages themselves; a broken entry of theirs is counted, and the rest is read.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final, Literal

from agentsys.knowledge.passages import KnowledgeError
from agentsys.metrics.terms import normalize_text
from agentsys.terms.files import read_table
from agentsys.terms.index import TermIndex, forms, is_acronym, term_key
from agentsys.terms.item import Item
from agentsys.terms.packed import bare_suffix
from agentsys.terms.tbx import Concept, read_tbx
from agentsys.terms.tmx import XLIFF_SUFFIXES, read_xliff
from agentsys.terms.units import FaultCounter, OnFault
from agentsys.text.languages import Language, best_code, fitting_codes, language

ListKind = Literal["terms", "dictionary"]

COLUMNS: Final = {
    "source": ("source", "term", "sourcestring", "sourceterm", "headword", "word", "lemma", "src"),
    "target": ("target", "translation", "translations", "targetstring", "targetterm", "tgt", "trg"),
    "meaning": ("meaning", "meanings", "gloss", "glosses", "definition", "definitions", "description"),
    "source_language": ("sourcelang", "sourcelanguage"),
    "target_language": ("targetlang", "targetlanguage"),
}
"""Recognized names of columns, in lower case, without spaces, "-" and "_"."""

_LANGUAGE: Final = re.compile(r"[A-Za-z]{2,3}([-_][A-Za-z0-9]{2,8})*|[^\W\d_]{4,}")
"""The name of a language column: a code, or one word."""

_CONFIGURABLE: Final = ("source", "target", "meaning")
_SEPARATOR: Final = re.compile(r"[;|；]")
_TICO_SEPARATOR: Final = " : "
_TICO_NOTE: Final = re.compile(r"\s*\[([^\]]*)\]")


@dataclass(frozen=True, slots=True)
class Counts:
    """Numbers of items, of duplicate rows, of terms with several translations (rivals), and of skipped rows.

    For XML files also the numbers of entries that were left out because they are broken, and of repaired ones, and a
    few of these faults with their places.
    """

    items: int
    duplicates: int
    rivals: int
    skipped: int
    broken: int = 0
    repaired: int = 0
    faults: tuple[str, ...] = ()


class TermList:
    """A term list or a dictionary as a TermSource: items by `term_key`. `index` finds its terms in a text."""

    def __init__(self, name: str, entries: Mapping[str, list[Item]], counts: Counts, language: str = "") -> None:
        self.name, self.counts, self._language = name, counts, language
        self._entries = entries
        self.index = TermIndex((item.term for items in self._entries.values() for item in items), language)

    async def look_up(self, terms: Sequence[str], sentence: str) -> list[list[Item]]:
        """Return the entries of each term in the order of the file, including rival translations.

        For an unlisted term, the entries that overlap with it in the sentence become explanations without a target,
        because their translations are not the term's.
        """
        return [self._find_entries(term) or self._find_overlapping(term, sentence) for term in terms]

    def items(self, term: str) -> list[Item]:
        """Return the entries of a listed term (see TermIndex.spans)."""
        return list(self._entries.get(term_key(term), ()))

    def _find_entries(self, term: str) -> list[Item]:
        for form in forms(term, self._language):
            items = self._entries.get(term_key(form), [])
            if matches := [item for item in items if not is_acronym(item.term) or term.startswith(item.term)]:
                return matches
        return []

    def _find_overlapping(self, term: str, sentence: str) -> list[Item]:
        positions = [(start, end) for start, end, _ in TermIndex([term]).spans(sentence)]
        overlapping = [
            name
            for start, end, name in self.index.spans(sentence)
            if any(start < last and first < end for first, last in positions)
        ]
        return [_as_explanation(term, item) for name in dict.fromkeys(overlapping) for item in self._find_entries(name)]


def read_list(
    path: str | Path, kind: ListKind, source: Language, target: Language, columns: Mapping[str, str] | None = None
) -> TermList:
    """Read a term list or a dictionary from one language into another.

    Equal rows (apart from case and Chinese script) become one item; different translations of a term are all kept. If
    the file has columns for the languages, rows of other languages are skipped and rows of the opposite direction are
    reversed. Raises KnowledgeError if the file cannot be read or decoded, lacks the columns, or has no entry for the
    languages.
    """
    path = Path(path)
    if (suffix := bare_suffix(path)) == ".tbx" or suffix in XLIFF_SUFFIXES:
        return _read_concepts(path, kind, source, target, columns or {})
    rows = list(read_table(path))
    # JSON objects may lack some fields.
    header = list(dict.fromkeys(column for _, cells in rows for column in cells or ()))
    if not header:
        raise KnowledgeError(f"{path}: the file has no rows; give a file with a header and entries")
    reader = _Reader(path, kind, _assign_columns(path, kind, header, source, target, columns or {}), source, target)
    for number, cells in rows:
        reader.add_row(number, cells)
    return reader.finish()


def _read_concepts(
    path: Path, kind: ListKind, source: Language, target: Language, columns: Mapping[str, str]
) -> TermList:
    """Read a term base, or an XLIFF file of terms. Raises KnowledgeError."""
    if columns:
        raise KnowledgeError(f"{path}: the file has no columns; remove ?{next(iter(columns))}=...")
    faults = FaultCounter()
    names = {name: name for name in _CONFIGURABLE}
    reader = _Reader(path, kind, names, source, target)
    codes: Counter[str] = Counter()
    for concept in _concepts(path, faults.add):
        codes.update(concept.terms.keys())
        languages = [fitting_codes(name, concept.terms) for name in (source, target)]
        definitions = [concept.definitions.get(code, "") for code in (*languages[0], "", *languages[1])]
        cells: dict[str, Any] = {
            name: [term for code in fitting for term in concept.terms[code]]
            for name, fitting in zip(("source", "target"), languages, strict=True)
        }
        cells["meaning"] = next(filter(None, definitions), "")
        reader.add_row(concept.line, cells if cells["target"] or kind == "dictionary" else None)
    return reader.finish(faults, codes)


def _concepts(path: Path, on_fault: OnFault) -> Iterator[Concept]:
    if bare_suffix(path) == ".tbx":
        yield from read_tbx(path, on_fault)
        return
    for unit in read_xliff(path, on_fault):
        yield Concept(unit.line, {code: [text] for code, text in unit.texts.items()}, {"": unit.note})


def _assign_columns(
    path: Path, kind: ListKind, header: list[str], source: Language, target: Language, settings: Mapping[str, str]
) -> dict[str, str]:
    """Return the file's column for each name in COLUMNS. Raises KnowledgeError that lists the columns."""
    listed = ", ".join(header[:12]) + (f" and {len(header) - 12} more" if len(header) > 12 else "")
    if unknown := [name for name in settings if name not in _CONFIGURABLE]:
        raise KnowledgeError(f"{path}: '{unknown[0]}' cannot be set; use {', '.join(_CONFIGURABLE)}")
    if missing := [column for column in settings.values() if column not in header]:
        raise KnowledgeError(f"{path}: no column '{missing[0]}'; the columns are {listed}")
    free = [column for column in reversed(header) if column not in settings.values()]
    by_plain_name = {re.sub(r"[\s_-]", "", column).lower(): column for column in free}
    columns = {
        name: next((by_plain_name[alias] for alias in aliases if alias in by_plain_name), "")
        for name, aliases in COLUMNS.items()
    }
    columns |= settings
    for name, name_language in (("source", source), ("target", target)):
        rest = [column for column in header if column not in columns.values() and _LANGUAGE.fullmatch(column)]
        columns[name] = columns[name] or best_code(name_language, rest) or ""
    has_knowledge = columns["target"] or (kind == "dictionary" and columns["meaning"])
    if not (columns["source"] and has_knowledge):
        content = "terms and translations" if kind == "terms" else "headwords and translations or glosses"
        raise KnowledgeError(
            f"{path}: which columns hold {content}? The columns are {listed}; add ?source=COLUMN&target=COLUMN"
        )
    return {name: column for name, column in columns.items() if column}


class _Reader:
    """Converts rows into entries, one row at a time."""

    def __init__(self, path: Path, kind: ListKind, columns: Mapping[str, str], source: Language, target: Language):
        self._path, self._kind, self._columns, self._languages = path, kind, columns, (source, target)
        self._tico = columns.get("target", "").lower() == "targetstring"
        self._entries: dict[str, dict[str, Item]] = {}
        self._pairs: dict[tuple[str, str], int] = {}
        self._duplicates = self._skipped = 0

    def add_row(self, number: int | str, cells: Mapping[str, Any] | None) -> None:
        """Add the entries of a row."""
        direction = self._direction(cells) if cells else 0
        if cells is None or not direction:
            self._skipped += 1
            return
        source, target = ("source", "target") if direction > 0 else ("target", "source")
        terms = self._texts(cells, source)
        targets = self._texts(cells, target)
        meaning = "; ".join(_split_cell(cells.get(self._columns.get("meaning", "")), self._kind))
        source_id = f"{self._path.name}:{number}"
        before = self._duplicates
        added = [
            self._add(term, translation, gloss, source_id)
            for term, note in terms
            for translation, gloss in _pair_with_meaning(targets, meaning or note)
        ]
        self._skipped += not added and self._duplicates == before

    def finish(self, faults: FaultCounter | None = None, codes: Mapping[str, int] | None = None) -> TermList:
        """Return the list; `codes` are those of a file without columns. Raises KnowledgeError if it is empty."""
        entries = {term: list(items.values()) for term, items in self._entries.items()}
        if not entries:
            languages = " and ".join(map(str, self._languages))
            pairs = ", ".join(f"{a} and {b}" for a, b in list(self._pairs)[:6] if a or b)
            pairs = pairs or ", ".join(f"{code or 'none'} ({count})" for code, count in (codes or {}).items())
            reason = f"its languages are {pairs}" if pairs else "every row is blank or broken"
            if faults and faults.examples:
                reason += f"; {faults.broken} broken entries, for example {faults.examples[0]}"
            raise KnowledgeError(
                f"{self._path}: no entry for {languages}: {reason}; check the languages and the columns"
            )
        rivals = sum(sum(bool(item.target) for item in items) > 1 for items in entries.values())
        items = sum(map(len, entries.values()))
        counts = Counts(items, self._duplicates, rivals, self._skipped)
        if faults:
            counts = replace(counts, broken=faults.broken, repaired=faults.repaired, faults=tuple(faults.examples))
        return TermList(f"{self._kind}:{self._path.name}", entries, counts, self._languages[0].primary)

    def _direction(self, cells: Mapping[str, Any]) -> int:
        """Return 1 for a row in the requested direction, -1 for the opposite one, 0 for other languages."""
        first, second = (
            str(cells.get(self._columns.get(name, ""), "")).strip() for name in ("source_language", "target_language")
        )
        if (first, second) not in self._pairs:
            source, target = self._languages
            forward = _is_language(source, first) and _is_language(target, second)
            reverse = _is_language(source, second) and _is_language(target, first)
            self._pairs[first, second] = 1 if forward else -1 if reverse else 0
        return self._pairs[first, second]

    def _texts(self, cells: Mapping[str, Any], name: str) -> list[tuple[str, str]]:
        """Return the terms or translations of a row, each with its note: TICO-19's lists have notes in brackets."""
        value = cells.get(self._columns.get(name, ""))
        if name == "source" or not self._tico:
            return [(text, "") for text in _split_cell(value, self._kind if name == "target" else "terms")]
        texts = []
        for text in _split_cell(value.split(_TICO_SEPARATOR) if isinstance(value, str) else value, self._kind):
            note = _TICO_NOTE.search(text)
            texts.append((_TICO_NOTE.sub("", text), note[1] if note else ""))
        return texts

    def _add(self, term: str, target: str, meaning: str, source_id: str) -> bool:
        """Add an item unless an equal one exists; return whether it is new."""
        evidence = f"{term} = {target}" if target else term
        item = Item(term, target, meaning, f"{evidence}: {meaning}" if meaning else evidence, source_id)
        items = self._entries.setdefault(term_key(term), {})
        key = normalize_text(target or meaning)
        if key not in items:
            items[key] = item
            return True
        self._duplicates += 1
        if meaning and not items[key].meaning:
            items[key] = item
        return False


def _is_language(requested: Language, code: str) -> bool:
    """Whether a row's language code fits the requested language; a blank one does."""
    parsed = language(code) if code else requested
    return parsed is not None and requested.fit(parsed) > 0


def _split_cell(value: Any, kind: ListKind) -> list[str]:
    """Return the texts of a cell without blank ones and values of other types."""
    values: Collection[Any] = value if isinstance(value, list) else [value]
    if kind == "dictionary" and isinstance(value, str):
        values = _SEPARATOR.split(value)
    texts = (" ".join(text.split()) for text in values if isinstance(text, str))
    return [text for text in texts if text]


def _pair_with_meaning(targets: Sequence[tuple[str, str]], meaning: str) -> Iterator[tuple[str, str]]:
    """Yield pairs of a translation and a meaning; the meaning alone if there is no translation."""
    if not targets and meaning:
        yield "", meaning
    for target, note in targets:
        yield target, f"{meaning} ({note})" if meaning and note else meaning or note


def _as_explanation(term: str, item: Item) -> Item:
    """Return another term's item as an explanation of this term, without a target."""
    entry = f"{item.term} = {item.target}" if item.target else item.term
    meaning = f"{entry}: {item.meaning}" if item.meaning else entry
    return Item(term, "", meaning, item.evidence, item.source, item.origin)
