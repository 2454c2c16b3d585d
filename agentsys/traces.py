"""Traces: what happened to each record, as versioned JSON lines. docs/collect.md describes every field.

A trace is written when its record is finished and never changed. Whatever may differ between two runs with the same
replies (timings, retries, cached tokens, addresses) is in `measured` objects and nowhere else.
"""

from __future__ import annotations

import errno
import re
import shlex
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, Literal

import orjson

from agentsys.shapes import Shape
from agentsys.shards import NO_SHARD, ShardError, find_shards, open_shard
from agentsys.targets import Segment, Target, TargetError, masked, stored_target, target_from

__all__ = [
    "VERSION", "Call", "Outcome", "RunFolderError", "Segment", "Step", "Target", "TargetError", "Trace", "dump",
    "failed_file", "load", "masked", "read_finished", "read_traces", "shards", "sort_key", "strip_measured",
    "target_from",
]  # fmt: skip

VERSION: Final = 4
"""The trace format that this package writes; it reads this version and all earlier ones.

Version 4 stores token ids that a prompt shares with an earlier call once. Version 3 has the record's path through the
graph. Version 2 has the outcome *failed* for records that could not be processed; version 1 had *rejected*.
"""

COMPARED: Final = 8
"""Earlier calls with which a prompt is compared, to share its first token ids: siblings, and the call it continues."""
MIN_SHARED: Final = 16
"""Token ids that a prompt shares with an earlier call at least, or it is stored whole."""

Outcome = Literal["kept", "dropped", "failed"]


class RunFolderError(ValueError):
    """A run's folder cannot be used, is damaged, or holds another run. The message is one line that names the fix.

    `detail` has further lines, such as the differences between two prompts; a traceback shows them as a note.
    """

    def __init__(self, message: str, detail: str = "") -> None:
        super().__init__(message)
        self.detail = detail
        if detail:
            self.add_note(detail)


class NewerVersionError(ValueError):
    """A line of a later version of this package, which is no damage."""


@dataclass(slots=True)
class Call:
    """One request of one role and its reply.

    `ids` are the completion's token ids as the engine generated them, with the token that ends the turn; `stop_ids` (0
    or 1) counts that token, which is not part of `text`. An engine that removes a stop string from `text` may leave its
    ids: they are not counted, and only decoding shows them. `logprobs` are natural logarithms, one per id. If
    alternatives were requested, `top_logprobs` has one row of them per id, with their ids in `top_ids`, or their texts
    in `top_tokens` if the server returns no ids. What the engine does not return is None.

    A reasoning model's thought is in `reasoning`, without its tags, and never in `text`. `reasoning_ids` are the ids of
    the thought, its tags and the white space after it: the engine's sequence is `prompt_ids + reasoning_ids + ids`.
    `reasoning_logprobs` has 0 for tokens that were set and not generated (models.thinking).
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
    reasoning_ids: list[int] | None = None
    reasoning_logprobs: list[float] | None = None
    error: str | None = None
    measured: dict[str, Any] = field(default_factory=dict)


@dataclass(slots=True)
class Step:
    """A node of the graph that a record went through: the keys of its calls, and what it wrote to the state.

    `in_result` names values that the record's result has too (or its targets, its tree), `omitted` those above 20 kB
    and those that JSON cannot hold.
    """

    node: str
    calls: list[str] = field(default_factory=list)
    update: dict[str, Any] = field(default_factory=dict)
    in_result: list[str] = field(default_factory=list)
    omitted: list[str] = field(default_factory=list)


@dataclass(slots=True)
class Trace:
    """What happened to one record: its calls, path, search tree, result, targets and lineage.

    `path` is None in traces of version 1 and 2.
    """

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
    path: list[Step] | None = None
    measured: dict[str, Any] = field(default_factory=dict)
    version: int = VERSION


@dataclass(slots=True)
class RefusedInput:
    """An input that failed before any call: a broken line, a missing field, a second record with one id."""

    id: str | None
    source: str
    reason: str
    content: str | None = None


_TRACE: Final = Shape(Trace, "a trace")
_CALL: Final = Shape(Call, "a call")
_STEP: Final = Shape(Step, "a step")
_REFUSED: Final = Shape(RefusedInput, "a refused input")


def sort_key(key: str) -> list[tuple[int, str]]:
    """Sorting key of a call's key: numbers in it are compared as numbers, so that refine/10 follows refine/9."""
    return [(int(part), "") if part.isdecimal() else (-1, part) for part in re.split(r"(\d+)", key)]


