"""Every trainer refuses bad input in one line, before any weights are loaded or converted."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NoReturn

import pytest
import transformers

from agentsys.commands import command, run_app
from agentsys.trainers import distill, export, miniplm, sft, step_dpo, teacher, warmup_distill
from agentsys.trainers.row_filter import Filters
from agentsys.trainers.rows import TargetOptions, make_rows
from agentsys.trainers.teacher import SpeedOptions, TeacherOptions
from tests.support.corpora import make_chunks, make_corpus
from tests.support.tiny import make_tiny
from tests.support.traces import make_trace, run_folder, sft_target, step_rows
from tests.support.training import DIGEST, sft_row, write_rows

MAINS: dict[str, tuple[Callable[..., None], ...]] = {
    "sft": (sft.main,),
    "step-dpo": (step_dpo.main,),
    "distill": (distill.main,),
    "warmup-distill": (warmup_distill.main,),
    "teacher": (teacher.main,),
    "miniplm": (miniplm.train, miniplm.score),
    "gguf": (export.main,),
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with rows of each kind, scored rows, chunks, a run, two models of different tokenizers, and a file."""
    folder = tmp_path_factory.mktemp("data")
    make_tiny(folder / "student")
    make_tiny(folder / "other", vocab=400)
    for split, count in (("train", 6), ("validation", 2)):
        write_rows(folder / "rows" / "sft" / f"{split}.parquet", [sft_row(i) for i in range(count)])
        write_rows(folder / "rows" / "step" / f"{split}.parquet", step_rows(count), "step", DIGEST)
    scores = TeacherOptions(folder / "rows/sft/train.parquet", folder / "scored", str(folder / "student"), top_k=8)
    teacher.main(scores, SpeedOptions())
    half = write_rows(folder / "half" / "scored-00000.parquet", [sft_row(0)]).parent
    (half / "manifest.json").write_text('{"complete": false, "rows_total": 6, "rows_scored": 1}')
    make_chunks(make_corpus(folder), folder / "student", folder / "chunks")
    run_folder(folder / "run", make_trace("a", [], [sft_target("Say it.", ("So it is.", True))]))
    (folder / "a-file").write_text("")
    (folder / "begun" / "checkpoint-4").mkdir(parents=True)
    (folder / "begun" / "checkpoint-4" / "trainer_state.json").write_text("{}")
    (folder / "empty").mkdir()
    return folder


@pytest.fixture
def no_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    """Loading or making a model fails, in whatever module."""

    def refuse(*arguments: Any, **options: Any) -> NoReturn:
        pytest.fail("weights are loaded before the input is checked")

    for name in ("from_pretrained", "from_config"):
        monkeypatch.setattr(transformers.AutoModelForCausalLM, name, refuse)


ROWS = {
    "nope": r"--rows nope: no such folder; trainers/rows.py (agentsys rows) writes it",
    "rows": "--rows rows: give one of its folders: rows/{kind}",
    "run": "--rows run: a run, not rows; make rows of it first: agentsys rows run",
    "empty": "--rows empty: no train.parquet; trainers/rows.py (agentsys rows) writes it",
}
BAD_ROWS = [
    *(("sft", rows, words.format(kind="sft")) for rows, words in ROWS.items()),
    *(("step-dpo", rows, words.format(kind="step")) for rows, words in ROWS.items()),
    *(("warmup-distill", rows, words.format(kind="sft")) for rows, words in ROWS.items()),
    ("sft", "rows/step", "--rows rows/step holds preference pairs; sft needs rows of kind sft or role, such as rows"),
    ("sft", "scored", "--rows scored: rows with a teacher's scores; sft needs rows of kind sft or role"),
    ("step-dpo", "rows/sft", "holds no column prompt_ids; step-dpo needs rows of kind step, such as rows/step"),
    ("distill", "nope", "--rows nope: no such folder; trainers/teacher.py (agentsys train teacher) writes it"),
    ("distill", "rows/sft", "agentsys train teacher --rows rows/sft/train.parquet --out scored"),
    ("distill", "rows", "agentsys train teacher --rows rows/sft/train.parquet --out scored"),
    ("distill", "rows/step/train.parquet", "holds preference pairs; distill needs rows of kind sft or role"),
    ("distill", "half", "--rows half: 1 of 6 rows are scored; rerun trainers/teacher.py to resume"),
]  # fmt: skip


def refused(name: str, options: Mapping[str, object], capsys: pytest.CaptureFixture[str], *first: str) -> str:
    """The only line that a refused command prints on stderr."""
    arguments = [part for option, value in options.items() for part in (f"--{option}", str(value))]
    capsys.readouterr()
    assert run_app(command(*MAINS[name]), [*first, *arguments]) == 2
    [line] = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    return line


