"""LongDPO's tree search at full load: three schedules of the same calls over a server with uneven latencies.

    python benchmarks/longdpo_speed.py [--slots 64] [--simulations 0 8] [--plot in_flight.png]

The server (loopback.py) has `slots` slots. A request's latency is proportional to the tokens written, times a
log-normal number (sigma 0.5) that depends on the request alone. Steps are as long as the required length implies,
judgments have about 250 tokens; there are no critiques and no memory. All three schedules run
graphs/longdpo/search.py through `collect`, with as many requests in flight as slots, and with the request cache and
traces on disk; only the order differs:
  collect       as shipped: the calls of all trees share the slots, no tree waits for another
  lockstep      all trees write the candidates of a level, wait for the slowest, then all judge, and so on, as in
                rStar-Math (with simulations: the parallel simulations of every tree, level by level)
  four workers  each searches one tree after the other, its calls in parallel, as in LongDPO's released code
The benchmark checks that the calls are the same. The ideal is max(critical path, work / slots). The work is the sum of
the latencies; the critical path is the longest chain in a tree: a candidate, its judgment, a candidate below it, ...
"""

from __future__ import annotations

import argparse
import asyncio
import os
import platform
import random
import tempfile
import time
from collections.abc import Awaitable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from itertools import accumulate
from pathlib import Path
from typing import Any, TypeVar

import orjson
from langgraph.runtime import Runtime
from loopback import Encode, Latency, Loopback, Served, read_log, serving

from agentsys.collect import RunOptions, collect
from agentsys.graphs.longdpo.judge import PRINCIPLES
from agentsys.graphs.longdpo.search import LongDPOSearch, SearchContext, State
from agentsys.graphs.longdpo.state import Candidate
from agentsys.graphs.longdpo.system import LongDPO
from agentsys.models import load_model
from agentsys.recorder import current
from agentsys.traces import Call, Trace, read_traces

T = TypeVar("T")
SCHEDULES = ("collect", "lockstep", "four workers")
WORKERS = 4
WORDS = "harbour violin widow letter kettle orchard winter lawyer clock road lamp a the of and in was with she he it"
QUIET = 50
"""Event-loop turns without a new call after which a tree is assumed to have issued all calls that it can."""


def reply(body: dict[str, Any], encode: Encode) -> dict[str, Any]:
    """A judgment, or a step of the maximum length; random by the request's seed."""
    chance = random.Random(body["seed"])
    if "structured_outputs" in body:
        text = judgment(chance)
        return {"text": text, "token_ids": encode(text), "finish_reason": "stop"}
    words = chance.choices(vocabulary(encode), k=body["max_tokens"])
    return {
        "text": "".join(text for text, _ in words),
        "token_ids": [token for _, token in words],
        "finish_reason": "length",
    }


@lru_cache(maxsize=1)
def vocabulary(encode: Encode) -> list[tuple[str, int]]:
    """The words that are one token, with their ids."""
    encoded = [(f" {word}", encode(f" {word}")) for word in WORDS.split()]
    return [(text, ids[0]) for text, ids in encoded if len(ids) == 1]


def judgment(chance: random.Random) -> str:
    """Three sentences and seven rows of weights."""
    analysis = "It is clear and does what the request asks for, and it has a thought of its own near its end. " * 3
    counts = {name: [chance.randint(1, 10) for _ in range(5)] for name in PRINCIPLES}
    rows = {name: [round(count / sum(row), 2) for count in row] for name, row in counts.items()}
    return orjson.dumps({"analysis": analysis, **rows}).decode()


@dataclass
class Phase:
    """Calls that run together: they start at `open`, and none returns before `done`."""

    trees: set[str] = field(default_factory=set)
    calls: int = 0
    open: asyncio.Event = field(default_factory=asyncio.Event)
    done: asyncio.Event = field(default_factory=asyncio.Event)


class Gate:
    """Lockstep: a phase opens when every unfinished tree has issued its calls."""

    def __init__(self, trees: int) -> None:
        self.trees, self.phases = trees, 0
        self._next = Phase()
        self._opening: asyncio.Task[None] | None = None

    async def run(self, call: Awaitable[T]) -> T:
        """The result of a call, once all calls of its phase have theirs."""
        recorder = current.get()
        assert recorder is not None
        phase = self._next
        phase.calls += 1
        phase.trees.add(recorder.record)
        self._open_if_ready()
        await phase.open.wait()
        try:
            return await call
        finally:
            phase.calls -= 1
            if not phase.calls:
                phase.done.set()
            await phase.done.wait()

    def leave(self) -> None:
        """A tree is finished."""
        self.trees -= 1
        self._open_if_ready()

    def _open_if_ready(self) -> None:
        if self._opening is None and self.trees and len(self._next.trees) == self.trees:
            self._opening = asyncio.create_task(self._open())

    async def _open(self) -> None:
        """Open the phase when no tree issues more calls."""
        phase, before = self._next, -1
        while phase.calls != before:
            before = phase.calls
            for _ in range(QUIET):
                await asyncio.sleep(0)
        self._next, self._opening = Phase(), None
        self.phases += 1
        phase.open.set()


