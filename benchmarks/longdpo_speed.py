"""LongDPO's trees at full load: three schedules of the same calls over a server with uneven latencies.

    python benchmarks/longdpo_speed.py [--slots 64] [--simulations 0 8] [--plot in_flight.png]

The server (loopback.py) has `slots` slots. A request takes a time proportional to the tokens written, times a
log-normal number (sigma 0.5) that belongs to the request. Steps are as long as the required length asks for, judgements
have about 250 tokens; no critiques, no memory. All three schedules are graphs/longdpo/search.py through `collect`,
with as many requests in flight as there are slots, the request cache and traces on disk; only the order differs:
  collect       as it is: the calls of all trees share the slots, no tree waits for another
  lockstep      all trees write the candidates of a level, the slowest is waited for, all judge, and so on: rStar-Math's
                way (with simulations: every tree's simulations under way, level by level)
  four workers  each takes one tree after the other, its calls in parallel: the way of LongDPO's released code
That the calls are the same is checked. The ideal is max(critical path, work / slots): the work is the sum of the
latencies, the critical path the longest chain in any tree of a candidate, its judgement, a candidate below it, ...
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
from loopback import Encode, Latency, Loopback, Served, log_of, serving

from agentsys.collect import RunOptions, collect
from agentsys.graphs.longdpo.search import LongDPOSearch, SearchContext, State
from agentsys.graphs.longdpo.system import PRINCIPLES, Candidate, LongDPO
from agentsys.models import load_model
from agentsys.recorder import current
from agentsys.traces import Call, Trace, read_traces

T = TypeVar("T")
SCHEDULES = ("collect", "lockstep", "four workers")
WORKERS = 4
WORDS = "harbour violin widow letter kettle orchard winter lawyer clock road lamp a the of and in was with she he it"
QUIET = 50
"""Turns of the event loop without a new call after which a tree is taken to have asked for all that it can."""


def reply(body: dict[str, Any], encode: Encode) -> dict[str, Any]:
    """A step as long as it may be, or a judgement; by the request's seed."""
    chance = random.Random(body["seed"])
    if "structured_outputs" in body:
        text = judgement(chance)
        return {"text": text, "token_ids": encode(text), "finish_reason": "stop"}
    written = chance.choices(vocabulary(encode), k=body["max_tokens"])
    return {
        "text": "".join(text for text, _ in written),
        "token_ids": [token for _, token in written],
        "finish_reason": "length",
    }


@lru_cache(maxsize=1)
def vocabulary(encode: Encode) -> list[tuple[str, int]]:
    """The words that are one token."""
    known = [(f" {word}", encode(f" {word}")) for word in WORDS.split()]
    return [(text, ids[0]) for text, ids in known if len(ids) == 1]


def judgement(chance: random.Random) -> str:
    """Three sentences and seven rows of weights."""
    analysis = "It is clear and does what the request asks for, and it has a thought of its own near its end. " * 3
    drawn = {name: [chance.randint(1, 10) for _ in range(5)] for name in PRINCIPLES}
    rows = {name: [round(weight / sum(row), 2) for weight in row] for name, row in drawn.items()}
    return orjson.dumps({"analysis": analysis, **rows}).decode()


@dataclass
class Phase:
    """Calls that go together: they wait for `open`, and nothing goes on before `back`."""

    trees: set[str] = field(default_factory=set)
    calls: int = 0
    open: asyncio.Event = field(default_factory=asyncio.Event)
    back: asyncio.Event = field(default_factory=asyncio.Event)


class Gate:
    """Lockstep: a phase opens when every tree that is not finished has asked for its calls."""

    def __init__(self, trees: int) -> None:
        self.trees, self.phases = trees, 0
        self._next = Phase()
        self._opening: asyncio.Task[None] | None = None

    async def through(self, call: Awaitable[T]) -> T:
        """The result of a call, when all calls of its phase have theirs."""
        recorder = current.get()
        assert recorder is not None
        phase = self._next
        phase.calls += 1
        phase.trees.add(recorder.record)
        self._look()
        await phase.open.wait()
        try:
            return await call
        finally:
            phase.calls -= 1
            if not phase.calls:
                phase.back.set()
            await phase.back.wait()

    def leave(self) -> None:
        """A tree is finished."""
        self.trees -= 1
        self._look()

    def _look(self) -> None:
        if self._opening is None and self.trees and len(self._next.trees) == self.trees:
            self._opening = asyncio.create_task(self._open())

    async def _open(self) -> None:
        """Open the phase when no tree asks for more."""
        phase, before = self._next, -1
        while phase.calls != before:
            before = phase.calls
            for _ in range(QUIET):
                await asyncio.sleep(0)
        self._next, self._opening = Phase(), None
        self.phases += 1
        phase.open.set()


