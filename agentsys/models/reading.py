"""Reads what a server sends: bodies and event streams of bounded size, and JSON as real servers write it."""

from __future__ import annotations

import json
import zlib
from collections.abc import AsyncIterator, Iterator
from typing import TYPE_CHECKING, Any, Final

import orjson

if TYPE_CHECKING:
    import aiohttp

MAX_BYTES: Final = 64 * 2**20
"""Largest reply, error body or stream in bytes."""
MAX_ERROR_BYTES: Final = 2**18
"""Bytes that are read of an error body."""


class TooLarge(Exception):
    """A body is larger than the limit."""


class NotJSON(ValueError):
    """A body is not JSON."""


async def read_body(response: aiohttp.ClientResponse, limit: int = MAX_BYTES, *, cut: bool = False) -> bytes:
    """The body, decompressed. One above `limit` bytes raises TooLarge; with `cut`, only its beginning is returned."""
    encoding = response.headers.get("Content-Encoding", "")
    length = response.content_length
    if not encoding and length is not None and length <= limit:
        return await response.read()
    if length is not None and length > limit and not cut:
        raise TooLarge(f"the reply has {length:,} bytes, more than {limit:,}")
    body = bytearray()
    async for part in _decoded(response, encoding, limit):
        body += part
        if len(body) > limit:
            if cut:
                break
            raise TooLarge(f"the reply has more than {limit:,} bytes")
    return bytes(body[:limit])


async def _decoded(response: aiohttp.ClientResponse, encoding: str, limit: int) -> AsyncIterator[bytes]:
    """The parts of a body, decompressed, none of them above `limit` + 1 bytes. Raises NotJSON."""
    if encoding.lower() in ("", "identity"):
        async for part in response.content.iter_any():
            yield part
        return
    if encoding.lower() not in ("gzip", "x-gzip", "deflate"):
        raise NotJSON(f"the reply has the encoding {encoding[:20]!r}, which was not asked for")
    unpacker: Any = None
    async for part in response.content.iter_any():
        if unpacker is None:  # 32: zlib or gzip, told by the first bytes; -15: raw deflate, as some servers send it
            raw = encoding.lower() == "deflate" and part[:1] != b"\x78"
            unpacker = zlib.decompressobj(-15 if raw else 47)
        while part:
            try:
                yield unpacker.decompress(part, limit + 1)
            except zlib.error as err:
                raise NotJSON(f"the reply cannot be unpacked: {err}") from None
            part = unpacker.unconsumed_tail


def parse_json(raw: bytes) -> Any:
    """JSON with a byte order mark, NaN, Infinity or half characters accepted. Raises NotJSON."""
    try:
        return orjson.loads(raw)
    except orjson.JSONDecodeError:
        pass
    try:
        return _without_surrogates(json.loads(raw.decode("utf-8-sig")))
    except (ValueError, RecursionError) as err:
        raise NotJSON(f"not JSON: {err}") from None


def _without_surrogates(value: Any) -> Any:
    """The value with U+FFFD for half characters, which no file can hold."""
    if isinstance(value, str):
        return value.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    if isinstance(value, list):
        return [_without_surrogates(item) for item in value]
    if isinstance(value, dict):
        return {_without_surrogates(name): _without_surrogates(item) for name, item in value.items()}
    return value


class EventParser:
    """Splits a stream of server-sent events into their data, as the standard describes it and as servers send it.

    Accepted are LF, CRLF and CR, a missing space after the colon, comments, other fields, data of several lines, events
    without a blank line between them, lines of bare JSON, and llama.cpp's `error:` lines.
    """

    def __init__(self, limit: int = MAX_BYTES) -> None:
        self._limit = limit
        self._size = 0
        self._rest = bytearray()
        self._searched = 0
        self._data: list[bytes] = []
        self._started = self.done = False

    def feed(self, part: bytes) -> Iterator[Any]:
        """The JSON of each event that `part` completes. Raises TooLarge and NotJSON."""
        self._size += len(part)
        if self._size > self._limit:
            raise TooLarge(f"the stream has more than {self._limit:,} bytes")
        self._rest += part
        if not self._started and len(self._rest) >= 3:
            self._started = True
            if self._rest.startswith(b"\xef\xbb\xbf"):
                del self._rest[:3]
        if b"\n" not in part and b"\r" not in part:
            return
        lines = bytes(self._rest).replace(b"\r\n", b"\n")
        held = b""
        if lines.endswith(b"\r"):  # the next part may begin with its LF
            lines, held = lines[:-1], b"\r"
        *complete, rest = lines.replace(b"\r", b"\n").split(b"\n")
        self._rest = bytearray(rest + held)
        for line in complete:
            yield from self._add_line(line)

    def end(self) -> Iterator[Any]:
        """The JSON of an event that the end of the stream completes."""
        yield from self._add_line(bytes(self._rest).strip())
        yield from self._dispatch()

    def _add_line(self, line: bytes) -> Iterator[Any]:
        if not line.strip():
            yield from self._dispatch()
        elif line.startswith(b"data:"):
            data = line[5:].strip()
            if data == b"[DONE]":
                yield from self._dispatch()
                self.done = True
            elif self._data and data.startswith(b"{") and _is_json(b"\n".join(self._data)):
                yield from self._dispatch()  # a new event, without a blank line before it
                self._data = [data]
            elif not self.done:
                self._data.append(data)
        elif line.startswith(b"error:"):
            yield from self._dispatch()
            yield {"error": _error_value(line[6:].strip())}
        elif line.startswith(b"{"):
            yield from self._dispatch()
            yield parse_json(line)

    def _dispatch(self) -> Iterator[Any]:
        data, self._data = b"\n".join(self._data).strip(), []
        if data:
            yield parse_json(data)


def _is_json(data: bytes) -> bool:
    try:
        parse_json(data)
    except NotJSON:
        return False
    return True


def _error_value(raw: bytes) -> Any:
    try:
        return parse_json(raw)
    except NotJSON:
        return raw.decode(errors="replace")


async def read_events(response: aiohttp.ClientResponse, limit: int = MAX_BYTES) -> AsyncIterator[Any]:
    """The JSON of each event of a stream; a response that is no stream is one event. Raises TooLarge and NotJSON."""
    if response.content_type == "application/json":
        yield parse_json(await read_body(response, limit))
        return
    parser = EventParser(limit)
    async for part in _decoded(response, response.headers.get("Content-Encoding", ""), limit):
        for event in parser.feed(part):
            yield event
        if parser.done:
            return
    for event in parser.end():
        yield event
