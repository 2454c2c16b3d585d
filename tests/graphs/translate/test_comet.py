"""COMET models as columns: several at once, without references, cached, and with failures of their own."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest

from agentsys.graphs.translate.comet import column_names
from agentsys.records import InputError
from tests.support.comet import read_calls
from tests.support.evaluations import Run, read_lines, read_report
from tests.support.toys import one_error, write_lines
from tests.support.translations import PAIRS

DA, KIWI = "Unbabel/wmt22-comet-da", "Unbabel/wmt22-cometkiwi-da"
PYTHON = ["--comet-python", sys.executable]
BOTH = [*PYTHON, "--comet-model", DA, "--comet-model", KIWI]
WITHOUT = [{name: value for name, value in pair.items() if name != "trans"} for pair in PAIRS]


def values(out: Path) -> dict[str, dict[str, Any]]:
    systems = read_report(out)["systems"]
    return {name: {m: score["value"] for m, score in result["metrics"].items()} for name, result in systems.items()}


def test_each_model_has_a_column_of_its_name(run: Run, comet: Path, tmp_path: Path) -> None:
    code, output, _ = run("--systems", "plain,thought", *BOTH, "--out", tmp_path / "out")
    report = read_report(tmp_path / "out")
    assert code == 0 and [name for name in report["metrics"] if "comet" in name.lower()] == [
        "wmt22-comet-da",
        "wmt22-cometkiwi-da",
    ]
    assert values(tmp_path / "out")["plain"]["wmt22-comet-da"] == 62.5
    assert "COMET" not in report["absent"] and values(tmp_path / "out")["plain"]["wmt22-cometkiwi-da"] == 62.5
    assert report["signatures"]["wmt22-comet-da"] == f"model:{DA}|refs:first|unbabel-comet:unknown"
    assert f"wmt22-cometkiwi-da: model:{KIWI}|refs:first, if any|" in output
    assert report["settings"]["comet_model"] == [DA, KIWI]


def test_a_model_without_references_scores_pairs_without_references(run: Run, comet: Path, tmp_path: Path) -> None:
    pairs = write_lines(tmp_path / "bare.jsonl", [WITHOUT[0], *PAIRS[1:]])
    code, _, _ = run("--pairs", pairs, "--systems", "plain", *BOTH, "--out", tmp_path / "out")
    lines = read_lines(tmp_path / "out" / "translations.jsonl")
    scores = [line["systems"]["plain"]["scores"] for line in lines]
    assert code == 0 and [score.get("wmt22-cometkiwi-da") for score in scores] == [50, 75, 75, 75]
    assert [score.get("wmt22-comet-da") for score in scores] == [None, 75, 75, 75], "no reference, no score"
    none = write_lines(tmp_path / "none.jsonl", WITHOUT)
    code, _, _ = run("--pairs", none, "--systems", "plain", *BOTH, "--out", tmp_path / "none")
    report = read_report(tmp_path / "none")
    assert code == 0 and report["absent"]["wmt22-comet-da"] == "the model needs references"
    assert report["systems"]["plain"]["metrics"]["wmt22-cometkiwi-da"]["value"] == 50


def test_scores_are_computed_once(run: Run, comet: Path, tmp_path: Path) -> None:
    options = ["--systems", "plain,thought", *BOTH]
    run(*options, "--out", tmp_path / "out", "--limit", 2)
    assert read_calls(comet) == [f"{DA} 4", f"{KIWI} 4"]
    run(*options, "--out", tmp_path / "out")
    # Eight translations, all different, of which four are scored already.
    assert read_calls(comet)[2:] == [f"{DA} 4", f"{KIWI} 4"]
    counts = read_report(tmp_path / "out")["comet"]["wmt22-comet-da"]
    assert (counts["computed"], counts["cached"]) == (4, 4)
    first = values(tmp_path / "out")
    assert run(*options, "--out", tmp_path / "other")[0] == 0 and len(read_calls(comet)) == 4, "in any folder"
    assert values(tmp_path / "other") == first
    run("--systems", "plain", *PYTHON, "--comet-model", "Unbabel/XCOMET-XL", "--out", tmp_path / "out")
    assert read_calls(comet)[4:] == ["Unbabel/XCOMET-XL 4"], "another model"


def test_a_changed_reference_or_checkpoint_is_scored_again(run: Run, comet: Path, tmp_path: Path) -> None:
    checkpoint = tmp_path / "mine" / "checkpoints" / "model.ckpt"
    checkpoint.parent.mkdir(parents=True)
    checkpoint.write_text("one")
    options = ["--systems", "plain", *PYTHON, "--comet-model", checkpoint, "--out", tmp_path / "out"]
    run(*options)
    run(*options)
    changed = write_lines(tmp_path / "changed.jsonl", [{**PAIRS[0], "trans": "流感。"}, *PAIRS[1:]])
    run(*options, "--pairs", changed)
    checkpoint.write_text("another one")
    run(*options, "--pairs", changed)
    assert [line.rpartition(" ")[2] for line in read_calls(comet)] == ["4", "1", "4"]
    assert "mine" in values(tmp_path / "out")["plain"]


def test_a_model_that_fails_costs_its_column_alone(run: Run, comet: Path, tmp_path: Path) -> None:
    options = [*PYTHON, "--comet-model", "gone", "--comet-model", DA, "--out", tmp_path / "out"]
    code, _, _ = run("--systems", "plain", *options)
    report = read_report(tmp_path / "out")
    assert code == 1 and report["absent"]["gone"] == "gone failed: FileNotFoundError: no such model: gone"
    assert report["systems"]["plain"]["metrics"]["wmt22-comet-da"]["n"] == 4


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--comet-model", DA], "--comet-model: name a Python that has unbabel-comet with --comet-python"),
        ([*PYTHON, "--comet-model", DA, "--comet-model", f"other/{DA}"], "another model is called wmt22-comet-da too"),
        ([*PYTHON, "--comet-model", ""], "--comet-model: it is empty"),
    ],
)
def test_models_that_cannot_be_columns(run: Run, comet: Path, options: list[str], words: str) -> None:
    code, _, error = run("--systems", "plain", *options)
    assert code == 2 and words in one_error(error) and not read_calls(comet)


def test_the_name_of_a_column() -> None:
    names = {
        DA: "wmt22-comet-da",
        "wmt20-comet-qe-da": "wmt20-comet-qe-da",
        "/models/kiwi/checkpoints/model.ckpt": "kiwi",
        "hub/models--Unbabel--XCOMET-XL/snapshots/6a123c/checkpoints/model.ckpt": "XCOMET-XL",
    }
    assert column_names(names) == {column: model for model, column in names.items()}
    with pytest.raises(InputError, match="leave one out"):
        column_names(["a/x", "b/x"])
