"""Engine utilization by collect: tokens per second, compared with a plain load generator on the same requests.

    python benchmarks/saturation.py embedded:qwen2.5-coder-0.5b --in-flight 4
    VLLM_SERVER_DEV_MODE=1 python benchmarks/saturation.py vllm:FOLDER --in-flight 16

In each pair, collect runs records through a graph of three consecutive calls (DRT's advisor), then a load generator
posts the same requests (prompt ids, sampling, seeds) with the same number in flight, in any order. Each side starts
with a cold prefix cache: the embedded engine is restarted, vLLM's cache is reset. Every second pair runs in the
opposite order. Start-up is not counted; the tail at the end is.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import orjson
from langgraph.graph import END, START, StateGraph
from langgraph.runtime import Runtime
from typing_extensions import TypedDict

from agentsys.collect import RunOptions, acollect
from agentsys.graphs.drt.system import Context
from agentsys.models import load_model, wire
from agentsys.roles import Role
from agentsys.systems import ask
from agentsys.traces import read_traces

SUBJECTS = ("clock", "letter", "harbour", "widow", "lawyer", "kettle", "winter", "road", "violin", "orchard")
IMAGES = ("a butler with bad news", "a coin nobody dares to spend", "a child let out of school", "an old coat")
MAX_TOKENS = 32
CALLS = 3
ADVISOR: Role[str] = Role("drt/advisor", allow_truncated=True, sampling={"max_tokens": MAX_TOKENS})


class State(TypedDict, total=False):
    text: str
    rounds: int


async def advise(state: State, runtime: Runtime[Context]) -> State:
    """Make one call; every round shows the advisor another translation."""
    rounds = state.get("rounds", 0)
    inputs = {"text": state["text"], "translation": f"译文 {rounds}", **runtime.context.languages}
    await ask(runtime.context, ADVISOR, key=f"advise/{rounds}", **inputs)
    return {"rounds": rounds + 1}


def build_chain() -> Any:
    """Return a graph of CALLS consecutive calls."""
    builder = StateGraph(State, context_schema=Context)
    builder.add_node("advise", advise)
    builder.add_edge(START, "advise")
    builder.add_conditional_edges("advise", lambda s: END if s["rounds"] == CALLS else "advise", ["advise", END])
    return builder.compile(name="chain")


def make_records(count: int) -> list[dict[str, str]]:
    """Return different sentences of about the same length."""
    return [
        {"text": f"In chapter {i} the {SUBJECTS[i % 10]} came into the room like {IMAGES[i // 10 % 4]}, {i} times."}
        for i in range(count)
    ]


async def run_collect(spec: str, records: int, width: int, requests: Path) -> dict[str, float]:
    """Run collect and write its requests to a file."""
    model: Any = load_model(spec)
    served = await model.engine.serve()
    await reset_prefix_cache(served)
    with tempfile.TemporaryDirectory() as folder:
        context = Context(model=spec)
        options = RunOptions(in_flight=width, cache=Path(folder) / "cache.sqlite")
        started = time.perf_counter()
        out = Path(folder) / "out"
        summary = await acollect(build_chain(), make_records(records), out, context=context, options=options)
        seconds = time.perf_counter() - started
        traces = list(read_traces(out))
        lines = [{"ids": c.prompt_ids, "sampling": c.sampling, "seed": c.seed} for t in traces for c in t.calls]
    requests.write_bytes(orjson.dumps(lines))
    return {"tokens": summary.completion_tokens, "seconds": seconds, "calls": summary.calls}


async def run_replay(spec: str, width: int, requests: Path) -> dict[str, float]:
    """Post the recorded requests with bare aiohttp."""
    import aiohttp

    model: Any = load_model(spec)
    served = await model.engine.serve()
    await reset_prefix_cache(served)
    tokens = 0
    entries = iter(orjson.loads(requests.read_bytes()))

    async def worker(session: aiohttp.ClientSession) -> None:
        nonlocal tokens
        for entry in entries:
            sampling = {**entry["sampling"], "seed": entry["seed"]}
            request = wire.Request(sampling, [], entry["ids"])
            route, body = wire.build_payload(request, served.dialect, served.model, stream=False)
            async with session.post(
                served.endpoint.addresses[0] + route, data=orjson.dumps(body), headers=JSON
            ) as answer:
                tokens += wire.parse_reply(orjson.loads(await answer.read()), request).completion_tokens

    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0)) as session:
        started = time.perf_counter()
        await asyncio.gather(*(worker(session) for _ in range(width)))
        seconds = time.perf_counter() - started
    await served.endpoint.aclose()
    return {"tokens": tokens, "seconds": seconds}


JSON = {"Content-Type": "application/json"}


async def reset_prefix_cache(served: Any) -> None:
    """Reset vLLM's prefix cache (in its development mode); the embedded engine is new in each process."""
    if served.dialect == "vllm":
        import aiohttp

        url = served.endpoint.addresses[0] + "/reset_prefix_cache"
        async with aiohttp.ClientSession() as session, session.post(url) as answer:
            assert answer.status == 200, "start vLLM with VLLM_SERVER_DEV_MODE=1"


