"""The sentences of a translation test: source, references and what is known of them; and their translations.

A file of pairs is one of records (.jsonl, .json, .csv, .tsv, .parquet) or a translation memory (.tmx). A record's
reference is a text, a list of texts that are equally good, or XC-Translate's list of {"translation", "mention"}. It may
also have `mentions` (for each entity of the source its acceptable names), `terms` ({"source", "targets"}) and the
`document` it belongs to, whose sentences then stand in their order.
"""

from __future__ import annotations

import unicodedata
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from agentsys.metrics.terms import KnownTerm, folded, rendering
from agentsys.records import BadRecord, InputError, Record, read_records

if TYPE_CHECKING:
    from agentsys.terms.sources import TermList

RECORDS: Final = (".jsonl", ".ndjson", ".json", ".csv", ".tsv", ".parquet")
SOURCE: Final = "source text"
"""What the column of sources is called here: any other may be called "text", the references' too."""


@dataclass(frozen=True, slots=True)
class Columns:
    """Where a record has its source, its reference or references, and its document."""

    source: str = "text"
    reference: str = "trans"
    document: str = "document"


@dataclass(frozen=True, slots=True)
class Pair:
    """A sentence and its references: `at` is its place in the file, `number` counts the file's pairs.

    `mentions` are acceptable names of each entity in it, `data` are the record's other fields.
    """

    id: str
    at: str
    number: int
    text: str
    references: tuple[str, ...]
    document: str = ""
    mentions: tuple[tuple[str, ...], ...] = ()
    terms: tuple[KnownTerm, ...] = ()
    data: Mapping[str, Any] = field(default_factory=dict)


@dataclass(slots=True)
class Row:
    """What one system made of a pair, and what is known of it: `reason` says why there is no translation."""

    pair: Pair
    translation: str | None = None
    reason: str | None = None
    well_formed: bool | None = None
    scores: dict[str, float] = field(default_factory=dict)
    unscored: dict[str, str] = field(default_factory=dict)


class _Unusable(ValueError):
    """Why a record is no pair: one line that names the fix."""


def read_pairs(path: Path, columns: Columns, languages: tuple[str, str]) -> list[Pair | BadRecord]:
    """All pairs in the file's order. Pairs of the same words, without ids, are told apart by a number.

    `languages` (of the sources, of the references) choose a memory's texts. Raises InputError, and KnowledgeError for a
    memory that cannot be read or that lacks a language.
    """
    if columns.source == columns.reference:
        raise InputError(f"--source-field and --reference-field both name '{columns.source}'; name two columns")
    found: list[Pair | BadRecord] = []
    seen: Counter[str] = Counter()
    for record in _records(path, columns, languages):
        if isinstance(record, BadRecord):
            found.append(record)
            continue
        seen[record.id] += 1
        count = seen[record.id]
        if count > 1 and record.data.get("id") is not None:
            found.append(BadRecord(record.source, f"duplicate: two pairs have the id {record.id}"))
            continue
        name = record.id if count == 1 else f"{record.id}-{count}"
        try:
            found.append(_pair(name, len(found), record, columns))
        except _Unusable as err:
            found.append(BadRecord(record.source, str(err)))
    return found


def with_terms(pairs: Sequence[Pair], lists: Sequence[str], languages: tuple[str, str]) -> list[Pair]:
    """The pairs with the terms of lists (FILE or FILE?source=COL&target=COL) added that a pair has on both sides.

    A term counts where a reference has one of its translations, as in WMT's terminology task (Alam et al., 2021): there
    the list's meaning is the one that is meant. Raises KnowledgeError.
    """
    from agentsys.terms.sources import TermList, load_sources

    known = load_sources([f"terms:{name}" for name in lists], *languages)
    return [replace(pair, terms=_listed(pair, [one for one in known if isinstance(one, TermList)])) for pair in pairs]


