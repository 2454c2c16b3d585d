"""HTTP endpoints: addresses that share the load, a limit on requests in flight, and retries."""

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
"""Default limit of requests in flight per address."""
COOLDOWN_SECONDS: Final = 10.0
"""Seconds for which an address that failed is used only if all others have failed too."""
RETRYABLE_STATUSES: Final = frozenset({408, 429, *range(500, 600)})
"""Retryable HTTP statuses: timeouts, rate limits and server errors."""


_MAX_LINE_BYTES: Final = 2**24
"""Longest line of a stream in bytes: vLLM's first line holds the ids of the whole prompt."""


class _RetryableError(Exception):
    """A failure that a retry may fix.

    `retry_after` is the server's Retry-After in seconds; `refused` means that the connection failed.
    """

    def __init__(self, reason: str, *, retry_after: float | None = None, refused: bool = False) -> None:
        super().__init__(reason)
        self.retry_after = retry_after
        self.refused = refused


@dataclass(frozen=True, slots=True)
class RetryPolicy:
    """Exponential backoff with full jitter: the n-th wait is random in 0 .. first * 2^n seconds, at most `longest`."""

    attempts: int = 6
    first: float = 0.5
    longest: float = 30.0


@dataclass(slots=True)
class _LoopState:
    """Session and request limit of one event loop."""

    loop: asyncio.AbstractEventLoop
    session: aiohttp.ClientSession
    limit: asyncio.Semaphore


