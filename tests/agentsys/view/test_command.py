"""`agentsys view`: what it shows, where it writes, what it refuses; the page at the end of other commands."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest

from agentsys.cli import app
from agentsys.commands import run_app
from agentsys.traces import read_finished
from agentsys.view import command
from agentsys.view.command import show_page


def view(*arguments: Any) -> int:
    return run_app(app, ["view", *map(str, arguments)])


def head_of(page: Path) -> dict[str, Any]:
    match = re.search(r'id="data-head">(.*?)</script>', page.read_text(encoding="utf-8"))
    assert match is not None
    return dict(json.loads(match[1]))


def test_the_page_is_in_the_folder_of_the_run(runs: dict[str, Path], capsys: pytest.CaptureFixture[str]) -> None:
    assert view(runs["first"]) == 0
    page = runs["first"] / "view.html"
    assert capsys.readouterr().out == f"page: {page}\n"
    [run] = head_of(page)["runs"]
    assert (run["records"], run["system"], run["folder"]) == (6, "drt", "first")
    assert run["counts"] == {"kept": 3, "dropped": 2, "failed": 1}
    assert not list(runs["first"].glob(".view-*"))


def test_a_page_of_a_page_of_a_run_changes_no_other_file(runs: dict[str, Path], tmp_path: Path) -> None:
    folder = Path(shutil.copytree(runs["first"], tmp_path / "run"))
    before = {file: file.read_bytes() for file in folder.rglob("*") if file.is_file() and file.name != "view.html"}
    assert view(folder) == 0
    assert {file: file.read_bytes() for file in before} == before
    assert len(list(read_finished(folder))) == 6


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (["nowhere"], "nowhere: no such folder; give the output folder of a run, an evaluation or a training"),
        (["."], ".: no run, evaluation or training there; give the output folder of a command"),
        (["state.json"], "state.json: not the state of a graph; save the thread's state (its values) as a JSON object"),
        (["broken.json"], "broken.json: not JSON (unexpected character: line 1 column 1 (char 0))"),
        (["run", "--out", "run"], "--out run: this is a folder; name a file in it, such as run/view.html"),
        (["run", "--out", "a/b.html"], "--out a/b.html: there is no folder a; create it, or name a file elsewhere"),
        (["run"] * 9, "9 runs: a page shows at most 8; give fewer folders"),
        (["run", "--tokenizer", "run"], "run/tokenizer.json: No such file or directory"),
    ],
)
def test_what_cannot_be_shown_is_one_line(
    arguments: list[str],
    line: str,
    runs: dict[str, Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    shutil.copytree(runs["first"], tmp_path / "run")
    (tmp_path / "state.json").write_text("[1]", encoding="utf-8")
    (tmp_path / "broken.json").write_text("{", encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    assert view(*arguments) == 2
    assert capsys.readouterr().err.splitlines()[0].split("(")[0] == f"error: {line}".split("(")[0]


def test_an_evaluation_is_its_table_and_its_runs(runs: dict[str, Path], tmp_path: Path) -> None:
    for name in ("first", "second"):
        shutil.copytree(runs[name], tmp_path / "out" / name)
    score = {"value": 31.5, "low": 30.0, "high": 33.0}
    nested = {"pass": {"1": score}, "f1": score, "n": 4, "cost": {"calls": 2.0}}
    report = {"settings": {"seed": 1}, "systems": {"first": {"metrics": {"BLEU": score}}, "second": nested}}
    (tmp_path / "out" / "evaluation.json").write_text(json.dumps(report), encoding="utf-8")
    assert view(tmp_path / "out") == 0
    head = head_of(tmp_path / "out" / "view.html")
    assert head["evaluations"][0]["systems"] == {"first": {"BLEU": score}, "second": {"pass 1": score, "f1": score}}
    assert [run["folder"] for run in head["runs"]] == ["first", "second"] and len(head["comparisons"]) == 1


def test_the_methods_of_an_evaluator_check_have_one_score(tmp_path: Path) -> None:
    method = {"value": 78.75, "low": 63.9, "high": 88.6, "right": 23, "cost": {"calls": 2.0}}
    (tmp_path / "evaluation.json").write_text(json.dumps({"methods": {"stated": method}}), encoding="utf-8")
    assert command.read_evaluation(tmp_path)["systems"] == {"stated": {"value": method}}


def test_scores_of_records_are_numbers(tmp_path: Path) -> None:
    systems = {"plain": {"text": "a", "scores": {"BLEU": 12.5}, "seconds": 1.0, "em": True}, "other": "no result"}
    lines = [{"id": "r1", "systems": systems}, {"id": "r2", "systems": {"plain": {"text": "b"}}}, {"systems": systems}]
    (tmp_path / "translations.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    numbers = {"BLEU": 12.5, "seconds": 1.0, "em": True}
    assert command.read_scores(tmp_path) == {"r1": {"plain": numbers, "other": {}}}


def test_a_training_has_curves_and_the_runs_of_its_rows(tmp_path: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    folder = tmp_path / "student"
    folder.mkdir()
    rows = tmp_path / "rows" / "sft"
    rows.mkdir(parents=True)
    lineages = [{"system": "drt", "run": "abc", "calls": [{"model": "qwen"}]}, {"system": "drt", "run": "abc"}]
    pq.write_table(pa.table({"lineage": [json.dumps(lineage) for lineage in lineages]}), rows / "train.parquet")
    (folder / "settings.json").write_text(json.dumps({"method": "SFT", "rows": "rows/sft"}), encoding="utf-8")
    lines = [
        {"step": 1, "loss": 2.0, "epoch": 0.5},
        {"step": 2, "loss": 1.5},
        {"step": 2, "eval_loss": 1.7, "loss": float("nan")},
    ]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines) + '{"ste', "utf-8")
    assert view(folder) == 0
    [training] = head_of(folder / "view.html")["trainings"]
    assert training["curves"] == {"loss": [[1, 2.0], [2, 1.5]], "eval_loss": [[2, 1.7]]}
    assert training["lineage"] == {"rows": "rows/sft", "runs": {"drt abc": 2}, "models": {"qwen": 1}}


def test_rows_are_shown_at_the_targets_that_they_were_made_of(runs: dict[str, Path], tmp_path: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    trace = next(trace for trace in read_finished(runs["first"]) if trace.targets)
    row = {
        "id": f"{trace.run}/{trace.id}#0", "kind": "sft", "lineage": json.dumps({"trace": trace.id, "run": trace.run}),
        "input_ids": [1, 2, 3], "loss_mask": [0, 1, 1],
    }  # fmt: skip
    (tmp_path / "rows" / "sft").mkdir(parents=True)
    pq.write_table(pa.Table.from_pylist([row]), tmp_path / "rows" / "sft" / "train.parquet")
    page = tmp_path / "page.html"
    assert view(runs["first"], "--rows", tmp_path / "rows", "--out", page) == 0
    match = re.search(r'id="data-r0-0">(.*?)</script>', page.read_text(encoding="utf-8"))
    assert match is not None
    record = next(one for one in json.loads(match[1]).values() if one["id"] == trace.id)
    facts = {"kind": "sft", "file": "sft/train.parquet", "id": row["id"], "tokens": 3, "learned_tokens": 2}
    assert [target["row"] for target in record["targets"]] == [facts] + [None] * (len(trace.targets) - 1)


def test_rows_of_another_run_are_not_shown(
    runs: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    for name, columns in {"other": {"text": ["a"]}, "rows": {}}.items():
        (tmp_path / name).mkdir()
        if columns:
            pq.write_table(pa.table(columns), tmp_path / name / "train.parquet")
        assert view(runs["first"], "--rows", tmp_path / name, "--out", tmp_path / "page.html") == 2
        line = f"error: --rows {tmp_path / name}: no training rows there; give the folder that `agentsys rows` wrote"
        assert capsys.readouterr().err.splitlines() == [line]


def test_a_large_run_is_named_only(
    runs: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = Path(shutil.copytree(runs["first"], tmp_path / "a run"))
    (folder / "view.html").unlink(missing_ok=True)
    for name in ("MAX_RECORDS", "MAX_TRACE_BYTES"):
        with monkeypatch.context() as patch:
            patch.setattr(command, name, 5)
            show_page(folder)
        assert capsys.readouterr().out == f"page: agentsys view '{folder}' writes it\n"
        assert not (folder / "view.html").exists()
    show_page(folder)
    assert capsys.readouterr().out == f"page: {folder / 'view.html'}\n"
    assert (folder / "view.html").is_file()


def test_a_full_disk_costs_the_page_alone(
    runs: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(*arguments: Any) -> None:
        raise OSError(28, "No space left on device", "run/view.html")

    folder = Path(shutil.copytree(runs["first"], tmp_path / "run"))
    monkeypatch.setattr(command, "write_page", fail)
    show_page(folder)
    line = f"no page: run/view.html: No space left on device; agentsys view {folder} writes it\n"
    assert capsys.readouterr().out == line
    assert not list(folder.glob(".view-*"))
