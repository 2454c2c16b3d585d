"""graphs/longdpo_evaluate.py and graphs/longdpo/writing.py: numbers by hand, a scripted model, a real command."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from langgraph.checkpoint.memory import InMemorySaver

from agentsys.collect import collect
from agentsys.commands import command, run_app
from agentsys.graphs.longdpo import search as longdpo_search
from agentsys.graphs.longdpo import writing
from agentsys.graphs.longdpo.judge import PRINCIPLES
from agentsys.graphs.longdpo.measures import by_bucket
from agentsys.graphs.longdpo.writing import DIMENSIONS, WritingContext, percent, quality_score
from agentsys.graphs.longdpo_evaluate import main
from agentsys.metrics.lengths import count_words
from agentsys.models.errors import EndpointDown, ModelError
from agentsys.models.scripted import ScriptedChatModel
from agentsys.models.wire import Reply
from tests.support.evaluations import ENDINGS, breaking, read
from tests.support.toys import one_error, one_node, write_lines

pytestmark = pytest.mark.usefixtures("isolated_cache")

REQUESTS: list[dict[str, Any]] = [
    {"id": "tea", "prompt": "Praise tea in 100 words.", "type": "Forum", "length": 100},
    {"id": "bee", "prompt": "Describe a bee in 400 words.", "type": "Science", "length": 400},
    {"id": "ship", "prompt": "A report on a ship, 1000 words.", "type": "News", "length": 1000},
    {"id": "war", "prompt": "An anti-war novel of 5000 words.", "type": "Fiction", "length": 5000},
    {"id": "free", "prompt": "Write whatever you like.", "type": "Forum"},
]
WORDS = {
    "base": {"tea": 100, "bee": 200, "ship": 2000, "war": 2500, "free": 10},
    "student": {"tea": 100, "bee": 400, "ship": 1000, "war": 5000, "free": 10},
}
"""How many words each model writes."""
GRADES = {"tea": [5] * 6, "bee": [5, 4, 3, 2, 1, 3], "ship": [4] * 6, "war": [3, 3, 6, 3, 3, 3], "free": [3] * 6}
"""The judge's grades; the novel's third is out of range."""

CALLS: list[str] = []
"""A line for every call that was made."""
SENT: list[str] = []
"""What each was sent."""
FAILING: set[str] = set()
"""Roles that fail at the request about the bee."""
SILENT: set[str] = set()
"""Keys of the writer's calls that are answered with nothing."""


class Author(ScriptedChatModel):
    """`langchain:test_longdpo_evaluate:Author`: writes as many words as WORDS says; the ship's report is cut off."""

    def __init__(self, **settings: Any) -> None:
        who = settings.get("name_in_traces", "base")
        super().__init__(respond=partial(respond, who), revision="1", **settings)

    async def complete(self, messages: Any, **kwargs: Any) -> Reply:
        reply = await super().complete(messages, **kwargs)
        cut = kwargs["role"] == "writer" and "a ship" in str(messages)
        return replace(reply, finish="length") if cut else reply


def respond(who: str, messages: Sequence[Mapping[str, Any]], call: dict[str, Any]) -> str:
    """The role's reply to the request in the messages."""
    text = "\n".join(str(message["content"]) for message in messages)
    name = next(row["id"] for row in REQUESTS if row["prompt"] in text)
    CALLS.append(f"{who} {name} {call['key']}")
    SENT.append(text)
    if call["role"] in FAILING and name == "bee":
        raise ModelError("the model fell over")
    if call["role"] == "writer":
        return "" if call["key"] in SILENT else "word " * WORDS[who][name]
    return json.dumps({"analysis": "x", **dict(zip(DIMENSIONS, GRADES[name], strict=True))})


MODEL = "langchain:test_longdpo_evaluate:Author"
STUDENT = f"{MODEL}?name_in_traces=student"
BOTH = ["--model", MODEL, "--judge-model", MODEL]

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def requests(tmp_path: Path) -> Path:
    return write_lines(tmp_path / "requests.jsonl", REQUESTS)


