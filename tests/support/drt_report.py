"""Traces of DRT runs by hand, and run folders of them, for the tests of the report."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from agentsys.traces import Call, Trace, dump

TEXT = "The fog came in like a cat."
DRAFTS = [
    "雾像猫一样进来了，很轻。",
    "雾进来了，像一只猫，很轻。",
    "夜雾悄悄进来，像一只猫。",
    "夜雾如猫，悄然而至，无声。",
    "夜雾如猫，悄然潜入，无声。",
]


def thought_of(drafts: Sequence[str]) -> str:
    """A thought that quotes each draft in full, the last one once more."""
    middle = "\n\n".join(f"It is accurate, but I write: {draft} This sounds natural." for draft in drafts[1:])
    start = f"I start by picking the key words of the sentence, 'fog' and 'cat'. I try: {drafts[0]}"
    return f"{start}\n\n{middle}\n\nI decide on {drafts[-1]}"


def step(k: int, score: float, stated: float | None = None, expected: float | None = None) -> dict[str, Any]:
    """Draft k; a step of an earlier version has neither a stated nor an expected score."""
    more = {"stated": stated, "expected": expected}
    return {
        "translation": DRAFTS[k],
        "feedback": f"advice {k}",
        "score": score,
        "reason": "so",
        "key": f"refine/{k}" if k else "draft",
        **{name: value for name, value in more.items() if value is not None},
    }


def steps_of(*scores: float) -> list[dict[str, Any]]:
    """Steps with these scores, as an earlier version wrote them."""
    return [step(k, score) for k, score in enumerate(scores)]


def call(role: str, key: str, **changes: Any) -> Call:
    """A call of 10 prompt and 4 completion tokens that took half a second."""
    values: dict[str, Any] = {
        "key": key, "role": role, "prompt_sha256": "ab", "model": "m", "revision": None, "mode": "chat",
        "sampling": {}, "seed": 1, "schema_sha256": None, "messages": [], "text": "text", "finish": "stop",
        "prompt_tokens": 10, "completion_tokens": 4, "measured": {"seconds": 0.5},
    }  # fmt: skip
    return Call(**values | changes)


def trace(
    name: str,
    steps: Sequence[dict[str, Any]],
    stop: str = "threshold",
    kept: Sequence[int] | None = None,
    reason: str | None = None,
    calls: Sequence[Call] | None = None,
) -> Trace:
    """A kept record, or with a `reason` a dropped one; all of its steps are kept unless `kept` says which."""
    indices = [*range(len(steps))] if kept is None else [*kept]
    result: dict[str, Any] = {"text": TEXT, "steps": [*steps], "kept": indices, "stop": stop}
    if reason is None:
        drafts = [str(steps[i]["translation"]) for i in indices]
        result |= {"trans": drafts[-1], "thought": thought_of(drafts)}
    return Trace(
        id=name,
        system="drt",
        run="f00",
        outcome="dropped" if reason else "kept",
        reason=reason,
        source="a.jsonl:1",
        input={"text": TEXT},
        result=result,
        targets=[],
        calls=[call("draft", "draft")] if calls is None else [*calls],
    )


def write_run(
    folder: Path, traces: Sequence[Trace], knobs: dict[str, Any] | None = None, totals: dict[str, float] | None = None
) -> Path:
    """A run's folder with these kept and dropped records, and with a manifest unless `knobs` is None."""
    folder.mkdir(parents=True)
    (folder / "traces-00000.jsonl").write_bytes(b"".join(map(dump, traces)))
    if knobs is not None:
        manifest = {"version": 3, "run": "f00", "fingerprint": {"system": "drt", "knobs": knobs}}
        (folder / "manifest.json").write_text(json.dumps({**manifest, "totals": totals or {}}))
    return folder
