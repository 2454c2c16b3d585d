"""Where RAGtrans's sources and documents come from: pages with versions in several languages, or translation memories.

A page record is one page in one language, as a dump of Wikipedia gives it:

    {"id": "en/Berlin", "lang": "en", "title": "Berlin", "paragraphs": ["the lead", "..."], "links": {"zh": "zh/柏林"},
     "references": {"zh": "a translation of the lead, if there is one"}}

`links` names the same page in other languages; one direction is enough. Pages lie in a temporary file, so that a dump
need not fit into memory. Of a translation memory (TMX) the units of one document are a page: `tuid="wiki_9:12"` is unit
12 of the document wiki_9. Units are numbered alike in all files, which makes several bilingual files multi-parallel.
"""

from __future__ import annotations

import json
import math
import random
import re
import sqlite3
from collections import Counter, defaultdict
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from statistics import median
from typing import Any, Final, Protocol

from agentsys.records import BadRecord, InputError, Record, read_records

SMOOTHING: Final = 10
"""Characters added to both lengths of a pair, so that the ratio of short ones says less."""
MISALIGNED_SHARE: Final = 0.1
"""A document with this share of units of a wrong length (and with two of them) is misaligned as a whole."""
_CODE: Final = re.compile("[A-Za-z0-9]+([-_][A-Za-z0-9]+)*")


@dataclass(frozen=True, slots=True)
class Version:
    """A page in one language. Of a translation memory a unit without a text in this language is ""."""

    title: str
    paragraphs: list[str]


@dataclass(frozen=True, slots=True)
class Topic:
    """A page in all its languages.

    Of a translation memory paragraph i is the same in all of them, each can be a source, and `units` are their numbers.
    """

    id: str
    versions: Mapping[str, Version]
    references: Mapping[str, str] = field(default_factory=dict)
    units: Sequence[int] = ()


class Corpus(Protocol):
    """Topics, and what the reading of them could not use."""

    counts: Counter[str]
    rejected: list[BadRecord]

    def languages(self) -> list[str]:
        """The codes of all languages, sorted."""
        ...

    def sizes(self, source: str) -> dict[str, int]:
        """The topics that have a text in the source language, with the number of sources in each."""
        ...

    def topic(self, name: str) -> Topic:
        """A topic by its id."""
        ...

    def other(self, topic: Topic, lang: str, rng: random.Random, apart: Collection[str] = ()) -> Version | None:
        """A random page of another topic, but for those `apart`, in a language; None where there is no other."""
        ...

    def pages(self) -> Iterator[tuple[str, str, Version]]:
        """All pages as (id, language, page), in the order of reading."""
        ...


class Pages:
    """Page records. Raises InputError if the file cannot be read, or holds no page at all."""

    def __init__(self, path: Path) -> None:
        self.counts: Counter[str] = Counter()
        self.rejected: list[BadRecord] = []
        self._db = sqlite3.connect("")  # a file that goes with the connection
        self._db.executescript(
            "CREATE TABLE page (id TEXT PRIMARY KEY, lang TEXT, body TEXT); CREATE TABLE link (one TEXT, other TEXT);"
        )
        for record in read_records(path, required=("lang",)):
            self._add(record)
        self._db.executescript("CREATE INDEX lang ON page (lang); CREATE INDEX one ON link (one);")
        if not self.languages():
            raise InputError(f"{path}: no page in it; {self.rejected[0].reason if self.rejected else 'it is empty'}")
        self._by_language: dict[str, list[str]] = {}

    def _add(self, record: Record | BadRecord) -> None:
        fault = record.reason if isinstance(record, BadRecord) else page_fault(record.data)
        if not isinstance(record, BadRecord) and not fault:
            data = record.data
            body = {name: data.get(name) for name in ("title", "paragraphs", "references")}
            body["paragraphs"] = [text.strip() for text in data["paragraphs"] if text.strip()]
            row = (record.id, data["lang"], json.dumps(body, ensure_ascii=False))
            try:
                self._db.execute("INSERT INTO page VALUES (?, ?, ?)", row)
            except sqlite3.IntegrityError:
                fault = f"duplicate: two pages have the id {record.id}"
            else:
                pairs = [(record.id, other) for other in (data.get("links") or {}).values()]
                pairs += [(other, one) for one, other in pairs]
                self._db.executemany("INSERT INTO link VALUES (?, ?)", pairs)
        if fault:
            self.rejected.append(BadRecord(record.source, fault))
        else:
            self.counts["pages"] += 1

    def languages(self) -> list[str]:
        """See Corpus."""
        return [lang for (lang,) in self._db.execute("SELECT DISTINCT lang FROM page ORDER BY lang")]

    def sizes(self, source: str) -> dict[str, int]:
        """See Corpus: one source a page, its lead."""
        return dict.fromkeys(self._ids(source), 1)

    def topic(self, name: str) -> Topic:
        """See Corpus. Of two pages in one language that claim to be the same page, the first by id counts."""
        lang, body = self._db.execute("SELECT lang, body FROM page WHERE id = ?", (name,)).fetchone()
        linked = self._db.execute(
            "SELECT lang, body FROM page WHERE id IN (SELECT other FROM link WHERE one = ?) ORDER BY id DESC", (name,)
        )
        versions = {code: _version(text) for code, text in linked} | {lang: _version(body)}
        return Topic(name, versions, json.loads(body)["references"] or {})

    def other(self, topic: Topic, lang: str, rng: random.Random, apart: Collection[str] = ()) -> Version | None:
        """See Corpus."""
        ids = self._by_language.setdefault(lang, self._ids(lang))
        own = topic.versions.get(lang)
        for name in rng.sample(ids, min(len(ids), 10)):
            version = _version(self._body(name))
            if version != own and version.paragraphs[1:] and not any(one in apart for one in self._same(name)):
                return version
        return None

    def pages(self) -> Iterator[tuple[str, str, Version]]:
        """See Corpus."""
        for name, lang, body in self._db.execute("SELECT id, lang, body FROM page ORDER BY rowid"):
            yield name, lang, _version(body)

    def _ids(self, lang: str) -> list[str]:
        return [name for (name,) in self._db.execute("SELECT id FROM page WHERE lang = ? ORDER BY id", (lang,))]

    def _same(self, name: str) -> list[str]:
        """The ids under which a page can be a topic: its own and those of its other versions."""
        return [name, *(other for (other,) in self._db.execute("SELECT other FROM link WHERE one = ?", (name,)))]

    def _body(self, name: str) -> str:
        (body,) = self._db.execute("SELECT body FROM page WHERE id = ?", (name,)).fetchone()
        return str(body)


