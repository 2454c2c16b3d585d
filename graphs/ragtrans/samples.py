"""RAGtrans's records: a source with documents about it, and what the three tasks of CSC make of the same pages.

Section 3 of "Retrieval-Augmented Machine Translation with Unstructured Knowledge" (Wang et al., Findings of EMNLP 2025)
builds the benchmark, section 4 trains with the tasks CLIC, SKET and CLRD. Everything drawn here belongs to a seed and
to the sample's id, not to the order of the samples. docs/ragtrans.md says what the paper leaves open and is chosen.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Final

from agentsys.graphs.ragtrans.corpus import Corpus, Topic, Version
from agentsys.graphs.ragtrans.documents import JOIN, Reference, count_tokens, fit, mmr, overlap, without_leaks
from agentsys.knobs import knob
from agentsys.records import InputError
from agentsys.text.words import windows

if TYPE_CHECKING:
    from agentsys.knowledge import Embedder

Row = dict[str, Any]
TRUTH: Final = {True: "true", False: "false"}
"""CLRD's answers."""


@dataclass(frozen=True)
class Benchmark:
    """What a sample is."""

    panel: ClassVar[str] = "Benchmark"
    source: str = knob("en", "code of the language that is translated from")
    target: str = knob("zh", "code of the language that is translated into")
    language: list[str] = knob((), "code of a language of documents; may be repeated; by default all there are")
    document_tokens: int = knob(768, "cut a document after so many tokens, at the end of a paragraph")
    noisy: float = knob(0.5, "share of the training samples whose document is from another page, 0-1")
    test: float = knob(0.1, "share of the sources for the test set, by whole pages, 0-1")
    validation: float = knob(0.05, "share of the sources for the validation set, by whole pages, 0-1")
    length_ratio: float = knob(2.0, "TMX: leave a text out that is so many times longer or shorter than usual")
    seed: int = knob(0, "seed of everything that is drawn")

    def __post_init__(self) -> None:
        """Raises InputError for a value out of range."""
        for name in ("noisy", "test", "validation"):
            if not 0 <= getattr(self, name) <= 1:
                raise InputError(f"--{name} {getattr(self, name):g}: give a share from 0 to 1")
        if self.test + self.validation >= 1:
            raise InputError("--test and --validation leave nothing to train on; give smaller shares")
        if self.document_tokens < 1 or self.length_ratio <= 1:
            raise InputError("--document-tokens needs at least 1, --length-ratio more than 1")
        if self.source == self.target:
            raise InputError(f"--source and --target are both '{self.source}'; give two languages")


@dataclass(frozen=True)
class CLIC:
    """Cross-lingual information completion."""

    panel: ClassVar[str] = "CLIC"
    keep: float = knob(0.5, "share of the words of the summary that is shown, its beginning; 0-1")
    mix: int = knob(4, "paragraphs of the mixed-language document")
    mmr_lambda: float = knob(0.5, "weight of relevance against novelty when they are picked, 0-1")
    embedding: str = knob("", "multilingual embedding model to compare them with; empty: the words that they share")

    def __post_init__(self) -> None:
        """Raises InputError for a value out of range."""
        if not 0 < self.keep < 1 or not 0 <= self.mmr_lambda <= 1:
            raise InputError("--keep needs a share between 0 and 1, --mmr-lambda one from 0 to 1")
        if self.mix < 2:
            raise InputError(f"--mix {self.mix}: at least 2 paragraphs are needed")


@dataclass(frozen=True, slots=True)
class Sample:
    """A source s with its translation t ("" if there is none), and what its page says beside it, by language.

    `leads` are the versions of s in other languages: of a page the lead, of a translation memory the same unit.
    """

    topic: Topic
    id: str
    src: str
    tgt: str
    leads: dict[str, str]
    documents: dict[str, list[str]]


