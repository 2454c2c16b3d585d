"""Sources of knowledge about terms: term lists, dictionaries, memories, passages, Wikipedia, and custom objects.

A source is an object with a name and `look_up`. `load_sources` loads six kinds from specs, which are strings:

    terms:FILE       bilingual term list: CSV, TSV, JSONL, XLSX, TBX, XLIFF (agentsys.terms.lists)
    dictionary:FILE  headwords with translations, glosses or both, in the same formats
    tmx:FILE         translation memory: TMX, XLIFF (agentsys.terms.tmx)
    passages:FOLDER  index folder (agentsys.knowledge.load_retriever)
    wiki:PATH        Wikipedia dump: file, folder or pattern (agentsys.terms.titles)
    python:MODULE:CLASS  a class of your own (agentsys.terms.custom)

A file may be compressed (.gz, .bz2, .xz).
For terms: and dictionary:, columns with unusual names are given as `terms:FILE.csv?source=COL&target=COL`.
`wiki:PATH?langlinks=FILE` names a file of links between languages.
"""

from __future__ import annotations

import asyncio
import hashlib
import threading
from array import array
from collections.abc import Iterable, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Final, Protocol
from urllib.parse import parse_qsl

from agentsys.inputs.files import find_address
from agentsys.knowledge.index import allowed_path, index_digest, load_retriever
from agentsys.knowledge.passages import Hit, KnowledgeError, Retriever
from agentsys.terms.custom import custom_file, load_custom
from agentsys.terms.index import TermIndex, forms, is_acronym, term_key
from agentsys.terms.item import Item, require_modules
from agentsys.terms.lists import Counts, TermList, read_list
from agentsys.terms.titles import Titles, WikiSource, open_titles
from agentsys.terms.tmx import Unit, read_units
from agentsys.terms.units import FaultCounter
from agentsys.text.languages import Language, best_code, known_language
from agentsys.text.words import words

__all__ = ["PassageSource", "TermIndex", "TermList", "TermSource", "TranslationMemory", "load_sources"]

MAX_ITEMS: Final = 3
"""Maximum number of segments or passages per term."""

EXCERPT: Final = 300
"""Length of a passage's excerpt around the term, in characters."""

_STOPS: Final = ".。"
_KINDS: Final = "terms:FILE, dictionary:FILE, tmx:FILE, wiki:PATH, passages:FOLDER or python:MODULE:CLASS"
_READING: Final = threading.Lock()


class TermSource(Protocol):
    """A source of knowledge about terms: any object with a name and `look_up`."""

    name: str

    async def look_up(self, terms: Sequence[str], sentence: str) -> list[list[Item]]:
        """Return the source's items for each of the terms of a sentence, best first."""
        ...


def load_sources(specs: Sequence[str | TermSource], source_language: str, target_language: str) -> list[TermSource]:
    """Load the sources of specs, in order; objects with `look_up` are returned as they are.

    Languages are codes or names. This reads files: from an event loop, call it with asyncio.to_thread. Equal arguments
    return the same sources until a file changes. Raises KnowledgeError if a spec, a language or a file cannot be used;
    inside the LangGraph server also for a file that $AGENTSYS_TERM_SOURCES (paths separated by commas) does not list,
    an index folder that $AGENTSYS_INDEXES does not list, or a class.
    """
    if isinstance(specs, str):
        raise KnowledgeError(f"sources are a list of specs, not the string {specs!r:.80}; write [{specs!r:.80}]")
    require_modules("ahocorasick", "langcodes", "language_data", "lxml", "opencc")
    source, target = known_language(source_language), known_language(target_language)
    return [_load(spec, source, target) if isinstance(spec, str) else spec for spec in specs]


def source_summary(specs: Sequence[str], source_language: str, target_language: str) -> list[str]:
    """Return one line per file: the number of its entries, of duplicates, of rival translations and of unused rows.

    Raises what `load_sources` raises.
    """
    files = [spec for spec in specs if not spec.startswith(("passages:", "python:"))]
    lines = []
    for source in load_sources(files, source_language, target_language) if files else ():
        if isinstance(counts := getattr(source, "counts", None), Counts):
            notes = {
                "repeated": counts.duplicates,
                "terms with rival translations": counts.rivals,
                "not used (blank, broken or in other languages)": counts.skipped,
                "left out (not well-formed)": counts.broken,
                "repaired": counts.repaired,
            }
            details = "".join(f", {count:,} {note}" for note, count in notes.items() if count)
            details += f"; for example {counts.faults[0]}" if counts.faults else ""
            lines.append(f"{source.name}: {counts.items:,} entries{details}")
        elif isinstance(source, WikiSource):
            lines.append(source.summary)
    return lines


