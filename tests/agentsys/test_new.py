"""`agentsys new`: what it writes works as it is, for any name, from its own folder and from the one above."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from agentsys.cli import COLLECT, EVALUATE, TRAIN
from agentsys.commands import command, run_app
from agentsys.new import NameRefused, check_name, class_name, new, write_paper
from agentsys.traces import read_traces
from tests.support.paths import ROOT
from tests.support.tiny import make_tokenizer

NAMES = ("x2", "my-method", "Q_and_A", "stepwise_preferences_of_drafts")


@pytest.fixture(scope="module")
def paper(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a new paper."""
    return write_paper(tmp_path_factory.mktemp("papers") / "my-method")


def run(*arguments: object, cwd: Path, code: int = 0) -> str:
    """The output of a Python command outside the checkout, with the package on its path."""
    path = os.pathsep.join([str(ROOT), os.environ["PYTHONPATH"]])
    environment = os.environ | {"PYTHONPATH": path, "AGENTSYS_CACHE": str(cwd / "cache"), "COLUMNS": "200"}
    process = subprocess.run(
        [sys.executable, *map(str, arguments)], cwd=cwd, env=environment, capture_output=True, text=True, timeout=300
    )
    assert process.returncode == code, process.stdout + process.stderr
    return process.stdout + process.stderr


@pytest.mark.needs("test")
@pytest.mark.parametrize("name", NAMES)
def test_the_code_of_a_new_paper_is_clean(name: str, tmp_path: Path) -> None:
    folder = write_paper(tmp_path / name)
    rules = "E,F,I,B,UP,RUF,SIM,C90"  # RUF009 refuses all roles as defaults
    run("-m", "ruff", "check", "--isolated", "--select", rules, "--ignore", "RUF009,E501", folder.name, cwd=tmp_path)
    for length in (88, 120):
        run("-m", "ruff", "format", "--isolated", "--check", "--line-length", length, folder.name, cwd=tmp_path)
    for file in folder.rglob("*.*"):
        text = file.read_text(encoding="utf-8")
        assert "my_paper" not in text and "MyPaper" not in text, file


@pytest.mark.needs("test")
def test_a_new_paper_passes_a_strict_type_checker(paper: Path) -> None:
    output = run("-m", "mypy", "--strict", "--follow-imports", "silent", paper.name, cwd=paper.parent)
    assert "Success: no issues found" in output


@pytest.mark.parametrize("inside", [False, True], ids=["from above", "from inside"])
def test_the_test_of_a_new_paper_passes(paper: Path, inside: bool) -> None:
    arguments = [] if inside else [paper.name]
    options = ["-p", "no:cacheprovider", "-p", "no:xdist", "-p", "no:asyncio"]
    output = run("-m", "pytest", "-q", *options, *arguments, cwd=paper if inside else paper.parent)
    assert "3 passed" in output


@pytest.mark.needs("train")
def test_from_a_new_paper_to_rows(paper: Path, tmp_path: Path) -> None:
    scripted = f"scripted:{paper / 'replies.jsonl'}"
    output = run(paper / "collect.py", "--model", scripted, "--out", tmp_path / "run", "--no-cache", cwd=tmp_path)
    assert "kept" in output and str(tmp_path / "run") in output
    assert [trace.outcome for trace in read_traces(tmp_path / "run")] == ["kept"] * 3
    student = tmp_path / "student"
    make_tokenizer().save_pretrained(student)
    (student / "config.json").write_text('{"model_type": "qwen2"}')
    rows = tmp_path / "rows"
    options = ["--student", student, "--out", rows, "--retokenize", "--validation", 0]
    run(ROOT / "trainers" / "rows.py", tmp_path / "run", *options, cwd=tmp_path)
    assert pq.read_table(rows / "sft" / "train.parquet").num_rows >= 1
    assert pq.read_table(rows / "step" / "train.parquet").num_rows == 3


