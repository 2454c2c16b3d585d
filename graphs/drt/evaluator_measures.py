"""The measures of the evaluator check: how often each method prefers the better translation of a pair, and its cost."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from itertools import combinations
from pathlib import Path
from statistics import NormalDist, fmean
from typing import Any, Final

from rich.box import SIMPLE
from rich.table import Table

from agentsys.console import Console
from agentsys.evaluation.report import (
    count_reasons,
    mean_known,
    number_cell,
    plain_printer,
    reason_lines,
    sample_order,
    score_cell,
    unusable_lines,
    write_report,
)
from agentsys.evaluation.run import SystemRun
from agentsys.evaluation.sample import SampleOptions, read_rows, text_in
from agentsys.metrics.corpus import Score, mean_statistic, paired_bootstrap
from agentsys.records import BadRecord, Record
from agentsys.text.languages import language_name
from agentsys.traces import Call, Trace

METHODS: Final = ("stated", "expected", "pairwise")
COSTS: Final = ("calls", "prompt_tokens", "completion_tokens", "seconds")


@dataclass(frozen=True, slots=True)
class Pair:
    """Two translations of a text of which one is better; `group` is what accuracies are also reported for."""

    id: str
    text: str
    better: str
    worse: str
    source_language: str
    target_language: str
    group: str
    note: str

    @property
    def direction(self) -> str:
        """Its languages, as "English to Chinese"."""
        return f"{self.source_language} to {self.target_language}"


@dataclass(frozen=True, slots=True)
class Verdict:
    """What the methods say of a pair: 1 right, 0.5 undecided, 0 wrong or unusable; and what each cost.

    `stated` and `expected` are the scores of the better and the worse translation, None if there are none.
    """

    credits: dict[str, float]
    costs: dict[str, dict[str, float | None]]
    unusable: dict[str, str] = field(default_factory=dict)
    stated: list[float] | None = None
    expected: list[float | None] | None = None


def read_pairs(path: Path, options: SampleOptions, languages: Mapping[str, str]) -> Iterator[Pair | BadRecord]:
    """The pairs of a file; `languages` are those of pairs that name none. Raises InputError."""

    def pair_of(record: Record) -> Pair:
        texts = {name: text_in(record.data, name) for name in ("text", "better", "worse")}
        if texts["better"].strip() == texts["worse"].strip():
            raise ValueError("better and worse are the same text")
        own = {name: language_name(str(record.data.get(name) or default)) for name, default in languages.items()}
        extra = {name: str(record.data.get(name) or "") for name in ("group", "note")}
        return Pair(record.id, **texts, **own, **extra)

    return read_rows(path, options, pair_of, "pair", required=["text", "better", "worse"])


def verdict_of(trace: Trace) -> Verdict:
    """What a trace of graphs/drt/evaluator_check.py says of its pair; a failed record is wrong for all methods."""
    costs = {method: _cost([call for call in trace.calls if method in _methods_of(call)]) for method in METHODS}
    result = trace.result
    if result is None:
        return Verdict(dict.fromkeys(METHODS, 0.0), costs, dict.fromkeys(METHODS, trace.reason or "failed"))
    credits = dict.fromkeys(METHODS, 0.0)
    stated, expected = result.get("stated"), result.get("expected")
    if stated and expected:
        credits["stated"] = _compare(*stated)
        # As DRT does it: without an expected score, the stated one is used.
        credits["expected"] = _compare(*(s if e is None else e for s, e in zip(stated, expected, strict=True)))
    if wins := result.get("pairwise"):
        credits["pairwise"] = fmean(wins)
    return Verdict(credits, costs, result.get("unusable") or {}, stated, expected)


def _compare(better: float, worse: float) -> float:
    return 0.5 if better == worse else float(better > worse)


def _methods_of(call: Call) -> tuple[str, ...]:
    """The methods that need a call: the expected score needs the stated one's, and those for one more token."""
    name, _, rest = call.key.partition("/")
    if name == "compare":
        return ("pairwise",)
    return ("expected",) if "/" in rest else ("stated", "expected")


def _cost(calls: Sequence[Call]) -> dict[str, float | None]:
    """Calls, tokens and the seconds of all calls; no seconds if one came from the request cache."""
    seconds = [call.measured.get("seconds") for call in calls]
    is_timed = all(seconds) and not any(call.measured.get("cache_hit") for call in calls)
    return {
        "calls": float(len(calls)),
        "prompt_tokens": float(sum(call.prompt_tokens for call in calls)),
        "completion_tokens": float(sum(call.completion_tokens for call in calls)),
        "seconds": sum(value for value in seconds if value) if is_timed and calls else None,
    }


