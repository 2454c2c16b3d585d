"""The sentence pairs of a translation test, source and references, and the translations of the sources.

A file of pairs holds records (.jsonl, .json, .csv, .tsv, .parquet) or is a memory (.tmx, .xliff). The reference of
a record is a text, a list of equivalent texts, or XC-Translate's list of {"translation", "mention"}; without it a
pair is evaluated without a reference. Optional fields: `mentions` (the acceptable names of each entity in the source),
`terms` ({"source", "targets"}) and `document`, whose sentences are in the order of the file.
"""

from __future__ import annotations

import unicodedata
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from agentsys.evaluation.sample import SampleOptions
from agentsys.metrics.terms import KnownTerm, normalize_text, rendering
from agentsys.records import BadRecord, InputError, Record, read_records
from agentsys.terms.tmx import is_memory

if TYPE_CHECKING:
    from agentsys.graphs.translate.judges import Error
    from agentsys.terms.sources import TermList

RECORDS: Final = (".jsonl", ".ndjson", ".json", ".csv", ".tsv", ".parquet")
SOURCE: Final = "source text"
"""The field of the source text: a record may have any column "text", even that of the references."""


@dataclass(frozen=True, slots=True)
class Columns:
    """The columns of a record's source, of its reference or references, and of its document."""

    source: str = "text"
    reference: str = "trans"
    document: str = "document"


@dataclass(frozen=True, slots=True)
class Pair:
    """A sentence and its references, which may be none: `location` is "pairs.jsonl:12", `number` counts the pairs.

    `mentions` are the acceptable names of each entity in it, `data` the record's other fields.
    """

    id: str
    location: str
    number: int
    text: str
    references: tuple[str, ...]
    document: str = ""
    mentions: tuple[tuple[str, ...], ...] = ()
    terms: tuple[KnownTerm, ...] = ()
    data: Mapping[str, Any] = field(default_factory=dict)


@dataclass(slots=True)
class TranslatedPair:
    """A system's translation of a pair and its scores; `reason` is why there is no translation.

    `unscored` gives the reason for each missing score of a judge. `well_formed` is None unless the system writes a long
    thought. `run` counts the repetitions of the system from 1. `errors` are those that the judge lists, None unasked.
    """

    pair: Pair
    translation: str | None = None
    reason: str | None = None
    well_formed: bool | None = None
    scores: dict[str, float] = field(default_factory=dict)
    unscored: dict[str, str] = field(default_factory=dict)
    run: int = 1
    errors: list[Error] | None = None


class _Unusable(ValueError):
    """Why a record cannot be used as a pair: one line that names the fix."""


def read_pairs(
    path: str | Path, columns: Columns, languages: tuple[str, str], options: SampleOptions | None = None
) -> list[Pair | BadRecord]:
    """All pairs of a file, in its order. Equal pairs without ids get numbered ids.

    `languages` (of the sources, of the references) select the texts of a memory. Raises InputError, and KnowledgeError
    for a memory that cannot be read or lacks a language.
    """
    if columns.source == columns.reference:
        raise InputError(f"--source-field and --reference-field both name '{columns.source}'; name two columns")
    options = options or SampleOptions()
    pairs: list[Pair | BadRecord] = []
    counts: Counter[str] = Counter()
    for record in _records(Path(path), columns, languages, options):
        if isinstance(record, BadRecord):
            pairs.append(record)
            continue
        counts[record.id] += 1
        count = counts[record.id]
        if count > 1 and record.data.get(options.id_field) is not None:
            pairs.append(BadRecord(record.source, f"duplicate: two pairs have the id {record.id}"))
            continue
        name = record.id if count == 1 else f"{record.id}-{count}"
        try:
            pairs.append(_pair(name, len(pairs), record, columns))
        except _Unusable as err:
            pairs.append(BadRecord(record.source, str(err)))
    return pairs


def with_terms(pairs: Sequence[Pair], lists: Sequence[str], languages: tuple[str, str]) -> list[Pair]:
    """The pairs with the terms of lists (FILE or FILE?source=COL&target=COL) that occur on both sides of a pair.

    A term counts if a reference has one of its translations, as in WMT's terminology task (Alam et al., 2021): then the
    list's meaning is the intended one. Raises KnowledgeError.
    """
    from agentsys.terms.sources import TermList, load_sources

    sources = load_sources([f"terms:{name}" for name in lists], *languages)
    term_lists = [source for source in sources if isinstance(source, TermList)]
    return [replace(pair, terms=_terms_on_both_sides(pair, term_lists)) for pair in pairs]