def page_fault(data: Mapping[str, Any]) -> str:
    """What is wrong with a page record, in one line that names the fix; "" if nothing."""
    if not _CODE.fullmatch(data["lang"]):
        return f"field 'lang' is {data['lang']!r:.40}; write a code such as en or zh-CN"
    paragraphs = data.get("paragraphs")
    if not isinstance(paragraphs, list) or not all(isinstance(text, str) for text in paragraphs):
        return "field 'paragraphs' is no list of texts; give the lead first, then the others"
    if not any(text.strip() for text in paragraphs):
        return "field 'paragraphs' has no text; give the lead first, then the others"
    if not paragraphs[0].strip():
        return "field 'paragraphs' begins with an empty text; give the lead first, then the others"
    if not isinstance(data.get("title"), str | None):
        return "field 'title' is no text"
    for name in ("links", "references"):
        pairs = data.get(name) or {}
        if not isinstance(pairs, Mapping) or not all(isinstance(value, str) for value in pairs.values()):
            return f"field {name!r} is no mapping from languages to texts, as in {{'zh': '...'}}"
    return ""


def _version(body: str) -> Version:
    data = json.loads(body)
    return Version(data["title"] or "", data["paragraphs"])


class Units:
    """Translation memories as a corpus, in memory. Raises InputError if no file has a text in one of the languages."""

    def __init__(self, files: Sequence[Path], wanted: Sequence[str], factor: float) -> None:
        """`wanted` are language codes, that of the sources first; texts in other languages are kept too.

        `factor`: a text longer or shorter than the file's median ratio lets expect, by more than this, is left out; so
        are a document's texts in a language where MISALIGNED_SHARE of them are.
        """
        self.counts: Counter[str] = Counter()
        self.rejected: list[BadRecord] = []
        self._texts: dict[str, dict[int, dict[str, str]]] = defaultdict(dict)
        self._topics: dict[str, Topic] = {}
        for file in files:
            self._read(file, tuple(wanted), factor)

    def _read(self, file: Path, wanted: tuple[str, ...], factor: float) -> None:
        from agentsys.terms.tmx import read_tmx

        source = wanted[0]
        ratios: dict[str, dict[tuple[str, int], float]] = defaultdict(dict)
        codes: set[str] = set()
        own: set[tuple[str, int]] = set()
        for number, unit in enumerate(read_tmx(file)):
            names = named(tuple(sorted(unit.texts)), wanted)
            texts = {names[code]: text for code, text in unit.texts.items() if code in names}
            codes |= set(unit.texts)
            self.counts["units"] += 1
            topic, place = _place(unit.id, file, number)
            if fault := self._fault(topic, place, texts, source, own):
                self.counts[fault] += 1
                continue
            own.add((topic, place))
            self._texts[topic].setdefault(place, {}).update(texts)
            for lang in texts.keys() - {source}:
                ratios[lang][topic, place] = math.log(_length(texts[lang]) / _length(texts[source]))
        if not any(source in named((code,), wanted).values() for code in codes):
            raise InputError(f"{file}: no text in '{source}'; its languages are {', '.join(sorted(codes)) or 'none'}")
        for lang, found in ratios.items():
            self._leave_out(lang, misaligned(found, factor))

    def _fault(
        self, topic: str, place: int, texts: Mapping[str, str], source: str, own: Collection[tuple[str, int]]
    ) -> str:
        """Why a unit cannot be used, "" if it can. `own` are the units of this file."""
        if source not in texts:
            return f"units without {source}"
        if (topic, place) in own:
            return "units whose id came before"
        known = self._texts[topic].get(place, {}).get(source, texts[source])
        return "" if known == texts[source] else f"units whose {source} is another in an earlier file"

    def _leave_out(self, lang: str, wrong: Mapping[tuple[str, int], str]) -> None:
        for (topic, place), reason in wrong.items():
            del self._texts[topic][place][lang]
            self.counts[f"{lang} {reason}"] += 1

    def languages(self) -> list[str]:
        """See Corpus."""
        return sorted({lang for units in self._texts.values() for texts in units.values() for lang in texts})

    def sizes(self, source: str) -> dict[str, int]:
        """See Corpus: each unit is a source."""
        found = {name: sum(source in texts for texts in units.values()) for name, units in self._texts.items()}
        return {name: size for name, size in found.items() if size}

    def topic(self, name: str) -> Topic:
        """See Corpus."""
        if name not in self._topics:
            self._topics[name] = self._topic(name)
        return self._topics[name]

    def _topic(self, name: str) -> Topic:
        numbers = sorted(self._texts[name])
        units = [self._texts[name][number] for number in numbers]
        codes = sorted({lang for texts in units for lang in texts})
        versions = {lang: Version("", [texts.get(lang, "") for texts in units]) for lang in codes}
        return Topic(name, versions, units=numbers)

    def other(self, topic: Topic, lang: str, rng: random.Random, apart: Collection[str] = ()) -> Version | None:
        """See Corpus: the units of another document, from a random one on."""
        names = [name for name in sorted(self._texts) if name != topic.id and name not in apart]
        rng.shuffle(names)
        for name in names:
            version = self.topic(name).versions.get(lang)
            if version and (texts := [text for text in version.paragraphs if text]):
                start = rng.randrange(len(texts))
                return Version("", ["", *texts[start:], *texts[:start]])
        return None

    def pages(self) -> Iterator[tuple[str, str, Version]]:
        """See Corpus."""
        for name in self._texts:
            for lang, version in self.topic(name).versions.items():
                yield name, lang, Version("", [text for text in version.paragraphs if text])


