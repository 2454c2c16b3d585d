"""The titles of a Wikipedia dump as a term source: a page explains a term, and its title elsewhere translates it.

The pages are read once into an SQLite file in the cache folder: titles, redirects, leads and links, without the other
text. A lookup reads a few rows of it, so that no part of a dump is in memory. The automaton of agentsys.terms.index
would hold all titles in memory, and an index of agentsys.knowledge finds passages by words, not pages by title.
"""

from __future__ import annotations

import asyncio
import hashlib
import os
import re
import sqlite3
import threading
from collections.abc import Mapping, Sequence
from contextlib import closing, suppress
from functools import lru_cache
from pathlib import Path
from typing import Any, Final, NamedTuple

import orjson

from agentsys.display import say
from agentsys.inputs.files import find_files
from agentsys.knowledge.passages import KnowledgeError
from agentsys.paths import cache_folder, make_private_folder
from agentsys.records import BadRecord, InputError, Record, read_records
from agentsys.terms.index import forms, name_key
from agentsys.terms.item import Item
from agentsys.terms.wikipedia import bare_title, clean_title, page_links, page_paragraphs, read_langlinks
from agentsys.text.chinese import to_simplified
from agentsys.text.languages import Language, best_code
from agentsys.text.words import words

MAX_PAGES: Final = 3
"""Maximum number of pages per term."""
LEAD: Final = 600
"""Characters of a page's lead that are kept, cut at a space if there is one."""
FORMAT: Final = 1
"""Version of the file's tables: another one is another file."""

_MAX_NAMESAKES: Final = 200
_REPORT: Final = 500_000
_TITLE, _REDIRECT, _BARE = range(3)
_TABLES: Final = """
CREATE TABLE page (number INTEGER PRIMARY KEY, id TEXT, title TEXT, lead TEXT);
CREATE TABLE name (key TEXT, rank INTEGER, page INTEGER);
CREATE TABLE link (page INTEGER, lang TEXT, title TEXT);
CREATE TABLE redirect (key TEXT, title TEXT);
CREATE TABLE meta (name TEXT PRIMARY KEY, value TEXT);
"""
_INDEXES: Final = """
CREATE INDEX by_title ON page (title);
INSERT INTO name SELECT redirect.key, 1, page.number FROM redirect JOIN page ON page.title = redirect.title;
DROP TABLE redirect;
DROP INDEX by_title;
CREATE INDEX by_key ON name (key);
CREATE INDEX by_page ON link (page);
"""


class Page(NamedTuple):
    """A page that a term names: its title, its lead, and its titles in other languages."""

    id: str
    title: str
    lead: str
    links: Mapping[str, str]


class Titles:
    """The pages of a dump by title. Raises KnowledgeError for a file that cannot be read."""

    def __init__(self, file: Path) -> None:
        self._lock = threading.Lock()
        try:
            self._db = sqlite3.connect(f"{file.resolve().as_uri()}?mode=ro", uri=True, check_same_thread=False)
            meta = dict(self._db.execute("SELECT name, value FROM meta"))
            self.digest = str(meta["digest"])
            self.pages, self.links, self.unusable = (int(meta[name]) for name in ("pages", "links", "unusable"))
        except (sqlite3.Error, KeyError) as err:
            raise KnowledgeError(f"{file}: the index of titles is damaged ({err}); delete it") from None

    def find(self, term: str, sentence: str = "") -> list[Page]:
        """The pages with this title or a redirect from it, then those with more in brackets: "Rush (band)" for "Rush".

        Of the latter, those come first whose lead has the largest share of words in common with the sentence.
        """
        sentence_words = set(words(sentence))
        title = clean_title(term)

        def order(row: tuple[int, str, str, int]) -> tuple[int, bool, float, int]:
            rank, page_title, lead, number = row
            lead_words = set(words(lead)) if rank == _BARE else set()
            share = len(sentence_words & lead_words) / (len(sentence_words | lead_words) or 1)
            return rank, page_title[1:] != title[1:], -share, number

        with self._lock:
            rows = self._db.execute(
                "SELECT rank, title, lead, number FROM name JOIN page ON number = page WHERE key = ? "
                "ORDER BY rank, number LIMIT ?",
                (name_key(title), _MAX_NAMESAKES),
            ).fetchall()
            numbers = list(dict.fromkeys(row[3] for row in sorted(rows, key=order)))[:MAX_PAGES]
            return [self._page(number) for number in numbers]

    def _page(self, number: int) -> Page:
        row = self._db.execute("SELECT id, title, lead FROM page WHERE number = ?", (number,)).fetchone()
        links = self._db.execute("SELECT lang, title FROM link WHERE page = ? ORDER BY rowid DESC", (number,))
        page_id, title, lead = row
        return Page(page_id, title, lead, dict(links))