def sources_digest(specs: Sequence[str]) -> str:
    """Return 16 hex digits that identify the content of specs' sources, which `load_sources` has loaded.

    Of a class it is the file of its module. Raises KnowledgeError.
    """
    digest = hashlib.sha256()
    for spec in specs:
        kind, _, rest = spec.partition(":")
        path = Path(rest.partition("?")[0]).expanduser()
        if kind == "passages":
            digest.update(index_digest(path).encode())
        elif kind == "wiki":
            digest.update(_open_wiki(rest).digest.encode())
        elif kind != "python":
            digest.update(path.read_bytes())
        elif file := custom_file(rest):
            digest.update(file.read_bytes())
    return digest.hexdigest()[:16]


class TranslationMemory:
    """Pairs of segments as a TermSource: the pairs that contain a term are its evidence."""

    def __init__(
        self,
        name: str,
        pairs: Iterable[tuple[str, str, str]],
        language: str = "",
        skipped: int = 0,
        faults: FaultCounter | None = None,
    ) -> None:
        """Pairs are (id, source text, target text); `language` is the source's primary subtag.

        `skipped` is the number of units in the file that are not a pair of the two languages, `faults` counts those
        that are broken.
        """
        self.name, self._language = name, language
        self._pairs = list(pairs)
        faults = faults or FaultCounter()
        broken, repaired, examples = faults.broken, faults.repaired, tuple(faults.examples)
        self.counts = Counts(len(self._pairs), 0, 0, skipped, broken, repaired, examples)
        self._texts = frozenset(text for _, text, _ in self._pairs)
        self._positions: dict[str, array[int]] = {}
        for position, (_, text, _) in enumerate(self._pairs):
            for word in set(words(text)):
                self._positions.setdefault(word, array("I")).append(position)

    async def look_up(self, terms: Sequence[str], sentence: str) -> list[list[Item]]:
        """Return at most MAX_ITEMS items per term, each with both sides of a pair as its evidence.

        First come segments that equal the term, with their target; then segments that contain it, without a target but
        with the pair as meaning, sorted by the share of words in common with the sentence.
        """

        def look_up_all() -> list[list[Item]]:
            sentence_words = set(words(sentence))
            return [self._look_up(term, sentence_words) for term in terms]

        return await asyncio.to_thread(look_up_all)

    def contains(self, sentence: str) -> bool:
        """Whether a segment equals this sentence, so that the memory would leak its translation in an evaluation."""
        return " ".join(sentence.split()) in self._texts

    def _look_up(self, term: str, sentence_words: set[str]) -> list[Item]:
        term_forms = forms(term, self._language)
        index, keys = TermIndex(term_forms), {term_key(form) for form in term_forms}
        ranked: dict[str, tuple[bool, float, int]] = {}
        for position in sorted({position for form in term_forms for position in self._candidates(form)}):
            _, text, target = self._pairs[position]
            if index.spans(text):
                text_words = set(words(text))
                equal = term_key(text.rstrip(_STOPS)) in keys and (not is_acronym(term) or term in text)
                overlap = len(text_words & sentence_words) / len(text_words | sentence_words)
                ranked.setdefault(f"{text}\n{target}", (not equal, -overlap, position))  # skips repeated pairs
        best = sorted(ranked.values())[:MAX_ITEMS]
        return [self._item(term, position, not unequal) for unequal, _, position in best]

    def _candidates(self, form: str) -> set[int]:
        """Return the positions of segments that have all words of a term, in any order."""
        # A single Chinese character is not a word of a longer text (see `words`), so it cannot filter.
        positions = [set(self._positions.get(word, ())) for word in words(form) if len(word) > 1 or word.isascii()]
        return set.intersection(*positions) if positions else set(range(len(self._pairs)))

    def _item(self, term: str, position: int, equal: bool) -> Item:
        pair_id, text, target = self._pairs[position]
        evidence = f"{text} = {target}"
        if equal:
            return Item(text.rstrip(_STOPS), target.rstrip(_STOPS), "", evidence, pair_id)
        return Item(term, "", evidence, evidence, pair_id)


class PassageSource:
    """Retrieved passages as a TermSource: the passages that name a term explain it."""

    def __init__(self, retriever: Retriever, name: str = "passages") -> None:
        self.name, self._retriever = name, retriever

    async def look_up(self, terms: Sequence[str], sentence: str) -> list[list[Item]]:
        """Return excerpts around each term from those of its MAX_ITEMS best passages that name it."""
        if not terms:
            return []
        hits_by_term = await self._retriever.search(terms, MAX_ITEMS)
        return [
            [item for hit in hits if (item := _explain_by_passage(term, hit))]
            for term, hits in zip(terms, hits_by_term, strict=True)
        ]

    async def aclose(self) -> None:
        """Close the connections of an embedding endpoint, if the retriever has one."""
        if aclose := getattr(self._retriever, "aclose", None):
            await aclose()


