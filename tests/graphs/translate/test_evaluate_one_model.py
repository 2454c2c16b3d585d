"""graphs/translate_evaluate.py for one model or one file of translations, with a scripted model."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from agentsys.graphs.translate.system import parse_thought
from agentsys.graphs.translate_evaluate import main
from agentsys.metrics.corpus import score_corpus
from agentsys.models import EndpointDown
from agentsys.models.cache import CacheError
from tests.support.evaluations import COLLECT, Run, breaking, read_lines, read_report, run_command
from tests.support.paths import ROOT
from tests.support.toys import one_error

pytestmark = pytest.mark.usefixtures("isolated_cache")

PAIRS = [
    {"id": "cat", "en": "The cat sat on the mat.", "zh": "猫坐在垫子上，狗在一旁看着。"},
    {"id": "bee", "en": "He was as busy as a bee.", "zh": "他忙得像一只蜜蜂，从早到晚。"},
    {"id": "rain", "en": "It rained all night.", "zh": "整夜都在下雨，河水漫过了堤岸。"},
]
REPLY = "猫坐在垫子上，狗在一旁看着。"
PLAIN = ["--systems", "plain"]
RULES = [
    {"role": "translator", "replies": [REPLY]},
    {"role": "grf", "replies": ['{"score": 80}']},
    {"role": "grb", "replies": ['{"score": 70}']},
    {"role": "gea", "replies": ['{"reason": "stiff", "score": 60}']},
]


@pytest.fixture
def pairs(tmp_path: Path) -> Path:
    return write(tmp_path / "pairs.jsonl", PAIRS)


@pytest.fixture
def model(tmp_path: Path) -> str:
    return f"scripted:{write(tmp_path / 'rules.jsonl', RULES)}"


@pytest.fixture
def run(pairs: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Run:
    """The command on the pairs."""
    monkeypatch.setenv("COLUMNS", "200")

    def call(*options: object) -> tuple[int, str, str]:
        return run_command(main, capsys, "--pairs", pairs, "--source-field", "en", "--reference-field", "zh", *options)

    return call


def write(path: Path, lines: list[Any]) -> Path:
    """Lines of JSON; texts are written as they are."""
    text = [line if isinstance(line, str) else json.dumps(line, ensure_ascii=False) for line in lines]
    path.write_text("".join(f"{line}\n" for line in text), encoding="utf-8")
    return path


def read(out: Path) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """The results of the only system of an --out folder, and its lines in translations.jsonl."""
    [(name, result)] = read_report(out)["systems"].items()
    lines = read_lines(out / "translations.jsonl")
    return result, [{**line, **line["systems"][name]} for line in lines]


def paid_calls(out: Path) -> int:
    """Calls of all runs under a folder that did not come from the request cache."""
    return sum(json.loads(path.read_text())["totals"]["calls"] for path in out.rglob("manifest.json"))


def test_the_table_and_the_files(run: Run, model: str, tmp_path: Path) -> None:
    out = tmp_path / "out"
    code, output, _ = run(*PLAIN, "--model", model, "--judge", model, "--out", out, "--shuffle", "--seed", 3)
    assert b'"has_scores":true' in (out / "view.html").read_bytes()
    assert code == 0
    header, table = output.split("\n", 2)[:2], output.split("\n", 2)[2]
    for part in (
        "model scripted",
        "pairs.jsonl",
        "n=3 of 3",
        "seed 3",
        "English to Chinese",
        "temperature 0.1",
        "tok:zh",
    ):
        assert part in "\n".join(header)
    rows = {cells[1]: cells for line in table.splitlines() if len(cells := [c.strip() for c in line.split("│")]) > 3}
    assert rows["GRF"][2:5] == ["80.00", "80.00 to 80.00", "3"]
    assert rows["GRB"][2] == "70.00" and rows["GEA"][2] == "60.00"
    assert rows["COMET"][2:4] == ["absent", "no --comet-python"]

    result, translations = read(out)
    report = read_report(out)
    expected = score_corpus([REPLY] * 3, [pair["zh"] for pair in PAIRS], language="Chinese")["BLEU"].value
    assert result["metrics"]["BLEU"]["value"] == pytest.approx(expected) and 0 < expected < 100
    assert rows["BLEU"][2] == f"{expected:.2f}"
    assert result["metrics"]["BLEU"]["low"] <= expected <= result["metrics"]["BLEU"]["high"]
    score = {"value": 70, "low": 70, "high": 70, "n": 3, "counted": None, "difference": None}
    assert result["metrics"]["GRB"] == score
    assert report["settings"]["seed"] == 3 and len(report["pairs_sha256"]) == 64 and report["version"] == 2
    judging = json.loads((out / "plain" / "judged" / "manifest.json").read_text())
    assert judging["fingerprint"]["roles"]["gea"]["schema"] and result["run"] and not result["missing"]
    assert sorted(line["id"] for line in translations) == ["bee", "cat", "rain"]
    cat = next(line for line in translations if line["id"] == "cat")
    assert (cat["source"], cat["references"], cat["translation"]) == (PAIRS[0]["en"], [PAIRS[0]["zh"]], REPLY)
    assert cat["scores"] == {"GRF": 80, "GRB": 70, "GEA": 60}


def test_a_second_run_makes_no_call(run: Run, model: str, tmp_path: Path) -> None:
    first, second = tmp_path / "first", tmp_path / "second"
    run(*PLAIN, "--model", model, "--judge", model, "--out", first, "--limit", 2)
    assert paid_calls(first) == 8
    _, lines = read(first)
    assert [line["id"] for line in lines] == ["cat", "bee"] and read_report(first)["sentences"] == 2
    run(*PLAIN, "--model", model, "--judge", model, "--out", first)
    assert paid_calls(first) == 12, "only the third pair is new"
    whole = read_report(first), read(first)
    assert run(*PLAIN, "--model", model, "--judge", model, "--out", first)[0] == 0
    assert paid_calls(first) == 12 and (read_report(first), read(first)) == whole
    run(*PLAIN, "--model", model, "--judge", model, "--out", second)
    assert paid_calls(second) == 0, "another folder is served from the request cache"
    run(*PLAIN, "--model", model, "--judge", model, "--out", first, "--limit", 2)
    assert read(first)[1] == lines, "a smaller sample is scored alone"


def test_a_folder_of_other_settings_is_refused(run: Run, model: str, pairs: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    run(*PLAIN, "--model", model, "--out", out)
    code, _, error = run(*PLAIN, "--model", model, "--out", out, "--target-language", "German")
    assert code == 2 and "target_language: Chinese -> German" in one_error(error.partition("\n")[2])
    write(pairs, [{**pair, "en": "Other words."} for pair in PAIRS])
    code, _, error = run(*PLAIN, "--model", model, "--out", out)
    assert code == 2 and "sentence cat differs" in one_error(error)


def test_a_judge_can_be_added_later(run: Run, model: str, tmp_path: Path) -> None:
    run(*PLAIN, "--model", model, "--out", tmp_path / "out")
    assert run(*PLAIN, "--model", model, "--judge", model, "--out", tmp_path / "out")[0] == 0
    assert paid_calls(tmp_path / "out") == 12 and read(tmp_path / "out")[0]["metrics"]["GRF"]["n"] == 3


def test_only_the_table(run: Run, model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is left behind, neither in the current folder nor among the temporary files."""
    for folder in ("here", "temporary"):
        (tmp_path / folder).mkdir()
    monkeypatch.chdir(tmp_path / "here")
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "temporary"))
    code, output, _ = run(*PLAIN, "--model", model, "--judge", model, "--table-only")
    assert code == 0 and "80.00 to 80.00" in output and "numbers, translations and runs" not in output
    assert not [*(tmp_path / "here").iterdir(), *(tmp_path / "temporary").iterdir()]
    code, _, error = run(*PLAIN, "--model", model, "--table-only", "--out", tmp_path / "out")
    assert code == 2 and "--table-only" in one_error(error)
    assert run(*PLAIN, "--model", model)[0] == 0 and (tmp_path / "here/runs/translate-eval-pairs").is_dir()


