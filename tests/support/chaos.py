"""A server on loopback that answers chat requests for DRT, and breaks a share of its replies in every way."""

from __future__ import annotations

import asyncio
import gzip
import json
import random
import re
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final, Self
from zlib import crc32

ROLES: Final = ("keywords", "draft", "advisor", "evaluator", "refiner", "narrator")
LIMIT: Final = 2**20
"""Bytes of a reply that a client should accept. The server sends more than that, if the client reads it."""


TEXTS: Final = dict.fromkeys(ROLES, "{{ text }}") | {
    "advisor": "{{ text }} {{ translation }}",
    "evaluator": "{{ text }} {{ translation }}",
    "refiner": "{{ text }}{% for step in steps %} {{ step.translation }}{% endfor %}",
    "narrator": "{{ text }}{% for step in steps %} {{ step.translation }}{% endfor %} decision {{ decision }}",
}
PROMPTS: Final = {f"{role}_prompt": f"# user\nYou are the {role}. {text}" for role, text in TEXTS.items()}
"""Short prompts for DRT's roles, by option. Each begins with the name of the role, which the server reads."""


def reply_to(body: Mapping[str, Any]) -> str:
    """A reply that DRT can use and that depends only on the request."""
    request = body["messages"][-1]["content"]
    number = crc32(json.dumps(body, sort_keys=True).encode())
    role = request.split()[3].rstrip(".")
    if role == "keywords":
        return '{"keywords": [{"word": "lamp", "translation": "灯"}]}'
    if role == "evaluator":
        return json.dumps({"reason": "so", "score": 40 + number % 60})
    if role == "advisor":
        return 'The word "译文" is stiff; write "翻译" instead.'
    if role == "narrator":
        marks = [f"I try ⟦{i}⟧." for i in range(1, request.count("译文") + 1)]
        return "\n\n".join(["I begin.", *marks, "It is good.", f"So ⟦{request.split()[-1]}⟧"])
    return f"译文{number}"


def chat_reply(text: str, **more: Any) -> dict[str, Any]:
    """The JSON of a chat completion; `more` goes into its choice."""
    return {"choices": [{"index": 0, "message": {"content": text}, "finish_reason": "stop", **more}]}


def response(status: int, body: bytes, *headers: str, length: int | None = None) -> bytes:
    """The bytes of a response, with a Content-Length that may be wrong."""
    lines = [f"HTTP/1.1 {status} X", f"Content-Length: {len(body) if length is None else length}", *headers]
    if not any(header.startswith("Content-Type") for header in headers):
        lines.append("Content-Type: application/json")
    return "\r\n".join([*lines, "", ""]).encode() + body


def _nan_logprobs(text: str) -> bytes:
    entries = [{"token": char, "logprob": float("nan"), "top_logprobs": []} for char in text]
    return json.dumps(chat_reply(text, logprobs={"content": entries})).encode()


def _json(value: Any) -> Callable[[str, bytes], bytes]:
    return lambda text, good: response(200, json.dumps(value).encode())


