"""The measures of LongDPO's evaluation: S_l and S_q by required length, the six dimensions; tables and figure.

A response without a score is left out of the means and counted.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import cycle
from pathlib import Path
from statistics import fmean
from typing import Any, Final

from rich.box import SIMPLE
from rich.table import Table

from agentsys.console import Console
from agentsys.evaluation.report import (
    count_reasons,
    figure,
    mean_score,
    overlap_line,
    plain_printer,
    print_tables,
    reason_lines,
    result_lines,
    sample_order,
    score_cell,
    unusable_lines,
    write_report,
)
from agentsys.graphs.longdpo.entries import EntryScores, score_entries
from agentsys.graphs.longdpo.longbench_write import DIMENSIONS, percent, quality_score
from agentsys.graphs.longdpo.requests import Request, Response
from agentsys.metrics.lengths import BUCKETS, bucket, count_words, length_score

BUCKET_NAMES: Final = (*(name for _, name in BUCKETS), bucket(BUCKETS[-1][0]))
"""The buckets of the required length, in order."""
ENTRY_SCORES: Final = {
    "completed": "entries completed",
    "items_present": "requirements met\nin those entries",
    "items": "requirements met\nin all entries",
}
"""The scores of requests with entries, and their titles in the table."""


@dataclass(frozen=True, slots=True)
class ResponseScores:
    """The scores of one response: words required (0: not named) and written, S_l and S_q from 0 to 100.

    `entries`: the shares of entries and requirements; None if the request names none.
    """

    length: int
    words: int | None
    S_l: float | None
    S_q: float | None
    grades: Mapping[str, int] | None
    truncated: bool | None
    unjudged: str | None
    error: str | None
    entries: EntryScores | None = None

    @property
    def bucket(self) -> str:
        """The bucket of the required length; "" if the request names none."""
        return bucket(self.length) if self.length else ""


def score_response(request: Request, response: Response) -> ResponseScores:
    """Both scores of one response; None where there is none."""
    words = None if response.text is None else count_words(response.text)
    return ResponseScores(
        length=request.length,
        words=words,
        S_l=length_score(request.length, words) if request.length and words is not None else None,
        S_q=quality_score(response.grades) if response.grades else None,
        grades=response.grades,
        truncated=response.truncated,
        unjudged=response.unjudged,
        error=response.error,
        entries=score_entries(request.entries, response.text)
        if request.entries and response.text is not None
        else None,
    )


def measure(scores: Sequence[ResponseScores]) -> dict[str, Any]:
    """The measures of one system, 0 to 100, with 95 % bootstrap intervals over responses; None where there are none."""
    grades = [one.grades for one in scores if one.grades]
    return {
        "n": len(scores),
        "failed": sum(one.words is None for one in scores),
        "errors": count_reasons(one.error for one in scores),
        "truncated": sum(bool(one.truncated) for one in scores),
        "truncated_known": sum(one.truncated is not None for one in scores),
        "judged": len(grades),
        "unjudged": count_reasons(one.unjudged for one in scores),
        "S_l": by_bucket([(one.bucket, one.S_l) for one in scores if one.S_l is not None]),
        "S_q": by_bucket([(one.bucket, one.S_q) for one in scores if one.S_q is not None]),
        "entries": _measure_entries([one.entries for one in scores if one.entries]),
        "dimensions": {name: _mean([percent(grade[name]) for grade in grades]) for name in DIMENSIONS},
        "words": {
            name: _mean_words(word_counts([one for one in scores if one.bucket == name])) for name in BUCKET_NAMES
        },
    }


def _measure_entries(scores: Sequence[EntryScores]) -> dict[str, Any] | None:
    """The mean shares in percent over the responses that have them; None if no request names entries."""
    if not scores:
        return None
    shares = {name: [getattr(one, name) for one in scores] for name in ENTRY_SCORES}
    return {name: _mean([100 * share for share in known if share is not None]) for name, known in shares.items()}


def word_counts(scores: Sequence[ResponseScores]) -> list[tuple[int, int]]:
    """The words required and written of the responses that have an S_l."""
    return [(one.length, one.words) for one in scores if one.length and one.words is not None]


def by_bucket(values: Sequence[tuple[str, float]]) -> dict[str, Any]:
    """Means by bucket and over all responses; `average` is the mean of the buckets with responses, as in the paper."""
    buckets = {name: _mean([value for of, value in values if of == name]) for name in BUCKET_NAMES}
    means = [score["value"] for score in buckets.values() if score]
    return {
        "buckets": buckets,
        "average": {"value": fmean(means), "buckets": len(means)} if means else None,
        "all": _mean([value for _, value in values]),
    }


def _mean(values: Sequence[float]) -> dict[str, Any] | None:
    return {**mean_score(values), "n": len(values)} if values else None


def _mean_words(counts: Sequence[tuple[int, int]]) -> dict[str, float] | None:
    """Mean words, required and written."""
    if not counts:
        return None
    return {"required": fmean(required for required, _ in counts), "written": fmean(words for _, words in counts)}


def tables(systems: Mapping[str, Mapping[str, Any]]) -> list[Table]:
    """S_l and S_q by bucket; the six dimensions, if there are judgments; entries, if requests name them."""
    scores = Table("system", "required words", "S_l", "n", "S_q", "n", "mean words\nrequired / written", box=SIMPLE)
    dimensions = Table("system", *(name.replace("_", " ") for name in DIMENSIONS), "n", box=SIMPLE)
    entries = _entry_table(systems)
    for name, result in systems.items():
        for i, of in enumerate(BUCKET_NAMES):
            cells = [cell for score in ("S_l", "S_q") for cell in _cells(result[score]["buckets"][of])]
            words = result["words"][of]
            both = f"{words['required']:,.0f} / {words['written']:,.0f}" if words else "-"
            scores.add_row("" if i else name, of, *cells, both)
        averages = [result[score]["average"] for score in ("S_l", "S_q")]
        cells = [cell for a in averages for cell in ((f"{a['value']:.1f}", "") if a else ("-", ""))]
        scores.add_row("", "average", *cells, "")
        cells = [cell for score in ("S_l", "S_q") for cell in _cells(result[score]["all"])]
        scores.add_row("", "all", *cells, "", end_section=True)
        if result["judged"]:
            means = [_cells(result["dimensions"][dimension])[0] for dimension in DIMENSIONS]
            dimensions.add_row(name, *means, str(result["judged"]))
    return [scores, *(table for table in (dimensions, entries) if table.row_count)]


def _entry_table(systems: Mapping[str, Mapping[str, Any]]) -> Table:
    """Entries and requirements of the systems, in percent."""
    table = Table("system", *(f"{title}, %" for title in ENTRY_SCORES.values()), "n", box=SIMPLE)
    for name, result in systems.items():
        if scores := result["entries"]:
            table.add_row(name, *(_cells(scores[score])[0] for score in ENTRY_SCORES), str(scores["completed"]["n"]))
    return table


def _cells(score: Mapping[str, Any] | None) -> tuple[str, str]:
    """The mean with its interval, and n."""
    return (score_cell(score), str(score["n"])) if score else ("-", "0")


def print_report(report: Mapping[str, Any], console: Console) -> None:
    """Print the conditions, the tables, and what is missing."""
    say = plain_printer(console)
    settings, systems = report["settings"], report["systems"]
    say(f"{settings['requests']}, n={report['requests']}{sample_order(settings)}")
    for name, result in systems.items():
        sampling = ", ".join(f"{key} {value}" for key, value in (result["sampling"] or {}).items())
        judge = f"judge {result['judge']}" if result["judge"] else "no judge"
        say("; ".join(filter(None, [f"{name}: {result['writer']}", sampling, judge])))
    print_tables(tables(systems), systems, "request", console)
    say("95 % intervals in brackets; average: the mean of the buckets with responses, as in the paper")
    for line in _missing_lines(report):
        say(line)
    say(f"numbers, scores and figure: {report['out']}")


def _missing_lines(report: Mapping[str, Any]) -> Iterator[str]:
    """What is left out of the means, and why."""
    yield from unusable_lines(report, "asked")
    if report["without_length"]:
        yield f"{report['without_length']} of {report['requests']} requests name no length: no S_l, in no bucket"
    for name, result in report["systems"].items():
        n = result["n"] - result["failed"]
        if result["truncated_known"]:
            yield f"{name}: {result['truncated']} of {result['truncated_known']} responses truncated at a token limit"
        if result["failed"]:
            yield f"{name}: no response to {result['failed']} of {result['n']} requests, which are left out:"
            yield from reason_lines(result["errors"])
        if result["unjudged"]:
            yield f"{name}: {n - result['judged']} of {n} responses without a judgment, left out of S_q:"
            yield from reason_lines(result["unjudged"])
    if "trained" in report["systems"] and not report["overlap_checked"]:
        yield overlap_line("request")


def write_results(
    report: Mapping[str, Any], requests: Sequence[Request], scores: Mapping[str, Sequence[ResponseScores]], out: Path
) -> None:
    """Write evaluation.json, scores.jsonl and lengths.png."""

    def fields(row: Request) -> dict[str, Any]:
        return {"id": row.id, "prompt": row.prompt, "length": row.length or None}

    write_report(report, "scores.jsonl", result_lines(requests, fields, scores), out)
    title = f"{report['settings']['requests'].stem}, n = {len(requests) - report['without_length']}"
    plot({name: word_counts(of_system) for name, of_system in scores.items()}, title, out / "lengths.png")


def plot(counts: Mapping[str, Sequence[tuple[int, int]]], title: str, file: Path) -> None:
    """Words written against words required, one mark per response, on logarithmic axes; an empty one is at 1 word."""
    with figure(file, title, (6, 6), ("words required", "words written"), legend="below") as axes:
        for (name, pairs), marker in zip(counts.items(), cycle("os^Dv"), strict=False):
            words_written = [max(1, words) for _, words in pairs]
            axes.scatter([words for words, _ in pairs], words_written, marker=marker, alpha=0.5, label=name)
        required = [words for pairs in counts.values() for words, _ in pairs] or [1]
        line = [min(required), max(required)]
        axes.plot(line, line, "k--", linewidth=1, label="as required")
        axes.set_xscale("log")
        axes.set_yscale("log")
