"""A record as the page shows it: one line of the index, and everything about it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict
from typing import Any, Final

from agentsys.collect.excerpts import last_score, main_text, output_text
from agentsys.targets import Segment, Target, TargetError, call_key
from agentsys.traces import Call, Trace
from agentsys.view.vocabulary import Vocabulary

COLUMNS: Final = (
    *("id", "outcome", "reason", "text", "output", "score", "rounds", "nodes", "calls", "again"),
    *("prompt_tokens", "completion_tokens", "prefix_hits", "cache_hits", "seconds"),
)
"""What the index has of each record. `rounds` are the steps of the result, `nodes` those of the search tree. `again`
counts replies that were requested again, `prefix_hits` prompt tokens that the engine had read before, `cache_hits`
calls that the request cache answered."""
SHARED_CHARS: Final = 80
"""Length from which on a text that occurs more than once in a record is stored once."""

FindVocabulary = Callable[[str], Vocabulary | None]
Columns = dict[str, list[Any]]
"""The values of all records, by the names in COLUMNS."""


def empty_columns() -> Columns:
    """The columns of no record."""
    return {name: [] for name in COLUMNS}


def append_row(columns: Columns, row: Sequence[Any]) -> None:
    """Append the line of a record."""
    for name, value in zip(COLUMNS, row, strict=True):
        columns[name].append(value)


def index_row(trace: Trace, text_chars: int) -> list[Any]:
    """The values of COLUMNS for a record. Longer texts are cut off."""
    result = trace.result or {}
    steps = result.get("steps")
    measured = [call.measured for call in trace.calls]
    return [
        trace.id,
        trace.outcome,
        (trace.reason or "")[:text_chars],
        main_text(trace.input)[:text_chars],
        output_text(trace)[:text_chars],
        last_score(trace),
        len(steps) if isinstance(steps, list) else None,
        len(trace.tree) if trace.tree else None,
        len(trace.calls),
        sum(call.error is not None for call in trace.calls),
        sum(call.prompt_tokens for call in trace.calls),
        sum(call.completion_tokens for call in trace.calls),
        sum(values.get("cached_tokens") or 0 for values in measured),
        sum(bool(values.get("cache_hit")) for values in measured),
        trace.measured.get("seconds"),
    ]


def refused_row(entry: Mapping[str, Any], text_chars: int) -> list[Any]:
    """The line of an input that failed before any call."""
    row = dict.fromkeys(COLUMNS, 0) | {"id": entry.get("id"), "outcome": "failed", "score": None, "seconds": None}
    row |= {"rounds": None, "nodes": None}
    row |= {"reason": str(entry["reason"])[:text_chars], "text": entry["source"], "output": ""}
    return [row[name] for name in COLUMNS]


def refused_data(entry: Mapping[str, Any]) -> dict[str, Any]:
    """Everything about an input that failed before any call."""
    return {
        **dict.fromkeys(("input", "result", "tree", "path")),
        **{name: entry.get(name) for name in ("id", "reason", "source", "content")},
        "outcome": "failed",
        "measured": {},
        "calls": [],
        "targets": [],
        "texts": [],
    }


def record_data(trace: Trace, find_vocabulary: FindVocabulary, rows: Mapping[int, Any]) -> dict[str, Any]:
    """Everything about a record, as JSON. `rows` are the training rows made of its targets, by the target's number."""
    texts = _SharedTexts(message.get("content") for call in trace.calls for message in call.messages)
    data = {
        name: getattr(trace, name)
        for name in ("id", "outcome", "reason", "source", "input", "result", "tree", "measured")
    }
    data["path"] = [asdict(step) for step in trace.path] if trace.path is not None else None
    data["calls"] = [_call_data(call, texts, find_vocabulary(call.model)) for call in trace.calls]
    data["targets"] = [_target_data(target, trace, rows.get(i)) for i, target in enumerate(trace.targets)]
    data["texts"] = texts.table
    return data


class _SharedTexts:
    """Texts that occur more than once, which are stored once: elsewhere stands their number."""

    def __init__(self, texts: Iterable[Any]) -> None:
        counts = Counter(text for text in texts if isinstance(text, str) and len(text) >= SHARED_CHARS)
        self.table = [text for text, count in counts.items() if count > 1]
        self._numbers = {text: number for number, text in enumerate(self.table)}

    def shorten(self, text: Any) -> Any:
        return self._numbers.get(text, text) if isinstance(text, str) else text


def _call_data(call: Call, texts: _SharedTexts, vocabulary: Vocabulary | None) -> dict[str, Any]:
    names = ("key", "role", "model", "mode", "sampling", "seed", "text", "reasoning", "finish", "error", "measured")
    data = {name: getattr(call, name) for name in (*names, "prompt_tokens", "completion_tokens")}
    data["messages"] = [
        {"role": message.get("role"), "content": texts.shorten(message.get("content"))} for message in call.messages
    ]
    data["tokens"] = token_data(call.ids, call.logprobs, vocabulary)
    data["reasoning_tokens"] = token_data(call.reasoning_ids, call.reasoning_logprobs, vocabulary)
    return data


def token_data(
    ids: Sequence[int] | None, logprobs: Sequence[float | None] | None, vocabulary: Vocabulary | None
) -> list[list[Any]] | None:
    """Tokens as [text, log-probability]; None if the ids are unknown, or what they say.

    Tokens that share a character are one, with their joint log-probability.
    """
    if not ids or vocabulary is None:
        return None
    tokens: list[list[Any]] = []
    start = 0
    for text, count in vocabulary.split(ids):
        values = [value for value in (logprobs or [])[start : start + count] if value is not None]
        tokens.append([text, round(sum(values), 3) if len(values) == count else None])
        start += count
    return tokens


def _target_data(target: Target, trace: Trace, row: Any) -> dict[str, Any]:
    sides = {"segments": target.segments, "rejected": target.rejected or ()}
    data: dict[str, Any] = {
        name: [_segment_data(segment, trace) for segment in segments] for name, segments in sides.items()
    }
    return {"kind": target.kind, "scores": dict(target.scores), "row": row, **data}


def _segment_data(segment: Segment, trace: Trace) -> dict[str, Any]:
    """A segment with its text, and the key of the call that it is from. A whole request has only the key."""
    data = {"role": segment.role, "learned": segment.learned, "text": segment.text, "call": segment.prompt}
    if segment.text is None and segment.prompt is None:
        try:
            key = call_key(segment, trace.tree)
        except TargetError as err:  # an earlier version's target
            return data | {"node": segment.node, "fault": str(err)}
        call = next((call for call in trace.calls if call.key == key), None)
        data |= {"call": key, "node": segment.node, "text": call.text if call else None}
    return data
