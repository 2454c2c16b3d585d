"""graphs/drt_collect.py: the records in the published format, the table, and a run without --input."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from agentsys.graphs.drt_collect import DRTOptions
from agentsys.options import names_meant_once
from agentsys.traces import read_traces
from tests.support.drt import TEXT, TEXTS, script_rules, small_rules
from tests.support.toys import call_drt, evaluation, one_error, read_failed, read_manifest, write_lines


def test_records_have_the_published_format(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    script = write_lines(tmp_path / "replies.jsonl", script_rules((50, 60, 95)))
    texts = [{"id": "a", "text": TEXT}, {"id": "b", "text": "No such word here."}]
    records = write_lines(tmp_path / "in.jsonl", texts)
    options = ["--model", f"scripted:{script}", "--input", records, "--out", tmp_path / "run", "--no-cache"]
    code, printed, _ = call_drt(capsys, *options)
    assert code == 3
    lines = (tmp_path / "run" / "records.jsonl").read_text(encoding="utf-8").splitlines()
    assert [list(json.loads(line)) for line in lines] == [["text", "trans", "thought"]]
    assert TEXTS[2] in lines[0]  # not as \u escapes
    for row in ("kept", "dropped", "failed", "mean score, records with at least 2", "50.0 to 60.0 to 95.0", "seconds"):
        assert row in printed
    assert str(tmp_path / "run" / "records.jsonl") in printed.replace("\n", "")


def test_shipped_sentences_are_taken_without_input(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    any_sentence = {"role": "keywords", "replies": ['{"keywords": [{"word": "e", "translation": "某"}]}']}
    script = write_lines(tmp_path / "replies.jsonl", script_rules((50, 60, 95), TEXTS, any_sentence))
    options = ["--model", f"scripted:{script}", "--out", tmp_path / "run", "--no-cache", "--profile", "paper"]
    assert call_drt(capsys, *options)[0] == 0
    assert len(list(read_traces(tmp_path / "run"))) == 6
    assert call_drt(capsys, *options, "--limit", 8)[0] == 0
    assert len(list(read_traces(tmp_path / "run"))) == 8
    assert read_manifest(tmp_path / "run")["fingerprint"]["knobs"]["target_language"] == "Chinese"


def small_script(path: Path) -> str:
    """Replies of a run with --profile small from Chinese into English."""
    texts = ["The lamp shone like a small moon over the old house.", "A small moon, the lamp shone over the old house."]
    texts.append("Over the old house the lamp shone, a small moon.")
    versions = [{"lead": f"Version {i}:", "judgement": "It is good."} for i in range(1, 4)]
    thought = {"keywords": "I start.", "versions": versions, "decision": "I keep:"}
    rules: list[dict[str, Any]] = [
        {"role": "keywords", "replies": ['{"keywords": [{"word": "像", "translation": "like"}]}']},
        {"role": "draft", "replies": [texts[0]]},
        *({"role": "candidate", "key": f"candidate/{k}", "replies": [texts[k]]} for k in (1, 2)),
        *(
            {"role": "evaluator", "key": f"evaluate/{k}", "replies": [evaluation(score)]}
            for k, score in enumerate((40, 70, 55))
        ),
        {"role": "contrast", "replies": ["It reads better."]},
        {"role": "short_narrator", "replies": [json.dumps(thought)]},
    ]
    return f"scripted:{write_lines(path, rules)}"


def test_the_demonstration_is_chinese_to_english_with_the_small_profile(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = small_script(tmp_path / "small.jsonl")
    code, printed, err = call_drt(capsys, "--model", model, "--out", tmp_path / "run", "--no-cache", "--limit", 2)
    assert code == 0, err
    knobs = read_manifest(tmp_path / "run")["fingerprint"]["knobs"]
    assert (knobs["profile"], knobs["refiner"], knobs["source_language"]) == ("small", "candidates", "Chinese")
    [record, *_] = [json.loads(line) for line in (tmp_path / "run" / "records.jsonl").read_text().splitlines()]
    assert record["trans"] == "A small moon, the lamp shone over the old house."
    assert record["thought"].endswith(f'I keep: "{record["trans"]}"')
    assert record["text"] in printed, "one kept record is printed in full"


def test_another_direction_is_an_option_away(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    script = write_lines(tmp_path / "replies.jsonl", [*small_rules(), *script_rules((50, 60, 95))])
    options = ["--model", f"scripted:{script}", "--out", tmp_path / "run", "--no-cache", "--limit", 1]
    languages = ["--source-language", "English", "--target-language", "Chinese"]
    assert call_drt(capsys, *options, *languages)[0] in (0, 3)
    knobs = read_manifest(tmp_path / "run")["fingerprint"]["knobs"]
    assert (knobs["profile"], knobs["source_language"], knobs["target_language"]) == ("small", "English", "Chinese")
    code, _, err = call_drt(capsys, *options, "--source-language", "German")
    assert (code, "no sentences are shipped in it; add --input FILE" in one_error(err)) == (2, True)


def test_own_records_have_the_published_method(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    script = write_lines(tmp_path / "replies.jsonl", script_rules((50, 60, 95)))
    records = write_lines(tmp_path / "in.jsonl", [{"text": TEXT}, {"text": "灯像一个小月亮。"}])
    code, _, _ = call_drt(
        capsys, "--model", f"scripted:{script}", "--input", records, "--out", tmp_path / "run", "--no-cache"
    )
    assert code == 3
    knobs = read_manifest(tmp_path / "run")["fingerprint"]["knobs"]
    assert (knobs["profile"], knobs["score"], knobs["refiner"]) == ("paper", "stated", "dialogue")
    [failed] = read_failed(tmp_path / "run")
    assert "Han letters and the source language is English: set --source-language" in failed["reason"]


def test_a_pilot_runs_the_first_records_and_reports(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    script = write_lines(tmp_path / "replies.jsonl", script_rules((50, 60, 95)))
    records = write_lines(tmp_path / "in.jsonl", [{"id": str(i), "text": f"{i}: {TEXT}"} for i in range(40)])
    options = ["--model", f"scripted:{script}", "--input", records, "--no-cache", "--out", tmp_path / "run"]
    code, printed, _ = call_drt(capsys, *options, "--pilot", 2)
    assert code == 0
    report = json.loads((tmp_path / "run" / "report.json").read_text())
    assert (report["records"]["kept"], report["projection"]["records"]) == (2, 40)
    assert "40 records" in printed
    assert "pilot" in names_meant_once([DRTOptions]), "a rerun, or the same command without it, takes all records"
    for more, message in ((["--limit", 3], "--pilot and --limit"), ([], "--pilot 0: give a number")):
        code, _, err = call_drt(capsys, *options, "--pilot", 2 if more else 0, *more)
        assert code == 2 and message in one_error(err)
