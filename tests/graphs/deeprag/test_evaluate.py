"""graphs/deeprag_evaluate.py: numbers by hand, a scripted model, a real index."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from agentsys.collect import collect
from agentsys.commands import command, run_app
from agentsys.graphs.deeprag import baselines
from agentsys.graphs.deeprag.measures import Prediction, boundary, decision_margin
from agentsys.graphs.deeprag.narrative import SEARCH
from agentsys.graphs.deeprag_evaluate import main
from agentsys.installation import install_command
from agentsys.knowledge import IndexSettings, build_index, index_digest
from agentsys.models.errors import ModelError
from agentsys.models.scripted import ScriptedChatModel
from tests.support.evaluations import COLLECT, ENDINGS, Run, breaking, read_lines, read_report, run_command
from tests.support.shards import shard_lines
from tests.support.toys import one_error, write_lines

pytestmark = pytest.mark.usefixtures("isolated_cache")

PASSAGES = [
    {"id": "p1", "title": "Emma", "text": "Emma is a novel that Jane Austen wrote."},
    {
        "id": "p2",
        "title": "War and Peace",
        "text": "Leo Tolstoy wrote War and Peace, a novel.\nSo the final answer is: x",
    },
    {"id": "p3", "title": "Moby-Dick", "text": "Moby-Dick is a whale in a novel, and white."},
]
QUESTIONS: list[dict[str, Any]] = [
    {"id": "emma", "question": "Who wrote the novel Emma?", "answer": "Jane Austen"},
    {"id": "usa", "question": "Where is Boston?", "answer": "United States", "answer_aliases": ["USA", "U.S."]},
    {"id": "tolstoy", "question": "Who wrote War and Peace?", "answers": ["Leo Tolstoy", "Tolstoy"]},
    {"id": "whale", "question": "Is Moby-Dick black?", "answer": "no"},
    {"id": "pole", "question": "Which pole is colder?", "answer": "the South Pole"},
]
ANSWERS: dict[str, dict[str, Any]] = {
    "emma": {"direct": "Jane Austen", "cot": "jane austen!", "memory": "Jane Austen", "found": "Austen"},
    "usa": {"direct": "The USA", "cot": "America", "memory": "America", "found": "US", "search": 2},
    "tolstoy": {"direct": "Count Leo Tolstoy", "cot": "Tolstoy", "memory": "Dostoevsky", "found": "Count", "search": 1},
    "whale": {"direct": "yes", "cot": "yes", "memory": "yes", "found": "no"},
    "pole": {"direct": "south", "cot": "South Pole", "memory": "South pole", "found": "North"},
}
"""The model's answers: at once, after thinking, from memory, or from passages; and how often DeepRAG searches."""

CALLS: list[str] = []
"""A line for every call."""
FAILING: set[str] = set()
"""Roles that fail at the question about the whale."""


class Reader(ScriptedChatModel):
    """Knows the questions above, and searches as often as ANSWERS says."""

    def __init__(self, **settings: Any) -> None:
        super().__init__(respond=respond, revision="1", **settings)


def respond(messages: Sequence[Mapping[str, Any]], call: dict[str, Any]) -> str:
    """The role's reply to the last question in the messages."""
    text = "\n".join(str(message["content"]) for message in messages)
    question = max(QUESTIONS, key=lambda row: text.rfind(f"Question: {row['question']}"))
    answers, role = ANSWERS[question["id"]], call["role"]
    CALLS.append(f"{question['id']} {role} {call['key']}")
    if role in FAILING and question["id"] == "whale":
        raise ModelError("the model fell over")
    if role in ("direct", "cot"):
        short = answers["found" if "[1] Title:" in text else role]
        return f"Thinking.\n<answer long>It is {short}.</answer long><answer short>{short}</answer short>"
    narrative = str(messages[-1]["content"])
    steps = int(call["key"].split("/")[0]) if "/" in call["key"] else 0
    match role:
        case "decomposer":
            steps_needed = max(1, answers.get("search", 0))
            is_last = steps >= steps_needed
            return "So the final answer is: it." if is_last else f"Follow up: Step {steps} of {question['id']}?"
        case "decider":
            return SEARCH if answers.get("search") else "Intermediate answer: x"
        case "answerer":
            return "something"
    short = answers["found" if SEARCH in narrative else "memory"]
    return f"<answer long>It is {short}.</answer long><answer short>{short}</answer short>"