def test_translations_from_text_lines(run: Run, tmp_path: Path) -> None:
    lines = write(tmp_path / "mine.txt", [pair["zh"] for pair in PAIRS])
    code, output, _ = run("--translations", f"mine={lines}", "--out", tmp_path / "out")
    report, _ = read(tmp_path / "out")
    assert code == 0 and "file " in output and not list((tmp_path / "out").rglob("traces*"))
    assert report["metrics"]["BLEU"]["value"] == pytest.approx(100) and report["metrics"]["chrF"]["n"] == 3
    absent = read_report(tmp_path / "out")["absent"]
    assert absent.pop("spBLEU").startswith("its tokenizer is not here: ")
    assert absent == {"COMET": "no --comet-python"} | dict.fromkeys(("GRF", "GRB", "GEA"), "no --judge") | {
        "terms": "the pairs have no terms",
        "m-ETA": "the pairs have no mentions",
        "consistency": "no document has a term in two sentences",
    }


@pytest.mark.parametrize("with_ids", [True, False])
def test_translations_from_records(run: Run, tmp_path: Path, with_ids: bool) -> None:
    lines = [{"id": pair["id"], "translation": pair["zh"]} for pair in PAIRS]
    records = lines[::-1] if with_ids else [{"translation": line["translation"]} for line in lines]
    file = write(tmp_path / "mine.jsonl", records)
    assert run("--translations", f"mine={file}", "--out", tmp_path / "out")[0] == 0
    assert read(tmp_path / "out")[0]["metrics"]["BLEU"]["value"] == pytest.approx(100)


