"""Client CPU per call of collect, graph, role and HTTP, with a loopback server that answers immediately.

    python benchmarks/overhead.py [--calls 4000] [--in-flight 256] [--spans]

The server runs in its own process. CPU is that of the client process (user and system), so that the numbers do not
depend on the speed of the server. Every client sends the same messages. Rows:
  bare aiohttp      consecutive POSTs in as many tasks as requests in flight, with orjson
  asyncio loop      the DRT loop in plain asyncio over bare aiohttp: no graph, no role, no trace
  LangGraph loop    the same loop as a LangGraph graph over bare aiohttp
  collect           graphs/drt/system.py through agentsys.collect, with cache and traces
  ChatOpenAI        langchain-openai, ainvoke in as many tasks as requests in flight
With --spans, OpenTelemetry's SDK makes and batches the spans of `collect` (docs/telemetry.md) and drops them.
"""

from __future__ import annotations

import argparse
import asyncio
import cProfile
import multiprocessing
import os
import platform
import pstats
import socket
import statistics
import tempfile
import time
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from typing import Any

import orjson

KEYWORDS = '{"keywords": [{"word": "the", "translation": "B"}]}'
MESSAGES = [
    {"role": "system", "content": "You are a literary translator from English into Chinese. " * 6},
    {"role": "user", "content": "The old clock in the hall coughed twice, like a butler with bad news. " * 2},
]
ROUNDS = 3
CALLS_PER_RECORD = 2 + 3 * ROUNDS + 2


def reply_to(body: bytes) -> bytes:
    """Return a chat completion that matches the request: keywords, a score, or a text."""
    number = hash(body) % 1000
    text = f"a translation {number}"
    if b'"Keywords"' in body:
        text = KEYWORDS
    elif b'"Evaluation"' in body:
        text = f'{{"reason": "fine", "score": {number % 80}}}'
    usage = {"prompt_tokens": 120, "completion_tokens": 12, "total_tokens": 132}
    choice = {"index": 0, "message": {"role": "assistant", "content": text}, "finish_reason": "stop"}
    return orjson.dumps(
        {"id": "x", "object": "chat.completion", "created": 1, "model": "m", "choices": [choice], "usage": usage}
    )


class Server(asyncio.Protocol):
    """The part of HTTP/1.1 that is needed to answer immediately."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport: Any = transport
        self.buffer = b""

    def data_received(self, data: bytes) -> None:
        self.buffer += data
        while (end := self.buffer.find(b"\r\n\r\n")) >= 0:
            head = self.buffer[:end].lower()
            start = head.find(b"content-length:")
            length = int(head[start + 15 :].split(b"\r\n")[0]) if start >= 0 else 0
            if len(self.buffer) < end + 4 + length:
                return
            body, self.buffer = self.buffer[end + 4 : end + 4 + length], self.buffer[end + 4 + length :]
            answer = reply_to(body) if body else orjson.dumps({"data": [{"id": "m", "owned_by": "bench"}]})
            self.transport.write(
                b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n%b"
                % (len(answer), answer)
            )


def serve(port: int) -> None:
    """Run the server process."""
    import uvloop

    async def main() -> None:
        server = await asyncio.get_running_loop().create_server(Server, "127.0.0.1", port)
        await server.serve_forever()

    uvloop.run(main())


async def run_parallel(work: Callable[[], Awaitable[Any]], times: int, width: int) -> None:
    """Call `work` `times` times, `width` calls in parallel."""
    turns = iter(range(times))

    async def worker() -> None:
        for _ in turns:
            await work()

    await asyncio.gather(*(worker() for _ in range(width)))


async def run_bare(url: str, calls: int, width: int) -> int:
    import aiohttp

    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0)) as session:
        await run_parallel(lambda: post(session, url, MESSAGES), calls, width)
    return calls


async def post(session: Any, url: str, messages: list[dict[str, Any]], **extra: Any) -> str:
    body = orjson.dumps({"model": "m", "messages": messages, "temperature": 0.7, "max_tokens": 400, **extra})
    async with session.post(
        f"{url}/v1/chat/completions", data=body, headers={"Content-Type": "application/json"}
    ) as reply:
        return str(orjson.loads(await reply.read())["choices"][0]["message"]["content"])


async def run_asyncio_loop(url: str, calls: int, width: int) -> int:
    """Make DRT's calls in plain asyncio."""
    import aiohttp

    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0)) as session:

        async def record() -> None:
            await post(session, url, MESSAGES)
            draft = await post(session, url, MESSAGES)
            dialogue = [*MESSAGES]
            for _ in range(ROUNDS + 1):
                feedback = await post(session, url, MESSAGES)
                await post(session, url, MESSAGES)
                dialogue += [{"role": "assistant", "content": draft}, {"role": "user", "content": feedback}]
                draft = await post(session, url, dialogue) if _ < ROUNDS else draft

        await run_parallel(record, calls // CALLS_PER_RECORD, width)
    return calls // CALLS_PER_RECORD * CALLS_PER_RECORD


async def run_langgraph_loop(url: str, calls: int, width: int) -> int:
    """Make the same calls in a LangGraph graph whose nodes post with bare aiohttp."""
    import aiohttp
    from langgraph.graph import END, START, StateGraph
    from typing_extensions import TypedDict

    class State(TypedDict, total=False):
        text: str
        draft: str
        feedback: str
        rounds: int

    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0)) as session:

        async def ask(state: State) -> dict[str, Any]:
            return {"draft": await post(session, url, MESSAGES), "rounds": state.get("rounds", 0) + 1}

        async def advise(state: State) -> dict[str, Any]:
            return {"feedback": await post(session, url, MESSAGES)}

        builder = StateGraph(State)
        for name, node in (
            ("keywords", ask),
            ("draft", ask),
            ("advise", advise),
            ("evaluate", advise),
            ("refine", ask),
        ):
            builder.add_node(name, node)
        builder.add_edge(START, "keywords")
        builder.add_edge("keywords", "draft")
        builder.add_edge("draft", "advise")
        builder.add_edge("advise", "evaluate")
        builder.add_conditional_edges(
            "evaluate", lambda s: END if s["rounds"] >= ROUNDS + 2 else "refine", ["refine", END]
        )
        builder.add_edge("refine", "advise")
        graph = builder.compile()
        await run_parallel(
            lambda: graph.ainvoke({"text": "x"}, {"recursion_limit": 100}), calls // CALLS_PER_RECORD, width
        )
    return calls // CALLS_PER_RECORD * CALLS_PER_RECORD


