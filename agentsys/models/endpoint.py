"""HTTP endpoints: addresses that share the load, a limit on requests in flight, and retries."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import random
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

import orjson
from tenacity import AsyncRetrying, RetryCallState, retry_if_exception_type, stop_after_attempt

from agentsys.display import say
from agentsys.models import faults
from agentsys.models.access import Access, mask_key, proxy_of
from agentsys.models.adapt import Adaptation
from agentsys.models.errors import EndpointDown, ModelError, Refused
from agentsys.models.faults import RequestRefused, ServerError
from agentsys.models.fields import BadReply
from agentsys.models.rate import RateLimit
from agentsys.models.reading import MAX_BYTES, MAX_ERROR_BYTES, NotJSON, TooLarge, parse_json, read_body, read_events
from agentsys.models.retry import RetryPolicy, parse_retry_after
from agentsys.models.secrets import SecretFilter

if TYPE_CHECKING:
    import aiohttp

__all__ = ["DEFAULT_IN_FLIGHT", "Endpoint", "RetryPolicy", "mask_key"]

DEFAULT_IN_FLIGHT: Final = 64
"""Default limit of requests in flight per address."""
COOLDOWN_SECONDS: Final = 10.0
"""Seconds for which an address that failed is used only if all others have failed too."""
RUN_FAULTS: Final = 3
"""Requests in a row that a server refuses for good (its key, its route) until the run ends."""
LONG_WAIT: Final = 30.0
"""A server's Retry-After in seconds above which the wait is announced, once."""
_WAIT: Final = "Retry-After"
_LOG: Final = logging.getLogger(__name__)
MAX_MASKED: Final = 2**20
"""Largest reply in bytes in which a key is masked."""


class _RetryableError(Exception):
    """A failure that a retry may fix.

    `retry_after` is the server's Retry-After in seconds; `refused` means that the connection failed; `error` is what
    the server said, if every other request would fail too.
    """

    def __init__(
        self,
        reason: str,
        *,
        retry_after: float | None = None,
        refused: bool = False,
        error: ServerError | None = None,
    ) -> None:
        super().__init__(reason)
        self.retry_after = retry_after
        self.refused = refused
        self.error = error


@dataclass(slots=True)
class _LoopState:
    """Session and request limit of one event loop."""

    loop: asyncio.AbstractEventLoop
    session: aiohttp.ClientSession
    limit: asyncio.Semaphore
    rate: RateLimit | None
    proxies: dict[str, str | None]
    """The proxy of each address."""
    secrets: SecretFilter


