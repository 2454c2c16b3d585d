"""graphs/drt/report.py: the numbers of a DRT run, pinned on small traces; earlier versions' traces; the tables."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from agentsys.collect.run_report import make_report, write_report
from agentsys.collect.statistics import Section
from agentsys.graphs.drt.report import file_sections
from tests.support.drt_report import DRAFTS, TEXT, step, steps_of, thought_of, trace, write_run
from tests.support.toys import write_lines

KNOBS = {"score": "stated", "threshold": 90.0, "max_rounds": 3, "min_steps": 3, "count_draft": True}
LOST = "2 of 3 steps left"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Four records with stated and expected scores, of which the last is dropped."""
    return write_run(
        tmp_path / "run",
        [
            trace("a", [step(0, 70, 70, 68.4), step(1, 80, 80, 81.2), step(2, 92, 92, 90.6)]),
            trace("b", [step(0, 60, 60, 63.2), step(1, 85, 85, 84.8), step(2, 95, 95, 93.3)]),
            trace(
                "c",
                [step(0, 50, 50, 52), step(1, 70, 70, 70.2), step(2, 70, 70, 72.6), step(3, 80, 80, 80)],
                "max_rounds",
                kept=[0, 1, 3],
            ),
            trace("d", [step(0, 40, 40, 44), step(1, 90, 90, 44.3)], reason=LOST),
        ],
        KNOBS,
    )


def data_of(folder: Path) -> dict[str, Any]:
    """DRT's part of report.json."""
    return dict(json.loads(json.dumps(make_report(folder).data["drt"])))


def table(folder: Path, title: str) -> Section:
    """The table whose title begins so."""
    return next(section for section in make_report(folder).sections if section.title.startswith(title))


def test_scores(folder: Path) -> None:
    scores = data_of(folder)["scores"]
    assert scores["stated"] == {
        "40": 1, "50": 1, "60": 1, "70": 3, "80": 2, "85": 1, "90": 1, "92": 1, "95": 1
    }  # fmt: skip
    assert sum(scores["expected"].values()) == 12 and scores["expected"]["44"] == 2
    rows = {row[0]: row[1:] for row in table(folder, "Scores").rows}
    assert rows["70 to 79"] == ("3 (25 %)", "2 (17 %)")
    assert rows["90 to 99"] == ("3 (25 %)", "2 (17 %)")


def test_where_stated_and_expected_disagree_on_equal_scores(folder: Path) -> None:
    """Equal by their whole numbers: 70 and 70 but 70.2 and 72.6; 40 and 90 but 44.0 and 44.3."""
    assert data_of(folder)["equal_scores"] == {
        "both_equal": 0, "only_stated_equal": 1, "only_expected_equal": 1, "neither_equal": 6
    }  # fmt: skip
    assert table(folder, "Equal").note.startswith("They disagree on 2 of 8 neighboring drafts (25 %).")


def test_steps_beside_the_papers(folder: Path, tmp_path: Path) -> None:
    steps = data_of(folder)["steps_per_record"]
    assert steps["3"] == {"records": 3, "share": 1.0, "paper": 0.7322}
    assert steps["4"] == {"records": 0, "share": 0.0, "paper": 0.199}
    assert [steps[n]["paper"] for n in "5678"] == [0.0527, 0.0157, 0.0004, 0.0]
    assert table(folder, "Steps").rows[0] == ("3", "3", "100 %", "73 %")
    without_draft = write_run(tmp_path / "other", [trace("a", steps_of(70, 80, 92))], {**KNOBS, "count_draft": False})
    assert data_of(without_draft)["steps_per_record"]["2"]["records"] == 1


def test_edit_distances_are_between_kept_steps(folder: Path) -> None:
    """8 from the first to the second draft, 7 from the second to the third, 10 to the fourth."""
    distances = data_of(folder)["edit_distance"]
    assert [(entry["refinement"], entry["records"], entry["paper"]) for entry in distances] == [
        (1, 3, 21.44), (2, 3, 13.16)
    ]  # fmt: skip
    assert [entry["mean"] for entry in distances] == [8.0, round((7 + 7 + 10) / 3, 2)]


