"""RAGtrans's benchmark as files: training, validation and test sets, the tasks' records, passages, and a report."""

from __future__ import annotations

import asyncio
import os
import random
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, Final, Literal

import orjson

from agentsys.graphs.ragtrans.corpus import Corpus, Pages, Units
from agentsys.graphs.ragtrans.documents import JOIN, count_tokens
from agentsys.graphs.ragtrans.samples import BenchmarkOptions, CLICOptions, Row, Sample, Sampler
from agentsys.records import InputError, Record, read_records

if TYPE_CHECKING:
    from agentsys.knowledge import Embedder

Split = Literal["train", "val", "test"]
PASSAGE_TOKENS: Final = 256
"""Target size of a passage, in tokens: neighboring paragraphs of a page are merged up to it."""

OPTIONAL_FILES: Final = (
    "train",
    "val",
    "test",
    "unlabeled",
    "failed",
    "clic",
    "sket",
    "clrd",
    "rejected",
    "unlabelled",
)
"""Files that a benchmark can lack, by name without the suffix; the last two are what earlier versions wrote."""


@dataclass(frozen=True, slots=True)
class Report:
    """Figures of a benchmark.

    `records` are counts by file name without the suffix, `tags` by tag, `counts` of left-out texts and the like;
    `failed` is the number of unusable page records, `topics` the number of topics by split; `note` says what is
    missing, "" for nothing.
    """

    records: Mapping[str, int]
    tags: Mapping[str, int]
    counts: Mapping[str, int]
    failed: int
    languages: Sequence[str]
    topics: Mapping[str, int]
    note: str = ""


def open_corpus(
    pages: Sequence[str | Path],
    tmx: Sequence[str | Path],
    options: BenchmarkOptions,
    langlinks: str | Path | None = None,
) -> Corpus:
    """The corpus of pages or of translation memories. Raises InputError for neither or both, or a missing language."""
    if bool(pages) == bool(tmx):
        raise InputError("give either --pages, files of pages, or --tmx, one or more translation memories")
    if langlinks is not None and not pages:
        raise InputError("--langlinks: it links pages; give --pages, or leave it out")
    codes = list(dict.fromkeys([options.source, options.target, *options.language]))
    corpus: Corpus
    memories = [*map(Path, tmx)]
    corpus = Pages(pages, langlinks, options.source) if pages else Units(memories, codes, options.length_ratio)
    languages = corpus.languages()
    # Without pages in the target language there are still sources, which `collect --style rated` translates.
    needed = [("source", options.source), *(("language", code) for code in options.language)]
    for name, code in needed if pages else [*needed, ("target", options.target)]:
        if code not in languages:
            raise InputError(f"--{name} {code}: no text in this language; use one of {', '.join(languages)}")
    return corpus


def missing_links(corpus: Corpus, options: BenchmarkOptions) -> str:
    """What pages without links between languages lack, and what is built nevertheless, in one line; "" otherwise."""
    if not isinstance(corpus, Pages) or corpus.has_links():
        return ""
    languages = corpus.languages()
    source = options.source
    if languages == [source]:
        lack = f"all pages are in {source}: give pages in other languages too, and --langlinks FILE (id, lang, title)"
    else:
        lack = (
            f"no link between the pages in {', '.join(languages)}: give --langlinks FILE (id, lang, title), or pages "
            "with the field langlinks"
        )
    return f"{lack}; built without: relevant documents in {source} only, and neither clic nor clrd records"


def sample_topics(sizes: Mapping[str, int], options: BenchmarkOptions) -> Mapping[str, int]:
    """`--limit` topics, chosen at random; all of them if there is no limit or no more."""
    if options.limit is None or options.limit >= len(sizes):
        return sizes
    names = random.Random(f"{options.seed}/limit").sample(sorted(sizes), options.limit)
    return {name: sizes[name] for name in names}


def split_topics(sizes: Mapping[str, int], options: BenchmarkOptions) -> Iterator[tuple[Split, str]]:
    """(split, topic) in random order; a topic that is too large for the test and validation shares goes to training."""
    names = sorted(sizes)
    random.Random(f"{options.seed}/split").shuffle(names)
    total = sum(sizes.values())
    room: dict[Split, float] = {"test": options.test * total, "val": options.validation * total}
    for name in names:
        split: Split = next((split for split, size in room.items() if sizes[name] <= size), "train")
        if split in room:
            room[split] -= sizes[name]
        yield split, name


def build_benchmark(
    pages: Sequence[str | Path],
    tmx: Sequence[str | Path],
    options: BenchmarkOptions,
    clic: CLICOptions,
    out: str | Path,
    langlinks: str | Path | None = None,
) -> Report:
    """Build a benchmark from pages or translation memories. Raises InputError for an unusable corpus or option."""
    from agentsys.knowledge.embedders import close, make_embedder

    corpus = open_corpus(pages, tmx, options, langlinks)
    embedder = make_embedder(clic.embedding) if clic.embedding else None

    async def write() -> Report:
        try:
            return await write_benchmark(corpus, options, clic, Path(out), embedder)
        finally:
            if embedder is not None:
                await close(embedder)

    return asyncio.run(write())


