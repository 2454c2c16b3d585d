"""Two runs side by side: what they have in common, and paired statistics of it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any, Final

from agentsys.metrics.corpus import mean_statistic, paired_bootstrap
from agentsys.view.run import RunData

MEASURES: Final = {
    "score": "mean score",
    "rounds": "rounds per record",
    "calls": "calls per record",
    "completion_tokens": "completion tokens per record",
    "seconds": "seconds per record",
}
RESAMPLES: Final = 1_000
MAX_DRAWS: Final = 5_000_000
"""Resamples times records: of many records fewer resamples are drawn."""


def compare_runs(first: RunData, second: RunData) -> dict[str, Any]:
    """Paired differences, second minus first, over the records that both have; 95 % intervals and p-values."""
    places = _first_places(first)
    pairs = [(places[record], place) for record, place in _first_places(second).items() if record in places]
    kept = [
        [float(run.columns["outcome"][place] == "kept") for place in side]
        for run, side in zip((first, second), zip(*pairs, strict=True) if pairs else ((), ()), strict=True)
    ]
    measures = [_paired("kept", "kept, of records", *kept)]
    for name, label in MEASURES.items():
        values = [(first.columns[name][a], second.columns[name][b]) for a, b in pairs]
        numbers = [(float(a), float(b)) for a, b in values if a is not None and b is not None]
        measures.append(_paired(name, label, [a for a, _ in numbers], [b for _, b in numbers]))
    return {
        "runs": [first.name, second.name],
        "shared": len(pairs),
        "only": [len(_first_places(run)) - len(pairs) for run in (first, second)],
        "measures": [measure for measure in measures if measure["n"]],
    }


def _first_places(run: RunData) -> dict[str, int]:
    """The place of each id. A second record of an id was refused, and counts no more than an input without one."""
    places: dict[str, int] = {}
    for place, record in enumerate(run.columns["id"]):
        if record is not None:
            places.setdefault(record, place)
    return places


def _paired(name: str, label: str, first: Sequence[float], second: Sequence[float]) -> dict[str, Any]:
    n = len(first)
    if not n:
        return {"name": name, "n": 0}
    resamples = min(RESAMPLES, max(MAX_DRAWS // n, 100))
    difference = paired_bootstrap(mean_statistic(second), mean_statistic(first), n, resamples=resamples)
    means = {"first": sum(first) / n, "second": sum(second) / n}
    return {"name": name, "label": label, "n": n, **means, **asdict(difference)}
