"""graphs/deeprag_collect.py: the whole command with a scripted model and a small index, and its table."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from agentsys.commands import command, run_app
from agentsys.graphs.deeprag_collect import main
from agentsys.knowledge import IndexSettings, build_index, index_digest
from agentsys.traces import read_traces
from tests.support.toys import one_error, write_lines

pytestmark = pytest.mark.usefixtures("isolated_cache")

PASSAGES = [
    {"id": "p1", "title": "Emma", "text": "Emma is a novel that Jane Austen wrote."},
    {"id": "p2", "title": "Persuasion", "text": "Persuasion is a novel that Jane Austen wrote last."},
]
QUESTIONS = [
    {"_id": "emma", "qText": "Who wrote the novel Emma?", "answer": "Jane Austen"},
    {"_id": "persuasion", "qText": "Who wrote the novel Persuasion?", "answers": ["J. Austen", "Jane Austen"]},
    {"_id": "other", "qText": "Who wrote the novel Villette?", "answer": "Charlotte Brontë"},
]
FIELDS = ["--field", "question=qText", "--id-field", "_id"]
IMITATION = [
    {"role": "decomposer", "key": "root/*", "replies": ["Follow up: Who wrote that novel?"]},
    {"role": "decomposer", "replies": ["So the final answer is: I know it."]},
    {"role": "reader", "replies": ["Jane Austen"]},
    {"role": "parametric", "replies": ["Somebody"]},
    {"role": "concluder", "key": "root:1/*", "replies": ['{"long": "Jane Austen wrote it.", "short": "Jane Austen"}']},
    {"role": "concluder", "replies": ['{"long": "Somebody wrote it.", "short": "Somebody"}']},
]
CALIBRATION = [
    *IMITATION[:2],
    {"role": "decider", "replies": ["Intermediate answer: Somebody"]},
    {"role": "answerer", "replies": ["Jane Austen"]},
    {
        "role": "concluder",
        "replies": ["<answer long>She wrote it.</answer long><answer short>Jane Austen</answer short>"],
    },
]

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture(scope="module")
def index(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("index")
    build_index(PASSAGES, folder, IndexSettings())
    return folder


@pytest.fixture
def questions(tmp_path: Path) -> Path:
    return write_lines(tmp_path / "questions.jsonl", QUESTIONS)


@pytest.fixture
def model(tmp_path: Path) -> str:
    return f"scripted:{write_lines(tmp_path / 'imitation.jsonl', IMITATION)}"


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Run:
    monkeypatch.setenv("COLUMNS", "200")

    def call(*options: object) -> tuple[int, str, str]:
        code = run_app(command(main), [str(option) for option in options])
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return call


def rows(printed: str) -> dict[str, str]:
    """The lines of the last table."""
    cells = [[cell.strip() for cell in line.split("│")] for line in printed.splitlines() if line.count("│") == 3]
    return {cell[1]: cell[2] for cell in cells}


def manifest(out: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((out / "manifest.json").read_text())
    return content


def test_imitation(run: Run, questions: Path, index: Path, model: str, tmp_path: Path) -> None:
    """Each tree is the root and its two children: 3 nodes; 3 sub-queries or ends, 2 answers, 2 conclusions: 7 calls."""
    out = tmp_path / "out"
    options = ["--input", questions, *FIELDS, "--index", index, "--model", model, "--out", out]
    code, printed, _ = run(*options)
    table = rows(printed)
    assert code == 0 and (table["kept"], table["dropped"]) == ("2", "1")
    assert table["questions with a correct path"] == "2 of 3"
    assert table["mean retrievals and steps of the best paths"] == "1.00 and 1.00"
    assert table["targets of kind sft"] == "2" and "targets of kind step" not in table
    assert table["nodes and calls per question"] == "3.0 and 7.0"
    first_manifest = manifest(out)
    assert first_manifest["fingerprint"]["knobs"]["index_digest"] == index_digest(index)
    kept = {trace.id: trace for trace in read_traces(out)}
    assert kept["emma"].result and kept["emma"].result["steps"][0]["passages"][0]["id"] == "p1"
    assert kept["other"].reason == "no correct path"

    calls = first_manifest["totals"]["calls"]
    assert run(*options)[0] == 0 and manifest(out)["totals"]["calls"] == calls == 21, "a rerun makes no calls"


def test_the_target_model_gives_the_parametric_answers(
    run: Run, questions: Path, index: Path, model: str, tmp_path: Path
) -> None:
    target = f"scripted:{write_lines(tmp_path / 'target.jsonl', [{'role': 'parametric', 'replies': ['Me']}])}"
    out = tmp_path / "out"
    options = ["--input", questions, *FIELDS, "--index", index, "--model", model, "--parametric-model", target]
    assert run(*options, "--limit", 1, "--out", out)[0] == 0
    calls = {call.key: call.text for trace in read_traces(out) for call in trace.calls}
    assert calls["root:0/answer"] == "Me" and calls["root:1/answer"] == "Jane Austen"


def test_calibration(run: Run, questions: Path, index: Path, tmp_path: Path) -> None:
    model = f"scripted:{write_lines(tmp_path / 'calibration.jsonl', CALIBRATION)}"
    options = ["--input", questions, *FIELDS, "--index", index, "--model", model, "--out", tmp_path / "out"]
    code, printed, _ = run(*options, "--stage", "calibration", "--limit", 2)
    table = rows(printed)
    assert code == 0 and table["targets of kind step"] == "2"
    assert table["preferred decisions"] == "0 to retrieve, 2 from memory"
    assert table["mean retrievals and steps of the best paths"] == "0.00 and 1.00"


def test_a_question_without_an_answer_fails(run: Run, index: Path, model: str, tmp_path: Path) -> None:
    bad = write_lines(tmp_path / "bad.jsonl", [{"question": "Who wrote it?"}, {"question": " ", "answer": "x"}])
    code, printed, _ = run("--input", bad, "--index", index, "--model", model, "--out", tmp_path / "out")
    assert code == 3 and rows(printed)["failed"] == "2"
    assert "questions with a correct path" not in rows(printed), "no figures of no questions"
    reasons = [json.loads(line) for line in (tmp_path / "out" / "failed.jsonl").read_text().splitlines()]
    assert {entry["source"].rpartition(":")[2] for entry in reasons} == {"1", "2"}
    assert any("no right answer" in entry["reason"] for entry in reasons)


BAD_OPTIONS: list[tuple[list[str], str]] = [
    ([], "--input: name a file of questions"),
    (["--input", "QUESTIONS"], "--index: name the folder of an index"),
    (["--input", "QUESTIONS", "--index", "NOWHERE"], "NOWHERE"),
    (["--input", "QUESTIONS", "--index", "INDEX", "--retriever", "dense"], "has no 'dense'"),
    (["--input", "nobody.jsonl", "--index", "INDEX"], "nobody.jsonl: no such file"),
    (["--input", "QUESTIONS", "--index", "INDEX", "--model", "x:y"], "is not a model spec"),
    (["--input", "QUESTIONS", "--index", "INDEX", "--max-steps", "0"], "max_steps: 0"),
    (["--input", "QUESTIONS", "--index", "INDEX", "--stage", "both"], "--stage"),
    (
        ["--input", "QUESTIONS", "--index", "INDEX", "--stage", "calibration", "--parametric-model", "MODEL"],
        "stage II has one model",
    ),
]


@pytest.mark.parametrize(("options", "message"), BAD_OPTIONS, ids=lambda value: "-".join(value).strip("-")[-40:])
def test_bad_options_get_one_line_and_write_nothing(
    run: Run, questions: Path, index: Path, model: str, tmp_path: Path, options: list[str], message: str
) -> None:
    names = {"QUESTIONS": questions, "INDEX": index, "MODEL": model, "NOWHERE": tmp_path / "NOWHERE"}
    code, printed, line = run(*[names.get(option, option) for option in options], "--out", tmp_path / "out")
    assert code == 2 and not printed and message in one_error(line)
    assert not (tmp_path / "out").exists()


def test_help_is_grouped(run: Run) -> None:
    code, printed, _ = run("--help")
    assert code == 0
    assert all(f"─ {group} " in printed for group in ("Run", "Method", "Models (specs: docs/models.md)", "Prompts"))
    assert "--index-digest" not in printed, "the command fills it in"
