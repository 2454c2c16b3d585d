"""Writing RAGtrans's benchmark: training, validation and test sets, the tasks' records, passages, and a report."""

from __future__ import annotations

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
from agentsys.graphs.ragtrans.samples import CLIC, Benchmark, Row, Sample, Sampler
from agentsys.records import InputError, Record, read_records, shuffled

if TYPE_CHECKING:
    from agentsys.knowledge import Embedder

Split = Literal["train", "val", "test"]
TASKS: Final = ("ragtrans", "clic", "sket", "clrd")
"""What CSC multi-task training mixes: the benchmark's own training samples and the three tasks."""
PASSAGE_TOKENS: Final = 256
"""A passage of the index is filled up with paragraphs of one page to about so many tokens."""


@dataclass(frozen=True, slots=True)
class Report:
    """What was written, record counts by file name without its suffix, and what was met on the way."""

    written: Mapping[str, int]
    tags: Mapping[str, int]
    counts: Mapping[str, int]
    rejected: int
    languages: Sequence[str]
    topics: Mapping[str, int]


def open_corpus(pages: Path | None, tmx: Sequence[Path], options: Benchmark) -> Corpus:
    """The corpus that was named. Raises InputError where it is none or two, or lacks a language."""
    if (pages is None) == (not tmx):
        raise InputError("give either --pages, a file of page records, or --tmx, one or more translation memories")
    wanted = list(dict.fromkeys([options.source, options.target, *options.language]))
    corpus: Corpus = Pages(pages) if pages else Units(tmx, wanted, options.length_ratio)
    there = corpus.languages()
    for name, code in (("source", options.source), ("target", options.target), *(("language", c) for c in wanted[2:])):
        if code not in there:
            raise InputError(f"--{name} {code}: no text in this language; there is {', '.join(there)}")
    return corpus


def split_topics(sizes: Mapping[str, int], options: Benchmark) -> Iterator[tuple[Split, str]]:
    """Topics in random order with their splits; a topic that is too large for what test and validation want trains."""
    names = sorted(sizes)
    random.Random(f"{options.seed}/split").shuffle(names)
    total = sum(sizes.values())
    left: dict[Split, float] = {"test": options.test * total, "val": options.validation * total}
    for name in names:
        split: Split = next((split for split, room in left.items() if sizes[name] <= room), "train")
        if split in left:
            left[split] -= sizes[name]
        yield split, name


async def write_benchmark(
    corpus: Corpus, options: Benchmark, clic: CLIC, out: Path, embedder: Embedder | None = None
) -> Report:
    """Write all files of the benchmark into a folder; they appear whole at the end.

    train.jsonl, val.jsonl   {"id", "src", "tgt", "doc", "tag"}
    test.jsonl               {"id", "src", "tgt", "en_doc", "zh_doc", ..., "noisy_en_doc", ...}
    unlabeled.jsonl         training samples without a translation
    clic, sket, clrd.jsonl   the three tasks' records (graphs/ragtrans/tasks.py)
    passages-LANG.jsonl      all pages, for `python -m agentsys.knowledge build`
    failed.jsonl, report.json
    """
    languages = options.language or corpus.languages()
    splits = {name: split for split, name in split_topics(corpus.sizes(options.source), options)}
    sampler = Sampler(corpus, options, languages, splits)
    with Files(out) as files:
        for name, split in splits.items():
            for sample in sampler.samples(corpus.topic(name)):
                _write_sample(files, sampler, sample, split)
                if split == "train":
                    await _write_tasks(files, sampler, sample, clic, embedder)
        for row in passages(corpus, languages):
            files.write(f"passages-{row['lang']}", row)
        for bad in corpus.rejected:
            files.write("rejected", {"source": bad.source, "reason": bad.reason})
        counts = {name: n for name, n in (corpus.counts + sampler.counts).items() if n}
        topics = Counter[str](splits.values())
        report = Report(dict(files.counts), dict(files.tags), counts, len(corpus.rejected), languages, dict(topics))
        if not files.counts["train"] and not files.counts["unlabeled"]:
            raise InputError(f"no training sample: {counts}; give more pages, or smaller --test and --validation")
        files.write("report", {**asdict(report), "settings": {**asdict(options), **asdict(clic)}})
    return report


