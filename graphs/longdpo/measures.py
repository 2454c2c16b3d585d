"""What LongDPO's evaluation measures of long responses, and how it is shown: S_l and S_q by required length.

What is missing has no score and is in no mean; how much that is stands beside it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import cycle
from pathlib import Path
from statistics import fmean
from typing import Any, Final

from rich.box import SIMPLE
from rich.markup import escape
from rich.table import Table

from agentsys.graphs.longdpo.writing import DIMENSIONS, Request, Response, percent, quality_score
from agentsys.metrics.corpus import mean_with_interval
from agentsys.metrics.lengths import BUCKETS, bucket, count_words, length_score

NAMES: Final = (*(name for _, name in BUCKETS), bucket(BUCKETS[-1][0]))
"""The buckets of the required length, in order."""


@dataclass(frozen=True, slots=True)
class Scored:
    """What is known of one response: words required (0: not named) and written, S_l and S_q from 0 to 100."""

    length: int
    words: int | None
    S_l: float | None
    S_q: float | None
    grades: Mapping[str, int] | None
    cut: bool | None
    unjudged: str | None
    error: str | None

    @property
    def place(self) -> str:
        """The bucket; none is "", where no length is named."""
        return bucket(self.length) if self.length else ""


def scored(row: Request, response: Response) -> Scored:
    """Both scores of one response, None where there is none."""
    words = None if response.text is None else count_words(response.text)
    kept = length_score(row.length, words) if row.length and words is not None else None
    quality = quality_score(response.grades) if response.grades else None
    rest = (response.grades, response.cut, response.unjudged, response.error)
    return Scored(row.length, words, kept, quality, *rest)


def measure(found: Sequence[Scored]) -> dict[str, Any]:
    """The measures of one system, 0 to 100, with 95 % bootstrap intervals over responses; None where there are none."""
    judged = [one.grades for one in found if one.grades]
    return {
        "n": len(found),
        "failed": sum(one.words is None for one in found),
        "errors": dict(Counter(one.error for one in found if one.error).most_common()),
        "cut": sum(bool(one.cut) for one in found),
        "cut_known": sum(one.cut is not None for one in found),
        "judged": len(judged),
        "unjudged": dict(Counter(one.unjudged for one in found if one.unjudged).most_common()),
        "S_l": by_bucket([(one.place, one.S_l) for one in found if one.S_l is not None]),
        "S_q": by_bucket([(one.place, one.S_q) for one in found if one.S_q is not None]),
        "dimensions": {name: _mean([percent(grades[name]) for grades in judged]) for name in DIMENSIONS},
        "words": {name: _words(sized([one for one in found if one.place == name])) for name in NAMES},
    }


def sized(found: Sequence[Scored]) -> list[tuple[int, int]]:
    """The words required and written of the responses that have an S_l."""
    return [(one.length, one.words) for one in found if one.length and one.words is not None]


def by_bucket(values: Sequence[tuple[str, float]]) -> dict[str, Any]:
    """Means by bucket, over all, and `average`: the plain mean of the buckets that are there, as in the paper."""
    buckets = {name: _mean([value for where, value in values if where == name]) for name in NAMES}
    there = [score["value"] for score in buckets.values() if score]
    return {
        "buckets": buckets,
        "average": {"value": fmean(there), "buckets": len(there)} if there else None,
        "all": _mean([value for _, value in values]),
    }


def _mean(values: Sequence[float]) -> dict[str, Any] | None:
    return {**asdict(mean_with_interval(values)), "n": len(values)} if values else None


def _words(pairs: Sequence[Sequence[int]]) -> dict[str, float] | None:
    """Mean words, required and written."""
    return {"required": fmean(r for r, _ in pairs), "written": fmean(n for _, n in pairs)} if pairs else None


def tables(systems: Mapping[str, Mapping[str, Any]]) -> list[Table]:
    """S_l and S_q by bucket; and, where there are judgements, the six dimensions."""
    scores = Table("system", "required words", "S_l", "n", "S_q", "n", "mean words\nrequired / written", box=SIMPLE)
    dimensions = Table("system", *(name.replace("_", " ") for name in DIMENSIONS), "n", box=SIMPLE)
    for name, found in systems.items():
        for i, place in enumerate(NAMES):
            cells = [cell for score in ("S_l", "S_q") for cell in _cells(found[score]["buckets"][place])]
            words = found["words"][place]
            both = f"{words['required']:,.0f} / {words['written']:,.0f}" if words else "-"
            scores.add_row("" if i else escape(name), place, *cells, both)
        averages = [found[score]["average"] for score in ("S_l", "S_q")]
        cells = [cell for a in averages for cell in ((f"{a['value']:.1f}", "") if a else ("-", ""))]
        scores.add_row("", "average", *cells, "")
        cells = [cell for score in ("S_l", "S_q") for cell in _cells(found[score]["all"])]
        scores.add_row("", "all", *cells, "", end_section=True)
        if found["judged"]:
            means = [_cells(found["dimensions"][dimension])[0] for dimension in DIMENSIONS]
            dimensions.add_row(escape(name), *means, str(found["judged"]))
    return [scores, dimensions] if dimensions.row_count else [scores]


def _cells(score: Mapping[str, Any] | None) -> tuple[str, str]:
    """The mean with its interval, and n."""
    if score is None:
        return "-", "0"
    return f"{score['value']:.1f} ({score['low']:.1f}-{score['high']:.1f})", str(score["n"])


def plot(points: Mapping[str, Sequence[tuple[int, int]]], title: str, file: Path) -> None:
    """Written against required words, both on a logarithmic axis, a mark a response; an empty one stands at 1 word."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6, 6), layout="constrained")
    axes = figure.add_subplot()
    for (name, pairs), marker in zip(points.items(), cycle("os^Dv"), strict=False):
        written = [max(1, words) for _, words in pairs]
        axes.scatter([words for words, _ in pairs], written, marker=marker, alpha=0.5, label=name)
    ends = [words for pairs in points.values() for words, _ in pairs] or [1]
    line = [min(ends), max(ends)]
    axes.plot(line, line, "k--", linewidth=1, label="as required")
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.set_xlabel("words required")
    axes.set_ylabel("words written")
    axes.set_title(title)
    axes.grid(alpha=0.3)
    figure.legend(loc="outside lower center", ncols=3)
    figure.savefig(file, dpi=120)