def dump(trace: Trace) -> bytes:
    """One line of a shard, with its newline; `version` and `id` come first, where a scan finds them quickly.

    Raises TypeError for a value that JSON cannot hold.
    """
    body = {"version": trace.version, "id": trace.id}
    body |= {name: getattr(trace, name) for name in trace.__slots__ if name not in body}
    calls = sorted(trace.calls, key=lambda call: (sort_key(call.key), call.key))
    body["calls"] = list(_share_prompts(calls)) if trace.version >= 4 else calls
    return orjson.dumps(body, option=orjson.OPT_APPEND_NEWLINE | orjson.OPT_SERIALIZE_NUMPY)


def _share_prompts(calls: Iterable[Call]) -> Iterator[Call | dict[str, Any]]:
    """The calls as they are stored: the first ids of a prompt that an earlier call has too are left out.

    `continues` names that call and how many ids of its sequence (prompt, thought, reply) the prompt begins with.
    """
    earlier: deque[tuple[str, list[int]]] = deque(maxlen=COMPARED)
    for call in calls:
        prompt = call.prompt_ids
        if not prompt:
            yield call
            continue
        shared, key = max(((_count_shared(ids, prompt), key) for key, ids in earlier), default=(0, ""))
        if shared < MIN_SHARED:
            yield call
        else:
            fields = {name: getattr(call, name) for name in call.__slots__}
            yield {**fields, "prompt_ids": prompt[shared:], "continues": {"call": key, "tokens": shared}}
        earlier.append((call.key, [*prompt, *(call.reasoning_ids or ()), *(call.ids or ())]))


def _count_shared(first: list[int], second: list[int]) -> int:
    """How many ids two sequences have in common at their beginning."""
    low, high = 0, min(len(first), len(second))
    while low < high:
        middle = (low + high + 1) // 2
        if first[low:middle] == second[low:middle]:
            low = middle
        else:
            high = middle - 1
    return low


def _restore_prompt(call: dict[str, Any], continued: Any, earlier: Mapping[str, Mapping[str, Any]]) -> None:
    """Give a stored call the ids that `_share_prompts` left out. Raises ValueError if no earlier call has them."""
    try:
        before, tokens = earlier[continued["call"]], continued["tokens"]
        ids = [*before["prompt_ids"], *(before.get("reasoning_ids") or ()), *(before.get("ids") or ())]
        if not 0 <= tokens <= len(ids):
            raise ValueError(tokens)
        call["prompt_ids"] = ids[:tokens] + call["prompt_ids"]
    except (KeyError, TypeError, ValueError):
        raise ValueError("'continues' names no ids of an earlier call") from None


def load(line: bytes | str) -> Trace:
    """A trace from one line. Raises ValueError for a line that is not a trace or has a newer version."""
    return _trace_from(parse(line))


def parse(line: bytes | str) -> dict[str, Any]:
    """The JSON object of a trace's line, with the names of this version. Raises ValueError as `load` does."""
    raw: Any = orjson.loads(line)
    version = raw.get("version") if isinstance(raw, dict) else None
    if type(version) is not int:
        raise ValueError("not a trace: no version field")
    if version > VERSION:
        raise NewerVersionError(f"trace version {version} is newer than {VERSION}; update agentsys")
    if version == 1 and raw.get("outcome") == "rejected":
        raw["outcome"] = "failed"
    if fault := _TRACE.fault(raw):
        raise ValueError(f"not a trace: {fault}")
    _check_items(raw)
    try:
        raw["targets"] = [stored_target(target) for target in raw["targets"]]
    except (KeyError, TypeError, ValueError, AttributeError) as err:
        raise ValueError(f"not a trace: one of its targets is none ({err})") from None
    return dict(raw)


def _check_items(raw: Mapping[str, Any]) -> None:
    """Check the calls, whose prompts are restored, and the steps of a trace. Raises ValueError."""
    earlier: dict[str, dict[str, Any]] = {}
    for number, call in enumerate(raw["calls"]):
        continued = call.pop("continues", None) if type(call) is dict else None
        if fault := _CALL.fault(call):
            raise ValueError(f"not a trace: in calls[{number}], {fault}")
        if continued is not None:
            try:
                _restore_prompt(call, continued, earlier)
            except ValueError as err:
                raise ValueError(f"not a trace: in calls[{number}], {err}") from None
        earlier[call["key"]] = call
    for number, step in enumerate(raw.get("path") or ()):
        if fault := _STEP.fault(step):
            raise ValueError(f"not a trace: in path[{number}], {fault}")