class WikiSource:
    """A dump as a TermSource."""

    def __init__(self, name: str, titles: Titles, source: Language, target: Language) -> None:
        self.name, self.titles, self._source, self._target = name, titles, source, target

    @property
    def summary(self) -> str:
        """The numbers of pages, of links between languages, and of rows that could not be used."""
        titles = self.titles
        unusable = f", {titles.unusable:,} rows not used (without a title or a paragraph)" if titles.unusable else ""
        return f"{self.name}: {titles.pages:,} pages, {titles.links:,} titles in other languages{unusable}"

    async def look_up(self, terms: Sequence[str], sentence: str) -> list[list[Item]]:
        """At most MAX_PAGES pages per term: the lead is the meaning, the title in the target language the target."""
        return await asyncio.to_thread(lambda: [self._look_up(term, sentence) for term in terms])

    def _look_up(self, term: str, sentence: str) -> list[Item]:
        for form in forms(term, self._source.primary):
            if pages := self.titles.find(form, sentence):
                return [
                    Item(page.title, self._translation(page.links), page.lead, page.lead, f"wiki:{page.id}")
                    for page in pages
                ]
        return []

    def _translation(self, links: Mapping[str, str]) -> str:
        code = self._target.primary if self._target.primary in links else best_code(self._target, links)
        title = bare_title(links[code]) if code else ""
        # Chinese titles are in the script of whoever wrote the page.
        is_simplified = self._target.primary == "zh" and self._target.script != "Hant"
        return to_simplified(title) if is_simplified else title


def open_titles(path: str | Path, langlinks: str | Path | None = None) -> Titles:
    """The titles of a dump: a file, a folder or a pattern in a form that agentsys.records reads.

    The first call reads the whole dump; later ones open the file it made, until the dump changes. `langlinks` is a file
    of links by the ids of the pages (agentsys.terms.wikipedia). Raises KnowledgeError.
    """
    try:
        states = [_state(source) for source in (path, langlinks) if source is not None]
        folder = cache_folder() / "wikipedia"
        digest = hashlib.sha256(orjson.dumps([FORMAT, states])).hexdigest()[:16]
        name = re.sub(r"[^\w.-]+", "-", Path(path).name)
        file = folder / f"{name}-{digest}.sqlite"
        if not file.exists():
            make_private_folder(folder)
            _build(file, path, langlinks)
    except InputError as err:
        raise KnowledgeError(str(err)) from None
    except (OSError, sqlite3.Error) as err:
        reason = getattr(err, "strerror", None) or err
        raise KnowledgeError(f"wiki:{path}: {reason}; set AGENTSYS_CACHE to a folder with enough space") from None
    return _open(file)


@lru_cache(maxsize=16)
def _open(file: Path) -> Titles:
    return Titles(file)


def _state(source: str | Path) -> list[tuple[str, int, int]]:
    """The files of a path with their sizes and times. Raises InputError, OSError."""
    paths = [Path(file.name).resolve() for file in find_files(str(source))]
    return [(str(path), path.stat().st_size, path.stat().st_mtime_ns) for path in paths]


