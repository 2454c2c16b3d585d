"""Retrieval: recall of gold passages, build time and milliseconds per query; and the cost of a million passages.

    python benchmarks/retrieval.py --data DATA [--index INDEX] [--embedding FOLDER]
    python benchmarks/retrieval.py --passages 1000000

The first form indexes DATA/wiki_passages/passages.jsonl and searches it with the questions of
DATA/multihop_dev_migres/*.dev.jsonl, one query each. A gold passage is a supporting paragraph of the question, matched
to a passage by title and text (ignoring white space), or by title alone if the text differs; recall is the mean over
questions of the share of gold passages among the first k. INDEX is kept and reused; by default the indexes are
temporary. For comparable numbers, run the process on one core (OMP_NUM_THREADS=1 taskset -c 0).

The second form writes a corpus of random words with the frequencies of a language (Zipf-Mandelbrot over a million
words, 75 per passage), builds a BM25 index of it and searches it, each in its own process, to measure the peak memory.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import orjson

from agentsys.knowledge import IndexSettings, build_index, open_retriever
from agentsys.knowledge.index import IndexRetriever
from agentsys.knowledge.passages import Passages

SETS = ("hotpotqa_200", "2wikimultihopqa_164", "musique_200")
KINDS = ("bm25", "dense", "hybrid")
DEPTHS = (3, 20)
WORDS_PER_PASSAGE = 75
VOCABULARY = 1_000_000

Gold = list[set[str]]
"""For each gold passage of a question, the ids of the passages that match it."""


def normalize_spaces(text: str) -> str:
    return " ".join(text.split())


def read_lines(path: Path) -> list[dict[str, Any]]:
    return [orjson.loads(line) for line in path.read_bytes().splitlines()]


def gold_paragraphs(record: dict[str, Any]) -> Iterator[tuple[str, str]]:
    """Yield title and text of each supporting paragraph (MuSiQue marks paragraphs, the other two list titles)."""
    if "paragraphs" in record:
        yield from ((p["title"], p["paragraph_text"]) for p in record["paragraphs"] if p["is_supporting"])
        return
    gold_titles = {title for title, _ in record["supporting_facts"]}
    yield from ((title, "".join(sentences)) for title, sentences in record["context"] if title in gold_titles)


def read_questions(data: Path, name: str, passages: list[dict[str, Any]]) -> list[tuple[str, Gold]]:
    """Read the questions of a set with their gold passages."""
    by_text: dict[str, set[str]] = {}
    by_title: dict[str, set[str]] = {}
    for passage in passages:
        key = normalize_spaces(passage["title"])
        by_text.setdefault(f"{key}\n{remove_spaces(passage['text'])}", set()).add(passage["id"])
        by_title.setdefault(key, set()).add(passage["id"])
    questions = []
    for record in read_lines(data / "multihop_dev_migres" / f"{name}.dev.jsonl"):
        paragraphs = [(normalize_spaces(title), remove_spaces(text)) for title, text in gold_paragraphs(record)]
        gold = [by_text.get(f"{title}\n{text}") or by_title.get(title, set()) for title, text in paragraphs]
        questions.append((record["question"], gold))
    return questions


def remove_spaces(text: str) -> str:
    return "".join(text.split())


async def measure(retriever: IndexRetriever, questions: list[tuple[str, Gold]]) -> tuple[list[float], list[float]]:
    """Return the recall at each depth, and the seconds of each query."""
    shares: list[list[float]] = [[] for _ in DEPTHS]
    seconds = []
    await retriever.search(["warm up"], max(DEPTHS))
    for question, gold in questions:
        started = time.perf_counter()
        [hits] = await retriever.search([question], max(DEPTHS))
        seconds.append(time.perf_counter() - started)
        ids = [hit.passage.id for hit in hits]
        for depth, depth_shares in zip(DEPTHS, shares, strict=True):
            depth_shares.append(sum(bool(matches & set(ids[:depth])) for matches in gold) / len(gold))
    return [statistics.mean(share) for share in shares], seconds


async def neighbor_recall(index: Path, questions: list[str]) -> float:
    """Return the share of the true 20 nearest vectors that the dense part finds: its graph is approximate."""
    from agentsys.knowledge.dense import Dense, VectorStore

    retriever = open_retriever(index, "dense")
    dense = retriever._ranker
    assert isinstance(dense, Dense)
    stored = dense._store._collection.get(include=["embeddings"])
    matrix = np.zeros((len(stored["ids"]), dense._dimension), dtype=np.float32)
    matrix[[int(i) for i in stored["ids"]]] = stored["embeddings"]
    matrix /= np.linalg.norm(matrix, axis=1, keepdims=True)
    assert isinstance(dense._store, VectorStore)
    rankings = await dense.rank(questions, 20)
    exact = np.argsort(-(np.asarray(await dense._embedder.embed(questions)) @ matrix.T), axis=1)[:, :20]
    return statistics.mean(
        len({position for position, _ in ranking} & set(true.tolist())) / 20
        for ranking, true in zip(rankings, exact, strict=True)
    )


def print_recall(data: Path, index: Path, embedding: str) -> None:
    """Print the table of recall."""
    source = data / "wiki_passages" / "passages.jsonl"
    passages = read_lines(source)
    sets = {name: read_questions(data, name, passages) for name in SETS}
    results = {kind: build_index(source, index / kind, IndexSettings(kind, embedding)) for kind in ("bm25", "hybrid")}
    print(f"{len(passages):,} passages; {describe_machine()}")
    for name, questions in sets.items():
        print(f"{name}: {len(questions)} questions, {sum(len(gold) for _, gold in questions)} gold passages")
    for kind, result in results.items():
        print(f"build {kind}: {f'{result.seconds:.1f} s' if result.added else 'already built'}")
    print(
        "| retriever |" + "".join(f" {name} @{k} |" for name in SETS for k in DEPTHS) + " ms per query (median, max) |"
    )
    print("|---|" + "---|" * (len(SETS) * len(DEPTHS) + 1))
    for kind in KINDS:
        retriever = open_retriever(index / ("bm25" if kind == "bm25" else "hybrid"), kind)
        cells, times = "", []
        for questions in sets.values():
            recall, seconds = asyncio.run(measure(retriever, questions))
            cells += "".join(f" {share:.3f} |" for share in recall)
            times += seconds
        print(f"| {kind} |{cells} {1000 * statistics.median(times):.1f}, {1000 * max(times):.1f} |", flush=True)
    share = asyncio.run(neighbor_recall(index / "hybrid", [question for qs in sets.values() for question, _ in qs]))
    print(f"the dense part finds {share:.4f} of the true 20 nearest vectors")


def write_corpus(path: Path, passages: int, seed: int = 0) -> None:
    """Write passages of random words; word r has a probability proportional to 1 / (r + 2.7)."""
    rng = np.random.default_rng(seed)
    cumulative = np.cumsum(1.0 / (np.arange(VOCABULARY) + 2.7))
    names = [spell(rank) for rank in range(VOCABULARY)]
    with path.open("wb") as file:
        for first in range(0, passages, 10_000):
            count = min(10_000, passages - first)
            ranks = np.searchsorted(cumulative, rng.random((count, WORDS_PER_PASSAGE)) * cumulative[-1])
            for i, row in enumerate(ranks.tolist()):
                text = " ".join(names[rank] for rank in row)
                file.write(orjson.dumps({"id": f"g{first + i}", "title": "", "text": text}) + b"\n")


def spell(rank: int) -> str:
    """Return the word of a frequency rank; frequent words are shorter."""
    letters = ""
    rank += 1
    while rank:
        rank, letter = divmod(rank - 1, 26)
        letters = chr(ord("a") + letter) + letters
    return letters


def print_scale(passages: int, folder: Path) -> None:
    """Print time, memory and disk space of an index of a generated corpus."""
    corpus, index = folder / "corpus.jsonl", folder / "index"
    write_corpus(corpus, passages)
    print(f"{passages:,} generated passages, {corpus.stat().st_size / 1e6:,.0f} MB; {describe_machine()}", flush=True)
    for step in ("build", "search"):
        command = [sys.executable, __file__, "--step", step, "--index", str(index), "--corpus", str(corpus)]
        subprocess.run(command, check=True)
    bm25_bytes = sum(path.stat().st_size for path in (index / "bm25").iterdir())
    passage_bytes = (index / "passages.jsonl").stat().st_size
    print(f"on disk: BM25 {bm25_bytes / 1e6:,.0f} MB, passages {passage_bytes / 1e6:,.0f} MB")


def measure_build(corpus: Path, index: Path) -> None:
    """Build an index and print its cost; runs in its own process."""
    result = build_index(corpus, index)
    print(
        f"build: {result.seconds:.0f} s, {time.process_time():.0f} s of CPU, peak memory {peak_mb():,.0f} MB",
        flush=True,
    )


def measure_search(index: Path, queries: int = 200) -> None:
    """Search with queries of 12 words from random passages, and one of 10,000 words; runs in its own process."""
    started = time.perf_counter()
    retriever = open_retriever(index)
    opened = time.perf_counter() - started
    rng = np.random.default_rng(1)
    passages = Passages(index)
    texts = [passages[int(i)].text.split() for i in rng.integers(len(passages), size=queries)]
    long = " ".join(word for text in texts for word in text)
    long = " ".join(long.split()[:10_000])

    async def run() -> tuple[list[float], float, float]:
        seconds = []
        first = time.perf_counter()
        await retriever.search([" ".join(texts[0][:12])], 3)
        first = time.perf_counter() - first
        for text in texts:
            started = time.perf_counter()
            await retriever.search([" ".join(text[:12])], 3)
            seconds.append(time.perf_counter() - started)
        started = time.perf_counter()
        await retriever.search([long], 3)
        return seconds, first, time.perf_counter() - started

    seconds, first, longest = asyncio.run(run())
    print(
        f"search: opened in {opened:.1f} s, first query {1000 * first:.0f} ms, then "
        f"{1000 * statistics.median(seconds):.1f} ms (median of {queries}; max {1000 * max(seconds):.1f}); "
        f"a query of {len(long.split()):,} words {1000 * longest:.0f} ms; peak memory {peak_mb():,.0f} MB"
    )


def peak_mb() -> float:
    """Return the peak memory of this process in MB (Linux), memory-mapped files included."""
    status = Path("/proc/self/status").read_text()
    return int(status.split("VmHWM:")[1].split()[0]) / 1024


def describe_machine() -> str:
    """Return the conditions of a measurement."""
    return (
        f"Python {platform.python_version()}, {len(os.sched_getaffinity(0))} cores, "
        f"OMP_NUM_THREADS={os.environ.get('OMP_NUM_THREADS', '')}, load {os.getloadavg()[0]:.1f}"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, help="folder with wiki_passages and multihop_dev_migres")
    parser.add_argument("--index", type=Path, help="folder of the indexes; default: a temporary one")
    parser.add_argument("--embedding", default="all-MiniLM-L6-v2", help="spec of an embedding model")
    parser.add_argument("--passages", type=int, help="size of a generated corpus")
    parser.add_argument("--step", choices=("build", "search"), help=argparse.SUPPRESS)
    parser.add_argument("--corpus", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.step == "build":
        measure_build(args.corpus, args.index)
    elif args.step == "search":
        measure_search(args.index)
    else:
        with tempfile.TemporaryDirectory() as temporary:
            folder = args.index or Path(temporary)
            folder.mkdir(parents=True, exist_ok=True)
            if args.passages:
                print_scale(args.passages, folder)
            elif args.data:
                print_recall(args.data, folder, args.embedding)
            else:
                parser.error("give --data or --passages")


if __name__ == "__main__":
    main()