def test_stops(folder: Path, tmp_path: Path) -> None:
    assert data_of(folder)["stops"] == {"threshold": 3, "max_rounds": 1}
    steps = steps_of(50, 60)
    other = write_run(
        tmp_path / "other",
        [trace(str(i), steps, f"refiner: fault {i}", reason=LOST) for i in range(2)],
        KNOBS,
    )
    assert data_of(other)["stops"] == {"refiner": 2}


def test_means_by_round_are_over_the_same_records(folder: Path) -> None:
    """Record d has left after round 1: rows without it are not compared with rows that have it."""
    assert data_of(folder)["mean_score_by_rounds"] == [
        {"rounds_at_least": 0, "records": 4, "means": [55.0]},
        {"rounds_at_least": 1, "records": 4, "means": [55.0, 81.25]},
        {"rounds_at_least": 2, "records": 3, "means": [60.0, 78.33, 85.67]},
        {"rounds_at_least": 3, "records": 1, "means": [50.0, 70.0, 70.0, 80.0]},
    ]


def test_means_by_number_of_steps_are_those_of_kept_steps(folder: Path) -> None:
    assert data_of(folder)["mean_score_by_steps"] == [{"steps": 3, "records": 3, "means": [60.0, 78.33, 89.0]}]
    rows = table(folder, "Mean score of the steps").rows
    assert rows == [("3", "3", "60.0", "78.3", "89.0"), ("  paper", "", "72.7", "84.8", "92.4")]


def test_other_settings(folder: Path) -> None:
    rows = {row[0]: row[1:] for row in table(folder, "What other").rows}
    assert rows["this run"] == ("3 (75 %)", "1 (25 %)", "0", "2.00")
    assert rows["threshold 80"] == ("1 (25 %)", "3 (75 %)", "0", "1.50")
    assert rows["threshold 95"] == ("2 (50 %)", "0 (0 %)", "2", ">= 2.00")
    assert rows["max rounds 2"] == ("2 (50 %)", "2 (50 %)", "0", "1.75")
    assert rows["max rounds 8"] == ("2 (50 %)", "1 (25 %)", "1", ">= 2.00")
    assert rows["min steps 2"] == ("4 (100 %)", "0 (0 %)", "0", "2.00")
    assert rows["score expected"] == ("3 (75 %)", "0 (0 %)", "1", ">= 2.00")


def test_candidates(tmp_path: Path) -> None:
    """Rounds are in the order of writing, steps in that of their scores."""
    steps = [step(1, 50, 50, 50.1), step(0, 60, 60, 60.2), step(2, 70, 70, 70)]
    folder = write_run(
        tmp_path / "run", [trace("a", steps, "enough candidates")], {**KNOBS, "refiner": "candidates", "max_rounds": 5}
    )
    data = data_of(folder)
    assert data["mean_score_by_rounds"][2]["means"] == [60, 50, 70]
    assert data["mean_score_by_steps"] == [{"steps": 3, "records": 1, "means": [50, 60, 70]}]
    assert {rule["name"]: rule["kept"] for rule in data["other_settings"]}["min steps 2"] == 1
    assert table(folder, "Mean score of the steps").note == "Candidates are in the order of their scores."


@pytest.mark.parametrize(
    ("knobs", "kind"), [(KNOBS, "stated"), ({**KNOBS, "score": "expected"}, "expected"), (None, "expected")]
)
def test_traces_of_earlier_versions(knobs: dict[str, Any] | None, kind: str, tmp_path: Path) -> None:
    """They have one score for each step; which one it is, the manifest says."""
    folder = write_run(
        tmp_path / "run",
        [trace("a", steps_of(70.2, 80, 92.4)), trace("b", steps_of(40), "refiner: it repeats", reason=LOST)],
        knobs,
    )
    data = data_of(folder)
    assert data["scores"] == {kind: {"40": 1, "70": 1, "80": 1, "92": 1}}
    assert sum(data["equal_scores"].values()) == 0
    assert data["other_settings"][0] | {"kept": 1, "dropped": 1, "open": 0} == data["other_settings"][0]
    titles = [section.title for section in make_report(folder).sections]
    assert not [title for title in titles if title.startswith("Equal scores")]
    assert table(folder, "Scores").note == f"The traces have only one kind of score: {kind}."