@dataclass
class Endpoint:
    """An HTTP server, or several that serve the same model, with one limit on requests in flight.

    `addresses` are base URLs without the `/v1`. Each request goes to the address with the fewest requests in flight;
    a retry goes to another address if there is one.
    """

    addresses: list[str]
    in_flight: int = DEFAULT_IN_FLIGHT
    timeout: float = 600.0
    retry: RetryPolicy = field(default_factory=RetryPolicy)
    _busy: dict[str, int] = field(default_factory=dict)
    _failed: dict[str, float] = field(default_factory=dict)
    _state: _LoopState | None = None

    def _loop_state(self) -> _LoopState:
        """Return the state of the running loop: a program may call asyncio.run more than once."""
        loop = asyncio.get_running_loop()
        if self._state is None or self._state.loop is not loop:
            import aiohttp

            session = aiohttp.ClientSession(
                connector=aiohttp.TCPConnector(limit=0, ttl_dns_cache=300),
                read_bufsize=_MAX_LINE_BYTES // 2,  # aiohttp rejects lines longer than twice this size
                timeout=aiohttp.ClientTimeout(total=self.timeout, sock_connect=10),
                headers=_authorization(),
            )
            self._state = _LoopState(loop, session, asyncio.Semaphore(self.in_flight * len(self.addresses)))
        return self._state

    def set_in_flight(self, in_flight: int) -> None:
        """Set the maximum number of requests in flight per address; requests already sent are not counted."""
        self.in_flight = in_flight
        if self._state is not None:
            self._state.limit = asyncio.Semaphore(in_flight * len(self.addresses))

    async def get(self, route: str) -> Any:
        """Return the JSON at a route, or None if the server has no such route."""
        return await self._with_retries(lambda address: self._fetch_json(address, route, None))

    async def post(self, route: str, body: Mapping[str, Any], measured: dict[str, Any] | None = None) -> Any:
        """Send a request and return the JSON response.

        Fills `measured` with address, retries and seconds. Raises ModelError if the server refuses the request,
        EndpointDown if no server is reachable.
        """
        data = orjson.dumps(body)
        async with self._loop_state().limit:
            return await self._with_retries(lambda address: self._fetch_json(address, route, data), measured)

    async def stream(
        self, route: str, body: Mapping[str, Any], measured: dict[str, Any]
    ) -> AsyncIterator[dict[str, Any]]:
        """Yield the events of a server-sent event stream. Retries only until the stream is open."""
        data = orjson.dumps(body)
        async with self._loop_state().limit:
            response = await self._with_retries(lambda address: self._open(address, route, data), measured)
            try:
                async for line in response.content:
                    if line.startswith(b"data: ") and not line.startswith(b"data: [DONE]"):
                        yield orjson.loads(line[6:])
            except (TimeoutError, OSError, ValueError, _client_error()) as err:
                raise ModelError(f"{measured['address']}: the stream ended early: {_short_message(err)}") from None
            finally:
                response.close()

    async def _with_retries(self, send: Callable[[str], Awaitable[Any]], measured: dict[str, Any] | None = None) -> Any:
        """Return the result of `send` at some address, with retries; tenacity is used only after a first failure."""
        record: dict[str, Any] = {} if measured is None else measured
        record |= {"retries": 0, "address": ""}
        refused: set[str] = set()  # addresses that refused the connection since one last accepted it

        async def attempt() -> Any:
            address = record["address"] = self._choose_address(avoid=record["address"])
            self._busy[address] = self._busy.get(address, 0) + 1
            started = time.perf_counter()
            try:
                return await send(address)
            except _RetryableError as err:
                refused.add(address) if err.refused else refused.clear()
                self._failed[address] = time.monotonic()
                raise
            finally:
                self._busy[address] -= 1
                record["seconds"] = round(time.perf_counter() - started, 4)

        try:
            try:
                return await attempt()
            except _RetryableError as err:
                if self.retry.attempts == 1:
                    raise
                if len(self.addresses) == 1 or err.retry_after is not None:
                    await asyncio.sleep(self._backoff_seconds(1, err))
            retrying = AsyncRetrying(
                stop=stop_after_attempt(self.retry.attempts - 1),
                wait=self._wait,
                retry=retry_if_exception_type(_RetryableError),
                before=lambda state: record.update(retries=state.attempt_number),
                reraise=True,
            )
            return await retrying(attempt)
        except _RetryableError as err:
            tries = record["retries"] + 1
            if err.refused and refused == set(self.addresses):
                raise EndpointDown(f"no server is reachable at {', '.join(self.addresses)}: {err}") from None
            raise ModelError(f"{record['address']}: {err} (tried {tries} times)") from None

    def _wait(self, state: RetryCallState) -> float:
        error = state.outcome.exception() if state.outcome else None
        return self._backoff_seconds(state.attempt_number + 1, error)

    def _backoff_seconds(self, retry: int, error: BaseException | None) -> float:
        """Return the wait before the n-th retry; a Retry-After gets jitter so that clients do not return together."""
        backoff = random.uniform(0, min(self.retry.longest, self.retry.first * 2**retry))
        after = error.retry_after if isinstance(error, _RetryableError) else None
        return backoff if after is None else min(after, 10 * self.retry.longest) + min(backoff, self.retry.first)

    def _choose_address(self, avoid: str) -> str:
        """Return the address with the fewest requests in flight; `avoid` and those that failed recently come last."""
        recently = time.monotonic() - COOLDOWN_SECONDS
        return min(
            self.addresses, key=lambda a: (a == avoid, self._failed.get(a, 0.0) > recently, self._busy.get(a, 0))
        )

    async def _fetch_json(self, address: str, route: str, data: bytes | None) -> Any:
        response = await self._open(address, route, data)
        try:
            if response.status == 404 and data is None:
                return None
            body = await response.read()
            return orjson.loads(body)
        except orjson.JSONDecodeError:
            excerpt = mask_key(body[:80].decode(errors="replace"))
            raise _RetryableError(f"the reply is not JSON: {excerpt!r}") from None
        except (TimeoutError, OSError) as err:
            raise _RetryableError(_short_message(err)) from None
        except _client_error() as err:
            raise _RetryableError(_short_message(err)) from None
        finally:
            response.release()

    async def _open(self, address: str, route: str, data: bytes | None) -> aiohttp.ClientResponse:
        import aiohttp

        session = self._loop_state().session
        headers = {"Content-Type": "application/json"} if data is not None else None
        method = "GET" if data is None else "POST"
        try:
            response = await session.request(method, address + route, data=data, headers=headers, allow_redirects=False)
        except (aiohttp.ClientConnectorError, aiohttp.ConnectionTimeoutError) as err:
            raise _RetryableError(_short_message(err), refused=True) from None
        except (TimeoutError, aiohttp.ClientError, OSError) as err:
            raise _RetryableError(_short_message(err)) from None
        if response.status == 200 or (response.status == 404 and data is None):
            return response
        try:
            text = mask_key((await response.text(errors="replace")).replace("\n", " "))[:300]
        except (TimeoutError, aiohttp.ClientError, OSError) as err:
            text = _short_message(err)
        response.release()
        if response.status in RETRYABLE_STATUSES:
            seconds = _parse_retry_after(response.headers.get("Retry-After"))
            raise _RetryableError(f"status {response.status}: {text}", retry_after=seconds)
        raise ModelError(f"{address}{route}: status {response.status}: {text}")

    async def aclose(self) -> None:
        """Close the connections of the running loop."""
        if self._state is not None and self._state.loop is asyncio.get_running_loop():
            await self._state.session.close()
            self._state = None


def _authorization() -> dict[str, str]:
    """Return the header with the API key, which comes from the environment and is used nowhere else."""
    key = os.environ.get("AGENTSYS_API_KEY")
    return {"Authorization": f"Bearer {key}"} if key else {}


def mask_key(text: str) -> str:
    """Replace the API key in a server's text: some servers repeat it in their error messages."""
    key = os.environ.get("AGENTSYS_API_KEY")
    return text.replace(key, "***") if key else text


def _client_error() -> type[Exception]:
    import aiohttp

    return aiohttp.ClientError


def _parse_retry_after(header: str | None) -> float | None:
    """Return the seconds of a Retry-After header (a number or an HTTP date), or None."""
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


def _short_message(err: BaseException) -> str:
    return (str(err) or type(err).__name__).replace("\n", " ")[:200]
