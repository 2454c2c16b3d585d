"""The commands `extralonger` and `forecast`, from a table of counts to a forecast, and what they refuse."""

from __future__ import annotations

import csv
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from agentsys.commands import run_app
from agentsys.trainers import extralonger, forecast
from agentsys.trainers.loading import TrainerError
from agentsys.trainers.traffic import fit as fitting
from agentsys.trainers.traffic.experiment import options_to_compare, parse_horizon
from agentsys.trainers.traffic.folder import load_model
from agentsys.trainers.traffic.options import FitOptions, ModelOptions, TableOptions
from agentsys.view.training import is_training, read_training
from tests.support.traffic_models import noisy_week, write_counts

QUICK: list[Any] = ["--epochs", 2, "--windows", 48, "--batch", 8, "--test-windows", 40, "--validation-windows", 40]
SHORT: list[Any] = ["--in-horizon", "12h", "--out-horizon", 6, "--compare", ""]


@pytest.fixture(scope="module")
def counts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_counts(tmp_path_factory.mktemp("data") / "counts.csv", noisy_week(days=40))


@pytest.fixture(autouse=True)
def in_its_own_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def train(counts: Path, *options: Any) -> int:
    return run_app(extralonger.app, [str(part) for part in ("--data", counts, *QUICK, *options)])


