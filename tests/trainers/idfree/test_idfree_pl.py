"""The command from a table to report and attacks: it learns opposite tastes, resumes after a kill, refuses changes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest

from agentsys.commands import run_app
from agentsys.trainers import idfree_pl
from agentsys.trainers.idfree import stages
from agentsys.trainers.idfree.backbone import load_model, read_info
from agentsys.trainers.idfree.device import Device, load_parameters
from agentsys.trainers.loading import TrainerError
from tests.support.tastes import write_tastes
from tests.support.training import sft_row, write_rows

LEARN: list[Any] = [
    *("--central-steps", 60, "--central-rate", 1e-3, "--device-steps", 60, "--device-rate", 0.1, "--spread", 2.0),
    *("--cloud-epochs", 8, "--cloud-batch", 64, "--cloud-rate", 1e-3, "--max-length", 16, "--bootstrap", 100),
]
QUICK: list[Any] = [
    *("--central-steps", 2, "--central-epochs", 0.1, "--device-steps", 2, "--cloud-epochs", 0.1, "--max-length", 16),
    *("--bootstrap", 50, "--other-draws", 2, "--baselines", "", "--linked", "1"),
]


@pytest.fixture(autouse=True)
def in_its_own_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


@pytest.fixture(scope="module")
def tastes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tastes(tmp_path_factory.mktemp("data") / "tastes.csv")


def train(*options: Any) -> int:
    return run_app(idfree_pl.app, [str(part) for part in options])


@pytest.fixture(scope="module")
def trained(tastes: Path, encoder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("trained") / "run"
    options = ["--data", tastes, "--model", encoder, "--cold", 0.1, "--out", out, *LEARN]
    assert train(*options, "--baselines", "lora,static,id-text", "--lora-rank", 2) == 0
    return out


def test_the_own_embedding_is_better_than_central_and_another_users(trained: Path) -> None:
    """Half of the users like what the other half dislikes: no text alone can tell, and a user's majority neither."""
    report = json.loads((trained / "report.json").read_text())
    scores = {row["system"]: row for row in report["table"]}
    own, other, central = (scores[name] for name in ("own embedding", "another user's embedding", "central"))
    assert own["accuracy"] > 0.8 and own["gain_low"] > 0.1 and own["p"] < 0.01
    assert central["accuracy"] < 0.65 and other["accuracy"] < 0.65
    assert report["against_user_alone"][0]["gain"] > 0.1
    assert scores["static embedding"]["accuracy"] > 0.8 and scores["LoRA on the device"]["accuracy"] > 0.6
    assert scores.keys() >= {"majority", "text alone", "user alone", "user id as text", "central, own embedding"}
    assert {row["system"] for row in report["new_users"]} == scores.keys()
    assert report["test_users"] == 36 and len(report["entropy"]["thirds"]) == 3


def test_devices_and_model_fit_together_and_no_file_for_others_has_a_name(trained: Path) -> None:
    info, model = read_info(trained / "cloud"), load_model(trained / "cloud")
    files = sorted((trained / "devices").glob("user-*.npz"))
    assert len(files) == 36 and info.labels == ("dislike", "like")
    parameters = load_parameters(files[0], model=read_info(trained / "central").model, width=info.width)
    assert info.model == parameters.model and np.abs(parameters.first - 2).max() <= 2
    probabilities = model.classify(
        ["the cat of 1"] * 3, np.stack([Device(parameters, seed).draw() for seed in range(3)])
    )
    assert probabilities.shape == (3, 2) and np.allclose(probabilities.sum(1), 1, atol=1e-5)
    assert np.ptp(probabilities[:, 0]) > 1e-6  # another draw, another answer
    with pytest.raises(TrainerError, match=r"embeddings of shape \(1, 1, 3\); the model needs \(1, 1, 64\)"):
        model.classify(["x"], np.zeros((1, 1, 3), np.float32))
    public = [trained / name for name in ("README.md", "report.json")]
    for file in (*public, *(trained / "cloud").iterdir(), *(trained / "attacks").iterdir()):
        assert b"reader-" not in file.read_bytes(), file
    card = (trained / "README.md").read_text()
    assert "does not make them anonymous" in card and "tastes.csv" not in card
    assert (trained / "attacks" / "attacks.json").is_file()
    for picture in ("accuracy.png", "entropy.png", "losses.png", "attacks/attacks.png"):
        assert (trained / picture).stat().st_size > 1_000