@pytest.fixture
def run(requests: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Run:
    """The command on the requests: exit code, what it printed, and what it said on stderr."""
    monkeypatch.setenv("COLUMNS", "200")
    for log in (CALLS, SENT, FAILING, SILENT):
        log.clear()

    def call(*options: object) -> tuple[int, str, str]:
        code = run_app(command(main), [str(option) for option in ("--requests", requests, *options)])
        said = capsys.readouterr()
        return code, said.out, said.err

    return call


def scores(out: Path) -> dict[str, dict[str, Any]]:
    lines = [json.loads(line) for line in (out / "scores.jsonl").read_text().splitlines()]
    return {line["id"]: line["systems"] for line in lines}


def traces(folder: Path) -> dict[str, dict[str, Any]]:
    return {(trace := json.loads(line))["id"]: trace for line in (folder / "traces-00000.jsonl").open()}


def means(found: Mapping[str, Any]) -> dict[str, float | None]:
    return {name: score and score["value"] for name, score in found["buckets"].items()}


def test_the_numbers(run: Run, tmp_path: Path) -> None:
    """S_l: 100 (as asked), 50 (half), 66.7 (double), 50 (half). S_q: 100, 50, 75, none, 50."""
    out = tmp_path / "out"
    code, _, _ = run(*BOTH, "--out", out)
    assert code == 3, "the novel has no judgement"
    report = read(out)
    found = report["systems"]["model"]
    kept = {"[0, 500)": 75, "[500, 2k)": 200 / 3, "[2k, 4k)": None, "[4k, 20k)": 50}
    assert means(found["S_l"]) == pytest.approx(kept)
    assert found["S_l"]["average"] == pytest.approx({"value": (75 + 200 / 3 + 50) / 3, "buckets": 3})
    assert (
        found["S_l"]["all"]["value"] == pytest.approx((100 + 50 + 200 / 3 + 50) / 4) and found["S_l"]["all"]["n"] == 4
    )
    short = found["S_l"]["buckets"]["[0, 500)"]
    assert (short["low"], short["high"], short["n"]) == (50, 100, 2)

    assert means(found["S_q"]) == {"[0, 500)": 75, "[500, 2k)": 75, "[2k, 4k)": None, "[4k, 20k)": None}
    assert found["S_q"]["average"] == {"value": 75, "buckets": 2}
    assert found["S_q"]["all"]["value"] == pytest.approx((100 + 50 + 75 + 50) / 4), "what names no length is judged too"
    dimensions = {name: score["value"] for name, score in found["dimensions"].items()}
    assert dimensions["relevance"] == pytest.approx((17 / 4 - 1) * 25) and dimensions["breadth_and_depth"] == 56.25
    assert sum(dimensions.values()) / 6 == pytest.approx(found["S_q"]["all"]["value"])

    assert found["words"]["[0, 500)"] == {"required": 250, "written": 150} and found["words"]["[2k, 4k)"] is None
    assert (found["cut"], found["cut_known"], found["failed"], found["judged"]) == (1, 5, 0, 4)
    assert report["without_length"] == 1 and report["requests"] == 5 and len(report["requests_sha256"]) == 64
    assert found["sampling"] == {"temperature": 1.0, "repetition_penalty": 1.1, "max_tokens": 32768}
    said = scores(out)
    assert said["ship"]["model"] == {
        "length": 1000, "words": 2000, "S_l": pytest.approx(200 / 3), "S_q": 75,
        "grades": dict.fromkeys(DIMENSIONS, 4), "cut": True, "unjudged": None, "error": None,
    }  # fmt: skip
    assert said["free"]["model"]["S_l"] is None and said["free"]["model"]["S_q"] == 50
    assert (out / "lengths.png").read_bytes().startswith(b"\x89PNG")


def test_the_table(run: Run, tmp_path: Path) -> None:
    _, printed, _ = run(*BOTH, "--trained", STUDENT, "--out", tmp_path / "out")
    lines = [" ".join(line.split()) for line in printed.splitlines()]
    assert "model [0, 500) 75.0 (50.0-100.0) 2 75.0 (50.0-100.0) 2 250 / 150" in lines
    assert "trained [0, 500) 100.0 (100.0-100.0) 2 75.0 (50.0-100.0) 2 250 / 250" in lines
    assert "[2k, 4k) - 0 - 0 -" in lines and "average 63.9 75.0" in lines and "average 100.0 75.0" in lines
    assert "average: the plain mean of the buckets that are there" in printed
    assert "model: 1 of 5 responses cut off at a token limit" in printed
    assert "1 of 5 requests name no length" in printed
    assert (
        "trained: 1 of 5 responses without a judgement, left out of S_q:" in printed and "coherence: Input" in printed
    )
    assert "not checked: whether the model was trained" in printed
    assert "model: base; temperature 1.0" not in printed and "model: scripted; temperature 1.0" in printed
    assert "trained: student; temperature 1.0, repetition_penalty 1.1, max_tokens 32768; judge scripted" in printed


def test_an_average_is_of_buckets_and_not_of_responses() -> None:
    """The paper's: 80.80, 89.10, 74.50 and 88.10 give 83.125, whatever the number of responses in each."""
    places = ["[0, 500)", "[500, 2k)", "[2k, 4k)", "[4k, 20k)"]
    values = [(place, value) for place, value in zip(places, (88.10, 74.50, 89.10, 80.80), strict=True)]
    found = by_bucket([*values, values[0], values[0]])
    assert found["average"] == {"value": pytest.approx(83.125), "buckets": 4} and found["all"]["n"] == 6
    assert by_bucket([]) == {"buckets": dict.fromkeys(places), "average": None, "all": None}


def test_the_scale_of_quality() -> None:
    """93.75 in table 6 is nine grades of 5 and three of 4, over twelve responses."""
    assert quality_score(dict.fromkeys(DIMENSIONS, 1)) == 0 and quality_score(dict.fromkeys(DIMENSIONS, 5)) == 100
    assert quality_score(dict(zip(DIMENSIONS, (5, 5, 5, 5, 5, 2), strict=True))) == pytest.approx(87.5)
    assert percent((9 * 5 + 3 * 4) / 12) == 93.75


def test_a_judgement_that_cannot_be_used_is_asked_again_and_then_missing(run: Run, tmp_path: Path) -> None:
    run(*BOTH, "--out", tmp_path / "out")
    again = ["base war quality", *(f"base war quality#{i}" for i in range(1, 5))]
    assert [call for call in CALLS if "war quality" in call] == again, "five tries, as published"
    war = scores(tmp_path / "out")["war"]["model"]
    assert war["grades"] is None and war["S_q"] is None and "coherence" in war["unjudged"] and war["S_l"] == 50


def test_what_the_roles_are_sent(run: Run, tmp_path: Path) -> None:
    run(*BOTH, "--out", tmp_path / "out", "--limit", 1, "--max-tokens", 900)
    written, judged = SENT
    assert written == REQUESTS[0]["prompt"], "nothing but the request"
    assert judged.endswith("The request:\nPraise tea in 100 words.\n\nThe response:\n" + ("word " * 100).strip())
    assert all(name in judged for name in DIMENSIONS) and "let no grade depend on it" in judged
    calls = {call["role"]: call["sampling"] for call in traces(tmp_path / "out/model")["tea"]["calls"]}
    assert calls["writer"] == {"temperature": 1.0, "top_p": 1.0, "repetition_penalty": 1.1, "max_tokens": 900}
    assert calls["quality"]["temperature"] == 0.5


def test_without_a_judge_there_is_no_quality(run: Run, tmp_path: Path) -> None:
    code, printed, _ = run("--model", MODEL, "--out", tmp_path / "out")
    found = read(tmp_path / "out")["systems"]["model"]
    assert code == 0 and found["S_q"]["all"] is None and found["unjudged"] == {} and found["S_l"]["all"]["n"] == 4
    assert len(CALLS) == 5 and "no judge" in printed and "relevance" not in printed


def test_the_same_command_goes_on(run: Run, tmp_path: Path) -> None:
    out = tmp_path / "out"
    run(*BOTH, "--out", out, "--limit", 2)
    assert len(CALLS) == 4
    small = read(out)
    run(*BOTH, "--out", out)
    assert len(CALLS) == 4 + 3 + 1 + 5 + 1, "the judgement that cannot be used five times"
    whole, asked = read(out), len(CALLS)
    assert run(*BOTH, "--out", out)[0] == 3
    assert len(CALLS) == asked and read(out) == whole
    run(*BOTH, "--out", out, "--limit", 2)
    assert len(CALLS) == asked and read(out)["systems"] == small["systems"], "a smaller sample is measured alone"


def test_systems_share_no_cached_reply(run: Run, tmp_path: Path) -> None:
    """Two models served under one name look the same to a request cache."""
    run("--model", MODEL, "--trained", MODEL, "--out", tmp_path / "out")
    assert len(CALLS) == 10


def test_other_settings_or_requests_do_not_mix(run: Run, requests: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    run(*BOTH, "--out", out)
    asked = len(CALLS)
    code, _, said = run(*BOTH, "--out", out, "--max-tokens", 99)
    assert code == 2 and "max_tokens: 32768 -> 99" in one_error(said.splitlines(keepends=True)[-1])
    write_lines(requests, [{**REQUESTS[0], "prompt": "Praise coffee."}])
    code, _, said = run(*BOTH, "--out", out)
    assert code == 2 and "request tea has other words" in one_error(said) and len(CALLS) == asked


def test_a_failure_is_left_out_counted_and_tried_again(run: Run, tmp_path: Path) -> None:
    FAILING.add("writer")
    code, printed, _ = run("--model", MODEL, "--out", tmp_path / "out")
    found = read(tmp_path / "out")["systems"]["model"]
    assert code == 3 and found["failed"] == 1 and found["S_l"]["buckets"]["[0, 500)"]["value"] == 100
    assert "model: no response to 1 of 5 requests, which are left out:" in printed and "fell over" in printed
    assert scores(tmp_path / "out")["bee"]["model"]["words"] is None
    FAILING.clear()
    asked = len(CALLS)
    assert run("--model", MODEL, "--out", tmp_path / "out")[0] == 0
    assert CALLS[asked:] == ["base bee write"] and read(tmp_path / "out")["systems"]["model"]["failed"] == 0


def test_a_judge_that_fails_costs_its_judgement_alone(run: Run, tmp_path: Path) -> None:
    FAILING.add("quality")
    code, printed, _ = run(*BOTH, "--out", tmp_path / "out")
    bee = scores(tmp_path / "out")["bee"]["model"]
    assert code == 3 and bee["S_l"] == 50 and bee["unjudged"] == "the model fell over" and bee["error"] is None
    assert "1 x the model fell over" in printed


def test_an_empty_response_is_one(run: Run, tmp_path: Path) -> None:
    """What a model writes after a reminder answers another request: it is asked once."""
    SILENT.add("write")
    code, printed, _ = run(*BOTH, "--out", tmp_path / "out", "--limit", 1)
    tea = scores(tmp_path / "out")["tea"]["model"]
    assert (tea["words"], tea["S_l"], tea["S_q"], tea["unjudged"]) == (0, 0, None, "the response is empty")
    assert tea["cut"] is None, "all tokens may have gone into its reasoning"
    assert code == 3 and "1 of 1 responses without a judgement" in printed
    assert CALLS == ["base tea write"]


# Responses that are there already


def test_responses_from_a_file(run: Run, tmp_path: Path) -> None:
    """Found by the prompt, in any order, whatever their ids; those to other requests are passed over."""
    lines = [{"prompt": row["prompt"], "response": "word " * 100} for row in reversed(REQUESTS[:3])]
    lines.append({"prompt": "Something else.", "response": "word"})
    lines.append({"prompt": REQUESTS[3]["prompt"], "response": None})
    code, printed, _ = run("--responses", write_lines(tmp_path / "other.jsonl", lines), "--out", tmp_path / "out")
    found = read(tmp_path / "out")["systems"]["other"]
    assert code == 3 and not CALLS and not (tmp_path / "out/other").exists(), "nothing to ask"
    assert found["failed"] == 2 and found["S_l"]["all"]["n"] == 3 and found["cut_known"] == 0
    assert scores(tmp_path / "out")["tea"]["other"]["S_l"] == 100
    assert f"1 x no response in {tmp_path / 'other.jsonl'}" in printed and "1 x null in" in printed
    assert f"other: {tmp_path / 'other.jsonl'}; no judge" in printed and "cut off" not in printed


def test_given_responses_are_judged(run: Run, tmp_path: Path) -> None:
    texts = ["tea " * 100, "  ", "ship " * 1000]
    lines = [{"prompt": row["prompt"], "response": text} for row, text in zip(REQUESTS, texts, strict=False)]
    file, out = write_lines(tmp_path / "mine.jsonl", lines), tmp_path / "out"
    run("--responses", file, "--judge-model", MODEL, "--out", out, "--limit", 3)
    assert CALLS == ["base tea quality", "base ship quality"]
    said = scores(out)
    assert said["ship"]["mine"]["S_q"] == 75 and said["ship"]["mine"]["S_l"] == 100
    assert (said["bee"]["mine"]["S_l"], said["bee"]["mine"]["unjudged"]) == (0, "the response is empty")
    run("--responses", file, "--judge-model", MODEL, "--out", out, "--limit", 3)
    assert len(CALLS) == 2 and scores(out) == said
    write_lines(file, [*lines[:2], {**lines[2], "response": "A shorter report."}])
    code, _, error = run("--responses", file, "--judge-model", MODEL, "--out", out, "--limit", 3)
    assert code == 2 and "request ship has other words" in one_error(error), "grades are of the text that was judged"
    write_lines(file, [*lines[:2], {**lines[2], "response": None}])
    run("--responses", file, "--judge-model", MODEL, "--out", out, "--limit", 3)
    ship = scores(out)["ship"]["mine"]
    assert ship["grades"] is None and ship["error"] and ship["unjudged"] is None
    write_lines(file, [*lines[:2], {**lines[2], "response": ""}])
    run("--responses", file, "--judge-model", MODEL, "--out", out, "--limit", 3)
    ship = scores(out)["ship"]["mine"]
    assert ship["grades"] is None and ship["unjudged"] == "the response is empty", "the old text's are in the run"


def test_what_a_run_wrote_can_be_judged_later(run: Run, tmp_path: Path) -> None:
    """Without writing it again, and by another judge."""
    run("--model", MODEL, "--out", tmp_path / "written")
    CALLS.clear()
    run("--responses", tmp_path / "written/model", "--judge-model", MODEL, "--out", tmp_path / "judged")
    run(*BOTH, "--out", tmp_path / "at once")
    assert all("quality" in call for call in CALLS[:9]) and len(CALLS) == 18 + 5
    later, parallel = (read(tmp_path / name)["systems"]["model"] for name in ("judged", "at once"))
    assert {**later, "writer": 0, "run": 0, "sampling": 0} == {**parallel, "writer": 0, "run": 0, "sampling": 0}


def test_what_the_search_wrote(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """LongDPO's own run: the kept and the dropped; what the model did not end is cut, and nothing is no response."""

    def respond(messages: Sequence[Mapping[str, Any]], call: dict[str, Any]) -> str:
        text = str(messages)
        if call["role"] == "judge":
            weights = [0.0] * 5 if "a ship" in text else [0, 0, 0, 0, 1]
            return json.dumps({"analysis": "x", **dict.fromkeys(PRINCIPLES, weights)})
        return "one two three four"

    class Policy(ScriptedChatModel):
        async def complete(self, messages: Any, **kwargs: Any) -> Reply:
            reply = await super().complete(messages, **kwargs)
            cut = kwargs["role"] == "writer" and "a bee" in str(messages)
            return replace(reply, finish="length" if cut else "stop")

    with monkeypatch.context() as patch:
        policy = Policy(respond=respond)
        patch.setattr("agentsys.systems.load_model", lambda *spec, **about: policy)
        patch.setattr("agentsys.collect.fingerprint.load_model", lambda *spec, **about: policy)
        knobs = longdpo_search.SearchContext(width=2, depth=1, eta=1.0, weights="stated")
        collect(longdpo_search.graph, REQUESTS[:3], tmp_path / "longdpo", context=knobs)
    code, _, _ = run("--responses", tmp_path / "longdpo", "--out", tmp_path / "out", "--limit", 4)
    found = read(tmp_path / "out")["systems"]["longdpo"]
    assert (found["cut"], found["cut_known"], found["failed"], code) == (1, 2, 2, 3)
    said = scores(tmp_path / "out")
    assert said["bee"]["longdpo"]["cut"] is True and said["tea"]["longdpo"]["cut"] is False
    assert (
        said["tea"]["longdpo"]["words"] == 4 and "nothing was written: no candidate" in said["ship"]["longdpo"]["error"]
    )
    assert said["war"]["longdpo"]["error"] == f"no response in {tmp_path / 'longdpo'}"


async def test_a_thread_writes_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    """In Studio a thread keeps its state: the response to one request must not answer the next."""
    monkeypatch.setattr("agentsys.systems.load_model", lambda *spec, **about: Author())
    kept = writing.builder.compile(checkpointer=InMemorySaver())
    found = []
    for row in (REQUESTS[0], REQUESTS[3], REQUESTS[2]):
        given: Any = {"configurable": {"thread_id": "one"}}
        found.append(await kept.ainvoke({"prompt": row["prompt"]}, given, context=WritingContext()))
    assert [count_words(state["response"]) for state in found] == [100, 2500, 2000]
    assert [state["cut"] for state in found] == [False, False, True]
    assert [bool(state["grades"]) for state in found] == [True, False, True]
    assert found[1]["unjudged"] and found[2]["unjudged"] is None
    only = await writing.graph.ainvoke({"prompt": REQUESTS[0]["prompt"], "given": "Tea."}, context=WritingContext())
    assert only["response"] == "Tea." and only["cut"] is None and only["grades"]


# Requests


def test_columns_of_other_names_and_lengths_as_text(tmp_path: Path) -> None:
    """In a CSV file; a length that is not there is empty."""
    rows = ["_id,query,words", *(f'{r["id"]},"{r["prompt"]}",{r.get("length", "")}' for r in REQUESTS)]
    (tmp_path / "requests.csv").write_text("\n".join(rows))
    fields = ["--field", "prompt=query", "--field", "length=words", "--id-field", "_id"]
    options = ["--requests", tmp_path / "requests.csv", "--model", MODEL, "--out", tmp_path / "out", *fields]
    assert run_app(command(main), [str(option) for option in options]) == 0
    found = read(tmp_path / "out")
    assert found["without_length"] == 1 and found["systems"]["model"]["S_l"]["all"]["n"] == 4


def test_a_request_that_cannot_be_used_costs_itself(run: Run, requests: Path, tmp_path: Path) -> None:
    bad: list[dict[str, Any]] = [
        {"prompt": "x", "length": "many"}, {"prompt": "x", "length": -5}, {"prompt": "x", "length": True},
        {"prompt": "x", "length": 10.5}, {"id": "tea", "prompt": "Again?"}, {"length": 7},
    ]  # fmt: skip
    write_lines(requests, [*REQUESTS, {"id": "zero", "prompt": REQUESTS[4]["prompt"], "length": 0}, *bad])
    code, printed, _ = run("--model", MODEL, "--out", tmp_path / "out")
    report = read(tmp_path / "out")
    assert code == 3 and report["requests"] == 6 and report["without_length"] == 2
    assert [entry["source"].rpartition(":")[2] for entry in report["unusable"]] == ["7", "8", "9", "10", "11", "12"]
    reasons = [entry["reason"] for entry in report["unusable"]]
    assert all("is no number of words" in reason for reason in reasons[:4]) and "duplicate" in reasons[4]
    assert f"not asked: {requests}:7: length 'many'" in printed


def test_no_request_names_a_length(run: Run, requests: Path, tmp_path: Path) -> None:
    write_lines(requests, REQUESTS[4:])
    code, _, _ = run(*BOTH, "--out", tmp_path / "out")
    found = read(tmp_path / "out")["systems"]["model"]
    assert code == 0 and found["S_l"]["all"] is None and found["S_q"]["all"]["value"] == 50
    assert (tmp_path / "out/lengths.png").exists()


def test_a_shuffled_sample(run: Run, tmp_path: Path) -> None:
    orders = []
    for seed in (0, 0, 1):
        options = ["--model", MODEL, "--shuffle", "--seed", seed, "--limit", 3]
        assert run("--out", tmp_path / "out", *options)[0] == 0
        orders.append(list(scores(tmp_path / "out")))
    assert orders[0] == orders[1] != orders[2] and len(orders[0]) == 3


# Requests that a model was trained on


@pytest.fixture
def trained_on(tmp_path: Path) -> Callable[..., Path]:
    """A collect run over requests."""

    def over(*rows: dict[str, Any]) -> Path:
        folder = tmp_path / "trained_on"
        assert not collect(
            one_node(lambda state: {"reply": "x"}), [{"text": "x", **row} for row in rows], folder
        ).stopped
        return folder

    return over


def test_an_overlap_is_refused(run: Run, trained_on: Callable[..., Path], tmp_path: Path) -> None:
    folder = trained_on(
        {"id": "war", "prompt": "A peaceful novel."}, {"id": "t2", "prompt": "praise TEA, in 100 words"}
    )
    options = ["--trained", STUDENT, "--trained-on", folder, "--out", tmp_path / "out"]
    code, printed, said = run(*options)
    line = one_error(said)
    assert code == 2 and not printed and not CALLS and not (tmp_path / "out").exists()
    assert f"2 of 5 are in {folder} too" in line
    assert "id war: An anti-war novel" in line or "the same words, tea: Praise tea" in line
    assert run(*options, "--limit", 1)[0] == 2, "by its words alone"


def test_other_requests_are_no_overlap(run: Run, trained_on: Callable[..., Path], tmp_path: Path) -> None:
    folder = trained_on({"id": "t1", "prompt": "Praise tea in 200 words."})
    code, printed, _ = run("--trained", STUDENT, "--trained-on", folder, "--out", tmp_path / "out")
    assert code == 0 and "not checked" not in printed and read(tmp_path / "out")["overlap_checked"] is True


# Bad input

BAD_OPTIONS: list[tuple[list[str], str]] = [
    (["--requests", "nobody.jsonl"], "nobody.jsonl: no such file"),
    (["--requests", "EMPTY"], "no request to use: empty file"),
    ([], "name --model, --trained or --responses"),
    (["--model", "x:y"], "is no model spec"),
    (["--trained", "x:y"], "is no model spec"),
    (["--model", MODEL, "--judge-model", "x:y"], "is no model spec"),
    (["--model", MODEL, "--limit", "0"], "--limit 0"),
    (["--model", MODEL, "--in-flight", "0"], "--in-flight 0"),
    (["--model", MODEL, "--max-tokens", "0"], "max_tokens: 0 is below 1"),
    (["--model", MODEL, "--field", "prompt"], "--field prompt"),
    (["--model", MODEL, "--trained-on", "NOWHERE"], "--trained-on"),
    (["--model", MODEL, "--trained-on", "TEXTS"], "its records have no prompt"),
    (["--responses", "nobody.jsonl"], "nobody.jsonl: no such file"),
    (["--responses", "EMPTY"], "no response to any of the requests"),
    (["--responses", "FOLDER"], "no traces there"),
    (["--responses", "TEXTS"], "its records have no prompt"),
    (["--responses", "REPLIES"], "its results have no response"),
    (["--responses", "TWICE"], "two responses to one request (Praise tea in 100 words.)"),
    (["--responses", "BARE"], "no field 'response'"),
    (["--responses", "BROKEN"], "broken.jsonl:1: not JSON"),
    (["--responses", "TWICE", "--responses", "TWICE"], "two systems would be called twice"),
    (["--responses", "MODEL", "--model", MODEL], "two systems would be called model"),
]


@pytest.mark.parametrize(("options", "said"), BAD_OPTIONS, ids=lambda value: "-".join(value).strip("-")[:40])
def test_bad_options_get_one_line(run: Run, tmp_path: Path, options: list[str], said: str) -> None:
    tea = {"prompt": REQUESTS[0]["prompt"]}
    files: dict[str, list[dict[str, Any]]] = {
        "EMPTY": [], "TWICE": [{**tea, "response": "a"}, {**tea, "response": "b"}], "BARE": [tea],
        "MODEL": [{**tea, "response": "a"}],
    }  # fmt: skip
    names = {name: write_lines(tmp_path / f"{name.lower()}.jsonl", lines) for name, lines in files.items()}
    names |= {name: tmp_path / name.lower() for name in ("NOWHERE", "FOLDER", "TEXTS", "REPLIES")}
    names["BROKEN"] = tmp_path / "broken.jsonl"
    names["BROKEN"].write_text("{")
    names["FOLDER"].mkdir()
    for name, row in (("TEXTS", {"text": "x"}), ("REPLIES", {"text": "x", **tea})):
        if name in options:
            collect(one_node(lambda state: {"reply": "x"}), [row], names[name])
    code, printed, line = run(*[names.get(option, option) for option in options], "--out", tmp_path / "out")
    assert code == 2 and not printed and said in one_error(line)
    assert not (tmp_path / "out").exists() and not CALLS, "nothing was asked"


def test_no_requests(capsys: pytest.CaptureFixture[str]) -> None:
    assert run_app(command(main), []) == 2
    assert "--requests: name a file" in one_error(capsys.readouterr().err)


def test_a_missing_library_is_named_before_anything_is_asked(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("agentsys.graphs.longdpo_evaluate.find_spec", lambda name: None)
    code, _, said = run(*BOTH)
    assert code == 2 and "pip install matplotlib" in one_error(said) and not CALLS


@ENDINGS
def test_what_ends_a_run_is_one_line(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: BaseException, code: int, words: str
) -> None:
    monkeypatch.setattr("agentsys.evaluation.sample.collect", breaking(error))
    found, printed, said = run(*BOTH, "--out", tmp_path / "out")
    progress, line = said.split("\n", 1)
    assert found == code and not printed and progress == "model (1 of 1)" and words in one_error(line)


def test_a_judge_that_is_down_ends_the_run(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is no judgement that cannot be used: every later one would be missing too."""

    async def down(self: Any, messages: Any, **kwargs: Any) -> Reply:
        if kwargs["role"] == "quality":
            raise EndpointDown("no server answers at http://judge")
        return await ScriptedChatModel.complete(self, messages, **kwargs)

    monkeypatch.setattr(Author, "complete", down)
    code, _, said = run(*BOTH, "--out", tmp_path / "out")
    assert code == 1 and "http://judge" in said and not (tmp_path / "out/evaluation.json").exists()


def test_help_is_grouped(run: Run) -> None:
    code, printed, _ = run("--help")
    assert code == 0 and all(f"─ {group} " in printed for group in ("Requests", "Systems", "Run"))


def test_imports_are_light() -> None:
    heavy = {"matplotlib", "numpy", "sacrebleu", "scipy", "torch", "transformers"}
    code = "import agentsys.graphs.longdpo_evaluate, sys; print(*{n.split('.')[0] for n in sys.modules})"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert not heavy & set(found.stdout.split())