@pytest.fixture(scope="module")
def trained(counts: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model that forecasts a day, beside DLinear, with everything that the command writes."""
    out = tmp_path_factory.mktemp("trained") / "model"
    assert train(counts, "--out-horizon", "day", "--compare", "dlinear", "--out", out) == 0
    return out


def test_a_table_of_counts_becomes_a_model_folder(trained: Path) -> None:
    report = json.loads((trained / "report.json").read_text())
    rows = {row["model"]: row for row in report["table"]}
    assert next(iter(rows)) == min(rows, key=lambda name: rows[name]["pooled"]["mae"])
    expected = {"last value", "yesterday", "last week", "4-week mean", "weekly profile", "scaled profile", "ridge"}
    assert rows.keys() == expected | {"ridge on residual", "extralonger (ridge)", "dlinear (plain)"}
    assert len({row["pooled"]["count"] for row in rows.values()}) == 1  # one mask for all
    ours = rows["extralonger (ridge)"]
    assert ours["pooled"]["coverage"] is not None and ours["parameters"] > 10_000
    assert ours["pooled"]["mae"] < rows["last value"]["pooled"]["mae"]
    assert report["verdict"].startswith("MAE on validation: model ")
    written = {path.name for path in trained.iterdir() if not path.name.startswith("checkpoint-")}
    pictures = {"curves.png", "week.png", "lead.png", "attention.png"}
    files = {
        "README.md",
        "latest.npz",
        "metrics.jsonl",
        "model.json",
        "model.safetensors",
        "report.json",
        "run.yaml",
        "settings.json",
    }
    assert written == pictures | files
    card = (trained / "README.md").read_text()
    assert report["verdict"].replace("`", "") in card.replace("`", "") and "| extralonger (ridge) |" in card
    assert is_training(trained) and len(read_training(trained)["curves"]["eval_loss"]) == 3


def test_a_forecast_of_the_latest_data(trained: Path, counts: Path, tmp_path: Path, capsys: Any) -> None:
    series = noisy_week(days=40)
    latest = write_counts(tmp_path / "latest.csv", series.between(24 * 30, 24 * 35 - 2))
    picture = tmp_path / "next.png"
    options = [trained, "--data", latest, "--out", tmp_path / "next.csv", "--picture", picture]
    assert run_app(forecast.app, [str(part) for part in options]) == 0
    rows = list(csv.DictReader((tmp_path / "next.csv").open()))
    assert len(rows) == 24 * 3 and picture.stat().st_size > 1000
    assert rows[0]["time"] == "2024-02-04T22:00:00+00:00"
    truth = series.target[24 * 35 - 2 : 24 * 36 - 2].ravel()
    values, low, high = (np.array([float(row[name]) for row in rows]) for name in ("forecast", "low_10", "high_90"))
    assert (low <= values).all() and (values <= high).all() and ((truth >= low) & (truth <= high)).mean() > 0.5
    assert np.abs(values - truth).mean() < 0.5 * truth.mean()
    assert json.loads((trained / "report.json").read_text())["verdict"] in capsys.readouterr().out


def test_without_data_the_forecast_follows_that_of_the_training(trained: Path, tmp_path: Path, capsys: Any) -> None:
    out = tmp_path / "next.csv"
    assert run_app(forecast.app, [str(trained), "--out", str(out)]) == 0
    assert f"{out}: 24 steps of 3 sensors from 2024-02-10T00:00:00+00:00" in " ".join(capsys.readouterr().out.split())
    (trained / "latest.npz").rename(tmp_path / "latest.npz")
    try:
        assert run_app(forecast.app, [str(trained), "--out", str(out)]) == 2
        assert "has no latest.npz: give the latest values with --data" in capsys.readouterr().err
        (trained / "latest.npz").write_bytes(b"PK")
        assert run_app(forecast.app, [str(trained), "--out", str(out)]) == 2
        assert "latest.npz is damaged" in capsys.readouterr().err
    finally:
        (tmp_path / "latest.npz").replace(trained / "latest.npz")


def test_a_killed_command_is_resumed_with_the_same_settings(
    counts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    """Stopped after the second of three epochs; the folder asks for --resume, and for the same settings."""

    class Stop(BaseException):
        pass

    save = fitting._save_checkpoint

    def save_and_stop(*parts: Any) -> None:
        save(*parts)
        if parts[-1].epoch == 2:
            raise Stop

    options = [*SHORT, "--epochs", 3, "--out", tmp_path / "model"]
    with monkeypatch.context() as patch:
        patch.setattr(fitting, "_save_checkpoint", save_and_stop)
        with pytest.raises(Stop):
            train(counts, *options)
    assert train(counts, *options) == 2
    assert "has checkpoint-12: give --resume to continue from it" in capsys.readouterr().err
    assert train(counts, *options, "--resume", "--batch", 4) == 2
    assert "batch was 8 and is 4: --resume needs the same settings" in capsys.readouterr().err
    assert train(counts, *options, "--resume") == 0
    epochs = [json.loads(line)["epoch"] for line in (tmp_path / "model" / "metrics.jsonl").read_text().splitlines()]
    assert epochs == [0, 1, 2, 3]


def test_the_papers_setting_and_the_published_split(counts: Path, tmp_path: Path, capsys: Any) -> None:
    out = tmp_path / "model"
    assert train(counts, *SHORT, "--paper", "--split", "published", "--out", out) == 0
    info = load_model(out).info
    assert (info.input, info.shape.channels, info.shape.outputs, info.config.dropout) == ("plain", 1, 1, 0.0)
    assert (info.shape.steps_in, info.shape.steps_out) == (12, 6)
    report = json.loads((out / "report.json").read_text())
    assert report["published_split"].startswith("published split: MAE over that of the scaled profile ")
    assert report["published_split"] in capsys.readouterr().out
    assert report["table"][0]["pooled"]["coverage"] is None or report["table"][0]["model"] == "extralonger (plain)"


def test_school_holidays_are_known_in_the_forecast(counts: Path, tmp_path: Path, capsys: Any) -> None:
    """The forecast's days lie between two holidays of the file; a moved file is named by --school."""
    terms = tmp_path / "terms.csv"
    terms.write_text("from,to\n2024-01-08,2024-01-14\n2024-02-01,2024-02-02\n2024-03-25,2024-04-05\n")
    out = tmp_path / "model"
    assert train(counts, *SHORT, "--school", terms, "--out", out) == 0
    assert load_model(out).info.shape.known == 1 and not load_model(out).info.holidays
    moved = terms.rename(tmp_path / "moved.csv")
    options = [str(out), "--data", str(counts), "--out", str(tmp_path / "next.csv")]
    assert run_app(forecast.app, options) == 2
    assert "terms.csv: no such file" in capsys.readouterr().err
    assert run_app(forecast.app, [*options, "--school", str(moved)]) == 0
    assert (tmp_path / "next.csv").exists()


def test_what_is_known_of_the_future_is_learned(tmp_path: Path, capsys: Any) -> None:
    """Rain halves the counts: the model that knows the rain of the forecast is better, and needs it in the forecast."""
    series = noisy_week(days=60, noise=0.02)
    rain = np.random.default_rng(1).random(len(series) + 6) < 0.3
    wet = replace(series, values=series.values * np.where(rain[: len(series)], 0.5, 1.0)[:, None, None])
    counts = write_counts(tmp_path / "wet.csv", wet)
    times = series.times[0] + np.arange(len(rain)) * np.timedelta64(1, "h")
    weather = tmp_path / "weather.csv"
    rows = [f"{time},{value:d}" for time, value in zip(times, rain, strict=True)]
    weather.write_text("\n".join(["time,rain", *rows]))
    options = [*SHORT, "--epochs", 8, "--windows", 400, "--learning-rate", 3e-3]
    assert train(counts, *options, "--out", tmp_path / "blind") == 0
    assert train(counts, *options, "--known", weather, "--out", tmp_path / "knowing") == 0
    errors = {}
    for name in ("blind", "knowing"):
        table = json.loads((tmp_path / name / "report.json").read_text())["table"]
        errors[name] = next(row["pooled"]["mae"] for row in table if row["model"] == "extralonger (ridge)")
    assert errors["knowing"] < 0.8 * errors["blind"]
    assert run_app(forecast.app, [str(tmp_path / "knowing"), "--out", str(tmp_path / "next.csv")]) == 0
    weather.write_text("\n".join(weather.read_text().splitlines()[:-3]))
    assert run_app(forecast.app, [str(tmp_path / "knowing"), "--out", str(tmp_path / "next.csv")]) == 2
    assert "it must cover the data and the forecast" in capsys.readouterr().err


def test_a_model_without_school_holidays_takes_none(trained: Path, counts: Path, capsys: Any) -> None:
    assert run_app(forecast.app, [str(trained), "--data", str(counts), "--school", "terms.csv"]) == 2
    assert "--school terms.csv: the model was trained without one" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--out-horizon", "8d"], "steps of forecast need at least"),
        (["--out-horizon", "90min"], "--out-horizon 90min: give a multiple of the step of 60 minutes"),
        (["--out-horizon", "soon"], "--out-horizon soon: give a duration"),
        (["--compare", "arima"], "--compare arima: give NAME or NAME:INPUT"),
        (["--compare", "stid:raw"], "--compare stid:raw: give NAME or NAME:INPUT"),
        (["--routes", "diagonal"], "--routes diagonal: the routes are mixed, spatial, temporal"),
        (["--dropout", "1"], "--dropout 1.0: give a number from 0 to below 1"),
        (["--layers", "0"], "--layers 0: give at least 1"),
        (["--data", "nothing.csv"], "--data nothing.csv: no such file"),
    ],
)  # fmt: skip
def test_bad_options_are_one_line(counts: Path, options: list[str], message: str, capsys: Any) -> None:
    assert train(counts, *SHORT, *options) == 2
    error = capsys.readouterr().err.strip().splitlines()
    assert message in error[-1] and error[-1].startswith("error: ")
    assert not Path("model").exists()


def test_horizons() -> None:
    assert [parse_horizon(text, 900, "--out-horizon") for text in ("week", "day", "12h", "3d", "48")] == [
        672, 96, 48, 288, 48,
    ]  # fmt: skip
    with pytest.raises(TrainerError, match="--out-horizon 0: give at least one step"):
        parse_horizon("0", 900, "--out-horizon")


def test_networks_of_the_table_train_as_long_as_the_model_at_their_own_rate() -> None:
    training = FitOptions(learning_rate=5e-4, epochs=3, resume=True)
    stid, control = (options_to_compare(training, name, 7.5) for name in ("stid", "separate"))
    assert (stid.rate, control.rate, stid.seconds, stid.resume) == (2e-3, 5e-4, 7.5, False)
    assert stid.epochs > 1000 and stid.patience == training.patience


def test_options_become_the_papers_routes_in_their_order() -> None:
    assert ModelOptions(routes=["temporal", "mixed"]).config(paper=False).routes == ("mixed", "temporal")
    assert ModelOptions().config(paper=True).dropout == 0 and ModelOptions().config(paper=False).dropout > 0
    assert TableOptions(compare="stid, separate:ridge").networks == [("stid", "plain"), ("separate", "ridge")]
