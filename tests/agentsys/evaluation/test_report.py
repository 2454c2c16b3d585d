"""agentsys/evaluation/report.py: intervals and the paired test by hand, files, lines, cells, exit codes."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from agentsys.console import Console
from agentsys.evaluation.report import (
    check_installed,
    count_reasons,
    exit_code,
    failure_lines,
    figure,
    mean_known,
    mean_score,
    number_cell,
    percent_score,
    plain_printer,
    print_tables,
    report_head,
    result_lines,
    sample_order,
    score_against,
    score_cell,
    unusable_lines,
    write_report,
)
from agentsys.evaluation.sample import Sample, SampleOptions, file_sha256
from agentsys.metrics.corpus import mean_statistic
from agentsys.records import BadRecord, InputError


def test_intervals_by_hand() -> None:
    """Of two values a quarter of the resamples have only the first, a quarter only the second."""
    assert mean_score([3, 3, 3]) == {"value": 3, "low": 3, "high": 3}
    assert mean_score([0, 10]) == {"value": 5, "low": 0, "high": 10}
    assert percent_score([True, False]) == {"value": 50, "low": 0, "high": 100}


def test_means_without_what_is_missing() -> None:
    assert mean_known([1, None, 3]) == 2 and mean_known([None]) is mean_known([]) is None


def test_the_paired_test_by_hand() -> None:
    """A constant difference is never as far from its mean as from 0: only the one that is added counts, of 1,001."""
    base = mean_statistic([1.0, 2.0, 6.0])
    better = score_against(mean_statistic([2.0, 3.0, 7.0]), 3, base)
    assert better["value"] == 4 and better["n"] == 3
    assert better["difference"] == pytest.approx({"value": 1, "low": 1, "high": 1, "p": 1 / 1001})
    assert score_against(base, 3, base)["difference"] == {"value": 0, "low": 0, "high": 0, "p": 1}
    assert score_against(base, 3, None)["difference"] is None
    one = score_against(mean_statistic([9.0]), 1, mean_statistic([1.0]))
    assert one["difference"] == {"value": 8, "low": 8, "high": 8, "p": 1}, "one item shows nothing"


def test_the_paired_test_resamples_items() -> None:
    """Against numpy: the mean difference of each resample of the same items, its quantiles, and the shift method."""
    system, base = np.array([5.0, 1.0, 4.0, 2.0, 8.0]), np.array([3.0, 2.0, 1.0, 2.0, 5.0])
    rng = np.random.default_rng(0)
    means = np.array([(system - base)[rng.integers(5, size=5)].mean() for _ in range(1000)])
    far = int((np.abs(means - means.mean()) >= 1.4 - 1e-9).sum())
    result = score_against(mean_statistic(list(system)), 5, mean_statistic(list(base)))["difference"]
    low, high = np.quantile(means, [0.025, 0.975])
    assert result == pytest.approx({"value": 1.4, "low": low, "high": high, "p": (far + 1) / 1001})
    assert 0.01 < result["p"] < 0.5


@dataclass(frozen=True)
class Answer:
    """A system's answer."""

    text: str
    error: str | None = None


def test_the_files(tmp_path: Path) -> None:
    file = tmp_path / "rows.jsonl"
    file.write_text("x")
    test = Sample(file, ["a", "b"], [BadRecord("rows.jsonl:3", "no text")], file_sha256(file))
    report = report_head(test, "row", tmp_path / "out", SampleOptions(limit=5), Answer("setting"))
    assert report["version"] == 2 and report["rows_sha256"].startswith("2d711642b726b044")
    assert report["unusable"] == [{"source": "rows.jsonl:3", "reason": "no text"}]
    assert report["settings"]["limit"] == 5 and report["settings"]["text"] == "setting"
    results = {"one": [Answer("1"), Answer("2")], "two": [Answer("3"), Answer("", "failed")]}
    lines = result_lines(test.rows, lambda row: {"id": row}, results)
    write_report({**report, "path": file}, "answers.jsonl", lines, tmp_path / "out")
    assert json.loads((tmp_path / "out" / "evaluation.json").read_text())["path"] == str(file)
    first, second = map(json.loads, (tmp_path / "out" / "answers.jsonl").read_text().splitlines())
    assert first == {"id": "a", "systems": {"one": {"text": "1", "error": None}, "two": {"text": "3", "error": None}}}
    assert second["systems"]["two"] == {"text": "", "error": "failed"}


