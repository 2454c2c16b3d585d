"""DRT's part of a run's report (`agentsys report`): the paper's figures beside the run's, and the shape of thoughts.

Section 2.3 and appendix B of the paper: steps per record (figure 3), the edit distance of the first refinements, mean
scores by step (figure 4). docs/drt-report.md says how each number is counted.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from itertools import pairwise
from pathlib import Path
from typing import Any, Final

from agentsys.collect.statistics import Panel, Section, percent
from agentsys.graphs.drt.figures import PAPER_DISTANCES, PAPER_SCORES, PAPER_STEPS, PAPER_TOTAL, panels
from agentsys.graphs.drt.measures import (
    LABELS,
    YES_NO,
    ThoughtShape,
    compare_shape,
    count_thoughts,
    edit_distance,
    released_range,
    released_shape,
)
from agentsys.graphs.drt.replay import OtherSettings, Rule, in_order_of_writing
from agentsys.graphs.drt.system import changed_steps
from agentsys.traces import Trace

BIN: Final = 10
"""Width of the bins of the printed histogram."""


class Means:
    """Mean of a series of numbers at each place, by group: the sums are in memory, not the series."""

    def __init__(self) -> None:
        self.sums: defaultdict[int, list[float]] = defaultdict(list)
        self.counts: Counter[int] = Counter()

    def add(self, group: int, values: Sequence[float]) -> None:
        """Add a series to a group, whose series all have the same length."""
        sums = self.sums[group]
        sums.extend([0.0] * (len(values) - len(sums)))
        for i, value in enumerate(values):
            sums[i] += value
        self.counts[group] += 1

    def rows(self) -> list[tuple[int, int, list[float]]]:
        """(group, number of series, means), in the order of the groups."""
        return [(group, n, [total / n for total in self.sums[group]]) for group, n in sorted(self.counts.items())]


class DRTStatistics:
    """The numbers of a DRT run, see `Statistics`. `rule` has the run's settings."""

    def __init__(self, rule: Rule) -> None:
        self.rule = rule
        self.scores: dict[str, Counter[int]] = {"stated": Counter(), "expected": Counter(), "score": Counter()}
        self.equal_pairs: Counter[tuple[bool, bool]] = Counter()
        """Neighboring steps by whether their stated and their expected scores are equal."""
        self.steps: Counter[int] = Counter()
        self.by_rounds, self.by_steps = Means(), Means()
        self.distances: defaultdict[int, list[int]] = defaultdict(lambda: [0, 0])
        """Sum and number of the edit distances of refinement k = 1, 2, ..."""
        self.stops: Counter[str] = Counter()
        self.thoughts = ThoughtShape()
        self.other_settings = OtherSettings(rule)

    def add(self, trace: Trace) -> None:
        """See Statistics."""
        result = trace.result or {}
        steps: list[Mapping[str, Any]] = result.get("steps") or []
        if not steps:
            return
        stop = str(result.get("stop") or "")
        self.stops[stop.partition(":")[0] or "none"] += 1
        self.other_settings.add(steps, stop)
        drafts = in_order_of_writing(steps)
        self._add_scores(drafts)
        scores = [float(step["score"]) for step in drafts]
        for n in range(1, len(scores) + 1):
            self.by_rounds.add(n - 1, scores[:n])
        if trace.outcome == "kept":
            self._add_kept(result, [steps[i] for i in result.get("kept") or range(len(steps))])

    def _add_scores(self, steps: Sequence[Mapping[str, Any]]) -> None:
        own = self.rule.score if self.rule.evaluator == "score" else "score"
        for step in steps:
            if "stated" not in step and "expected" not in step:  # an earlier version's trace, or pairwise
                self.scores[own][round(step["score"])] += 1
                continue
            for kind in ("stated", "expected"):
                if (value := step.get(kind)) is not None:
                    self.scores[kind][round(value)] += 1
        for before, step in pairwise(steps):
            values: list[Any] = [draft.get(kind) for kind in ("stated", "expected") for draft in (before, step)]
            if None not in values:
                stated, expected = (
                    len(changed_steps(pair, self.rule.score_step)) == 1 for pair in (values[:2], values[2:])
                )
                self.equal_pairs[stated, expected] += 1

    def _add_kept(self, result: Mapping[str, Any], kept: Sequence[Mapping[str, Any]]) -> None:
        self.steps[self.rule.counted_steps(range(len(kept)))] += 1
        self.by_steps.add(len(kept), [float(step["score"]) for step in kept])
        drafts = [str(step["translation"]) for step in kept]
        for k, (before, after) in enumerate(pairwise(drafts), 1):
            self.distances[k][0] += edit_distance(before, after)
            self.distances[k][1] += 1
        if thought := result.get("thought"):
            self.thoughts.add(str(result["text"]), str(result["trans"]), thought, drafts)

    @property
    def records(self) -> int:
        """Records with steps: kept and dropped, without those that failed."""
        return self.stops.total()

    def data(self) -> dict[str, Any]:
        """See Statistics."""
        released = released_shape()
        summary = self.thoughts.summary()
        verdicts = compare_shape(summary)
        kept = self.steps.total()
        return {
            "settings": asdict(self.rule),
            "scores": {
                kind: {str(k): counts[k] for k in sorted(counts)} for kind, counts in self.scores.items() if counts
            },
            "equal_scores": {name: self.equal_pairs[pair] for name, pair in _PAIRS.items()},
            "steps_per_record": {
                str(n): {"records": self.steps[n], "share": _rounded(self.steps[n], kept), "paper": _paper_share(n)}
                for n in sorted({*self.steps, *PAPER_STEPS})
            },
            "edit_distance": [
                {"refinement": k, "records": n, "mean": round(total / n, 2), "paper": _paper_distance(k)}
                for k, (total, n) in sorted(self.distances.items())
            ],
            "stops": dict(self.stops.most_common()),
            "mean_score_by_rounds": _mean_rows(self.by_rounds, "rounds_at_least"),
            "mean_score_by_steps": _mean_rows(self.by_steps, "steps"),
            "other_settings": self.other_settings.data(),
            "thoughts": {
                "n": self.thoughts.count,
                "released": {name: released[name] for name in ("source", "commit", "n")},
                "measures": {
                    name: {**numbers, "released": released["measures"].get(name), "in_range": verdicts.get(name)}
                    for name, numbers in summary.items()
                },
            },
        }

    def sections(self) -> list[Section]:
        """See Statistics."""
        sections = [
            self._score_histogram(),
            self._equal_scores(),
            self._steps(),
            self._distances(),
            self._stops(),
            self._by_rounds(),
            self._by_steps(),
            self._other_settings(),
        ]
        if self.thoughts.count:
            sections.append(thought_section(self.thoughts))
        return [section for section in sections if section.rows]

    def _score_histogram(self) -> Section:
        kinds = [kind for kind, counts in self.scores.items() if counts]
        edges = sorted({score // BIN * BIN for kind in kinds for score in self.scores[kind]})
        rows = []
        for edge in edges:
            cells = [sum(n for score, n in self.scores[kind].items() if score // BIN * BIN == edge) for kind in kinds]
            shares = [percent(n, self.scores[kind].total()) for kind, n in zip(kinds, cells, strict=True)]
            label = f"{edge} to {edge + BIN - 1}" if self.rule.evaluator == "score" else f"from {edge}"
            rows.append((label, *(f"{n:,} ({share})" for n, share in zip(cells, shares, strict=True))))
        note = "" if self.scores["stated"] and self.scores["expected"] else _one_kind_note(kinds)
        return Section("Scores of all drafts", ("score", *kinds), rows, note)

    def _equal_scores(self) -> Section:
        total = self.equal_pairs.total()
        differ = self.equal_pairs[True, False] + self.equal_pairs[False, True]
        rows = [(name.replace("_", " "), f"{self.equal_pairs[pair]:,}") for name, pair in _PAIRS.items()]
        note = (
            f"They disagree on {differ:,} of {total:,} neighboring drafts ({percent(differ, total)}). "
            "Step C1 removes a draft whose score equals that of the draft before."
        )
        return Section("Equal scores of neighboring drafts", ("", "pairs"), rows if total else [], note)

    def _steps(self) -> Section:
        kept = self.steps.total()
        rows = [
            (str(n), f"{self.steps[n]:,}", percent(self.steps[n], kept), percent(PAPER_STEPS.get(n, 0), PAPER_TOTAL))
            for n in sorted({*self.steps, *PAPER_STEPS})
        ]
        return Section("Steps per kept record (figure 3)", ("steps", "records", "share", "paper"), rows if kept else [])

    def _distances(self) -> Section:
        rows = [
            (str(k), f"{n:,}", f"{total / n:.2f}", "-" if (paper := _paper_distance(k)) is None else f"{paper:.2f}")
            for k, (total, n) in sorted(self.distances.items())
        ]
        columns = ("refinement", "records", "characters", "paper")
        return Section("Edit distance of kept steps", columns, rows, self._order_note())

    def _order_note(self) -> str:
        return "Candidates are in the order of their scores." if self.rule.refiner == "candidates" else ""

    def _stops(self) -> Section:
        rows = [(stop, f"{n:,}", percent(n, self.records)) for stop, n in self.stops.most_common()]
        return Section("Why the rounds ended", ("reason", "records", "share"), rows)

    def _by_rounds(self) -> Section:
        means = self.by_rounds.rows()
        width = max((len(row) for _, _, row in means), default=0)
        rows = [(str(n), f"{count:,}", *_cells(row, width)) for n, count, row in means]
        columns = ("rounds", "records", "draft", *_count_columns("round", width - 1))
        note = "Each row: the records with at least so many rounds, the same ones in all columns."
        return Section("Mean score after each round", columns, rows, note)

    def _by_steps(self) -> Section:
        means = self.by_steps.rows()
        width = max((len(row) for _, _, row in means), default=0)
        rows = []
        for n, count, row in means:
            rows.append((str(n), f"{count:,}", *_cells(row, width)))
            if n in PAPER_SCORES and self.rule.evaluator == "score":
                rows.append(("  paper", "", *_cells(PAPER_SCORES[n], width)))
        columns = ("drafts", "records", *_count_columns("draft", width))
        title = "Mean score of the steps of kept records (figure 4)"
        return Section(title, columns, rows, self._order_note())

    def _other_settings(self) -> Section:
        rows = []
        for counts in self.other_settings.data():
            is_open = ">= " if counts["open"] else ""
            rounds = counts["rounds"] / max(self.records, 1)
            kept, dropped = (f"{n:,} ({percent(n, self.records)})" for n in (counts["kept"], counts["dropped"]))
            rows.append((counts["name"], kept, dropped, f"{counts['open']:,}", f"{is_open}{rounds:.2f}"))
        columns = ("setting", "pass the filter", "dropped", "cannot tell", "rounds")
        note = (
            "Replayed on the drafts of the traces, without calls. Cannot tell: the setting asks for more rounds "
            "than the run made, or for a score that its traces do not have. A record that passes the filter still "
            "needs a usable thought."
        )
        return Section("What other settings would keep", columns, rows if self.records else [], note)

    def panels(self) -> list[Panel]:
        """See Statistics."""
        return panels(self.data())

    def headline(self) -> list[tuple[str, str]]:
        """See Statistics."""
        rows = []
        if means := self.by_rounds.rows():
            n, count, row = next(entry for entry in reversed(means) if entry[1] * 2 >= self.records)
            cell = " to ".join(f"{mean:.1f}" for mean in row)
            rows.append((f"mean score, records with at least {n} rounds", f"{cell} (n={count:,})"))
        if total := self.equal_pairs.total():
            differ = self.equal_pairs[True, False] + self.equal_pairs[False, True]
            rows.append(("stated and expected disagree on equal scores", f"{differ:,} of {total:,}"))
        if self.thoughts.count:
            verdicts = compare_shape(self.thoughts.summary())
            rows.append(("thought measures in the released range", f"{sum(verdicts.values())} of {len(verdicts)}"))
        return rows


def thought_section(shape: ThoughtShape) -> Section:
    """The shape test: the mean of each measure here, beside the released mean and 5th to 95th percentile."""
    released = released_shape()["measures"]
    summary = shape.summary()
    verdicts = compare_shape(summary)
    rows = []
    for name, label in {**LABELS, **YES_NO}.items():
        bounds = released_range(name, released)
        scale, unit = (1.0, "") if name in LABELS else (100.0, " %")
        here = summary.get(name, {})
        mean = f"{_short(scale * here['mean'])}{unit}" if here else "-"
        spread = f"{_short(here['p5'])} to {_short(here['p95'])}" if "p5" in here else "-"
        range_cell = " to ".join(_short(scale * bound) for bound in bounds) + unit
        verdict = ("yes" if verdicts[name] else "NO") if name in verdicts else "-"
        rows.append((label, mean, spread, f"{_short(scale * released[name]['mean'])}{unit}", range_cell, verdict))
    columns = ("measure", "mean", "5 to 95 %", "released", "its range", "in range")
    note = (
        "Range: the 5th to the 95th percentile of the released thoughts (English to Chinese); of shares, ten points "
        "around theirs. A dash: the measure does not apply to this pair of languages."
    )
    return Section(f"Shape of {shape.count:,} thoughts", columns, rows, note)


def file_sections(path: str | Path) -> list[Section]:
    """The tables about a file of thoughts: its percentiles, and the test against the released data.

    Raises InputError for a file without usable records.
    """
    shape = count_thoughts(path)
    summary = shape.summary()
    points = [name for name in next(iter(summary.values())) if name != "mean"]
    rows = [
        (label, *(_short(summary[name][point]) for point in ("mean", *points)))
        for name, label in LABELS.items()
        if name in summary
    ]
    columns = ("measure", "mean", *(f"{point[1:]} %" for point in points))
    return [Section(f"Percentiles of {shape.count:,} thoughts in {path}", columns, rows), thought_section(shape)]


def statistics(manifest: Mapping[str, Any]) -> DRTStatistics:
    """The statistics of a run, by its manifest (see agentsys.collect.run_report)."""
    return DRTStatistics(Rule.of_run(manifest))


_PAIRS: Final = {
    "both_equal": (True, True),
    "only_stated_equal": (True, False),
    "only_expected_equal": (False, True),
    "neither_equal": (False, False),
}


def _one_kind_note(kinds: Sequence[str]) -> str:
    return f"The traces have only one kind of score: {kinds[0]}." if len(kinds) == 1 else ""


def _mean_rows(means: Means, name: str) -> list[dict[str, Any]]:
    return [{name: n, "records": count, "means": [round(mean, 2) for mean in row]} for n, count, row in means.rows()]


def _short(number: float) -> str:
    """A number with one decimal below 100, and none above."""
    return f"{number:,.0f}" if abs(number) >= 99.95 else f"{number:.1f}"


def _count_columns(word: str, count: int) -> list[str]:
    """Columns "draft 1", "2", "3", ..."""
    return [word + " 1", *map(str, range(2, count + 1))] if count > 0 else []


def _cells(means: Sequence[float], width: int) -> list[str]:
    return [f"{mean:.1f}" for mean in means] + [""] * (width - len(means))


def _rounded(count: int, total: int) -> float | None:
    return round(count / total, 4) if total else None


def _paper_share(n: int) -> float:
    return round(PAPER_STEPS.get(n, 0) / PAPER_TOTAL, 4)


def _paper_distance(k: int) -> float | None:
    return PAPER_DISTANCES[k - 1] if k <= len(PAPER_DISTANCES) else None
