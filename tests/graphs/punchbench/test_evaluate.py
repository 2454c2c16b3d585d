"""graphs/punchbench_evaluate.py and measures.py: whole runs with pictures against a server that checks each one."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from agentsys.commands import run_app
from agentsys.graphs.punchbench.chains import OTHER
from agentsys.graphs.punchbench.measures import group_pairs, make_records
from agentsys.graphs.punchbench_evaluate import app
from tests.support.images import received
from tests.support.punchbench_server import items_of, plan, write_benchmark
from tests.support.servers import FakeServer, serving

PAIRS = group_pairs([one for number in range(4) for one in items_of(number)])


def test_the_other_question_and_the_exemplars_are_of_other_pairs() -> None:
    for record, pair in zip(make_records(PAIRS, PAIRS, "shown", 2), PAIRS, strict=True):
        assert record["image"] == pair.image
        assert record["other_image"] != pair.image
        assert record["questions"][OTHER]["sentence"] != record["questions"]["reasoning/yes_no"]["sentence"]
        assert pair.image not in record["exemplar_images"]
        assert {len(exemplars) for exemplars in record["exemplars"].values()} == {2}
    assert make_records(PAIRS, PAIRS, "shown", 2) == make_records(PAIRS[::-1], PAIRS, "shown", 2)[::-1]


def test_pictures_are_withheld_or_exchanged() -> None:
    withheld = make_records(PAIRS, PAIRS, "withheld", 1)
    assert all("image" not in record and "other_image" not in record for record in withheld)
    shuffled = make_records(PAIRS, PAIRS, "shuffled", 0)
    images = [record["image"] for record in shuffled]
    assert sorted(images) == sorted(pair.image for pair in PAIRS)
    assert all(image != pair.image for image, pair in zip(images, PAIRS, strict=True))


def test_the_picture_is_worth_what_the_report_says(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = write_benchmark(tmp_path / "benchmark", 4)
    server = FakeServer(plan=plan)
    with serving(server):
        arguments = ["--benchmark", str(folder), "--model", server.url, "--out", str(tmp_path / "eval")]
        assert run_app(app, arguments) == 0
    bodies = server.bodies
    report = json.loads((tmp_path / "eval" / "evaluation.json").read_text())
    assert set(report["systems"]) == {"shown", "withheld", "shuffled"}

    def accuracy(pictures: str, question: str = "perception/yes_no", strategy: str = "zero_shot") -> float:
        measured = report["systems"][pictures]["strategies"][strategy]["questions"][question]
        return float(measured["accuracy"]["value"])

    assert accuracy("shown") == 100 and accuracy("withheld") == 50
    assert accuracy("shuffled") in (0, 25, 50, 75)
    assert accuracy("shown", "perception/matching") == 100 and accuracy("shown", "perception/multi_option") == 0
    assert accuracy("shown", "reasoning/generation") == 100
    zero_shot = report["systems"]["shown"]["strategies"]["zero_shot"]
    assert zero_shot["calls"] == 4 * 6 and report["systems"]["shown"]["strategies"]["sc_coq"]["calls"] == 4 * 14
    assert report["systems"]["withheld"]["failed"] == 0
    shown = [body for body in bodies if received(body)]
    assert len(shown) == 2 * 4 * 18, "every question with its picture, in two of three runs"
    assert "pictures shown" in capsys.readouterr().out
    lines = (tmp_path / "eval" / "predictions.jsonl").read_text().splitlines()
    assert len(lines) == 3 * 4 * 2 * 6


def test_failures_count_as_wrong(tmp_path: Path) -> None:
    folder = write_benchmark(tmp_path / "benchmark", 2)
    (folder / "images" / "0.png").write_bytes(b"<html>")
    server = FakeServer(plan=plan)
    with serving(server):
        arguments = ["--benchmark", str(folder), "--model", server.url, "--out", str(tmp_path / "eval")]
        assert run_app(app, [*arguments, "--pictures", "shown", "--strategies", "zero_shot"]) == 3
    report = json.loads((tmp_path / "eval" / "evaluation.json").read_text())
    shown = report["systems"]["shown"]
    assert shown["failed"] == 2, "one pair's picture, and the other's question of another pair"
    assert shown["strategies"]["zero_shot"]["questions"]["perception/matching"]["accuracy"]["value"] == 0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ([], "--benchmark: name a folder of task files"),
        (["--benchmark", "FOLDER", "--pictures", "none"], "--pictures: there is no 'none'"),
        (["--benchmark", "FOLDER", "--runs", "0"], "--runs 0: at least 1 is needed"),
        (["--benchmark", "FOLDER", "--strategies", "magic"], "strategies: there is no 'magic'"),
    ],
)
def test_bad_options(options: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = write_benchmark(tmp_path / "benchmark", 1)
    arguments = [str(folder) if option == "FOLDER" else option for option in options]
    assert run_app(app, [*arguments, "--model", "http://127.0.0.1:1/v1", "--out", str(tmp_path / "eval")]) == 2
    assert message in capsys.readouterr().err
