"""A simulated vLLM server on loopback, in its own process, for the benchmarks of tree search.

It has a fixed number of slots; further requests wait in a queue, first in, first out. In a slot, a request takes its
latency, which depends only on the request. So all clients see the same latencies, and those that keep the slots full
finish first. The server logs when each request arrived, got its slot and was answered.
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
"""(body of a request, function from text to token ids) -> the only choice of the completion."""


@dataclass(frozen=True)
class Latency:
    """Seconds that a request takes in its slot: `fixed`, plus `per_token` for each generated token.

    With `sigma`, the latter is multiplied by a log-normal number of mean 1 that depends on the request's bytes.
    """

    fixed: float = 0.0
    per_token: float = 0.0
    sigma: float = 0.0

    def seconds(self, body: bytes, tokens: int) -> float:
        """Return the latency of a request whose reply has this many tokens."""
        factor = random.Random(body).lognormvariate(-(self.sigma**2) / 2, self.sigma) if self.sigma else 1.0
        return self.fixed + self.per_token * tokens * factor


@dataclass(frozen=True, slots=True)
class Served:
    """Log entry of a request. Times are in seconds of the server's clock."""

    seed: int | None
    prompt_tokens: int
    latency: float
    arrived: float
    started: float
    answered: float


@dataclass(frozen=True)
class Loopback:
    """Settings of the server: replies, model folder with the tokenizer, latency, slots (None: no limit)."""

    reply: Reply
    folder: str
    latency: Latency
    slots: int | None = None


class Engine:
    """Slots, queue and log of the server."""

    def __init__(self, settings: Loopback, encode: Encode) -> None:
        self.settings, self.encode = settings, encode
        self.log: list[Served] = []
        self._queue: deque[tuple[Served, Callable[[], None]]] = deque()
        self._busy = 0

    def handle(self, body: bytes, send: Callable[[Any], None]) -> None:
        """Queue a request; `send` is called with the answer after its latency."""
        loop = asyncio.get_running_loop()
        arrived = loop.time()
        request = orjson.loads(body)
        choice = self.settings.reply(request, self.encode)
        usage = {"prompt_tokens": len(request["prompt"]), "completion_tokens": len(choice["token_ids"])}
        latency = self.settings.latency.seconds(body, usage["completion_tokens"])
        entry = Served(request.get("seed"), usage["prompt_tokens"], latency, arrived, 0.0, 0.0)
        self._queue.append((entry, lambda: send({"choices": [choice], "usage": usage})))
        self._start_next()

    def _start_next(self) -> None:
        slots, loop = self.settings.slots, asyncio.get_running_loop()
        while self._queue and (slots is None or self._busy < slots):
            entry, answer = self._queue.popleft()
            self._busy += 1
            loop.call_later(entry.latency, self._finish, replace(entry, started=loop.time()), answer)

    def _finish(self, entry: Served, answer: Callable[[], None]) -> None:
        self._busy -= 1
        self._start_next()
        self.log.append(replace(entry, answered=asyncio.get_running_loop().time()))
        answer()


class Protocol(asyncio.Protocol):
    """The necessary parts of HTTP/1.1 and of vLLM's API; /log returns the log and clears it."""

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
                self.engine.handle(body, self.write)
            elif head.startswith(b"get /log"):
                self.write(self.engine.log)
                self.engine.log = []
            else:
                self.write({"data": [{"id": "m", "owned_by": "vllm", "root": self.engine.settings.folder}]})

    def write(self, answer: Any) -> None:
        data = orjson.dumps(answer)
        head = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n" % len(data)
        self.transport.write(head + data)


def serve(settings: Loopback, ready: Connection) -> None:
    """Run the server process; sends its port when it listens."""
    import uvloop
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(f"{settings.folder}/tokenizer.json")

    def encode(text: str) -> list[int]:
        return list(tokenizer.encode(text, add_special_tokens=False).ids)

    async def main() -> None:
        engine = Engine(settings, encode)
        server = await asyncio.get_running_loop().create_server(lambda: Protocol(engine), "127.0.0.1", 0)
        ready.send(server.sockets[0].getsockname()[1])
        await server.serve_forever()

    uvloop.run(main())


@contextmanager
def serving(settings: Loopback) -> Iterator[str]:
    """Start a server process and yield its URL. `settings.reply` must be a function of a module."""
    spawn = multiprocessing.get_context("spawn")
    receiver, sender = spawn.Pipe()
    process = spawn.Process(target=serve, args=(settings, sender), daemon=True)
    process.start()
    sender.close()  # a server that fails to start then ends the wait
    try:
        yield f"http://127.0.0.1:{receiver.recv()}"
    finally:
        process.terminate()
        process.join()


def read_log(url: str) -> list[Served]:
    """Return the requests answered since the last call, in the order of their answers."""
    with urllib.request.urlopen(f"{url}/log") as answer:
        return [Served(**entry) for entry in orjson.loads(answer.read())]
