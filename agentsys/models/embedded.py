"""The embedded engine: llama.cpp inside this process."""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import hashlib
import os
import sys
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any, Final, TypeVar

from agentsys.display import note, say
from agentsys.installation import install_command
from agentsys.models import weights
from agentsys.models.endpoint import Endpoint
from agentsys.models.engines import LoopLock, RemoteEngine, ServedModel
from agentsys.models.errors import EndpointDown, SpecError
from agentsys.models.load import ThreadChoice, count_cores
from agentsys.models.vision import VISION, find_pair

T = TypeVar("T")

EMBEDDED_SLOTS: Final = 4
"""Sequences that the embedded engine generates in parallel."""
EMBEDDED_CONTEXT: Final = 8192
"""Context length in tokens of each sequence."""
DRAIN_SECONDS: Final = 60.0
"""Seconds to wait for the requests in flight before the engine changes its threads; else it tries again in minutes."""


@dataclass
class EmbeddedEngine:
    """llama.cpp inside this process, serving on loopback. It lives until the process ends, as a start takes seconds."""

    weights: str
    slots: int = EMBEDDED_SLOTS
    context: int = EMBEDDED_CONTEXT
    projector: str = ""
    """GGUF file with which the model takes pictures; a vision model of the catalog has its own."""
    _remote: RemoteEngine | None = None
    _server: LlamaServer | None = None
    _lock: LoopLock = field(default_factory=LoopLock)

    async def serve(self) -> ServedModel:
        """Locate the weights and start the server, once per process. Raises EndpointDown."""
        if self._remote is None:
            async with self._lock():
                if self._remote is None:
                    self._remote = await _run_in_daemon(self._start)
        elif not self._lock().locked() and self._server is not None and self._server.revise_threads():
            async with self._lock():
                await self._restart(self._server)
        return await self._remote.serve()

    async def _restart(self, server: LlamaServer) -> None:
        """Start the server again between two requests, with another number of threads."""
        try:
            async with asyncio.timeout(DRAIN_SECONDS) as limit, server.endpoint.paused():
                limit.reschedule(None)
                await _run_in_daemon(server.restart)
        except TimeoutError:
            server.keep_threads()

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
            path, projector = self._find_files()
        except weights.WeightsError as err:
            raise EndpointDown(str(err)) from None
        # kept alive by this engine
        server = self._server = _find_server(str(path), self.slots, self.context, str(projector or ""))
        note(f"the embedded engine runs {path.name}: {self.slots} sequences of {self.context} tokens")
        entry = weights.CATALOG.get(self.weights)
        revision = entry.sha256[:16] if entry else _file_revision(path)
        if projector is not None:
            revision = f"{revision}+{_file_revision(projector)}"
        name = self.weights if self.weights in VISION else entry.name if entry else path.stem
        return RemoteEngine(server.endpoint, name=name, revision=revision)

    def _find_files(self) -> tuple[Path, Path | None]:
        """The files of the model and of its projector, if it has one. Raises WeightsError."""
        if self.weights in VISION:
            path, projector = find_pair(self.weights)
            return path, weights.check_gguf(self.projector) if self.projector else projector
        return weights.find(self.weights), weights.check_gguf(self.projector) if self.projector else None

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

    context = contextvars.copy_context()  # what the engine says is in the log file of the run
    threading.Thread(target=context.run, args=(run,), name="embedded-engine", daemon=True).start()
    return await future


@lru_cache(maxsize=4)
def _file_revision(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()[:16]


class LlamaServer:
    """llama.cpp's server in this process. It starts again on its port when the load asks for other threads.

    llama.cpp cannot change them while it runs. A start takes 1 to 3 s, and what the slots hold of prompts is lost.
    """

    def __init__(self, path: str, slots: int, context: int, projector: str = "") -> None:
        """Start it. Raises EndpointDown, or SpecError for a wrong $LLAMA_ARG_THREADS."""
        self._settings = (path, slots, context, projector)
        self._threads = _read_threads()
        cores = count_cores()
        self._choice = ThreadChoice(cores) if self._threads is None and cores > 1 else None
        if self._choice is not None:
            self._choice.start()
            if self._choice.threads is not None:
                self._say("starts")
            self._threads = self._choice.threads
        self._server = _start_llamacpp(*self._settings, threads=self._threads)
        self.endpoint = Endpoint([self._server.listening_address], in_flight=slots, timeout=1800)

    def revise_threads(self) -> bool:
        """Whether the load of the last seconds asks for another number of threads, which `restart` takes."""
        return self._choice is not None and self._choice.revise()

    def keep_threads(self) -> None:
        """Take back what `revise_threads` chose."""
        if self._choice is not None:
            self._choice.take_back(self._threads)

    def restart(self) -> None:
        """Start with the threads that `revise_threads` chose, while no request is in flight. Raises EndpointDown."""
        assert self._choice is not None
        self._say("goes on")
        port = int(self.endpoint.addresses[0].rpartition(":")[2])
        threads = self._choice.threads
        self._server = None  # stops it
        try:
            self._server = _start_llamacpp(*self._settings, threads=threads, port=port)
            self._threads = threads
        except EndpointDown:  # the memory may have become scarce: once more, as it was
            self.keep_threads()
            self._server = _start_llamacpp(*self._settings, threads=self._threads, port=port)

    def _say(self, verb: str) -> None:
        assert self._choice is not None
        cores, threads = self._choice.cores, self._choice.threads or self._choice.cores
        advice = f" (LLAMA_ARG_THREADS={cores} always uses all cores)" if threads < cores else ""
        say(
            f"other processes use {self._choice.load:.1f} of {cores} cores: "
            f"the embedded engine {verb} with {threads} thread{'s' * (threads > 1)}{advice}"
        )


_find_server = lru_cache(maxsize=4)(LlamaServer)


def _read_threads() -> int | None:
    """Threads that are set: by $LLAMA_ARG_THREADS, as in llama.cpp's own commands, or by the number of cores that this
    process may use, if those are not all. None: by the load. Raises SpecError.
    """
    if threads := os.environ.get("LLAMA_ARG_THREADS", ""):
        if not threads.isdecimal() or int(threads) < 1:
            raise SpecError(f"LLAMA_ARG_THREADS={threads}: give a number of threads")
        return int(threads)
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else None
    return None if cores == os.cpu_count() else cores


def _start_llamacpp(
    path: str, slots: int, context: int, projector: str = "", threads: int | None = None, port: int = 0
) -> Any:
    try:
        from xllamacpp import CommonParams, Server
    except ImportError:
        raise EndpointDown(f"the embedded engine is not installed: {install_command('local,weights')}") from None
    params = CommonParams()
    params.model.path = path
    if projector:
        params.mmproj.path = projector
    params.n_parallel = slots
    params.n_ctx = slots * context
    params.kv_unified = False
    params.cpuparams.poll = params.cpuparams_batch.poll = 0  # without OpenMP, waiting threads sleep and do not poll
    if threads:
        params.cpuparams.n_threads = params.cpuparams_batch.n_threads = threads
    if port:
        params.port = port
    params.verbosity = -1
    try:
        return Server(params)
    except RuntimeError:  # it says no more than that it failed
        size = Path(path).stat().st_size
        raise EndpointDown(
            f"llama.cpp cannot load {path} ({size:,} bytes)"
            f"{f' with {projector}' if projector else ''}: the file is truncated or of an unknown architecture, or "
            f"{slots} slots of {context} tokens need too much memory; download it again, or lower slots and context"
        ) from None