def _terms_on_both_sides(pair: Pair, lists: Sequence[TermList]) -> tuple[KnownTerm, ...]:
    """The pair's own terms, then those of the lists. Lists are merged, so their order does not matter."""
    names: dict[str, str] = {}
    targets: dict[str, list[str]] = {}
    for term_list in lists:
        for _, _, name in term_list.index.spans(unicodedata.normalize("NFC", pair.text)):
            key = normalize_text(name)
            names.setdefault(key, name)
            targets.setdefault(key, []).extend(item.target for item in term_list.items(name) if item.target)
    terms = {normalize_text(term.source): term for term in pair.terms}
    for key in targets:
        if key not in terms and any(rendering(reference, targets[key]) for reference in pair.references):
            terms[key] = KnownTerm(names[key], _unique(targets[key]))
    return tuple(terms.values())


def missing_of(rows: Iterable[TranslatedPair]) -> dict[str, list[dict[str, Any]]]:
    """`missing`: pairs without a translation, and why; `unscored`: translations without a judge's score, and why."""
    missing, unscored = [], []
    for row in rows:
        name = {"id": row.pair.id} | ({"run": row.run} if row.run > 1 else {})
        if row.reason:
            missing.append({**name, "source": row.pair.location, "reason": row.reason})
        if row.unscored:
            unscored.append({**name, "reasons": row.unscored})
    return {"missing": missing, "unscored": unscored}


def reference_line(pairs: Sequence[Pair], column: str) -> str:
    """A line for pairs without a reference; "" if all have one."""
    count = sum(not pair.references for pair in pairs)
    if not count:
        return ""
    return (
        f"{count} of {len(pairs)} pairs have no field {column!r} (the reference) and are evaluated without one, so "
        "without BLEU, chrF and GRB; if another column has it, name it with --reference-field COLUMN"
    )


def missing_lines(missing: Iterable[Mapping[str, Any]], unscored: Iterable[Mapping[str, Any]]) -> list[str]:
    """The most common reasons why translations or scores are missing, one per line."""
    reasons = Counter(f"missing: {entry['reason']}" for entry in missing)
    reasons.update(f"no {name}: {why}" for entry in unscored for name, why in entry["reasons"].items())
    return [f"{count} x {reason}" for reason, count in reasons.most_common(5)]


def _records(
    path: Path, columns: Columns, languages: tuple[str, str], options: SampleOptions
) -> Iterator[Record | BadRecord]:
    if is_memory(path):
        yield from _units(path, columns, languages)
        return
    fields = {**options.fields, SOURCE: columns.source}
    for record in read_records(path, fields=fields, id_field=options.id_field, required=[SOURCE]):
        if isinstance(record, BadRecord):
            yield BadRecord(record.source, record.reason.replace(f"--field {SOURCE}=", "--source-field "))
        else:
            yield record


def _units(path: Path, columns: Columns, languages: tuple[str, str]) -> Iterator[Record | BadRecord]:
    """The units of a memory as records. The document is the part of an id before its last colon: PubMed_1:12."""
    from agentsys.terms.tmx import read_units
    from agentsys.terms.units import Fault
    from agentsys.text.languages import best_code, known_language

    tags = [known_language(name) for name in languages]
    codes: set[str] = set()
    usable = False
    faults: list[Fault] = []
    for number, unit in enumerate(read_units(path, faults.append), 1):
        codes |= unit.texts.keys()
        source, reference = (best_code(language, unit.texts) for language in tags)
        if source is None or reference is None:
            yield BadRecord(f"{path}:{number}", f"unit {unit.id} is not in {' and '.join(languages)}; leave it out")
            continue
        usable = True
        document, colon, _ = unit.id.rpartition(":")
        data = {"id": unit.id, SOURCE: unit.texts[source], columns.reference: unit.texts[reference]}
        yield Record(unit.id, data | ({columns.document: document} if colon else {}), f"{path}:{number}")
    for fault in faults:
        if not fault.repaired:
            yield BadRecord(f"{path.parent / fault.place}", f"{fault.reason}; left out")
    if not usable:
        raise InputError(
            f"{path}: no unit in {' and '.join(languages)}; it has {', '.join(sorted(codes)) or 'no texts'}: "
            "give --source-language and --target-language"
        )


def _pair(name: str, number: int, record: Record, columns: Columns) -> Pair:
    """Raises _Unusable."""
    data = dict(record.data)
    reference = data.pop(columns.reference, None)
    references, mentions = ((), ()) if reference is None else _references(reference, columns.reference)
    document = data.pop(columns.document, None)
    return Pair(
        id=name,
        location=record.source,
        number=number,
        text=data.pop(SOURCE),
        references=references,
        document="" if document is None else str(document).strip(),
        mentions=_mentions(data.pop("mentions", None)) or mentions,
        terms=_terms(data.pop("terms", None)),
        data=data,
    )


