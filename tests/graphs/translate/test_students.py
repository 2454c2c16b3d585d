"""Students in DRT's chat format: another system message, translations without a thought, what they were trained on."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from agentsys.traces import Trace, dump
from tests.support.evaluations import Run, read_lines, read_report
from tests.support.shards import shard_lines
from tests.support.toys import one_error, write_lines
from tests.support.translations import CALLS, PAIRS

THINKER = "You are a thinker.\nYou take your time."


def messages(folder: Path) -> list[dict[str, str]]:
    trace = json.loads(shard_lines(folder)[0])
    return [dict(message) for message in trace["calls"][0]["messages"]]


def test_another_system_message(run: Run, tmp_path: Path) -> None:
    """The user's message and the inference settings are those of the published example."""
    (tmp_path / "system.txt").write_text(f"{THINKER}\n", encoding="utf-8")
    systems = (THINKER, tmp_path / "system.txt", "You are a thinker.")
    for number, system in enumerate(systems):
        out = tmp_path / str(number)
        assert run("--systems", "thought", "--student-system", system, "--out", out, "--limit", 1)[0] == 0
        expected = "You are a thinker." if number == 2 else THINKER
        user = "Please translate the following text from English to Chinese:\nThe flu spreads."
        assert messages(out / "thought") == [
            {"role": "system", "content": expected},
            {"role": "user", "content": user},
        ]
    sampling = read_report(tmp_path / "0")["systems"]["thought"]["sampling"]
    assert sampling == {"temperature": 0.1, "repetition_penalty": 1.05, "max_tokens": 2048}
    run("--systems", "plain", "--out", tmp_path / "own", "--limit", 1)
    options = ["--systems", "plain,thought", "--student-system", THINKER, "--out", tmp_path / "own", "--limit", 1]
    assert run(*options)[0] == 0, "it is no option of plain, whose run resumes"
    run("--systems", "thought", "--out", tmp_path / "own2", "--limit", 1)
    assert "philosopher" in messages(tmp_path / "own2" / "thought")[0]["content"]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--systems", "thought", "--student-system", "sytem.txt"], "--student-system sytem.txt: No such file"),
        (["--systems", "thought", "--student-system", "Think of {{ x + 1 }}."], "--student-system"),
        (["--systems", "plain", "--student-system", "Think well."], "only thought and direct use it"),
    ],
)
def test_system_messages_that_cannot_be_used(run: Run, options: list[str], words: str) -> None:
    code, _, line = run(*options)
    assert code == 2 and words in one_error(line) and not CALLS


def test_a_student_without_a_thought(run: Run, tmp_path: Path) -> None:
    code, output, _ = run("--systems", "direct", "--out", tmp_path / "out")
    lines = read_lines(tmp_path / "out" / "translations.jsonl")
    assert code == 0 and lines[0]["systems"]["direct"]["translation"] == "流感正在蔓延。", "without the tags"
    assert read_report(tmp_path / "out")["systems"]["direct"]["well_formed"] is None
    assert "philosopher" in messages(tmp_path / "out" / "direct")[0]["content"]
    assert "not checked: whether the model was trained on these pairs" in output


def collected(folder: Path, *texts: str) -> Path:
    """A collect run over these texts."""
    folder.mkdir()
    traces = [Trace(str(i), "drt", "r", "kept", None, "", {"text": text}, {}, [], []) for i, text in enumerate(texts)]
    (folder / "traces-00000.jsonl").write_bytes(b"".join(map(dump, traces)))
    return folder


def test_pairs_that_a_model_was_trained_on_are_refused(run: Run, tmp_path: Path) -> None:
    """Texts are compared, not ids: two files number their records alike."""
    pairs = write_lines(tmp_path / "numbered.jsonl", [{**pair, "id": str(i)} for i, pair in enumerate(PAIRS)])
    options = ["--pairs", pairs, "--systems", "thought", "--out", tmp_path / "out"]
    other = collected(tmp_path / "other", "Something else.", "Another one.")
    code, output, _ = run(*options, "--trained-on", other)
    assert code == 0 and read_report(tmp_path / "out")["overlap_checked"] and "not checked" not in output
    CALLS.clear()
    overlap = collected(tmp_path / "overlap", "Something else.", "stop  the FLU")
    code, _, line = run(*options, "--trained-on", other, "--trained-on", overlap)
    assert code == 2 and "--pairs: 1 of 4 are also in" in one_error(line) and not CALLS
    code, _, line = run(*options, "--trained-on", tmp_path / "nobody")
    assert code == 2 and "name the --out folder of a collect run" in one_error(line)