class Sampler:
    """Makes samples of topics and records of samples; counts what it met.

    `splits` are the topics' splits: other pages in a sample's records are of its own split or of `train`.
    """

    def __init__(
        self, corpus: Corpus, options: Benchmark, languages: Sequence[str], splits: Mapping[str, str] | None = None
    ) -> None:
        self.corpus, self.options, self.languages = corpus, options, list(languages)
        self.counts: Counter[str] = Counter()
        self._splits = splits or {}
        self._apart = {
            own: frozenset(name for name, split in self._splits.items() if split not in ("train", own))
            for own in set(self._splits.values())
        }

    def samples(self, topic: Topic) -> list[Sample]:
        """One for the lead of a page, or one for each unit of a document of a translation memory."""
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
            if lang in topic.versions and (found := self._document(topic, lang, place, leads.get(lang, ""), tgt)):
                documents[lang] = found
        name = f"{topic.id}:{topic.units[place]}" if topic.units else topic.id
        return Sample(topic, name, leads[source], tgt, {k: text for k, text in leads.items() if text}, documents)

    def _document(self, topic: Topic, lang: str, place: int, own: str, tgt: str) -> list[str]:
        """Paragraphs of the page in one language, without s, without its versions, without what leaks t."""
        texts = topic.versions[lang].paragraphs
        order = _outwards(place, len(texts)) if topic.units else range(1, len(texts))
        references = self._references(lang, own, tgt)
        kept: dict[int, str] = {}
        size = 0
        for i in order:
            if size > self.options.document_tokens:
                self.counts["documents cut"] += not topic.units
                break
            if not texts[i]:
                continue
            if any(reference.leak(texts[i]) for reference in references):
                self.counts["paragraphs that leak the reference" if lang == self.options.target else "repeats"] += 1
                continue
            kept[i] = texts[i]
            size += count_tokens(texts[i])
        fitted = dict(zip(kept, fit(list(kept.values()), self.options.document_tokens).paragraphs, strict=False))
        found = [fitted[i] for i in sorted(fitted)]
        if any(reference.leak(JOIN.join(found)) for reference in references):
            self.counts["documents that leak as a whole"] += 1
            return []
        return found

    def _references(self, lang: str, own: str, tgt: str) -> list[Reference]:
        texts = {own, tgt if lang == self.options.target else ""} - {""}
        return [Reference(text) for text in sorted(texts)]

    def rng(self, sample: Sample, what: str) -> random.Random:
        """Numbers that belong to a sample and a purpose."""
        return random.Random(f"{self.options.seed}/{what}/{sample.id}")

    def other(self, sample: Sample, lang: str, rng: random.Random) -> Version | None:
        """A random other page in a language that may stand beside the sample, None where there is none."""
        apart = self._apart.get(self._splits.get(sample.topic.id, ""), ())
        return self.corpus.other(sample.topic, lang, rng, apart)

    def noise(self, sample: Sample, lang: str, rng: random.Random) -> str:
        """A document of a random other page, "" where there is none."""
        version = self.other(sample, lang, rng)
        if version is None:
            return ""
        references = self._references(lang, sample.leads.get(lang, ""), sample.tgt)
        clean, taken = without_leaks(version.paragraphs[1:], references)
        self.counts["paragraphs of noisy documents taken out"] += taken
        return self.text(fit(clean, self.options.document_tokens).paragraphs, lang, version)

    def text(self, paragraphs: Sequence[str], lang: str, version: Version) -> str:
        """A document as the published records have it: with its title in brackets if it is not in the source's
        language."""
        title = f"【{version.title}】" if version.title and lang != self.options.source else ""
        return title + JOIN.join(paragraphs) if paragraphs else ""

    def clean(self, sample: Sample, lang: str) -> str:
        """The relevant document in a language, "" where there is none."""
        if lang not in sample.documents:
            return ""
        return self.text(sample.documents[lang], lang, sample.topic.versions[lang])

    def train_record(self, sample: Sample) -> Row | None:
        """{"src", "tgt", "doc", "tag"} with one document, clean or noisy, in one language. None without a document."""
        rng = self.rng(sample, "document")
        noisy, languages = rng.random() < self.options.noisy, list(self.languages)
        rng.shuffle(languages)
        for kind in ("noisy", "clean") if noisy else ("clean", "noisy"):
            for lang in languages:
                document = self.noise(sample, lang, rng) if kind == "noisy" else self.clean(sample, lang)
                if document:
                    tgt = {"tgt": sample.tgt} if sample.tgt else {}
                    return {"id": sample.id, "src": sample.src, **tgt, "doc": document, "tag": f"{kind}_{lang}"}
        return None

    def test_record(self, sample: Sample) -> Row | None:
        """{"src", "tgt", "en_doc", "zh_doc", ...} and beside them `noisy_en_doc`, ... None unless all are there."""
        if not sample.tgt:
            return None
        rng = self.rng(sample, "document")
        clean = {f"{lang}_doc": self.clean(sample, lang) for lang in self.languages}
        noisy = {f"noisy_{lang}_doc": self.noise(sample, lang, rng) for lang in self.languages}
        row = {"id": sample.id, "src": sample.src, "tgt": sample.tgt, **clean, **noisy}
        return row if all(clean.values()) and all(noisy.values()) else None

    async def clic_record(self, sample: Sample, options: CLIC, embedder: Embedder | None) -> Row | None:
        """CLIC: complete the summary y, of which a beginning y^ is shown, from paragraphs d_mix in several languages.

        y is s, or the lead in the target language. MMR's query is y: what is missing in y^ must be in the evidence.
        """
        rng = self.rng(sample, "clic")
        lang = rng.choice([code for code in (self.options.source, self.options.target) if code in sample.leads])
        answer = sample.leads[lang]
        shown = shorten(answer, options.keep)
        pieces = [(code, text) for code, texts in sample.documents.items() for text in texts]
        if not shown or len(sample.documents) < 2:
            return None
        picked = await pick(sample.leads, answer, pieces, options, embedder)
        self.counts["CLIC documents in several languages"] += len({pieces[i][0] for i in picked}) > 1
        mixed = JOIN.join(pieces[i][1] for i in picked)
        return {
            "id": f"clic/{sample.id}", "task": "clic", "text": shown, "document": mixed, "answer": answer,
            "language": lang,
        }  # fmt: skip

    def sket_record(self, sample: Sample) -> Row | None:
        """SKET: a parallel sentence and the language in which the model writes down what it knows of it."""
        if not sample.tgt:
            return None
        lang = self.rng(sample, "sket").choice(self.languages)
        return {
            "id": f"sket/{sample.id}", "task": "sket", "text": sample.src, "answer": sample.tgt, "language": lang,
        }  # fmt: skip

    def clrd_record(self, sample: Sample) -> Row | None:
        """CLRD: two paragraphs in two languages; are they from one page? Half of the pairs are."""
        rng = self.rng(sample, "clrd")
        if len(sample.documents) < 2:
            return None
        one, two = rng.sample(sorted(sample.documents), 2)
        same = rng.random() < 0.5
        other: Sequence[str] = sample.documents[two]
        if not same:
            version = self.other(sample, two, rng)
            other = [text for text in version.paragraphs[1:] if text] if version else []
        if not other:
            return None
        left, right = rng.choice(sample.documents[one]), rng.choice(other)
        limit = self.options.document_tokens // 2
        texts = {"text": fit([left], limit).paragraphs[0], "document": fit([right], limit).paragraphs[0]}
        return {"id": f"clrd/{sample.id}", "task": "clrd", **texts, "answer": TRUTH[same], "language": f"{one} {two}"}


async def pick(
    leads: dict[str, str], query: str, pieces: Sequence[tuple[str, str]], options: CLIC, embedder: Embedder | None
) -> list[int]:
    """The paragraphs of d_mix, by MMR, in the order of their choice.

    With an embedding model similarity is the cosine. Without one it is that of word sets, which says nothing across
    languages: then a paragraph is compared with the lead in its own language, where there is one.
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
    """y^: the first words of y (in Chinese and the like: characters), a share `keep` of them; "" for one word alone."""
    count = sum(1 for _ in windows(text, 1, 0))
    return next(windows(text, max(1, int(count * keep)), 0)) if count > 1 else ""


def _outwards(place: int, count: int) -> list[int]:
    """The neighbours of a place, the nearest first: 3, 5, 2, 6, ... for 4."""
    return sorted((i for i in range(count) if i != place), key=lambda i: (abs(i - place), i))
