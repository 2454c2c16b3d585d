"""RAGtrans's records: sources with their documents, and the records of CSC's three tasks from the same pages.

Section 3 of "Retrieval-Augmented Machine Translation with Unstructured Knowledge" (Wang et al., Findings of EMNLP 2025)
builds the benchmark, section 4 trains with the tasks CLIC, SKET and CLRD. Random choices depend on the seed and the
sample's id, not on the order of the samples. docs/ragtrans.md lists what the paper leaves open and our choices.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Final

from agentsys.graphs.ragtrans.corpus import Corpus, Topic, Version
from agentsys.graphs.ragtrans.documents import JOIN, Reference, count_tokens, fit, mmr, overlap, remove_leaks
from agentsys.knobs import knob
from agentsys.records import InputError
from agentsys.text.words import windows

if TYPE_CHECKING:
    from agentsys.knowledge import Embedder

Row = dict[str, Any]
TRUTH: Final = {True: "true", False: "false"}
"""CLRD's answers."""


@dataclass(frozen=True)
class BenchmarkOptions:
    """How samples are made and split."""

    panel: ClassVar[str] = "Benchmark"
    source: str = knob("en", "code of the source language")
    target: str = knob("zh", "code of the target language")
    language: list[str] = knob((), "code of a document language; repeatable; by default all of the corpus")
    document_tokens: int = knob(768, "maximum tokens of a document (estimated); truncated at the end of a paragraph")
    noisy: float = knob(0.5, "share of training samples whose document is from another page, 0-1")
    test: float = knob(0.1, "share of sources in the test set, by whole pages, 0-1")
    validation: float = knob(0.05, "share of sources in the validation set, by whole pages, 0-1")
    limit: int | None = knob(None, "number of source pages (TMX: documents), chosen at random; by default all")
    length_ratio: float = knob(2.0, "TMX: leave out texts this many times longer or shorter than the median ratio")
    seed: int = knob(0, "random seed")

    def __post_init__(self) -> None:
        """Raises InputError for a value out of range."""
        for name in ("noisy", "test", "validation"):
            if not 0 <= getattr(self, name) <= 1:
                raise InputError(f"--{name} {getattr(self, name):g}: give a share from 0 to 1")
        if self.test + self.validation >= 1:
            raise InputError("--test and --validation leave no training samples; give smaller shares")
        if self.limit is not None and self.limit < 1:
            raise InputError(f"--limit {self.limit}: at least 1 is needed")
        if self.document_tokens < 1 or self.length_ratio <= 1:
            raise InputError("--document-tokens must be at least 1, --length-ratio above 1")
        if self.source == self.target:
            raise InputError(f"--source and --target are both '{self.source}'; give two languages")


@dataclass(frozen=True)
class CLICOptions:
    """Cross-lingual information completion."""

    panel: ClassVar[str] = "CLIC"
    keep: float = knob(0.5, "share of the summary's words that is shown, from its beginning, 0-1")
    mix: int = knob(4, "paragraphs of the mixed-language document")
    mmr_lambda: float = knob(0.5, "MMR: weight of relevance against novelty, 0-1")
    embedding: str = knob("", "MMR: multilingual embedding model for similarity; empty: shared words")

    def __post_init__(self) -> None:
        """Raises InputError for a value out of range."""
        if not 0 < self.keep < 1 or not 0 <= self.mmr_lambda <= 1:
            raise InputError("--keep must be between 0 and 1 (exclusive), --mmr-lambda from 0 to 1")
        if self.mix < 2:
            raise InputError(f"--mix {self.mix}: at least 2 paragraphs are needed")


@dataclass(frozen=True, slots=True)
class Sample:
    """A source s with its translation t ("" if there is none), and the other paragraphs of its page, by language.

    `leads` are the versions of s by language: a page's leads, or a translation memory's unit.
    """

    topic: Topic
    id: str
    src: str
    tgt: str
    leads: dict[str, str]
    documents: dict[str, list[str]]


