"""graphs/drt_evaluate.py: the whole command with a scripted model, and what it says about bad input."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from agentsys.graphs.drt_evaluate import main
from agentsys.graphs.translate.system import parse_thought
from agentsys.metrics.corpus import bleu
from agentsys.models import EndpointDown
from agentsys.models.cache import CacheError
from tests.support.paths import ROOT

pytestmark = pytest.mark.usefixtures("isolated_cache")

PAIRS = [
    {"id": "cat", "en": "The cat sat on the mat.", "zh": "猫坐在垫子上，狗在一旁看着。"},
    {"id": "bee", "en": "He was as busy as a bee.", "zh": "他忙得像一只蜜蜂，从早到晚。"},
    {"id": "rain", "en": "It rained all night.", "zh": "整夜都在下雨，河水漫过了堤岸。"},
]
REPLY = "猫坐在垫子上，狗在一旁看着。"
RULES = [
    {"role": "translator", "replies": [REPLY]},
    {"role": "grf", "replies": ['{"score": 80}']},
    {"role": "grb", "replies": ['{"score": 70}']},
    {"role": "gea", "replies": ['{"reason": "stiff", "score": 60}']},
]

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def pairs(tmp_path: Path) -> Path:
    return write(tmp_path / "pairs.jsonl", PAIRS)


@pytest.fixture
def model(tmp_path: Path) -> str:
    return f"scripted:{write(tmp_path / 'rules.jsonl', RULES)}"


@pytest.fixture
def run(pairs: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Run:
    """Run the command on the pairs: exit code, what it printed, and what it said on stderr."""
    monkeypatch.setenv("COLUMNS", "200")

    def call(*options: object) -> tuple[int, str, str]:
        given = ["--pairs", pairs, "--source-field", "en", "--reference-field", "zh", *options]
        code = main([str(option) for option in given])
        said = capsys.readouterr()
        return code, said.out, said.err

    return call


def write(path: Path, lines: list[Any]) -> Path:
    """Lines of JSON; texts are written as they are."""
    text = [line if isinstance(line, str) else json.dumps(line, ensure_ascii=False) for line in lines]
    path.write_text("".join(f"{line}\n" for line in text), encoding="utf-8")
    return path


def read(out: Path) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """The report and the translations of an --out folder."""
    lines = (out / "translations.jsonl").read_text(encoding="utf-8").splitlines()
    return json.loads((out / "evaluation.json").read_text()), [json.loads(line) for line in lines]


def paid_calls(out: Path) -> int:
    calls: int = json.loads((out / "manifest.json").read_text())["totals"]["calls"]
    return calls


def one_line(said: str) -> str:
    assert said.startswith("error: ") and said.count("\n") == 1, said
    return said


def test_the_table_and_the_files(run: Run, model: str, tmp_path: Path) -> None:
    out = tmp_path / "out"
    code, printed, _ = run("--model", model, "--judge", model, "--out", out, "--shuffle", "--seed", 3)
    assert code == 0
    header, table = printed.split("\n", 1)
    for part in (
        "model scripted",
        "pairs.jsonl",
        "n=3 of 3",
        "seed 3",
        "English to Chinese",
        "temperature 0.1",
        "tok:zh",
    ):
        assert part in header
    rows = {cells[1]: cells for line in table.splitlines() if len(cells := [c.strip() for c in line.split("│")]) > 3}
    assert rows["GRF"][2:5] == ["80.00", "80.00 to 80.00", "3"]
    assert rows["GRB"][2] == "70.00" and rows["GEA"][2] == "60.00"
    assert rows["COMET"][2:4] == ["absent", "no --comet-python"]

    report, translations = read(out)
    expected = bleu([REPLY] * 3, [pair["zh"] for pair in PAIRS], language="Chinese")
    assert report["metrics"]["BLEU"]["value"] == pytest.approx(expected) and 0 < expected < 100
    assert rows["BLEU"][2] == f"{expected:.2f}"
    assert report["metrics"]["BLEU"]["low"] <= expected <= report["metrics"]["BLEU"]["high"]
    assert report["metrics"]["GRB"] == {"value": 70, "low": 70, "high": 70, "n": 3}
    assert report["settings"]["seed"] == 3 and len(report["settings"]["pairs_sha256"]) == 64
    assert report["fingerprint"]["roles"]["gea"]["schema"] and report["run"] and not report["missing"]
    assert sorted(line["id"] for line in translations) == ["bee", "cat", "rain"]
    cat = next(line for line in translations if line["id"] == "cat")
    assert cat == {
        "id": "cat", "source": PAIRS[0]["en"], "reference": PAIRS[0]["zh"], "translation": REPLY,
        "GRF": 80, "GRB": 70, "GEA": 60,
    }  # fmt: skip


def test_a_second_run_asks_nothing(run: Run, model: str, tmp_path: Path) -> None:
    first, second = tmp_path / "first", tmp_path / "second"
    run("--model", model, "--judge", model, "--out", first, "--limit", 2)
    assert paid_calls(first) == 8
    report, lines = read(first)
    assert [line["id"] for line in lines] == ["cat", "bee"] and report["pairs"] == 2
    run("--model", model, "--judge", model, "--out", first)
    assert paid_calls(first) == 12, "only the third pair is new"
    whole = read(first)
    assert run("--model", model, "--judge", model, "--out", first)[0] == 0
    assert paid_calls(first) == 12 and read(first) == whole
    run("--model", model, "--judge", model, "--out", second)
    assert paid_calls(second) == 0, "another folder is served from the request cache"
    run("--model", model, "--judge", model, "--out", first, "--limit", 2)
    assert read(first)[1] == lines, "a smaller sample is scored alone"


def test_a_folder_of_other_settings_is_refused(run: Run, model: str, pairs: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    run("--model", model, "--out", out)
    code, _, said = run("--model", model, "--judge", model, "--out", out)
    assert code == 2 and "judge: False -> True" in one_line(said)
    write(pairs, [{**pair, "en": "Other words."} for pair in PAIRS])
    code, _, said = run("--model", model, "--out", out)
    assert code == 2 and "pairs.jsonl@" in one_line(said)


def test_translations_from_text_lines(run: Run, tmp_path: Path) -> None:
    lines = write(tmp_path / "mine.txt", [pair["zh"] for pair in PAIRS])
    code, printed, _ = run("--translations", lines, "--out", tmp_path / "out")
    report, _ = read(tmp_path / "out")
    assert code == 0 and "file " in printed and not list((tmp_path / "out").glob("traces*"))
    assert report["metrics"]["BLEU"]["value"] == pytest.approx(100) and report["metrics"]["chrF"]["n"] == 3
    assert report["absent"] == {"COMET": "no --comet-python"} | dict.fromkeys(("GRF", "GRB", "GEA"), "no --judge")


@pytest.mark.parametrize("with_ids", [True, False])
def test_translations_from_records(run: Run, tmp_path: Path, with_ids: bool) -> None:
    lines = [{"id": pair["id"], "translation": pair["zh"]} for pair in PAIRS]
    given = lines[::-1] if with_ids else [{"translation": line["translation"]} for line in lines]
    assert run("--translations", write(tmp_path / "mine.jsonl", given), "--out", tmp_path / "out")[0] == 0
    assert read(tmp_path / "out")[0]["metrics"]["BLEU"]["value"] == pytest.approx(100)


def test_translations_are_judged(run: Run, model: str, tmp_path: Path) -> None:
    lines = write(tmp_path / "mine.txt", [pair["zh"] for pair in PAIRS])
    assert run("--translations", lines, "--judge", model, "--out", tmp_path / "out")[0] == 0
    report, translations = read(tmp_path / "out")
    assert report["metrics"]["GRF"]["n"] == 3 and translations[0]["translation"] == PAIRS[0]["zh"]
    assert paid_calls(tmp_path / "out") == 9, "three judgements a pair, no translation"


def test_its_own_translations_can_be_scored_again(run: Run, model: str, tmp_path: Path) -> None:
    run("--model", model, "--out", tmp_path / "out")
    before = read(tmp_path / "out")[0]["metrics"]
    run("--translations", tmp_path / "out" / "translations.jsonl", "--out", tmp_path / "again")
    assert read(tmp_path / "again")[0]["metrics"] == before


def test_an_empty_line_is_a_missing_translation(run: Run, tmp_path: Path) -> None:
    lines = write(tmp_path / "mine.txt", [PAIRS[0]["zh"], "", PAIRS[2]["zh"]])
    code, printed, _ = run("--translations", lines, "--out", tmp_path / "out")
    report, translations = read(tmp_path / "out")
    assert code == 3 and "n=2 of 3" in printed and "1 x missing: no translation in" in printed
    assert report["metrics"]["BLEU"]["value"] == pytest.approx(100), "it does not count as an empty text"
    assert translations[1]["translation"] is None and report["missing"][0]["id"] == "bee"


def test_pairs_of_the_same_words_are_all_scored(run: Run, model: str, pairs: Path, tmp_path: Path) -> None:
    write(pairs, [{"en": "Yes.", "zh": "是。"}] * 3)
    assert run("--model", model, "--out", tmp_path / "out")[0] == 0
    report, translations = read(tmp_path / "out")
    assert report["translated"] == 3 and len({line["id"] for line in translations}) == 3


def test_a_bad_pair_costs_itself(run: Run, model: str, pairs: Path, tmp_path: Path) -> None:
    write(pairs, [*PAIRS, "{broken", {"en": "No reference."}, PAIRS[0]])
    code, _, _ = run("--model", model, "--out", tmp_path / "out")
    report, _ = read(tmp_path / "out")
    assert code == 3 and report["translated"] == 3 and report["pairs"] == 6
    reasons = [(entry["source"].rpartition(":")[2], entry["reason"]) for entry in report["missing"]]
    assert [line for line, _ in reasons] == ["4", "5", "6"]
    assert "--reference-field COLUMN" in reasons[1][1] and "duplicate" in reasons[2][1]


def test_a_judge_that_fails_costs_its_score_alone(run: Run, tmp_path: Path) -> None:
    rules = [*RULES[:2], {"role": "grb", "replies": ["seventy"]}, RULES[3]]
    spec = f"scripted:{write(tmp_path / 'bad.jsonl', rules)}"
    code, printed, _ = run("--model", spec, "--judge", spec, "--out", tmp_path / "out")
    report, _ = read(tmp_path / "out")
    assert code == 3 and report["metrics"]["GRF"]["n"] == 3 and "GRB" not in report["metrics"]
    assert report["absent"]["GRB"] == "no usable reply" and "3 x no GRB: " in printed


THOUGHT = "<thought>\nHmm.\n</thought>\n<output>\n猫坐在垫子上。\n</output>"


def test_thoughts_are_cut_off_before_scoring(run: Run, tmp_path: Path) -> None:
    spec = f"scripted:{write(tmp_path / 'student.jsonl', [{'role': 'student', 'replies': [THOUGHT]}])}"
    code, printed, _ = run("--model", spec, "--style", "thought", "--out", tmp_path / "out")
    report, translations = read(tmp_path / "out")
    assert code == 0 and report["well_formed"] == 3 and "3 of 3 replies have the form" in printed
    assert {line["translation"] for line in translations} == {"猫坐在垫子上。"}


def test_replies_without_tags_and_thoughts_without_end(run: Run, tmp_path: Path) -> None:
    spec = f"scripted:{write(tmp_path / 'bare.jsonl', [{'role': 'student', 'replies': ['猫。']}])}"
    assert run("--model", spec, "--style", "thought", "--out", tmp_path / "bare")[0] == 0
    report, translations = read(tmp_path / "bare")
    assert report["well_formed"] == 0 and translations[0]["translation"] == "猫。"

    spec = f"scripted:{write(tmp_path / 'endless.jsonl', [{'role': 'student', 'replies': ['<thought> Hmm, 猫']}])}"
    code, printed, _ = run("--model", spec, "--style", "thought", "--out", tmp_path / "endless")
    report, _ = read(tmp_path / "endless")
    assert code == 3 and report["translated"] == 0 and report["metrics"] == {}
    assert "3 x missing: NoTranslation: no translation in the reply of 3 tokens" in printed


@pytest.mark.parametrize(
    ("reply", "expected"),
    [
        (THOUGHT, ("猫坐在垫子上。", True)),
        ("<thought>x</thought><output>猫", ("猫", False)),
        ("<thought>x</thought>\n猫", ("猫", False)),
        ("x</thought><output>猫</output>", ("猫", False)),
        ("<thought>I will write <output>狗</output>.</thought><output>猫</output>", ("猫", True)),
        ("<thought>x <output>猫</output>", ("猫", False)),
        ("猫</output>", ("猫", False)),
        ("猫", ("猫", False)),
        ("<thought>猫", ("", False)),
        ("<thought>x</thought><output></output>", ("", True)),
    ],
)
def test_parse_thought(reply: str, expected: tuple[str, bool]) -> None:
    assert parse_thought(reply) == expected


def test_comet_in_an_environment_of_its_own(run: Run, model: str, comet: Path, tmp_path: Path) -> None:
    code, _, _ = run("--model", model, "--comet-python", sys.executable, "--out", tmp_path / "out")
    report, translations = read(tmp_path / "out")
    assert code == 0 and report["metrics"]["COMET"]["value"] == pytest.approx((25 + 75 + 75) / 3)
    assert [line["COMET"] for line in translations] == [25, 75, 75]


def test_comet_that_cannot_be_imported_stops_before_the_first_call(
    run: Run, model: str, comet: Path, tmp_path: Path
) -> None:
    comet.write_text("raise ImportError('no comet here')")
    code, printed, said = run("--model", model, "--comet-python", sys.executable, "--out", tmp_path / "out")
    assert code == 2 and not printed and not (tmp_path / "out").exists()
    assert "unbabel-comet cannot be imported: ImportError: no comet here" in one_line(said)
    code, _, said = run("--model", model, "--comet-python", tmp_path / "nobody")
    assert code == 2 and "--comet-python" in one_line(said)


def test_comet_that_fails_costs_its_score_alone(run: Run, model: str, comet: Path) -> None:
    code, printed, _ = run("--model", model, "--comet-python", sys.executable, "--comet-model", "gone")
    assert code == 1 and "no such model: gone" in printed and "chrF" in printed


BAD_OPTIONS: list[tuple[list[str], str]] = [
    (["--model", "x:y"], "is no model spec"),
    (["--model", "scripted:nobody.jsonl"], "scripted:nobody.jsonl"),
    (["--model", "MODEL", "--judge", "x:y"], "is no model spec"),
    (["--model", "MODEL", "--translations", "a.txt"], "give one of the two"),
    (["--translations", "nobody.txt"], "nobody.txt"),
    (["--translations", "nobody.jsonl"], "nobody.jsonl: no such file"),
    (["--translations", "TWO"], "2 translations for 3 pairs"),
    (["--translations", "IDS"], "no translation of any pair"),
    (["--translations", "TWICE"], "an id is missing or there twice"),
    (["--translations", "TWO", "--style", "thought"], "--style thought"),
    (["--model", "MODEL", "--source-field", "english"], "--source-field COLUMN"),
    (["--model", "MODEL", "--style", "verse"], "--style"),
    (["--model", "MODEL", "--limit", "0"], "--limit"),
    (["--model", "MODEL", "--in-flight", "many"], "--in-flight"),
    (["--model", "MODEL", "--out", "PAIRS"], "a file is there"),
    (["--modle", "MODEL"], "--modle"),
]


@pytest.mark.parametrize(("options", "said"), BAD_OPTIONS, ids=lambda value: "-".join(value).strip("-")[:40])
def test_bad_options_get_one_line(
    run: Run, model: str, pairs: Path, tmp_path: Path, options: list[str], said: str
) -> None:
    names = {
        "MODEL": model,
        "PAIRS": pairs,
        "TWO": write(tmp_path / "two.txt", ["一", "二"]),
        "IDS": write(tmp_path / "ids.jsonl", [{"id": "nobody", "translation": "一"}]),
        "TWICE": write(tmp_path / "twice.jsonl", [{"id": "cat", "translation": "一"}] * 2),
    }
    out = [] if "--out" in options else ["--out", tmp_path / "out"]
    code, printed, line = run(*[names.get(option, option) for option in options], *out)
    assert code == 2 and not printed and said in one_line(line)
    assert not (tmp_path / "out").exists(), "nothing is written"


def test_missing_pairs_and_a_pairs_file_that_is_not_there(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([]) == 2
    assert "--pairs" in one_line(capsys.readouterr().err)
    assert main(["--pairs", "nobody.jsonl"]) == 2
    assert "nobody.jsonl: no such file" in one_line(capsys.readouterr().err)


@pytest.mark.parametrize(
    ("error", "code", "words"),
    [
        (EndpointDown("no server answers at http://nobody"), 1, "http://nobody"),
        (CacheError("request cache x: disk full"), 2, "disk full"),
        (KeyboardInterrupt(), 130, "the same command goes on"),
    ],
)
def test_what_ends_a_run_is_one_line(
    run: Run, model: str, monkeypatch: pytest.MonkeyPatch, error: BaseException, code: int, words: str
) -> None:
    def collect(*_: Any, **__: Any) -> None:
        raise error

    monkeypatch.setattr("agentsys.evaluation.sample.collect", collect)
    found, printed, said = run("--model", model)
    assert found == code and not printed and words in one_line(said)


def test_it_runs_as_a_script(model: str, pairs: Path) -> None:
    script = ROOT / "graphs" / "drt_evaluate.py"
    command: list[str | Path] = [
        sys.executable,
        script,
        "--pairs",
        pairs,
        "--source-field",
        "en",
        "--reference-field",
        "zh",
    ]
    done = subprocess.run([*command, "--model", model], capture_output=True, text=True, check=False)
    assert done.returncode == 0 and "BLEU" in done.stdout and not done.stderr
    shown = subprocess.run([*command, "--help"], capture_output=True, text=True, check=False)
    assert shown.returncode == 0 and "--comet-python" in shown.stdout
