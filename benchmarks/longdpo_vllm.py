"""LongDPO's search on a real engine: prefix cache, tokens per second, and the cost of a pair.

    VLLM_SERVER_DEV_MODE=1 vllm serve FOLDER --port 8000
    python benchmarks/longdpo_vllm.py --endpoint http://127.0.0.1:8000/v1 [--requests 8] [--in-flight 16]

First graphs/longdpo/search.py runs through `collect`. Then a load generator posts the same requests (prompt ids,
schema, sampling, seeds) with as many in flight, in any order: the engine's throughput if no request waits for another.
vLLM's prefix cache is reset before each. The hit rate is vLLM's own count of prompt tokens found in the cache; the
greatest possible one is that of an unlimited cache if every call came after the calls before it. Writer, judge and
critic are one model; there is no memory. On a CPU start vLLM 0.32 with --no-enable-chunked-prefill
--max-num-batched-tokens 8192: its engine stops when the prompt of a seeded request is prefilled in chunks.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import platform
import re
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import orjson
from saturation import JSON, forget

from agentsys.collect import RunOptions, acollect
from agentsys.graphs.longdpo.search import SearchContext, graph
from agentsys.graphs.longdpo.system import LongDPO
from agentsys.models import load_model, wire
from agentsys.traces import Call, Trace, read_traces

FORMS = ("an essay", "a short story", "a travel report", "a letter to a friend", "a speech")
ROLES = LongDPO()
SUBJECTS = ("a lighthouse", "the first winter in a new town", "a river that changed its bed", "learning to bake bread")


def requests(count: int, length: int) -> list[dict[str, Any]]:
    """Distinct requests for a text of about `length` words."""
    return [
        {
            "id": f"r{i}",
            "prompt": f"Write {FORMS[i % 5]} of about {length} words on {SUBJECTS[i // 5 % 4]}, for reader {i}.",
            "length": length,
        }
        for i in range(count)
    ]


@dataclass(frozen=True)
class Counters:
    """vLLM's counts so far: prompt tokens looked up in the prefix cache, and hits; and its block size in tokens."""

    queries: float
    hits: float
    block: int


async def read_counters(address: str) -> Counters:
    """The counters in /metrics."""
    import aiohttp

    async with aiohttp.ClientSession() as session, session.get(f"{address}/metrics") as answer:
        text = await answer.text()

    def total(name: str) -> float:
        return sum(float(value) for value in re.findall(rf"^vllm:{name}_total{{.*}} (\S+)$", text, re.MULTILINE))

    block = re.search(r'block_size="(\d+)"', text)
    return Counters(total("prefix_cache_queries"), total("prefix_cache_hits"), int(block[1]) if block else 16)


@dataclass(frozen=True)
class Throughput:
    """Time, completion tokens and cache counters of one client."""

    seconds: float
    tokens: int
    before: Counters
    after: Counters

    @property
    def hit_rate(self) -> float:
        """Share of prompt tokens found in the prefix cache."""
        return (self.after.hits - self.before.hits) / max(1.0, self.after.queries - self.before.queries)


async def run_collect(served: Any, args: argparse.Namespace, out: Path) -> Throughput:
    """The search, with its own request cache."""
    address = served.endpoint.addresses[0]
    await forget(served)
    context = SearchContext(
        model=args.endpoint, width=args.width, depth=args.depth, step_tokens=args.step_tokens,
        simulations=args.simulations, weights=args.weights,
    )  # fmt: skip
    options = RunOptions(in_flight=args.in_flight, cache=out.parent / "cache.sqlite")
    before, started = await read_counters(address), time.perf_counter()
    summary = await acollect(graph, requests(args.requests, args.length), out, context=context, options=options)
    seconds = time.perf_counter() - started
    assert not summary.failed, summary
    return Throughput(seconds, summary.completion_tokens, before, await read_counters(address))


async def run_load_generator(served: Any, args: argparse.Namespace, calls: Sequence[Call]) -> Throughput:
    """The same requests with bare aiohttp."""
    import aiohttp

    address = served.endpoint.addresses[0]
    await forget(served)
    bodies = iter([body_of(call, served) for call in calls])
    tokens = 0

    async def worker(session: aiohttp.ClientSession) -> None:
        nonlocal tokens
        for route, body in bodies:
            async with session.post(address + route, data=body, headers=JSON) as answer:
                reply = await answer.read()
                assert answer.status == 200, f"status {answer.status}: {reply.decode()[:200]}"
                tokens += orjson.loads(reply)["usage"]["completion_tokens"]

    whole = aiohttp.ClientTimeout(total=None)
    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0), timeout=whole) as session:
        before, started = await read_counters(address), time.perf_counter()
        await asyncio.gather(*(worker(session) for _ in range(args.in_flight)))
        seconds = time.perf_counter() - started
    return Throughput(seconds, tokens, before, await read_counters(address))


