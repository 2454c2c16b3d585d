"""Several runs of a system: other seeds, means with a standard deviation, one paired test."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from agentsys.graphs.translate.measures import measure
from agentsys.graphs.translate.rows import Pair, TranslatedPair
from tests.support.evaluations import Run, read_lines, read_report
from tests.support.shards import shard_lines
from tests.support.toys import one_error, write_lines
from tests.support.translations import CALLS, MODEL, PAIRS


def rows(*runs: list[float]) -> list[TranslatedPair]:
    """One list of scores per run."""
    return [
        TranslatedPair(Pair(str(i), "", i, "a", ("b",)), "b", scores={"GRF": score}, run=number)
        for number, scores in enumerate(runs, 1)
        for i, score in enumerate(scores)
    ]


def test_the_value_is_the_mean_over_the_runs() -> None:
    systems = {"base": rows([50, 50, 50]), "ours": rows([60, 70, 80], [40, 60, 80], [50, 50, 50])}
    scores = measure(systems, "Chinese", ["GRF", "BLEU"], baseline="base")
    ours = scores["ours"]["GRF"]
    assert ours["value"] == 60 and ours["runs"] == [70, 60, 50] and ours["sd"] == 10 and ours["n"] == 3
    assert ours["difference"]["value"] == 10 and "sd" not in scores["base"]["GRF"]
    # The test is over sentences, with the mean of the runs of each: 50, 60, 70 against 50.
    means = measure({"base": rows([50, 50, 50]), "ours": rows([50, 60, 70])}, "zh", ["GRF"], baseline="base")
    assert ours["difference"] == pytest.approx(means["ours"]["GRF"]["difference"])


def test_a_sentence_that_one_run_lacks_is_left_out_for_all() -> None:
    ours = rows([60, 70, 80], [40, 60, 80])
    ours[1].translation = None
    scores = measure({"base": rows([10, 20, 30]), "ours": ours}, "zh", ["GRF"], baseline="base")
    assert scores["base"]["GRF"]["value"] == 20 and scores["ours"]["GRF"]["runs"] == [70, 60]


def test_each_run_has_its_own_seeds_and_resumes(run: Run, tmp_path: Path) -> None:
    mine = write_lines(tmp_path / "mine.jsonl", [{"id": p["id"], "translation": "流感。"} for p in PAIRS])
    options = ["--systems", "plain,crat", "--translations", f"mine={mine}", "--out", tmp_path / "out"]
    code, output, _ = run(*options, "--repeat", 3)
    report = read_report(tmp_path / "out")
    assert code == 0 and [result["repeats"] for result in report["systems"].values()] == [3, 3, 1]
    assert report["systems"]["plain"]["translated"] == 12 and report["systems"]["plain"]["cost"]["calls"] == 12
    assert report["systems"]["plain"]["metrics"]["BLEU"]["sd"] == 0 and "±0.00" in output and " x 3 runs" in output
    traces = [json.loads(line) for line in shard_lines(tmp_path / "out/plain")]
    seeds = {trace["id"]: trace["calls"][0]["seed"] for trace in traces}
    assert seeds.keys() >= {"a1", "a1 (run 2)", "a1 (run 3)"} and len({*seeds.values()}) == 12
    line = read_lines(tmp_path / "out" / "translations.jsonl")[0]["systems"]
    assert len(line["plain"]["runs"]) == 3 and line["plain"]["translation"] == line["plain"]["runs"][2]["translation"]
    assert "runs" not in line["mine"]
    calls = len(CALLS)
    assert run(*options, "--repeat", 3)[0] == 0 and run(*options)[0] == 0 and len(CALLS) == calls
    assert read_report(tmp_path / "out")["systems"]["plain"]["translated"] == 4, "one run is measured alone"


def test_equal_translations_of_several_runs_are_judged_once(run: Run, tmp_path: Path) -> None:
    options = ["--systems", "plain,thought", "--judge", MODEL, "--mqm", "--prefer", "--judge-documents"]
    assert run(*options, "--repeat", 2, "--out", tmp_path / "out")[0] == 0
    judged = [call for call in CALLS if call.split()[1] in ("grf", "mqm")]
    assert len(judged) == 16, "two judges, two systems, four sentences"
    metrics = read_report(tmp_path / "out")["systems"]["thought"]["metrics"]
    assert metrics["GRF"]["runs"] == [80, 80] and metrics["MQM"]["runs"] == [0, 0]
    assert metrics["document"]["runs"] == [75, 75] and metrics["preference"]["runs"] == [75, 75]


def test_what_cannot_be_repeated(run: Run, tmp_path: Path) -> None:
    rules = write_lines(tmp_path / "rules.jsonl", [{"role": "translator", "replies": ["流感。"]}])
    for options, words in (
        (["--repeat", 0], "--repeat 0: at least 1 is needed"),
        (["--repeat", 2, "--model", f"scripted:{rules}?seed=3"], "--repeat: the model's spec has a seed"),
    ):
        code, _, line = run("--systems", "plain", *options)
        assert code == 2 and words in one_error(line) and not CALLS