def test_translations_are_judged(run: Run, model: str, tmp_path: Path) -> None:
    lines = write(tmp_path / "mine.txt", [pair["zh"] for pair in PAIRS])
    assert run("--translations", f"mine={lines}", "--judge", model, "--out", tmp_path / "out")[0] == 0
    report, translations = read(tmp_path / "out")
    assert report["metrics"]["GRF"]["n"] == 3 and translations[0]["translation"] == PAIRS[0]["zh"]
    assert paid_calls(tmp_path / "out") == 9, "three judgements per pair, no translation"


def test_its_own_translations_can_be_scored_again(run: Run, model: str, tmp_path: Path) -> None:
    run(*PLAIN, "--model", model, "--out", tmp_path / "out")
    before = read(tmp_path / "out")[0]["metrics"]
    run("--translations", f"again={tmp_path / 'out' / 'translations.jsonl'}", "--out", tmp_path / "again")
    assert read(tmp_path / "again")[0]["metrics"] == before
    other = write(tmp_path / "other.txt", ["一", "二", "三"])
    run(*PLAIN, "--model", model, "--translations", f"other={other}", "--out", tmp_path / "two")
    code, _, error = run("--translations", f"again={tmp_path / 'two' / 'translations.jsonl'}")
    assert code == 2 and "translations of several systems (plain, other)" in one_error(error)


def test_an_empty_line_is_a_missing_translation(run: Run, tmp_path: Path) -> None:
    lines = write(tmp_path / "mine.txt", [PAIRS[0]["zh"], "", PAIRS[2]["zh"]])
    code, output, _ = run("--translations", f"mine={lines}", "--out", tmp_path / "out")
    report, translations = read(tmp_path / "out")
    assert code == 3 and "n=2 of 3" in output and "1 x missing: no translation in" in output
    assert report["metrics"]["BLEU"]["value"] == pytest.approx(100), "it does not count as an empty text"
    assert translations[1]["translation"] is None and report["missing"][0]["id"] == "bee"


def test_pairs_of_the_same_words_are_all_scored(run: Run, model: str, pairs: Path, tmp_path: Path) -> None:
    write(pairs, [{"en": "Yes.", "zh": "是。"}] * 3)
    assert run(*PLAIN, "--model", model, "--out", tmp_path / "out")[0] == 0
    report, translations = read(tmp_path / "out")
    assert report["translated"] == 3 and len({line["id"] for line in translations}) == 3


