"""The server of IDfree-PL: texts with embeddings in, classes or next words out; nothing is kept but replay digests.

    GET  /v1/model          task, width, digest: what a device checks before it sends anything
    POST /v1/classify       {"text": ..., "embedding": [[...]]} -> {"label": ..., "probabilities": {...}}
    POST /v1/completions    {"text": ..., "embedding": [[...]], "max_new_tokens": 15} -> {"text": ...}

Requests that arrive together share a forward pass. An answer has no identifier, time or cookie, so that it links no
request to another; a connection does, so devices open one for each request.
"""

from __future__ import annotations

import asyncio
import socket
from collections import defaultdict
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from typing import Any, Final, Protocol

import numpy as np
import uvicorn
from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse

from agentsys.trainers.idfree.device import FloatArray
from agentsys.trainers.idfree.queries import Checks, ModelInfo, Query, RefusedError, ServeOptions
from agentsys.trainers.loading import TrainerError

WAITING: Final = 1_024
"""Requests that may wait for a forward pass."""
DISCARDED: Final = 2**26
"""Bytes of a body that is too large which are read, so that its sender reads the refusal."""

Answer = dict[str, Any]


class ServedInfo(ModelInfo, Protocol):
    """What the server tells of its model."""

    @property
    def task(self) -> str: ...
    @property
    def labels(self) -> Sequence[str]: ...
    @property
    def model(self) -> str: ...


class Model(Protocol):
    """A personalized model: `agentsys.trainers.idfree.backbone.load_model`."""

    @property
    def info(self) -> ServedInfo: ...
    def classify(self, texts: Sequence[str], embeddings: FloatArray | None = None) -> FloatArray:
        """(texts, classes) probabilities."""

    def complete(
        self, texts: Sequence[str], embeddings: FloatArray | None = None, max_new_tokens: int = 15
    ) -> list[str]:
        """The next words of each text."""


@dataclass(frozen=True, slots=True)
class Waiting:
    """A query and where its answer goes."""

    query: Query
    answer: asyncio.Future[Answer]


class Batcher:
    """Computes queries in batches, one batch at a time, in a thread."""

    def __init__(self, compute: Callable[[Sequence[Query]], list[Answer]], batch: int, wait: float) -> None:
        """`wait` is in seconds."""
        self._compute, self._batch, self._wait = compute, batch, wait
        self._queue: asyncio.Queue[Waiting] = asyncio.Queue(WAITING)

    async def answer(self, query: Query) -> Answer:
        """The answer to a query. Raises RefusedError where too many wait."""
        future: asyncio.Future[Answer] = asyncio.get_running_loop().create_future()
        try:
            self._queue.put_nowait(Waiting(query, future))
        except asyncio.QueueFull:
            raise RefusedError(503, "the server is busy: try again") from None
        return await future

    async def run(self) -> None:
        """Take what waits, compute it, and begin again."""
        while True:
            batch = [await self._queue.get()]
            await asyncio.sleep(self._wait)
            while len(batch) < self._batch and not self._queue.empty():
                batch.append(self._queue.get_nowait())
            await self._answer_all([one for one in batch if not one.answer.done()])

    async def _answer_all(self, batch: Sequence[Waiting]) -> None:
        try:
            answers = await asyncio.to_thread(self._compute, [one.query for one in batch])
        except Exception as err:
            # The requests of this batch get a 500 and the log its traceback; the next batch is not affected.
            for one in batch:
                if not one.answer.done():
                    one.answer.set_exception(err)
            return
        for one, answer in zip(batch, answers, strict=True):
            if not one.answer.done():
                one.answer.set_result(answer)