class Sampler:
    """Makes samples of topics and records of samples; counts what it leaves out.

    `splits` are the topics' splits: other pages in a sample's records are from its own split or from `train`.
    """

    def __init__(
        self,
        corpus: Corpus,
        options: BenchmarkOptions,
        languages: Sequence[str],
        splits: Mapping[str, str] | None = None,
    ) -> None:
        self.corpus, self.options, self.languages = corpus, options, list(languages)
        self.counts: Counter[str] = Counter()
        self._splits = splits or {}
        self._excluded = {
            own: frozenset(name for name, split in self._splits.items() if split not in ("train", own))
            for own in set(self._splits.values())
        }

    def samples(self, topic: Topic) -> list[Sample]:
        """One sample for a page's lead, or one per unit of a translation memory's document."""
        texts = topic.versions[self.options.source].paragraphs
        places = [place for place, text in enumerate(texts) if text] if topic.units else [0]
        if len([lang for lang in topic.versions if lang in self.languages]) < 2:
            self.counts["pages in one language only"] += 1
        return [self._sample(topic, place) for place in places]

    def _sample(self, topic: Topic, place: int) -> Sample:
        source, target = self.options.source, self.options.target
        leads = {lang: v.paragraphs[place] for lang, v in topic.versions.items() if place < len(v.paragraphs)}
        tgt = leads.get(target, "") if topic.units else topic.references.get(target, "").strip()
        documents = {}
        for lang in self.languages:
            if lang in topic.versions and (texts := self._document(topic, lang, place, leads.get(lang, ""), tgt)):
                documents[lang] = texts
        name = f"{topic.id}:{topic.units[place]}" if topic.units else topic.id
        return Sample(topic, name, leads[source], tgt, {k: text for k, text in leads.items() if text}, documents)

    def _document(self, topic: Topic, lang: str, place: int, lead: str, tgt: str) -> list[str]:
        """Paragraphs of the page in one language, without s and its versions, and without those that leak t."""
        texts = topic.versions[lang].paragraphs
        order = _nearest_first(place, len(texts)) if topic.units else range(1, len(texts))
        references = self._references(lang, lead, tgt)
        kept: dict[int, str] = {}
        size = 0
        for i in order:
            if size > self.options.document_tokens:
                self.counts["documents truncated"] += not topic.units
                break
            if not texts[i]:
                continue
            if any(reference.leak(texts[i]) for reference in references):
                self.counts["paragraphs that leak the reference" if lang == self.options.target else "repeats"] += 1
                continue
            kept[i] = texts[i]
            size += count_tokens(texts[i])
        fitted = dict(zip(kept, fit(list(kept.values()), self.options.document_tokens).paragraphs, strict=False))
        paragraphs = [fitted[i] for i in sorted(fitted)]
        if any(reference.leak(JOIN.join(paragraphs)) for reference in references):
            self.counts["documents that leak as a whole"] += 1
            return []
        return paragraphs

    def _references(self, lang: str, lead: str, tgt: str) -> list[Reference]:
        texts = {lead, tgt if lang == self.options.target else ""} - {""}
        return [Reference(text) for text in sorted(texts)]

    def rng(self, sample: Sample, purpose: str) -> random.Random:
        """A random generator for a sample and a purpose."""
        return random.Random(f"{self.options.seed}/{purpose}/{sample.id}")

    def other_page(self, sample: Sample, lang: str, rng: random.Random) -> Version | None:
        """A random other page in a language, of a split that the sample may use; None if there is none."""
        excluded = self._excluded.get(self._splits.get(sample.topic.id, ""), ())
        return self.corpus.sample_other(sample.topic, lang, rng, excluded)

    def noisy_document(self, sample: Sample, lang: str, rng: random.Random) -> str:
        """A document of a random other page, "" if there is none."""
        version = self.other_page(sample, lang, rng)
        if version is None:
            return ""
        references = self._references(lang, sample.leads.get(lang, ""), sample.tgt)
        clean, leaks = remove_leaks(version.paragraphs[1:], references)
        self.counts["paragraphs of noisy documents removed"] += leaks
        return self._join(fit(clean, self.options.document_tokens).paragraphs, lang, version)

    def _join(self, paragraphs: Sequence[str], lang: str, version: Version) -> str:
        """A document in the published form: with its title in brackets if it is not in the source language."""
        title = f"【{version.title}】" if version.title and lang != self.options.source else ""
        return title + JOIN.join(paragraphs) if paragraphs else ""

    def clean_document(self, sample: Sample, lang: str) -> str:
        """The relevant document in a language, "" if there is none."""
        if lang not in sample.documents:
            return ""
        return self._join(sample.documents[lang], lang, sample.topic.versions[lang])

    def train_record(self, sample: Sample) -> Row | None:
        """{"src", "tgt", "doc", "tag"} with one document, clean or noisy, in one language; None without a document."""
        rng = self.rng(sample, "document")
        noisy_first, languages = rng.random() < self.options.noisy, list(self.languages)
        rng.shuffle(languages)
        for noisy in (noisy_first, not noisy_first):
            for lang in languages:
                document = self.noisy_document(sample, lang, rng) if noisy else self.clean_document(sample, lang)
                if document:
                    tgt = {"tgt": sample.tgt} if sample.tgt else {}
                    tag = f"{'noisy' if noisy else 'clean'}_{lang}"
                    return {"id": sample.id, "src": sample.src, **tgt, "doc": document, "tag": tag}
        return None

    def test_record(self, sample: Sample) -> Row | None:
        """{"src", "tgt", "en_doc", "zh_doc", ..., "noisy_en_doc", ...}; None unless all are present."""
        if not sample.tgt:
            return None
        rng = self.rng(sample, "document")
        clean = {f"{lang}_doc": self.clean_document(sample, lang) for lang in self.languages}
        noisy = {f"noisy_{lang}_doc": self.noisy_document(sample, lang, rng) for lang in self.languages}
        row = {"id": sample.id, "src": sample.src, "tgt": sample.tgt, **clean, **noisy}
        return row if all(clean.values()) and all(noisy.values()) else None

    async def clic_record(self, sample: Sample, options: CLICOptions, embedder: Embedder | None) -> Row | None:
        """CLIC: complete the summary y from its beginning y^ and paragraphs d_mix in several languages.

        y is s, or the lead in the target language. MMR's query is y: the evidence must contain what y^ lacks.
        """
        rng = self.rng(sample, "clic")
        lang = rng.choice([code for code in (self.options.source, self.options.target) if code in sample.leads])
        answer = sample.leads[lang]
        beginning = shorten(answer, options.keep)
        pieces = [(code, text) for code, texts in sample.documents.items() for text in texts]
        if not beginning or len(sample.documents) < 2:
            return None
        selected = await select_paragraphs(sample.leads, answer, pieces, options, embedder)
        self.counts["CLIC documents in several languages"] += len({pieces[i][0] for i in selected}) > 1
        mixed = JOIN.join(pieces[i][1] for i in selected)
        return {
            "id": f"clic/{sample.id}", "task": "clic", "text": beginning, "document": mixed, "answer": answer,
            "language": lang,
        }  # fmt: skip

    def sket_record(self, sample: Sample) -> Row | None:
        """SKET: a parallel sentence and the language in which the model writes its knowledge about it."""
        if not sample.tgt:
            return None
        lang = self.rng(sample, "sket").choice(self.languages)
        return {
            "id": f"sket/{sample.id}", "task": "sket", "text": sample.src, "answer": sample.tgt, "language": lang,
        }  # fmt: skip

    def clrd_record(self, sample: Sample) -> Row | None:
        """CLRD: are two paragraphs in two languages from the same page? Half of the pairs are."""
        rng = self.rng(sample, "clrd")
        if len(sample.documents) < 2:
            return None
        one, two = rng.sample(sorted(sample.documents), 2)
        same = rng.random() < 0.5
        other: Sequence[str] = sample.documents[two]
        if not same:
            version = self.other_page(sample, two, rng)
            other = [text for text in version.paragraphs[1:] if text] if version else []
        if not other:
            return None
        left, right = rng.choice(sample.documents[one]), rng.choice(other)
        limit = self.options.document_tokens // 2
        texts = {"text": fit([left], limit).paragraphs[0], "document": fit([right], limit).paragraphs[0]}
        return {"id": f"clrd/{sample.id}", "task": "clrd", **texts, "answer": TRUTH[same], "language": f"{one} {two}"}


