"""Term lists: the cost of reading, matching and look-ups as the list grows, compared with a loop over its entries.

    python benchmarks/terms.py [--entries 1000 10000 100000] [--sentences 200] [--seed 0]

Entries are generated: one to four of 30,000 random words with the frequencies of a language (Zipf-Mandelbrot), a
translation of random Chinese characters, every tenth entry twice with different ones. Sentences have 25 such words and
three entries, one of them in the plural. The loop checks for every entry whether its folded form is a whole word of the
folded sentence; it ignores plurals and keeps overlaps, so it does less work. The longest match of a sentence must be
among the index's. The translation memory has as many such sentences as the list has entries, the queried ones included.
For comparable numbers, run the process on one core (OMP_NUM_THREADS=1 taskset -c 0).
"""

from __future__ import annotations

import argparse
import asyncio
import csv
import os
import platform
import random
import re
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from itertools import accumulate
from pathlib import Path

from agentsys.terms.index import TermIndex, fold, plural
from agentsys.terms.lists import TermList, read_list
from agentsys.terms.sources import TranslationMemory
from agentsys.text.languages import known_language

WORDS = 30_000
WORDS_PER_SENTENCE = 25


class Corpus:
    """Words, entries and sentences, determined by a seed."""

    def __init__(self, seed: int) -> None:
        self.rng = random.Random(seed)
        letters = "abcdefghijklmnopqrstuvwxyz"
        self.words = list({"".join(self.rng.choices(letters, k=self.rng.randint(3, 9))): None for _ in range(WORDS)})
        self.weights = list(accumulate(1 / (rank + 2.7) for rank in range(len(self.words))))

    def sample_words(self, count: int) -> list[str]:
        return self.rng.choices(self.words, cum_weights=self.weights, k=count)

    def make_entries(self, count: int) -> list[str]:
        """Return terms, most of several words: few entries of real lists are frequent words."""
        entries: dict[str, None] = {}
        while len(entries) < count:
            words = self.sample_words(self.rng.choice((2, 2, 3, 4)))
            entries[" ".join(words) if self.rng.random() < 0.8 else self.rng.choice(self.words)] = None
            if len(entries) > 0.9 * count:  # single words run out
                entries[" ".join(self.rng.choices(self.words, k=2))] = None
        return list(entries)[:count]

    def make_sentence(self, entries: Sequence[str]) -> tuple[str, list[str]]:
        """Return a sentence and the terms in it."""
        terms = self.rng.sample(entries, 3)
        pieces = [*self.sample_words(WORDS_PER_SENTENCE), *terms[:2], plural(terms[2])]
        self.rng.shuffle(pieces)
        return " ".join(pieces).capitalize() + ".", terms

    def make_translation(self) -> str:
        return "".join(chr(self.rng.randrange(0x4E00, 0x9FA5)) for _ in range(self.rng.randint(2, 6)))


def plain_loop(folded: Sequence[tuple[str, str]], text: str) -> list[tuple[int, int, str]]:
    """Return the spans of all entries in the text as whole words, by a search for each entry."""
    folded_text = fold(text)
    return [
        (match.start(), match.end(), term)
        for key, term in folded
        if key in folded_text
        for match in re.finditer(rf"(?<!\w){re.escape(key)}(?!\w)", folded_text)
    ]


def milliseconds(run: Callable[[str], object], texts: Sequence[str]) -> list[float]:
    times = []
    for text in texts:
        started = time.perf_counter()
        run(text)
        times.append(1000 * (time.perf_counter() - started))
    return times


def check_index(index: TermIndex, folded: Sequence[tuple[str, str]], texts: Sequence[str]) -> None:
    """Assert that the index finds the longest exact match of each text."""
    for text in texts:
        matches = plain_loop(folded, text)
        if matches:
            longest = max(end - start for start, end, _ in matches)
            first = min(span for span in matches if span[1] - span[0] == longest)
            spans = index.spans(text)
            assert any(a <= first[0] and first[1] <= b for a, b, _ in spans), (text, first, spans)


async def look_up(source: TermList | TranslationMemory, queries: Sequence[tuple[str, list[str]]]) -> list[float]:
    times = []
    for text, terms in queries:
        started = time.perf_counter()
        items = await source.look_up(terms, text)
        times.append(1000 * (time.perf_counter() - started))
        assert all(items), (text, terms)
    return times


def format_cell(times: Sequence[float]) -> str:
    return f"{statistics.median(times):.3g} ({max(times):.3g})"


def measure(corpus: Corpus, entries: Sequence[str], sentences: int, folder: Path) -> list[str]:
    """Return one row of the table."""
    path = folder / f"{len(entries)}.csv"
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["source", "target"])
        for number, entry in enumerate(entries):
            writer.writerows([entry, corpus.make_translation()] for _ in range(1 + (number % 10 == 0)))
    started = time.process_time()
    source = read_list(path, "terms", known_language("en"), known_language("zh"))
    read_seconds = time.process_time() - started
    started = time.process_time()
    TermIndex(entries, "en")
    index_seconds = time.process_time() - started
    queries = [corpus.make_sentence(entries) for _ in range(sentences)]
    texts = [text for text, _ in queries]
    folded = [(fold(entry), entry) for entry in entries]
    few = texts[: max(5, min(sentences, 500_000 // len(entries)))]
    check_index(source.index, folded, few)
    others = [(f"m:{i}", corpus.make_sentence(entries)[0]) for i in range(len(entries) - len(texts))]
    pairs = [(pair_id, text, "译文") for pair_id, text in [*others, *(("query", text) for text in texts)]]
    memory = TranslationMemory("m", pairs, "en")
    return [
        f"{len(entries):,}",
        f"{read_seconds:.2f}",
        f"{index_seconds:.2f}",
        format_cell(milliseconds(source.index.spans, texts)),
        format_cell(milliseconds(lambda text: plain_loop(folded, text), few)),
        format_cell(asyncio.run(look_up(source, queries))),
        format_cell(asyncio.run(look_up(memory, queries))),
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--entries", type=int, nargs="+", default=[1000, 10_000, 100_000])
    parser.add_argument("--sentences", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    corpus = Corpus(args.seed)
    print(
        f"Python {platform.python_version()}, {len(os.sched_getaffinity(0))} cores, load {os.getloadavg()[0]:.1f}; "
        f"{args.sentences} sentences; milliseconds per sentence: median (max)"
    )
    print("| entries | read, CPU s | index, CPU s | match, ms | loop, ms | look up 3, ms | in a memory, ms |")
    print("|---|---|---|---|---|---|---|", flush=True)
    with tempfile.TemporaryDirectory() as folder:
        for count in args.entries:
            row = measure(corpus, corpus.make_entries(count), args.sentences, Path(folder))
            print("|", " | ".join(row), "|", flush=True)


if __name__ == "__main__":
    main()
