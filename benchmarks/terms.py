"""Term lists: what reading, matching and looking up cost as the list grows, against a plain loop over its entries.

    python benchmarks/terms.py [--entries 1000 10000 100000] [--sentences 200] [--seed 0]

Entries are generated: one to four words of 30,000 random ones with the frequencies of a language (Zipf-Mandelbrot), a
translation of random Chinese characters, every tenth entry twice with another one. Sentences have 25 such words, and
three entries, one of them in the plural. The plain loop asks of every entry whether its folded form is in the folded
sentence and, if so, whether it stands there as a whole word; it knows no plural and keeps overlaps, so it does less.
The longest match of a sentence must be among the index's. The memory has as many such sentences as the list has
entries, those that are asked about among them. For a number that compares, hold the process to one core
(OMP_NUM_THREADS=1 taskset -c 0).
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
WORDS_A_SENTENCE = 25


class Corpus:
    """Words, entries and sentences that a seed decides."""

    def __init__(self, seed: int) -> None:
        self.rng = random.Random(seed)
        letters = "abcdefghijklmnopqrstuvwxyz"
        self.words = list({"".join(self.rng.choices(letters, k=self.rng.randint(3, 9))): None for _ in range(WORDS)})
        self.weights = list(accumulate(1 / (rank + 2.7) for rank in range(len(self.words))))

    def drawn(self, count: int) -> list[str]:
        return self.rng.choices(self.words, cum_weights=self.weights, k=count)

    def entries(self, count: int) -> list[str]:
        """Terms of several words as a rule: a list holds few words that stand in every sentence."""
        found: dict[str, None] = {}
        while len(found) < count:
            words = self.drawn(self.rng.choice((2, 2, 3, 4)))
            found[" ".join(words) if self.rng.random() < 0.8 else self.rng.choice(self.words)] = None
            if len(found) > 0.9 * count:  # single words run out
                found[" ".join(self.rng.choices(self.words, k=2))] = None
        return list(found)[:count]

    def sentence(self, entries: Sequence[str]) -> tuple[str, list[str]]:
        """A sentence and the terms in it."""
        terms = self.rng.sample(entries, 3)
        pieces = [*self.drawn(WORDS_A_SENTENCE), *terms[:2], plural(terms[2])]
        self.rng.shuffle(pieces)
        return " ".join(pieces).capitalize() + ".", terms

    def translation(self) -> str:
        return "".join(chr(self.rng.randrange(0x4E00, 0x9FA5)) for _ in range(self.rng.randint(2, 6)))


def plain_loop(folded: Sequence[tuple[str, str]], text: str) -> list[tuple[int, int, str]]:
    """Every entry in turn: where it is in the text as a whole word."""
    small = fold(text)
    return [
        (match.start(), match.end(), term)
        for key, term in folded
        if key in small
        for match in re.finditer(rf"(?<!\w){re.escape(key)}(?!\w)", small)
    ]


def milliseconds(run: Callable[[str], object], texts: Sequence[str]) -> list[float]:
    times = []
    for text in texts:
        started = time.perf_counter()
        run(text)
        times.append(1000 * (time.perf_counter() - started))
    return times


def check(index: TermIndex, folded: Sequence[tuple[str, str]], texts: Sequence[str]) -> None:
    """The longest exact match of each text must be among the index's finds."""
    for text in texts:
        every = plain_loop(folded, text)
        if every:
            longest = max(end - start for start, end, _ in every)
            first = min(span for span in every if span[1] - span[0] == longest)
            spans = index.spans(text)
            assert any(a <= first[0] and first[1] <= b for a, b, _ in spans), (text, first, spans)


async def look_up(source: TermList | TranslationMemory, asked: Sequence[tuple[str, list[str]]]) -> list[float]:
    times = []
    for text, terms in asked:
        started = time.perf_counter()
        found = await source.look_up(terms, text)
        times.append(1000 * (time.perf_counter() - started))
        assert all(found), (text, terms)
    return times


def cell(times: Sequence[float]) -> str:
    return f"{statistics.median(times):.3g} ({max(times):.3g})"


def measure(corpus: Corpus, entries: Sequence[str], sentences: int, folder: Path) -> list[str]:
    """One row of the table."""
    path = folder / f"{len(entries)}.csv"
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["source", "target"])
        for number, entry in enumerate(entries):
            writer.writerows([entry, corpus.translation()] for _ in range(1 + (number % 10 == 0)))
    started = time.process_time()
    source = read_list(path, "terms", known_language("en"), known_language("zh"))
    read = time.process_time() - started
    started = time.process_time()
    TermIndex(entries, "en")
    built = time.process_time() - started
    asked = [corpus.sentence(entries) for _ in range(sentences)]
    texts = [text for text, _ in asked]
    folded = [(fold(entry), entry) for entry in entries]
    few = texts[: max(5, min(sentences, 500_000 // len(entries)))]
    check(source.index, folded, few)
    pairs = [(f"m:{i}", *corpus.sentence(entries)) for i in range(len(entries) - len(texts))]
    memory = TranslationMemory(
        "m", [*((place, text, "译文") for place, text, _ in pairs), *(("own", text, "译文") for text in texts)], "en"
    )
    return [
        f"{len(entries):,}",
        f"{read:.2f}",
        f"{built:.2f}",
        cell(milliseconds(source.index.spans, texts)),
        cell(milliseconds(lambda text: plain_loop(folded, text), few)),
        cell(asyncio.run(look_up(source, asked))),
        cell(asyncio.run(look_up(memory, asked))),
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--entries", type=int, nargs="+", default=[1000, 10_000, 100_000])
    parser.add_argument("--sentences", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    corpus = Corpus(given.seed)
    print(
        f"Python {platform.python_version()}, {len(os.sched_getaffinity(0))} cores, load {os.getloadavg()[0]:.1f}; "
        f"{given.sentences} sentences; milliseconds a sentence are the median (most)"
    )
    print("| entries | read, s of CPU | of it index | match, ms | plain loop, ms | look up 3, ms | in a memory, ms |")
    print("|---|---|---|---|---|---|---|", flush=True)
    with tempfile.TemporaryDirectory() as folder:
        for count in given.entries:
            print(
                "|", " | ".join(measure(corpus, corpus.entries(count), given.sentences, Path(folder))), "|", flush=True
            )


if __name__ == "__main__":
    main()