@dataclass(frozen=True)
class LockstepLongDPO(LongDPO):
    """A layer's calls, through the gate."""

    gate: Gate = field(kw_only=True)

    async def write_step(
        self, state: Any, context: Any, prefix: Sequence[Candidate], key: str, suggestions: Sequence[str] = ()
    ) -> Candidate:
        """See LongDPO.write_step."""
        return await self.gate.run(super().write_step(state, context, prefix, key, suggestions))

    async def evaluate_step(self, state: Any, context: Any, prefix: Sequence[Candidate], step: Candidate) -> Candidate:
        """See LongDPO.evaluate_step."""
        return await self.gate.run(super().evaluate_step(state, context, prefix, step))


@dataclass(frozen=True)
class LockstepSearch(LongDPOSearch):
    """The search; a finished tree leaves the gate."""

    longdpo: LockstepLongDPO = field(kw_only=True)

    async def search(self, state: State, runtime: Runtime[SearchContext]) -> dict[str, Any]:
        """See LongDPOSearch.search."""
        try:
            return await super().search(state, runtime)
        finally:
            self.longdpo.gate.leave()


@dataclass(frozen=True)
class Measured:
    """A run: wall and client CPU time in seconds, the requests served, the critical path in seconds, and the calls."""

    seconds: float
    cpu: float
    served: list[Served]
    chain: float
    phases: int
    calls: frozenset[tuple[str, str, int | None, str]]

    @property
    def work(self) -> float:
        """Seconds in slots."""
        return sum(entry.latency for entry in self.served)


def measure(url: str, schedule: str, args: argparse.Namespace, slots: int, simulations: int) -> Measured:
    """Collect all trees with one schedule."""
    gate = Gate(args.trees)
    search = LockstepSearch(longdpo=LockstepLongDPO(gate=gate)) if schedule == "lockstep" else LongDPOSearch()
    graph: Any = search.builder().compile(name="longdpo_search")
    model: Any = load_model(f"{url}/v1")
    trees = {"lockstep": args.trees, "four workers": WORKERS}
    default = type(model.engine).records_per_request
    model.engine.records_per_request = trees[schedule] / slots if schedule in trees else default
    context = SearchContext(
        model=f"{url}/v1",
        width=args.width,
        depth=args.depth,
        simulations=simulations,
        parallel=args.parallel,
        eta=1.0,
        weights="stated",
    )
    lengths = args.lengths
    records = [{"prompt": f"Write story {i}.", "length": lengths[i % len(lengths)]} for i in range(args.trees)]
    read_log(url)
    with tempfile.TemporaryDirectory() as folder:
        options = RunOptions(in_flight=slots, cache=Path(folder) / "cache.sqlite")
        wall, cpu = time.perf_counter(), time.process_time()
        summary = collect(graph, records, Path(folder) / "out", context=context, options=options)
        wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
        served = read_log(url)
        assert summary.kept == args.trees and summary.calls == len(served), summary
        chain, calls = 0.0, set()
        latencies = {(entry.seed, entry.prompt_tokens): entry.latency for entry in served}
        for trace in read_traces(Path(folder) / "out"):
            chain = max(chain, chain_of(trace, latencies))
            calls |= {(trace.id, call.key, call.seed, call.text) for call in trace.calls}
    return Measured(wall, cpu, served, chain, gate.phases, frozenset(calls))