def _listed(pair: Pair, lists: Sequence[TermList]) -> tuple[KnownTerm, ...]:
    """A term's translations are those of all lists together, so that their order does not matter."""
    named: dict[str, str] = {}
    targets: dict[str, list[str]] = {}
    for known in lists:
        for _, _, name in known.index.spans(unicodedata.normalize("NFC", pair.text)):
            key = folded(name)
            named.setdefault(key, name)
            targets.setdefault(key, []).extend(item.target for item in known.items(name) if item.target)
    found = {folded(term.source): term for term in pair.terms}
    for key in targets:
        if key not in found and any(rendering(reference, targets[key]) for reference in pair.references):
            found[key] = KnownTerm(named[key], _unique(targets[key]))
    return tuple(found.values())


def missing_of(rows: Sequence[Row], unusable: Iterable[BadRecord] = ()) -> dict[str, list[dict[str, Any]]]:
    """`missing`: pairs without a translation, and why; `unscored`: translations that a judge gave no score."""
    missing = [{"id": None, "source": bad.source, "reason": bad.reason} for bad in unusable]
    missing += [{"id": row.pair.id, "source": row.pair.at, "reason": row.reason} for row in rows if row.reason]
    return {
        "missing": missing,
        "unscored": [{"id": row.pair.id, "reasons": row.unscored} for row in rows if row.unscored],
    }


def reasons_of(missing: Iterable[Mapping[str, Any]], unscored: Iterable[Mapping[str, Any]]) -> list[str]:
    """The most common reasons for what is missing, a line each."""
    reasons = Counter(f"missing: {entry['reason']}" for entry in missing)
    reasons.update(f"no {name}: {why}" for entry in unscored for name, why in entry["reasons"].items())
    return [f"{count} x {reason}" for reason, count in reasons.most_common(5)]


def _records(path: Path, columns: Columns, languages: tuple[str, str]) -> Iterator[Record | BadRecord]:
    if path.suffix.lower() == ".tmx":
        yield from _units(path, columns, languages)
        return
    for record in read_records(path, fields={SOURCE: columns.source}, required=[SOURCE]):
        if isinstance(record, BadRecord):
            yield BadRecord(record.source, record.reason.replace(f"--field {SOURCE}=", "--source-field "))
        else:
            yield record


def _units(path: Path, columns: Columns, languages: tuple[str, str]) -> Iterator[Record | BadRecord]:
    """The units of a memory as records. Of an id "PubMed_1:12" the part before the last colon names the document."""
    from agentsys.terms.tmx import read_tmx
    from agentsys.text.languages import best_code, known_language

    wanted = [known_language(name) for name in languages]
    codes: set[str] = set()
    usable = False
    for number, unit in enumerate(read_tmx(path), 1):
        codes |= unit.texts.keys()
        source, reference = (best_code(language, unit.texts) for language in wanted)
        if source is None or reference is None:
            yield BadRecord(f"{path}:{number}", f"unit {unit.id} is not in {' and '.join(languages)}; leave it out")
            continue
        usable = True
        document, colon, _ = unit.id.rpartition(":")
        data = {"id": unit.id, SOURCE: unit.texts[source], columns.reference: unit.texts[reference]}
        yield Record(unit.id, data | ({columns.document: document} if colon else {}), f"{path}:{number}")
    if not usable:
        raise InputError(
            f"{path}: no unit in {' and '.join(languages)}; it has {', '.join(sorted(codes)) or 'no texts'}: "
            "give --source-language and --target-language"
        )


def _pair(name: str, number: int, record: Record, columns: Columns) -> Pair:
    """Raises _Unusable."""
    data = dict(record.data)
    given = data.pop(columns.reference, None)
    if given is None:
        names = ", ".join(repr(key) for key in record.data)
        column = repr(columns.reference)
        raise _Unusable(f"no field {column} (for the reference) in {names}; name it with --reference-field COLUMN")
    references, named = _references(given, columns.reference)
    document = data.pop(columns.document, None)
    return Pair(
        id=name,
        at=record.source,
        number=number,
        text=data.pop(SOURCE),
        references=references,
        document="" if document is None else str(document).strip(),
        mentions=_mentions(data.pop("mentions", None)) or named,
        terms=_terms(data.pop("terms", None)),
        data=data,
    )


