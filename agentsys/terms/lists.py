"""Bilingual term lists and dictionaries: files of rows in, items by term out.

A term list (CSV, TSV, JSONL) has a column of terms and one of translations; a dictionary has headwords and
translations, glosses or both, several in a cell (a JSON list, or separated by ";" or "|"). Columns are known by the
names that such files use, by the name of a language, or by naming them: `?source=COL&target=COL&meaning=COL`.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal

from agentsys.knowledge.passages import KnowledgeError
from agentsys.metrics.terms import folded
from agentsys.terms.files import read_rows
from agentsys.terms.index import TermIndex, forms, is_acronym, term_key
from agentsys.terms.item import Item
from agentsys.text.languages import Language, best_code, language

ListKind = Literal["terms", "dictionary"]

COLUMNS: Final = {
    "source": ("source", "term", "sourcestring", "sourceterm", "headword", "word", "lemma", "src"),
    "target": ("target", "translation", "translations", "targetstring", "targetterm", "tgt", "trg"),
    "meaning": ("meaning", "meanings", "gloss", "glosses", "definition", "definitions", "description"),
    "source_language": ("sourcelang", "sourcelanguage"),
    "target_language": ("targetlang", "targetlanguage"),
}
"""Names of columns, without case, spaces, "-" and "_"."""

_LANGUAGE: Final = re.compile(r"[A-Za-z]{2,3}([-_][A-Za-z]{2,4})*|[^\W\d_]{4,}")
"""A column named for a language: a code, or one word."""

_NAMED: Final = ("source", "target", "meaning")
_SEVERAL: Final = re.compile(r"[;|；]")
_TICO_SEVERAL: Final = " : "
_TICO_NOTE: Final = re.compile(r"\s*\[([^\]]*)\]")


@dataclass(frozen=True, slots=True)
class Counts:
    """What a file gave: its items; of them, rows that said it again; terms with rival translations; rows unused."""

    items: int
    duplicates: int
    rivals: int
    skipped: int


class TermList:
    """A term list or a dictionary in memory, a TermSource: items by `term_key`. `index` finds its terms in a text."""

    def __init__(self, name: str, entries: Mapping[str, list[Item]], counts: Counts, language: str = "") -> None:
        self.name, self.counts, self._language = name, counts, language
        self._entries = entries
        self.index = TermIndex((item.term for items in self._entries.values() for item in items), language)

    async def look_up(self, terms: Sequence[str], sentence: str) -> list[list[Item]]:
        """For each term its entries in the order of the file, all rivals.

        Of an unlisted term, the entries inside it or around it in the sentence come as items that explain, without
        a target: the translation of another piece of text is none of the term's.
        """
        return [self._known(term) or self._beside(term, sentence) for term in terms]

    def items(self, term: str) -> list[Item]:
        """The entries of a term as the list writes it (see TermIndex.spans)."""
        return list(self._entries.get(term_key(term), ()))

    def _known(self, term: str) -> list[Item]:
        for form in forms(term, self._language):
            items = self._entries.get(term_key(form), [])
            if fitting := [item for item in items if not is_acronym(item.term) or term.startswith(item.term)]:
                return fitting
        return []

    def _beside(self, term: str, sentence: str) -> list[Item]:
        places = [(start, end) for start, end, _ in TermIndex([term]).spans(sentence)]
        beside = [
            name
            for start, end, name in self.index.spans(sentence)
            if any(start < last and first < end for first, last in places)
        ]
        return [_explained(term, item) for name in dict.fromkeys(beside) for item in self._known(name)]


def read_list(
    path: Path, kind: ListKind, source: Language, target: Language, columns: Mapping[str, str] | None = None
) -> TermList:
    """Read a term list or a dictionary from one language into another.

    Rows that say the same (but for case and Chinese script) are one item; a term's different translations are all kept.
    Where the file has columns for the languages, rows of other languages are left out and rows of the opposite
    direction are turned round. Raises KnowledgeError if the file cannot be read or decoded, lacks the columns, or has
    no entry at all for the languages.
    """
    rows = list(read_rows(path))
    # JSON objects may each lack another field.
    header = list(dict.fromkeys(column for _, cells in rows for column in cells or ()))
    if not header:
        raise KnowledgeError(f"{path}: no row in it; give a file with a header and entries")
    reader = _Reader(path, kind, _columns(path, kind, header, source, target, columns or {}), source, target)
    for number, cells in rows:
        reader.take(number, cells)
    return reader.finish()


def _columns(
    path: Path, kind: ListKind, header: list[str], source: Language, target: Language, named: Mapping[str, str]
) -> dict[str, str]:
    """Which column holds what. Raises KnowledgeError that lists the columns."""
    there = ", ".join(header[:12]) + (f" and {len(header) - 12} more" if len(header) > 12 else "")
    if wrong := [name for name in named if name not in _NAMED]:
        raise KnowledgeError(f"{path}: '{wrong[0]}' cannot be set; there are {', '.join(_NAMED)}")
    if missing := [column for column in named.values() if column not in header]:
        raise KnowledgeError(f"{path}: no column '{missing[0]}'; the columns are {there}")
    free = [column for column in reversed(header) if column not in named.values()]
    plain = {re.sub(r"[\s_-]", "", column).lower(): column for column in free}
    chosen = {name: next((plain[one] for one in names if one in plain), "") for name, names in COLUMNS.items()}
    chosen |= named
    for name, wanted in (("source", source), ("target", target)):
        rest = [one for one in header if one not in chosen.values() and _LANGUAGE.fullmatch(one)]
        chosen[name] = chosen[name] or best_code(wanted, rest) or ""
    told = chosen["target"] or (kind == "dictionary" and chosen["meaning"])
    if not (chosen["source"] and told):
        what = "terms and translations" if kind == "terms" else "headwords and translations or glosses"
        raise KnowledgeError(
            f"{path}: which columns hold {what}? The columns are {there}; add ?source=COLUMN&target=COLUMN"
        )
    return {name: column for name, column in chosen.items() if column}


class _Reader:
    """Turns rows into entries, one row at a time."""

    def __init__(self, path: Path, kind: ListKind, columns: Mapping[str, str], source: Language, target: Language):
        self._path, self._kind, self._columns, self._wanted = path, kind, columns, (source, target)
        self._tico = columns.get("target", "").lower() == "targetstring"
        self._entries: dict[str, dict[str, Item]] = {}
        self._pairs: dict[tuple[str, str], int] = {}
        self._duplicates = self._skipped = 0

    def take(self, number: int, cells: Mapping[str, Any] | None) -> None:
        """Add what a row says."""
        direction = self._direction(cells) if cells else 0
        if cells is None or not direction:
            self._skipped += 1
            return
        source, target = ("source", "target") if direction > 0 else ("target", "source")
        terms = self._texts(cells, source)
        targets = self._texts(cells, target)
        meaning = "; ".join(_texts(cells.get(self._columns.get("meaning", "")), self._kind))
        where = f"{self._path.name}:{number}"
        before = self._duplicates
        added = [self._add(term, *one, where) for term, note in terms for one in _said(targets, meaning or note)]
        self._skipped += not added and self._duplicates == before

    def finish(self) -> TermList:
        """The list. Raises KnowledgeError if there is nothing in it."""
        entries = {term: list(items.values()) for term, items in self._entries.items()}
        if not entries:
            wanted = " and ".join(map(str, self._wanted))
            pairs = ", ".join(f"{a} and {b}" for a, b in list(self._pairs)[:6] if a or b)
            has = f"its languages are {pairs}" if pairs else "every row is blank or broken"
            raise KnowledgeError(f"{self._path}: no entry for {wanted}: {has}; check the languages and the columns")
        rivals = sum(sum(bool(item.target) for item in items) > 1 for items in entries.values())
        items = sum(map(len, entries.values()))
        counts = Counts(items, self._duplicates, rivals, self._skipped)
        return TermList(f"{self._kind}:{self._path.name}", entries, counts, self._wanted[0].primary)

    def _direction(self, cells: Mapping[str, Any]) -> int:
        """1 for a row in the wanted direction, -1 for the opposite one, 0 for other languages."""
        first, second = (
            str(cells.get(self._columns.get(name, ""), "")).strip() for name in ("source_language", "target_language")
        )
        if (first, second) not in self._pairs:
            source, target = self._wanted
            straight = _serves(source, first) and _serves(target, second)
            reverse = _serves(source, second) and _serves(target, first)
            self._pairs[first, second] = 1 if straight else -1 if reverse else 0
        return self._pairs[first, second]

    def _texts(self, cells: Mapping[str, Any], name: str) -> list[tuple[str, str]]:
        """The terms or translations of a row, each with the note that TICO-19's lists give in brackets."""
        value = cells.get(self._columns.get(name, ""))
        if name == "source" or not self._tico:
            return [(text, "") for text in _texts(value, self._kind if name == "target" else "terms")]
        found = []
        for text in _texts(value.split(_TICO_SEVERAL) if isinstance(value, str) else value, self._kind):
            note = _TICO_NOTE.search(text)
            found.append((_TICO_NOTE.sub("", text), note[1] if note else ""))
        return found

    def _add(self, term: str, target: str, meaning: str, where: str) -> bool:
        evidence = f"{term} = {target}" if target else term
        item = Item(term, target, meaning, f"{evidence}: {meaning}" if meaning else evidence, where)
        known = self._entries.setdefault(term_key(term), {})
        key = folded(target or meaning)
        if key not in known:
            known[key] = item
            return True
        self._duplicates += 1
        if meaning and not known[key].meaning:
            known[key] = item
        return False


def _serves(wanted: Language, code: str) -> bool:
    """Whether a row's language is the wanted one; a blank one is taken for it."""
    found = language(code) if code else wanted
    return found is not None and wanted.fit(found) > 0


def _texts(value: Any, kind: ListKind) -> list[str]:
    """The texts of a cell; blank ones and what is no text are left out."""
    values: Collection[Any] = value if isinstance(value, list) else [value]
    if kind == "dictionary" and isinstance(value, str):
        values = _SEVERAL.split(value)
    texts = (" ".join(text.split()) for text in values if isinstance(text, str))
    return [text for text in texts if text]


def _said(targets: Sequence[tuple[str, str]], meaning: str) -> Iterator[tuple[str, str]]:
    """Pairs of a translation and a meaning; the meaning alone where there is no translation."""
    if not targets and meaning:
        yield "", meaning
    for target, note in targets:
        yield target, f"{meaning} ({note})" if meaning and note else meaning or note


def _explained(term: str, item: Item) -> Item:
    known = f"{item.term} = {item.target}" if item.target else item.term
    meaning = f"{known}: {item.meaning}" if item.meaning else known
    return Item(term, "", meaning, item.evidence, item.source, item.origin)
