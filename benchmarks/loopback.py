"""A server process on loopback that speaks like vLLM: what the benchmarks of tree search measure against.

It answers a request when an engine would: it has so many slots, requests beyond them wait in its queue in the order in
which they came, and in a slot a request takes its latency, which depends on nothing but the request. So every client
meets the same latencies, and those that keep the slots full are done first. It writes down when each request came, got
its slot and was answered.
"""

from __future__ import annotations

import asyncio
import multiprocessing
import random
import urllib.request
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from multiprocessing.connection import Connection
from typing import Any

import orjson

Encode = Callable[[str], list[int]]
Reply = Callable[[dict[str, Any], Encode], dict[str, Any]]
"""From a request's body, and a function from text to token ids, to the completion's only choice."""


@dataclass(frozen=True)
class Latency:
    """Seconds that a request takes in its slot: `fixed`, and `a_token` for each token written.

    With `sigma` the latter are multiplied by a log-normal number of mean 1, which belongs to the request's bytes.
    """

    fixed: float = 0.0
    a_token: float = 0.0
    sigma: float = 0.0

    def of(self, body: bytes, tokens: int) -> float:
        """Seconds for a request whose reply has so many tokens."""
        factor = random.Random(body).lognormvariate(-(self.sigma**2) / 2, self.sigma) if self.sigma else 1.0
        return self.fixed + self.a_token * tokens * factor


@dataclass(frozen=True, slots=True)
class Served:
    """What the server wrote down of a request. Times in seconds by the server's clock; `latency` as it was drawn."""

    seed: int | None
    prompt_tokens: int
    latency: float
    came: float
    started: float
    answered: float


@dataclass(frozen=True)
class Loopback:
    """What the server does: replies, with the tokenizer of a model folder, latencies, slots (None: no limit)."""

    reply: Reply
    folder: str
    latency: Latency
    slots: int | None = None


class Engine:
    """The slots, the queue and the log."""

    def __init__(self, plan: Loopback, encode: Encode) -> None:
        self.plan, self.encode = plan, encode
        self.log: list[Served] = []
        self._queue: deque[tuple[Served, Callable[[], None]]] = deque()
        self._busy = 0

    def take(self, body: bytes, send: Callable[[Any], None]) -> None:
        """A request: `send` is called with the answer when it is due."""
        loop = asyncio.get_running_loop()
        came = loop.time()
        asked = orjson.loads(body)
        choice = self.plan.reply(asked, self.encode)
        sizes = {"prompt_tokens": len(asked["prompt"]), "completion_tokens": len(choice["token_ids"])}
        latency = self.plan.latency.of(body, sizes["completion_tokens"])
        entry = Served(asked.get("seed"), sizes["prompt_tokens"], latency, came, 0.0, 0.0)
        self._queue.append((entry, lambda: send({"choices": [choice], "usage": sizes})))
        self._start()

    def _start(self) -> None:
        slots, loop = self.plan.slots, asyncio.get_running_loop()
        while self._queue and (slots is None or self._busy < slots):
            entry, answer = self._queue.popleft()
            self._busy += 1
            loop.call_later(entry.latency, self._finish, replace(entry, started=loop.time()), answer)

    def _finish(self, entry: Served, answer: Callable[[], None]) -> None:
        self._busy -= 1
        self._start()
        self.log.append(replace(entry, answered=asyncio.get_running_loop().time()))
        answer()


class Protocol(asyncio.Protocol):
    """Just enough HTTP/1.1 and just enough of vLLM; /log gives the log and begins a new one."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self.buffer = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport: Any = transport

    def data_received(self, data: bytes) -> None:
        self.buffer += data
        while (end := self.buffer.find(b"\r\n\r\n")) >= 0:
            head = self.buffer[:end].lower()
            start = head.find(b"content-length:")
            length = int(head[start + 15 :].split(b"\r\n")[0]) if start >= 0 else 0
            if len(self.buffer) < end + 4 + length:
                return
            body, self.buffer = self.buffer[end + 4 : end + 4 + length], self.buffer[end + 4 + length :]
            if body:
                self.engine.take(body, self.write)
            elif head.startswith(b"get /log"):
                self.write(self.engine.log)
                self.engine.log = []
            else:
                self.write({"data": [{"id": "m", "owned_by": "vllm", "root": self.engine.plan.folder}]})

    def write(self, answer: Any) -> None:
        data = orjson.dumps(answer)
        head = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n" % len(data)
        self.transport.write(head + data)


def serve(plan: Loopback, ready: Connection) -> None:
    """The server process; tells its port when it listens."""
    import uvloop
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(f"{plan.folder}/tokenizer.json")

    def encode(text: str) -> list[int]:
        return list(tokenizer.encode(text, add_special_tokens=False).ids)

    async def main() -> None:
        engine = Engine(plan, encode)
        server = await asyncio.get_running_loop().create_server(lambda: Protocol(engine), "127.0.0.1", 0)
        ready.send(server.sockets[0].getsockname()[1])
        await server.serve_forever()

    uvloop.run(main())


@contextmanager
def serving(plan: Loopback) -> Iterator[str]:
    """A server in a process of its own; its URL. `plan.reply` is a function of a module."""
    spawn = multiprocessing.get_context("spawn")
    here, there = spawn.Pipe()
    process = spawn.Process(target=serve, args=(plan, there), daemon=True)
    process.start()
    there.close()  # so that a server that does not start ends the wait
    try:
        yield f"http://127.0.0.1:{here.recv()}"
    finally:
        process.terminate()
        process.join()


def log_of(url: str) -> list[Served]:
    """What was served since the last look, in the order in which it was answered."""
    with urllib.request.urlopen(f"{url}/log") as answer:
        return [Served(**entry) for entry in orjson.loads(answer.read())]