def wilson(share: float, n: int, level: float = 0.95) -> Score:
    """A share of n with Wilson's interval (1927), in percent. It has a width also at 0 and 1."""
    z = NormalDist().inv_cdf(0.5 + level / 2)
    center = (share + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * (share * (1 - share) / n + z * z / (4 * n * n)) ** 0.5
    return Score(100 * share, 100 * max(0.0, center - half), 100 * min(1.0, center + half))


def measure(pairs: Sequence[Pair], verdicts: Sequence[Verdict]) -> dict[str, Any]:
    """Accuracy of each method with its interval and cost; paired differences; accuracy by group, all in percent."""
    credits = {method: [verdict.credits[method] for verdict in verdicts] for method in METHODS}
    rows: dict[str, list[int]] = {}
    for labels in ([pair.direction for pair in pairs], [pair.group for pair in pairs]):
        for i, label in enumerate(labels):
            rows.setdefault(label, []).append(i)
    rows.pop("", None)
    scores = [score for verdict in verdicts for score in verdict.expected or ()]
    return {
        "methods": {method: _measure_method(method, verdicts) for method in METHODS},
        "differences": [_difference(credits, *methods) for methods in combinations(METHODS, 2)],
        "groups": {
            group: {"n": len(of), **{method: 100 * fmean(credits[method][i] for i in of) for method in METHODS}}
            for group, of in rows.items()
        },
        "scores": len(scores),
        "without_expected": sum(score is None for score in scores),
    }


def _measure_method(method: str, verdicts: Sequence[Verdict]) -> dict[str, Any]:
    usable = [verdict.credits[method] for verdict in verdicts if method not in verdict.unusable]
    accuracy = wilson(sum(usable) / len(verdicts), len(verdicts))
    return {
        **asdict(accuracy),
        "right": usable.count(1.0),
        "undecided": usable.count(0.5),
        "wrong": usable.count(0.0),
        "unusable": len(verdicts) - len(usable),
        "reasons": count_reasons(verdict.unusable.get(method) for verdict in verdicts),
        "cost": {name: mean_known(verdict.costs[method][name] for verdict in verdicts) for name in COSTS},
    }


def _difference(credits: Mapping[str, Sequence[float]], baseline: str, method: str) -> dict[str, Any]:
    """`method` minus `baseline` on the same pairs, in points, by paired bootstrap resampling."""
    system, other = (mean_statistic([100 * credit for credit in credits[name]]) for name in (method, baseline))
    difference = paired_bootstrap(system, other, len(credits[method]))
    return {"method": method, "baseline": baseline, **asdict(difference)}


def models_of(run: SystemRun) -> dict[str, str]:
    """The model of each role, by its name in the run's fingerprint."""
    return {role: run.model_name(field) for role, field in type(run.context).role_fields.items()}


def write_results(
    report: Mapping[str, Any], pairs: Sequence[Pair], verdicts: Sequence[Verdict], out: str | Path
) -> None:
    """Write evaluation.json and pairs.jsonl."""
    lines = ({**asdict(pair), **asdict(verdict)} for pair, verdict in zip(pairs, verdicts, strict=True))
    write_report(report, "pairs.jsonl", lines, out)


def print_report(report: Mapping[str, Any], console: Console) -> None:
    """Print the conditions, the tables, and what is missing."""
    say = plain_printer(console)
    methods = report["methods"]
    models = ", ".join(f"{role} {model}" for role, model in report["models"].items())
    say(f"{report['file']}, n={report['pairs']}{sample_order(report['settings'])}; {models}; scored without a comment")
    for table in (_accuracy_table(methods), _group_table(report["groups"]), _cost_table(methods)):
        console.print(table)
    for one in report["differences"]:
        say(
            f"{one['method']} minus {one['baseline']}: {one['value']:+.1f} points [{one['low']:+.1f}, "
            f"{one['high']:+.1f}], p = {one['p']:.3f}"
        )
    if report["without_expected"]:
        say(f"{report['without_expected']} of {report['scores']} scores have no expected score: the stated one counts")
    for line in unusable_lines(report, "compared"):
        say(line)
    for name, method in methods.items():
        if method["unusable"]:
            say(f"{name}: no usable reply for {method['unusable']} of {report['pairs']} pairs, which count as wrong:")
            for line in reason_lines(method["reasons"]):
                say(line)
    say(f"numbers and pairs: {report['out']}")


def _accuracy_table(methods: Mapping[str, Mapping[str, Any]]) -> Table:
    table = Table("method", "correct, % (95 %)", "right", "undecided", "wrong", "unusable", box=SIMPLE)
    for name, method in methods.items():
        counts = (str(method[count]) for count in ("right", "undecided", "wrong", "unusable"))
        table.add_row(name, score_cell(method), *counts)
    return table


def _group_table(groups: Mapping[str, Mapping[str, Any]]) -> Table:
    table = Table("correct, %", "n", *METHODS, box=SIMPLE)
    for name, group in groups.items():
        table.add_row(name, str(group["n"]), *(number_cell(group[method], 1) for method in METHODS))
    return table


def _cost_table(methods: Mapping[str, Mapping[str, Any]]) -> Table:
    table = Table("per pair", "calls", "prompt tokens", "completion tokens", "seconds", box=SIMPLE)
    for name, method in methods.items():
        table.add_row(name, *(number_cell(method["cost"][cost], 1) for cost in COSTS))
    return table
