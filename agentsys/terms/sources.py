"""Where knowledge of terms comes from: term lists, dictionaries, translation memories, passages, and any object.

A source is an object with a name and `look_up`. `load_sources` makes the four kinds of files and folders from specs,
strings that a command line can carry:

    terms:FILE       bilingual term list, CSV, TSV or JSONL (agentsys.knowledge.term_lists)
    dictionary:FILE  headwords with translations, glosses or both, CSV, TSV or JSONL
    tmx:FILE         translation memory (agentsys.knowledge.tmx)
    passages:FOLDER  index folder (agentsys.knowledge.load_retriever)

terms: and dictionary: take the names of columns that they do not know: `terms:FILE.csv?source=COL&target=COL`.
"""

from __future__ import annotations

import asyncio
import threading
from array import array
from collections.abc import Iterable, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Final, Protocol
from urllib.parse import parse_qsl

from agentsys.knowledge.index import allowed_path, load_retriever
from agentsys.knowledge.passages import Hit, KnowledgeError, Retriever
from agentsys.terms.index import TermIndex, forms, is_acronym, term_key
from agentsys.terms.item import Item, needs
from agentsys.terms.lists import Counts, TermList, read_list
from agentsys.terms.tmx import Unit, read_tmx
from agentsys.text.languages import Language, best_code, known_language
from agentsys.text.words import words

__all__ = ["PassageSource", "TermIndex", "TermList", "TermSource", "TranslationMemory", "load_sources"]

FOUND: Final = 3
"""Segments of a memory, and passages, that one term gets at most."""

EXCERPT: Final = 300
"""The length of a passage's excerpt around the term, in characters."""

_STOPS: Final = ".。"
_KINDS: Final = "terms:FILE, dictionary:FILE, tmx:FILE and passages:FOLDER"
_READING: Final = threading.Lock()


class TermSource(Protocol):
    """Knows terms. Three lines make one: a class, a name, and `look_up`."""

    name: str

    async def look_up(self, terms: Sequence[str], sentence: str) -> list[list[Item]]:
        """For each of the terms of a sentence what the source knows of it, best first."""
        ...


def load_sources(specs: Sequence[str | TermSource], source_language: str, target_language: str) -> list[TermSource]:
    """The sources of specs, in order; an object with `look_up` is a source already. Languages are codes or names.

    Reads files: call it with asyncio.to_thread where nothing may block. Equal arguments give the same sources until a
    file changes. Raises KnowledgeError if a spec, a language or a file cannot be used, and inside the LangGraph server
    for a file that $AGENTSYS_TERM_SOURCES (paths separated by commas) does not list, or an index folder that
    $AGENTSYS_INDEXES does not.
    """
    if isinstance(specs, str):
        raise KnowledgeError(f"sources are a list of specs, not the string {specs!r:.80}; write [{specs!r:.80}]")
    needs("ahocorasick", "langcodes", "language_data", "lxml", "opencc")
    source, target = known_language(source_language), known_language(target_language)
    return [_load(spec, source, target) if isinstance(spec, str) else spec for spec in specs]


def told(specs: Sequence[str], source_language: str, target_language: str) -> list[str]:
    """A line for each file of terms or pairs: its entries, and what of it repeats, contradicts or could not be used.

    Raises what `load_sources` raises.
    """
    files = [spec for spec in specs if not spec.startswith("passages:")]
    lines = []
    for source in load_sources(files, source_language, target_language) if files else ():
        if isinstance(counts := getattr(source, "counts", None), Counts):
            notes = {
                "repeated": counts.duplicates,
                "terms with rival translations": counts.rivals,
                "not used (blank, broken or in other languages)": counts.skipped,
            }
            said = "".join(f", {count:,} {what}" for what, count in notes.items() if count)
            lines.append(f"{source.name}: {counts.items:,} entries{said}")
    return lines


class TranslationMemory:
    """Pairs of segments, a TermSource: those that contain a term are its evidence."""

    def __init__(self, name: str, pairs: Iterable[tuple[str, str, str]], language: str = "", skipped: int = 0) -> None:
        """Pairs are (where it stands, source text, target text); `language` is the source's primary subtag.

        `skipped` says how many units of the file are no pair of the two languages.
        """
        self.name, self._language = name, language
        self._pairs = list(pairs)
        self.counts = Counts(len(self._pairs), 0, 0, skipped)
        self._texts = frozenset(text for _, text, _ in self._pairs)
        self._places: dict[str, array[int]] = {}
        for place, (_, text, _) in enumerate(self._pairs):
            for word in set(words(text)):
                self._places.setdefault(word, array("I")).append(place)

    async def look_up(self, terms: Sequence[str], sentence: str) -> list[list[Item]]:
        """For each term at most FOUND items: segments that are the term itself, which translate it, then segments that
        contain it, without a target, those first that share most of their words with the sentence.

        Both sides of the pair are the evidence, and the target side the meaning.
        """

        def known() -> list[list[Item]]:
            said = set(words(sentence))
            return [self._known(term, said) for term in terms]

        return await asyncio.to_thread(known)

    def holds(self, sentence: str) -> bool:
        """Whether a segment is this very sentence: in an evaluation it would give the translation away."""
        return " ".join(sentence.split()) in self._texts

    def _known(self, term: str, sentence: set[str]) -> list[Item]:
        written = forms(term, self._language)
        index, keys = TermIndex(written), {term_key(form) for form in written}
        found: dict[str, tuple[bool, float, int]] = {}
        for place in sorted({place for form in written for place in self._holding(form)}):
            _, text, target = self._pairs[place]
            if index.spans(text):
                of = set(words(text))
                whole = term_key(text.rstrip(_STOPS)) in keys and (not is_acronym(term) or term in text)
                # The same pair at another place says nothing new.
                found.setdefault(f"{text}\n{target}", (not whole, -len(of & sentence) / len(of | sentence), place))
        return [self._item(term, place, not other) for other, _, place in sorted(found.values())[:FOUND]]

    def _holding(self, form: str) -> set[int]:
        """Places of segments that have all words of a term, in any order."""
        # One Chinese character alone is no word of a longer text (see words), so it narrows nothing.
        places = [set(self._places.get(word, ())) for word in words(form) if len(word) > 1 or word.isascii()]
        return set.intersection(*places) if places else set(range(len(self._pairs)))

    def _item(self, term: str, place: int, whole: bool) -> Item:
        where, text, target = self._pairs[place]
        evidence = f"{text} = {target}"
        if whole:
            return Item(text.rstrip(_STOPS), target.rstrip(_STOPS), "", evidence, where)
        return Item(term, "", evidence, evidence, where)


