"""graphs/longdpo_evaluate.py: numbers by hand, resumption, and what it refuses."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

from agentsys.collect import collect
from agentsys.graphs.longdpo.longbench_write import DIMENSIONS
from agentsys.graphs.longdpo_evaluate import main
from agentsys.models.errors import EndpointDown
from agentsys.models.scripted import ScriptedChatModel
from agentsys.models.wire import Reply
from tests.support.evaluations import COLLECT, ENDINGS, Run, breaking, read_report, run_command
from tests.support.long_responses import (
    BOTH,
    CALLS,
    FAILING,
    MODEL,
    PROMPTS,
    REQUESTS,
    SILENT,
    STUDENT,
    Author,
    scores,
)
from tests.support.shards import shard_lines
from tests.support.toys import one_error, one_node, write_lines

pytestmark = pytest.mark.usefixtures("isolated_cache")


def traces(folder: Path) -> dict[str, dict[str, Any]]:
    return {(trace := json.loads(line))["id"]: trace for line in shard_lines(folder)}


def means(score: Mapping[str, Any]) -> dict[str, float | None]:
    """The mean of each bucket."""
    return {name: mean and mean["value"] for name, mean in score["buckets"].items()}


def test_the_numbers(evaluate: Run, tmp_path: Path) -> None:
    """S_l: 100 (as asked), 50 (half), 66.7 (double), 50 (half). S_q: 100, 50, 75, none, 50."""
    out = tmp_path / "out"
    code, _, _ = evaluate(*BOTH, "--out", out)
    assert code == 3, "the novel has no judgment"
    report = read_report(out)
    result = report["systems"]["model"]
    kept = {"[0, 500)": 75, "[500, 2k)": 200 / 3, "[2k, 4k)": None, "[4k, 20k)": 50}
    assert means(result["S_l"]) == pytest.approx(kept)
    assert result["S_l"]["average"] == pytest.approx({"value": (75 + 200 / 3 + 50) / 3, "buckets": 3})
    assert (
        result["S_l"]["all"]["value"] == pytest.approx((100 + 50 + 200 / 3 + 50) / 4) and result["S_l"]["all"]["n"] == 4
    )
    short = result["S_l"]["buckets"]["[0, 500)"]
    assert (short["low"], short["high"], short["n"]) == (50, 100, 2)

    assert means(result["S_q"]) == {"[0, 500)": 75, "[500, 2k)": 75, "[2k, 4k)": None, "[4k, 20k)": None}
    assert result["S_q"]["average"] == {"value": 75, "buckets": 2}
    assert result["S_q"]["all"]["value"] == pytest.approx((100 + 50 + 75 + 50) / 4), "one without a length too"
    dimensions = {name: score["value"] for name, score in result["dimensions"].items()}
    assert dimensions["relevance"] == pytest.approx((17 / 4 - 1) * 25) and dimensions["breadth_and_depth"] == 56.25
    assert sum(dimensions.values()) / 6 == pytest.approx(result["S_q"]["all"]["value"])

    assert result["words"]["[0, 500)"] == {"required": 250, "written": 150} and result["words"]["[2k, 4k)"] is None
    assert (result["truncated"], result["truncated_known"], result["failed"], result["judged"]) == (1, 5, 0, 4)
    assert report["without_length"] == 1 and report["requests"] == 5 and len(report["requests_sha256"]) == 64
    assert result["sampling"] == {"temperature": 1.0, "repetition_penalty": 1.1, "max_tokens": 32768}
    by_id = scores(out)
    assert by_id["ship"]["model"] == {
        "length": 1000, "words": 2000, "S_l": pytest.approx(200 / 3), "S_q": 75,
        "grades": dict.fromkeys(DIMENSIONS, 4), "truncated": True, "unjudged": None, "error": None,
        "entries": None,
    }  # fmt: skip
    assert by_id["free"]["model"]["S_l"] is None and by_id["free"]["model"]["S_q"] == 50
    assert (out / "lengths.png").read_bytes().startswith(b"\x89PNG")


def test_the_table(evaluate: Run, tmp_path: Path) -> None:
    _, output, _ = evaluate(*BOTH, "--trained", STUDENT, "--out", tmp_path / "out")
    lines = [" ".join(line.split()) for line in output.splitlines()]
    assert "model [0, 500) 75.0 (50.0-100.0) 2 75.0 (50.0-100.0) 2 250 / 150" in lines
    assert "trained [0, 500) 100.0 (100.0-100.0) 2 75.0 (50.0-100.0) 2 250 / 250" in lines
    assert "[2k, 4k) - 0 - 0 -" in lines and "average 63.9 75.0" in lines and "average 100.0 75.0" in lines
    assert "average: the mean of the buckets with responses" in output
    assert "model: 1 of 5 responses truncated at a token limit" in output
    assert "1 of 5 requests name no length" in output
    assert "trained: 1 of 5 responses without a judgment, left out of S_q:" in output and "coherence: Input" in output
    assert "not checked: whether the model was trained" in output
    assert "model: base; temperature 1.0" not in output and "model: scripted; temperature 1.0" in output
    assert "trained: student; temperature 1.0, repetition_penalty 1.1, max_tokens 32768; judge scripted" in output


def test_a_judgment_that_cannot_be_used_is_asked_again_and_then_missing(evaluate: Run, tmp_path: Path) -> None:
    evaluate(*BOTH, "--out", tmp_path / "out")
    again = ["base war quality", *(f"base war quality#{i}" for i in range(1, 5))]
    assert [call for call in CALLS if "war quality" in call] == again, "five tries, as published"
    war = scores(tmp_path / "out")["war"]["model"]
    assert war["grades"] is None and war["S_q"] is None and "coherence" in war["unjudged"] and war["S_l"] == 50


def test_what_the_roles_are_sent(evaluate: Run, tmp_path: Path) -> None:
    evaluate(*BOTH, "--out", tmp_path / "out", "--limit", 1, "--max-tokens", 900)
    written, judged = PROMPTS
    assert written == REQUESTS[0]["prompt"], "nothing but the request"
    assert judged.endswith("The request:\nPraise tea in 100 words.\n\nThe response:\n" + ("word " * 100).strip())
    assert all(name in judged for name in DIMENSIONS) and "let no grade depend on it" in judged
    calls = {call["role"]: call["sampling"] for call in traces(tmp_path / "out/model")["tea"]["calls"]}
    assert calls["writer"] == {"temperature": 1.0, "top_p": 1.0, "repetition_penalty": 1.1, "max_tokens": 900}
    assert calls["quality"]["temperature"] == 0.5


def test_without_a_judge_there_is_no_quality(evaluate: Run, tmp_path: Path) -> None:
    code, output, _ = evaluate("--model", MODEL, "--out", tmp_path / "out")
    result = read_report(tmp_path / "out")["systems"]["model"]
    assert code == 0 and result["S_q"]["all"] is None and result["unjudged"] == {} and result["S_l"]["all"]["n"] == 4
    assert len(CALLS) == 5 and "no judge" in output and "relevance" not in output


def test_the_same_command_resumes(evaluate: Run, tmp_path: Path) -> None:
    out = tmp_path / "out"
    evaluate(*BOTH, "--out", out, "--limit", 2)
    assert len(CALLS) == 4
    small = read_report(out)
    evaluate(*BOTH, "--out", out)
    assert len(CALLS) == 4 + 3 + 1 + 5 + 1, "the judgment that cannot be used five times"
    whole, calls = read_report(out), len(CALLS)
    assert evaluate(*BOTH, "--out", out)[0] == 3
    assert len(CALLS) == calls and read_report(out) == whole
    evaluate(*BOTH, "--out", out, "--limit", 2)
    assert len(CALLS) == calls and read_report(out)["systems"] == small["systems"], "a smaller sample is measured alone"


def test_systems_share_no_cached_reply(evaluate: Run, tmp_path: Path) -> None:
    """Two models served under one name look the same to a request cache."""
    evaluate("--model", MODEL, "--trained", MODEL, "--out", tmp_path / "out")
    assert len(CALLS) == 10


def test_other_settings_or_requests_do_not_mix(evaluate: Run, requests: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    evaluate(*BOTH, "--out", out)
    calls = len(CALLS)
    code, _, error = evaluate(*BOTH, "--out", out, "--max-tokens", 99)
    assert code == 2 and "max_tokens: 32768 -> 99" in one_error(error.splitlines(keepends=True)[-1])
    write_lines(requests, [{**REQUESTS[0], "prompt": "Praise coffee."}])
    code, _, error = evaluate(*BOTH, "--out", out)
    assert code == 2 and "request tea differs" in one_error(error) and len(CALLS) == calls


def test_a_failure_is_left_out_counted_and_tried_again(evaluate: Run, tmp_path: Path) -> None:
    FAILING.add("writer")
    code, output, _ = evaluate("--model", MODEL, "--out", tmp_path / "out")
    result = read_report(tmp_path / "out")["systems"]["model"]
    assert code == 3 and result["failed"] == 1 and result["S_l"]["buckets"]["[0, 500)"]["value"] == 100
    assert "model: no response to 1 of 5 requests, which are left out:" in output and "fell over" in output
    assert scores(tmp_path / "out")["bee"]["model"]["words"] is None
    FAILING.clear()
    calls = len(CALLS)
    assert evaluate("--model", MODEL, "--out", tmp_path / "out")[0] == 0
    assert CALLS[calls:] == ["base bee write"] and read_report(tmp_path / "out")["systems"]["model"]["failed"] == 0


def test_a_judge_that_fails_costs_its_judgment_alone(evaluate: Run, tmp_path: Path) -> None:
    FAILING.add("quality")
    code, output, _ = evaluate(*BOTH, "--out", tmp_path / "out")
    bee = scores(tmp_path / "out")["bee"]["model"]
    assert code == 3 and bee["S_l"] == 50 and bee["unjudged"] == "the model fell over" and bee["error"] is None
    assert "1 x the model fell over" in output


def test_an_empty_response_is_one(evaluate: Run, tmp_path: Path) -> None:
    """What a model writes after a reminder answers another request: it is asked once."""
    SILENT.add("write")
    code, output, _ = evaluate(*BOTH, "--out", tmp_path / "out", "--limit", 1)
    tea = scores(tmp_path / "out")["tea"]["model"]
    assert (tea["words"], tea["S_l"], tea["S_q"], tea["unjudged"]) == (0, 0, None, "the response is empty")
    assert tea["truncated"] is None, "all tokens may have gone into its reasoning"
    assert code == 3 and "1 of 1 responses without a judgment" in output
    assert CALLS == ["base tea write"]


def test_columns_of_other_names_and_lengths_as_text(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    """In a CSV file; a length that is not there is empty."""
    rows = ["_id,query,words", *(f'{r["id"]},"{r["prompt"]}",{r.get("length", "")}' for r in REQUESTS)]
    (tmp_path / "requests.csv").write_text("\n".join(rows))
    fields = ["--field", "prompt=query", "--field", "length=words", "--id-field", "_id"]
    options = ["--requests", tmp_path / "requests.csv", "--model", MODEL, "--out", tmp_path / "out", *fields]
    assert run_command(main, capsys, *options)[0] == 0
    result = read_report(tmp_path / "out")
    assert result["without_length"] == 1 and result["systems"]["model"]["S_l"]["all"]["n"] == 4


def test_a_request_that_cannot_be_used_costs_itself(evaluate: Run, requests: Path, tmp_path: Path) -> None:
    bad: list[dict[str, Any]] = [
        {"prompt": "x", "length": "many"}, {"prompt": "x", "length": -5}, {"prompt": "x", "length": True},
        {"prompt": "x", "length": 10.5}, {"id": "tea", "prompt": "Again?"}, {"length": 7},
    ]  # fmt: skip
    write_lines(requests, [*REQUESTS, {"id": "zero", "prompt": REQUESTS[4]["prompt"], "length": 0}, *bad])
    code, output, _ = evaluate("--model", MODEL, "--out", tmp_path / "out")
    report = read_report(tmp_path / "out")
    assert code == 3 and report["requests"] == 6 and report["without_length"] == 2
    assert [entry["source"].rpartition(":")[2] for entry in report["unusable"]] == ["7", "8", "9", "10", "11", "12"]
    reasons = [entry["reason"] for entry in report["unusable"]]
    assert all("is not a number of words" in reason for reason in reasons[:4]) and "duplicate" in reasons[4]
    assert f"not asked: {requests}:7: length 'many'" in output


def test_no_request_names_a_length(evaluate: Run, requests: Path, tmp_path: Path) -> None:
    write_lines(requests, REQUESTS[4:])
    code, _, _ = evaluate(*BOTH, "--out", tmp_path / "out")
    result = read_report(tmp_path / "out")["systems"]["model"]
    assert code == 0 and result["S_l"]["all"] is None and result["S_q"]["all"]["value"] == 50
    assert (tmp_path / "out/lengths.png").exists()


def test_a_shuffled_sample(evaluate: Run, tmp_path: Path) -> None:
    orders = []
    for seed in (0, 0, 1):
        options = ["--model", MODEL, "--shuffle", "--seed", seed, "--limit", 3]
        assert evaluate("--out", tmp_path / "out", *options)[0] == 0
        orders.append(list(scores(tmp_path / "out")))
    assert orders[0] == orders[1] != orders[2] and len(orders[0]) == 3


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


def test_an_overlap_is_refused(evaluate: Run, trained_on: Callable[..., Path], tmp_path: Path) -> None:
    folder = trained_on(
        {"id": "war", "prompt": "A peaceful novel."}, {"id": "t2", "prompt": "praise TEA, in 100 words"}
    )
    options = ["--trained", STUDENT, "--trained-on", folder, "--out", tmp_path / "out"]
    code, output, error = evaluate(*options)
    line = one_error(error)
    assert code == 2 and not output and not CALLS and not (tmp_path / "out").exists()
    assert f"2 of 5 are also in {folder}" in line
    assert "id war: An anti-war novel" in line or "same text, tea: Praise tea" in line
    assert evaluate(*options, "--limit", 1)[0] == 2, "by its words alone"


def test_other_requests_are_no_overlap(evaluate: Run, trained_on: Callable[..., Path], tmp_path: Path) -> None:
    folder = trained_on({"id": "t1", "prompt": "Praise tea in 200 words."})
    code, output, _ = evaluate("--trained", STUDENT, "--trained-on", folder, "--out", tmp_path / "out")
    assert code == 0 and "not checked" not in output and read_report(tmp_path / "out")["overlap_checked"] is True


BAD_OPTIONS: list[tuple[list[str], str]] = [
    (["--requests", "nobody.jsonl"], "nobody.jsonl: no such file"),
    (["--requests", "EMPTY"], "no request to use: empty file"),
    ([], "name --model, --trained or --responses"),
    (["--model", "x:y"], "is not a model spec"),
    (["--trained", "x:y"], "is not a model spec"),
    (["--model", MODEL, "--judge-model", "x:y"], "is not a model spec"),
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


@pytest.mark.parametrize(("options", "words"), BAD_OPTIONS, ids=lambda value: "-".join(value).strip("-")[:40])
def test_bad_options_get_one_line(evaluate: Run, tmp_path: Path, options: list[str], words: str) -> None:
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
    code, output, line = evaluate(*[names.get(option, option) for option in options], "--out", tmp_path / "out")
    assert code == 2 and not output and words in one_error(line)
    assert not (tmp_path / "out").exists() and not CALLS, "no call was made"


def test_no_requests(capsys: pytest.CaptureFixture[str]) -> None:
    code, _, error = run_command(main, capsys)
    assert code == 2 and "--requests: name a file" in one_error(error)


def test_a_missing_library_is_named_before_any_call(evaluate: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("agentsys.evaluation.report.find_spec", lambda name: None)
    code, _, error = evaluate(*BOTH)
    assert code == 2 and "pip install matplotlib" in one_error(error) and not CALLS


@ENDINGS
def test_what_ends_a_run_is_one_line(
    evaluate: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: BaseException, code: int, words: str
) -> None:
    monkeypatch.setattr(COLLECT, breaking(error))
    exit_code, output, stderr = evaluate(*BOTH, "--out", tmp_path / "out")
    progress, line = stderr.split("\n", 1)
    assert exit_code == code and not output and progress == "model (1 of 1)" and words in one_error(line)


def test_a_judge_that_is_down_ends_the_run(evaluate: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is no judgment that cannot be used: every later one would be missing too."""

    async def down(self: Any, messages: Any, **kwargs: Any) -> Reply:
        if kwargs["role"] == "quality":
            raise EndpointDown("no server is reachable at http://judge")
        return await ScriptedChatModel.complete(self, messages, **kwargs)

    monkeypatch.setattr(Author, "complete", down)
    code, _, error = evaluate(*BOTH, "--out", tmp_path / "out")
    assert code == 1 and "http://judge" in error and not (tmp_path / "out/evaluation.json").exists()


def test_help_is_grouped(evaluate: Run) -> None:
    code, output, _ = evaluate("--help")
    assert code == 0 and all(f"─ {group} " in output for group in ("Requests", "Systems", "Run"))


def test_imports_are_light() -> None:
    heavy = {"matplotlib", "numpy", "sacrebleu", "scipy", "torch", "transformers"}
    code = "import agentsys.graphs.longdpo_evaluate, sys; print(*{n.split('.')[0] for n in sys.modules})"
    process = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert not heavy & set(process.stdout.split())
