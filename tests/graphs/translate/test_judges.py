"""The judges of judges.py: error spans and the MQM score, preferences in both orders, whole documents."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from agentsys.graphs.translate.judges import Error, mqm_score
from agentsys.graphs.translate.judging import count_errors, count_preferences, sign_test
from agentsys.graphs.translate.rows import Pair, TranslatedPair
from tests.support.evaluations import Run, read_lines, read_report
from tests.support.shards import shard_lines
from tests.support.toys import one_error, write_lines
from tests.support.translations import CALLS, FAILING, MODEL, PAIRS, REPLIES, TRANSLATIONS

JUDGE = ["--judge", MODEL]


def error(severity: Any, category: Any = "accuracy/mistranslation", span: str = "感冒") -> Error:
    return {"span": span, "category": category, "severity": severity}


@pytest.mark.parametrize(
    ("severities", "score"),
    [
        ([], 0),
        (["minor"], -1),
        (["major", "minor", "no"], -6),
        (["critical", "minor"], -25),
        (["minor"] * 6, -5),
        (["minor"] * 5 + ["major"], -9),
        (["major"] * 7, -25),
    ],
)
def test_the_mqm_score_counts_the_five_worst_errors_up_to_25(severities: list[str], score: float) -> None:
    assert mqm_score([error(severity) for severity in severities]) == score
    assert mqm_score([error("minor", "non-translation")]) == -25, "critical, whatever the judge says"


def test_errors_are_listed_and_counted(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    listed = [error("major"), error("minor", "fluency/grammar", "nowhere"), error("no", "other", "")]
    monkeypatch.setitem(REPLIES, "mqm", json.dumps({"errors": listed}))
    code, output, _ = run("--systems", "plain,thought", *JUDGE, "--mqm", "--out", tmp_path / "out")
    report = read_report(tmp_path / "out")
    assert code == 0 and report["systems"]["plain"]["metrics"]["MQM"]["value"] == -6
    assert report["systems"]["plain"]["errors"] == {
        "translations": 4, "without_errors": 0, "critical": 0, "major": 4, "minor": 4, "unplaced": 6,
        "categories": {"accuracy/mistranslation": {"major": 4}, "fluency/grammar": {"minor": 4}},
    }  # fmt: skip
    assert "accuracy/mistranslation" in output and "0/4/0" in output
    signature = report["signatures"]["MQM"]
    assert signature.startswith("prompt:mqm|sha256:") and signature.endswith("|weights:25/5/1/0|worst:5|max:25")
    assert f"MQM: {signature}" in output
    lines = read_lines(tmp_path / "out" / "translations.jsonl")
    assert lines[0]["systems"]["plain"]["errors"] == listed
    calls = len(CALLS)
    assert run("--systems", "plain,thought", *JUDGE, "--mqm", "--out", tmp_path / "out")[0] == 0
    assert len(CALLS) == calls, "the same command resumes"


def test_errors_of_no_translation() -> None:
    assert count_errors([TranslatedPair(Pair("1", "", 1, "a", ()))]) is None
    counts = count_errors([TranslatedPair(Pair("1", "", 1, "a", ()), "b", errors=[])])
    assert counts is not None and (counts["translations"], counts["without_errors"]) == (1, 1)


def test_preferences_are_asked_in_both_orders(run: Run, tmp_path: Path) -> None:
    """The judge prefers references; of two it takes the first it sees, which cancels out."""
    code, output, _ = run("--systems", "plain,thought", *JUDGE, "--prefer", "--out", tmp_path / "out")
    result = read_report(tmp_path / "out")["systems"]["thought"]
    # a1: both are references, a tie; a2 and b2: only that of thought is one; b1: neither is one, a tie.
    counts = result["preference"]
    assert code == 0 and (counts["win"], counts["loss"], counts["tie"]) == (2, 0, 2) and counts["p"] == 0.5
    assert counts["value"] == 75 == result["metrics"]["preference"]["value"]
    assert counts["low"] <= 75 <= counts["high"]
    assert "preference" not in read_report(tmp_path / "out")["systems"]["plain"]["metrics"]
    asked = [call.split()[-1] for call in CALLS if " preference " in call]
    assert sorted(asked) == ["compare/0"] * 4 + ["compare/1"] * 4 and "wins" in output
    code, _, _ = run("--systems", "plain,thought", *JUDGE, "--prefer", "--baseline", "thought", "--out", tmp_path / "b")
    reverse = read_report(tmp_path / "b")["systems"]["plain"]["preference"]
    assert (reverse["win"], reverse["loss"], reverse["tie"]) == (0, 2, 2) and reverse["value"] == 25


def test_equal_translations_are_a_tie_without_a_call(run: Run, tmp_path: Path) -> None:
    lines = [{"id": pair["id"], "translation": TRANSLATIONS["plain"][pair["id"]]} for pair in PAIRS]
    mine = write_lines(tmp_path / "mine.jsonl", lines)
    options = ["--translations", f"mine={mine}", *JUDGE, "--prefer", "--out", tmp_path / "out"]
    assert run("--systems", "plain", *options)[0] == 0
    counts = read_report(tmp_path / "out")["systems"]["mine"]["preference"]
    assert counts["tie"] == 4 and counts["p"] == 1 and not [call for call in CALLS if " preference " in call]


def test_the_sign_test() -> None:
    assert sign_test(0, 0) == sign_test(3, 3) == 1
    assert sign_test(5, 0) == pytest.approx(2 / 32) and sign_test(1, 7) == pytest.approx(18 / 256)
    rows = [TranslatedPair(Pair(str(i), "", i, "a", ()), "b", scores={"preference": 100.0}) for i in range(5)]
    again = [TranslatedPair(row.pair, "c", scores={"preference": 0.0}, run=2) for row in rows[:2]]
    counts = count_preferences([*rows, *again])
    assert counts is not None and (counts["win"], counts["tie"], counts["p"]) == (3, 2, 0.25)


def test_documents_are_judged_together(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lines = [{**pair, "document": pair["document"] if i < 3 else ""} for i, pair in enumerate(PAIRS)]
    pairs = write_lines(tmp_path / "some.jsonl", lines)
    options = ["--pairs", pairs, *JUDGE, "--judge-documents", "--out", tmp_path / "out"]
    code, _, _ = run("--systems", "plain,thought", *options)
    score = read_report(tmp_path / "out")["systems"]["thought"]["metrics"]["document"]
    assert code == 0 and (score["value"], score["n"]) == (75, 2), "of a sentence without a document there is none"
    assert len([call for call in CALLS if " document " in call]) == 4
    traces = [json.loads(line) for line in shard_lines(tmp_path / "out/plain/documents")]
    prompt = next(t["calls"][0]["messages"][-1]["content"] for t in traces if t["id"].startswith("a "))
    assert prompt.split("\n")[:3] == ["1. The flu spreads.", "   -> 流感在传播。", "2. Stop the flu."]


def test_a_document_with_a_missing_translation_is_left_out(run: Run, tmp_path: Path) -> None:
    FAILING.add("student")
    options = [*JUDGE, "--judge-documents", "--out", tmp_path / "out"]
    code, _, _ = run("--systems", "plain,thought", *options)
    scores = [result["metrics"]["document"]["n"] for result in read_report(tmp_path / "out")["systems"].values()]
    assert code == 3 and scores == [1, 1], "compared over the other document"


def test_a_judge_that_fails_leaves_its_reason(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(REPLIES, "mqm", "no errors")
    code, output, _ = run("--systems", "plain", *JUDGE, "--mqm", "--out", tmp_path / "out")
    report = read_report(tmp_path / "out")
    assert code == 3 and report["absent"]["MQM"] == "no usable reply" and "4 x no MQM: " in output
    assert report["systems"]["plain"]["errors"] is None and report["systems"]["plain"]["metrics"]["GRF"]["n"] == 4


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--systems", "plain", "--mqm"], "--mqm: name the judge with --judge"),
        (["--systems", "plain,thought", "--prefer"], "--prefer: name the judge with --judge"),
        (["--systems", "plain", "--judge", MODEL, "--prefer"], "--prefer compares systems with the baseline"),
        (["--systems", "plain", "--judge", MODEL, "--judge-documents", "--document-field", "x"], "--document-field"),
    ],
)
def test_options_of_the_judges_are_checked_before_any_call(run: Run, options: list[str], words: str) -> None:
    code, _, line = run(*options)
    assert code == 2 and words in one_error(line) and not CALLS
