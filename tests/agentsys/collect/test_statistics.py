"""agentsys/collect/statistics.py: outcomes, calls and tokens of a run, and what a larger input would take."""

from __future__ import annotations

from typing import Any

import pytest

from agentsys.collect.statistics import RunStatistics, Section, format_seconds, percent, wilson_interval
from agentsys.traces import Call, Trace
from tests.support.drt_report import call, trace

TOTALS = {"calls": 4, "cache_hits": 1, "prompt_tokens": 40, "completion_tokens": 16, "seconds": 20.0, "cost": 0.28}


def with_calls(name: str, reason: str | None, *calls: Call) -> Trace:
    return (
        trace(name, [], calls=calls, reason=reason or "x")
        if reason
        else trace(name, [{"translation": ""}], calls=calls)
    )


@pytest.fixture
def run() -> RunStatistics:
    """One record kept, one dropped, one failed: five calls, of which one was cached and two were requested again."""
    statistics = RunStatistics(TOTALS)
    fault = {"error": "it repeats\nan earlier version"}
    statistics.add(
        with_calls("a", None, call("draft", "draft"), call("refiner", "refine/1", **fault), call("refiner", "b"))
    )
    hit = {"measured": {"cache_hit": True, "seconds": 9.0}}
    statistics.add(with_calls("b", "too few steps", call("draft", "draft", finish="length", **fault | hit)))
    failed = with_calls("c", "RoleError: no reply", call("draft", "draft"))
    failed.outcome, failed.result = "failed", None
    statistics.add(failed)
    return statistics


def rows_of(statistics: RunStatistics, title: str) -> dict[str, tuple[str, ...]]:
    section = next(section for section in statistics.sections() if section.title == title)
    return {row[0]: tuple(row[1:]) for row in section.rows}


def test_outcomes_with_reasons(run: RunStatistics) -> None:
    run.add_outcome("failed", "no field 'text'")  # a refused input has no trace
    assert run.records == 4
    assert list(rows_of(run, "Records").items()) == [
        ("kept", ("1", "25 %")),
        ("dropped", ("1", "25 %")),
        ("  too few steps", ("1", "25 %")),
        ("failed", ("2", "50 %")),
        ("  RoleError: no reply", ("1", "25 %")),
        ("  no field 'text'", ("1", "25 %")),
    ]


def test_calls_and_tokens_per_kept_record(run: RunStatistics) -> None:
    """All calls of the run are paid for the records that were kept."""
    data = run.data()
    assert data["per_kept_record"] == {"calls": 5, "prompt_tokens": 50, "completion_tokens": 20}
    assert data["in_kept_records"]["calls"] == 3
    rows = rows_of(run, "Calls and tokens")
    assert rows["calls"] == ("5", "3")
    assert rows["  from the request cache"] == ("1", "0")
    assert rows["completion tokens per kept record"] == ("20.0", "12.0")
    assert rows["wall time"] == ("20 seconds", "")
    assert rows["completion tokens per second"] == ("0.8", "")
    assert rows["cost"] == ("0.2800", "")
    assert run.headline() == [("calls and completion tokens per kept record", "5.0 and 20")]


def test_without_a_kept_record_the_cost_is_per_record() -> None:
    statistics = RunStatistics()
    statistics.add(with_calls("b", "too few steps", call("draft", "draft"), call("draft", "draft#1")))
    rows = rows_of(statistics, "Calls and tokens")
    assert rows["calls per record"] == ("2.0", "-") and "calls per kept record" not in rows
    assert statistics.data()["per_kept_record"]["calls"] is None
    assert statistics.headline() == []


def test_roles(run: RunStatistics) -> None:
    """A call from the request cache takes no time."""
    rows = rows_of(run, "Roles")
    assert rows["draft"] == ("3", "30", "12", "1 (33 %)", "1", "0.50")
    assert rows["refiner"] == ("2", "20", "8", "1 (50 %)", "0", "0.50")
    again = {(entry["role"], entry["reason"]): entry["replies"] for entry in run.data()["requested_again"]}
    assert again == {("refiner", "it repeats an earlier version"): 1, ("draft", "it repeats an earlier version"): 1}


def test_long_reasons_are_cut() -> None:
    statistics = RunStatistics()
    statistics.add_outcome("failed", "x" * 500)
    [reason] = statistics.reasons["failed"]
    assert reason == "x" * 160 + "..."


def test_a_projection_is_proportional(run: RunStatistics) -> None:
    """Four of five calls were paid: a projection has all of them at their price and time."""
    projection = run.project(300)
    low, high = wilson_interval(1, 3)
    assert projection == {
        "records": 300,
        "kept": pytest.approx(100),
        "kept_low": pytest.approx(300 * low),
        "kept_high": pytest.approx(300 * high),
        "calls": pytest.approx(500),
        "prompt_tokens": pytest.approx(5000),
        "completion_tokens": pytest.approx(2000),
        "seconds": pytest.approx(20 / 4 * 500),
        "cost": pytest.approx(0.28 / 56 * 7000),
    }
    section: Section = run.projection_section(projection)
    assert section.title == "Projection for 300 records, from 3"
    assert dict(section.rows)["time"] == "41.7 minutes"
    assert dict(section.rows)["cost"] == "35.00"


def test_without_paid_calls_time_is_not_projected() -> None:
    statistics = RunStatistics({"calls": 0, "seconds": 3.0})
    statistics.add(with_calls("a", None, call("draft", "draft", measured={"cache_hit": True})))
    projection = statistics.project(10)
    assert "seconds" not in projection and projection["calls"] == 10
    assert "time" not in dict(statistics.projection_section(projection).rows)


@pytest.mark.parametrize(
    ("count", "total", "text"),
    [
        (0, 5, "0 %"),
        (5, 5, "100 %"),
        (1, 3, "33 %"),
        (1, 40, "2.5 %"),
        (8, 22264, "0.036 %"),
        (999, 1000, "99.9 %"),
        (1, 0, "-"),
    ],
)
def test_percent(count: int, total: int, text: str) -> None:
    assert percent(count, total) == text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(5.4, "5 seconds"), (119, "119 seconds"), (180, "3.0 minutes"), (9000, "2.5 hours"), (2e5, "2.3 days")],
)
def test_durations(seconds: float, text: str) -> None:
    assert format_seconds(seconds) == text


def test_wilsons_interval() -> None:
    """The values for 1 of 3 and 0 of 10 are those of Wilson's formula at 95 %."""
    assert wilson_interval(1, 3) == pytest.approx((0.0615, 0.7923), abs=1e-4)
    assert wilson_interval(0, 10) == pytest.approx((0.0, 0.2775), abs=1e-4)
    assert wilson_interval(0, 0) == (0.0, 1.0)


def test_many_records_take_one_number_each() -> None:
    statistics = RunStatistics()
    record = with_calls("a", None, call("draft", "draft"))
    for _ in range(1000):
        statistics.add(record)
    sizes: dict[str, Any] = {name: len(value) for name, value in vars(statistics).items() if hasattr(value, "__len__")}
    assert sizes.pop("calls_per_record") == 1000
    assert max(sizes.values()) < 10
