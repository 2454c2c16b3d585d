"""Traces: what happened to each record, as versioned JSON lines. docs/collect.md describes every field.

A trace is written when its record is finished and never changed. Whatever may differ between two runs with the same
replies (timings, retries, cached tokens, addresses) is in `measured` objects and nowhere else.
"""

from __future__ import annotations

import errno
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, Literal

import orjson

from agentsys.targets import Segment, Target, TargetError, masked, stored_target, target_from

__all__ = [
    "VERSION", "Call", "Outcome", "Segment", "Target", "TargetError", "Trace", "dump", "failed_file", "load", "masked",
    "read_finished", "read_traces", "shards", "sort_key", "strip_measured", "target_from",
]  # fmt: skip

VERSION: Final = 2
"""The trace format that this package writes; it reads this version and all earlier ones.

Version 2 has the outcome *failed* for records that could not be processed; version 1 had *rejected*.
"""

Outcome = Literal["kept", "dropped", "failed"]


@dataclass(slots=True)
class Call:
    """One request of one role and its reply.

    `ids` are the completion's token ids as the engine generated them, with the token that ends the turn; `stop_ids` (0
    or 1) counts that token, which is not part of `text`. An engine that removes a stop string from `text` may leave its
    ids: they are not counted, and only decoding shows them. `logprobs` are natural logarithms, one per id. If
    alternatives were requested, `top_logprobs` has one row of them per id, with their ids in `top_ids`, or their texts
    in `top_tokens` if the server returns no ids. What the engine does not return is None.
    """

    key: str
    role: str
    prompt_sha256: str
    model: str
    revision: str | None
    mode: Literal["token", "chat"]
    sampling: dict[str, Any]
    seed: int | None
    schema_sha256: str | None
    messages: list[dict[str, Any]]
    text: str
    finish: str
    prompt_tokens: int
    completion_tokens: int
    prompt_ids: list[int] | None = None
    ids: list[int] | None = None
    stop_ids: int = 0
    logprobs: list[float] | None = None
    top_logprobs: list[list[float]] | None = None
    top_ids: list[list[int]] | None = None
    top_tokens: list[list[str]] | None = None
    reasoning: str | None = None
    error: str | None = None
    measured: dict[str, Any] = field(default_factory=dict)


@dataclass(slots=True)
class Trace:
    """What happened to one record: its calls, search tree, result, targets and lineage."""

    id: str
    system: str
    run: str
    outcome: Outcome
    reason: str | None
    source: str
    input: dict[str, Any]
    result: dict[str, Any] | None
    targets: list[Target]
    calls: list[Call]
    tree: list[dict[str, Any]] | None = None
    measured: dict[str, Any] = field(default_factory=dict)
    version: int = VERSION


def sort_key(key: str) -> list[tuple[int, str]]:
    """Sorting key of a call's key: numbers in it are compared as numbers, so that refine/10 follows refine/9."""
    return [(int(part), "") if part.isdecimal() else (-1, part) for part in re.split(r"(\d+)", key)]


def dump(trace: Trace) -> bytes:
    """One line of a shard, with its newline; `version` and `id` come first, where a scan finds them quickly.

    Raises TypeError for a value that JSON cannot hold.
    """
    body = {"version": trace.version, "id": trace.id}
    body |= {name: getattr(trace, name) for name in trace.__slots__ if name not in body}
    body["calls"] = sorted(trace.calls, key=lambda call: (sort_key(call.key), call.key))
    return orjson.dumps(body, option=orjson.OPT_APPEND_NEWLINE | orjson.OPT_SERIALIZE_NUMPY)


def load(line: bytes | str) -> Trace:
    """A trace from one line. Raises ValueError for a line that is not a trace or has a newer version."""
    raw = orjson.loads(line)
    if not isinstance(raw, dict) or not isinstance(raw.get("version"), int):
        raise ValueError("not a trace: no version field")
    if raw["version"] > VERSION:
        raise ValueError(f"trace version {raw['version']} is newer than {VERSION}; update agentsys")
    if raw["version"] == 1 and raw.get("outcome") == "rejected":
        raw["outcome"] = "failed"
    try:
        raw["calls"] = [Call(**call) for call in raw["calls"]]
        raw["targets"] = [stored_target(target) for target in raw["targets"]]
        return Trace(**raw)
    except (KeyError, TypeError) as err:
        raise ValueError(f"not a trace: {err}") from None


def read_traces(folder: str | Path) -> Iterator[Trace]:
    """The kept and dropped traces of a run, in the order in which they finished.

    Raises ValueError as `load` does, and FileNotFoundError for a folder that does not exist.
    """
    if not Path(folder).is_dir():
        raise FileNotFoundError(errno.ENOENT, "no such folder; give the output folder of a run", str(folder))
    for shard in shards(folder):
        with shard.open("rb") as lines:
            for line in lines:
                if line.endswith(b"\n"):
                    yield load(line)


def read_finished(folder: str | Path) -> Iterator[Trace]:
    """All traces of a run, those of failed records last. Raises ValueError as `load` does.

    Records whose input was refused have no trace and are left out, as is a torn last line.
    """
    yield from read_traces(folder)
    path = failed_file(folder)
    if path.exists():
        with path.open("rb") as lines:
            yield from (load(line) for line in lines if line.endswith(b"\n") and b'"version":' in line[:12])


def failed_file(folder: str | Path) -> Path:
    """The file of a run's failed records: failed.jsonl, in a folder of trace version 1 rejected.jsonl."""
    path, old = Path(folder) / "failed.jsonl", Path(folder) / "rejected.jsonl"
    return old if old.exists() and not path.exists() else path


def shards(folder: str | Path) -> Sequence[Path]:
    """The shard files traces-*.jsonl of a run's folder, in order."""
    return sorted(Path(folder).glob("traces-*.jsonl"))


def strip_measured(value: Any) -> Any:
    """A JSON value without its `measured` objects: the part that is equal in two runs with the same replies."""
    if isinstance(value, dict):
        return {k: strip_measured(v) for k, v in value.items() if k != "measured"}
    if isinstance(value, list):
        return [strip_measured(v) for v in value]
    return value
