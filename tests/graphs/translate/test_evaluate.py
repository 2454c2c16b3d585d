"""graphs/translate_evaluate.py: systems side by side with scripted models, numbers by hand, and what it refuses."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from agentsys.commands import command, run_app
from agentsys.graphs.translate_evaluate import main
from agentsys.knowledge import IndexSettings as Index
from agentsys.knowledge import build_index
from agentsys.metrics.corpus import score_corpus
from tests.support.evaluations import COLLECT, ENDINGS, Run, breaking, read_lines, read_report
from tests.support.shards import shard_lines
from tests.support.toys import one_error, write_lines
from tests.support.translations import CALLS, FAILING, FLU, MODEL, PAIRS, REPLIES, TRANSLATIONS, TRUNCATED


def metric_values(report: dict[str, Any], metric: str) -> dict[str, float]:
    return {name: result["metrics"][metric]["value"] for name, result in report["systems"].items()}


def test_two_systems_by_hand(run: Run, tmp_path: Path) -> None:
    out = tmp_path / "out"
    code, output, error = run("--systems", "plain,thought", "--judge", MODEL, "--out", out)
    assert code == 0 and [line for line in error.splitlines() if " kept: " not in line] == [
        "plain (1 of 2)",
        "thought (2 of 2)",
        "judging plain",
        "judging thought",
    ]
    report = read_report(out)
    golds = [pair["trans"] for pair in PAIRS]
    for name, role in (("plain", "plain"), ("thought", "student")):
        metrics = report["systems"][name]["metrics"]
        expected = score_corpus([*TRANSLATIONS[role].values()], golds, language="Chinese")
        assert metrics["BLEU"]["value"] == expected["BLEU"].value and metrics["chrF"]["value"] == expected["chrF"].value
        assert metrics["BLEU"]["low"] <= metrics["BLEU"]["value"] <= metrics["BLEU"]["high"]
    # Of the three sentences with flu plain has it in two, in two ways; thought has it in all, in one way.
    assert metric_values(report, "terms") == pytest.approx({"plain": 200 / 3, "thought": 100})
    assert metric_values(report, "consistency") == {"plain": 0, "thought": 100}
    assert metric_values(report, "m-ETA") == {"plain": 100, "thought": 0}, "another script is no other name"
    assert metric_values(report, "GRF") == {"plain": 80, "thought": 80} and metric_values(report, "GEA")["plain"] == 60
    metrics = report["systems"]["thought"]["metrics"]
    assert {name: (m["n"], m["counted"]) for name, m in metrics.items()} == {
        "BLEU": (4, None), "chrF": (4, None), "chrF++": (4, None), "GRF": (4, None), "GRB": (4, None), "GEA": (4, None),
        "terms": (3, 3), "m-ETA": (1, 1), "consistency": (1, 1),
    }  # fmt: skip
    assert metrics["m-ETA"]["difference"] == {"value": -100, "low": -100, "high": -100, "p": 1}
    assert metrics["terms"]["difference"]["value"] == pytest.approx(100 / 3)
    assert metrics["GRF"]["difference"] == {"value": 0, "low": 0, "high": 0, "p": 1}
    assert all(m["difference"] is None for m in report["systems"]["plain"]["metrics"].values())
    assert report["baseline"] == "plain" and report["absent"].keys() == {"COMET", "spBLEU"}
    assert report["absent"]["COMET"] == "no --comet-python"
    assert "nrefs:var" in report["signature"] and report["signature"] in output
    assert "consistency: 1 terms in 1 documents" in output and "no COMET: no --comet-python" in output
    assert "baseline plain" in output


def test_comet_scores_every_system(run: Run, comet: Path, tmp_path: Path) -> None:
    """With a stand-in for the model: 25 where a translation is its first reference, else 75."""
    code, output, _ = run("--systems", "plain,thought", "--comet-python", sys.executable, "--out", tmp_path / "out")
    assert code == 0, output
    assert metric_values(read_report(tmp_path / "out"), "wmt22-comet-da") == {"plain": 62.5, "thought": 50}
    lines = read_lines(tmp_path / "out" / "translations.jsonl")
    scores = [[line["systems"][name]["scores"]["wmt22-comet-da"] for line in lines] for name in ("plain", "thought")]
    assert scores == [[25, 75, 75, 75], [75, 25, 75, 25]]


def test_the_files(run: Run, tmp_path: Path) -> None:
    run("--systems", "plain,thought", "--judge", MODEL, "--out", tmp_path / "out")
    lines = read_lines(tmp_path / "out" / "translations.jsonl")
    assert [line["id"] for line in lines] == ["a1", "a2", "b1", "b2"]
    assert lines[0] == {
        "id": "a1", "document": "a", "source": "The flu spreads.", "references": PAIRS[0]["trans"],
        "terms": [FLU], "mentions": [],
        "systems": {
            name: {"translation": TRANSLATIONS[role]["a1"], "reason": None, "scores": {"GRF": 80, "GRB": 70, "GEA": 60}}
            for name, role in (("plain", "plain"), ("thought", "student"))
        },
    }  # fmt: skip
    cost = read_report(tmp_path / "out")["systems"]["plain"]["cost"]
    assert (cost["sentences"], cost["calls"], cost["completion_tokens"]) == (4, 4, 4), "judges are not the system's"
    assert cost["per_sentence"]["calls"] == 1 and cost["per_sentence"]["prompt_tokens"] == cost["prompt_tokens"] / 4


def test_truncated_replies_are_reported(run: Run, tmp_path: Path) -> None:
    """An endless translation is scored as it is, and the report says so beside its BLEU."""
    TRUNCATED.add("student")
    code, output, _ = run("--systems", "plain,thought", "--out", tmp_path / "out")
    report = read_report(tmp_path / "out")["systems"]
    assert code == 0 and [report[name]["cost"]["truncated"] for name in ("plain", "thought")] == [0, 1]
    assert "thought: 1 of 4 replies truncated at a token limit" in output and output.count("replies truncated") == 1


def test_crat_and_its_ablations(run: Run, tmp_path: Path) -> None:
    """A document goes through CRAT at once, and each variant is a run with other knobs."""
    names = "plain,rag,crat,crat-judge,crat-graph"
    code, _, _ = run("--systems", names, "--baseline", "crat", "--out", tmp_path / "out")
    report = read_report(tmp_path / "out")
    assert code == 0 and list(report["systems"]) == names.split(",")
    assert all(report["systems"][name]["translated"] == 4 for name in names.split(","))
    assert metric_values(report, "consistency") == {"plain": 0} | dict.fromkeys(names.split(",")[1:], 100)
    assert report["systems"]["plain"]["metrics"]["terms"]["difference"]["value"] < 0
    calls = {name: report["systems"][name]["cost"]["per_sentence"]["calls"] for name in names.split(",")}
    assert (
        calls["plain"] == 1 < calls["rag"] < calls["crat-judge"] < calls["crat"] and calls["rag"] < calls["crat-graph"]
    )
    knobs = {
        name: json.loads((tmp_path / "out" / name / "manifest.json").read_text())["fingerprint"]["knobs"]
        for name in names.split(",")[1:]
    }
    assert {name: (k["judge"], k["graph"]) for name, k in knobs.items()} == {
        "rag": (False, False), "crat": (True, True), "crat-judge": (False, True), "crat-graph": (True, False),
    }  # fmt: skip


DOCUMENTED = [
    {
        "id": pair["id"], "src": pair["text"], "tgt": pair["trans"],
        "en_doc": f"About {pair['id']}.", "noisy_en_doc": "Nothing of it.",
    }
    for pair in PAIRS
]  # fmt: skip


def test_ragtrans_in_its_four_settings(run: Run, tmp_path: Path) -> None:
    build_index(
        [{"id": "p1", "title": "Flu", "text": "The flu is a disease.", "lang": "en"}], tmp_path / "index", Index()
    )
    pairs = write_lines(tmp_path / "test.jsonl", DOCUMENTED)
    names = [f"ragtrans-{setting}" for setting in ("none", "golden", "noisy", "retrieved")]
    options = ["--pairs", pairs, "--source-field", "src", "--reference-field", "tgt", "--out", tmp_path / "out"]
    retrieval = ["--systems", ",".join(names), "--index", tmp_path / "index", "--document-language", "en"]
    code, _, error = run(*options, *retrieval)
    assert code == 0, error
    report = read_report(tmp_path / "out")
    assert [result["translated"] for result in report["systems"].values()] == [4] * 4
    used = {}
    for name in names:
        traces = [json.loads(line) for line in shard_lines(tmp_path / "out" / name)]
        used[name] = next(trace["result"]["used"] for trace in traces if trace["id"] == "a1")
    assert [used[name] for name in names] == ["", "About a1.", "Nothing of it.", "【Flu】The flu is a disease."]
    tokens = {name: report["systems"][name]["cost"]["per_sentence"]["prompt_tokens"] for name in names}
    assert tokens[names[0]] < tokens[names[1]] and report["baseline"] == names[0]


def test_what_is_retrieved_gives_no_reference_away(run: Run, tmp_path: Path) -> None:
    passage = {"id": "p1", "title": "", "text": "The flu spreads.  流感正在蔓延，大家都要小心。", "lang": "en"}
    build_index([passage], tmp_path / "index", Index())
    pair = {
        "id": "a1",
        "text": "The flu spreads.",
        "trans": ["流感在传播，请大家当心。", "流感正在蔓延，大家都要小心。"],
    }
    options = ["--pairs", write_lines(tmp_path / "test.jsonl", [pair]), "--index", tmp_path / "index"]
    assert run(*options, "--systems", "ragtrans-retrieved", "--out", tmp_path / "out")[0] == 0
    [trace] = map(json.loads, shard_lines(tmp_path / "out" / "ragtrans-retrieved"))
    assert (trace["result"]["used"], trace["result"]["leaks"]) == ("The flu spreads.", 1)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (
            ["--systems", "ragtrans-golden"],
            "no column 'doc' for ragtrans-golden; document columns: en_doc, noisy_en_doc",
        ),
        (["--systems", "ragtrans-noisy", "--document-language", "zh"], "no column 'noisy_zh_doc'"),
        (["--systems", "ragtrans-retrieved"], "--index: name the folder of an index"),
        (["--systems", "ragtrans-retrieved", "--index", "nobody"], "nobody"),
        (["--systems", "crat", "--sources", "terms:nobody.csv"], "nobody.csv"),
        (["--systems", "crat", "--sources", "magic:x"], "'magic:x' is not a term source"),
    ],
)
def test_a_missing_option_is_an_error_before_any_call(run: Run, tmp_path: Path, options: list[str], words: str) -> None:
    pairs = write_lines(tmp_path / "test.jsonl", DOCUMENTED)
    fields = ["--pairs", pairs, "--source-field", "src", "--reference-field", "tgt"]
    code, _, error = run(*fields, *options, "--out", tmp_path / "out")
    assert code == 2 and words in one_error(error) and not CALLS and not (tmp_path / "out").exists()


def test_a_term_list(run: Run, tmp_path: Path) -> None:
    """Terms count where a reference has one of the list's translations."""
    rows = "source,target\nflu,流感\nsoybean sprouts,大豆芽\nagain,又\n"
    (tmp_path / "terms.csv").write_text(rows, encoding="utf-8")
    pairs = [{name: value for name, value in pair.items() if name != "terms"} for pair in PAIRS]
    file = write_lines(tmp_path / "bare.jsonl", pairs)
    options = ["--pairs", file, "--terms", tmp_path / "terms.csv", "--out", tmp_path / "out"]
    assert run("--systems", "plain", *options)[0] == 0
    lines = read_lines(tmp_path / "out" / "translations.jsonl")
    assert [[term["source"] for term in line["terms"]] for line in lines] == [["flu"], ["flu"], [], ["flu", "again"]]
    terms = read_report(tmp_path / "out")["systems"]["plain"]["metrics"]["terms"]
    assert (terms["n"], terms["counted"]) == (3, 4) and terms["value"] == 50, "流行性感冒 is not in this list"