async def write_benchmark(
    corpus: Corpus, options: BenchmarkOptions, clic: CLICOptions, out: Path, embedder: Embedder | None = None
) -> Report:
    """Write all files of the benchmark into a folder; they appear complete at the end.

    train.jsonl, val.jsonl   {"id", "src", "tgt", "doc", "tag"}
    test.jsonl               {"id", "src", "tgt", "en_doc", "zh_doc", ..., "noisy_en_doc", ...}
    unlabeled.jsonl          training samples without a translation
    clic, sket, clrd.jsonl   the three tasks' records (graphs/ragtrans/tasks.py)
    passages-LANG.jsonl      all pages, for `python -m agentsys.knowledge build`
    failed.jsonl             unusable page records
    report.json              the figures and settings
    """
    languages = options.language or corpus.languages()
    sizes = sample_topics(corpus.sizes(options.source), options)
    splits = {name: split for split, name in split_topics(sizes, options)}
    sampler = Sampler(corpus, options, languages, splits)
    with BenchmarkFiles(out) as files:
        for name, split in splits.items():
            for sample in sampler.samples(corpus.topic(name)):
                _write_sample(files, sampler, sample, split)
                if split == "train":
                    await _write_tasks(files, sampler, sample, clic, embedder)
        for row in make_passages(corpus, languages):
            files.write(f"passages-{row['lang']}", row)
        for bad in corpus.failed:
            files.write("failed", {"source": bad.source, "reason": bad.reason})
        counts = {name: n for name, n in (corpus.counts + sampler.counts).items() if n}
        topics = Counter[str](splits.values())
        note = missing_links(corpus, options)
        report = Report(dict(files.counts), dict(files.tags), counts, len(corpus.failed), languages, dict(topics), note)
        if not files.counts["train"] and not files.counts["unlabeled"]:
            raise InputError(f"no training sample: {counts}; add pages, or reduce --test and --validation")
        files.write("report", {**asdict(report), "settings": {**asdict(options), **asdict(clic)}})
    return report


def _write_sample(files: BenchmarkFiles, sampler: Sampler, sample: Sample, split: Split) -> None:
    row = sampler.test_record(sample) if split == "test" else sampler.train_record(sample)
    if row is None:
        sampler.counts[f"{split} samples without a translation or a document"] += 1
        return
    files.write(split if "tgt" in row else "unlabeled", row)
    if "tag" in row:
        files.tags[row["tag"]] += 1


async def _write_tasks(
    files: BenchmarkFiles, sampler: Sampler, sample: Sample, clic: CLICOptions, embedder: Embedder | None
) -> None:
    rows = (await sampler.clic_record(sample, clic, embedder), sampler.sket_record(sample), sampler.clrd_record(sample))
    for row in rows:
        if row:
            files.write(row["task"], row)


def make_passages(corpus: Corpus, languages: Sequence[str]) -> Iterator[Row]:
    """Neighboring paragraphs of a page, leads included, as passages {"id", "title", "text", "lang", "page"}."""
    for name, lang, version in corpus.pages():
        if lang not in languages:
            continue
        merged: list[str] = []
        number = 0
        for text in [*version.paragraphs, ""]:
            if merged and (not text or count_tokens(JOIN.join([*merged, text])) > PASSAGE_TOKENS):
                fields = {"title": version.title, "text": JOIN.join(merged), "lang": lang, "page": name}
                yield {"id": f"{name}/{lang}/{number}", **fields}
                merged, number = [], number + 1
            merged.append(text)


def map_columns(file: Path, document_column: str, mapped: Sequence[str] = ()) -> dict[str, str]:
    """The columns of a published file of records that hold text, reference and document.

    Fields that `mapped` (FIELD=COLUMN) sets are left out; empty for records of another form. Raises InputError if the
    records lack the document column.
    """
    first = next((record.data for record in read_records(file) if isinstance(record, Record)), {})
    if "src" not in first:
        return {}
    columns = {"text": "src"} | ({"reference": "tgt"} if "tgt" in first else {})
    if document_column:
        columns["document"] = document_column
    columns = {name: columns[name] for name in columns.keys() - {entry.partition("=")[0] for entry in mapped}}
    if (column := columns.get("document")) and column not in first:
        documents = ", ".join(name for name in first if name.endswith("doc")) or "no document"
        raise InputError(
            f"{file}: no column '{column}'; the records have {documents}: name one with --document-language"
        )
    return columns


class BenchmarkFiles:
    """JSON-lines files of a folder, renamed when all are complete; an earlier benchmark's files are removed."""

    def __init__(self, out: Path) -> None:
        self.out, self.counts, self.tags = out, Counter[str](), Counter[str]()
        self._open: dict[str, IO[bytes]] = {}
        self._stack = ExitStack()

    def __enter__(self) -> BenchmarkFiles:
        self.out.mkdir(parents=True, exist_ok=True)
        return self

    def write(self, name: str, row: Mapping[str, Any]) -> None:
        """Add a line to a file."""
        if name not in self._open:
            self._open[name] = self._stack.enter_context(self._part(name).open("wb"))
        self._open[name].write(orjson.dumps(row, option=orjson.OPT_APPEND_NEWLINE))
        self.counts[name] += 1

    def __exit__(self, failed: object, *rest: object) -> None:
        self._stack.close()
        for name in self._open:
            if failed:
                self._part(name).unlink()
            else:
                os.replace(self._part(name), self._final(name))
        optional = [self._final(name) for name in OPTIONAL_FILES]
        for file in [] if failed else [*optional, *self.out.glob("passages-*.jsonl")]:
            if file.stem not in self._open:
                file.unlink(missing_ok=True)

    def _final(self, name: str) -> Path:
        return self.out / f"{name}.json{'' if name == 'report' else 'l'}"

    def _part(self, name: str) -> Path:
        return self.out / f".{name}.part"
