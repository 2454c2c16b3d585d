"""`agentsys view --live`: the page of a run that goes on, served on loopback. It reads the run's files and no more."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from threading import Lock
from typing import Any, Final

from agentsys.collect.manifest import read_manifest
from agentsys.collect.run_report import statistics_of_system
from agentsys.collect.statistics import RunStatistics, Statistics
from agentsys.display import say
from agentsys.records import InputError
from agentsys.shards import ShardError, compressed, content_size, is_compressed, open_shard, skip
from agentsys.traces import RunFolderError, Trace, failed_file, load, parse_failed, shards
from agentsys.view.page import make_page, to_json
from agentsys.view.records import (
    Columns,
    FindVocabulary,
    append_row,
    empty_columns,
    index_row,
    record_data,
    refused_data,
    refused_row,
)  # fmt: skip
from agentsys.view.run import TEXT_CHARS, describe_run, section_data

HOST: Final = "127.0.0.1"
HOSTS: Final = ("127.0.0.1", "localhost")
"""Host names under which the page may be asked for. Another one means that a page elsewhere asks (DNS rebinding)."""


@dataclass
class Tail:
    """A run's finished records as far as they were read. Each `read` adds those that were appended since."""

    folder: Path
    columns: Columns = field(default_factory=empty_columns)
    statistics: list[Statistics] = field(default_factory=list)
    generation: int = 0
    """How often the records were read anew, because failed ones were removed to be tried again."""
    fault: str = ""
    """The fault of the line at which reading stopped; "" if there is none."""
    _places: list[tuple[Path, int, int]] = field(default_factory=list)
    """File, offset and length of each record's line; those of a shard as if it were not compressed."""
    _offsets: dict[Path, int] = field(default_factory=dict)
    """How far each file was read, by the name that it has while it is written."""
    _lock: Lock = field(default_factory=Lock)

    def read(self) -> None:
        """Read the lines that are complete, up to one that is damaged, which `fault` then names."""
        with self._lock:
            if any(_size(file) < offset for file, offset in self._offsets.items()):
                self._forget()  # --retry-failed has rewritten failed.jsonl
            try:
                for path in [*shards(self.folder), failed_file(self.folder)]:
                    file = path.with_suffix("") if is_compressed(path) else path
                    for offset, line in self._new_lines(file):
                        self._add(file, offset, line)
                        self._offsets[file] = offset + len(line)
                self.fault = ""
            except RunFolderError as err:
                self.fault = str(err)

    def _forget(self) -> None:
        self.generation += 1
        self.columns = empty_columns()
        self.statistics = []
        self._places.clear()
        self._offsets.clear()

    def _new_lines(self, file: Path) -> Iterator[tuple[int, bytes]]:
        offset = self._offsets.get(file, 0)
        if _size(file) <= offset:
            return
        try:
            with open_shard(file) as lines:
                skip(lines, offset)
                for line in lines:
                    if not line.endswith(b"\n"):
                        break
                    yield offset, line
                    offset += len(line)
        except ShardError as err:
            raise RunFolderError(f"{file}: {err}") from None

    def _add(self, file: Path, offset: int, line: bytes) -> None:
        record = read_line(file, line)
        row = index_row(record, TEXT_CHARS[0]) if isinstance(record, Trace) else refused_row(record, TEXT_CHARS[0])
        append_row(self.columns, row)
        self._places.append((file, offset, len(line)))
        if not isinstance(record, Trace):
            return
        if not self.statistics:
            self.statistics = [RunStatistics(), *statistics_of_system(record.system, read_manifest(self.folder))]
        for part in self.statistics:
            part.add(record)

    def since(self, number: int) -> bytes:
        """As JSON: the columns of the records from `number` on, and the head of the page."""
        with self._lock:
            index = {name: values[number:] for name, values in self.columns.items()}
            return to_json({"index": index, "head": self._head()})

    def record(self, number: int) -> Trace | dict[str, Any]:
        """A record, read from its file. Raises IndexError."""
        file, offset, length = self._places[number]
        with open_shard(file) as lines:
            skip(lines, offset)
            return read_line(file, lines.read(length))

    def head(self) -> dict[str, Any]:
        """What the page says of the run."""
        with self._lock:
            return self._head()

    def _head(self) -> dict[str, Any]:
        return {
            **describe_run(self.folder, "r0", read_manifest(self.folder)),
            "records": len(self._places),
            "indexes": 0,
            "text_chars": TEXT_CHARS[0],
            "sections": [section_data(section) for part in self.statistics for section in part.sections()],
            "generation": self.generation,
            "fault": self.fault,
        }


