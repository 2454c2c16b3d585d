"""graphs/translate_evaluate.py: systems side by side with scripted models, numbers by hand, and what it refuses."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from agentsys.collect import RunOptions
from agentsys.commands import command, run_app
from agentsys.graphs.translate.measures import measure
from agentsys.graphs.translate.rows import Columns, Pair, Row, missing_of, read_pairs, with_terms
from agentsys.graphs.translate.system import Context as Translating
from agentsys.graphs.translate.systems import SYSTEMS, judged, units_of
from agentsys.graphs.translate_evaluate import main
from agentsys.knowledge import Settings as Index
from agentsys.knowledge import build_index
from agentsys.metrics.corpus import bleu, chrf
from agentsys.metrics.terms import KnownTerm
from agentsys.models.errors import ModelError
from agentsys.models.scripted import ScriptedChatModel
from agentsys.models.wire import Reply
from agentsys.records import BadRecord, InputError
from tests.support.evaluations import ENDINGS, breaking, read
from tests.support.toys import one_error, write_lines

pytestmark = pytest.mark.usefixtures("isolated_cache")

FLU = {"source": "flu", "targets": ["流感", "流行性感冒"]}
PAIRS: list[dict[str, Any]] = [
    {
        "id": "a1",
        "text": "The flu spreads.",
        "trans": ["流感在传播。", "流感正在蔓延。"],
        "document": "a",
        "terms": [FLU],
    },
    {"id": "a2", "text": "Stop the flu.", "trans": "阻止流感。", "document": "a", "terms": [FLU]},
    {"id": "b1", "text": "Soybean sprouts?", "trans": "黃豆芽？", "document": "b", "mentions": [["黃豆芽", "大豆芽"]]},
    {"id": "b2", "text": "The flu again.", "trans": "又是流感。", "document": "b", "terms": [FLU]},
]
SAYS = {
    "plain": {"a1": "流感在传播。", "a2": "阻止流行性感冒。", "b1": "黄豆芽？", "b2": "又是感冒。"},
    "student": {"a1": "流感正在蔓延。", "a2": "阻止流感。", "b1": "豆子？", "b2": "又是流感。"},
    "crat": {"a1": "这种流感在传播。", "a2": "停止流感。", "b1": "黄豆芽呢？", "b2": "流感又来了。"},
}
"""What each translator makes of a sentence."""
REPLIES = {
    "grf": '{"score": 80}',
    "grb": '{"score": 70}',
    "gea": '{"reason": "stiff", "score": 60}',
    "glosser": "flu = 流感",
    "grapher": '{"relations": []}',
    "informant": '{"senses": [{"meaning": "a disease", "translation": "流感"}]}',
    "relevance": '{"here": "a disease", "entry": "a disease", "relevant": true}',
    "substituter": "流感",
    "back": "flu",
    "invariance": '{"first": "a disease", "last": "a disease", "same": true}',
    "counterfactual": '{"reason": "none", "changes": false, "better": "entry"}',
}
CALLS: list[str] = []
"""A line for every call that was made."""
FAILING: set[str] = set()
"""Roles that fail at the sentence a2."""
CUT_OFF: set[str] = set()
"""Roles whose reply to b1 ends at the token limit."""


class Translator(ScriptedChatModel):
    """`langchain:test_translate_evaluate:Translator`: knows the sentences above."""

    def __init__(self, **settings: Any) -> None:
        super().__init__(respond=respond, revision="1", **settings)

    async def complete(self, messages: Sequence[Mapping[str, Any]], **kwargs: Any) -> Reply:
        reply = await super().complete(messages, **kwargs)
        cut = CALLS[-1].startswith("b1 ") and kwargs["role"] in CUT_OFF
        return replace(reply, finish="length") if cut else reply


def respond(messages: Sequence[Mapping[str, Any]], call: dict[str, Any]) -> str:
    """The role's reply to the last sentence in the messages."""
    text, role = "\n".join(str(message["content"]) for message in messages), call["role"]
    pair = max(PAIRS, key=lambda pair: text.rfind(pair["text"]))
    CALLS.append(f"{pair['id']} {role} {call['key']}")
    if role in FAILING and pair["id"] == "a2":
        raise ModelError("the model fell over")
    if role == "identifier":
        found = [{"term": "flu", "kind": "domain"}] if "flu" in pair["text"] else []
        return json.dumps({"terms": found})
    if role == "student":
        return f"<thought>Hmm.</thought><output>{SAYS['student'][pair['id']]}</output>"
    if role == "translator":
        return SAYS["crat" if "/" in call["key"] else "plain"][pair["id"]]
    return REPLIES[role]