def _references(value: Any, column: str) -> tuple[tuple[str, ...], tuple[tuple[str, ...], ...]]:
    """The references, and the entity's acceptable names if they are given with them. Raises _Unusable."""
    entries = value if isinstance(value, list) else [value]
    texts = [entry.get("translation") if isinstance(entry, Mapping) else entry for entry in entries]
    if not texts or not all(isinstance(text, str) and text.strip() for text in texts):
        raise _Unusable(f"field {column!r} holds no text, or an empty one; fill it in or remove the record")
    names = [entry.get("mention") for entry in entries if isinstance(entry, Mapping)]
    mentions = _unique(name for name in names if isinstance(name, str) and name.strip())
    return _unique(texts), (mentions,) if mentions else ()


def _mentions(value: Any) -> tuple[tuple[str, ...], ...]:
    """The names of each entity: one list of names is one entity. Raises _Unusable."""
    entities = [value] if isinstance(value, list) and value and isinstance(value[0], str) else value or []
    if not isinstance(entities, list) or not all(map(_is_texts, entities)):
        raise _Unusable("field 'mentions' must be a list of names for each entity; write it as [[NAME, ...]]")
    return tuple(_unique(names) for names in entities)


def _terms(value: Any) -> tuple[KnownTerm, ...]:
    """Raises _Unusable."""
    terms = []
    for entry in value if isinstance(value, list) else [value] if value else []:
        if (
            not isinstance(entry, Mapping)
            or not _is_texts([entry.get("source")])
            or not _is_texts(entry.get("targets"))
        ):
            raise _Unusable('field \'terms\' must have the form [{"source": TEXT, "targets": [TEXT, ...]}, ...]')
        terms.append(KnownTerm(entry["source"], _unique(entry["targets"])))
    return tuple(terms)


def _is_texts(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and all(isinstance(text, str) and text.strip() for text in value)


def _unique(texts: Any) -> tuple[str, ...]:
    return tuple(dict.fromkeys(texts))


def read_translations(
    pairs: Sequence[Pair], translations: Path, all_pairs: Sequence[Pair | BadRecord]
) -> list[TranslatedPair]:
    """The pairs with their translations from a file: records with a field `translation`, or plain text lines.

    Records with an `id` are matched by it; otherwise the file is in the order of `all_pairs` of the test file. The
    translations.jsonl of an earlier evaluation of one system is such a file. Raises InputError.
    """
    is_records = translations.suffix.lower() in RECORDS
    texts = _translation_records(translations) if is_records else _plain_lines(translations)
    if isinstance(texts, list):
        if len(texts) != len(all_pairs):
            raise InputError(
                f"{translations}: {len(texts)} translations for {len(all_pairs)} pairs; give one per pair, or ids"
            )
        texts = {pair.id: text for pair, text in zip(all_pairs, texts, strict=True) if isinstance(pair, Pair)}
    if not any(isinstance(pair, Pair) and texts.get(pair.id, "").strip() for pair in all_pairs):
        raise InputError(
            f"{translations}: no translation of any pair; records need 'translation', and their 'id' if pairs have one"
        )
    rows = []
    for pair in pairs:
        text = texts.get(pair.id, "").strip() or None
        rows.append(TranslatedPair(pair, text, reason=None if text else f"no translation in {translations}"))
    return rows


def _plain_lines(path: Path) -> list[str]:
    try:
        return path.read_text(encoding="utf-8-sig").removesuffix("\n").split("\n")
    except OSError as err:
        raise InputError(f"{path}: {err.strerror}; give a file of translations") from None
    except UnicodeDecodeError:
        raise InputError(f"{path}: not UTF-8 text; convert it") from None


def _translation_records(path: Path) -> dict[str, str] | list[str]:
    """The translations by id, or in order if the records have no ids."""
    records = [
        (record.id if record.data.get("id") is not None else None, _translation_in(record.data, path))
        if isinstance(record, Record)
        else None
        for record in read_records(path)
    ]
    usable = [record for record in records if record]
    by_id = {name: text for name, text in usable if name is not None}
    if by_id and len(by_id) < len(usable):
        raise InputError(f"{path}: an id is missing or occurs twice; give each translation its own id, or none an id")
    return by_id or [record[1] if record else "" for record in records]


def _translation_in(data: Mapping[str, Any], path: Path) -> str:
    systems = data.get("systems")
    if "translation" in data or not isinstance(systems, Mapping):
        return str(data.get("translation") or "")
    if len(systems) != 1:
        raise InputError(
            f"{path}: it has translations of several systems ({', '.join(systems)}); make a file of one system's"
        )
    return str(next(iter(systems.values())).get("translation") or "")