def compute_answers(model: Model, queries: Sequence[Query], central: Model | None = None) -> list[Answer]:
    """The answers to a batch: one forward pass for the queries with an embedding and one for those without.

    The `central` model answers those without, if it is given.
    """
    groups: dict[tuple[bool, int], list[int]] = defaultdict(list)
    generates = model.info.task == "generate"
    for index, query in enumerate(queries):
        groups[query.embedding is None, query.max_new_tokens if generates else 0].append(index)
    answers: dict[int, Answer] = {}
    for (without, words), indices in groups.items():
        texts = [queries[index].text for index in indices]
        embeddings = None if without else np.stack([_embedding(queries[index]) for index in indices])
        chosen = central if without and central else model
        answers |= zip(indices, _ask(chosen, texts, embeddings, words), strict=True)
    return [answers[index] for index in range(len(queries))]


def _embedding(query: Query) -> FloatArray:
    assert query.embedding is not None
    return query.embedding


def _ask(model: Model, texts: Sequence[str], embeddings: FloatArray | None, words: int) -> list[Answer]:
    if model.info.task == "generate":
        return [{"text": text} for text in model.complete(texts, embeddings, words)]
    labels = model.info.labels
    return [
        {"label": labels[int(row.argmax())], "probabilities": dict(zip(labels, row.tolist(), strict=True))}
        for row in model.classify(texts, embeddings)
    ]


def make_app(model: Model, options: ServeOptions, central: Model | None = None) -> FastAPI:
    """The application, with the path of the model's task; the `central` model answers without an embedding.

    Raises TrainerError for a central model of another task or other classes.
    """
    if central and (central.info.task, list(central.info.labels)) != (model.info.task, list(model.info.labels)):
        raise TrainerError("--central: that model has another task or other classes; give `central` of the same run")
    checks = Checks(model.info, options)
    batcher = Batcher(lambda queries: compute_answers(model, queries, central), options.batch, options.wait / 1000)
    path = "/v1/completions" if model.info.task == "generate" else "/v1/classify"

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        task = asyncio.create_task(batcher.run())
        yield
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task

    app = FastAPI(lifespan=lifespan, docs_url=None, redoc_url=None, openapi_url=None)

    @app.exception_handler(RefusedError)
    async def refuse(request: Request, err: RefusedError) -> JSONResponse:
        return JSONResponse({"error": str(err)}, err.status)

    @app.exception_handler(404)
    @app.exception_handler(405)
    async def refuse_path(request: Request, err: Exception) -> JSONResponse:
        return JSONResponse({"error": f"this server answers POST {path} and GET /v1/model"}, 404)

    @app.get("/v1/model")
    async def describe() -> Answer:
        info = model.info
        shape = {"design": info.design, "n_tokens": info.n_tokens, "width": info.width}
        return {"task": info.task, "labels": list(info.labels), **shape, "model": info.model}

    @app.post(path, response_model=None)
    async def answer(request: Request) -> Answer:
        headers = request.headers
        checks.check_headers(headers, headers.get("content-type", ""), bool(request.url.query))
        return await batcher.answer(checks.read(await _read_body(request, checks.largest_body)))

    return app


async def _read_body(request: Request, largest: int) -> bytes:
    """The body. Raises RefusedError for one that is too large, which is read and not kept."""
    body, size = bytearray(), 0
    async for part in request.stream():
        size += len(part)
        if size <= largest:
            body += part
        elif size > DISCARDED:
            break
    if size > largest:
        raise RefusedError(413, f"the body has more than {largest:,} bytes: shorten the text")
    return bytes(body)


def open_socket(host: str, port: int) -> socket.socket:
    """A listening socket. Raises TrainerError where the address cannot be used."""
    try:
        family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        listener = socket.socket(family, socket.SOCK_STREAM)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
        listener.listen(WAITING)  # connections wait until the server has started
    except OSError as err:
        raise TrainerError(f"--host {host} --port {port}: {err.strerror or err}; give another") from None
    return listener


def make_server(app: FastAPI, options: ServeOptions) -> uvicorn.Server:
    """A server that logs no request unless asked to, and takes no address from headers."""
    config = uvicorn.Config(
        app,
        access_log=options.access_log,
        log_level="info" if options.access_log else "warning",
        server_header=False,
        proxy_headers=False,
        lifespan="on",
    )
    return uvicorn.Server(config)