def body_of(call: Call, served: Any) -> tuple[str, bytes]:
    """The route and body of a recorded call."""
    schema = getattr(ROLES, call.role).schema
    request = wire.Request({**call.sampling, "seed": call.seed}, [], call.prompt_ids, schema)
    route, body = wire.build_payload(request, served.dialect, served.model, stream=False)
    return route, orjson.dumps(body)


def max_hit_rate(calls: Sequence[Call], block: int) -> float:
    """The greatest possible hit rate: whole blocks of a prompt, except its last, that an earlier call starts with."""
    seen: set[int] = set()
    hits = total = 0
    for call in calls:
        prompt, cached, prefix = call.prompt_ids or [], True, 0
        ids = [*prompt, *(call.ids or [])]
        for end in range(block, len(ids) + 1, block):
            prefix = hash((prefix, *ids[end - block : end]))
            cached = cached and prefix in seen
            hits += block * (cached and end < len(prompt))
            seen.add(prefix)
        total += len(prompt)
    return hits / total


async def main_async(args: argparse.Namespace) -> None:
    """Measure both clients and print the table."""
    model: Any = load_model(args.endpoint)
    served = await model.engine.serve()
    assert served.dialect == "vllm" and served.tokenizer, f"{args.endpoint}: not a vLLM server, or no tokenizer here"
    steps = f"steps of {args.step_tokens} tokens" if args.step_tokens else "steps as long as in the released code"
    print(
        f"{served.name}: {args.requests} requests of about {args.length} words, width {args.width}, "
        f"depth {args.depth}, {steps}, {args.simulations} simulations, weights {args.weights}, "
        f"{args.in_flight} in flight; Python {platform.python_version()}, {os.cpu_count()} cores, "
        f"load before {os.getloadavg()[0]:.1f}"
    )
    with tempfile.TemporaryDirectory() as folder:
        ours = await run_collect(served, args, Path(folder) / "out")
        traces = list(read_traces(Path(folder) / "out"))
    calls = [call for trace in traces for call in trace.calls]
    theirs = await run_load_generator(served, args, calls)
    await served.endpoint.aclose()
    print("| | seconds | tokens written | tokens/s | prefix-cache hit rate |\n|---|---|---|---|---|")
    for name, client in (("collect", ours), ("load generator", theirs)):
        rate = client.tokens / client.seconds
        print(f"| {name} | {client.seconds:.1f} | {client.tokens} | {rate:.1f} | {client.hit_rate:.3f} |")
    print(f"ratio of tokens/s {ours.tokens / ours.seconds * theirs.seconds / theirs.tokens:.3f}; ", end="")
    print(
        f"greatest possible hit rate {max_hit_rate(calls, ours.after.block):.3f} (blocks of {ours.after.block} tokens)"
    )
    print_cost(traces, ours.seconds)


def print_cost(traces: Sequence[Trace], seconds: float) -> None:
    """Print the cost of a pair."""
    pairs = sum(len(trace.targets) for trace in traces)
    calls = [call for trace in traces for call in trace.calls]
    unusable = sum(call.error is not None for call in calls)
    print(f"{pairs} pairs from {len(traces)} requests, {len(calls)} calls, {unusable} unusable replies")
    if pairs:
        completion, prompt = sum(c.completion_tokens for c in calls), sum(c.prompt_tokens for c in calls)
        print(
            f"per pair: {seconds / pairs:.1f} s of the engine, {len(calls) / pairs:.1f} calls, "
            f"{completion / pairs:,.0f} completion tokens, {prompt / pairs:,.0f} prompt tokens"
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--endpoint", required=True, help="a running vLLM with VLLM_SERVER_DEV_MODE=1: http://host:port/v1"
    )
    parser.add_argument("--requests", type=int, default=8)
    parser.add_argument("--length", type=int, default=300, help="required words")
    parser.add_argument("--width", type=int, default=4)
    parser.add_argument("--depth", type=int, default=4)
    parser.add_argument("--simulations", type=int, default=0, help="simulations per layer; 0: greedy layers")
    parser.add_argument("--step-tokens", type=int, default=0, help="token limit of a step; 0: by the required words")
    parser.add_argument("--weights", choices=("stated", "probabilities"), default="probabilities")
    parser.add_argument("--in-flight", type=int, default=16)
    asyncio.run(main_async(parser.parse_args()))


if __name__ == "__main__":
    main()
