"""One endpoint: its addresses, its limit on requests in flight, its retries, and what it says of its model."""

from __future__ import annotations

import asyncio
import os
import random
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

import orjson
from tenacity import AsyncRetrying, RetryCallState, retry_if_exception_type, stop_after_attempt

from agentsys.models.errors import EndpointDown, ModelError

if TYPE_CHECKING:
    import aiohttp

DEFAULT_IN_FLIGHT: Final = 64
"""Requests in flight per endpoint, unless the spec or the command says otherwise."""
FAILED_SECONDS: Final = 10.0
"""How long an address that failed is the last choice among several."""
RETRIED: Final = frozenset({408, 429, *range(500, 600)})
"""HTTP statuses worth another try: a time-out, too many requests, the server's faults. Any other is the request's."""


_LONGEST_LINE: Final = 2**24
"""Bytes of one line of a stream: vLLM's first one holds the ids of the whole prompt."""


class _Again(Exception):
    """A failure worth another try, with the server's Retry-After in seconds where it sent one."""

    def __init__(self, reason: str, *, after: float | None = None, refused: bool = False) -> None:
        super().__init__(reason)
        self.after = after
        self.refused = refused


@dataclass(frozen=True, slots=True)
class RetryPolicy:
    """Exponential backoff with full jitter: the n-th wait is random in 0 .. first * 2^n seconds, at most `longest`."""

    attempts: int = 6
    first: float = 0.5
    longest: float = 30.0


@dataclass(slots=True)
class _Live:
    """What belongs to one event loop."""

    loop: asyncio.AbstractEventLoop
    session: aiohttp.ClientSession
    limit: asyncio.Semaphore


