"""graphs/translate_human.py: a blinded sheet with its key, filled sheets, their scores and the agreement."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from agentsys.graphs.translate_human import app
from tests.support.toys import one_error, write_lines

SYSTEMS = ("plain", "drt", "crat")
Call = Callable[..., tuple[int, str, str]]
Rows = list[dict[str, str]]


@pytest.fixture
def call(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Call:
    from agentsys.commands import run_app

    monkeypatch.setenv("COLUMNS", "200")

    def run(*options: object) -> tuple[int, str, str]:
        code = run_app(app, [str(option) for option in options])
        output = capsys.readouterr()
        return code, output.out, output.err

    return run


@pytest.fixture
def evaluation(tmp_path: Path) -> Path:
    """Five sentences of three systems; one is not translated by all."""
    folder = tmp_path / "eval"
    folder.mkdir()
    lines = [
        {
            "id": f"s{i}",
            "source": f"Sentence {i},\nin two lines.",
            "systems": {name: {"translation": f"{name[0]}={i}"} for name in SYSTEMS},
        }
        for i in range(5)
    ]
    lines[4]["systems"] = {name: {"translation": None if name == "crat" else "=x"} for name in SYSTEMS}
    write_lines(folder / "translations.jsonl", lines)
    return folder


def read_csv(file: Path) -> Rows:
    with file.open(encoding="utf-8-sig", newline="") as stream:
        return list(csv.DictReader(stream))


def fill(evaluation: Path, name: str, best: Sequence[str], worst: Sequence[str], delimiter: str = ",") -> Path:
    """A filled copy of the sheet; `best` and `worst` name the systems of each row, "" leaves it empty."""
    rows, keys = read_csv(evaluation / "human/sheet.csv"), read_csv(evaluation / "human/key.csv")
    for row, key, first, last in zip(rows, keys, best, worst, strict=True):
        numbers = {system: name.removeprefix("translation ") for name, system in key.items()}
        if first:
            row |= {"best: fluency": numbers[first], "worst: fluency": f"{numbers[last]}.0"}
            row |= {f"score {numbers[first]}": "90", f"score {numbers[last]}": "10,5"}
    file = evaluation / f"{name}.csv"
    with file.open("w", encoding="utf-8-sig", newline="") as stream:
        writer = csv.DictWriter(stream, list(rows[0]), delimiter=delimiter)
        writer.writeheader()
        writer.writerows(rows)
    return file


def test_the_sheet_is_blinded_and_the_key_undoes_it(call: Call, evaluation: Path) -> None:
    code, output, _ = call("export", "--evaluation", evaluation, "--criteria", "fluency,accuracy")
    assert code == 0 and "4 sentences with 3 translations each" in output
    sheet, key = (read_csv(evaluation / "human" / name) for name in ("sheet.csv", "key.csv"))
    answers = ["best: fluency", "worst: fluency", "best: accuracy", "worst: accuracy", "score 1", "score 2", "score 3"]
    assert [*sheet[0]] == ["item", "source", *(f"translation {n}" for n in (1, 2, 3)), *answers, "comment"]
    assert not any(name in (evaluation / "human/sheet.csv").read_text("utf-8-sig") for name in SYSTEMS)
    orders = set()
    for row, entry in zip(sheet, key, strict=True):
        order = [entry[f"translation {n}"] for n in (1, 2, 3)]
        orders.add(tuple(order))
        texts = [row[f"translation {n}"] for n in (1, 2, 3)]
        assert texts == [f"{name[0]}={entry['id'][1:]}" for name in order] and row["item"] == entry["item"]
        assert sorted(order) == sorted(SYSTEMS) and row["source"].endswith(",\nin two lines.")
    assert len(orders) > 1 and {entry["id"] for entry in key} == {"s0", "s1", "s2", "s3"}, "s4 has no third one"
    code, _, error = call("export", "--evaluation", evaluation)
    assert code == 2 and "it has a sheet.csv already" in one_error(error)


def test_a_cell_is_no_formula_and_the_seed_draws(call: Call, evaluation: Path, tmp_path: Path) -> None:
    write_lines(
        evaluation / "translations.jsonl",
        [{"id": str(i), "source": "-1", "systems": {n: {"translation": f"={n}"} for n in "abcd"}} for i in range(9)],
    )
    keys = []
    for number, seed in enumerate((1, 1, 2)):
        out = tmp_path / str(number)
        assert call("export", "--evaluation", evaluation, "--limit", 3, "--seed", seed, "--out", out)[0] == 0
        rows = read_csv(out / "sheet.csv")
        assert len(rows) == 3 and rows[0]["source"] == "'-1" and rows[0]["translation 1"].startswith("'=")
        keys.append((out / "key.csv").read_text())
    assert keys[0] == keys[1] != keys[2]


def test_scores_by_hand(call: Call, evaluation: Path) -> None:
    call("export", "--evaluation", evaluation, "--criteria", "fluency")
    one = fill(evaluation, "one", ["drt", "drt", "drt", "plain"], ["crat", "crat", "plain", "crat"])
    two = fill(evaluation, "two", ["drt", "drt", "plain", ""], ["crat", "crat", "crat", ""], delimiter=";")
    code, output, _ = call("score", one, two, "--key", evaluation / "human/key.csv")
    report = json.loads((evaluation / "human/human.json").read_text())
    fluency = report["criteria"]["fluency"]
    assert code == 0 and report["annotators"] == {str(one): 4, str(two): 3}
    # Seven annotations: drt is the best in 5; plain the best in 2 and the worst in 1; crat the worst in 6.
    values = {name: counts["value"] for name, counts in fluency["systems"].items()}
    assert values == pytest.approx({"drt": 5 / 7, "plain": 1 / 7, "crat": -6 / 7})
    assert fluency["systems"]["plain"]["best"] == pytest.approx(2 / 7) and fluency["systems"]["drt"]["n"] == 7
    assert fluency["systems"]["crat"]["low"] <= -6 / 7 <= fluency["systems"]["crat"]["high"]
    # Three sentences have both. Best: equal in two; shares drt 5/6, plain 1/6, so chance is 26/36.
    assert fluency["complete_items"] == 3 and fluency["kappa_best"] == pytest.approx((2 / 3 - 26 / 36) / (10 / 36))
    assert report["scores"]["crat"] == {"value": 10.5, "low": 10.5, "high": 10.5, "n": 6}
    assert report["scores"]["drt"]["n"] == 5 and "+0.714" in output and "Fleiss' kappa -0.20 (best)" in output


def test_one_annotator_has_no_agreement(call: Call, evaluation: Path) -> None:
    call("export", "--evaluation", evaluation, "--criteria", "fluency")
    one = fill(evaluation, "one", ["drt"] * 4, ["crat"] * 4)
    code, output, _ = call("score", one, "--key", evaluation / "human/key.csv")
    report = json.loads((evaluation / "human/human.json").read_text())
    assert code == 0 and report["criteria"]["fluency"]["kappa_best"] is None and "kappa" not in output
    assert report["criteria"]["fluency"]["systems"]["drt"]["value"] == 1


BAD_CELLS = [
    ({"best: fluency": "4", "worst: fluency": "1"}, "'4' is not the number of a translation, 1 to 3"),
    ({"best: fluency": "2"}, "'' is not the number of a translation"),
    ({"best: fluency": "2", "worst: fluency": "2"}, "translation 2 is the best and the worst"),
    ({"best: fluency": "x", "worst: fluency": "2"}, "'x' is not the number"),
    ({"score 1": "101"}, "'101' is not a score from 0 to 100"),
    ({"score 1": "nan"}, "'nan' is not a score from 0 to 100"),
    ({"item": "ffff-1"}, "item 'ffff-1' is not in the key"),
    ({}, "nothing is filled in"),
]


@pytest.mark.parametrize(("cells", "words"), BAD_CELLS)
def test_a_wrong_cell_is_one_line(call: Call, evaluation: Path, cells: dict[str, str], words: str) -> None:
    call("export", "--evaluation", evaluation, "--criteria", "fluency")
    sheet = evaluation / "human/sheet.csv"
    rows = read_csv(sheet)
    rows[1] |= cells
    with sheet.open("w", encoding="utf-8", newline="") as stream:
        writer = csv.DictWriter(stream, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    code, output, error = call("score", sheet, "--key", evaluation / "human/key.csv")
    assert code == 2 and not output and words in one_error(error)
    assert "row 3" in error or not cells


def test_what_cannot_be_exported_or_scored(call: Call, evaluation: Path, tmp_path: Path) -> None:
    single = write_lines(tmp_path / "one.jsonl", [{"id": "1", "source": "a", "systems": {"x": {"translation": "b"}}}])
    (tmp_path / "notes.csv").write_text("a,b\n1,2\n")
    call("export", "--evaluation", evaluation)
    key, sheet = evaluation / "human/key.csv", evaluation / "human/sheet.csv"
    for options, words in (
        (["export"], "--evaluation: name the --out folder"),
        (["export", "--evaluation", tmp_path / "nobody"], "No such file"),
        (["export", "--evaluation", key], "not the translations.jsonl"),
        (["export", "--evaluation", single], "two systems or more"),
        (["export", "--evaluation", evaluation, "--limit", 0], "--limit 0"),
        (["export", "--evaluation", evaluation, "--criteria", ","], "--criteria: it is empty"),
        (["score", sheet], "--key: name the key.csv"),
        (["score", sheet, "--key", tmp_path / "notes.csv"], "no column 'item'"),
        (["score", sheet, sheet, "--key", key], "a sheet is given twice"),
    ):
        code, _, error = call(*options)
        assert code == 2 and words in one_error(error), options
