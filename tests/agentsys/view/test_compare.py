"""Two runs side by side: the records that both have, and paired differences."""

from __future__ import annotations

import pytest

from agentsys.view import compare
from agentsys.view.compare import compare_runs
from agentsys.view.records import COLUMNS
from agentsys.view.run import RunData


def make_run(name: str, *rows: tuple[str | None, str, float | None, int]) -> RunData:
    """A run with (id, outcome, score, calls) of each record."""
    run = RunData(name)
    for record, outcome, score, calls in rows:
        values = dict.fromkeys(COLUMNS) | {"id": record, "outcome": outcome, "score": score, "calls": calls}
        for column, value in values.items():
            run.columns[column].append(value)
    return run


def test_differences_are_over_the_records_of_both() -> None:
    first = make_run(
        "a", ("r1", "kept", 80, 4), ("r2", "kept", 70, 6), ("r3", "failed", None, 1), ("r9", "kept", 0, 99)
    )
    second = make_run(
        "b", (None, "failed", None, 0), ("r3", "kept", 50, 3), ("r2", "dropped", 75, 6), ("r1", "kept", 90, 2)
    )
    result = compare_runs(first, second)
    assert (result["runs"], result["shared"], result["only"]) == (["a", "b"], 3, [1, 0]), "no id, no record"
    measures = {measure["name"]: measure for measure in result["measures"]}
    assert list(measures) == ["kept", "score", "calls"], "of the others there is no value"
    assert (measures["kept"]["first"], measures["kept"]["second"]) == (pytest.approx(2 / 3), pytest.approx(2 / 3))
    assert (measures["score"]["n"], measures["score"]["value"]) == (2, pytest.approx(7.5))
    assert measures["score"]["low"] == pytest.approx(5) and measures["score"]["high"] == pytest.approx(10)
    assert measures["calls"]["value"] == pytest.approx(0) and measures["calls"]["p"] == 1.0


def test_a_second_record_of_an_id_does_not_count() -> None:
    rows = [("x", "kept", 1.0, 2), ("x", "failed", None, 0), ("y", "dropped", 3.0, 4)]
    result = compare_runs(make_run("a", *rows), make_run("b", *rows))
    assert (result["shared"], result["only"]) == (2, [0, 0])
    kept = result["measures"][0]
    assert (kept["n"], kept["first"], kept["second"]) == (2, 0.5, 0.5)


def test_runs_without_a_common_record() -> None:
    result = compare_runs(make_run("a", ("r1", "kept", 1, 1)), make_run("b", ("r2", "kept", 1, 1)))
    assert result["shared"] == 0 and result["measures"] == []


def test_many_records_have_fewer_resamples(monkeypatch: pytest.MonkeyPatch) -> None:
    drawn = []
    monkeypatch.setattr(compare, "MAX_DRAWS", 1_000)
    original = compare.paired_bootstrap
    monkeypatch.setattr(
        compare, "paired_bootstrap", lambda *a, resamples: drawn.append(resamples) or original(*a, resamples=resamples)
    )
    rows = [(f"r{i}", "kept", 1.0, 1) for i in range(5)]
    compare_runs(make_run("a", *rows), make_run("b", *rows))
    assert set(drawn) == {200}