MODEL = "langchain:test_translate_evaluate:Translator"
Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def run(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Run:
    """The command on the pairs: exit code, what it printed, and what it said on stderr."""
    monkeypatch.setenv("COLUMNS", "200")
    pairs = write_lines(tmp_path / "pairs.jsonl", PAIRS)
    CALLS.clear()
    FAILING.clear()
    CUT_OFF.clear()

    def call(*options: object) -> tuple[int, str, str]:
        given = ["--pairs", pairs, "--model", MODEL, *options]
        code = run_app(command(main), [str(option) for option in given])
        said = capsys.readouterr()
        return code, said.out, said.err

    return call


def values(report: dict[str, Any], metric: str) -> dict[str, float]:
    return {name: about["metrics"][metric]["value"] for name, about in report["systems"].items()}


def test_two_systems_by_hand(run: Run, tmp_path: Path) -> None:
    out = tmp_path / "out"
    code, printed, said = run("--systems", "plain,thought", "--judge", MODEL, "--out", out)
    assert code == 0 and said.splitlines() == ["plain (1 of 2)", "thought (2 of 2)", "judging plain", "judging thought"]
    report = read(out)
    golds = [pair["trans"] for pair in PAIRS]
    for name, role in (("plain", "plain"), ("thought", "student")):
        metrics = report["systems"][name]["metrics"]
        assert metrics["BLEU"]["value"] == bleu([*SAYS[role].values()], golds, language="Chinese")
        assert metrics["chrF"]["value"] == chrf([*SAYS[role].values()], golds, language="Chinese")
        assert metrics["BLEU"]["low"] <= metrics["BLEU"]["value"] <= metrics["BLEU"]["high"]
    # Of the three sentences with flu plain has it in two, in two ways; thought has it in all, in one way.
    assert values(report, "terms") == pytest.approx({"plain": 200 / 3, "thought": 100})
    assert values(report, "consistency") == {"plain": 0, "thought": 100}
    assert values(report, "m-ETA") == {"plain": 100, "thought": 0}, "another script is no other name"
    assert values(report, "GRF") == {"plain": 80, "thought": 80} and values(report, "GEA")["plain"] == 60
    metrics = report["systems"]["thought"]["metrics"]
    assert {name: (m["n"], m["counted"]) for name, m in metrics.items()} == {
        "BLEU": (4, None), "chrF": (4, None), "GRF": (4, None), "GRB": (4, None), "GEA": (4, None),
        "terms": (3, 3), "m-ETA": (1, 1), "consistency": (1, 1),
    }  # fmt: skip
    assert metrics["m-ETA"]["difference"] == {"value": -100, "low": -100, "high": -100, "p": 1}
    assert metrics["terms"]["difference"]["value"] == pytest.approx(100 / 3)
    assert metrics["GRF"]["difference"] == {"value": 0, "low": 0, "high": 0, "p": 1}
    assert all(m["difference"] is None for m in report["systems"]["plain"]["metrics"].values())
    assert report["baseline"] == "plain" and report["absent"] == {"COMET": "no --comet-python"}
    assert "nrefs:var" in report["signature"] and report["signature"] in printed
    assert "consistency: 1 terms in 1 documents" in printed and "no COMET: no --comet-python" in printed
    assert "baseline plain" in printed


def test_comet_scores_every_system(run: Run, comet: Path, tmp_path: Path) -> None:
    """With a stand-in for the model: 25 where a translation is its first reference, else 75."""
    code, printed, _ = run("--systems", "plain,thought", "--comet-python", sys.executable, "--out", tmp_path / "out")
    assert code == 0, printed
    assert values(read(tmp_path / "out"), "COMET") == {"plain": 62.5, "thought": 50}
    lines = [json.loads(line) for line in (tmp_path / "out" / "translations.jsonl").read_text().splitlines()]
    scores = [[line["systems"][name]["scores"]["COMET"] for line in lines] for name in ("plain", "thought")]
    assert scores == [[25, 75, 75, 75], [75, 25, 75, 25]]


def test_the_files(run: Run, tmp_path: Path) -> None:
    run("--systems", "plain,thought", "--judge", MODEL, "--out", tmp_path / "out")
    lines = [json.loads(line) for line in (tmp_path / "out" / "translations.jsonl").read_text().splitlines()]
    assert [line["id"] for line in lines] == ["a1", "a2", "b1", "b2"]
    assert lines[0] == {
        "id": "a1", "document": "a", "source": "The flu spreads.", "references": PAIRS[0]["trans"],
        "terms": [FLU], "mentions": [],
        "systems": {
            name: {"translation": SAYS[role]["a1"], "reason": None, "scores": {"GRF": 80, "GRB": 70, "GEA": 60}}
            for name, role in (("plain", "plain"), ("thought", "student"))
        },
    }  # fmt: skip
    cost = read(tmp_path / "out")["systems"]["plain"]["cost"]
    assert (cost["sentences"], cost["calls"], cost["completion_tokens"]) == (4, 4, 4), "judges are not the system's"
    assert cost["a_sentence"]["calls"] == 1 and cost["a_sentence"]["prompt_tokens"] == cost["prompt_tokens"] / 4


def test_replies_that_were_cut_off_are_told(run: Run, tmp_path: Path) -> None:
    """An endless translation counts as it is, and whoever reads its BLEU is told why."""
    CUT_OFF.add("student")
    code, printed, _ = run("--systems", "plain,thought", "--out", tmp_path / "out")
    report = read(tmp_path / "out")["systems"]
    assert code == 0 and [report[name]["cost"]["cut_off"] for name in ("plain", "thought")] == [0, 1]
    assert "thought: 1 of 4 replies were cut off by their token limit" in printed and "plain: " not in printed


def test_crat_and_its_ablations(run: Run, tmp_path: Path) -> None:
    """A document goes through CRAT at once, and each variant is a run with other knobs."""
    names = "plain,rag,crat,crat-judge,crat-graph"
    code, _, _ = run("--systems", names, "--baseline", "crat", "--out", tmp_path / "out")
    report = read(tmp_path / "out")
    assert code == 0 and list(report["systems"]) == names.split(",")
    assert all(report["systems"][name]["translated"] == 4 for name in names.split(","))
    assert values(report, "consistency") == {"plain": 0} | dict.fromkeys(names.split(",")[1:], 100)
    assert report["systems"]["plain"]["metrics"]["terms"]["difference"]["value"] < 0
    calls = {name: report["systems"][name]["cost"]["a_sentence"]["calls"] for name in names.split(",")}
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
    given = ["--systems", ",".join(names), "--index", tmp_path / "index", "--document-language", "en"]
    code, _, said = run(*options, *given)
    assert code == 0, said
    report = read(tmp_path / "out")
    assert [about["translated"] for about in report["systems"].values()] == [4] * 4
    used = {}
    for name in names:
        traces = [json.loads(line) for line in (tmp_path / "out" / name / "traces-00000.jsonl").open()]
        used[name] = next(trace["result"]["used"] for trace in traces if trace["id"] == "a1")
    assert [used[name] for name in names] == ["", "About a1.", "Nothing of it.", "【Flu】The flu is a disease."]
    tokens = {name: report["systems"][name]["cost"]["a_sentence"]["prompt_tokens"] for name in names}
    assert tokens[names[0]] < tokens[names[1]] and report["baseline"] == names[0]


def test_what_is_retrieved_gives_no_reference_away(run: Run, tmp_path: Path) -> None:
    passage = {"id": "p1", "title": "", "text": "The flu spreads.  流感正在蔓延，大家都要小心。", "lang": "en"}
    build_index([passage], tmp_path / "index", Index())
    pair = {
        "id": "a1",
        "text": "The flu spreads.",
        "trans": ["流感在传播，请大家当心。", "流感正在蔓延，大家都要小心。"],
    }
    given = ["--pairs", write_lines(tmp_path / "test.jsonl", [pair]), "--index", tmp_path / "index"]
    assert run(*given, "--systems", "ragtrans-retrieved", "--out", tmp_path / "out")[0] == 0
    [trace] = map(json.loads, (tmp_path / "out" / "ragtrans-retrieved" / "traces-00000.jsonl").open())
    assert (trace["result"]["used"], trace["result"]["leaks"]) == ("The flu spreads.", 1)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (
            ["--systems", "ragtrans-golden"],
            "no column 'doc' for ragtrans-golden; of documents it has en_doc, noisy_en_doc",
        ),
        (["--systems", "ragtrans-noisy", "--document-language", "zh"], "no column 'noisy_zh_doc'"),
        (["--systems", "ragtrans-retrieved"], "--index: name the folder of an index"),
        (["--systems", "ragtrans-retrieved", "--index", "nobody"], "nobody"),
        (["--systems", "crat", "--sources", "terms:nobody.csv"], "nobody.csv"),
        (["--systems", "crat", "--sources", "magic:x"], "'magic:x' is no term source"),
    ],
)
def test_what_a_system_lacks_is_said_before_anything_is_asked(
    run: Run, tmp_path: Path, options: list[str], words: str
) -> None:
    pairs = write_lines(tmp_path / "test.jsonl", DOCUMENTED)
    fields = ["--pairs", pairs, "--source-field", "src", "--reference-field", "tgt"]
    code, _, said = run(*fields, *options, "--out", tmp_path / "out")
    assert code == 2 and words in one_error(said) and not CALLS and not (tmp_path / "out").exists()