def _trace_from(raw: dict[str, Any]) -> Trace:
    path = raw.get("path")
    steps = None if path is None else [Step(**step) for step in path]
    return Trace(**{**raw, "calls": [Call(**call) for call in raw["calls"]], "path": steps})


def read_traces(folder: str | Path) -> Iterator[Trace]:
    """The kept and dropped traces of a run, in the order in which they finished.

    Raises RunFolderError, which names file and line, for a damaged line, and FileNotFoundError for a folder that does
    not exist.
    """
    if not Path(folder).is_dir():
        raise FileNotFoundError(errno.ENOENT, "no such folder; give the output folder of a run", str(folder))
    for shard in shards(folder):
        for _, raw in read_lines(shard, parse_finished):
            yield _trace_from(raw)


def read_finished(folder: str | Path) -> Iterator[Trace]:
    """All traces of a run, those of failed records last. Raises what `read_traces` raises.

    Records whose input was refused have no trace and are left out, as is a torn last line.
    """
    yield from read_traces(folder)
    path = failed_file(folder)
    if path.exists():
        yield from (_trace_from(raw) for _, raw in read_lines(path, parse_failed) if "calls" in raw)


def read_lines(path: Path, parse_line: Callable[[bytes], dict[str, Any]]) -> Iterator[tuple[bytes, dict[str, Any]]]:
    """The lines of a run's file with what they hold, without a torn last line. Raises RunFolderError, see `damage`."""
    number = 0
    try:
        with open_shard(path) as lines:
            for line in lines:
                number += 1
                if not line.endswith(b"\n"):
                    return
                yield line, _parse_line(path, number, line, parse_line)
    except ShardError as err:
        raise damage(path, str(err), number + 1) from None


def _parse_line(path: Path, number: int, line: bytes, parse_line: Callable[[bytes], dict[str, Any]]) -> dict[str, Any]:
    try:
        return parse_line(line)
    except NewerVersionError as err:
        raise RunFolderError(f"{path}:{number}: {err}") from None
    except ValueError as err:
        raise damage(path, describe_fault(line, err), number) from None


def parse_finished(line: bytes) -> dict[str, Any]:
    """A line of a shard. Raises ValueError."""
    raw = parse(line)
    if raw["outcome"] == "failed":
        raise ValueError("the trace of a failed record, which does not belong here")
    return raw


def parse_failed(line: bytes) -> dict[str, Any]:
    """A line of the file of failed records: a trace, or a refused input, which has no `calls`. Raises ValueError."""
    raw = orjson.loads(line)
    if isinstance(raw, dict) and ("calls" in raw or "version" in raw):
        raw = parse(line)
        if raw["outcome"] != "failed":
            raise ValueError("the trace of a record that did not fail, which does not belong here")
        return raw
    if fault := _REFUSED.fault(raw):
        raise ValueError(f"not a failed record: {fault}")
    return dict(raw)


def describe_fault(line: bytes, err: ValueError) -> str:
    """What is wrong with a line that an error is about."""
    if not line.strip():
        return "a blank line"
    if b"\0" in line:
        return f"{line.count(0):,} bytes are zero"
    if isinstance(err, orjson.JSONDecodeError):
        reason = str(err).partition(": line ")[0]
        return f"not JSON ({reason} at character {err.colno})"
    return str(err)


def damage(path: Path, fault: str, line: int | None = None) -> RunFolderError:
    """The error for a damaged file of a run, or a line of it, in the same words wherever it is read."""
    place = path if line is None else f"{path}:{line}"
    return RunFolderError(f"{place}: {fault}; run `agentsys check {shlex.quote(str(path.parent))} --repair`")


def failed_file(folder: str | Path) -> Path:
    """The file of a run's failed records: failed.jsonl, in a folder of trace version 1 rejected.jsonl."""
    path, old = Path(folder) / "failed.jsonl", Path(folder) / "rejected.jsonl"
    return old if old.exists() and not path.exists() else path


def shards(folder: str | Path) -> Sequence[Path]:
    """The shard files of a run's folder, in order. Raises RunFolderError for what is named like one and is none."""
    numbers = find_shards(folder)
    for path, number in numbers.items():
        if number is None or not path.is_file():
            raise damage(path, NO_SHARD if number is None else "not a file")
    return list(numbers)


def strip_measured(value: Any) -> Any:
    """A JSON value without its `measured` objects: the part that is equal in two runs with the same replies."""
    if isinstance(value, dict):
        return {k: strip_measured(v) for k, v in value.items() if k != "measured"}
    if isinstance(value, list):
        return [strip_measured(v) for v in value]
    return value
