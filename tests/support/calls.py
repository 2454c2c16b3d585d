"""Minimal calls and traces, built by hand."""

from __future__ import annotations

from typing import Any

from agentsys.traces import Call, Trace


def make_call(key: str, **changes: Any) -> Call:
    """A minimal call in chat mode."""
    defaults: dict[str, Any] = {
        "key": key,
        "role": "advisor",
        "prompt_sha256": "ab" * 32,
        "model": "toy",
        "revision": None,
        "mode": "chat",
        "sampling": {"temperature": 0.7},
        "seed": None,
        "schema_sha256": None,
        "messages": [{"role": "user", "content": "Hi"}],
        "text": "Ho",
        "finish": "stop",
        "prompt_tokens": 3,
        "completion_tokens": 2,
    }
    return Call(**defaults | changes)


def make_trace(*calls: Call, **changes: Any) -> Trace:
    """A minimal trace of a kept record."""
    defaults: dict[str, Any] = {
        "id": "r1",
        "system": "agentsys.graphs.drt.system",
        "run": "f00",
        "outcome": "kept",
        "reason": None,
        "source": "sentences.jsonl:7",
        "input": {"text": "Hi"},
        "result": {"trans": "Ho", "steps": [{"score": 90.5}]},
        "targets": [],
        "calls": list(calls),
    }
    return Trace(**defaults | changes)
