"""Parallel exhaustive decision trees: graphs/deeprag/search.py, stage II, over a server with a fixed latency per call.

    python benchmarks/tree_search.py [--questions 64] [--depth 4] [--latency 0.2] [--slots 64 256]

The server runs in its own process, has vLLM's API and answers every request after the latency, however many there are;
the client keeps at most `slots` of them in flight. Prompts are tokenized with the student's tokenizer, passages come
from a BM25 index, calls go into a request cache and traces to disk, as in a real run. A tree of depth d has
3 (2^d - 1) + 2^d + d calls: a sub-query and two answers per inner node, an end per leaf, and a decision per sub-query
of the best path. Rows:
  sequential   a single question with one request in flight (measured), times the number of questions
  slots        all questions by `collect`; the ideal is max(critical path, work / slots), where a call's work is the
               latency and the critical path 2 d + 2 calls: the decisions follow the tree, all at once
"""

from __future__ import annotations

import argparse
import os
import platform
import random
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import orjson
from loopback import Encode, Latency, Loopback, serving

WORDS = ("harbour", "violin", "widow", "letter", "kettle", "orchard", "winter", "lawyer", "clock", "road", "lamp")
END = " <answer long>The answer of it all is forty-two.</answer long><answer short>forty-two</answer short>"


def reply(body: dict[str, Any], encode: Encode) -> dict[str, Any]:
    """Return the next piece of a narrative; the role is recognized by its sampling."""
    text = " about a dozen of them"
    if "<answer" in body["stop"]:
        text = f"Follow up: What is the {sum(body['prompt']) % 10**6}th thing to know of it?"
    elif body["logprobs"]:
        text = "Let's search the question in Wikipedia."
    elif body["max_tokens"] == 250:
        text = END
    ids = encode(text)
    choice: dict[str, Any] = {"text": text, "token_ids": ids, "finish_reason": "stop"}
    if body["logprobs"]:
        top = {f"token_id:{token}": -token / 9 for token in (10061, 98961, *range(1, body["logprobs"] - 1))}
        choice["logprobs"] = {"token_logprobs": [-0.25] * len(ids), "top_logprobs": [top] * len(ids)}
    return choice


def write_index(folder: Path, passages: int = 2000, words: int = 100) -> Path:
    """Write a BM25 index of passages as long as the paper's."""
    from agentsys.knowledge import IndexSettings, build_index

    rng = random.Random(0)
    texts = (" ".join(rng.choices(WORDS, k=words)) for _ in range(passages))
    lines = [{"id": f"p{i}", "title": f"thing {i}", "text": text} for i, text in enumerate(texts)]
    source = folder / "passages.jsonl"
    source.write_bytes(b"".join(orjson.dumps(line) + b"\n" for line in lines))
    build_index(source, folder / "index", IndexSettings(kind="bm25"))
    return folder / "index"


@dataclass(frozen=True)
class Measured:
    """Result of a run: seconds of wall time and of the client's CPU, and calls."""

    seconds: float
    cpu: float
    calls: int


def run_searches(url: str, index: Path, questions: int, depth: int, slots: int) -> Measured:
    """Search the whole trees of several questions with `collect`."""
    from agentsys.collect import RunOptions, collect
    from agentsys.graphs.deeprag.search import SearchContext, graph

    records = [{"question": f"What is the answer of all {i}?", "answer": "forty-two"} for i in range(questions)]
    knobs = SearchContext(stage="calibration", model=f"{url}/v1", max_steps=depth, index=str(index))
    with tempfile.TemporaryDirectory() as folder:
        options = RunOptions(in_flight=slots, cache=Path(folder) / "cache.sqlite")
        wall, cpu = time.perf_counter(), time.process_time()
        summary = collect(graph, records, Path(folder) / "out", context=knobs, options=options)
        result = Measured(time.perf_counter() - wall, time.process_time() - cpu, summary.calls)
    assert summary.kept == questions and result.calls == questions * calls_per_tree(depth), summary
    return result


def calls_per_tree(depth: int) -> int:
    """Return the number of calls of one tree."""
    inner, leaves = (1 << depth) - 1, 1 << depth
    return 3 * inner + leaves + depth


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--questions", type=int, default=64)
    parser.add_argument("--depth", type=int, default=4)
    parser.add_argument("--latency", type=float, default=0.2, help="seconds per call")
    parser.add_argument("--slots", type=int, nargs="+", default=[64, 256], help="requests in flight")
    parser.add_argument("--repeats", type=int, default=3, help="the table shows the median by wall time")
    parser.add_argument("--tokenizer", default="qwen2.5-coder-0.5b", help="catalog name or model folder")
    args = parser.parse_args()
    from agentsys.trainers.loading import folder_of

    plan = Loopback(reply, folder_of(args.tokenizer), Latency(args.latency))
    with serving(plan) as url, tempfile.TemporaryDirectory() as folder:
        index = write_index(Path(folder))
        run_searches(url, index, 1, 1, 4)  # warms up imports, tokenizer and index
        report(args, url, index)


def report(args: argparse.Namespace, url: str, index: Path) -> None:
    """Measure and print the table."""
    work = args.questions * calls_per_tree(args.depth) * args.latency
    print(
        f"{args.questions} questions, trees of depth {args.depth}, {calls_per_tree(args.depth)} calls each, "
        f"{args.latency:g} s per call; Python {platform.python_version()}, {os.cpu_count()} cores, "
        f"load before {os.getloadavg()[0]:.1f}"
    )
    print(
        "| | wall s | ideal s | ideal / wall | times faster | client CPU s | ms per call |\n"
        "|---|---|---|---|---|---|---|"
    )
    one = run_searches(url, index, 1, args.depth, 1)
    sequential = Measured(one.seconds * args.questions, one.cpu * args.questions, one.calls * args.questions)
    print_row(f"sequential ({one.seconds:.1f} s per question)", sequential, work, sequential)
    for slots in args.slots:
        runs = [run_searches(url, index, args.questions, args.depth, slots) for _ in range(args.repeats)]
        median = sorted(runs, key=lambda run: run.seconds)[len(runs) // 2]
        print_row(f"{slots} slots", median, max((2 * args.depth + 2) * args.latency, work / slots), sequential)


def print_row(name: str, run: Measured, ideal: float, sequential: Measured) -> None:
    """Print a row of the table."""
    numbers = f"{run.seconds:.2f} | {ideal:.2f} | {ideal / run.seconds:.2f} | {sequential.seconds / run.seconds:.0f}"
    print(f"| {name} | {numbers} | {run.cpu:.1f} | {1000 * run.cpu / run.calls:.2f} |")


if __name__ == "__main__":
    main()