def test_a_bad_pair_costs_itself(run: Run, model: str, pairs: Path, tmp_path: Path) -> None:
    write(pairs, [*PAIRS, "{broken", {"en": "No text in it.", "zh": " "}, PAIRS[0]])
    code, output, _ = run(*PLAIN, "--model", model, "--out", tmp_path / "out")
    report, _ = read(tmp_path / "out")
    assert code == 3 and report["translated"] == 3 and "n=3 of 6" in output
    unusable = read_report(tmp_path / "out")["unusable"]
    reasons = [(entry["source"].rpartition(":")[2], entry["reason"]) for entry in unusable]
    assert [line for line, _ in reasons] == ["4", "5", "6"]
    assert "field 'zh' holds no text" in reasons[1][1] and "duplicate" in reasons[2][1]


def test_a_judge_that_fails_costs_its_score_alone(run: Run, tmp_path: Path) -> None:
    rules = [*RULES[:2], {"role": "grb", "replies": ["seventy"]}, RULES[3]]
    spec = f"scripted:{write(tmp_path / 'bad.jsonl', rules)}"
    code, output, _ = run(*PLAIN, "--model", spec, "--judge", spec, "--out", tmp_path / "out")
    report, _ = read(tmp_path / "out")
    assert code == 3 and report["metrics"]["GRF"]["n"] == 3 and "GRB" not in report["metrics"]
    assert read_report(tmp_path / "out")["absent"]["GRB"] == "no usable reply" and "3 x no GRB: " in output


THOUGHT = "<thought>\nHmm.\n</thought>\n<output>\n猫坐在垫子上。\n</output>"


def test_thoughts_are_removed_before_scoring(run: Run, tmp_path: Path) -> None:
    spec = f"scripted:{write(tmp_path / 'student.jsonl', [{'role': 'student', 'replies': [THOUGHT]}])}"
    code, output, _ = run("--model", spec, "--systems", "thought", "--out", tmp_path / "out")
    report, translations = read(tmp_path / "out")
    assert code == 0 and report["well_formed"] == 3 and "3 of 3 replies have the form" in output
    assert {line["translation"] for line in translations} == {"猫坐在垫子上。"}


def test_replies_without_tags_and_thoughts_without_end(run: Run, tmp_path: Path) -> None:
    spec = f"scripted:{write(tmp_path / 'bare.jsonl', [{'role': 'student', 'replies': ['猫。']}])}"
    assert run("--model", spec, "--systems", "thought", "--out", tmp_path / "bare")[0] == 0
    report, translations = read(tmp_path / "bare")
    assert report["well_formed"] == 0 and translations[0]["translation"] == "猫。"

    spec = f"scripted:{write(tmp_path / 'endless.jsonl', [{'role': 'student', 'replies': ['<thought> Hmm, 猫']}])}"
    code, output, _ = run("--model", spec, "--systems", "thought", "--out", tmp_path / "endless")
    report, _ = read(tmp_path / "endless")
    assert code == 3 and report["translated"] == 0 and report["metrics"] == {}
    assert "3 x missing: RoleError: student (translate): no usable reply" in output
    assert "it ended inside its thought" in output


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


def test_comet_in_a_separate_environment(run: Run, model: str, comet: Path, tmp_path: Path) -> None:
    code, _, _ = run(*PLAIN, "--model", model, "--comet-python", sys.executable, "--out", tmp_path / "out")
    report, translations = read(tmp_path / "out")
    assert code == 0 and report["metrics"]["wmt22-comet-da"]["value"] == pytest.approx((25 + 75 + 75) / 3)
    assert [line["scores"]["wmt22-comet-da"] for line in translations] == [25, 75, 75]


def test_comet_that_cannot_be_imported_stops_before_the_first_call(
    run: Run, model: str, comet: Path, tmp_path: Path
) -> None:
    comet.write_text("raise ImportError('no comet here')")
    code, output, error = run(*PLAIN, "--model", model, "--comet-python", sys.executable, "--out", tmp_path / "out")
    assert code == 2 and not output and not (tmp_path / "out").exists()
    assert "unbabel-comet cannot be imported: ImportError: no comet here" in one_error(error)
    code, _, error = run(*PLAIN, "--model", model, "--comet-python", tmp_path / "nobody")
    assert code == 2 and "--comet-python" in one_error(error)


def test_comet_that_fails_costs_its_score_alone(run: Run, model: str, comet: Path) -> None:
    options = ["--comet-python", sys.executable, "--comet-model", "gone", "--table-only"]
    code, output, _ = run(*PLAIN, "--model", model, *options)
    assert code == 1 and "no such model: gone" in output and "chrF" in output