MODEL = f"langchain:{__name__}:Reader"
TRAINED = f"{MODEL}?name_in_traces=student"


@pytest.fixture(scope="module")
def index(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("index")
    build_index(PASSAGES, folder, IndexSettings())
    return folder


@pytest.fixture
def questions(tmp_path: Path) -> Path:
    return write_lines(tmp_path / "dev.jsonl", QUESTIONS)


@pytest.fixture
def run(questions: Path, index: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Run:
    """The command on the questions."""
    monkeypatch.setenv("COLUMNS", "200")
    CALLS.clear()
    FAILING.clear()

    def call(*options: object) -> tuple[int, str, str]:
        defaults = ["--questions", questions, "--index", index, "--model", MODEL]
        return run_command(main, capsys, *defaults, *options)

    return call


def predictions(out: Path) -> dict[str, dict[str, Any]]:
    return {line["id"]: line["systems"] for line in read_lines(out / "predictions.jsonl")}


def test_the_numbers(run: Run, index: Path, tmp_path: Path) -> None:
    """EM and F1 by hand: direct has 1, 1 (an alias), 0.8 (2 of 3 words, 2 of 2), 0, and 2/3 (1 of 1, 1 of 2)."""
    out = tmp_path / "out"
    code, output, _ = run("--out", out)
    assert code == 0, output
    report = read_report(out)
    systems = report["systems"]
    assert list(systems) == ["direct", "cot", "cot_retrieve", "always", "never", "deeprag"]
    assert {name: result["em"]["value"] for name, result in systems.items()} == pytest.approx(
        {"direct": 40, "cot": 60, "cot_retrieve": 40, "always": 40, "never": 40, "deeprag": 60}
    )
    direct = systems["direct"]
    assert direct["f1"]["value"] == pytest.approx(100 * (1 + 1 + 0.8 + 0 + 2 / 3) / 5)
    assert direct["contains"]["value"] == 80 and direct["em"]["low"] < 40 < direct["em"]["high"]
    assert systems["cot"]["f1"]["value"] == 60 and systems["cot"]["retrievals"]["all"] == 0

    assert systems["deeprag"]["retrievals"] == pytest.approx({"all": 3 / 5, "correct": 2 / 3, "incorrect": 1 / 2})
    assert systems["always"]["retrievals"]["all"] == pytest.approx(6 / 5), "every sub-query: one, but of Boston two"
    assert systems["never"]["retrievals"]["all"] == 0 and systems["cot_retrieve"]["retrievals"]["all"] == 1
    assert systems["deeprag"]["steps"] == pytest.approx(6 / 5)
    assert systems["deeprag"]["stops"] == {"terminate": 5} and systems["deeprag"]["well_formed"] == 5

    by_id = predictions(out)
    assert by_id["usa"]["deeprag"]["answer"] == "US" and by_id["usa"]["deeprag"]["em"] is True
    assert by_id["usa"]["deeprag"]["retrievals"] == 2 and by_id["tolstoy"]["direct"]["f1"] == pytest.approx(0.8)
    assert report["settings"]["index_digest"] == index_digest(index) and len(report["questions_sha256"]) == 64
    assert report["questions"] == 5 and report["overlap_checked"] is False
    assert (out / "retrievals.png").read_bytes().startswith(b"\x89PNG")


def test_the_knowledge_boundary(run: Run, tmp_path: Path) -> None:
    """CoT knows emma, tolstoy and pole; DeepRAG assumes emma, whale and pole: 2 hits, 1 false, 1 missed."""
    code, output, _ = run("--out", tmp_path / "out", "--systems", "cot,deeprag,always")
    systems = read_report(tmp_path / "out")["systems"]
    assert code == 0 and systems["cot"]["boundary"] is None
    assert systems["deeprag"]["boundary"] == pytest.approx(
        {
            "n": 5, "known": 3, "assumed_known": 3, "f1": 2 / 3, "accuracy": 3 / 5,
            "balanced_accuracy": (2 / 3 + 1 / 2) / 2, "mcc": (2 * 1 - 1 * 1) / 6,
            "auc": None, "auc_n": 0,
        }
    )  # fmt: skip
    always = systems["always"]["boundary"]
    assert (always["f1"], always["accuracy"], always["balanced_accuracy"], always["mcc"]) == (0, 2 / 5, 1 / 2, 0)
    assert "0.667" in output and "knowledge boundary" in output
    run("--out", tmp_path / "out", "--systems", "deeprag")
    assert read_report(tmp_path / "out")["systems"]["deeprag"]["boundary"] is None, "it needs the CoT answers"


@pytest.mark.parametrize(
    ("counts", "published"),
    [
        ((113, 169, 75, 643), (0.481, 0.756, 0.648, 0.341)),
        ((206, 76, 175, 543), (0.621, 0.749, 0.743, 0.451)),
        ((0, 282, 0, 718), (0.000, 0.718, 0.500, 0.000)),
    ],
    ids=["UAR", "DeepRAG", "FLARE"],
)
def test_the_positive_class_is_the_papers(counts: tuple[int, ...], published: tuple[float, ...]) -> None:
    """Of 1,000 questions: known and not searched, known and searched, and so on; they give rows of table 3."""
    is_known = [True] * (counts[0] + counts[1]) + [False] * (counts[2] + counts[3])
    searched = [i for count, i in zip(counts, (0, 1, 0, 1), strict=True) for _ in range(count)]
    cot = [Prediction(em=right) for right in is_known]
    agreement = boundary([Prediction(retrievals=n) for n in searched], cot, "exact")
    assert [round(agreement[name], 3) for name in ("f1", "accuracy", "balanced_accuracy", "mcc")] == list(published)


def test_the_area_under_the_curve_of_the_decisions() -> None:
    """Of the 2 x 3 pairs of a known and another question, 2 are in the right order and one is equal."""
    margins = [-2.0, 1.0, -2.5, 0.5, 1.0, None]
    known = [True, True, False, False, False, False]
    answers = [Prediction(retrievals=0, margin=margin) for margin in margins]
    agreement = boundary(answers, [Prediction(em=right) for right in known], "exact")
    assert (agreement["auc"], agreement["auc_n"], agreement["n"]) == (pytest.approx(2.5 / 6), 5, 6)
    assert boundary(answers[:2], [Prediction(em=True)] * 2, "exact")["auc"] is None


def test_the_margin_of_a_question_is_its_greatest() -> None:
    def step(retrieve: float | None, parametric: float | None) -> dict[str, Any]:
        return {"decision": {"log_p_retrieve": retrieve, "log_p_parametric": parametric}}

    assert decision_margin([step(-2.0, -0.5), step(-1.0, -3.0), {"decision": None}]) == 2.0
    assert decision_margin([step(-2.0, -0.5), step(None, None)]) is None
    assert decision_margin([step(None, -0.5)]) == -99.5, "sure to know: the other opening is no alternative"
    assert decision_margin([step(-0.5, None)]) == 99.5
    assert decision_margin([{"decision": None}]) is decision_margin([]) is None, "forced decisions"


def test_a_boundary_without_both_classes() -> None:
    exact = boundary([Prediction(retrievals=1), Prediction(retrievals=0)], [Prediction(), Prediction()], "exact")
    assert exact["accuracy"] == 0.5 and exact["f1"] is exact["mcc"] is exact["balanced_accuracy"] is None
    lenient = boundary(
        [Prediction(retrievals=1), Prediction(retrievals=0)], [Prediction(), Prediction(contains=True)], "contains"
    )
    assert lenient["f1"] == lenient["mcc"] == 1, "what counts as right is --match"


def test_lenient_match(run: Run, tmp_path: Path) -> None:
    code, output, _ = run("--out", tmp_path / "out", "--systems", "cot,always", "--match", "contains")
    result = read_report(tmp_path / "out")["systems"]["always"]
    assert code == 0 and "contains" in output
    assert result["em"]["value"] == 40 and result["contains"]["value"] == 60, "Austen is in Jane Austen"
    assert result["retrievals"]["correct"] == pytest.approx(4 / 3) and result["retrievals"]["incorrect"] == 1


def test_the_trained_model_sees_no_example(run: Run, tmp_path: Path) -> None:
    code, output, _ = run("--out", tmp_path / "out", "--trained", TRAINED)
    systems = read_report(tmp_path / "out")["systems"]
    assert code == 0 and list(systems)[-1] == "deeprag_trained" and len(systems) == 7
    assert (systems["deeprag_trained"]["model"], systems["deeprag"]["model"]) == ("student", "scripted")
    assert "deeprag_trained student" in output and "not checked: whether the model was trained" in output
    traces = [json.loads(line) for line in shard_lines(tmp_path / "out/deeprag_trained")]
    assert all("This is the form:" not in str(call["messages"]) for trace in traces for call in trace["calls"])
    traces = [json.loads(line) for line in shard_lines(tmp_path / "out/deeprag")]
    assert all("This is the form:" in str(call["messages"]) for trace in traces for call in trace["calls"])


def test_the_same_command_resumes(run: Run, tmp_path: Path) -> None:
    out = tmp_path / "out"
    run("--out", out, "--limit", 2, "--systems", "cot,deeprag")
    first = len(CALLS)
    assert first == 2 + (2 + 1 + 1 + 1) + (3 + 2 + 2 + 1), "decompose, decide, answer, conclude"
    small = read_report(out)
    run("--out", out, "--systems", "cot,deeprag")
    assert all(call.split()[0] not in ("emma", "usa") for call in CALLS[first:]) and read_report(out)["questions"] == 5
    whole, calls = read_report(out), len(CALLS)
    assert run("--out", out, "--systems", "cot,deeprag")[0] == 0
    assert len(CALLS) == calls and read_report(out) == whole
    run("--out", out, "--limit", 2, "--systems", "cot,deeprag")
    assert len(CALLS) == calls and read_report(out)["systems"] == small["systems"], "a smaller sample is measured alone"


def test_a_torn_line_is_ignored(run: Run, tmp_path: Path) -> None:
    run("--out", tmp_path / "out", "--systems", "direct")
    with (tmp_path / "out/direct/failed.jsonl").open("ab") as file:
        file.write(b'{"version":1,"id":"emm')
    assert run("--out", tmp_path / "out", "--systems", "direct")[0] == 0 and len(CALLS) == len(QUESTIONS)


def test_other_settings_or_questions_do_not_mix(run: Run, questions: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    run("--out", out, "--systems", "cot,deeprag")
    calls = len(CALLS)
    code, _, error = run("--out", out, "--systems", "cot,deeprag", "--max-steps", 3)
    assert code == 2 and "max_steps: 6 -> 3" in one_error(error.partition("\n")[2].partition("\n")[2])
    write_lines(questions, [{**QUESTIONS[0], "question": "Who wrote Persuasion?"}])
    code, _, error = run("--out", out, "--systems", "cot,deeprag")
    assert code == 2 and "question emma differs" in one_error(error) and len(CALLS) == calls


def test_seconds_are_not_those_of_the_request_cache(run: Run, tmp_path: Path) -> None:
    run("--out", tmp_path / "own", "--systems", "always,deeprag")
    own = read_report(tmp_path / "own")["systems"]["deeprag"]
    assert own["timed"] == 5 and own["seconds"] > 0
    shared = ["--cache", tmp_path / "shared.sqlite", "--systems", "always,deeprag"]
    code, output, _ = run("--out", tmp_path / "out", *shared)
    systems = read_report(tmp_path / "out")["systems"]
    assert code == 0 and systems["always"]["timed"] == 5
    assert systems["deeprag"]["timed"] == 0 and systems["deeprag"]["seconds"] is None
    [line] = [line for line in output.splitlines() if line.strip().startswith("deeprag")]
    assert line.split()[-1] == "-"


def test_a_failure_counts_as_wrong_and_is_tried_again(run: Run, tmp_path: Path) -> None:
    FAILING.add("cot")
    code, output, _ = run("--out", tmp_path / "out", "--systems", "cot,deeprag")
    systems = read_report(tmp_path / "out")["systems"]
    assert code == 3 and systems["cot"]["failed"] == 1 and systems["cot"]["n"] == 5
    assert systems["cot"]["em"]["value"] == 60 and systems["cot"]["timed"] == 4
    assert systems["deeprag"]["boundary"]["n"] == 5, "a question at which CoT failed is not known"
    assert "cot failed at 1 of 5 questions, which count as wrong" in output and "the model fell over" in output
    assert predictions(tmp_path / "out")["whale"]["cot"]["answer"] == ""
    FAILING.clear()
    calls = len(CALLS)
    assert run("--out", tmp_path / "out", "--systems", "cot,deeprag")[0] == 0
    assert CALLS[calls:] == ["whale cot answer"] and read_report(tmp_path / "out")["systems"]["cot"]["failed"] == 0


def test_failed_questions_are_not_in_the_boundary(run: Run, tmp_path: Path) -> None:
    FAILING.add("concluder")
    run("--out", tmp_path / "out", "--systems", "cot,deeprag")
    result = read_report(tmp_path / "out")["systems"]["deeprag"]
    assert result["failed"] == 1 and result["boundary"]["n"] == 4
    assert result["retrievals"]["all"] == pytest.approx(3 / 4)


def test_columns_of_other_names(run: Run, questions: Path, tmp_path: Path) -> None:
    write_lines(questions, [{"_id": row["id"], "qText": row["question"], "gold": "x"} for row in QUESTIONS])
    fields = ["--field", "question=qText", "--field", "answer=gold", "--id-field", "_id"]
    assert run("--out", tmp_path / "out", "--systems", "direct", *fields)[0] == 0
    assert sorted(predictions(tmp_path / "out")) == sorted(row["id"] for row in QUESTIONS)


def test_a_shuffled_sample(run: Run, tmp_path: Path) -> None:
    orders = []
    for seed in (0, 0, 1):
        options = ["--systems", "direct", "--shuffle", "--seed", seed, "--limit", 3]
        assert run("--out", tmp_path / "out", *options)[0] == 0
        orders.append(list(predictions(tmp_path / "out")))
    assert orders[0] == orders[1] != orders[2] and len(orders[0]) == 3


def test_a_question_that_cannot_be_used_costs_itself(run: Run, questions: Path, tmp_path: Path) -> None:
    bad = [{"id": "none", "question": "Who?"}, {"id": "emma", "question": "Again?", "answer": "x"}, {"answer": "x"}]
    write_lines(questions, [*QUESTIONS, *bad])
    code, output, _ = run("--out", tmp_path / "out", "--systems", "direct")
    report = read_report(tmp_path / "out")
    assert code == 3 and report["questions"] == 5 and report["systems"]["direct"]["n"] == 5
    assert [entry["source"].rpartition(":")[2] for entry in report["unusable"]] == ["6", "7", "8"]
    reasons = [entry["reason"] for entry in report["unusable"]]
    assert "no gold answer" in reasons[0] and "duplicate" in reasons[1] and "no field 'question'" in reasons[2]
    assert f"not asked: {questions}:6" in output


# Questions that a model was trained on


@pytest.fixture
def trained_on(tmp_path: Path) -> Callable[..., Path]:
    """A collect run over questions."""

    def over(*rows: dict[str, Any]) -> Path:
        folder = tmp_path / "trained_on"
        assert not collect(baselines.graph, rows, folder, context=baselines.BaselineContext(model=MODEL)).stopped
        return folder

    return over


def test_an_overlap_by_id_is_refused(run: Run, trained_on: Callable[..., Path], tmp_path: Path) -> None:
    folder = trained_on({"id": "usa", "question": "Which pole is warmer?"}, {"id": "new", "question": "Why?"})
    calls = len(CALLS)
    code, output, error = run("--out", tmp_path / "out", "--trained", TRAINED, "--trained-on", folder)
    line = one_error(error)
    assert code == 2 and not output and len(CALLS) == calls and not (tmp_path / "out").exists()
    assert f"1 of 5 are also in {folder}" in line and "id usa: Where is Boston?" in line
    code, _, _ = run("--out", tmp_path / "out", "--trained", TRAINED, "--trained-on", folder, "--limit", 1)
    assert code == 0 and read_report(tmp_path / "out")["overlap_checked"] is True, "usa is not in this sample"


def test_an_overlap_by_words_is_refused(run: Run, trained_on: Callable[..., Path], tmp_path: Path) -> None:
    folder = trained_on({"id": "t1", "question": "who wrote novel EMMA"}, {"id": "t2", "question": "Is Moby-Dick red?"})
    code, _, error = run("--out", tmp_path / "out", "--trained-on", folder)
    assert code == 2 and "1 of 5" in error and "same text, emma: Who wrote the novel Emma?" in one_error(error)


def test_other_questions_are_no_overlap(run: Run, trained_on: Callable[..., Path], tmp_path: Path) -> None:
    folder = trained_on({"id": "t1", "question": "Who wrote Emma?"})
    code, output, _ = run(
        "--out", tmp_path / "out", "--systems", "direct,deeprag_trained", "--trained", TRAINED, "--trained-on", folder
    )
    assert code == 0 and "not checked" not in output


# Bad input

BAD_OPTIONS: list[tuple[list[str], str]] = [
    (["--questions", "nobody.jsonl"], "nobody.jsonl: no such file"),
    (["--questions", "EMPTY"], "no question to use: empty file"),
    (["--questions", "NO_GOLD"], "no question to use: no gold answer"),
    (["--systems", "direct,iterdrag"], "there is no 'iterdrag'; there are direct, cot"),
    (["--systems", "deeprag_trained"], "name its model with --trained"),
    (["--systems", "direct", "--trained", MODEL], "add it to --systems"),
    (["--index", ""], "--index: cot_retrieve, always, deeprag need one"),
    (["--index", "NOWHERE"], "NOWHERE"),
    (["--retriever", "dense"], "has no 'dense'"),
    (["--model", "x:y"], "is not a model spec"),
    (["--trained", "x:y"], "is not a model spec"),
    (["--limit", "0"], "--limit 0"),
    (["--in-flight", "0"], "--in-flight 0"),
    (["--k", "0"], "k: 0 is below 1"),
    (["--max-steps", "0"], "max_steps: 0"),
    (["--field", "question"], "--field question"),
    (["--field", "question=query"], "--field question=COLUMN"),
    (["--match", "loose"], "--match"),
    (["--trained-on", "NOWHERE"], "no traces there"),
    (["--trained-on", "TEXTS"], "its records have no question"),
]


@pytest.mark.parametrize(("options", "words"), BAD_OPTIONS, ids=lambda value: "-".join(value).strip("-")[:40])
def test_bad_options_get_one_line(run: Run, tmp_path: Path, options: list[str], words: str) -> None:
    names: dict[str, Path] = {"NOWHERE": tmp_path / "NOWHERE", "EMPTY": write_lines(tmp_path / "empty.jsonl", [])}
    names["NO_GOLD"] = write_lines(tmp_path / "no_gold.jsonl", [{"question": "Who?"}])
    names["TEXTS"] = tmp_path / "texts"
    if "TEXTS" in options:
        from tests.support.toys import one_node

        collect(one_node(lambda state: {"reply": "x"}), [{"text": "no question"}], names["TEXTS"])
    code, output, line = run(*[names.get(option, option) for option in options], "--out", tmp_path / "out")
    assert code == 2 and not output and words in one_error(line)
    assert not (tmp_path / "out").exists() and not CALLS, "no call was made"


def test_no_index_is_needed_where_nothing_searches(run: Run, tmp_path: Path) -> None:
    assert run("--index", "", "--systems", "direct,cot,never", "--out", tmp_path / "out")[0] == 0


def test_no_questions(capsys: pytest.CaptureFixture[str]) -> None:
    assert run_app(command(main), []) == 2
    assert "--questions: name a file" in one_error(capsys.readouterr().err)


def test_a_missing_library_is_an_error_before_any_call(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("agentsys.evaluation.report.find_spec", lambda name: None if name == "sklearn" else object())
    code, _, error = run()
    assert code == 2 and install_command("knowledge") in one_error(error) and not CALLS


@ENDINGS
def test_what_ends_a_run_is_one_line(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: BaseException, code: int, words: str
) -> None:
    monkeypatch.setattr(COLLECT, breaking(error))
    exit_code, output, stderr = run("--out", tmp_path / "out")
    progress, line = stderr.split("\n", 1)
    assert exit_code == code and not output and progress == "direct (1 of 6)" and words in one_error(line)


def test_help_is_grouped(run: Run) -> None:
    code, output, _ = run("--help")
    assert code == 0 and all(f"─ {group} " in output for group in ("Questions", "Systems", "Run"))


def test_imports_are_light() -> None:
    heavy = {"sklearn", "matplotlib", "scipy", "bm25s", "chromadb", "torch", "transformers"}
    code = "import sys, agentsys.graphs.deeprag_collect, agentsys.graphs.deeprag_evaluate; "
    code += "print(*{n.split('.')[0] for n in sys.modules})"
    process = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert not heavy & set(process.stdout.split())