@lru_cache(maxsize=256)
def named(codes: tuple[str, ...], wanted: tuple[str, ...]) -> dict[str, str]:
    """What the codes of a file are called here: as wanted where they fit a wanted language best, else as they are."""
    from agentsys.text.languages import best_code, known_language, language

    found = {code: name for name in reversed(wanted) if (code := best_code(known_language(name), codes))}
    taken = {known_language(name).primary for name in wanted}
    return {code: code for code in codes if (known := language(code)) and known.primary not in taken} | found


def _place(name: str, file: Path, number: int) -> tuple[str, int]:
    """ "wiki_9:12" is unit 12 of wiki_9; other names belong to the file as one document, in the file's order."""
    document, mark, place = name.rpartition(":")
    return (document, int(place)) if mark and document and place.isdecimal() else (file.stem, number)


def misaligned(ratios: Mapping[tuple[str, int], float], factor: float) -> dict[tuple[str, int], str]:
    """The units that are no translations, by length, with the reason. `ratios` are logarithms of length ratios.

    A shifted column has many pairs of a plausible length; so a document with many wrong ones is left out as a whole.
    """
    middle = median(ratios.values())
    wrong = {key for key, ratio in ratios.items() if abs(ratio - middle) > math.log(factor)}
    sizes, faults = Counter(topic for topic, _ in ratios), Counter(topic for topic, _ in wrong)
    whole = {topic for topic, n in faults.items() if n > 1 and n >= MISALIGNED_SHARE * sizes[topic]}
    reasons = {key: "of a wrong length" for key in wrong}
    return reasons | {key: "in a misaligned document" for key in ratios if key[0] in whole}


def _length(text: str) -> int:
    return len(text) + SMOOTHING
