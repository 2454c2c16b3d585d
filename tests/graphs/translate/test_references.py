"""Pairs without a reference, and what is left out where an optional package is missing."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from agentsys.graphs.translate.measures import find_limits
from agentsys.graphs.translate.rows import Pair
from agentsys.metrics.corpus import score_corpus
from agentsys.metrics.terms import KnownTerm, normalize_text, term_accuracy
from tests.support.evaluations import Run, read_lines, read_report
from tests.support.paths import ROOT
from tests.support.toys import one_error, write_lines
from tests.support.translations import CALLS, FLU, MODEL, PAIRS, TRANSLATIONS

WITHOUT = [{name: value for name, value in pair.items() if name not in ("trans", "mentions")} for pair in PAIRS]


def test_pairs_without_references_have_what_needs_none(run: Run, tmp_path: Path) -> None:
    pairs = write_lines(tmp_path / "bare.jsonl", WITHOUT)
    code, output, error = run("--pairs", pairs, "--systems", "plain,crat", "--judge", MODEL, "--out", tmp_path / "out")
    report = read_report(tmp_path / "out")
    assert code == 0 and [*report["systems"]["plain"]["metrics"]] == ["GRF", "GEA", "terms", "consistency"]
    line = "4 of 4 pairs have no field 'trans' (the reference) and are evaluated without one"
    assert line in error.splitlines()[0] and line in output, "before the calls and at the end"
    assert report["absent"]["BLEU"] == report["absent"]["GRB"] == "the pairs have no reference"
    assert report["signature"] == "" and report["signatures"].keys() == {"GRF", "GEA", "terms", "consistency"}
    assert not report["systems"]["plain"]["unscored"], "GRB is not asked"
    assert not report["scripts_differ"]


def test_metrics_with_references_are_over_the_pairs_that_have_one(run: Run, tmp_path: Path) -> None:
    pairs = write_lines(tmp_path / "some.jsonl", [WITHOUT[0], *PAIRS[1:3], {**PAIRS[3], "trans": None}])
    code, output, _ = run("--pairs", pairs, "--systems", "plain", "--judge", MODEL, "--out", tmp_path / "out")
    metrics = read_report(tmp_path / "out")["systems"]["plain"]["metrics"]
    golds = [pair["trans"] for pair in PAIRS[1:3]]
    hypotheses = [TRANSLATIONS["plain"][pair["id"]] for pair in PAIRS[1:3]]
    assert code == 0 and metrics["BLEU"]["value"] == score_corpus(hypotheses, golds, language="zh")["BLEU"].value
    assert (metrics["BLEU"]["n"], metrics["GRB"]["n"], metrics["GRF"]["n"]) == (2, 2, 4)
    assert "2 of 4 pairs have no field 'trans'" in output and "nrefs:1" in output


def test_ragtrans_without_references(run: Run, tmp_path: Path) -> None:
    pairs = write_lines(tmp_path / "bare.jsonl", WITHOUT)
    assert run("--pairs", pairs, "--systems", "ragtrans-none", "--out", tmp_path / "out")[0] == 0
    lines = read_lines(tmp_path / "out" / "translations.jsonl")
    assert all(line["systems"]["ragtrans-none"]["translation"] and line["references"] == [] for line in lines)


HIDDEN = (
    "bm25s", "chromadb", "matplotlib", "networkx", "opencc", "openpyxl", "ahocorasick", "sklearn", "scipy",
    "sentencepiece",
)  # fmt: skip
"""The modules of the extra `knowledge` (lxml comes with sacrebleu), and others that the project does not require."""


def run_without_extras(*options: object) -> subprocess.CompletedProcess[str]:
    """The command in a process that cannot import the modules above."""
    hide = f"import sys; sys.modules.update(dict.fromkeys({HIDDEN!r})); sys.argv[0] = 'evaluate'; "
    code = hide + "from agentsys.graphs.translate_evaluate import app; from agentsys.commands import run_app; "
    command = [sys.executable, "-c", code + "sys.exit(run_app(app))", *map(str, options)]
    return subprocess.run(command, capture_output=True, text=True, check=False, cwd=ROOT, timeout=300)


def test_without_the_extra_all_but_the_chinese_terms_is_measured(isolated_cache: Path, tmp_path: Path) -> None:
    rules = write_lines(tmp_path / "rules.jsonl", [{"role": "translator", "replies": ["流感在传播。"]}])
    pairs = write_lines(tmp_path / "pairs.jsonl", PAIRS)
    options = ["--pairs", pairs, "--systems", "plain", "--model", f"scripted:{rules}", "--out", tmp_path / "out"]
    done = run_without_extras(*options)
    assert done.returncode == 0, done.stderr
    line = "no terms, m-ETA, consistency: Chinese terms are compared in one script by OpenCC: pip install "
    assert done.stderr.startswith(line) and "[knowledge]" in done.stderr.splitlines()[0], "before the first call"
    report = read_report(tmp_path / "out")
    assert report["systems"]["plain"]["metrics"].keys() == {"BLEU", "chrF", "chrF++"}
    assert report["absent"]["terms"].startswith("Chinese terms") and not report["scripts_differ"]


def test_terms_of_other_scripts_need_no_opencc(monkeypatch: pytest.MonkeyPatch) -> None:
    """A Chinese word in the translation is no error either."""
    monkeypatch.setattr("agentsys.metrics.terms.can_simplify", lambda: False)
    monkeypatch.setattr("agentsys.metrics.terms.to_simplified", None)
    normalize_text.cache_clear()
    terms = [KnownTerm("Grippe", ("flu",)), KnownTerm("Maske", ("mask",))]
    assert term_accuracy("The flu 口罩", terms) == (1, 2)
    normalize_text.cache_clear()


@pytest.mark.parametrize(
    ("options", "module", "words"),
    [
        (["--systems", "plain", "--one-script"], "opencc", "--one-script needs OpenCC: pip install"),
        (["--systems", "crat"], "networkx", "pip install"),
        (["--systems", "plain", "--terms", "TERMS"], "ahocorasick", "pip install"),
    ],
)
def test_what_needs_the_extra_is_refused_before_any_call(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, options: list[str], module: str, words: str
) -> None:
    monkeypatch.setitem(sys.modules, module, None)
    monkeypatch.setattr("agentsys.graphs.translate.options.can_simplify", lambda: module != "opencc")
    (tmp_path / "terms.csv").write_text("source,target\nflu,流感\n", encoding="utf-8")
    options = [str(tmp_path / "terms.csv") if option == "TERMS" else option for option in options]
    code, _, error = run(*options, "--out", tmp_path / "out")
    assert code == 2 and words in one_error(error) and not CALLS and not (tmp_path / "out").exists()


def pair(**fields: Any) -> Pair:
    return Pair("1", "", 1, "The flu.", ("流感。",), **fields)


def test_limits_name_their_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("agentsys.graphs.translate.measures.missing_pieces", lambda: "")
    chinese = pair(terms=(KnownTerm("flu", tuple(FLU["targets"])),))
    assert find_limits([chinese]) == {}
    monkeypatch.setattr("agentsys.graphs.translate.measures.can_simplify", lambda: False)
    assert find_limits([chinese]).keys() == {"terms", "m-ETA", "consistency"}
    assert find_limits([pair(terms=(KnownTerm("flu", ("Grippe",)),))]) == {}
    assert find_limits([pair(mentions=(("黃豆芽",),))]).keys() == {"terms", "m-ETA", "consistency"}
    assert json.dumps(find_limits([pair()])) == "{}"