@pytest.mark.parametrize("inside", [False, True], ids=["from above", "from inside"])
def test_the_command_runs_from_anywhere(paper: Path, inside: bool, tmp_path: Path) -> None:
    cwd, name = (paper, ".") if inside else (paper.parent, paper.name)
    options = ["--model", f"scripted:{paper / 'replies.jsonl'}", "--out", tmp_path / "run", "--limit", 1]
    run("-m", "agentsys", "collect", name, *options, cwd=cwd)
    assert len(list(read_traces(tmp_path / "run"))) == 1
    assert "--max-rounds" in run(Path(name) / "collect.py", "--help", cwd=cwd)


def test_the_graph_is_found_as_langgraph_dev_looks_for_it(paper: Path) -> None:
    """`langgraph dev` in the folder puts it and its dependencies at the end of sys.path."""
    config = json.loads((paper / "langgraph.json").read_text())
    module, _, name = config["graphs"]["my_method"]["path"].partition(":")
    code = f"import sys; sys.path += {config['dependencies']}; import {module} as m; print(type(m.{name}).__name__)"
    assert run("-c", code, cwd=paper).strip() == "CompiledStateGraph"


def test_what_is_written_and_what_to_do_next(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert run_app(command(new), ["deep thought/my-method"]) == 0
    output = capsys.readouterr().out
    assert "cd 'deep thought'\n" in output and "python -m pytest my_method " in output
    files = {path.relative_to("deep thought/my_method").as_posix() for path in Path().rglob("*.*") if path.is_file()}
    assert files == {
        *("README.md", "__init__.py", "collect.py", "langgraph.json", "records.jsonl", "replies.jsonl", "state.py"),
        *("system.py", "targets.py", "test_my_method.py", "prompts/critic.md", "prompts/student.md"),
        "prompts/writer.md",
    }
    assert run_app(command(new), ["deep thought/my_method"]) == 2
    assert capsys.readouterr().err == ("error: deep thought/my_method exists; choose another name or remove it\n")


@pytest.mark.parametrize(
    ("name", "complaint"),
    [
        ("", "letters, digits and underscores"),
        (".", "letters, digits and underscores"),
        ("9lives", "letters, digits and underscores"),
        ("a b", "letters, digits and underscores"),
        ("été", "letters, digits and underscores"),
        ("_mine", "letters, digits and underscores"),
        ("a" * 31, "at most 30 characters"),
        ("class", "a word of Python itself; choose another name, such as class_paper"),
        ("match", "a word of Python itself"),
        ("statistics", "a module of Python"),
        ("sys", "a module of Python"),
        ("agentsys", "an installed package"),
        ("langgraph", "an installed package"),
        ("drt", "`agentsys collect drt` is a command of ours; choose another name, such as drt_paper"),
        ("drt-mine", "`agentsys collect drt-mine` is a command of ours; choose another name, such as drt_mine_paper"),
        ("step_dpo", "`agentsys train step-dpo` is a command of ours"),
        ("system", "a name inside the folder itself"),
        ("collect", "a name inside the folder itself"),
        ("context", "a name inside the folder itself"),
        ("State", "a name inside the folder itself"),
    ],
)
def test_a_name_that_would_not_work_is_refused(name: str, complaint: str, tmp_path: Path) -> None:
    with pytest.raises(NameRefused, match=complaint):
        check_name(name)
    with pytest.raises(NameRefused):
        write_paper(tmp_path / name if name not in ("", ".") else name)
    assert list(tmp_path.iterdir()) == []


def test_no_name_is_that_of_a_command_of_ours(tmp_path: Path) -> None:
    """`agentsys collect NAME` would run ours."""
    for name in {*COLLECT, *EVALUATE, *TRAIN}:
        with pytest.raises(NameRefused):
            write_paper(tmp_path / "papers" / name)
    assert list(tmp_path.iterdir()) == []


def test_names() -> None:
    assert check_name("deep-rag") == "deep_rag" and check_name("Q-A") == "Q_A"
    assert [class_name(module) for module in ("deep_rag", "Q_A", "x2", "graphRAG")] == [
        "DeepRag",
        "QA",
        "X2",
        "GraphRAG",
    ]