async def select_paragraphs(
    leads: dict[str, str],
    query: str,
    pieces: Sequence[tuple[str, str]],
    options: CLICOptions,
    embedder: Embedder | None,
) -> list[int]:
    """The paragraphs of d_mix, by MMR, in the order of selection.

    With an embedding model similarity is the cosine of vectors. Without one it is that of word sets, which is
    meaningless across languages: a paragraph is then compared with the lead in its own language, if there is one.
    """
    texts = [text for _, text in pieces]
    if embedder is None:
        relevance = [overlap(text, leads.get(lang, query)) for lang, text in pieces]
        return mmr(relevance, lambda i, j: overlap(texts[i], texts[j]), options.mix, options.mmr_lambda)
    import numpy as np

    vectors = np.asarray(await embedder.embed([query, *texts]), dtype=np.float32)
    vectors /= np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12)
    cosines = vectors @ vectors.T
    relevance = cosines[0, 1:].tolist()
    return mmr(relevance, lambda i, j: float(cosines[i + 1, j + 1]), options.mix, options.mmr_lambda)


def shorten(text: str, keep: float) -> str:
    """y^: the first `keep` of y's words (in scripts without spaces: characters); "" for a single word."""
    count = sum(1 for _ in windows(text, 1, 0))
    return next(windows(text, max(1, int(count * keep)), 0)) if count > 1 else ""


def _nearest_first(place: int, count: int) -> list[int]:
    """The other positions, the nearest first: 3, 5, 2, 6, ... for 4."""
    return sorted((i for i in range(count) if i != place), key=lambda i: (abs(i - place), i))