@pytest.mark.usefixtures("no_weights")
@pytest.mark.parametrize(("name", "rows", "words"), BAD_ROWS)
def test_wrong_rows(
    name: str,
    rows: str,
    words: str,
    folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Also before the tokenizer of the student is read, which for a catalog name converts its weights."""
    monkeypatch.chdir(folder)
    assert words in refused(name, {"rows": rows, "student": "no-such-student", "out": "new"}, capsys)


OPTIONS: dict[str, dict[str, object]] = {
    "sft": {"rows": "rows/sft"},
    "step-dpo": {"rows": "rows/step"},
    "distill": {"rows": "scored"},
    "on-policy": {"rows": "rows/sft", "teacher": "student"},
    "warmup-distill": {"rows": "rows/sft", "teacher": "student"},
}
BAD_OPTIONS: list[tuple[dict[str, object], str]] = [
    ({"student": "nowhere/at/all"}, "nowhere/at/all: no such folder"),
    ({"student": "other"}, "another tokenizer|the tokenizers differ"),
    ({"out": "a-file"}, "--out a-file is a file; give a folder"),
    ({"out": "a-file/deeper"}, "a-file is a file; give another folder"),
    ({"lora": -1}, "--lora -1: give a rank"),
]
BAD_TRAINING: list[tuple[dict[str, object], str]] = [
    ({"out": "begun"}, "begun has checkpoint-4: give --resume"),
    ({"resume": ""}, "--resume: new has no checkpoint"),
    ({"epochs": 0}, "--epochs 0: no optimizer step"),
    ({"learning-rate": 0}, "--learning-rate 0: nothing would be learned"),
    ({"epochs": "inf"}, "--epochs inf: give a number"),
    ({"warmup": "inf"}, "--warmup inf: give a number"),
    ({"learning-rate": "nan"}, "--learning-rate nan: give a number"),
    ({"set": "max_steps=ten"}, "--set max_steps=ten: give a whole number"),
    ({"set": "per_device_train_batch_size=0"}, "--set per_device_train_batch_size=0: give at least 1"),
    ({"set": "no_such=1"}, "has no field 'no_such'"),
    ({"schedule": "hyperbolic"}, "the trainer's configuration: .*hyperbolic"),
]
TRAINERS = [name for name in OPTIONS if name != "warmup-distill"]
CASES = [
    *((name, changes, words) for name in OPTIONS for changes, words in BAD_OPTIONS),
    *((name, changes, words) for name in TRAINERS for changes, words in BAD_TRAINING),
]


@pytest.mark.usefixtures("no_weights")
@pytest.mark.parametrize(("name", "changes", "words"), CASES)
def test_wrong_options(
    name: str,
    changes: dict[str, object],
    words: str,
    folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(folder)
    options = {"student": "student", "out": "new"} | OPTIONS[name] | changes
    flags = ["--resume"] if options.pop("resume", None) is not None else []
    import re

    assert re.search(words, refused("distill" if name == "on-policy" else name, options, capsys, *flags))


@pytest.mark.usefixtures("no_weights")
@pytest.mark.parametrize(
    ("name", "first", "options", "words"),
    [
        ("warmup-distill", [], {"rows": "rows/sft", "distill": "rows/sft"}, "has no teacher's scores"),
        ("teacher", [], {"rows": "nope", "out": "new"}, "--rows nope: no such file; trainers/rows.py (agentsys rows)"),
        ("teacher", [], {"rows": "rows/sft", "out": "new"}, "is a folder; give a row file: rows/sft/train.parquet"),
        ("teacher", [], {"rows": "rows/step/train.parquet", "out": "new"}, "holds preference pairs; teacher needs"),
        ("teacher", [], {"rows": "rows/sft/train.parquet", "out": "a-file"}, "--out a-file is a file; give a folder"),
        ("teacher", [], {"rows": "rows/sft/validation.parquet", "out": "scored"}, "has the scores of another run"),
        ("miniplm", ["train"], {"corpus": "rows", "model": "student"}, "rows is not a finished corpus; make one"),
        ("miniplm", ["train"], {"corpus": "chunks", "model": "student", "out": "a-file"}, "--out a-file is a file"),
        ("miniplm", ["train"], {"corpus": "chunks", "model": "student", "epochs": 0}, "--epochs 0: no optimizer step"),
        ("miniplm", ["score"], {"chunks": "rows", "model": "student"}, "rows is not a finished corpus; make one"),
        ("gguf", ["nowhere/at/all"], {"out": "x.gguf"}, "nowhere/at/all: no such folder"),
        ("gguf", ["student"], {"out": "x.bin"}, "--out x.bin: give a file name that ends in .gguf"),
        ("gguf", ["student"], {"out": "a-file/x.gguf"}, "--out a-file is a file; give a folder"),
        ("gguf", ["empty"], {"out": "x.gguf"}, "empty has no config.json: give a model folder"),
    ],
)
def test_wrong_input_of_the_other_commands(
    name: str,
    first: list[str],
    options: dict[str, object],
    words: str,
    folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(folder)
    if name == "teacher":
        options = {"teacher": "student"} | options
    assert words in refused(name, options, capsys, *first)


@pytest.mark.usefixtures("no_weights")
def test_weights_that_are_not_installed_get_one_line(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from agentsys.models import weights

    def find(name: str) -> NoReturn:
        raise weights.WeightsError(f"no source for {name}")

    monkeypatch.chdir(folder)
    monkeypatch.setenv("AGENTSYS_CACHE", str(tmp_path))
    monkeypatch.setattr(weights, "find", find)
    line = refused("step-dpo", {"rows": "rows/step", "student": "smollm2-135m"}, capsys)
    assert line == "error: no source for smollm2-135m"


def test_rows_checks_its_runs_before_the_student(folder: Path) -> None:
    for run, words in ((folder / "nope", "is no folder"), (folder / "empty", "has no traces-")):
        with pytest.raises(ValueError, match=words):
            make_rows([folder / "run", run], TargetOptions("no-such-student", folder / "o"), Filters())


def test_a_damaged_settings_file_gets_one_line(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from agentsys.trainers.output import find_start

    (folder / "begun" / "settings.json").write_text(json.dumps({})[:1])
    with pytest.raises(ValueError, match=r"settings.json is missing or damaged; give another --out"):
        find_start(folder / "begun", True)
