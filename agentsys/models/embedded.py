"""The embedded engine: llama.cpp inside this process."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import os
import sys
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any, Final, TypeVar

from agentsys.display import say
from agentsys.installation import install_command
from agentsys.models import weights
from agentsys.models.endpoint import Endpoint
from agentsys.models.engines import LoopLock, RemoteEngine, ServedModel
from agentsys.models.errors import EndpointDown, SpecError
from agentsys.models.load import measure_other_load

T = TypeVar("T")

EMBEDDED_SLOTS: Final = 4
"""Sequences that the embedded engine generates in parallel."""
EMBEDDED_CONTEXT: Final = 8192
"""Context length in tokens of each sequence."""
BUSY_CORES: Final = 0.6
"""Cores that other processes use above which the engine leaves them one."""


@dataclass
class EmbeddedEngine:
    """llama.cpp inside this process, serving on loopback. It lives until the process ends, as a start takes seconds."""

    weights: str
    slots: int = EMBEDDED_SLOTS
    context: int = EMBEDDED_CONTEXT
    _remote: RemoteEngine | None = None
    _server: Any = None
    _lock: LoopLock = field(default_factory=LoopLock)

    async def serve(self) -> ServedModel:
        """Locate the weights and start the server, once per process. Raises EndpointDown."""
        if self._remote is None:
            async with self._lock():
                if self._remote is None:
                    self._remote = await _run_in_daemon(self._start)
        return await self._remote.serve()

    @property
    def capacity(self) -> int:
        """Sequences that the engine generates in parallel."""
        return self.slots

    @property
    def records_per_request(self) -> float:
        """Records in progress per slot: one record for two cores, so that the other slots keep prompts.

        On two cores several sequences at once are not faster, but the roles of several records drive each other's
        prompts out of the slots: one record in progress read 45 % fewer prompt tokens than four (DRT, three records),
        and the first record is finished much sooner.
        """
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        return min(max(cores // 2, 1), self.slots) / self.slots

    def set_in_flight(self, in_flight: int) -> None:
        """Do nothing: the limit is the number of slots, and further requests would only queue in the engine."""

    def _start(self) -> RemoteEngine:
        try:
            path = weights.find(self.weights)
        except weights.WeightsError as err:
            raise EndpointDown(str(err)) from None
        server = self._server = _start_llamacpp(str(path), self.slots, self.context)  # kept alive by this engine
        entry = weights.CATALOG.get(self.weights)
        revision = entry.sha256[:16] if entry else _file_revision(path)
        endpoint = Endpoint([server.listening_address], in_flight=self.slots, timeout=1800)
        return RemoteEngine(endpoint, name=entry.name if entry else path.stem, revision=revision)

    async def aclose(self) -> None:
        """Close the connections; the engine stays up for the next run in this process."""
        if self._remote is not None:
            await self._remote.aclose()


def leave_at_once(code: int) -> None:
    """End this process if llama.cpp was started in it, without waiting for it.

    Its threads load or compute to the end of their work, for seconds to minutes, and may crash at the exit of Python.
    """
    if _is_started:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


_is_started = False


async def _run_in_daemon(work: Callable[[], T]) -> T:
    """The result of `work` in a thread that the end of the loop or of the process does not wait for."""
    global _is_started
    _is_started = True
    loop = asyncio.get_running_loop()
    future: asyncio.Future[T] = loop.create_future()

    def finish(set_result: Callable[[Any], None], value: Any) -> None:
        if not future.done():
            set_result(value)

    def run() -> None:
        try:
            set_result, value = future.set_result, work()
        except BaseException as err:
            set_result, value = future.set_exception, err  # type: ignore[assignment]
        with contextlib.suppress(RuntimeError):  # the loop is closed
            loop.call_soon_threadsafe(finish, set_result, value)

    threading.Thread(target=run, name="embedded-engine", daemon=True).start()
    return await future


@lru_cache(maxsize=4)
def _file_revision(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()[:16]


def _llamacpp_threads() -> int | None:
    """Threads of the embedded engine: $LLAMA_ARG_THREADS, as in llama.cpp's own commands, or the cores that this
    process may use if those are not all. None: llama.cpp's default, which counts all cores. Raises SpecError.
    """
    if threads := os.environ.get("LLAMA_ARG_THREADS", ""):
        if not threads.isdecimal() or int(threads) < 1:
            raise SpecError(f"LLAMA_ARG_THREADS={threads}: give a number of threads")
        return int(threads)
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else None
    return _leave_core() if cores == os.cpu_count() else cores


def _leave_core() -> int | None:
    """One thread less than cores if other processes use a core or most of one; None if they do not.

    llama.cpp's threads wait for each other after every operation. One that shares its core holds up all of them: beside
    one busy process, two threads on two cores generate half as much as one thread.
    """
    cores = os.cpu_count() or 1
    load = measure_other_load() if cores > 1 else None
    if load is None or load < BUSY_CORES:
        return None
    say(
        f"other processes use {load:.1f} of {cores} cores: the embedded engine starts with {cores - 1} "
        f"thread{'s' * (cores > 2)} (LLAMA_ARG_THREADS={cores} uses all cores)"
    )
    return cores - 1


@lru_cache(maxsize=4)
def _start_llamacpp(path: str, slots: int, context: int) -> Any:
    try:
        from xllamacpp import CommonParams, Server
    except ImportError:
        raise EndpointDown(f"the embedded engine is not installed: {install_command('local,weights')}") from None
    params = CommonParams()
    params.model.path = path
    params.n_parallel = slots
    params.n_ctx = slots * context
    params.kv_unified = False
    params.cpuparams.poll = params.cpuparams_batch.poll = 0  # without OpenMP, waiting threads sleep and do not poll
    if threads := _llamacpp_threads():
        params.cpuparams.n_threads = params.cpuparams_batch.n_threads = threads
    params.verbosity = -1
    try:
        return Server(params)
    except RuntimeError:  # it says no more than that it failed
        size = Path(path).stat().st_size
        raise EndpointDown(
            f"llama.cpp cannot load {path} ({size:,} bytes): the file is truncated or of an unknown architecture, or "
            f"{slots} slots of {context} tokens need too much memory; download it again, or lower slots and context"
        ) from None