def chain_of(trace: Trace, latencies: Mapping[tuple[int | None, int], float]) -> float:
    """Seconds of a tree's longest chain: children follow the candidates and judgments of their parent's level."""

    def latency(call: Call) -> float:
        return latencies[call.seed, call.prompt_tokens]

    judgments = {call.key: latency(call) for call in trace.calls if call.role == "judge"}
    levels: dict[str, float] = {}
    for call in trace.calls:
        if call.role == "writer":
            node = call.key.rpartition("/")[0]
            levels[node] = max(levels.get(node, 0.0), latency(call) + judgments[f"{call.key}/judge"])

    ends: dict[str, float] = {}
    for node in sorted(levels, key=lambda node: node.count(":")):
        ends[node] = levels[node] + ends.get(node.rpartition(":")[0], 0.0)
    return max(ends.values())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trees", type=int, default=64)
    parser.add_argument("--width", type=int, default=4)
    parser.add_argument("--depth", type=int, default=4)
    parser.add_argument(
        "--simulations", type=int, nargs="+", default=[0, 8], help="simulations per layer; 0: greedy layers"
    )
    parser.add_argument("--parallel", type=int, default=4, help="parallel simulations per tree")
    parser.add_argument("--slots", type=int, nargs="+", default=[64], help="parallel requests of the server")
    parser.add_argument(
        "--lengths", type=int, nargs="+", default=[300],
        help="required words, assigned to the requests in turn; a step has 512 tokens below 500 words, 2048 below 2000",
    )  # fmt: skip
    parser.add_argument("--token-ms", type=float, default=2.0, help="mean milliseconds per token")
    parser.add_argument("--sigma", type=float, default=0.5, help="standard deviation of the logarithm of a latency")
    parser.add_argument("--repeats", type=int, default=1, help="runs per row; the table shows the median by wall time")
    parser.add_argument("--schedules", nargs="+", choices=SCHEDULES, default=SCHEDULES)
    parser.add_argument("--tokenizer", default="qwen2.5-coder-0.5b", help="catalog name or model folder")
    parser.add_argument(
        "--plot",
        type=Path,
        help="PNG of requests in flight over time, for the first --slots and --simulations",
    )
    args = parser.parse_args()
    print(
        f"{args.trees} trees, width {args.width}, depth {args.depth}, responses of {args.lengths} words; "
        f"{args.token_ms:g} ms per token, log-normal with sigma {args.sigma:g}; Python {platform.python_version()}, "
        f"{os.cpu_count()} cores, load before {os.getloadavg()[0]:.1f}\n"
        "| schedule | wall s | critical path s | work / slots s | ideal / wall | collect is faster by | mean in flight "
        "| client CPU s | ms per call |\n|---|---|---|---|---|---|---|---|---|"
    )
    for slots in args.slots:
        for simulations in args.simulations:
            runs = compare(args, slots, simulations)
            if args.plot and (slots, simulations) == (args.slots[0], args.simulations[0]):
                plot(runs, slots, args.plot)


def compare(args: argparse.Namespace, slots: int, simulations: int) -> dict[str, Measured]:
    """Measure all schedules with these slots and simulations, and print their rows."""
    medians: dict[str, Measured] = {}
    for schedule in args.schedules:
        runs = [measure_on_new_server(schedule, args, slots, simulations) for _ in range(args.repeats)]
        run = medians[schedule] = sorted(runs, key=lambda run: run.seconds)[len(runs) // 2]
        first = medians[args.schedules[0]]
        assert run.calls == first.calls, f"{schedule}: its calls differ from those of {args.schedules[0]}"
        ideal = max(run.chain, run.work / slots)
        name = f"{schedule} ({run.phases} phases)" if run.phases else schedule
        print(
            f"| {slots} slots, {simulations} simulations, {len(run.calls)} calls: {name} | {run.seconds:.2f} "
            f"| {run.chain:.2f} | {run.work / slots:.2f} | {ideal / run.seconds:.2f} "
            f"| {run.seconds / first.seconds:.2f} | {run.work / run.seconds:.1f} "
            f"| {run.cpu:.1f} | {1000 * run.cpu / len(run.calls):.2f} |",
            flush=True,
        )
    return medians


def measure_on_new_server(schedule: str, args: argparse.Namespace, slots: int, simulations: int) -> Measured:
    """Measure with a new server and model: the tokenizer of the previous one has cached the texts."""
    from agentsys.trainers.loading import folder_of

    latency = Latency(per_token=args.token_ms / 1000, sigma=args.sigma)
    with serving(Loopback(reply, folder_of(args.tokenizer), latency, slots)) as url:
        one = argparse.Namespace(**{**vars(args), "trees": 1, "depth": 1})
        measure(url, "collect", one, slots, 0)  # warm-up: imports, tokenizer
        return measure(url, schedule, args, slots, simulations)


def plot(runs: Mapping[str, Measured], slots: int, file: Path) -> None:
    """Requests in flight over time, one panel per schedule."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 1.8 * len(runs)), layout="constrained")
    panels: Any = figure.subplots(len(runs), 1, sharex=True, sharey=True, squeeze=False)
    for axes, (schedule, run) in zip(panels[:, 0], runs.items(), strict=True):
        axes.fill_between(*in_flight(run.served), step="post", linewidth=0)
        axes.axhline(slots, color="grey", linewidth=0.8, linestyle="--")
        axes.set_ylim(0, 1.15 * slots)
        axes.set_title(f"{schedule}: {run.seconds:.0f} s", loc="left", fontsize=10)
    figure.supylabel("requests in flight")
    figure.supxlabel(f"seconds ({slots} slots)")
    figure.savefig(file, dpi=110)


def in_flight(served: Sequence[Served]) -> tuple[list[float], list[int]]:
    """Times in seconds since the first request, and the number of requests in slots from each on."""
    start = min(entry.arrived for entry in served)
    changes = sorted(
        [(entry.started - start, 1) for entry in served] + [(entry.answered - start, -1) for entry in served]
    )
    return [at for at, _ in changes], list(accumulate(change for _, change in changes))


if __name__ == "__main__":
    main()