def _explain_by_passage(term: str, hit: Hit) -> Item | None:
    """Return an excerpt of the passage around the term as an item; None if the passage does not name the term."""
    passage, index = hit.passage, TermIndex(forms(term, "en"))
    text = " ".join(passage.text.split())
    spans = index.spans(text)
    if not (spans or index.spans(passage.title)):
        return None
    excerpt = _excerpt(text, spans[0][0] if spans else 0)
    evidence = f"{passage.title}: {excerpt}" if passage.title else excerpt
    return Item(term, "", excerpt, evidence, f"passage:{passage.id}")


def _excerpt(text: str, position: int) -> str:
    """Return about EXCERPT characters of a text around a position, cut at spaces if there are any."""
    start = max(0, min(position - EXCERPT // 3, len(text) - EXCERPT))
    end = start + EXCERPT
    if start:
        start = text.find(" ", start, position) + 1 or start
    if end < len(text) and (space := text.rfind(" ", position + EXCERPT // 3, end)) > 0:
        end = space
    return text[start:end]


def _load(spec: str, source: Language, target: Language) -> TermSource:
    kind, _, rest = spec.strip().partition(":")
    if kind == "passages" and rest:
        return PassageSource(load_retriever(rest), f"passages:{Path(rest).name}")
    if kind == "wiki" and rest:
        return WikiSource(f"wiki:{Path(rest.partition('?')[0]).name}", _open_wiki(rest), source, target)
    if kind == "python" and rest:
        source_of_user: TermSource = load_custom(rest)
        return source_of_user
    if kind not in ("terms", "dictionary", "tmx") or not rest:
        raise KnowledgeError(f"'{spec}' is not a term source; use {_KINDS}")
    name, _, query = rest.partition("?")
    path = allowed_path(name, "AGENTSYS_TERM_SOURCES")
    columns = tuple(parse_qsl(query, keep_blank_values=True))
    try:
        state = path.stat()
    except OSError as err:
        raise KnowledgeError(f"{name}: cannot be read ({err.strerror}); check the path") from None
    with _READING:
        return _read(kind, path, columns, source, target, (state.st_mtime_ns, state.st_size))


def _open_wiki(rest: str) -> Titles:
    """Open what follows `wiki:`; the same object until a file changes. Raises KnowledgeError."""
    name, _, query = rest.partition("?")
    settings = dict(parse_qsl(query, keep_blank_values=True))
    links = settings.pop("langlinks", None)
    if settings or links == "":
        raise KnowledgeError(f"wiki:{rest}: write wiki:PATH or wiki:PATH?langlinks=FILE")
    if remote := [path for path in (name, links) if path and (path.startswith("hf:") or find_address(path))]:
        raise KnowledgeError(f"wiki:{remote[0]}: a dump must be on this computer; give a file, a folder or a pattern")
    paths = [allowed_path(path, "AGENTSYS_TERM_SOURCES") for path in (name, links) if path is not None]
    with _READING:
        return open_titles(*paths)


@lru_cache(maxsize=16)
def _read(
    kind: str, path: Path, columns: tuple[tuple[str, str], ...], source: Language, target: Language, state: object
) -> TermSource:
    """Load a file; `state` (time and size) changes with the file, so that the cache is not stale."""
    if kind == "tmx":
        if columns:
            raise KnowledgeError(f"tmx:{path.name} has no columns; remove ?{columns[0][0]}=...")
        return read_memory(path, source, target)
    return read_list(path, "terms" if kind == "terms" else "dictionary", source, target, dict(columns))


def read_memory(path: str | Path, source: Language, target: Language) -> TranslationMemory:
    """Read a memory's pairs of two languages. Raises KnowledgeError, also if it has no such pair."""
    codes: dict[str, int] = {}
    name = Path(path).name
    pairs = []
    units = 0
    faults = FaultCounter()
    for unit in read_units(path, faults.add):
        units += 1
        for code in unit.texts:
            codes[code] = codes.get(code, 0) + 1
        if pair := _pair(unit, source, target):
            pairs.append((f"{name}:{unit.id}", *pair))
    if not codes:
        reason = f"no unit can be read ({faults.examples[0]})" if faults.broken else "the file has no segments"
        raise KnowledgeError(f"{path}: {reason}; give a translation memory with units")
    if not pairs:
        by_count = sorted(codes.items(), key=lambda entry: -entry[1])
        listed = ", ".join(f"{code or 'none'} ({count})" for code, count in by_count)
        raise KnowledgeError(
            f"{path}: no pair of {source} and {target}; its language codes and their segments are {listed}"
        )
    return TranslationMemory(f"tmx:{name}", pairs, source.primary, skipped=units - len(pairs), faults=faults)


def _pair(unit: Unit, source: Language, target: Language) -> tuple[str, str] | None:
    first, second = best_code(source, unit.texts), best_code(target, unit.texts)
    if first is None or second is None or first == second:
        return None
    return unit.texts[first], unit.texts[second]
