"""Short forms of a record for the screen: one line, and its result in full."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from agentsys.display import plain
from agentsys.traces import Trace

LINE_CHARS: Final = 60
"""Characters of a text in the line of a finished record."""
FIELD_CHARS: Final = 5_000
"""Characters of one field where a record is shown in full."""
SHOWN_FIELDS: Final = ("trans", "thought")
"""Fields of a result that are shown in full. A result without them shows its first MAX_FIELDS texts."""
MAX_FIELDS: Final = 3


def main_text(fields: Mapping[str, Any]) -> str:
    """The field `text`, else the first text that is not an id; "" if there is none."""
    return next(iter(_texts({"text": fields.get("text"), **fields}).values()), "")


def output_text(trace: Trace) -> str:
    """The result's `trans`, else its first text that the input does not have; "" if there is none."""
    texts = _output_texts(trace)
    return texts.get("trans") or next(iter(texts.values()), "")


def last_score(trace: Trace) -> float | None:
    """The score of the result's last step; None in a system whose steps have none."""
    steps = (trace.result or {}).get("steps")
    step = steps[-1] if isinstance(steps, list | tuple) and steps else None
    score = step.get("score") if isinstance(step, Mapping) else getattr(step, "score", None)
    return score if isinstance(score, int | float) else None


def describe_outcome(trace: Trace) -> str:
    """Outcome, reason and score: `kept, score 84`."""
    score = last_score(trace)
    parts = [
        f"{trace.outcome} ({shorten(trace.reason)})" if trace.reason else trace.outcome,
        *([f"score {score:.4g}"] if score is not None else []),
    ]
    return ", ".join(parts)


def describe_record(trace: Trace) -> str:
    """A finished record in one line: id, outcome, score, and the beginnings of its text and of its output."""
    texts = [shorten(text) for text in (main_text(trace.input), output_text(trace)) if text]
    return plain(f"{shorten(trace.id)} {describe_outcome(trace)}: {' → '.join(texts)}".removesuffix(": "))


def full_texts(trace: Trace) -> dict[str, str]:
    """The texts that show a record in full, by field: its text, then `trans` and `thought` or the first of its result.

    Texts above FIELD_CHARS are cut off.
    """
    outputs = _output_texts(trace)
    names = [name for name in SHOWN_FIELDS if name in outputs] or list(outputs)[:MAX_FIELDS]
    texts = {"text": main_text(trace.input)} | {name: outputs[name] for name in names}
    return {name: _cut(text) for name, text in texts.items() if text}


def shorten(text: str, length: int = LINE_CHARS) -> str:
    """The text in one line of at most `length` characters."""
    line = " ".join(plain(text[: 4 * length]).split())
    return line if len(line) <= length else line[: length - 1].rstrip() + "…"


def _cut(text: str) -> str:
    return text if len(text) <= FIELD_CHARS else f"{text[:FIELD_CHARS]} ... ({len(text):,} characters)"


def _output_texts(trace: Trace) -> dict[str, str]:
    shared = set(_texts(trace.input).values())
    return {name: text for name, text in _texts(trace.result or {}).items() if text not in shared}


def _texts(fields: Mapping[str, Any]) -> dict[str, str]:
    return {name: value for name, value in fields.items() if isinstance(value, str) and value.strip() and name != "id"}
