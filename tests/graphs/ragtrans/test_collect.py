"""RAGtrans's commands `build`, `collect` and `tasks`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from agentsys.graphs.ragtrans.benchmark import map_columns
from agentsys.graphs.ragtrans.system import Context
from agentsys.traces import read_traces
from tests.support.ragtrans import (
    DOCUMENT,
    REFERENCE,
    TEXT,
    Runner,
    result,
    run_command,
    write_records,
    write_task_files,
)
from tests.support.ragtrans_corpora import (
    SIZES,
    read_lines,
    write_memories,
    write_pages,
)
from tests.support.toys import one_error, write_lines


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--source", "de"], "no text in 'de'; its languages are en, zh"),
        (["--target", "ja"], "--target ja: no text in this language; use one of en, zh"),
        (["--language", "en", "--language", "ru"], "--language ru: no text in this language; use one of en, zh"),
        (["--target", "en"], "--source and --target are both 'en'"),
        (["--test", "0.9", "--validation", "0.1"], "--test and --validation leave no training samples"),
        (["--mix", "1"], "--mix 1: at least 2 paragraphs are needed"),
        (["--keep", "1"], "--keep must be between 0 and 1"),
    ],
)
def test_a_wrong_option_is_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], options: list[str], message: str
) -> None:
    memory, _ = write_memories(tmp_path, {"a": 4})
    code, _, err = run_command(capsys, "build", "--tmx", memory, "--out", tmp_path / "out", *options)
    assert code == 2
    assert message in one_error(err)
    assert not (tmp_path / "out").exists()


def test_either_pages_or_memories_are_needed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, _, err = run_command(capsys, "build", "--out", tmp_path / "out")
    assert code == 2
    assert "give either --pages" in one_error(err)


def test_the_command_builds_and_reports_what_it_leaves_out(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    first, second = write_memories(tmp_path, SIZES, **{"a:7": "好"})
    code, out, _ = run_command(capsys, "build", "--tmx", first, "--tmx", second, "--out", tmp_path / "out")
    assert code == 0
    assert "zh of a wrong length: 1" in out
    assert "unlabeled" in out
    bad = write_lines(tmp_path / "pages.jsonl", [*read_lines(write_pages(tmp_path, 20)), {"id": "x", "lang": "en"}])
    code, _, err = run_command(capsys, "build", "--pages", bad, "--out", tmp_path / "out")
    assert code == 3
    assert "1 page records failed" in err
    [failed] = read_lines(tmp_path / "out" / "failed.jsonl")
    assert failed["source"] == f"{bad}:61"


def test_the_command_closes_its_embedding_model(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    class Remote:
        name, closed = "remote", 0

        async def embed(self, texts: Sequence[str]) -> Any:
            return np.ones((len(texts), 2))

        async def aclose(self) -> None:
            self.closed += 1

    remote = Remote()
    monkeypatch.setattr("agentsys.knowledge.embedders.make_embedder", lambda spec: remote)
    files = write_memories(tmp_path, {"a": 20, "b": 4})
    options = ["build", "--tmx", files[0], "--tmx", files[1], "--embedding", "http://host:1/v1#m", "--out", tmp_path]
    code, _, err = run_command(capsys, *options)
    assert (code, remote.closed) == (0, 1), err


def test_the_command_takes_the_published_columns(run: Runner, capsys: pytest.CaptureFixture[str]) -> None:
    file = write_records(run.folder)
    arguments = ["--input", file, "--model", f"scripted:{run.script}", "--no-cache", "--document-language", "zh"]
    code, out, _ = run_command(capsys, "collect", *arguments, "--out", run.folder / "golden")
    assert code == 0
    assert "without a document (no document)" in out
    assert "mean sentence chrF" in out
    traces = {trace.id: trace for trace in read_traces(run.folder / "golden")}
    assert result(traces["0"])["used"] == DOCUMENT
    assert (result(traces["1"])["used"], result(traces["1"])["without"]) == ("", "no document")
    code, _, _ = run_command(capsys, "collect", *arguments, "--out", run.folder / "noisy", "--setting", "noisy")
    assert code == 0
    assert {result(trace)["used"] for trace in read_traces(run.folder / "noisy")} == {"面包。"}
    code, _, err = run_command(capsys, "collect", *arguments, "--out", run.folder / "noisy")
    assert code == 2
    assert "setting" in one_error(err)  # two settings are never mixed in one folder


def test_a_missing_document_language_is_one_line(run: Runner, capsys: pytest.CaptureFixture[str]) -> None:
    file = write_records(run.folder)
    arguments = ["--input", file, "--model", f"scripted:{run.script}", "--out", run.folder / "out"]
    for options, column in ([], "doc"), (["--document-language", "de", "--setting", "noisy"], "noisy_de_doc"):
        code, _, err = run_command(capsys, "collect", *arguments, *options)
        assert code == 2
        assert f"no column '{column}'; the records have zh_doc, en_doc, noisy_zh_doc" in one_error(err)
    assert not (run.folder / "out").exists()


def test_records_of_another_form_keep_their_fields(tmp_path: Path) -> None:
    file = write_lines(tmp_path / "own.jsonl", [{"text": TEXT, "document": DOCUMENT}])
    assert map_columns(file, Context().document_column) == {}
    train = write_lines(tmp_path / "train.jsonl", [{"src": TEXT, "doc": DOCUMENT, "tag": "clean_zh"}])
    assert map_columns(train, Context().document_column) == {"text": "src", "document": "doc"}
    assert map_columns(train, Context(setting="none").document_column) == {"text": "src"}
    german = Context(document_language="de")
    assert map_columns(train, german.document_column, ["document=doc"]) == {"text": "src"}  # the user's mapping is kept


def test_the_tasks_are_mixed_by_weight_and_become_rows(run: Runner, capsys: pytest.CaptureFixture[str]) -> None:
    from agentsys.trainers.row_filter import Filters
    from agentsys.trainers.rows import TargetOptions, make_rows
    from tests.support.tiny import make_tiny

    out = run.folder / "run"
    arguments = [
        "--data",
        write_task_files(run.folder),
        "--model",
        f"scripted:{run.script}",
        "--no-cache",
        "--out",
        out,
    ]
    code, out_text, _ = run_command(
        capsys, "tasks", *arguments, "--weight", "ragtrans=2", "--weight", "clrd=2", "--samples", 12
    )
    assert code == 0
    assert "ragtrans: kept" in out_text and "4 of 4" in out_text
    [file] = (out / "mixed").iterdir()
    assert file.name == "ragtrans=2,clic=1,sket=1,clrd=2,seed=0.jsonl"
    cut = TargetOptions(str(make_tiny(run.folder / "student")), run.folder / "rows")
    report = make_rows([out], cut, Filters(validation=0, near_duplicates=1))
    assert report.rows["sft", "train"] == 12
    code, _, err = run_command(capsys, "tasks", *arguments, "--weight", "clic=0.5")
    assert code == 2
    assert "input" in one_error(err)  # another mix is another run
    same = ["--weight", "ragtrans=2", "--weight", "clrd=2", "--samples", 12]
    code, _, err = run_command(capsys, "tasks", *arguments, *same, "--seed", 1)
    assert (code, len(list(read_traces(out)))) == (2, 12)
    assert "input" in one_error(err)  # and so is another order


def test_published_records_without_ids_are_mixed(run: Runner, capsys: pytest.CaptureFixture[str]) -> None:
    rows = [{"src": f"{TEXT} {i}", "tgt": REFERENCE, "doc": DOCUMENT, "tag": "clean_zh"} for i in range(3)]
    write_lines(run.folder / "train.jsonl", rows)
    others = [f"--weight={task}=0" for task in ("clic", "sket", "clrd")]
    code, _, err = run_command(
        capsys, "tasks", "--data", run.folder, "--no-cache", "--out", run.folder / "out", *others
    )
    assert code == 0, err
    assert len({trace.id for trace in read_traces(run.folder / "out")}) == 3


@pytest.mark.parametrize("weight", ["clic", "clic=x", "clic=-1", "other=1", "clic=nan"])
def test_an_invalid_weight_is_one_line(run: Runner, capsys: pytest.CaptureFixture[str], weight: str) -> None:
    code, _, err = run_command(
        capsys, "tasks", "--data", write_task_files(run.folder), "--out", run.folder / "out", "--weight", weight
    )
    assert code == 2
    assert "give a task of ragtrans, clic, sket, clrd and a number" in one_error(err)
    assert not (run.folder / "out").exists()


def test_tasks_without_their_files_are_one_line(run: Runner, capsys: pytest.CaptureFixture[str]) -> None:
    code, _, err = run_command(capsys, "tasks", "--data", run.folder, "--out", run.folder / "out")
    assert code == 2
    assert "train.jsonl: no such file; `build` writes it" in one_error(err)
    every = [f"--weight={task}=0" for task in ("ragtrans", "clic", "sket", "clrd")]
    code, _, err = run_command(capsys, "tasks", "--data", run.folder, "--out", run.folder / "out", *every)
    assert code == 2
    assert "every task has weight 0" in one_error(err)
