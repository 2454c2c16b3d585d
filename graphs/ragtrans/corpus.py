"""The corpora of RAGtrans's benchmark: pages with versions in several languages, or translation memories.

A page record is one page in one language, as in a Wikipedia dump:

    {"id": "en/Berlin", "lang": "en", "title": "Berlin", "paragraphs": ["the lead", "..."], "links": {"zh": "zh/柏林"},
     "references": {"zh": "a translation of the lead, if there is one"}}

`links` names the same page in other languages; one direction is enough. A row of the data set `wikimedia/wikipedia`,
{"id", "url", "title", "text"}, is a page too (graphs/ragtrans/wikipedia.py); its links are by title. Pages are stored
in a temporary file, so that a dump need not fit into memory.

In a translation memory (TMX) the units of one document are a page: `tuid="wiki_9:12"` is unit 12 of the document
wiki_9. Equal ids in several bilingual files make the corpus multi-parallel.
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

from agentsys.graphs.ragtrans.wikipedia import is_dump_row, page_id, to_page
from agentsys.records import BadRecord, InputError, Record, read_records
from agentsys.terms.wikipedia import clean_title, read_langlinks

SMOOTHING: Final = 10
"""Characters added to both lengths of a pair: smooths the ratio of short texts."""
MISALIGNED_SHARE: Final = 0.1
"""A document is misaligned as a whole if this share of its units, and at least two, have a wrong length."""
_CODE: Final = re.compile("[A-Za-z0-9]+([-_][A-Za-z0-9]+)*")


@dataclass(frozen=True, slots=True)
class Version:
    """A page in one language. A translation-memory unit without a text in this language is ""."""

    title: str
    paragraphs: list[str]


@dataclass(frozen=True, slots=True)
class Topic:
    """A page in all its languages.

    In a translation memory paragraph i is the same unit in all languages, each unit can be a source, and `units` are
    their numbers.
    """

    id: str
    versions: Mapping[str, Version]
    references: Mapping[str, str] = field(default_factory=dict)
    units: Sequence[int] = ()


class Corpus(Protocol):
    """Topics, counts of what was left out, and records that failed."""

    counts: Counter[str]
    failed: list[BadRecord]

    def languages(self) -> list[str]:
        """The codes of all languages, sorted."""
        ...

    def sizes(self, source: str) -> dict[str, int]:
        """The number of sources of each topic that has a text in the source language."""
        ...

    def topic(self, name: str) -> Topic:
        """A topic by its id."""
        ...

    def sample_other(
        self, topic: Topic, lang: str, rng: random.Random, excluded: Collection[str] = ()
    ) -> Version | None:
        """A random page of another topic (none of `excluded`) in a language; None if there is no other."""
        ...

    def pages(self) -> Iterator[tuple[str, str, Version]]:
        """All pages as (id, language, page), in file order."""
        ...


class Pages:
    """Pages of files: page records, and rows of Wikipedia dumps. Raises InputError for a file without a usable page."""

    def __init__(self, paths: Sequence[str | Path], langlinks: str | Path | None = None, source: str = "en") -> None:
        """`langlinks` is a file of links from the pages in the language `source` (agentsys.terms.wikipedia)."""
        self.counts: Counter[str] = Counter()
        self.failed: list[BadRecord] = []
        self._db = sqlite3.connect("")  # a temporary file, deleted with the connection
        self._db.executescript(
            "CREATE TABLE page (id TEXT PRIMARY KEY, lang TEXT, title TEXT, body TEXT);"
            "CREATE TABLE link (one TEXT, other TEXT); CREATE TABLE langlink (one TEXT, lang TEXT, title TEXT);"
        )
        for path in paths:
            before = self.counts["pages"]
            for record in read_records(path):
                self._add(record)
            if self.counts["pages"] == before:
                raise InputError(f"{path}: no usable page; {self.failed[-1].reason if self.failed else 'it is empty'}")
        if langlinks is not None:
            self._read_links(langlinks, source)
        self._link_titles()
        self._db.executescript("CREATE INDEX by_lang ON page (lang); CREATE INDEX one ON link (one);")
        self._by_language: dict[str, list[str]] = {}

    def _add(self, record: Record | BadRecord) -> None:
        data: Mapping[str, Any] = {}
        fault = record.reason if isinstance(record, BadRecord) else ""
        if not isinstance(record, BadRecord):
            is_row = is_dump_row(record.data)
            try:
                data = to_page(record.data, record.id) if is_row else {**record.data, "id": record.id}
            except ValueError as err:
                fault = str(err)
            if is_row and data and not data["paragraphs"]:
                self.counts["pages without a paragraph, such as lists"] += 1  # in a dump they are no fault
                return
        fault = fault or page_fault(data) or self._store(data)
        if fault:
            self.failed.append(BadRecord(record.source, fault))
        else:
            self.counts["pages"] += 1

    def _store(self, data: Mapping[str, Any]) -> str:
        """Write a page and its links; returns why it cannot be used, "" if it can."""
        name, lang = str(data["id"]), str(data["lang"])
        body = {field: data.get(field) for field in ("title", "paragraphs", "references")}
        body["paragraphs"] = [text.strip() for text in data["paragraphs"] if text.strip()]
        row = (name, lang, clean_title(data.get("title") or ""), json.dumps(body, ensure_ascii=False))
        try:
            self._db.execute("INSERT INTO page VALUES (?, ?, ?, ?)", row)
        except sqlite3.IntegrityError:
            return f"duplicate: two pages have the id {name}"
        pairs = [(name, other) for other in (data.get("links") or {}).values()]
        pairs += [(other, one) for one, other in pairs]
        self._db.executemany("INSERT INTO link VALUES (?, ?)", pairs)
        titles = [(name, *link) for link in (data.get("langlinks") or {}).items()]
        self._db.executemany("INSERT INTO langlink VALUES (?, ?, ?)", titles)
        return ""

    def _read_links(self, langlinks: str | Path, source: str) -> None:
        for link in read_langlinks(langlinks):
            if isinstance(link, BadRecord):
                self.failed.append(link)
            else:
                row = (page_id(source, link.id), link.lang, link.title)
                self._db.execute("INSERT INTO langlink VALUES (?, ?, ?)", row)

    def _link_titles(self) -> None:
        """Turn links by title into links by id; those to pages that are not in the files are counted."""
        [count] = self._db.execute("SELECT count(*) FROM langlink").fetchone()
        if not count:
            return
        self._db.executescript(
            "CREATE INDEX by_title ON page (lang, title);"
            "CREATE TABLE pair AS SELECT DISTINCT langlink.one, page.id AS other FROM langlink"
            " JOIN page AS own ON own.id = langlink.one"
            " JOIN page ON page.lang = langlink.lang AND page.title = langlink.title;"
            "INSERT INTO link SELECT one, other FROM pair; INSERT INTO link SELECT other, one FROM pair;"
        )
        [linked] = self._db.execute("SELECT count(*) FROM pair").fetchone()
        self.counts["links between languages"] = linked
        self.counts["links from or to pages that are not in the files"] = count - linked
        self._db.executescript("DROP TABLE pair; DROP TABLE langlink; DROP INDEX by_title;")

    def has_links(self) -> bool:
        """Whether any page has a version in another language."""
        query = "SELECT 1 FROM link JOIN page AS a ON a.id = one JOIN page AS b ON b.id = other WHERE a.lang != b.lang"
        return self._db.execute(f"{query} LIMIT 1").fetchone() is not None

    def languages(self) -> list[str]:
        """See Corpus."""
        return [lang for (lang,) in self._db.execute("SELECT DISTINCT lang FROM page ORDER BY lang")]

    def sizes(self, source: str) -> dict[str, int]:
        """See Corpus: one source per page, its lead."""
        return dict.fromkeys(self._ids(source), 1)

    def topic(self, name: str) -> Topic:
        """See Corpus. Of two linked pages in one language the first by id is used."""
        lang, body = self._db.execute("SELECT lang, body FROM page WHERE id = ?", (name,)).fetchone()
        linked = self._db.execute(
            "SELECT lang, body FROM page WHERE id IN (SELECT other FROM link WHERE one = ?) ORDER BY id DESC", (name,)
        )
        versions = {code: _version(text) for code, text in linked} | {lang: _version(body)}
        return Topic(name, versions, json.loads(body)["references"] or {})

    def sample_other(
        self, topic: Topic, lang: str, rng: random.Random, excluded: Collection[str] = ()
    ) -> Version | None:
        """See Corpus."""
        if lang not in self._by_language:
            self._by_language[lang] = self._ids(lang)
        ids = self._by_language[lang]
        own = topic.versions.get(lang)
        for name in rng.sample(ids, min(len(ids), 10)):
            version = _version(self._body(name))
            if version != own and version.paragraphs[1:] and not any(same in excluded for same in self._same(name)):
                return version
        return None

    def pages(self) -> Iterator[tuple[str, str, Version]]:
        """See Corpus."""
        for name, lang, body in self._db.execute("SELECT id, lang, body FROM page ORDER BY rowid"):
            yield name, lang, _version(body)

    def _ids(self, lang: str) -> list[str]:
        return [name for (name,) in self._db.execute("SELECT id FROM page WHERE lang = ? ORDER BY id", (lang,))]

    def _same(self, name: str) -> list[str]:
        """The ids of a page as a topic: its own and those of its other versions."""
        return [name, *(other for (other,) in self._db.execute("SELECT other FROM link WHERE one = ?", (name,)))]

    def _body(self, name: str) -> str:
        (body,) = self._db.execute("SELECT body FROM page WHERE id = ?", (name,)).fetchone()
        return str(body)


def page_fault(data: Mapping[str, Any]) -> str:
    """Why a page record cannot be used, in one line that names the fix; "" if it can."""
    if not isinstance(data.get("lang"), str) or not data["lang"].strip():
        return "no field 'lang' with a code such as en, and no 'url' on wikipedia.org that tells it; add one of them"
    if not _CODE.fullmatch(data["lang"]):
        return f"field 'lang' is {data['lang']!r:.40}; write a code such as en or zh-CN"
    paragraphs = data.get("paragraphs")
    if not isinstance(paragraphs, list) or not all(isinstance(text, str) for text in paragraphs):
        return "field 'paragraphs' is not a list of texts; give the lead first, then the others"
    if not any(text.strip() for text in paragraphs):
        return "field 'paragraphs' has no text; give the lead first, then the others"
    if not paragraphs[0].strip():
        return "field 'paragraphs' begins with an empty text; give the lead first, then the others"
    if not isinstance(data.get("title"), str | None):
        return "field 'title' is not a text; give a text, or leave it out"
    for name in ("links", "references"):
        pairs = data.get(name) or {}
        if not isinstance(pairs, Mapping) or not all(isinstance(value, str) for value in pairs.values()):
            return f"field {name!r} is not a mapping from languages to texts, such as {{'zh': '...'}}"
    return ""


def _version(body: str) -> Version:
    data = json.loads(body)
    return Version(data["title"] or "", data["paragraphs"])


class Units:
    """Translation memories as a corpus, in memory. Raises InputError for a file without the source language."""

    def __init__(self, files: Sequence[Path], preferred: Sequence[str], factor: float) -> None:
        """`preferred` are language codes, the source language first; texts in other languages are kept too.

        A text whose length ratio to the source differs from the file's median by more than `factor` is left out; so are
        all of a document's texts in a language if that holds for MISALIGNED_SHARE of them.
        """
        self.counts: Counter[str] = Counter()
        self.failed: list[BadRecord] = []
        self._texts: dict[str, dict[int, dict[str, str]]] = defaultdict(dict)
        self._topics: dict[str, Topic] = {}
        for file in files:
            self._read(file, tuple(preferred), factor)

    def _read(self, file: Path, preferred: tuple[str, ...], factor: float) -> None:
        from agentsys.terms.tmx import read_units
        from agentsys.terms.units import FaultCounter

        source = preferred[0]
        ratios: dict[str, dict[tuple[str, int], float]] = defaultdict(dict)
        codes: set[str] = set()
        seen: set[tuple[str, int]] = set()
        faults = FaultCounter()
        for number, unit in enumerate(read_units(file, faults.add)):
            names = preferred_codes(tuple(sorted(unit.texts)), preferred)
            texts = {names[code]: text for code, text in unit.texts.items() if code in names}
            codes |= set(unit.texts)
            self.counts["units"] += 1
            topic, place = _position(unit.id, file, number)
            if fault := self._fault(topic, place, texts, source, seen):
                self.counts[fault] += 1
                continue
            seen.add((topic, place))
            self._texts[topic].setdefault(place, {}).update(texts)
            for lang in texts.keys() - {source}:
                ratios[lang][topic, place] = math.log(_length(texts[lang]) / _length(texts[source]))
        self.counts["units that are not well-formed"] += faults.broken
        if not any(source in preferred_codes((code,), preferred).values() for code in codes):
            raise InputError(f"{file}: no text in '{source}'; its languages are {', '.join(sorted(codes)) or 'none'}")
        for lang, ratio_by_unit in ratios.items():
            self._leave_out(lang, find_misaligned(ratio_by_unit, factor))

    def _fault(
        self, topic: str, place: int, texts: Mapping[str, str], source: str, seen: Collection[tuple[str, int]]
    ) -> str:
        """Why a unit cannot be used, "" if it can. `seen` are the earlier units of this file."""
        if source not in texts:
            return f"units without {source}"
        if (topic, place) in seen:
            return "units with a repeated id"
        earlier = self._texts[topic].get(place, {}).get(source, texts[source])
        return "" if earlier == texts[source] else f"units whose {source} text differs from an earlier file"

    def _leave_out(self, lang: str, reasons: Mapping[tuple[str, int], str]) -> None:
        for (topic, place), reason in reasons.items():
            del self._texts[topic][place][lang]
            self.counts[f"{lang} {reason}"] += 1

    def languages(self) -> list[str]:
        """See Corpus."""
        return sorted({lang for units in self._texts.values() for texts in units.values() for lang in texts})

    def sizes(self, source: str) -> dict[str, int]:
        """See Corpus: each unit is a source."""
        sizes = {name: sum(source in texts for texts in units.values()) for name, units in self._texts.items()}
        return {name: size for name, size in sizes.items() if size}

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

    def sample_other(
        self, topic: Topic, lang: str, rng: random.Random, excluded: Collection[str] = ()
    ) -> Version | None:
        """See Corpus: the units of another document, starting at a random one."""
        names = [name for name in sorted(self._texts) if name != topic.id and name not in excluded]
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
def preferred_codes(codes: tuple[str, ...], preferred: tuple[str, ...]) -> dict[str, str]:
    """The codes of a file -> the preferred codes that they match best, or themselves for other languages."""
    from agentsys.text.languages import best_code, known_language, language

    matches = {code: name for name in reversed(preferred) if (code := best_code(known_language(name), codes))}
    primary = {known_language(name).primary for name in preferred}
    return {code: code for code in codes if (tag := language(code)) and tag.primary not in primary} | matches


def _position(name: str, file: Path, number: int) -> tuple[str, int]:
    """(document, unit): "wiki_9:12" is unit 12 of wiki_9; other names are units of one document, the file, in order."""
    document, mark, place = name.rpartition(":")
    return (document, int(place)) if mark and document and place.isdecimal() else (file.stem, number)


def find_misaligned(ratios: Mapping[tuple[str, int], float], factor: float) -> dict[tuple[str, int], str]:
    """Units whose length suggests that they are not translations, with the reason. `ratios` are log length ratios.

    Most pairs of a shifted column have a plausible length, so a document with many wrong ones is left out as a whole.
    """
    middle = median(ratios.values())
    wrong = {key for key, ratio in ratios.items() if abs(ratio - middle) > math.log(factor)}
    sizes, faults = Counter(topic for topic, _ in ratios), Counter(topic for topic, _ in wrong)
    whole = {topic for topic, n in faults.items() if n > 1 and n >= MISALIGNED_SHARE * sizes[topic]}
    reasons = {key: "of a wrong length" for key in wrong}
    return reasons | {key: "in a misaligned document" for key in ratios if key[0] in whole}


def _length(text: str) -> int:
    return len(text) + SMOOTHING
