"""The recorder of one record: its calls, and the request cache that they go through.

The bulk runner sets `current` around each record, and roles look it up there. Without a recorder (in Studio, or when a
graph is invoked directly) roles work the same and nothing is recorded.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any, Final

import orjson
from langchain_core.runnables.config import var_child_runnable_config

from agentsys.models.cache import RequestCache
from agentsys.traces import Call

REPLY_FORMAT: Final = 1
"""Version of models.wire.Reply as the cache stores it; replies stored in another format are not found."""


class DuplicateKey(Exception):
    """Two calls of one record have the same key; the graph must give each its own (with a round, node or child)."""


class Stopped(Exception):
    """The run is stopping: this record stays unfinished, and a resumed run takes its calls from the cache."""


@dataclass(slots=True)
class Switch:
    """Stops all records of a run. `reason` is None while the run continues.

    It counts the calls in progress: `with switch` around a call.
    """

    reason: str | None = None
    calls_too: bool = False
    calls: int = 0

    def __enter__(self) -> None:
        self.calls += 1

    def __exit__(self, *exc: object) -> None:
        self.calls -= 1

    def stop(self, reason: str, *, finish_records: bool = False) -> None:
        """Start no new record; and no new call either, unless the records in progress are to be finished."""
        self.reason = self.reason or reason
        self.calls_too = self.calls_too or not finish_records


@dataclass(slots=True)
class Recorder:
    """Records the calls of one record, whose id is `record`. `cache` is None in a run without a request cache.

    `generation` counts the retries of failed records: it makes their calls new ones, because the cache would return
    the same unusable replies again.
    """

    record: str
    cache: RequestCache | None = None
    switch: Switch = field(default_factory=Switch)
    on_call: Callable[[Call], None] = field(default=lambda call: None)
    generation: int = 0
    calls: list[Call] = field(default_factory=list)
    tasks: dict[str, str] = field(default_factory=dict)
    """The id of the graph's task that made each call, by the call's key."""
    _keys: set[str] = field(default_factory=set)

    @property
    def identity(self) -> str:
        """The record's part in the identity of its calls."""
        return f"{self.record} (try {self.generation + 1})" if self.generation else self.record

    def claim(self, key: str) -> None:
        """Reserve a key for one call. Raises DuplicateKey if it is in use, Stopped if the run is stopping."""
        if self.switch.calls_too:
            raise Stopped
        if key in self._keys:
            raise DuplicateKey(f"record {self.record}: the key '{key}' is used twice; put the round or child into it")
        self._keys.add(key)

    def add(self, call: Call) -> None:
        """Record a finished call and report it to the run."""
        self.calls.append(call)
        if task := _current_task():
            self.tasks[call.key] = task
        self.on_call(call)


def _current_task() -> str | None:
    """The id of the running task of a graph, of the outer one in a subgraph; None outside a graph."""
    config = var_child_runnable_config.get()
    namespace = (config or {}).get("metadata", {}).get("langgraph_checkpoint_ns", "")
    return namespace.split("|")[0].rpartition(":")[2] or None


current: ContextVar[Recorder | None] = ContextVar("agentsys_recorder", default=None)
"""The recorder of the current record; None outside a run."""


def calling() -> Switch:
    """The switch that counts a call of the current record; outside a run, one that nobody reads."""
    recorder = current.get()
    return recorder.switch if recorder else _NO_RUN


_NO_RUN: Final = Switch()


def identity(**parts: Any) -> bytes:
    """The 32-byte identity of a call (docs/decisions/007): calls with equal parts are the same call in every run."""
    return hashlib.sha256(
        orjson.dumps({**parts, "format": REPLY_FORMAT}, option=orjson.OPT_SORT_KEYS | orjson.OPT_SERIALIZE_DATACLASS)
    ).digest()


def seed_of(call: bytes) -> int:
    """A seed in 0 .. 2^31-1 from a call's identity, so that it does not depend on the order of calls."""
    return int.from_bytes(call[:4], "big") >> 1