def test_a_term_list(run: Run, tmp_path: Path) -> None:
    """Terms count where a reference has one of the list's translations."""
    rows = "source,target\nflu,流感\nsoybean sprouts,大豆芽\nagain,又\n"
    (tmp_path / "terms.csv").write_text(rows, encoding="utf-8")
    pairs = [{name: value for name, value in pair.items() if name != "terms"} for pair in PAIRS]
    given = write_lines(tmp_path / "bare.jsonl", pairs)
    options = ["--pairs", given, "--terms", tmp_path / "terms.csv", "--out", tmp_path / "out"]
    assert run("--systems", "plain", *options)[0] == 0
    lines = [json.loads(line) for line in (tmp_path / "out" / "translations.jsonl").read_text().splitlines()]
    assert [[term["source"] for term in line["terms"]] for line in lines] == [["flu"], ["flu"], [], ["flu", "again"]]
    terms = read(tmp_path / "out")["systems"]["plain"]["metrics"]["terms"]
    assert (terms["n"], terms["counted"]) == (3, 4) and terms["value"] == 50, "流行性感冒 is not in this list"


def test_a_term_list_goes_beside_a_record_s_own_terms(tmp_path: Path) -> None:
    (tmp_path / "terms.csv").write_text("source,target\nFlu,流感\nstop,阻止\n", encoding="utf-8")
    pair = Pair("1", "", 0, "Stop the flu.", ("阻止流感。",), terms=(KnownTerm("flu", ("流行性感冒",)),))
    [found] = with_terms([pair], [str(tmp_path / "terms.csv")], ("English", "Chinese"))
    assert found.terms == (KnownTerm("flu", ("流行性感冒",)), KnownTerm("stop", ("阻止",)))