def _size(file: Path) -> int:
    """Bytes of a file's lines, whether it is compressed meanwhile or not; -1 if it is not there."""
    for path in (compressed(file), file):
        with suppress(FileNotFoundError):
            return content_size(path)
    return -1


def read_line(file: Path, line: bytes) -> Trace | dict[str, Any]:
    """A record of a run's file: a trace, or a refused input. Raises RunFolderError."""
    try:
        if file.name.startswith("traces-"):
            return load(line)
        entry = parse_failed(line)
        return load(line) if "calls" in entry else entry
    except ValueError as err:
        raise RunFolderError(f"{file}: a line that is no record ({err})") from None


def make_app(folder: Path, find_vocabulary: FindVocabulary) -> Any:
    """The web application: the page, the records since a number, and single records; each by GET only."""
    from aiohttp import web

    tail = Tail(folder)

    @web.middleware
    async def check_host(request: web.Request, handler: Any) -> web.StreamResponse:
        if request.host.rpartition(":")[0] not in HOSTS and request.host not in HOSTS:
            raise web.HTTPForbidden(text=f"ask for {HOST}")
        response: web.StreamResponse = await handler(request)
        response.headers["Cache-Control"] = "no-store"
        return response

    async def page(request: web.Request) -> web.Response:
        await asyncio.to_thread(tail.read)
        empty: dict[str, list[Any]] = {"comparisons": [], "trainings": [], "evaluations": [], "states": []}
        head = {"runs": [tail.head()], "live": True, **empty}
        return web.Response(body=make_page(f"{folder.resolve().name} (live)", head, {}), content_type="text/html")

    async def since(request: web.Request) -> web.Response:
        await asyncio.to_thread(tail.read)
        body = await asyncio.to_thread(tail.since, int(request.match_info["number"]))
        return web.Response(body=body, content_type="application/json")

    async def record(request: web.Request) -> web.Response:
        try:
            content = tail.record(int(request.match_info["number"]))
        except IndexError:
            raise web.HTTPNotFound(text="there is no such record") from None
        data = record_data(content, find_vocabulary, {}) if isinstance(content, Trace) else refused_data(content)
        return web.Response(body=to_json(data), content_type="application/json")

    app = web.Application(middlewares=[check_host])
    app.add_routes(
        [web.get("/", page), web.get(r"/since/{number:\d+}", since), web.get(r"/record/{number:\d+}", record)]
    )
    return app


def serve(folder: Path, port: int, find_vocabulary: FindVocabulary) -> None:
    """Serve the page of a run until Ctrl-C. Raises InputError for a folder without a run and for a port in use."""
    if not (folder / "manifest.json").is_file():
        raise InputError(f"{folder}: no run there; start `agentsys collect` with --out {folder} first")
    with suppress(KeyboardInterrupt):
        asyncio.run(_serve(folder, port, find_vocabulary))


async def _serve(folder: Path, port: int, find_vocabulary: FindVocabulary) -> None:
    from aiohttp import web

    runner = web.AppRunner(make_app(folder, find_vocabulary), access_log=None)
    await runner.setup()
    site = web.TCPSite(runner, HOST, port)
    try:
        await site.start()
    except OSError as err:
        raise InputError(f"--port {port}: {err.strerror or err}; --port 0 takes a free one") from None
    address = runner.addresses[0]
    say(f"http://{address[0]}:{address[1]} shows {folder}; Ctrl-C stops")
    try:
        await asyncio.Event().wait()
    finally:
        await runner.cleanup()