def test_a_killed_command_continues_with_the_stage_that_was_interrupted(
    tastes: Path, encoder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    class Stop(BaseException):
        pass

    def stop(*parts: Any) -> None:
        raise Stop

    options = ["--data", tastes, "--model", encoder, "--out", tmp_path / "run", *QUICK]
    with monkeypatch.context() as patch:
        patch.setattr(stages, "train_cloud", stop)
        with pytest.raises(Stop):
            train(*options)
    done = {path.name for path in (tmp_path / "run").iterdir() if path.is_dir()}
    assert done == {"split", "central", "devices", ".cloud.part"}
    before = (tmp_path / "run" / "devices" / "parameters.npz").stat().st_mtime_ns
    assert train(*options, "--spread", 0.3) == 2
    assert "spread was 1.0 and is 0.3" in capsys.readouterr().err
    assert train(*options) == 0
    assert (tmp_path / "run" / "devices" / "parameters.npz").stat().st_mtime_ns == before
    assert (tmp_path / "run" / "report.json").is_file() and not (tmp_path / "run" / ".cloud.part").exists()


def test_each_stage_alone(tastes: Path, decoder: Path, tmp_path: Path, capsys: Any) -> None:
    options = ["--data", tastes, "--model", decoder, "--design", "gauss", "--out", tmp_path / "run", *QUICK]
    assert train(*options, "--stage", "cloud") == 2
    assert "has no devices: run --stage devices first" in capsys.readouterr().err
    for stage in ("split", "central", "devices", "cloud", "evaluate"):
        assert train(*options, "--stage", stage) == 0
        assert (tmp_path / "run" / stage).is_dir()
    assert train(*options, "--stage", "cloud") == 0
    assert "cloud is done: remove" in capsys.readouterr().out
    with np.load(tmp_path / "run" / "devices" / "parameters.npz") as arrays:
        assert (arrays["second"] == np.float32(0.2)).all() and (arrays["first"] != np.float32(0.1)).any()


def test_next_words_of_a_table(tastes: Path, decoder: Path, tmp_path: Path, capsys: Any) -> None:
    options = ["--data", tastes, "--model", decoder, "--task", "generate", "--out", tmp_path / "run", *QUICK]
    assert train(*options, "--baselines", "lora,static,id-text") == 0
    table = {row["system"] for row in json.loads((tmp_path / "run" / "report.json").read_text())["table"]}
    assert table >= {"central", "own embedding", "LoRA on the device", "static embedding", "user id as text"}
    model = load_model(tmp_path / "run" / "cloud")
    assert model.info.n_tokens == 5 and model.info.labels == ()
    embedding = np.full((2, 5, model.info.width), 0.4, np.float32)
    answers = model.complete(["the cat", "the fig of"], embedding, max_new_tokens=4)
    assert len(answers) == 2 and answers == model.complete(["the cat", "the fig of"], embedding, max_new_tokens=4)


def rows_of_two_preferences(folder: Path, users: bool = True) -> Path:
    """Even users' answers end in one word, odd users' in another one."""
    endings = ("The kettle sang", "Winter came over")
    rows = [
        sft_row(number, endings[user % 2]) | ({"user": user} if users else {})
        for user in range(6)
        for number in range(8)
    ]
    write_rows(folder / "train.parquet", rows)
    write_rows(folder / "validation.parquet", rows[::8])
    return folder


def test_a_student_of_rows_is_personalized(decoder: Path, tmp_path: Path) -> None:
    rows = rows_of_two_preferences(tmp_path / "rows")
    assert "user" in pq.read_schema(rows / "train.parquet").names
    options = ["--rows", rows, "--model", decoder, "--task", "generate", "--out", tmp_path / "run", *QUICK]
    assert train(*options, "--max-length", 64) == 0
    report = json.loads((tmp_path / "run" / "report.json").read_text())
    assert report["test_texts"] == 6 and report["entropy"] == {}
    assert "rows" not in json.loads((tmp_path / "run" / "cloud" / "idfree.json").read_text())


def test_rows_without_users_are_refused(decoder: Path, tmp_path: Path, capsys: Any) -> None:
    rows = rows_of_two_preferences(tmp_path / "rows", users=False)
    options = ["--rows", rows, "--model", decoder, "--out", tmp_path / "run", *QUICK]
    assert train(*options, "--task", "generate") == 2
    assert "no row has a user; collect records with a field `user`" in capsys.readouterr().err
    assert train("--rows", rows, "--model", decoder, "--out", tmp_path / "other", *QUICK) == 2
    assert "--rows needs --task generate" in capsys.readouterr().err
