"""What is remembered while one record is worked on: its calls, and the cache that stands behind them.

The bulk runner sets `current` around each record; a role finds it there. Without one (in Studio, or when a graph is
invoked by hand) a role works the same and nothing is recorded.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any, Final

import orjson

from agentsys.models.cache import RequestCache
from agentsys.traces import Call

REPLY_FORMAT: Final = 1
"""Counts changes of models.wire.Reply: a cached reply of another format is not found."""


class DuplicateKey(Exception):
    """Two calls of one record have the same key: the graph has to tell them apart (round, node, child)."""


class Stopped(Exception):
    """The run is being stopped: this record is left unfinished, and a resumed run replays its calls from the cache."""


@dataclass(slots=True)
class Switch:
    """Says to all records of a run when to stop. `reason` is None while it runs."""

    reason: str | None = None
    calls_too: bool = False

    def stop(self, reason: str, *, finish_records: bool = False) -> None:
        """Take no new record; and no new call either, unless the records under way are to be finished."""
        self.reason = self.reason or reason
        self.calls_too = self.calls_too or not finish_records


@dataclass(slots=True)
class Recorder:
    """The calls of one record. `record` is its id; a run without a cache has `cache` None.

    `generation` counts how often failed records were tried again: their calls are new ones, else the cache would
    give the same unusable replies.
    """

    record: str
    cache: RequestCache | None = None
    switch: Switch = field(default_factory=Switch)
    notice: Callable[[Call], None] = field(default=lambda call: None)
    generation: int = 0
    calls: list[Call] = field(default_factory=list)
    _keys: set[str] = field(default_factory=set)

    @property
    def identity(self) -> str:
        """What stands for the record in the identity of its calls."""
        return f"{self.record} (try {self.generation + 1})" if self.generation else self.record

    def claim(self, key: str) -> None:
        """Take a key for one call. Raises DuplicateKey if it was taken before, Stopped if the run is being stopped."""
        if self.switch.calls_too:
            raise Stopped
        if key in self._keys:
            raise DuplicateKey(f"record {self.record}: the key '{key}' is used twice; put the round or child into it")
        self._keys.add(key)

    def add(self, call: Call) -> None:
        """Remember a finished call and tell whoever watches the run."""
        self.calls.append(call)
        self.notice(call)


current: ContextVar[Recorder | None] = ContextVar("agentsys_recorder", default=None)
"""The recorder of the record being worked on; None outside of a run."""


def identity(**parts: Any) -> bytes:
    """The 32-byte identity of a call (design.md decision 7): equal parts are the same call, whoever asks."""
    return hashlib.sha256(
        orjson.dumps({**parts, "format": REPLY_FORMAT}, option=orjson.OPT_SORT_KEYS | orjson.OPT_SERIALIZE_DATACLASS)
    ).digest()


def seed_of(call: bytes) -> int:
    """A seed in 0 .. 2^31-1 that belongs to this call alone and does not depend on what ran before it."""
    return int.from_bytes(call[:4], "big") >> 1