@pytest.mark.parametrize("names", [("one.csv", "two.csv"), ("two.csv", "one.csv")])
def test_the_translations_of_all_lists_count_in_any_order(tmp_path: Path, names: tuple[str, str]) -> None:
    (tmp_path / "one.csv").write_text("source,target\nflu,流感\ncafé,咖啡馆\n", encoding="utf-8")
    (tmp_path / "two.csv").write_text("source,target\nFlu,流行性感冒\n", encoding="utf-8")
    pair = Pair("1", "", 0, "The flu in the cafe\u0301.", ("咖啡馆里的流感。",))
    [found] = with_terms([pair], [str(tmp_path / name) for name in names], ("English", "Chinese"))
    terms = {term.source.casefold(): set(term.targets) for term in found.terms}
    assert terms == {"flu": {"流感", "流行性感冒"}, "café": {"咖啡馆"}}


def test_what_the_lists_hold_is_said_once(run: Run, tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text("source,target\nflu,流感\nflu,流行性感冒\nflu,流感\n,口罩\n", encoding="utf-8")
    given = ["--terms", tmp_path / "t.csv", "--sources", f"terms:{tmp_path / 't.csv'}", "--out", tmp_path / "out"]
    code, printed, _ = run("--systems", "rag,crat", *given)
    line = "terms:t.csv: 2 entries, 1 repeated, 1 terms with rival translations, 1 not used (blank, broken or in other"
    assert code == 0 and printed.count(line) == 1, printed


def test_a_tag_of_the_other_setting_is_missing_and_says_why(run: Run, tmp_path: Path) -> None:
    tags = {"a1": "clean_en", "a2": "noisy_en"}
    rows = [{**pair, "doc": "About it.", "tag": tags[pair["id"]]} for pair in PAIRS[:2]]
    given = ["--pairs", write_lines(tmp_path / "val.jsonl", rows), "--out", tmp_path / "out"]
    code, printed, _ = run(*given, "--systems", "ragtrans-golden,ragtrans-noisy")
    systems = read(tmp_path / "out")["systems"]
    assert code == 3 and "its document is noisy, which is not setting golden" in printed
    missing = [[entry["id"] for entry in about["missing"]] for about in systems.values()]
    assert missing == [["a2"], ["a1"]]


def test_a_memory_that_gives_translations_away_is_named(run: Run, tmp_path: Path) -> None:
    unit = '<tu><tuv xml:lang="en"><seg>{}</seg></tuv><tuv xml:lang="zh"><seg>流感</seg></tuv></tu>'
    memory = tmp_path / "memory.tmx"
    body = "".join(map(unit.format, ("Stop the  flu.", "Flu.", "Another sentence.")))
    memory.write_text(f'<tmx version="1.4"><header/><body>{body}</body></tmx>', encoding="utf-8")
    options = ["--sources", f"tmx:{memory}", "--out", tmp_path / "out"]
    _, said, _ = run("--systems", "crat", *options)
    assert "tmx:memory.tmx holds 1 of the sentences and gives" in said
    assert run("--systems", "plain", *options)[0] == 0 and read(tmp_path / "out")["given_away"] == []


def test_a_missing_translation_leaves_the_sentence_out_for_all(run: Run, tmp_path: Path) -> None:
    FAILING.add("student")
    code, printed, _ = run("--systems", "plain,thought", "--out", tmp_path / "out")
    report = read(tmp_path / "out")
    assert code == 3 and "thought: 1 x missing: ModelError: the model fell over" in printed
    assert [entry["id"] for entry in report["systems"]["thought"]["missing"]] == ["a2"]
    assert report["systems"]["plain"]["translated"] == 4 and not report["systems"]["plain"]["missing"]
    for name, role in (("plain", "plain"), ("thought", "student")):
        metrics = report["systems"][name]["metrics"]
        kept = [i for i, pair in enumerate(PAIRS) if pair["id"] != "a2"]
        hypotheses = [[*SAYS[role].values()][i] for i in kept]
        assert metrics["BLEU"]["value"] == bleu(hypotheses, [PAIRS[i]["trans"] for i in kept], language="zh")
        assert metrics["terms"]["n"] == 2 and "consistency" not in metrics, "no document has two sentences with flu"
    FAILING.clear()
    asked = len(CALLS)
    assert run("--systems", "plain,thought", "--out", tmp_path / "out")[0] == 0
    assert CALLS[asked:] == ["a2 student translate"], "what failed is tried again, and nothing else"


def test_a_system_without_a_translation_does_not_hold_up_the_others(run: Run, tmp_path: Path) -> None:
    none = write_lines(tmp_path / "none.jsonl", [{"id": "a1", "translation": "流感"}])
    code, _, _ = run("--systems", "plain", "--translations", f"mine={none}", "--out", tmp_path / "out", "--limit", 1)
    assert code == 0
    write_lines(none, [{"id": "b2", "translation": "流感"}])
    code, printed, _ = run(
        "--systems", "plain", "--translations", f"mine={none}", "--out", tmp_path / "out", "--limit", 2
    )
    report = read(tmp_path / "out")
    assert code == 3 and "mine: 2 x missing: no translation in" in printed
    assert report["systems"]["mine"]["metrics"] == {} and report["systems"]["plain"]["metrics"]["BLEU"]["n"] == 2


def test_files_of_translations_beside_systems(run: Run, tmp_path: Path) -> None:
    lines = [{"id": pair["id"], "translation": SAYS["student"][pair["id"]]} for pair in PAIRS]
    mine = write_lines(tmp_path / "mine.jsonl", lines[::-1])
    options = ["--translations", f"mine={mine}", "--judge", MODEL, "--out", tmp_path / "out"]
    code, _, _ = run("--systems", "plain,thought", *options)
    report = read(tmp_path / "out")
    assert code == 0 and list(report["systems"]) == ["plain", "thought", "mine"]
    assert report["systems"]["mine"]["metrics"] == report["systems"]["thought"]["metrics"]
    assert report["systems"]["mine"]["cost"] is None and report["systems"]["mine"]["models"] == []
    write_lines(mine, [{**line, "translation": "别的"} for line in lines])
    code, _, said = run("--systems", "plain,thought", *options)
    assert code == 2 and "knobs.data" in said.splitlines()[-1], "judgements of other translations do not mix"
    shutil.rmtree(tmp_path / "out" / "mine")
    assert run("--systems", "plain,thought", *options)[0] == 0


def test_the_same_command_goes_on(run: Run, tmp_path: Path) -> None:
    options = ["--systems", "plain,crat", "--judge", MODEL, "--out", tmp_path / "out"]
    run(*options, "--limit", 1)
    small = read(tmp_path / "out")
    assert run(*options)[0] == 0
    asked, whole = len(CALLS), read(tmp_path / "out")
    assert run(*options)[0] == 0 and len(CALLS) == asked and read(tmp_path / "out") == whole
    run(*options, "--limit", 1)
    assert len(CALLS) == asked and read(tmp_path / "out") == small, "a smaller sample is measured alone"


def test_a_translation_whose_judging_is_rejected_is_there_and_has_no_score(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def broken(*_: Any) -> None:
        raise ValueError("no judge for this")

    monkeypatch.setattr("agentsys.graphs.translate.system.Translate._score", broken)
    made = [Row(Pair("a1", "", 1, "The flu spreads.", ("流感在传播。",)), translation="流感。")]
    judged(made, tmp_path / "judged", Translating(model=MODEL), RunOptions(no_cache=True))
    assert made[0].translation == "流感。" and not made[0].scores
    found = missing_of(made)
    assert found["missing"] == [] and found["unscored"][0]["reasons"].keys() == {"GRF", "GRB", "GEA"}
    assert "no judge for this" in found["unscored"][0]["reasons"]["GEA"]


def test_a_document_that_grows_is_judged_anew(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    options = ["--systems", "crat", "--judge", MODEL, "--out", tmp_path / "out"]
    run(*options, "--limit", 1)
    monkeypatch.setitem(SAYS["crat"], "a1", "流感在传播中。")
    monkeypatch.setitem(REPLIES, "grf", '{"score": 10}')
    run(*options, "--limit", 2)
    lines = [json.loads(line) for line in (tmp_path / "out" / "translations.jsonl").read_text().splitlines()]
    found = lines[0]["systems"]["crat"]
    assert (found["translation"], found["scores"]["GRF"]) == ("流感在传播中。", 10.0)


def test_other_sentences_do_not_mix(run: Run, tmp_path: Path) -> None:
    options = ["--systems", "plain", "--out", tmp_path / "out"]
    run(*options)
    other = write_lines(tmp_path / "other.jsonl", [{**PAIRS[0], "text": "Another flu."}])
    code, _, said = run(*options, "--pairs", other)
    assert code == 2 and "a1 has other words there" in one_error(said.partition("\n")[2])


def test_documents_go_through_together() -> None:
    pairs = [
        Pair("3", "", 3, "c", ("x",), "d"),
        Pair("1", "", 1, "a", ("x",), "d"),
        Pair("2", "", 2, "b", ("x",)),
    ]
    [(_, (record, [one])), (key, (document, members))] = units_of(SYSTEMS["crat"], None, pairs)
    assert record == {"id": "2", "text": "b"} and one is pairs[2]
    assert document == {"id": key, "sentences": ["a", "c"]}, "in the order of the file"
    assert [pair.id for pair in members] == ["1", "3"] and key.startswith("d ")
    [_, (other, _)] = units_of(SYSTEMS["crat"], None, pairs[1:])
    assert other != key, "more of a document is another record"
    assert [record for _, (record, _) in units_of(SYSTEMS["plain"], None, pairs)] == [
        {"id": "3", "text": "c"}, {"id": "1", "text": "a"}, {"id": "2", "text": "b"},
    ]  # fmt: skip


def rows(texts: Sequence[str], *, document: str = "", **about: Any) -> list[Row]:
    return [
        Row(Pair(str(i), "", i, "x", ("黃豆芽是亞洲美食",), document, **about), translation=text)
        for i, text in enumerate(texts)
    ]


def test_one_script() -> None:
    systems = {"traditional": rows(["黃豆芽是亞洲美食"]), "simplified": rows(["黄豆芽是亚洲美食"])}
    apart = measure(systems, "Chinese", ["BLEU", "chrF"])
    assert apart["traditional"]["chrF"]["value"] == pytest.approx(100) and apart["simplified"]["chrF"]["value"] < 30
    same = measure(systems, "Chinese", ["BLEU", "chrF"], one_script=True)
    assert same["simplified"] == same["traditional"] and same["simplified"]["BLEU"]["value"] == pytest.approx(100)


def test_a_reader_is_told_that_scripts_differ(run: Run, tmp_path: Path) -> None:
    pairs = write_lines(tmp_path / "zh_TW.jsonl", [{**PAIRS[2], "document": ""}])
    options = ["--pairs", pairs, "--systems", "plain", "--out", tmp_path / "out"]
    assert "--one-script compares them in one" in run(*options)[1]
    code, printed, _ = run(*options, "--one-script")
    assert code == 0 and "another Chinese script" not in printed and "one script" in printed


def test_a_significant_difference() -> None:
    better = rows(["黃豆芽是亞洲美食"] * 12 + ["黃豆"] * 8)
    worse = rows(["黃豆芽是亞洲的"] * 20)
    found = measure({"base": worse, "better": better}, "Chinese", ["BLEU", "chrF"], baseline="base")
    difference = found["better"]["chrF"]["difference"]
    assert difference["value"] == pytest.approx(found["better"]["chrF"]["value"] - found["base"]["chrF"]["value"])
    reverse = measure({"base": worse, "better": better}, "Chinese", ["chrF"], baseline="better")
    assert reverse["base"]["chrF"]["difference"]["p"] == difference["p"]
    assert reverse["base"]["chrF"]["difference"]["value"] == -difference["value"]
    clear = measure({"base": worse, "better": rows(["黃豆芽是亞洲美食"] * 20)}, "Chinese", ["chrF"], baseline="base")
    assert clear["better"]["chrF"]["difference"]["p"] < 0.01


def test_judge_scores_are_compared_where_all_have_them() -> None:
    ours, theirs = rows(["一"] * 3), rows(["一"] * 3)
    for i, (one, other) in enumerate(zip(ours, theirs, strict=True)):
        one.scores["GRF"] = 10.0 * i
        if i:
            other.scores["GRF"] = 50.0
    found = measure({"ours": ours, "theirs": theirs}, "Chinese", ["GRF", "GRB"], baseline="theirs")
    assert found["ours"]["GRF"]["value"] == 15 and found["ours"]["GRF"]["n"] == 2, "the first has no rival"
    assert found["ours"]["GRF"]["difference"]["value"] == -35 and "GRB" not in found["ours"]


XC = {
    "id": "Q1_0",
    "source": "Are soybean sprouts common?",
    "targets": [
        {"translation": "黃豆芽常見嗎？", "mention": "黃豆芽"},
        {"translation": "黃豆芽常見嗎？", "mention": "大豆芽"},
    ],
}


def pairs_of(path: Path, columns: Columns | None = None) -> list[Pair | BadRecord]:
    return read_pairs(path, columns or Columns(), ("English", "Chinese"))


def test_the_references_column_may_be_called_text(tmp_path: Path) -> None:
    path = write_lines(tmp_path / "reversed.jsonl", [{"text": "The flu.", "trans": "流感。"}])
    [pair] = pairs_of(path, Columns("trans", "text"))
    assert isinstance(pair, Pair) and (pair.text, pair.references, dict(pair.data)) == ("流感。", ("The flu.",), {})
    [bad] = pairs_of(path, Columns("source", "text"))
    assert isinstance(bad, BadRecord) and "--source-field COLUMN" in bad.reason
    with pytest.raises(InputError, match="both name 'text'; name two columns"):
        pairs_of(path, Columns("text", "text"))


def test_xc_translate_s_records(tmp_path: Path) -> None:
    [pair] = pairs_of(write_lines(tmp_path / "xc.jsonl", [XC]), Columns("source", "targets"))
    assert isinstance(pair, Pair) and pair.id == "Q1_0" and pair.text == XC["source"]
    assert pair.references == ("黃豆芽常見嗎？",) and pair.mentions == (("黃豆芽", "大豆芽"),)


TMX = """<?xml version="1.0" encoding="UTF-8"?>
<tmx version="1.4"><header srclang="en" datatype="text"/><body>
<tu tuid="wiki_1:1"><tuv xml:lang="en"><seg>The flu.</seg></tuv><tuv xml:lang="zh-CN"><seg>流感。</seg></tuv></tu>
<tu tuid="wiki_1:2"><tuv xml:lang="en"><seg>Only here.</seg></tuv></tu>
<tu tuid="wiki_2:1"><tuv xml:lang="en"><seg>A mask.</seg></tuv><tuv xml:lang="zh-CN"><seg>口罩。</seg></tuv></tu>
</body></tmx>"""


def test_a_translation_memory(tmp_path: Path) -> None:
    path = tmp_path / "memory.tmx"
    path.write_text(TMX, encoding="utf-8")
    first, second, third = pairs_of(path)
    assert isinstance(first, Pair) and isinstance(third, Pair)
    assert (first.id, first.text, first.references, first.document) == ("wiki_1:1", "The flu.", ("流感。",), "wiki_1")
    assert third.document == "wiki_2" and isinstance(second, BadRecord) and "wiki_1:2 is not in" in second.reason
    with pytest.raises(InputError, match="no unit in English and German; it has en, zh-CN"):
        read_pairs(path, Columns(), ("English", "German"))


BAD_RECORDS: list[tuple[dict[str, Any], str]] = [
    ({"text": "a"}, "no field 'trans' (for the reference)"),
    ({"text": "a", "trans": ""}, "field 'trans' holds no text"),
    ({"text": "a", "trans": []}, "field 'trans' holds no text"),
    ({"text": "a", "trans": ["b", 3]}, "field 'trans' holds no text"),
    ({"text": "a", "trans": [{"text": "b"}]}, "field 'trans' holds no text"),
    ({"text": " ", "trans": "b"}, "field 'text' is empty"),
    ({"source": "a", "trans": "b"}, "--source-field COLUMN"),
    ({"text": "a", "trans": "b", "mentions": [["x"], "y"]}, "field 'mentions'"),
    ({"text": "a", "trans": "b", "mentions": "y"}, "field 'mentions'"),
    ({"text": "a", "trans": "b", "terms": [{"source": "x"}]}, "field 'terms'"),
    ({"text": "a", "trans": "b", "terms": "x"}, "field 'terms'"),
    ({"text": "a", "trans": "b", "terms": 5}, "field 'terms'"),
    ({"text": "a", "trans": "b", "terms": [{"source": "", "targets": ["y"]}]}, "field 'terms'"),
]


@pytest.mark.parametrize(("record", "said"), BAD_RECORDS, ids=lambda value: str(value)[:30])
def test_a_bad_record_is_one_line(tmp_path: Path, record: dict[str, Any], said: str) -> None:
    bad, good = pairs_of(write_lines(tmp_path / "pairs.jsonl", [record, {"text": "a", "trans": "b"}]))
    assert isinstance(bad, BadRecord) and said in bad.reason and "\n" not in bad.reason
    assert isinstance(good, Pair)


def test_an_unusable_pair_is_reported(run: Run, tmp_path: Path) -> None:
    pairs = write_lines(tmp_path / "some.jsonl", [PAIRS[0], {"text": "No reference."}])
    code, printed, _ = run("--pairs", pairs, "--systems", "plain", "--out", tmp_path / "out")
    assert code == 3 and "not translated:" in printed and "--reference-field COLUMN" in printed
    assert len(read(tmp_path / "out")["unusable"]) == 1 and read(tmp_path / "out")["sentences"] == 1


BAD_OPTIONS: list[tuple[list[str], str]] = [
    ([], "--systems: name some of plain"),
    (["--systems", "plain,magic"], "there is no 'magic'"),
    (["--systems", "plain", "--baseline", "crat"], "--baseline crat"),
    (["--systems", "plain", "--model", "x:y"], "is no model spec"),
    (["--systems", "plain", "--judge", "x:y"], "is no model spec"),
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


@pytest.mark.parametrize(("options", "said"), BAD_OPTIONS, ids=lambda value: "-".join(value).strip("-")[:40])
def test_bad_options_get_one_line(run: Run, tmp_path: Path, options: list[str], said: str) -> None:
    (tmp_path / "two.txt").write_text("一\n二\n", encoding="utf-8")
    names = {"EMPTY": str(write_lines(tmp_path / "empty.jsonl", [])), "mine=TWO": f"mine={tmp_path / 'two.txt'}"}
    code, printed, line = run(*[names.get(option, option) for option in options], "--out", tmp_path / "out")
    assert code == 2 and not printed and said in one_error(line)
    assert not (tmp_path / "out").exists() and not CALLS, "nothing was asked"


def test_no_pairs(capsys: pytest.CaptureFixture[str]) -> None:
    assert run_app(command(main), ["--systems", "plain"]) == 2
    assert "--pairs: name a file" in one_error(capsys.readouterr().err)


def test_a_graph_that_cannot_be_imported_is_one_line(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "agentsys.graphs.crat.system", None)
    code, _, said = run("--systems", "plain,crat")
    assert code == 2 and "'crat' needs graphs.crat, which cannot be imported" in one_error(said) and not CALLS


@ENDINGS
def test_what_ends_a_run_is_one_line(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: BaseException, code: int, words: str
) -> None:
    monkeypatch.setattr("agentsys.evaluation.sample.collect", breaking(error))
    found, printed, said = run("--systems", "plain", "--out", tmp_path / "out")
    progress, line = said.split("\n", 1)
    assert found == code and not printed and progress == "plain (1 of 1)" and words in one_error(line)


def test_imports_are_light() -> None:
    heavy = {"sacrebleu", "scipy", "opencc", "networkx", "matplotlib", "lxml", "torch", "transformers", "chromadb"}
    code = "import sys, agentsys.graphs.translate_evaluate, agentsys.graphs.drt_evaluate; "
    code += "print(*{n.split('.')[0] for n in sys.modules})"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert not heavy & set(found.stdout.split())


def test_help_is_grouped(run: Run) -> None:
    code, printed, _ = run("--help")
    assert code == 0 and all(f"─ {group} " in printed for group in ("Data", "Systems", "Scores", "Run"))
