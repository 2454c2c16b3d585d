"""CRAT's command with a scripted model: its table, graphs, resuming, wrong options."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from agentsys.collect import RunOptions, collect
from agentsys.commands import command, run_app
from agentsys.graphs.crat.measures import summarize
from agentsys.graphs.crat.state import with_digest
from agentsys.graphs.crat.system import Context, graph
from agentsys.graphs.crat.transkg import TransKG
from agentsys.graphs.crat_collect import main
from agentsys.traces import Trace, read_traces
from agentsys.trainers.rows import rows_of
from agentsys.trainers.tokenize_rows import RowTokenizer
from tests.support.tiny import make_tokenizer
from tests.support.toys import one_error, outcomes, write_lines

RULES: list[dict[str, Any]] = [
    {
        "role": "identifier",
        "replies": [json.dumps({"terms": [{"term": t, "kind": "proper"} for t in ("Scotia", "Atlantis")]})],
    },
    {"role": "glosser", "replies": ["Scotia = 斯科舍"]},
    {
        "role": "kg_constructor",
        "replies": [json.dumps({"relations": [{"term": "Scotia", "relation": "is", "object": "cold"}]})],
    },
    {"role": "llm_source", "replies": [json.dumps({"senses": [{"meaning": "a song", "translation": "斯科提亚"}]})]},
    {"role": "relevance", "replies": ['{"here": "a land", "entry": "a land", "relevant": true}']},
    {"role": "substituter", "key": "judge/0/0/1/*", "replies": ["斯科提亚很冷。"]},
    {"role": "substituter", "replies": ["斯科舍很冷。"]},
    {"role": "back_translator", "replies": ["Scotia is cold."]},
    {"role": "invariance", "key": "judge/0/0/1/*", "replies": ['{"first": "a land", "last": "a song", "same": false}']},
    {"role": "invariance", "replies": ['{"first": "a land", "last": "a land", "same": true}']},
    {"role": "counterfactual", "replies": ['{"reason": "so", "changes": true, "better": "entry"}']},
    {"role": "translator", "key": "translate/0", "replies": ["那里很冷。"]},
    {"role": "translator", "replies": ["斯科舍也很远。"]},
    {"role": "repairer", "replies": ["斯科舍很冷。"]},
]
RECORDS = [
    {"id": "one", "text": "Scotia is cold."},
    {"id": "the/second", "sentences": ["Scotia is cold.", "And Scotia is far.", "那里很冷。"]},
    {"id": "third", "text": " "},
]


class Workspace:
    """A folder with a script, records and a term list; a call runs the command there."""

    def __init__(self, folder: Path, capsys: Any) -> None:
        self.folder, self.capsys = folder, capsys
        self.model = f"scripted:{write_lines(folder / 'script.jsonl', RULES)}"
        self.input = write_lines(folder / "records.jsonl", RECORDS)
        self.list = folder / "terms.csv"
        self.list.write_text("source,target\nScotia,斯科舍\n", encoding="utf-8")

    def __call__(self, *options: object) -> tuple[int, str, str]:
        arguments = ["--input", self.input, "--out", self.folder / "out", "--model", self.model, "--no-cache", *options]
        self.capsys.readouterr()
        code = run_app(command(main), [str(argument) for argument in arguments])
        output = self.capsys.readouterr()
        return code, output.out, output.err

    def traces(self) -> dict[str, Trace]:
        return {trace.id: trace for trace in read_traces(self.folder / "out")}


@pytest.fixture
def workspace(tmp_path: Path, capsys: Any, monkeypatch: pytest.MonkeyPatch) -> Workspace:
    monkeypatch.setenv("COLUMNS", "200")
    return Workspace(tmp_path, capsys)


def test_documents_become_traces_graphs_and_a_table(workspace: Workspace) -> None:
    graphs = workspace.folder / "graphs"
    code, out, _ = workspace("--sources", f"terms:{workspace.list}", "--graphs", graphs)
    assert code == 3, "the empty text fails"
    assert "text: it is empty" in (workspace.folder / "out" / "failed.jsonl").read_text(encoding="utf-8")
    traces = workspace.traces()
    assert set(traces) == {"one", "the/second"}
    result = traces["the/second"].result or {}
    assert result["translations"] == ["斯科舍很冷。", "斯科舍也很远。", "那里很冷。"]
    assert result["rendered"][0]["repaired"] and result["rendered"][2]["status"].startswith("already")
    accepted = TransKG.from_json(result["graph"]).accepted("Scotia")
    assert accepted is not None and (accepted.target, accepted.source) == ("斯科舍", "terms.csv:2")
    assert [target.kind for target in traces["the/second"].targets] == ["sft", "role"] * 2
    for line in (
        "4 in 2 documents (entries 3, already in the target language 1)",
        "3 (proper 3)",
        "3 invented, 0 inside longer ones",
        "2, 0 of them after a second retrieval",
        "4; accepted for 2 terms",
        "terms.csv 2, model 2; for 2 terms",
        "relevance 0, substitution 0, invariance 2, counterfactual 0, failed call 0",
        "3 of 3 (2 missing at first, 2 sentences repaired)",
    ):
        assert line in out, out
    assert sorted(path.suffix for path in graphs.iterdir()) == [".graphml", ".graphml", ".png", ".png"]
    assert (graphs / "one.graphml").exists() and "knowledge graphs: 2 in" in out
    assert (graphs / "one.png").read_bytes().startswith(b"\x89PNG")


def test_the_command_reports_the_entries_of_each_source(workspace: Workspace) -> None:
    workspace.list.write_text("source,target\nScotia,斯科舍\nScotia,苏格兰\n,无\n", encoding="utf-8")
    unit = "<tu><tuv xml:lang='{}'><seg>It is cold.</seg></tuv><tuv xml:lang='zh'><seg>很冷。</seg></tuv></tu>"
    memory = workspace.folder / "m.tmx"
    units = "".join(map(unit.format, ("en", "cz", "cz")))
    memory.write_text(f"<tmx version='1.4'><header/><body>{units}</body></tmx>", encoding="utf-8")
    _, out, _ = workspace("--sources", f"terms:{workspace.list},tmx:{memory}")
    unused = "not used (blank, broken or in other languages)"
    assert f"terms:terms.csv: 2 entries, 1 terms with rival translations, 1 {unused}\n" in out
    assert f"tmx:m.tmx: 1 entries, 2 {unused}\n" in out


def test_a_dump_and_a_class_of_the_user_are_sources(workspace: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    page = {"id": "7", "title": "Scotia", "text": "Scotia is a cold land.", "langlinks": {"zh": "斯科舍 (土地)"}}
    dump = write_lines(workspace.folder / "dump.jsonl", [page])
    module = workspace.folder / "my_crat_sources.py"
    module.write_text(
        "from agentsys.terms.item import Item\n\n\nclass Mine:\n    name = 'mine'\n\n"
        "    async def look_up(self, terms, sentence):\n"
        "        return [[Item(t, '斯科提亚', '', '', 'mine:1')] for t in terms]\n",
        encoding="utf-8",
    )
    monkeypatch.chdir(workspace.folder)
    sources = ["--sources", f"wiki:{dump.name},python:my_crat_sources:Mine", "--no-llm-source", "--relations"]
    code, out, err = workspace(*sources, "--limit", 1)
    assert code == 0, err
    assert "wiki:dump.jsonl: 1 pages, 1 titles in other languages\n" in out
    assert "wiki 1, mine 1; for 1 terms" in out
    [trace] = workspace.traces().values()
    [decision] = (trace.result or {})["decisions"]
    verdicts = [(c["item"]["source"], c["item"]["target"], c["rejected_by"]) for c in decision["candidates"]]
    assert verdicts == [("wiki:7", "斯科舍", ""), ("mine:1", "斯科提亚", "invariance")]
    [call] = [call for call in trace.calls if call.role == "translator"]
    assert "- Scotia = 斯科舍\nNotes on terms:\n- Scotia - is - cold\n" in str(call.messages[-1]["content"])
    module.write_text(module.read_text(encoding="utf-8") + "# changed\n", encoding="utf-8")
    code, _, err = workspace(*sources)
    assert code == 2 and "knobs.sources_digest" in one_error(err)


def test_a_run_is_resumed_but_not_with_another_term_list(workspace: Workspace) -> None:
    sources = ("--sources", f"terms:{workspace.list}")
    workspace("--limit", 1, *sources)
    assert len(workspace.traces()) == 1
    workspace(*sources)
    assert len(workspace.traces()) == 2
    workspace.list.write_text("source,target\nScotia,苏格兰\n", encoding="utf-8")
    code, _, err = workspace(*sources)
    assert code == 2 and "knobs.sources_digest" in one_error(err)


@pytest.mark.parametrize(
    ("options", "fix"),
    [
        (["--sources", "terms:nowhere.csv"], "nowhere.csv: cannot be read"),
        (["--sources", "web:x"], "is not a term source"),
        (["--sources", "wiki:nowhere.jsonl"], "nowhere.jsonl: no such file; check the path"),
        (["--sources", "python:nowhere_at_all:Mine"], "no module nowhere_at_all"),
        (["--relations", "--no-graph"], "relations: they are in the knowledge graph, which is off"),
        (["--candidates", 0], "candidates: 0 is below 1"),
        (["--signals", "none"], "signals"),
        (["--graphs", __file__], "it is a file; name a folder"),
    ],
)
def test_a_wrong_option_is_one_line_and_nothing_is_written(workspace: Workspace, options: list[Any], fix: str) -> None:
    code, _, err = workspace(*options)
    assert code == 2 and fix in one_error(err)
    assert not (workspace.folder / "out").exists()


def test_the_input_is_required(capsys: Any) -> None:
    assert run_app(command(main), []) == 2
    assert "--input: name a file" in one_error(capsys.readouterr().err)


def test_two_runs_with_the_same_replies_give_the_same_records(workspace: Workspace) -> None:
    context = with_digest(Context(workspace.model, sources=f"terms:{workspace.list}"))
    runs = []
    for name in ("a", "b"):
        collect(graph, workspace.input, workspace.folder / name, context=context, options=RunOptions(no_cache=True))
        runs.append(outcomes(workspace.folder / name))
    assert runs[0] == runs[1]
    rows = dict(summarize(read_traces(workspace.folder / "a")))
    calls = sum(len(trace.calls) for trace in read_traces(workspace.folder / "a"))
    assert rows["calls and completion tokens per sentence"].startswith(f"{calls / 4:.1f}, ")
    assert dict(summarize([]))["terms found"] == "0 (none)"


def test_the_targets_become_rows_for_the_trainers(workspace: Workspace) -> None:
    workspace("--sources", f"terms:{workspace.list}")
    row_tokenizer = RowTokenizer(make_tokenizer(), retokenize=True)
    rows = list(rows_of(workspace.traces()["one"], row_tokenizer))
    assert [(row["kind"], row["text"]) for row in rows] == [("sft", "斯科舍很冷。"), ("role", "斯科舍很冷。")]
    assert "Scotia is cold." in rows[0]["prompt"] and "Entries" not in rows[0]["prompt"]
    assert "Entries" in rows[1]["prompt"]


def test_former_option_names_are_accepted(workspace: Workspace) -> None:
    sources = ("--sources", f"terms:{workspace.list}")
    code, _, _ = workspace(*sources, "--no-informed", "--no-again", "--back-model", workspace.model)
    assert code == 3
    manifest = json.loads((workspace.folder / "out" / "manifest.json").read_text(encoding="utf-8"))
    knobs = manifest["fingerprint"]["knobs"]
    assert not knobs["llm_source"] and not knobs["retrieve_again"]
    assert "llm_source" not in {call.role for trace in workspace.traces().values() for call in trace.calls}