def run_side(side: str, spec: str, args: argparse.Namespace, requests: Path) -> dict[str, float]:
    """Run one side in its own process, so that the embedded engine is new."""
    command = [sys.executable, __file__, spec, "--side", side, "--requests", str(requests)]
    command += ["--records", str(args.records), "--in-flight", str(args.in_flight)]
    done = subprocess.run(command, stdout=subprocess.PIPE, check=True, text=True)
    return dict(json.loads(done.stdout.splitlines()[-1]))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("spec", help="embedded:NAME?slots=N, http://... or vllm:FOLDER")
    parser.add_argument("--in-flight", type=int, default=4)
    parser.add_argument("--records", type=int, help="default: 8 times --in-flight")
    parser.add_argument("--pairs", type=int, default=5)
    parser.add_argument("--side", choices=["collect", "replay"], help=argparse.SUPPRESS)
    parser.add_argument("--requests", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    args.records = args.records or 8 * args.in_flight
    if args.side:
        work = run_collect(args.spec, args.records, args.in_flight, args.requests) if args.side == "collect" else None
        print(json.dumps(asyncio.run(work or run_replay(args.spec, args.in_flight, args.requests))))
        return
    asyncio.run(measure_pairs(args))


async def measure_pairs(args: argparse.Namespace) -> None:
    """Start a child server once, then measure the pairs."""
    model: Any = load_model(args.spec)
    spec, child = args.spec, args.spec.startswith("vllm:")
    if child:
        served = await model.engine.serve()
        spec = f"{served.endpoint.addresses[0]}/v1"
    print(
        f"{args.spec}, {args.in_flight} in flight, {args.records} records of {CALLS} calls, "
        f"at most {MAX_TOKENS} tokens each; "
        f"{os.cpu_count()} cores, Python {platform.python_version()}, load before {os.getloadavg()[0]:.1f}"
    )
    print("| pair | collect tokens/s | generator tokens/s | ratio |\n|---|---|---|---|")
    ratios = []
    with tempfile.TemporaryDirectory() as folder:
        requests = Path(folder) / "requests.json"
        if args.pairs > 1:
            run_side("collect", spec, args, requests)  # the requests for a pair that starts with the generator
        for pair in range(args.pairs):
            order = ("collect", "replay") if pair % 2 == 0 else ("replay", "collect")
            results = {side: run_side(side, spec, args, requests) for side in order}
            rates = {side: result["tokens"] / result["seconds"] for side, result in results.items()}
            ratios.append(rates["collect"] / rates["replay"])
            print(f"| {pair + 1} | {rates['collect']:.1f} | {rates['replay']:.1f} | {ratios[-1]:.3f} |", flush=True)
    print(f"median ratio {statistics.median(ratios):.3f}, min {min(ratios):.3f}, max {max(ratios):.3f}")
    if child:
        await model.aclose()


if __name__ == "__main__":
    main()