def test_cells_and_conditions() -> None:
    assert score_cell({"value": 75, "low": 50.04, "high": 100}) == "75.0 (50.0-100.0)"
    assert number_cell(1234.5, 1) == "1,234.5" and number_cell(None, 1) == "-"
    assert sample_order({"shuffle": True, "seed": 3}) == ", shuffled with seed 3"
    assert sample_order({"shuffle": False, "seed": 3}) == ""


def test_what_failed_is_counted() -> None:
    assert list(count_reasons(["a", None, "b", "b", ""]).items()) == [("b", 2), ("a", 1)]
    reasons = {f"reason {i}": 9 - i for i in range(7)}
    systems = {"one": {"failed": 0, "n": 9, "errors": {}}, "two": {"failed": 42, "n": 50, "errors": reasons}}
    lines = list(failure_lines(systems, "question"))
    assert lines[:2] == ["two failed at 42 of 50 questions, which count as wrong:", "  9 x reason 0"]
    assert len(lines) == 1 + 5, "the most common reasons"
    unusable = [{"source": f"a.jsonl:{i}", "reason": "why"} for i in range(9)]
    lines = list(unusable_lines({"unusable": unusable}, "asked"))
    assert lines[0] == "not asked: a.jsonl:0: why" and len(lines) == 5


@pytest.mark.parametrize(
    ("unusable", "result", "code"),
    [([], {"failed": 0}, 0), (["x"], {"failed": 0}, 3), ([], {"failed": 1}, 3), ([], {"failed": 0, "unjudged": 1}, 3)],
)
def test_exit_codes(unusable: list[str], result: dict[str, Any], code: int) -> None:
    results = {"unjudged": {}, **result}
    assert exit_code({"unusable": unusable, "systems": {"one": results}}, "failed", "unjudged") == code


def test_a_line_is_printed_as_it_is(capsys: pytest.CaptureFixture[str]) -> None:
    plain_printer(Console(width=20))("a [bold]line[/bold] of a model that is longer than the console")
    assert capsys.readouterr().out == "a [bold]line[/bold] of a model that is longer than the console\n"


def test_a_missing_package_is_named() -> None:
    check_installed({"json": "json"}, "install it")
    with pytest.raises(InputError, match=r"^scikit-nothing is not installed: pip install scikit-nothing$"):
        check_installed({"json": "json", "no_such_module": "scikit-nothing"}, "pip install scikit-nothing")


@pytest.mark.needs("knowledge")
@pytest.mark.parametrize("legend", ["right", "below"])
def test_a_figure(tmp_path: Path, legend: Any) -> None:
    with figure(tmp_path / "plot.png", "title", (4, 3), ("x", "y"), legend) as axes:
        axes.plot([1, 2], [3, 4], label="line")
    assert (tmp_path / "plot.png").read_bytes().startswith(b"\x89PNG")
    assert (axes.get_title(), axes.get_xlabel(), axes.get_ylabel()) == ("title", "x", "y")


def test_tables_of_nothing_are_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    console = Console(width=100)
    failed, answered = {"n": 2, "failed": 2}, {"n": 2, "failed": 1}
    print_tables(["first", "second"], {"a": failed, "b": answered}, "question", console)
    assert capsys.readouterr().out == "first\nsecond\n"
    print_tables(["first", "second"], {"a": failed, "b": failed}, "question", console)
    assert capsys.readouterr().out == "no table: all systems failed at all questions\n"
