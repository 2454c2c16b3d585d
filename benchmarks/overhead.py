"""Client CPU per call: collect, graph, role and HTTP, against a loopback server that answers at once.

    python benchmarks/overhead.py [--calls 4000] [--in-flight 256]

The server runs in a process of its own. CPU is the client process's own (user and system), so that the numbers do not
depend on how fast the server is. Every client sends the same messages. Rows:
  bare aiohttp      one POST after the other in as many tasks as are in flight, orjson both ways
  asyncio loop      the DRT loop written out in plain asyncio over bare aiohttp: no graph, no role, no trace
  LangGraph loop    the same loop as a LangGraph graph over bare aiohttp
  collect           graphs/drt/system.py through agentsys.collect: cache, traces and all
  ChatOpenAI        langchain-openai, ainvoke in as many tasks as are in flight
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
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import orjson

KEYWORDS = '{"keywords": [{"word": "the", "translation": "B"}]}'
MESSAGES = [
    {"role": "system", "content": "You are a literary translator from English into Chinese. " * 6},
    {"role": "user", "content": "The old clock in the hall coughed twice, like a butler with bad news. " * 2},
]
ROUNDS = 3
CALLS_A_RECORD = 2 + 3 * ROUNDS + 2


def reply_to(body: bytes) -> bytes:
    """A chat completion that fits the request: key words, a score, or a text."""
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
    """Just enough HTTP/1.1 to answer at once."""

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
    """The server process."""
    import uvloop

    async def main() -> None:
        server = await asyncio.get_running_loop().create_server(Server, "127.0.0.1", port)
        await server.serve_forever()

    uvloop.run(main())


async def in_parallel(work: Callable[[], Awaitable[Any]], times: int, width: int) -> None:
    """`times` times `work`, `width` at once."""
    left = iter(range(times))

    async def worker() -> None:
        for _ in left:
            await work()

    await asyncio.gather(*(worker() for _ in range(width)))


async def bare(url: str, calls: int, width: int) -> int:
    import aiohttp

    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0)) as session:
        await in_parallel(lambda: post(session, url, MESSAGES), calls, width)
    return calls


async def post(session: Any, url: str, messages: list[dict[str, Any]], **extra: Any) -> str:
    body = orjson.dumps({"model": "m", "messages": messages, "temperature": 0.7, "max_tokens": 400, **extra})
    async with session.post(
        f"{url}/v1/chat/completions", data=body, headers={"Content-Type": "application/json"}
    ) as reply:
        return str(orjson.loads(await reply.read())["choices"][0]["message"]["content"])


async def plain_loop(url: str, calls: int, width: int) -> int:
    """DRT's calls in plain asyncio."""
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

        await in_parallel(record, calls // CALLS_A_RECORD, width)
    return calls // CALLS_A_RECORD * CALLS_A_RECORD


async def langgraph_loop(url: str, calls: int, width: int) -> int:
    """The same as a LangGraph graph whose nodes post with bare aiohttp."""
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
        await in_parallel(
            lambda: graph.ainvoke({"text": "x"}, {"recursion_limit": 100}), calls // CALLS_A_RECORD, width
        )
    return calls // CALLS_A_RECORD * CALLS_A_RECORD


async def collected(url: str, calls: int, width: int, *, cached: bool = True) -> int:
    from agentsys.collect import RunOptions, acollect
    from agentsys.collect.runner import _rare_garbage_collection
    from agentsys.graphs.drt.system import Context, graph

    records = [{"text": f"{i}: {MESSAGES[1]['content']}"} for i in range(calls // CALLS_A_RECORD)]
    with tempfile.TemporaryDirectory() as folder:
        options = RunOptions(in_flight=width, cache=Path(folder) / "cache.sqlite", no_cache=not cached)
        context = Context(model=f"{url}/v1", score="stated", threshold=100, max_rounds=ROUNDS, min_steps=99)
        with _rare_garbage_collection():  # as `collect` does
            summary = await acollect(graph, records, Path(folder) / "out", context=context, options=options)
    assert summary.dropped == len(records), summary
    return summary.calls


async def chat_openai(url: str, calls: int, width: int) -> int:
    from langchain_openai import ChatOpenAI

    model = ChatOpenAI(base_url=f"{url}/v1", api_key="none", model="m", max_retries=0)  # type: ignore[arg-type]
    await in_parallel(lambda: model.ainvoke(MESSAGES), calls, width)
    return calls


CLIENTS = {
    "bare aiohttp": bare,
    "asyncio loop": plain_loop,
    "LangGraph loop": langgraph_loop,
    "collect": collected,
    "ChatOpenAI": chat_openai,
}


def measure(client: Callable[[str, int, int], Awaitable[int]], url: str, calls: int, width: int) -> tuple[float, float]:
    """CPU ms a call and calls a second."""
    import uvloop

    async def timed() -> tuple[int, float, float]:
        cpu, wall = time.process_time(), time.perf_counter()
        done = await client(url, calls, width)
        return done, time.process_time() - cpu, time.perf_counter() - wall

    done, cpu, wall = uvloop.run(timed())
    return 1000 * cpu / done, done / wall


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--calls", type=int, default=4000, help="calls of one measurement")
    parser.add_argument("--in-flight", type=int, default=256)
    parser.add_argument("--repeats", type=int, default=3, help="interleaved repeats; the table shows medians")
    parser.add_argument("--profile", action="store_true", help="say where collect's time goes")
    args = parser.parse_args()
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    server = multiprocessing.get_context("spawn").Process(target=serve, args=(port,), daemon=True)
    server.start()
    time.sleep(1.5)
    url = f"http://127.0.0.1:{port}"
    if args.profile:
        profile = cProfile.Profile()
        measure(collected, url, 500, args.in_flight)
        profile.runcall(measure, collected, url, args.calls, args.in_flight)
        pstats.Stats(profile).sort_stats("tottime").print_stats(45)
        return
    found: dict[str, list[tuple[float, float]]] = {name: [] for name in CLIENTS}
    for client in CLIENTS.values():
        measure(client, url, 400, args.in_flight)  # imports and connections
    for _ in range(args.repeats):
        for name, client in CLIENTS.items():
            found[name].append(measure(client, url, args.calls, args.in_flight))
    print(
        f"{args.calls} calls, {args.in_flight} in flight, median of {args.repeats}; "
        f"Python {platform.python_version()}, {os.cpu_count()} cores, load before {os.getloadavg()[0]:.1f}"
    )
    print("| client | CPU ms a call | calls/s |\n|---|---|---|")
    for name, runs in found.items():
        cpu, rate = (statistics.median(values) for values in zip(*runs, strict=True))
        print(f"| {name} | {cpu:.2f} | {rate:,.0f} |")
    server.terminate()


if __name__ == "__main__":
    main()