def _references(given: Any, column: str) -> tuple[tuple[str, ...], tuple[tuple[str, ...], ...]]:
    """The references, and the entity's acceptable names where they are told beside them. Raises _Unusable."""
    entries = given if isinstance(given, list) else [given]
    texts = [entry.get("translation") if isinstance(entry, Mapping) else entry for entry in entries]
    if not texts or not all(isinstance(text, str) and text.strip() for text in texts):
        raise _Unusable(f"field {column!r} holds no text, or an empty one; fill it in or remove the record")
    names = [entry.get("mention") for entry in entries if isinstance(entry, Mapping)]
    named = _unique(name for name in names if isinstance(name, str) and name.strip())
    return _unique(texts), (named,) if named else ()


def _mentions(given: Any) -> tuple[tuple[str, ...], ...]:
    """A list of names is one entity's, a list of lists is one list for each. Raises _Unusable."""
    entities = [given] if isinstance(given, list) and given and isinstance(given[0], str) else given or []
    if not isinstance(entities, list) or not all(map(_is_texts, entities)):
        raise _Unusable("field 'mentions' is no list with a list of names for each entity; write it as [[NAME, ...]]")
    return tuple(_unique(names) for names in entities)


def _terms(given: Any) -> tuple[KnownTerm, ...]:
    """Raises _Unusable."""
    terms = []
    for entry in given if isinstance(given, list) else [given] if given else []:
        if (
            not isinstance(entry, Mapping)
            or not _is_texts([entry.get("source")])
            or not _is_texts(entry.get("targets"))
        ):
            raise _Unusable('field \'terms\' is not of the form [{"source": TEXT, "targets": [TEXT, ...]}, ...]')
        terms.append(KnownTerm(entry["source"], _unique(entry["targets"])))
    return tuple(terms)


def _is_texts(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and all(isinstance(text, str) and text.strip() for text in value)


def _unique(texts: Any) -> tuple[str, ...]:
    return tuple(dict.fromkeys(texts))


def rows_of(pairs: Sequence[Pair], translations: Path, every: Sequence[Pair | BadRecord]) -> list[Row]:
    """The pairs with the translations that a file has of them: records with a field `translation`, or plain text lines.

    Records with an `id` are matched by it; all else is in the order of `every` pair of the file. Raises InputError.
    """
    is_records = translations.suffix.lower() in RECORDS
    found = _translation_records(translations) if is_records else _plain_lines(translations)
    if isinstance(found, list):
        if len(found) != len(every):
            raise InputError(
                f"{translations}: {len(found)} translations for {len(every)} pairs; give one a pair, or ids"
            )
        found = {pair.id: text for pair, text in zip(every, found, strict=True) if isinstance(pair, Pair)}
    if not any(isinstance(pair, Pair) and found.get(pair.id, "").strip() for pair in every):
        raise InputError(
            f"{translations}: no translation of any pair; records need 'translation', and their 'id' if pairs do"
        )
    rows = []
    for pair in pairs:
        text = found.get(pair.id, "").strip()
        rows.append(Row(pair, translation=text) if text else Row(pair, reason=f"no translation in {translations}"))
    return rows


def _plain_lines(path: Path) -> dict[str, str] | list[str]:
    try:
        return path.read_text(encoding="utf-8-sig").removesuffix("\n").split("\n")
    except OSError as err:
        raise InputError(f"{path}: {err.strerror}; give a file of translations") from None
    except UnicodeDecodeError:
        raise InputError(f"{path}: not UTF-8 text; convert it") from None


def _translation_records(path: Path) -> dict[str, str] | list[str]:
    records = [
        (record.id if record.data.get("id") is not None else None, str(record.data.get("translation") or ""))
        if isinstance(record, Record)
        else None
        for record in read_records(path)
    ]
    good = [record for record in records if record]
    by_id = {name: text for name, text in good if name is not None}
    if by_id and len(by_id) < len(good):
        raise InputError(f"{path}: an id is missing or there twice; give each translation its own, or none an id")
    return by_id or [record[1] if record else "" for record in records]