async def run_collect(url: str, calls: int, width: int, *, cached: bool = True) -> int:
    from agentsys.collect import RunOptions, acollect
    from agentsys.collect.runner import _rare_garbage_collection
    from agentsys.graphs.drt.system import Context, graph

    records = [{"text": f"{i}: {MESSAGES[1]['content']}"} for i in range(calls // CALLS_PER_RECORD)]
    with tempfile.TemporaryDirectory() as folder:
        options = RunOptions(in_flight=width, cache=Path(folder) / "cache.sqlite", no_cache=not cached)
        context = Context(model=f"{url}/v1", score="stated", threshold=100, max_rounds=ROUNDS, min_steps=99)
        with _rare_garbage_collection():  # as `collect` does
            summary = await acollect(graph, records, Path(folder) / "out", context=context, options=options)
    assert summary.dropped == len(records), summary
    return summary.calls


async def run_chat_openai(url: str, calls: int, width: int) -> int:
    from langchain_openai import ChatOpenAI

    model = ChatOpenAI(base_url=f"{url}/v1", api_key="none", model="m", max_retries=0)  # type: ignore[arg-type]
    await run_parallel(lambda: model.ainvoke(MESSAGES), calls, width)
    return calls


CLIENTS = {
    "bare aiohttp": run_bare,
    "asyncio loop": run_asyncio_loop,
    "LangGraph loop": run_langgraph_loop,
    "collect": run_collect,
    "ChatOpenAI": run_chat_openai,
}


def measure(client: Callable[[str, int, int], Awaitable[int]], url: str, calls: int, width: int) -> tuple[float, float]:
    """Return CPU ms per call and calls per second."""
    import uvloop

    async def timed() -> tuple[int, float, float]:
        cpu, wall = time.process_time(), time.perf_counter()
        done = await client(url, calls, width)
        return done, time.process_time() - cpu, time.perf_counter() - wall

    done, cpu, wall = uvloop.run(timed())
    return 1000 * cpu / done, done / wall


def record_spans() -> None:
    """Set a tracer provider whose exporter does nothing."""
    from opentelemetry import trace
    from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
    from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter, SpanExportResult

    class Nowhere(SpanExporter):
        def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
            return SpanExportResult.SUCCESS

    provider = TracerProvider()
    provider.add_span_processor(BatchSpanProcessor(Nowhere()))
    trace.set_tracer_provider(provider)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--calls", type=int, default=4000, help="calls per measurement")
    parser.add_argument("--in-flight", type=int, default=256)
    parser.add_argument("--repeats", type=int, default=3, help="interleaved repeats; the table shows medians")
    parser.add_argument("--spans", action="store_true", help="record OpenTelemetry spans of collect")
    parser.add_argument("--profile", action="store_true", help="profile collect")
    args = parser.parse_args()
    if args.spans:
        record_spans()
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    server = multiprocessing.get_context("spawn").Process(target=serve, args=(port,), daemon=True)
    server.start()
    time.sleep(1.5)
    url = f"http://127.0.0.1:{port}"
    if args.profile:
        profile = cProfile.Profile()
        measure(run_collect, url, 500, args.in_flight)
        profile.runcall(measure, run_collect, url, args.calls, args.in_flight)
        pstats.Stats(profile).sort_stats("tottime").print_stats(45)
        return
    results: dict[str, list[tuple[float, float]]] = {name: [] for name in CLIENTS}
    for client in CLIENTS.values():
        measure(client, url, 400, args.in_flight)  # warms up imports and connections
    for _ in range(args.repeats):
        for name, client in CLIENTS.items():
            results[name].append(measure(client, url, args.calls, args.in_flight))
    print(
        f"{args.calls} calls, {args.in_flight} in flight, median of {args.repeats}; "
        f"Python {platform.python_version()}, {os.cpu_count()} cores, load before {os.getloadavg()[0]:.1f}"
    )
    print("| client | CPU ms per call | calls/s |\n|---|---|---|")
    for name, runs in results.items():
        cpu, rate = (statistics.median(values) for values in zip(*runs, strict=True))
        print(f"| {name} | {cpu:.2f} | {rate:,.0f} |")
    server.terminate()


if __name__ == "__main__":
    main()