def _build(file: Path, path: str | Path, langlinks: str | Path | None) -> None:
    """Read a dump into a file, which appears complete. Raises InputError if there is no page."""
    part = file.with_name(f".{file.name}.{os.getpid()}.part")
    say(f"wiki:{path}: reading the titles, once; they are kept in {file}")
    try:
        with closing(sqlite3.connect(part)) as db:
            db.executescript(f"PRAGMA journal_mode = OFF; PRAGMA synchronous = OFF; {_TABLES}")
            counts = _Builder(db).read(path, langlinks)
            db.executescript(_INDEXES)
            db.executemany("INSERT INTO meta VALUES (?, ?)", counts.items())
            db.commit()
        os.replace(part, file)
    finally:
        with suppress(FileNotFoundError):
            part.unlink()


class _Builder:
    """Writes the rows of a dump."""

    def __init__(self, db: sqlite3.Connection) -> None:
        self._db = db
        self._digest = hashlib.sha256()
        self._pages = self._links = self._unusable = 0
        self._reason = "it is empty"

    def read(self, path: str | Path, langlinks: str | Path | None) -> dict[str, Any]:
        """Write the pages and the links; returns the counts and the digest. Raises InputError if there is no page."""
        for record in read_records(path):
            if reason := record.reason if isinstance(record, BadRecord) else self._add(record):
                self._unusable, self._reason = self._unusable + 1, reason
        if not self._pages:
            raise InputError(f"wiki:{path}: no page ({self._reason}); give rows with id, title and text")
        if langlinks is not None:
            self._add_links(langlinks)
        counts = {"pages": self._pages, "links": self._links, "unusable": self._unusable}
        return {**counts, "digest": self._digest.hexdigest()[:16]}

    def _add(self, record: Record) -> str:
        """Write a page or a redirect; returns why it cannot be used, "" if it can."""
        page = record.data
        title, target, text = (page.get(name) for name in ("title", "redirect", "text"))
        if not isinstance(title, str) or not (title := clean_title(title)):
            return "no field 'title'"
        if isinstance(target, str) and target.strip():
            self._redirect(title, target)
            return ""
        if not isinstance(text, str):
            return "no field 'text'"
        lead = next(iter(page_paragraphs(text)), "")
        try:
            links = page_links(page)
        except ValueError as err:
            return str(err)
        if not lead and not links:
            return "its text has no paragraph"
        self._write(record.id, title, lead, links)
        redirects = page.get("redirects")
        for other in redirects if isinstance(redirects, list) else []:
            self._redirect(str(other), title)
        return ""

    def _write(self, page_id: str, title: str, lead: str, links: Mapping[str, str]) -> None:
        self._pages += 1
        self._links += len(links)
        if self._pages % _REPORT == 0:
            say(f"{self._pages:,} pages")
        number, lead, bare = self._pages, _shorten(lead), bare_title(title)
        self._db.execute("INSERT INTO page VALUES (?, ?, ?, ?)", (number, page_id, title, lead))
        names = [(name_key(title), _TITLE, number)]
        names += [(name_key(bare), _BARE, number)] if bare != title else []
        self._db.executemany("INSERT INTO name VALUES (?, ?, ?)", names)
        self._db.executemany("INSERT INTO link VALUES (?, ?, ?)", [(number, *link) for link in links.items()])
        self._digest.update(orjson.dumps([page_id, title, lead, links]))

    def _redirect(self, name: str, title: str) -> None:
        pair = (name_key(clean_title(name)), clean_title(title.partition("#")[0]))
        self._db.execute("INSERT INTO redirect VALUES (?, ?)", pair)
        self._digest.update(orjson.dumps(pair))

    def _add_links(self, langlinks: str | Path) -> None:
        self._db.execute("CREATE INDEX by_id ON page (id)")
        for link in read_langlinks(langlinks):
            if isinstance(link, BadRecord):
                self._unusable += 1
                continue
            self._links += self._db.execute(
                "INSERT INTO link SELECT number, ?, ? FROM page WHERE id = ?", (link.lang, link.title, link.id)
            ).rowcount
            self._digest.update(orjson.dumps([*link]))
        self._db.execute("DROP INDEX by_id")


def _shorten(lead: str) -> str:
    """The first LEAD characters, cut at a space in their second half if there is one."""
    if len(lead) <= LEAD:
        return lead
    space = lead.rfind(" ", LEAD // 2, LEAD)
    return lead[: space if space > 0 else LEAD]