class PassageSource:
    """Passages that a retriever finds, a TermSource: those that name the term explain it."""

    def __init__(self, retriever: Retriever, name: str = "passages") -> None:
        self.name, self._retriever = name, retriever

    async def look_up(self, terms: Sequence[str], sentence: str) -> list[list[Item]]:
        """For each term the passages among the best FOUND hits for it that name it, each as an excerpt around it."""
        if not terms:
            return []
        found = await self._retriever.search(terms, FOUND)
        return [
            [item for hit in hits if (item := _passage(term, hit))] for term, hits in zip(terms, found, strict=True)
        ]

    async def aclose(self) -> None:
        """Close the connections of an embedding endpoint, if the retriever has one."""
        if aclose := getattr(self._retriever, "aclose", None):
            await aclose()


def _passage(term: str, hit: Hit) -> Item | None:
    passage, index = hit.passage, TermIndex(forms(term, "en"))
    text = " ".join(passage.text.split())
    spans = index.spans(text)
    if not (spans or index.spans(passage.title)):
        return None
    excerpt = _excerpt(text, spans[0][0] if spans else 0)
    evidence = f"{passage.title}: {excerpt}" if passage.title else excerpt
    return Item(term, "", excerpt, evidence, f"passage:{passage.id}")


def _excerpt(text: str, place: int) -> str:
    """EXCERPT characters of a text around a place, cut at spaces where there are some."""
    start = max(0, min(place - EXCERPT // 3, len(text) - EXCERPT))
    end = start + EXCERPT
    if start:
        start = text.find(" ", start, place) + 1 or start
    if end < len(text) and (space := text.rfind(" ", place + EXCERPT // 3, end)) > 0:
        end = space
    return text[start:end]


def _load(spec: str, source: Language, target: Language) -> TermSource:
    kind, _, rest = spec.strip().partition(":")
    if kind == "passages" and rest:
        return PassageSource(load_retriever(rest), f"passages:{Path(rest).name}")
    if kind not in ("terms", "dictionary", "tmx") or not rest:
        raise KnowledgeError(f"'{spec}' is no term source; there are {_KINDS}")
    name, _, query = rest.partition("?")
    path = allowed_path(name, "AGENTSYS_TERM_SOURCES")
    columns = tuple(parse_qsl(query, keep_blank_values=True))
    try:
        state = path.stat()
    except OSError as err:
        raise KnowledgeError(f"{name}: cannot be read ({err.strerror}); check the path") from None
    with _READING:
        return _read(kind, path, columns, source, target, (state.st_mtime_ns, state.st_size))


@lru_cache(maxsize=16)
def _read(
    kind: str, path: Path, columns: tuple[tuple[str, str], ...], source: Language, target: Language, state: object
) -> TermSource:
    """`state` is what tells a file from what it was before."""
    if kind == "tmx":
        if columns:
            raise KnowledgeError(f"tmx:{path.name} has no columns; leave ?{columns[0][0]}=... out")
        return read_memory(path, source, target)
    return read_list(path, "terms" if kind == "terms" else "dictionary", source, target, dict(columns))


def read_memory(path: Path, source: Language, target: Language) -> TranslationMemory:
    """A TMX file's pairs of two languages. Raises KnowledgeError; without a pair it tells the languages of the file."""
    codes: dict[str, int] = {}
    name = path.name
    pairs = []
    units = 0
    for unit in read_tmx(path):
        units += 1
        for code in unit.texts:
            codes[code] = codes.get(code, 0) + 1
        if pair := _pair(unit, source, target):
            pairs.append((f"{name}:{unit.id}", *pair))
    if not codes:
        raise KnowledgeError(f"{path}: no segment in it; give a translation memory with units")
    if not pairs:
        has = ", ".join(f"{code or 'none'} ({count})" for code, count in sorted(codes.items(), key=lambda one: -one[1]))
        wanted = f"{source} and {target}"
        raise KnowledgeError(f"{path}: no pair of {wanted}; its language codes and their segments are {has}")
    return TranslationMemory(f"tmx:{name}", pairs, source.primary, skipped=units - len(pairs))


def _pair(unit: Unit, source: Language, target: Language) -> tuple[str, str] | None:
    first, second = best_code(source, unit.texts), best_code(target, unit.texts)
    if first is None or second is None or first == second:
        return None
    return unit.texts[first], unit.texts[second]
