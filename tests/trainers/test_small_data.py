"""A handful of rows teaches a student with default options, and the report shows it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from agentsys.commands import command, run_app
from agentsys.trainers.reporting import plot_curves
from agentsys.trainers.row_filter import Filters
from agentsys.trainers.rows import TargetOptions, make_rows
from agentsys.trainers.sft import main
from tests.support.tiny import make_tiny
from tests.support.traces import make_trace, run_folder, sft_target
from tests.support.training import metrics, sft_row, step_metrics, write_rows

ANSWERS = (
    "The kettle sang to the widow, who counted her coins by the fire.",
    "Winter came by the front door, slowly, over the hill and the harbour.",
    "A year of small debts slept with one eye open in the harbour.",
    "Her letter was a lamp, and he walked towards the window all night.",
    "An old creditor said little: he counted the lamps on the hill.",
    "The widow sang like a canary while the kettle slept in the kitchen.",
)


@pytest.fixture(scope="module")
def student(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny(tmp_path_factory.mktemp("student"))


def train(*options: object) -> int:
    return run_app(command(main), [str(option) for option in options])


def report_of(out: Path) -> dict[str, Any]:
    return dict(json.loads((out / "report.json").read_text()))


def test_six_records_teach_with_default_options(
    student: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The README's commands: rows of six traces, and sft with its defaults."""
    traces = [
        make_trace(str(i), [], [sft_target(f"Say number {i}.", (answer, True))]) for i, answer in enumerate(ANSWERS)
    ]
    make_rows([run_folder(tmp_path / "run", *traces)], TargetOptions(str(student), tmp_path / "rows"), Filters())
    assert train("--rows", tmp_path / "rows" / "sft", "--student", student, "--out", tmp_path / "out") == 0
    report = report_of(tmp_path / "out")
    assert (report["train_rows"], report["validation_rows"]) == (5, 1)
    assert (report["steps"], report["rows_per_step"], report["warmup_steps"]) == (5, 1, 1)
    assert report["learning_rate_peak"] == pytest.approx(2e-5)
    assert report["validation_loss_after"] < report["validation_loss_before"]
    assert [line["step"] for line in metrics(tmp_path / "out") if "eval_loss" in line] == [0, 5]
    assert [line["learning_rate"] > 0 for line in step_metrics(tmp_path / "out")] == [False, True, True, True, True]
    output = capsys.readouterr().out
    assert "5 rows, fewer than a batch of 8: 1 row per optimizer step\n" in output
    assert "5 rows, 5 optimizer steps of 1 row, 1 of them warm-up, peak learning rate 2e-05\n" in output
    assert "validation loss (1 row)" in output and "did not fall" not in output


@pytest.mark.usefixtures("without_plots")
def test_adapters_learn_at_a_higher_rate(student: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_rows(tmp_path / "train.parquet", [sft_row(i) for i in range(3)])
    assert train("--rows", tmp_path, "--student", student, "--lora", 4, "--out", tmp_path / "out") == 0
    report = report_of(tmp_path / "out")
    assert report["learning_rate_peak"] == pytest.approx(2e-4)
    assert report["validation_loss_before"] is report["validation_loss_after"] is None
    assert "no validation rows: the training loss is of other rows in each step" in capsys.readouterr().out


@pytest.mark.usefixtures("without_plots")
def test_a_student_that_gets_worse_is_reported(
    student: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_rows(tmp_path / "train.parquet", [sft_row(i, "a a a a a a") for i in range(3)])
    write_rows(tmp_path / "validation.parquet", [sft_row(9, "b c d e f g h")])
    options = ("--learning-rate", 1, "--steps", 2, "--out", tmp_path / "out")
    assert train("--rows", tmp_path, "--student", student, *options) == 0
    assert "the validation loss did not fall" in capsys.readouterr().out


def test_a_single_point_is_drawn(tmp_path: Path) -> None:
    """A line through one point would be invisible: its marker is what the picture shows."""
    one, none = ([{"step": 1, "loss": 2.0}], [{"step": 1, "loss": float("nan")}])
    plot_curves(one, tmp_path / "one.png")
    plot_curves(none, tmp_path / "none.png")
    from matplotlib.image import imread

    blue = [
        int(((picture[..., 2] > 0.6) & (picture[..., 0] < 0.3)).sum())
        for picture in (imread(tmp_path / "one.png"), imread(tmp_path / "none.png"))
    ]
    assert blue[0] > blue[1] + 20, "a disc beside the line of the legend"