@dataclass
class Endpoint:
    """An HTTP server, or several that serve the same model, with one limit on requests in flight.

    `addresses` are base URLs without the `/v1`; one that ends with a slash is used as it is, without `/v1`. Each
    request goes to the address with the fewest requests in flight; a retry goes to another address if there is one.
    `max_bytes` bounds a reply.
    """

    addresses: list[str]
    in_flight: int = DEFAULT_IN_FLIGHT
    timeout: float = 600.0
    retry: RetryPolicy = field(default_factory=RetryPolicy)
    access: Access = field(default_factory=Access)
    max_bytes: int = MAX_BYTES
    requests_per_minute: int | None = None
    tokens_per_minute: int | None = None
    _busy: dict[str, int] = field(default_factory=dict)
    _failed: dict[str, float] = field(default_factory=dict)
    _cooling: dict[str, float] = field(default_factory=dict)
    _faults: int = 0
    adaptations: dict[str, Adaptation] = field(default_factory=dict)
    """What each model of the server refuses; see models.attempt."""
    _said: set[str] = field(default_factory=set)
    _state: _LoopState | None = None

    def _loop_state(self) -> _LoopState:
        """Return the state of the running loop: a program may call asyncio.run more than once."""
        loop = asyncio.get_running_loop()
        if self._state is None or self._state.loop is not loop:
            import aiohttp

            headers = self.access.read_headers()
            session = aiohttp.ClientSession(
                connector=aiohttp.TCPConnector(limit=0, ttl_dns_cache=300),
                timeout=aiohttp.ClientTimeout(total=self.timeout, sock_connect=10),
                headers={"Accept-Encoding": "identity", **headers},
                auto_decompress=False,  # models.reading unpacks with a bound
            )
            limits = (self.requests_per_minute, self.tokens_per_minute)
            self._state = _LoopState(
                loop,
                session,
                asyncio.Semaphore(self.in_flight * len(self.addresses)),
                RateLimit(*limits) if any(limits) else None,
                {address: proxy_of(address) for address in self.addresses},
                SecretFilter(value.removeprefix("Bearer ") for value in headers.values()),
            )
        return self._state

    def set_in_flight(self, in_flight: int) -> None:
        """Set the maximum number of requests in flight per address; requests already sent are not counted."""
        self.in_flight = in_flight
        if self._state is not None:
            self._state.limit = asyncio.Semaphore(in_flight * len(self.addresses))

    @contextlib.asynccontextmanager
    async def paused(self) -> AsyncIterator[None]:
        """Wait for the requests in flight; others are sent only after the block. Not for two tasks at once."""
        limit = self._loop_state().limit
        async with contextlib.AsyncExitStack() as stack:
            for _ in range(self.in_flight * len(self.addresses)):
                await stack.enter_async_context(limit)
            yield

    def say(self, text: str) -> None:
        """Print a line about this endpoint on stderr, once."""
        if text not in self._said:
            self._said.add(text)
            say(f"{self.addresses[0]}: {mask_key(text)}")

    async def get(self, route: str) -> Any:
        """Return the JSON at a route, or None if the server has no such route."""
        return await self._with_retries(lambda address: self._fetch_json(address, route, None, None))

    async def post(
        self,
        route: str,
        body: Mapping[str, Any],
        measured: dict[str, Any] | None = None,
        parse: Callable[[Any], Any] | None = None,
    ) -> Any:
        """Send a request and return the JSON response, or what `parse` makes of it; a BadReply of `parse` is retried.

        Fills `measured` with address, retries and seconds. Raises RequestRefused if the server refuses this request,
        Refused if it would refuse every other too, EndpointDown if no server is reachable, else ModelError.
        """
        data = orjson.dumps(body)
        state = self._loop_state()
        async with state.limit:
            entry = await state.rate.reserve(len(data)) if state.rate else None
            reply = await self._with_retries(lambda address: self._fetch_json(address, route, data, parse), measured)
            if state.rate and entry:
                state.rate.settle(entry, reply)
            return reply

    async def stream(
        self, route: str, body: Mapping[str, Any], measured: dict[str, Any]
    ) -> AsyncIterator[dict[str, Any]]:
        """Yield the events of a server-sent event stream. Retries only until the first of them. Raises as `post`."""
        data = orjson.dumps(body)
        state = self._loop_state()
        async with state.limit:
            if state.rate:
                await state.rate.reserve(len(data))
            response, events, first = await self._with_retries(
                lambda address: self._open_stream(address, route, data), measured
            )
            address = f"{measured['address']}{route}"
            try:
                yield self._mask(first)
                async for event in events:
                    if error := faults.error_in_reply(event):
                        raise self._final_error(address, error)
                    yield self._mask(event)
            except TooLarge as err:
                raise ModelError(f"{address}: {err}") from None
            except (TimeoutError, OSError, NotJSON, _client_error()) as err:
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
            if self._cooling and not record["retries"]:
                await self._wait_until_cool(address)
            self._busy[address] = self._busy.get(address, 0) + 1
            started = time.perf_counter()
            try:
                result = await send(address)
                self._faults = 0
                return result
            except _RetryableError as err:
                refused.add(address) if err.refused else refused.clear()
                self._note_failure(address, err)
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
            if err.error is not None and (tries == 1 or err.error.is_certain()):
                raise Refused(f"{record['address']}: {err}; {err.error.fix()}") from None
            raise ModelError(f"{record['address']}: {err} (tried {tries} times)") from None

    def _note_failure(self, address: str, err: _RetryableError) -> None:
        """Remember a failure for later requests. Raises Refused after several refusals of the same kind in a row."""
        now = time.monotonic()
        self._failed[address] = now
        _LOG.debug("%s: a request failed: %s", address, mask_key(str(err)))
        if err.retry_after is not None:
            seconds = min(err.retry_after, 10 * self.retry.longest)
            self._cooling[address] = max(self._cooling.get(address, 0.0), now + seconds)
            if seconds > LONG_WAIT and _WAIT not in self._said:
                self._said.add(_WAIT)
                cut = f"; {seconds:.0f} s are waited, again at each retry" if err.retry_after > seconds else ""
                self.say(f"the server asks to wait {err.retry_after:,.0f} s before the next request{cut}")
        if err.error is not None:
            self._faults += 1
            if self._faults >= RUN_FAULTS:
                raise Refused(f"{address}: {err}; {err.error.fix()}") from None

    async def _wait_until_cool(self, address: str) -> None:
        """Wait as long as the server asked another request to."""
        seconds = self._cooling.get(address, 0.0) - time.monotonic()
        if seconds > 0:
            await asyncio.sleep(seconds + random.uniform(0, min(self.retry.first, seconds)))
        else:
            self._cooling.pop(address, None)

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
        if len(self.addresses) == 1:
            return self.addresses[0]
        now = time.monotonic()
        return min(
            self.addresses,
            key=lambda a: (
                self._cooling.get(a, 0.0) > now,
                a == avoid,
                self._failed.get(a, -COOLDOWN_SECONDS) > now - COOLDOWN_SECONDS,
                self._busy.get(a, 0),
            ),
        )

    async def _fetch_json(
        self, address: str, route: str, data: bytes | None, parse: Callable[[Any], Any] | None
    ) -> Any:
        response = await self._open(address, route, data)
        raw = b""
        try:
            if response.status == 404 and data is None:
                return None
            raw = await read_body(response, self.max_bytes)
            body = self._mask(parse_json(raw), raw)
            if data is not None and (error := faults.error_in_reply(body)):
                self._raise_for(f"{address}{route}", error, None)
            return body if parse is None else parse(body)
        except NotJSON:
            excerpt = mask_key(raw[:4000].decode(errors="replace"))[:80]
            raise _RetryableError(f"the reply is not JSON: {excerpt!r}") from None
        except BadReply as err:
            raise _RetryableError(str(err)) from None
        except TooLarge as err:
            response.close()
            raise ModelError(f"{address}{route}: {err}") from None
        except (TimeoutError, OSError) as err:
            raise _RetryableError(_short_message(err)) from None
        except _client_error() as err:
            raise _RetryableError(_short_message(err)) from None
        finally:
            response.release()

    def _mask(self, body: Any, raw: bytes | None = None) -> Any:
        """A reply's JSON with *** in place of this server's key, which some servers repeat.

        Raises ModelError if the reply has tokens too, which cannot be masked.
        """
        secrets = self._loop_state().secrets
        if not secrets:
            return body
        raw = orjson.dumps(body) if raw is None else raw
        if not secrets.may_be_in(raw):
            return body
        if len(raw) > MAX_MASKED:  # a second for each megabyte
            raise ModelError(f"{self.addresses[0]}: a reply of {len(raw):,} bytes repeats the API key; not recorded")
        if (masked := secrets.mask(body)) == body:
            return body
        self.say("a reply repeats the API key: *** is in its place")
        if faults.has_tokens(body):
            raise ModelError(f"{self.addresses[0]}: a reply repeats the API key in its tokens; it is not recorded")
        return masked

    async def _open_stream(
        self, address: str, route: str, data: bytes
    ) -> tuple[aiohttp.ClientResponse, AsyncIterator[Any], Any]:
        """Open a stream and read its first event."""
        response = await self._open(address, route, data)
        events = read_events(response, self.max_bytes)
        try:
            first = await anext(events)
            if error := faults.error_in_reply(first):
                self._raise_for(f"{address}{route}", error, None)
            return response, events, first
        except StopAsyncIteration:
            response.close()
            raise _RetryableError("the stream ended before the reply was finished") from None
        except (NotJSON, TooLarge) as err:
            response.close()
            raise _RetryableError(f"the reply is no stream: {err}") from None
        except (TimeoutError, OSError, _client_error()) as err:
            response.close()
            raise _RetryableError(_short_message(err)) from None
        except BaseException:
            response.close()
            raise

    async def _open(self, address: str, route: str, data: bytes | None) -> aiohttp.ClientResponse:
        import aiohttp

        state = self._loop_state()
        headers = {"Content-Type": "application/json"} if data is not None else None
        method = "GET" if data is None else "POST"
        url = _url(address, route) + self.access.query_string()
        try:
            response = await state.session.request(
                method, url, data=data, headers=headers, allow_redirects=False, proxy=state.proxies[address]
            )
        except (aiohttp.ClientConnectorError, aiohttp.ConnectionTimeoutError) as err:
            if faults.is_out_of_files(err):
                raise _out_of_files() from None
            raise _RetryableError(_short_message(err), refused=True) from None
        except (TimeoutError, aiohttp.ClientError, OSError) as err:
            if faults.is_out_of_files(err):
                raise _out_of_files() from None
            raise _RetryableError(_short_message(err)) from None
        if response.status == 200 or (response.status == 404 and data is None):
            return response
        try:
            raw = await read_body(response, MAX_ERROR_BYTES, cut=True)
        except (NotJSON, TimeoutError, aiohttp.ClientError, OSError) as err:
            raw = _short_message(err).encode()
        response.close() if len(raw) >= MAX_ERROR_BYTES else response.release()
        seconds = parse_retry_after(response.headers.get("Retry-After"))
        self._raise_for(f"{address}{route}", faults.error_of_status(response.status, raw), seconds)
        raise AssertionError  # unreachable: the line above raises

    def _raise_for(self, url: str, error: ServerError, retry_after: float | None) -> None:
        """Raise what a server's error means."""
        owner = error.owner(has_retry_after=retry_after is not None)
        if owner == "request":
            raise RequestRefused(f"{url}: {error.text}", error)
        raise _RetryableError(error.text, retry_after=retry_after, error=error if owner == "run" else None)

    def _final_error(self, url: str, error: ServerError) -> ModelError:
        """The error of a stream that is under way, where nothing can be retried."""
        if error.owner() == "run":
            return Refused(f"{url}: {error.text}; {error.fix()}")
        return RequestRefused(f"{url}: {error.text}", error)

    async def aclose(self) -> None:
        """Close the connections of the running loop."""
        if self._state is not None and self._state.loop is asyncio.get_running_loop():
            await self._state.session.close()
            self._state = None


def _url(address: str, route: str) -> str:
    return address + route.removeprefix("/v1").lstrip("/") if address.endswith("/") else address + route


def _out_of_files() -> Refused:
    return Refused(
        "this process has no file descriptor left for another connection: lower --in-flight, or raise `ulimit -n`"
    )


def _client_error() -> type[Exception]:
    import aiohttp

    return aiohttp.ClientError


def _short_message(err: BaseException) -> str:
    return mask_key((str(err) or type(err).__name__).replace("\n", " "))[:200]