@dataclass
class Endpoint:
    """An HTTP server, or several that serve the same model, behind one limit.

    `addresses` are base URLs without the `/v1`. Each request goes to the address with the fewest in flight; after a
    failed connection the next try takes another one.
    """

    addresses: list[str]
    in_flight: int = DEFAULT_IN_FLIGHT
    timeout: float = 600.0
    retry: RetryPolicy = field(default_factory=RetryPolicy)
    _busy: dict[str, int] = field(default_factory=dict)
    _failed: dict[str, float] = field(default_factory=dict)
    _live: _Live | None = None

    def _now(self) -> _Live:
        """The session and limit of the running loop: a program may call asyncio.run more than once."""
        loop = asyncio.get_running_loop()
        if self._live is None or self._live.loop is not loop:
            import aiohttp

            session = aiohttp.ClientSession(
                connector=aiohttp.TCPConnector(limit=0, ttl_dns_cache=300),
                read_bufsize=_LONGEST_LINE // 2,  # aiohttp refuses a line of more than twice that
                timeout=aiohttp.ClientTimeout(total=self.timeout, sock_connect=10),
                headers=_authorization(),
            )
            self._live = _Live(loop, session, asyncio.Semaphore(self.in_flight * len(self.addresses)))
        return self._live

    def set_in_flight(self, in_flight: int) -> None:
        """Change the limit; takes effect for the next event loop if requests are already under way."""
        self.in_flight = in_flight
        if self._live is not None:
            self._live.limit = asyncio.Semaphore(in_flight * len(self.addresses))

    async def get(self, route: str) -> Any:
        """The JSON at a route, or None if the server has no such route."""
        return await self._tried(lambda address: self._once(address, route, None))

    async def post(self, route: str, body: Mapping[str, Any], measured: dict[str, Any] | None = None) -> Any:
        """The JSON reply to a request. Raises ModelError for a refusal, EndpointDown if nobody answers."""
        data = orjson.dumps(body)
        live = self._now()
        async with live.limit:
            return await self._tried(lambda address: self._once(address, route, data), measured)

    async def stream(
        self, route: str, body: Mapping[str, Any], measured: dict[str, Any]
    ) -> AsyncIterator[dict[str, Any]]:
        """The pieces of a server-sent event stream. Retries until the stream is open, not after."""
        data = orjson.dumps(body)
        live = self._now()
        async with live.limit:
            opened = await self._tried(lambda address: self._open(address, route, data), measured)
            try:
                async for line in opened.content:
                    if line.startswith(b"data: ") and not line.startswith(b"data: [DONE]"):
                        yield orjson.loads(line[6:])
            except (TimeoutError, OSError, ValueError, _client_error()) as err:
                raise ModelError(f"{measured['address']}: the stream broke off: {_short(err)}") from None
            finally:
                opened.close()

    async def _tried(self, once: Callable[[str], Awaitable[Any]], measured: dict[str, Any] | None = None) -> Any:
        """The result of `once` at some address, with retries; a first try that succeeds costs no retry machinery."""
        record: dict[str, Any] = {} if measured is None else measured
        record |= {"retries": 0, "address": ""}
        refused: set[str] = set()  # addresses that have refused since one answered

        async def attempt() -> Any:
            address = record["address"] = self._pick(avoid=record["address"])
            self._busy[address] = self._busy.get(address, 0) + 1
            started = time.perf_counter()
            try:
                return await once(address)
            except _Again as err:
                refused.add(address) if err.refused else refused.clear()
                self._failed[address] = time.monotonic()
                raise
            finally:
                self._busy[address] -= 1
                record["seconds"] = round(time.perf_counter() - started, 4)

        try:
            try:
                return await attempt()
            except _Again as err:
                if self.retry.attempts == 1:
                    raise
                if len(self.addresses) == 1 or err.after is not None:
                    await asyncio.sleep(self._seconds_before(1, err))
            retrying = AsyncRetrying(
                stop=stop_after_attempt(self.retry.attempts - 1),
                wait=self._wait,
                retry=retry_if_exception_type(_Again),
                before=lambda state: record.update(retries=state.attempt_number),
                reraise=True,
            )
            return await retrying(attempt)
        except _Again as err:
            tries = record["retries"] + 1
            if err.refused and refused == set(self.addresses):
                raise EndpointDown(f"no server answers at {', '.join(self.addresses)}: {err}") from None
            raise ModelError(f"{record['address']}: {err} (tried {tries} times)") from None

    def _wait(self, state: RetryCallState) -> float:
        error = state.outcome.exception() if state.outcome else None
        return self._seconds_before(state.attempt_number + 1, error)

    def _seconds_before(self, retry: int, error: BaseException | None) -> float:
        """Backoff before the n-th retry; a Retry-After is honored, with jitter so that not all come at once."""
        backoff = random.uniform(0, min(self.retry.longest, self.retry.first * 2**retry))
        after = error.after if isinstance(error, _Again) else None
        return backoff if after is None else min(after, 10 * self.retry.longest) + min(backoff, self.retry.first)

    def _pick(self, avoid: str) -> str:
        """The address with the fewest in flight; last the one that has just failed, or any that failed lately."""
        lately = time.monotonic() - FAILED_SECONDS
        return min(self.addresses, key=lambda a: (a == avoid, self._failed.get(a, 0.0) > lately, self._busy.get(a, 0)))

    async def _once(self, address: str, route: str, data: bytes | None) -> Any:
        response = await self._open(address, route, data)
        try:
            if response.status == 404 and data is None:
                return None
            body = await response.read()
            return orjson.loads(body)
        except orjson.JSONDecodeError:
            start = without_key(body[:80].decode(errors="replace"))
            raise _Again(f"the reply is not JSON: {start!r}") from None
        except (TimeoutError, OSError) as err:
            raise _Again(_short(err)) from None
        except _client_error() as err:
            raise _Again(_short(err)) from None
        finally:
            response.release()

    async def _open(self, address: str, route: str, data: bytes | None) -> aiohttp.ClientResponse:
        import aiohttp

        session = self._now().session
        headers = {"Content-Type": "application/json"} if data is not None else None
        method = "GET" if data is None else "POST"
        try:
            response = await session.request(method, address + route, data=data, headers=headers, allow_redirects=False)
        except (aiohttp.ClientConnectorError, aiohttp.ConnectionTimeoutError) as err:
            raise _Again(_short(err), refused=True) from None
        except (TimeoutError, aiohttp.ClientError, OSError) as err:
            raise _Again(_short(err)) from None
        if response.status == 200 or (response.status == 404 and data is None):
            return response
        try:
            text = without_key((await response.text(errors="replace")).replace("\n", " "))[:300]
        except (TimeoutError, aiohttp.ClientError, OSError) as err:
            text = _short(err)
        response.release()
        if response.status in RETRIED:
            raise _Again(f"status {response.status}: {text}", after=_retry_after(response.headers.get("Retry-After")))
        raise ModelError(f"{address}{route}: status {response.status}: {text}")

    async def aclose(self) -> None:
        """Close the connections of the running loop."""
        if self._live is not None and self._live.loop is asyncio.get_running_loop():
            await self._live.session.close()
            self._live = None


def _authorization() -> dict[str, str]:
    """The key comes from the environment only, and goes nowhere but into this header."""
    key = os.environ.get("AGENTSYS_API_KEY")
    return {"Authorization": f"Bearer {key}"} if key else {}


def without_key(text: str) -> str:
    """Some servers repeat the key in what they say of it."""
    key = os.environ.get("AGENTSYS_API_KEY")
    return text.replace(key, "***") if key else text


def _client_error() -> type[Exception]:
    import aiohttp

    return aiohttp.ClientError


def _retry_after(header: str | None) -> float | None:
    """Seconds in a Retry-After header (a number, or an HTTP date)."""
    if header is None:
        return None
    try:
        return max(0.0, float(header))
    except ValueError:
        from email.utils import parsedate_to_datetime

        try:
            return max(0.0, parsedate_to_datetime(header).timestamp() - time.time())
        except ValueError:
            return None


def _short(err: BaseException) -> str:
    return (str(err) or type(err).__name__).replace("\n", " ")[:200]