def _write_sample(files: Files, sampler: Sampler, sample: Sample, split: Split) -> None:
    row = sampler.test_record(sample) if split == "test" else sampler.train_record(sample)
    if row is None:
        sampler.counts[f"{split} samples without a translation or a document"] += 1
        return
    files.write(split if "tgt" in row else "unlabeled", row)
    if "tag" in row:
        files.tags[row["tag"]] += 1


async def _write_tasks(files: Files, sampler: Sampler, sample: Sample, clic: CLIC, embedder: Embedder | None) -> None:
    rows = (await sampler.clic_record(sample, clic, embedder), sampler.sket_record(sample), sampler.clrd_record(sample))
    for row in rows:
        if row:
            files.write(row["task"], row)


def passages(corpus: Corpus, languages: Sequence[str]) -> Iterator[Row]:
    """Neighbouring paragraphs of a page as passages {"id", "title", "text", "lang", "page"}; leads are in them."""
    for name, lang, version in corpus.pages():
        if lang not in languages:
            continue
        held: list[str] = []
        number = 0
        for text in [*version.paragraphs, ""]:
            if held and (not text or count_tokens(JOIN.join([*held, text])) > PASSAGE_TOKENS):
                found = {"title": version.title, "text": JOIN.join(held), "lang": lang, "page": name}
                yield {"id": f"{name}/{lang}/{number}", **found}
                held, number = [], number + 1
            held.append(text)


def mixed(folder: Path, weights: Mapping[str, float], samples: int | None, seed: int) -> Iterator[Row]:
    """Records of the tasks, in shares that are the weights' at every point; each record once.

    It ends with `samples`, or where the task whose turn it is has no more. Raises InputError for a task without a file.
    """
    streams = {task: _task_rows(folder, task, seed) for task in weights}
    taken: Counter[str] = Counter()
    total = sum(weights.values())
    while samples is None or taken.total() < samples:
        task = max(weights, key=lambda task: weights[task] / total * (taken.total() + 1) - taken[task])
        row = next(streams[task], None)
        if row is None:
            return
        taken[task] += 1
        yield row


def _task_rows(folder: Path, task: str, seed: int) -> Iterator[Row]:
    file = folder / f"{'train' if task == 'ragtrans' else task}.jsonl"
    if not file.is_file():
        raise InputError(f"{file}: no such file; `build` writes it, or leave {task} out with --weight {task}=0")
    needed = ("src", "tgt") if task == "ragtrans" else ("text", "answer")
    records = (record for record in read_records(file, required=needed) if isinstance(record, Record))
    found = shuffled(records, seed=seed)
    return (_unified(record) if task == "ragtrans" else record.data for record in found)


def _unified(record: Record) -> Row:
    """A training record, which needs no id of its own, as one of the tasks."""
    row = record.data
    texts = {"text": row["src"], "document": row.get("doc") or "", "answer": row["tgt"]}
    return {"id": f"ragtrans/{record.id}", "task": "ragtrans", **texts, "language": row.get("tag", "")}


class Files:
    """JSON-lines files of a folder, under their final names when all are written; an earlier benchmark's go."""

    def __init__(self, out: Path) -> None:
        self.out, self.counts, self.tags = out, Counter[str](), Counter[str]()
        self._open: dict[str, IO[bytes]] = {}
        self._stack = ExitStack()

    def __enter__(self) -> Files:
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
        optional = [self._final(name) for name in ("train", "val", "test", "unlabeled", "rejected", *TASKS[1:])]
        for file in [] if failed else [*optional, *self.out.glob("passages-*.jsonl")]:
            if file.stem not in self._open:
                file.unlink(missing_ok=True)

    def _final(self, name: str) -> Path:
        return self.out / f"{name}.json{'' if name == 'report' else 'l'}"

    def _part(self, name: str) -> Path:
        return self.out / f".{name}.part"