WHOLE: Final[dict[str, Callable[[str, bytes], bytes]]] = {
    "429": lambda text, good: response(429, b'{"error": "slow down"}'),
    "429 now": lambda text, good: response(429, b"{}", "Retry-After: 0"),
    "429 soon": lambda text, good: response(429, b"{}", "Retry-After: 0.02"),
    "429 odd": lambda text, good: response(429, b"{}", "Retry-After: soon"),
    "429 past": lambda text, good: response(429, b"{}", "Retry-After: Wed, 21 Oct 2015 07:28:00 GMT"),
    "408": lambda text, good: response(408, b""),
    "500": lambda text, good: response(500, b'{"error": {"message": "out of memory"}}'),
    "502": lambda text, good: response(502, b"<html>bad gateway</html>", "Content-Type: text/html"),
    "503": lambda text, good: response(503, b"busy", "Content-Type: text/plain; charset=hex"),
    "cut JSON": lambda text, good: response(200, good[: len(good) // 2]),
    "HTML": lambda text, good: response(200, b"<html>please log in</html>", "Content-Type: text/html"),
    "not UTF-8": lambda text, good: response(200, b'{"choices": [{"message": {"content": "\xff\xfe\xc3"}}]}'),
    "no body": lambda text, good: response(200, b""),
    "204": lambda text, good: b"HTTP/1.1 204 X\r\n\r\n",
    "error as 200": _json({"error": {"message": "overloaded", "code": 503}}),
    "null": _json(None),
    "list": _json([]),
    "no choices": _json({"choices": []}),
    "null choices": _json({"choices": None}),
    "choice of a number": _json({"choices": [3]}),
    "content of a number": _json({"choices": [{"message": {"content": 5}, "finish_reason": "stop"}]}),
    "not gzip": lambda text, good: response(200, good, "Content-Encoding: gzip"),
    "not known": lambda text, good: response(200, good, "Content-Encoding: br"),
    "length too small": lambda text, good: response(200, good, length=len(good) // 2),
}
"""Faults that are bytes of a response: the client must try again."""

HARMLESS: Final[dict[str, Callable[[str, bytes], bytes]]] = {
    "NaN": lambda text, good: response(200, _nan_logprobs(text)),
    "odd counts": lambda text, good: response(
        200, json.dumps(chat_reply(text) | {"usage": {"prompt_tokens": -5}}).encode()
    ),
    "other type": lambda text, good: response(200, good, "Content-Type: text/html; charset=foo"),
    "gzip": lambda text, good: response(200, gzip.compress(good), "Content-Encoding: gzip"),
    "byte order mark": lambda text, good: response(200, b"\xef\xbb\xbf" + good),
    "twice": lambda text, good: response(200, good) * 2,
}
"""Odd responses that hold the reply: the client must take it, and nothing else of them."""

BROKEN: Final = ("reset", "closed", "cut", "cut chunks", "bad chunk", "noise", "huge header", "stalled")
"""Faults of the connection: the client must try again."""

FINAL: Final = ("endless", "gzip bomb")
"""Replies above the client's limit, which end the record."""

SLOW: Final = "slow drip"
"""A reply in small pieces."""

KINDS: Final = (*WHOLE, *HARMLESS, *BROKEN, *FINAL, SLOW)


@dataclass
class ChaosServer:
    """Answers with a fault for a share `rate` of the requests, all kinds equally often; `seed` fixes which come when.

    `replies` counts what was sent, by kind.
    """

    rate: float = 0.0
    seed: int = 0
    replies: Counter[str] = field(default_factory=Counter)
    address: str = ""

    async def __aenter__(self) -> Self:
        self._random = random.Random(self.seed)
        self._deck: list[str] = []
        self._bomb = gzip.compress(bytes(8 * LIMIT))
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0, limit=2**24)
        self.address = f"http://127.0.0.1:{self._server.sockets[0].getsockname()[1]}/v1"
        return self

    async def __aexit__(self, *exc: object) -> None:
        self._server.close()

    def _choose(self) -> str:
        if self._random.random() >= self.rate:
            return "good"
        if not self._deck:
            self._deck = self._random.sample(KINDS, len(KINDS))
        return self._deck.pop()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while await self._answer(reader, writer):
                await writer.drain()
        except (asyncio.IncompleteReadError, asyncio.CancelledError, ConnectionError):
            pass
        finally:
            writer.close()

    async def _answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        """Answer one request. Returns whether the connection stays open."""
        head = await reader.readuntil(b"\r\n\r\n")
        if head.startswith(b"GET"):
            writer.write(response(200, b'{"data": [{"id": "m"}]}'))
            return True
        size = re.search(rb"content-length: (\d+)", head.lower())
        assert size is not None, head
        text = reply_to(json.loads(await reader.readexactly(int(size[1]))))
        good = json.dumps(chat_reply(text)).encode()
        kind = self._choose()
        self.replies[kind] += 1
        if kind in BROKEN:
            await self._break(kind, good, writer)
            return False
        if kind == "endless":
            writer.write(b"HTTP/1.1 200 X\r\nTransfer-Encoding: chunked\r\n\r\n")
            while True:
                writer.write(b"10000\r\n" + b" " * 2**16 + b"\r\n")
                await writer.drain()
        if kind == SLOW:
            whole = response(200, good)
            for start in range(0, len(whole), 40):
                writer.write(whole[start : start + 40])
                await writer.drain()
                await asyncio.sleep(0.005)
        elif kind == "gzip bomb":
            writer.write(response(200, self._bomb, "Content-Encoding: gzip"))
        else:
            writer.write({**WHOLE, **HARMLESS}.get(kind, lambda text, good: response(200, good))(text, good))
        return kind != "length too small"

    async def _break(self, kind: str, good: bytes, writer: asyncio.StreamWriter) -> None:
        half = len(good) // 2
        chunk = b"HTTP/1.1 200 X\r\nTransfer-Encoding: chunked\r\n\r\n"
        data = {
            "cut": response(200, good)[:-half],
            "cut chunks": chunk + b"%x\r\n%b\r\n" % (half, good[:half]),
            "bad chunk": chunk + b"ZZZ\r\nabc\r\n",
            "noise": self._random.randbytes(200),
            "huge header": b"HTTP/1.1 200 X\r\nX-A: " + b"a" * 100_000 + b"\r\n\r\n",
        }.get(kind, b"")
        if data:
            writer.write(data)
            await writer.drain()
        if kind == "stalled":
            await asyncio.sleep(1.5)
        if kind != "closed":
            writer.transport.abort()
