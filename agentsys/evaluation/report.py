"""The report of an evaluation: files, scores with intervals, cells of tables, a figure, what is missing, exit codes."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING, Any, Final, Literal

import orjson

from agentsys.display import plain
from agentsys.evaluation.sample import Sample
from agentsys.fonts import fit_fonts
from agentsys.metrics.corpus import Statistic, mean_with_interval, paired_bootstrap, with_interval
from agentsys.records import InputError

if TYPE_CHECKING:
    from agentsys.console import Console

REPORT_VERSION: Final = 2
"""The version of evaluation.json."""
MAX_REASONS: Final = 5
"""Reasons, or unusable records, that are printed for each group; evaluation.json has all of them."""


def check_installed(packages: Mapping[str, str], fix: str) -> None:
    """Raises InputError with the fix for the first module that is missing; `packages` maps modules to packages."""
    for module, package in packages.items():
        if find_spec(module) is None:
            raise InputError(f"{package} is not installed: {fix}")


def report_head(sample: Sample[Any], noun: str, out: str | Path, *options: Any) -> dict[str, Any]:
    """The keys that every report begins with; `options` are the dataclasses of the command's options."""
    return {
        "version": REPORT_VERSION,
        "out": str(out),
        "settings": {name: value for group in options for name, value in asdict(group).items()},
        f"{noun}s_sha256": sample.sha256,
        "unusable": [{"source": row.source, "reason": row.reason} for row in sample.unusable],
    }


def result_lines(
    rows: Sequence[Any], fields: Callable[[Any], Mapping[str, Any]], results: Mapping[str, Sequence[Any]]
) -> Iterator[dict[str, Any]]:
    """One line per row of the sample: its fields, and under `systems` what each system made of it, a dataclass."""
    for i, row in enumerate(rows):
        yield {**fields(row), "systems": {name: asdict(of_system[i]) for name, of_system in results.items()}}


def write_report(report: Mapping[str, Any], file: str, rows: Iterable[Mapping[str, Any]], out: str | Path) -> None:
    """Write evaluation.json and a file of JSON lines, one per row."""
    out = Path(out)
    out.mkdir(parents=True, exist_ok=True)
    (out / "evaluation.json").write_bytes(orjson.dumps(report, option=orjson.OPT_INDENT_2, default=str))
    with (out / file).open("wb") as lines:
        for row in rows:
            lines.write(orjson.dumps(row, option=orjson.OPT_APPEND_NEWLINE))


def mean_known(values: Iterable[float | None]) -> float | None:
    """The mean of the values that are not None; None if there are none."""
    numbers = [value for value in values if value is not None]
    return fmean(numbers) if numbers else None


def mean_score(values: Sequence[float]) -> dict[str, float]:
    """{"value", "low", "high"}: the mean with its 95 % bootstrap interval, in the unit of the values."""
    return asdict(mean_with_interval(values))


def percent_score(values: Sequence[float]) -> dict[str, float]:
    """`mean_score` of values from 0 to 1, in percent."""
    return mean_score([100.0 * value for value in values])


def score_against(statistic: Statistic, n: int, baseline: Statistic | None) -> dict[str, Any]:
    """{"value", "low", "high", "n", "difference"} of a statistic of n items, with its 95 % bootstrap interval.

    The difference from the baseline on the same items, {"value", "low", "high", "p"}, is tested by paired bootstrap
    resampling; it is None without a baseline.
    """
    difference = asdict(paired_bootstrap(statistic, baseline, n)) if baseline else None
    return {**asdict(with_interval(statistic, n)), "n": n, "difference": difference}


def score_cell(score: Mapping[str, float]) -> str:
    """The value and its interval: "75.0 (50.0-100.0)"."""
    return f"{score['value']:.1f} ({score['low']:.1f}-{score['high']:.1f})"


def number_cell(value: float | None, digits: int) -> str:
    """A number with `digits` digits after the point; "-" for None."""
    return "-" if value is None else f"{value:,.{digits}f}"


def plain_printer(console: Console) -> Callable[[str], None]:
    """A function that prints a line without markup, highlighting or wrapping: it may hold text of models and files."""
    return partial(console.print, soft_wrap=True)


def sample_order(settings: Mapping[str, Any]) -> str:
    """How the records of a sample are ordered, for the line of conditions; "" for the file's order."""
    return f", shuffled with seed {settings['seed']}" if settings["shuffle"] else ""


def unusable_lines(report: Mapping[str, Any], verb: str) -> Iterator[str]:
    """A line for each record that cannot be used, at most MAX_REASONS."""
    for record in report["unusable"][:MAX_REASONS]:
        yield f"not {verb}: {record['source']}: {record['reason']}"


def count_reasons(reasons: Iterable[str | None]) -> dict[str, int]:
    """How often each reason occurs, the most common first; None is ignored."""
    return dict(Counter(reason for reason in reasons if reason).most_common())


def reason_lines(counts: Mapping[str, int]) -> Iterator[str]:
    """The first MAX_REASONS reasons with their counts, indented."""
    for reason, count in list(counts.items())[:MAX_REASONS]:
        yield f"  {count} x {reason}"


def failure_lines(systems: Mapping[str, Mapping[str, Any]], noun: str) -> Iterator[str]:
    """For each system with failures, how many records failed and why; they are scored as wrong."""
    for name, result in systems.items():
        if result["failed"]:
            yield f"{name} failed at {result['failed']} of {result['n']} {noun}s, which count as wrong:"
            yield from reason_lines(result["errors"])


def print_tables(tables: Iterable[Any], systems: Mapping[str, Mapping[str, Any]], noun: str, console: Console) -> None:
    """Print the tables; if all systems failed at all records, print one line in place of tables full of zeros."""
    if all(result["failed"] == result["n"] for result in systems.values()):
        plain_printer(console)(f"no table: all systems failed at all {noun}s")
        return
    for table in tables:
        console.print(table)


def overlap_line(noun: str) -> str:
    """The line printed without --trained-on."""
    return f"not checked: whether the model was trained on these {noun}s; --trained-on RUN checks it"


def exit_code(report: Mapping[str, Any], *faults: str) -> int:
    """3 if a record cannot be used or a system has one of the faults (keys of its results), else 0."""
    results = report["systems"].values()
    return 3 if report["unusable"] or any(result[fault] for result in results for fault in faults) else 0


@contextmanager
def figure(
    file: str | Path,
    title: str,
    size: tuple[float, float],
    labels: tuple[str, str],
    legend: Literal["right", "below"] = "right",
) -> Iterator[Any]:
    """The axes of a figure, which is saved to `file` at the end; its legend stands outside of the axes."""
    from matplotlib.figure import Figure

    drawing = Figure(figsize=size, layout="constrained")
    axes = drawing.add_subplot()
    yield axes
    axes.set_xlabel(labels[0])
    axes.set_ylabel(labels[1])
    axes.set_title(plain(title), parse_math=False)
    axes.grid(alpha=0.3)
    if legend == "below":
        key = drawing.legend(loc="outside lower center", ncols=3)
    else:
        key = drawing.legend(loc="outside right upper")
    for label in key.get_texts():  # names of models and files: never TeX
        label.set_parse_math(False)
        label.set_text(plain(label.get_text()))
    fit_fonts(drawing)
    drawing.savefig(file, dpi=120)
