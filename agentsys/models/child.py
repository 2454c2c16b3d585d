"""Servers that this process starts: vLLM and `transformers serve`."""

from __future__ import annotations

import asyncio
import atexit
import contextlib
import os
import re
import signal
import socket
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar, Final

from agentsys.display import say
from agentsys.models.endpoint import DEFAULT_IN_FLIGHT, Endpoint, RetryPolicy
from agentsys.models.engines import LoopLock, RemoteEngine, ServedModel, folder_revision
from agentsys.models.errors import EndpointDown, ModelError
from agentsys.models.server_options import flag_arguments, revision_with_flags

TRANSFORMERS_IN_FLIGHT: Final = 2
"""Requests in flight to `transformers serve`: it generates one reply at a time and queues one more."""
GUARD: Final = Path(__file__).with_name("child_guard.py")
"""The program that ends a server with this process."""
STOP_SECONDS: Final = 20
"""Seconds until a guard that does not end is killed; it gives the server 8 of them."""
START_SECONDS: Final = 1800
"""Seconds that a child server may take to start (a large model loads for minutes)."""


@dataclass
class ChildEngine:
    """A server started as a child process: `vllm` or `transformers`. It ends with this process, however that ends."""

    records_per_request: ClassVar[float] = 1.5
    kind: str
    model: str
    in_flight: int = DEFAULT_IN_FLIGHT
    context: int | None = None
    max_logprobs: int | None = None
    """vLLM's limit on log-probabilities per token, if more than its default of 20 (trainers/teacher.py)."""
    flags: tuple[tuple[str, str], ...] = ()
    """Further flags of vLLM's server, without their dashes, with their values."""
    _process: subprocess.Popen[bytes] | None = None
    _remote: RemoteEngine | None = None
    _log: Path | None = None
    _lock: LoopLock = field(default_factory=LoopLock)

    def __post_init__(self) -> None:
        """Apply the limit of `transformers serve`."""
        self.set_in_flight(self.in_flight)

    async def serve(self) -> ServedModel:
        """Start the server and wait until it is healthy. Raises EndpointDown with the last error of its log."""
        async with self._lock():
            if self._remote is None:
                self._remote = await self._start()
        return await self._remote.serve()

    def _command(self, port: int) -> list[str]:
        python = os.environ.get("AGENTSYS_VLLM_PYTHON", sys.executable)
        address = ["--host", "127.0.0.1", "--port", str(port)]
        if self.kind == "transformers":
            return [python, "-m", "transformers.cli.transformers", "serve", self.model, *address]
        model = ["--model", self.model, "--served-model-name", Path(self.model).name]
        length = ["--max-model-len", str(self.context)] if self.context else []
        logprobs = ["--max-logprobs", str(self.max_logprobs)] if self.max_logprobs else []
        details = ["--enable-prompt-tokens-details"]  # replies report their cached tokens
        return [
            python,
            "-m",
            "vllm.entrypoints.openai.api_server",
            *model,
            *address,
            *length,
            *logprobs,
            *details,
            *flag_arguments(self.flags),
        ]

    @property
    def capacity(self) -> int:
        """Maximum number of requests in flight."""
        return self.in_flight

    def set_in_flight(self, in_flight: int) -> None:
        """Set the maximum number of requests in flight; TRANSFORMERS_IN_FLIGHT at most for `transformers`."""
        if self.kind == "transformers":
            in_flight = min(in_flight, TRANSFORMERS_IN_FLIGHT)
        self.in_flight = in_flight
        if self._remote is not None:
            self._remote.set_in_flight(in_flight)

    async def _start(self) -> RemoteEngine:
        port = _free_port()
        handle, name = tempfile.mkstemp(prefix=f"agentsys-{self.kind}-", suffix=".log")
        self._log = Path(name)
        say(f"starting {self.kind} with {self.model} (log: {name})")
        with os.fdopen(handle, "wb") as log:
            self._process = await asyncio.to_thread(
                subprocess.Popen,
                guarded(self._command(port)),
                stdin=subprocess.PIPE,  # its end tells the guard that this process is gone
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        atexit.register(self._stop)
        endpoint = Endpoint([f"http://127.0.0.1:{port}"], self.in_flight)
        await self._wait_until_healthy(endpoint)
        path = Path(self.model)
        revision = revision_with_flags(await asyncio.to_thread(folder_revision, path), self.flags)
        engine = RemoteEngine(endpoint, name=path.name, revision=revision)
        if self.kind == "transformers":  # its /v1/models lists the hub cache, not the served model
            engine._served = ServedModel(endpoint, "transformers", self.model, path.name, engine.revision, None)
        return engine

    async def _wait_until_healthy(self, endpoint: Endpoint) -> None:
        probe = Endpoint(endpoint.addresses, retry=RetryPolicy(attempts=1))
        deadline = time.monotonic() + START_SECONDS
        route = "/health" if self.kind == "transformers" else "/v1/models"
        try:
            while time.monotonic() < deadline:
                if self._process is None or self._process.poll() is not None:
                    raise EndpointDown(
                        f"{self.kind}:{self.model} did not start: {self._last_error()} (log: {self._log})"
                    )
                try:
                    if await probe.get(route) is not None:
                        return
                except ModelError:
                    pass  # not up yet
                await asyncio.sleep(1)
            raise EndpointDown(f"{self.kind}:{self.model} is not up after {START_SECONDS} s (log: {self._log})")
        finally:
            await probe.aclose()

    def _last_error(self) -> str:
        lines = self._log.read_text(errors="replace").splitlines() if self._log else []
        errors = [line.strip() for line in lines if re.search(r"Error|error:|No module", line)]
        return (errors or lines or ["no output"])[-1][-300:]

    def _stop(self) -> None:
        process, self._process = self._process, None
        if process is None:
            return
        atexit.unregister(self._stop)
        if process.poll() is None:
            process.terminate()
        try:
            process.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()
        finally:
            _kill_group(process.pid)
            if process.stdin is not None:
                process.stdin.close()

    async def aclose(self) -> None:
        """Close the connections and stop the child process."""
        if self._remote is not None:
            await self._remote.aclose()
            self._remote = None
        await asyncio.to_thread(self._stop)


def guarded(command: list[str]) -> list[str]:
    """The command under child_guard.py, which ends it with this process; on Windows the command alone."""
    if os.name == "nt":
        return command
    return [sys.executable, "-S", "-E", str(GUARD), str(os.getpid()), *command]


def _kill_group(group: int) -> None:
    """Kill what is left of the guard's process group."""
    if hasattr(os, "killpg"):
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(group, signal.SIGKILL)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