def test_pairwise_scores_have_no_scale(tmp_path: Path) -> None:
    folder = write_run(
        tmp_path / "run", [trace("a", steps_of(0, 1, 0, 1), "max_rounds")], {**KNOBS, "evaluator": "pairwise"}
    )
    assert data_of(folder)["scores"] == {"score": {"0": 2, "1": 2}}
    assert [row[0] for row in table(folder, "Mean score of the steps").rows] == ["4"]  # no row of the paper


def test_the_shape_of_thoughts(folder: Path) -> None:
    thoughts = data_of(folder)["thoughts"]
    assert (thoughts["n"], thoughts["released"]["n"]) == (3, 800)
    measures = thoughts["measures"]
    assert (measures["drafts"]["mean"], measures["drafts"]["in_range"]) == (3, True)
    assert (measures["opening"]["mean"], measures["opening"]["in_range"]) == (1, True)
    assert measures["characters"]["in_range"] is False
    assert measures["characters"]["released"]["mean"] == 1733.0625
    rows = {row[0]: row[1:] for row in table(folder, "Shape of 3").rows}
    assert rows["distinct full drafts"] == ("3.0", "3.0 to 3.0", "3.5", "3.0 to 5.0", "yes")
    assert rows["characters"][2:] == ("1,733", "1,287 to 2,333", "NO")
    assert rows['fillers: "Hmm", "Wait"'] == ("0.0 %", "-", "0.0 %", "0.0 to 10.0 %", "yes")


def test_measures_that_do_not_apply_have_a_dash(tmp_path: Path) -> None:
    english = ["The fog came like a cat.", "The fog crept in.", "Fog crept in like a cat."]
    steps = [
        step(k, score) | {"translation": text} for k, (score, text) in enumerate(zip((1, 2, 3), english, strict=True))
    ]
    record = trace("a", steps)
    assert record.result is not None
    record.result["thought"] = (
        "I begin. I write: The fog came like a cat. Then: The fog crept in. I keep Fog crept in like a cat."
    )
    folder = write_run(tmp_path / "run", [record], KNOBS)
    rows = {row[0]: row[1:] for row in table(folder, "Shape").rows}
    assert rows["target-script letters"][:2] == ("-", "-")
    assert rows["distinct full drafts"][0] == "3.0"


def test_the_headline(folder: Path) -> None:
    assert make_report(folder).headline == [
        ("calls and completion tokens per kept record", "1.3 and 5"),
        ("mean score, records with at least 2 rounds", "60.0 to 78.3 to 85.7 (n=3)"),
        ("stated and expected disagree on equal scores", "2 of 8"),
        ("thought measures in the released range", "10 of 15"),
    ]


def test_the_png_has_all_figures(folder: Path) -> None:
    pytest.importorskip("matplotlib")
    report = write_report(folder)
    assert [panel.title.split(" (")[0] for panel in report.panels][3:] == [
        "scores of all drafts", "steps per kept record", "edit distance to the step before",
        "mean score of kept steps", "mean score by round, the same records per line",
        "what other settings would keep", "why the rounds ended", "shape of thoughts: this run's mean",
    ]  # fmt: skip
    assert (folder / "report.png").read_bytes().startswith(b"\x89PNG")


def test_a_run_that_kept_nothing_is_reported(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    folder = write_run(tmp_path / "run", [trace("a", steps_of(40, 40), "max_rounds", reason=LOST)], KNOBS)
    report = write_report(folder)
    titles = [section.title for section in report.sections]
    assert not [title for title in titles if title.startswith(("Steps per", "Shape", "Edit"))]
    assert "steps per kept record (figure 3)" not in [panel.title for panel in report.panels]
    assert (folder / "report.png").exists()


def test_a_file_of_thoughts_has_percentiles_and_the_test(tmp_path: Path) -> None:
    records = [{"text": TEXT, "trans": DRAFTS[n - 1], "thought": thought_of(DRAFTS[:n])} for n in (3, 5)]
    percentiles, test = file_sections(write_lines(tmp_path / "t.jsonl", records))
    assert percentiles.columns == ("measure", "mean", "1 %", "5 %", "25 %", "50 %", "75 %", "95 %", "99 %")
    assert dict((row[0], row[1:]) for row in percentiles.rows)["distinct full drafts"] == (
        "4.0", "3.0", "3.1", "3.5", "4.0", "4.5", "4.9", "5.0"
    )  # fmt: skip
    assert test.title == "Shape of 2 thoughts"