@dataclass(frozen=True)
class InStep(LongDPO):
    """A layer's functions, through the gate."""

    gate: Gate = field(kw_only=True)

    async def write(
        self, state: Any, context: Any, prefix: Sequence[Candidate], key: str, suggestions: Sequence[str] = ()
    ) -> Candidate:
        """See LongDPO.write."""
        return await self.gate.through(super().write(state, context, prefix, key, suggestions))

    async def evaluate(self, state: Any, context: Any, prefix: Sequence[Candidate], step: Candidate) -> Candidate:
        """See LongDPO.evaluate."""
        return await self.gate.through(super().evaluate(state, context, prefix, step))


@dataclass(frozen=True)
class SearchInStep(LongDPOSearch):
    """The search; it tells the gate when a tree is finished."""

    layers: InStep = field(kw_only=True)

    async def search(self, state: State, runtime: Runtime[SearchContext]) -> dict[str, Any]:
        """See LongDPOSearch.search."""
        try:
            return await super().search(state, runtime)
        finally:
            self.layers.gate.leave()


@dataclass(frozen=True)
class Measured:
    """A run: seconds of wall time and of the client process's CPU, what the server served, and what was asked."""

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
    """Collect all trees by a schedule."""
    gate = Gate(args.trees)
    search = SearchInStep(layers=InStep(gate=gate)) if schedule == "lockstep" else LongDPOSearch()
    graph: Any = search.builder().compile(name="longdpo_search")
    model: Any = load_model(f"{url}/v1")
    in_progress = {"lockstep": args.trees, "four workers": WORKERS}
    usual = type(model.engine).records_per_request
    model.engine.records_per_request = in_progress[schedule] / slots if schedule in in_progress else usual
    knobs = SearchContext(
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
    log_of(url)
    with tempfile.TemporaryDirectory() as folder:
        options = RunOptions(in_flight=slots, cache=Path(folder) / "cache.sqlite")
        wall, cpu = time.perf_counter(), time.process_time()
        summary = collect(graph, records, Path(folder) / "out", context=knobs, options=options)
        wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
        served = log_of(url)
        assert summary.kept == args.trees and summary.calls == len(served), summary
        chain, calls = 0.0, set()
        latencies = {(entry.seed, entry.prompt_tokens): entry.latency for entry in served}
        for trace in read_traces(Path(folder) / "out"):
            chain = max(chain, chain_of(trace, latencies))
            calls |= {(trace.id, call.key, call.seed, call.text) for call in trace.calls}
    return Measured(wall, cpu, served, chain, gate.phases, frozenset(calls))


def chain_of(trace: Trace, latencies: Mapping[tuple[int | None, int], float]) -> float:
    """Seconds of a tree's longest chain: children come after the candidates and judgements of their parent's level."""

    def latency(call: Call) -> float:
        return latencies[call.seed, call.prompt_tokens]

    judged = {call.key: latency(call) for call in trace.calls if call.role == "judge"}
    levels: dict[str, float] = {}
    for call in trace.calls:
        if call.role == "writer":
            node = call.key.rpartition("/")[0]
            levels[node] = max(levels.get(node, 0.0), latency(call) + judged[f"{call.key}/judge"])

    ends: dict[str, float] = {}
    for node in sorted(levels, key=lambda node: node.count(":")):
        ends[node] = levels[node] + ends.get(node.rpartition(":")[0], 0.0)
    return max(ends.values())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trees", type=int, default=64)
    parser.add_argument("--width", type=int, default=4)
    parser.add_argument("--depth", type=int, default=4)
    parser.add_argument("--simulations", type=int, nargs="+", default=[0, 8], help="of each layer; 0: greedy layers")
    parser.add_argument("--parallel", type=int, default=4, help="simulations of one tree under way at once")
    parser.add_argument("--slots", type=int, nargs="+", default=[64], help="requests that the server works on at once")
    parser.add_argument(
        "--lengths", type=int, nargs="+", default=[300],
        help="required words, given to the requests in turn; below 500 a step has 512 tokens, below 2000 2048",
    )  # fmt: skip
    parser.add_argument("--token-ms", type=float, default=2.0, help="mean milliseconds of a token")
    parser.add_argument("--sigma", type=float, default=0.5, help="of the logarithm of a latency")
    parser.add_argument("--repeats", type=int, default=1, help="the table shows the median by wall time")
    parser.add_argument("--schedules", nargs="+", choices=SCHEDULES, default=SCHEDULES)
    parser.add_argument("--tokenizer", default="qwen2.5-coder-0.5b", help="catalogue name or model folder")
    parser.add_argument(
        "--plot", type=Path, help="PNG: requests in flight over time, of the first slots and simulations"
    )
    args = parser.parse_args()
    print(
        f"{args.trees} trees, width {args.width}, depth {args.depth}, responses of {args.lengths} words; "
        f"{args.token_ms:g} ms a token, log-normal with sigma {args.sigma:g}; Python {platform.python_version()}, "
        f"{os.cpu_count()} cores, load before {os.getloadavg()[0]:.1f}\n"
        "| schedule | wall s | critical path s | work / slots s | ideal / wall | collect is faster by | mean in flight "
        "| client CPU s | ms a call |\n|---|---|---|---|---|---|---|---|---|"
    )
    for slots in args.slots:
        for simulations in args.simulations:
            found = compare(args, slots, simulations)
            if args.plot and (slots, simulations) == (args.slots[0], args.simulations[0]):
                plot(found, slots, args.plot)


def compare(args: argparse.Namespace, slots: int, simulations: int) -> dict[str, Measured]:
    """The rows of one number of slots and simulations."""
    found: dict[str, Measured] = {}
    for schedule in args.schedules:
        runs = [on_new_server(schedule, args, slots, simulations) for _ in range(args.repeats)]
        run = found[schedule] = sorted(runs, key=lambda run: run.seconds)[len(runs) // 2]
        first = found[args.schedules[0]]
        assert run.calls == first.calls, f"{schedule}: other calls than {args.schedules[0]}"
        ideal = max(run.chain, run.work / slots)
        name = f"{schedule} ({run.phases} phases)" if run.phases else schedule
        print(
            f"| {slots} slots, {simulations} simulations, {len(run.calls)} calls: {name} | {run.seconds:.2f} "
            f"| {run.chain:.2f} | {run.work / slots:.2f} | {ideal / run.seconds:.2f} "
            f"| {run.seconds / first.seconds:.2f} | {run.work / run.seconds:.1f} "
            f"| {run.cpu:.1f} | {1000 * run.cpu / len(run.calls):.2f} |",
            flush=True,
        )
    return found


def on_new_server(schedule: str, args: argparse.Namespace, slots: int, simulations: int) -> Measured:
    """Measure with a new server and model: the tokenizer of the one before remembers the texts."""
    from agentsys.trainers.loading import folder_of

    latency = Latency(a_token=args.token_ms / 1000, sigma=args.sigma)
    with serving(Loopback(reply, folder_of(args.tokenizer), latency, slots)) as url:
        one = argparse.Namespace(**{**vars(args), "trees": 1, "depth": 1})
        measure(url, "collect", one, slots, 0)  # imports, tokenizer
        return measure(url, schedule, args, slots, simulations)


def plot(found: Mapping[str, Measured], slots: int, file: Path) -> None:
    """Requests that the server works on, over time, a panel for each schedule."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 1.8 * len(found)), layout="constrained")
    panels: Any = figure.subplots(len(found), 1, sharex=True, sharey=True, squeeze=False)
    for axes, (schedule, run) in zip(panels[:, 0], found.items(), strict=True):
        axes.fill_between(*in_flight(run.served), step="post", linewidth=0)
        axes.axhline(slots, color="grey", linewidth=0.8, linestyle="--")
        axes.set_ylim(0, 1.15 * slots)
        axes.set_title(f"{schedule}: {run.seconds:.0f} s", loc="left", fontsize=10)
    figure.supylabel("requests in flight")
    figure.supxlabel(f"seconds ({slots} slots)")
    figure.savefig(file, dpi=110)


def in_flight(served: Sequence[Served]) -> tuple[list[float], list[int]]:
    """Moments since the first request, and how many are in slots from each on."""
    begin = min(entry.came for entry in served)
    changes = sorted(
        [(entry.started - begin, 1) for entry in served] + [(entry.answered - begin, -1) for entry in served]
    )
    return [at for at, _ in changes], list(accumulate(change for _, change in changes))


if __name__ == "__main__":
    main()