BAD_OPTIONS: list[tuple[list[str], str]] = [
    ([*PLAIN, "--model", "x:y"], "is not a model spec"),
    ([*PLAIN, "--model", "scripted:nobody.jsonl"], "scripted:nobody.jsonl"),
    ([*PLAIN, "--model", "MODEL", "--judge", "x:y"], "is not a model spec"),
    (["--translations", "mine=nobody.txt"], "nobody.txt"),
    (["--translations", "mine=nobody.jsonl"], "nobody.jsonl: no such file"),
    (["--translations", "TWO"], "2 translations for 3 pairs"),
    (["--translations", "IDS"], "no translation of any pair"),
    (["--translations", "TWICE"], "an id is missing or occurs twice"),
    ([*PLAIN, "--model", "MODEL", "--source-field", "english"], "--source-field COLUMN"),
    (["--systems", "verse", "--model", "MODEL"], "--systems"),
    ([*PLAIN, "--model", "MODEL", "--limit", "0"], "--limit"),
    ([*PLAIN, "--model", "MODEL", "--in-flight", "many"], "--in-flight"),
    ([*PLAIN, "--model", "MODEL", "--out", "PAIRS"], "this is a file"),
    (["--modle", "MODEL"], "--modle"),
]


@pytest.mark.parametrize(("options", "words"), BAD_OPTIONS, ids=lambda value: "-".join(value).strip("-")[:40])
def test_bad_options_get_one_line(
    run: Run, model: str, pairs: Path, tmp_path: Path, options: list[str], words: str
) -> None:
    names = {
        "MODEL": model,
        "PAIRS": pairs,
        "TWO": f"mine={write(tmp_path / 'two.txt', ['一', '二'])}",
        "IDS": f"mine={write(tmp_path / 'ids.jsonl', [{'id': 'nobody', 'translation': '一'}])}",
        "TWICE": f"mine={write(tmp_path / 'twice.jsonl', [{'id': 'cat', 'translation': '一'}] * 2)}",
    }
    out = [] if "--out" in options else ["--out", tmp_path / "out"]
    code, output, error = run(*[names.get(option, option) for option in options], *out)
    assert code == 2 and not output and words in one_error(error)
    assert not (tmp_path / "out").exists(), "nothing is written"


def test_missing_pairs_and_a_pairs_file_that_is_not_there(capsys: pytest.CaptureFixture[str]) -> None:
    for options, words in ((PLAIN, "--pairs"), ([*PLAIN, "--pairs", "nobody.jsonl"], "nobody.jsonl: no such file")):
        code, _, error = run_command(main, capsys, *options)
        assert code == 2 and words in one_error(error)


@pytest.mark.parametrize(
    ("error", "code", "words"),
    [
        (EndpointDown("no server is reachable at http://nobody"), 1, "http://nobody"),
        (CacheError("request cache x: disk full"), 2, "disk full"),
        (KeyboardInterrupt(), 130, "the same command"),
    ],
)
def test_what_ends_a_run_is_one_line(
    run: Run, model: str, monkeypatch: pytest.MonkeyPatch, error: BaseException, code: int, words: str
) -> None:
    monkeypatch.setattr(COLLECT, breaking(error))
    exit_code, output, stderr = run(*PLAIN, "--model", model, "--table-only")
    assert exit_code == code and not output and words in one_error(stderr.partition("\n")[2])


def test_it_runs_as_a_script(model: str, pairs: Path) -> None:
    options = ["--pairs", pairs, "--source-field", "en", "--reference-field", "zh", *PLAIN, "--model", model]
    command = [sys.executable, ROOT / "graphs" / "translate_evaluate.py", *options]
    run = subprocess.run([*command, "--table-only"], capture_output=True, text=True, check=False)
    assert run.returncode == 0 and "BLEU" in run.stdout and run.stderr.startswith("plain (1 of 1)\n")
    run = subprocess.run([*command, "--help"], capture_output=True, text=True, check=False)
    assert run.returncode == 0 and "--comet-python" in run.stdout