def test_each_list_is_described_once(run: Run, tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text("source,target\nflu,流感\nflu,流行性感冒\nflu,流感\n,口罩\n", encoding="utf-8")
    options = ["--terms", tmp_path / "t.csv", "--sources", f"terms:{tmp_path / 't.csv'}", "--out", tmp_path / "out"]
    code, output, _ = run("--systems", "rag,crat", *options)
    line = "terms:t.csv: 2 entries, 1 repeated, 1 terms with rival translations, 1 not used (blank, broken or in other"
    assert code == 0 and output.count(line) == 1, output


def test_a_tag_of_the_other_setting_is_missing_and_says_why(run: Run, tmp_path: Path) -> None:
    tags = {"a1": "clean_en", "a2": "noisy_en"}
    rows = [{**pair, "doc": "About it.", "tag": tags[pair["id"]]} for pair in PAIRS[:2]]
    options = ["--pairs", write_lines(tmp_path / "val.jsonl", rows), "--out", tmp_path / "out"]
    code, output, _ = run(*options, "--systems", "ragtrans-golden,ragtrans-noisy")
    systems = read_report(tmp_path / "out")["systems"]
    assert code == 3 and "its document is noisy, which is not setting golden" in output
    missing = [[entry["id"] for entry in result["missing"]] for result in systems.values()]
    assert missing == [["a2"], ["a1"]]


def test_a_memory_that_leaks_translations_is_reported(run: Run, tmp_path: Path) -> None:
    unit = '<tu><tuv xml:lang="en"><seg>{}</seg></tuv><tuv xml:lang="zh"><seg>流感</seg></tuv></tu>'
    memory = tmp_path / "memory.tmx"
    body = "".join(map(unit.format, ("Stop the  flu.", "Flu.", "Another sentence.")))
    memory.write_text(f'<tmx version="1.4"><header/><body>{body}</body></tmx>', encoding="utf-8")
    options = ["--sources", f"tmx:{memory}", "--out", tmp_path / "out"]
    _, error, _ = run("--systems", "crat", *options)
    assert "tmx:memory.tmx has 1 of the sentences and leaks" in error
    assert run("--systems", "plain", *options)[0] == 0 and read_report(tmp_path / "out")["leaks"] == []


def test_a_missing_translation_leaves_the_sentence_out_for_all(run: Run, tmp_path: Path) -> None:
    FAILING.add("student")
    code, output, _ = run("--systems", "plain,thought", "--out", tmp_path / "out")
    report = read_report(tmp_path / "out")
    assert code == 3 and "thought: 1 x missing: ModelError: the model fell over" in output
    assert [entry["id"] for entry in report["systems"]["thought"]["missing"]] == ["a2"]
    assert report["systems"]["plain"]["translated"] == 4 and not report["systems"]["plain"]["missing"]
    for name, role in (("plain", "plain"), ("thought", "student")):
        metrics = report["systems"][name]["metrics"]
        kept = [i for i, pair in enumerate(PAIRS) if pair["id"] != "a2"]
        hypotheses = [[*TRANSLATIONS[role].values()][i] for i in kept]
        scores = score_corpus(hypotheses, [PAIRS[i]["trans"] for i in kept], language="zh")
        assert metrics["BLEU"]["value"] == scores["BLEU"].value
        assert metrics["terms"]["n"] == 2 and "consistency" not in metrics, "no document has two sentences with flu"
    FAILING.clear()
    calls = len(CALLS)
    assert run("--systems", "plain,thought", "--out", tmp_path / "out")[0] == 0
    assert CALLS[calls:] == ["a2 student translate"], "only what failed is retried"


def test_a_system_without_a_translation_does_not_hold_up_the_others(run: Run, tmp_path: Path) -> None:
    none = write_lines(tmp_path / "none.jsonl", [{"id": "a1", "translation": "流感"}])
    code, _, _ = run("--systems", "plain", "--translations", f"mine={none}", "--out", tmp_path / "out", "--limit", 1)
    assert code == 0
    write_lines(none, [{"id": "b2", "translation": "流感"}])
    code, output, _ = run(
        "--systems", "plain", "--translations", f"mine={none}", "--out", tmp_path / "out", "--limit", 2
    )
    report = read_report(tmp_path / "out")
    assert code == 3 and "mine: 2 x missing: no translation in" in output
    assert report["systems"]["mine"]["metrics"] == {} and report["systems"]["plain"]["metrics"]["BLEU"]["n"] == 2


def test_files_of_translations_beside_systems(run: Run, tmp_path: Path) -> None:
    lines = [{"id": pair["id"], "translation": TRANSLATIONS["student"][pair["id"]]} for pair in PAIRS]
    mine = write_lines(tmp_path / "mine.jsonl", lines[::-1])
    options = ["--translations", f"mine={mine}", "--judge", MODEL, "--out", tmp_path / "out"]
    code, _, _ = run("--systems", "plain,thought", *options)
    report = read_report(tmp_path / "out")
    assert code == 0 and list(report["systems"]) == ["plain", "thought", "mine"]
    assert report["systems"]["mine"]["metrics"] == report["systems"]["thought"]["metrics"]
    assert report["systems"]["mine"]["cost"] is None and report["systems"]["mine"]["models"] == []
    write_lines(mine, [{**line, "translation": "别的"} for line in lines])
    code, _, error = run("--systems", "plain,thought", *options)
    assert code == 2 and "knobs.data" in error.splitlines()[-1], "judgements of other translations do not mix"
    shutil.rmtree(tmp_path / "out" / "mine")
    assert run("--systems", "plain,thought", *options)[0] == 0


def test_the_same_command_resumes(run: Run, tmp_path: Path) -> None:
    options = ["--systems", "plain,crat", "--judge", MODEL, "--out", tmp_path / "out"]
    run(*options, "--limit", 1)
    small = read_report(tmp_path / "out")
    assert run(*options)[0] == 0
    calls, whole = len(CALLS), read_report(tmp_path / "out")
    assert run(*options)[0] == 0 and len(CALLS) == calls and read_report(tmp_path / "out") == whole
    run(*options, "--limit", 1)
    assert len(CALLS) == calls and read_report(tmp_path / "out") == small, "a smaller sample is measured alone"


def test_a_document_that_grows_is_judged_anew(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    options = ["--systems", "crat", "--judge", MODEL, "--out", tmp_path / "out"]
    run(*options, "--limit", 1)
    monkeypatch.setitem(TRANSLATIONS["crat"], "a1", "流感在传播中。")
    monkeypatch.setitem(REPLIES, "grf", '{"score": 10}')
    run(*options, "--limit", 2)
    lines = read_lines(tmp_path / "out" / "translations.jsonl")
    result = lines[0]["systems"]["crat"]
    assert (result["translation"], result["scores"]["GRF"]) == ("流感在传播中。", 10.0)


def test_other_sentences_do_not_mix(run: Run, tmp_path: Path) -> None:
    options = ["--systems", "plain", "--out", tmp_path / "out"]
    run(*options)
    other = write_lines(tmp_path / "other.jsonl", [{**PAIRS[0], "text": "Another flu."}])
    code, _, error = run(*options, "--pairs", other)
    assert code == 2 and "sentence a1 differs" in one_error(error)


def test_differing_scripts_are_reported(run: Run, tmp_path: Path) -> None:
    pairs = write_lines(tmp_path / "zh_TW.jsonl", [{**PAIRS[2], "document": ""}])
    options = ["--pairs", pairs, "--systems", "plain", "--out", tmp_path / "out"]
    assert "--one-script converts both" in run(*options)[1]
    code, output, _ = run(*options, "--one-script")
    assert code == 0 and "another Chinese script" not in output and "one script" in output


def test_an_unusable_pair_is_reported(run: Run, tmp_path: Path) -> None:
    pairs = write_lines(tmp_path / "some.jsonl", [PAIRS[0], {"text": "No text in it.", "trans": ""}])
    code, output, _ = run("--pairs", pairs, "--systems", "plain", "--out", tmp_path / "out")
    assert code == 3 and "not translated:" in output and "field 'trans' holds no text" in output
    assert len(read_report(tmp_path / "out")["unusable"]) == 1 and read_report(tmp_path / "out")["sentences"] == 1


BAD_OPTIONS: list[tuple[list[str], str]] = [
    ([], "--systems: name some of plain"),
    (["--systems", "plain,magic"], "there is no 'magic'"),
    (["--systems", "plain", "--baseline", "crat"], "--baseline crat"),
    (["--systems", "plain", "--model", "x:y"], "is not a model spec"),
    (["--systems", "plain", "--judge", "x:y"], "is not a model spec"),
    (["--systems", "plain", "--translations", "mine.jsonl"], "give a name and a file"),
    (["--systems", "plain", "--translations", "plain=mine.jsonl"], "there is a system 'plain' already"),
    (["--systems", "plain", "--translations", "mine=nobody.jsonl"], "nobody.jsonl: no such file"),
    (["--systems", "plain", "--translations", "mine=TWO"], "2 translations for 4 pairs"),
    (["--systems", "plain", "--pairs", "nobody.jsonl"], "nobody.jsonl: no such file"),
    (["--systems", "plain", "--pairs", "EMPTY"], "no pair to use: empty file"),
    (["--systems", "plain", "--terms", "nobody.csv"], "nobody.csv"),
    (["--systems", "plain", "--comet-python", "nobody"], "--comet-python nobody"),
    (["--systems", "plain", "--limit", "0"], "--limit"),
    (["--systems", "plain", "--in-flight", "0"], "--in-flight"),
]


@pytest.mark.parametrize(("options", "words"), BAD_OPTIONS, ids=lambda value: "-".join(value).strip("-")[:40])
def test_bad_options_get_one_line(run: Run, tmp_path: Path, options: list[str], words: str) -> None:
    (tmp_path / "two.txt").write_text("一\n二\n", encoding="utf-8")
    names = {"EMPTY": str(write_lines(tmp_path / "empty.jsonl", [])), "mine=TWO": f"mine={tmp_path / 'two.txt'}"}
    code, output, line = run(*[names.get(option, option) for option in options], "--out", tmp_path / "out")
    assert code == 2 and not output and words in one_error(line)
    assert not (tmp_path / "out").exists() and not CALLS, "no call was made"


def test_no_pairs(capsys: pytest.CaptureFixture[str]) -> None:
    assert run_app(command(main), ["--systems", "plain"]) == 2
    assert "--pairs: name a file" in one_error(capsys.readouterr().err)


def test_a_graph_that_cannot_be_imported_is_one_line(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "agentsys.graphs.crat.system", None)
    code, _, error = run("--systems", "plain,crat")
    assert code == 2 and "'crat' needs agentsys.graphs.crat.system, which cannot be imported" in one_error(error)
    assert not CALLS


@ENDINGS
def test_what_ends_a_run_is_one_line(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: BaseException, code: int, words: str
) -> None:
    monkeypatch.setattr(COLLECT, breaking(error))
    exit_code, output, stderr = run("--systems", "plain", "--out", tmp_path / "out")
    progress, line = stderr.split("\n", 1)
    assert exit_code == code and not output and progress == "plain (1 of 1)" and words in one_error(line)


def test_imports_are_light() -> None:
    heavy = {"sacrebleu", "scipy", "opencc", "networkx", "matplotlib", "lxml", "torch", "transformers", "chromadb"}
    code = "import sys, agentsys.graphs.translate_evaluate; "
    code += "print(*{n.split('.')[0] for n in sys.modules})"
    process = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert not heavy & set(process.stdout.split())


def test_help_is_grouped(run: Run) -> None:
    code, output, _ = run("--help")
    assert code == 0 and all(f"─ {group} " in output for group in ("Data", "Systems", "Scores", "Run"))
