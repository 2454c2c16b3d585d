"""graphs/drt_collect.py: the records in the published format, the table, and a run without --input."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from agentsys.traces import read_traces
from tests.support.drt import TEXT, TEXTS, script_rules
from tests.support.toys import call_drt, write_lines


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
    for row in ("kept", "dropped", "failed", "mean score of the first draft", "mean score after round 2", "seconds"):
        assert row in printed
    assert str(tmp_path / "run" / "records.jsonl") in printed.replace("\n", "")


def test_shipped_sentences_are_taken_without_input(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    any_sentence = {"role": "keywords", "replies": ['{"keywords": [{"word": "e", "translation": "某"}]}']}
    script = write_lines(tmp_path / "replies.jsonl", script_rules((50, 60, 95), TEXTS, any_sentence))
    options = ["--model", f"scripted:{script}", "--out", tmp_path / "run", "--no-cache"]
    assert call_drt(capsys, *options)[0] == 0
    assert len(list(read_traces(tmp_path / "run"))) == 6
    assert call_drt(capsys, *options, "--limit", 8)[0] == 0
    assert len(list(read_traces(tmp_path / "run"))) == 8
