"""graphs/longdpo_evaluate.py --responses: existing responses from files, evaluations and LongDPO's runs."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from agentsys.collect import collect
from agentsys.graphs.longdpo import search as longdpo_search
from agentsys.graphs.longdpo.judge import PRINCIPLES
from agentsys.models.scripted import ScriptedChatModel
from agentsys.models.wire import Reply
from tests.support.evaluations import Run, read_report
from tests.support.long_responses import BOTH, CALLS, MODEL, REQUESTS, scores
from tests.support.toys import one_error, write_lines

pytestmark = pytest.mark.usefixtures("isolated_cache")


def test_responses_from_a_file(evaluate: Run, tmp_path: Path) -> None:
    """Matched by the prompt, in any order, whatever their ids; responses to other requests are ignored."""
    lines = [{"prompt": row["prompt"], "response": "word " * 100} for row in reversed(REQUESTS[:3])]
    lines.append({"prompt": "Something else.", "response": "word"})
    lines.append({"prompt": REQUESTS[3]["prompt"], "response": None})
    code, output, _ = evaluate("--responses", write_lines(tmp_path / "other.jsonl", lines), "--out", tmp_path / "out")
    result = read_report(tmp_path / "out")["systems"]["other"]
    assert code == 3 and not CALLS and not (tmp_path / "out/other").exists(), "no calls to make"
    assert result["failed"] == 2 and result["S_l"]["all"]["n"] == 3 and result["truncated_known"] == 0
    assert scores(tmp_path / "out")["tea"]["other"]["S_l"] == 100
    assert f"1 x no response in {tmp_path / 'other.jsonl'}" in output and "1 x null in" in output
    assert f"other: {tmp_path / 'other.jsonl'}; no judge" in output and "truncated" not in output


def test_existing_responses_are_judged(evaluate: Run, tmp_path: Path) -> None:
    texts = ["tea " * 100, "  ", "ship " * 1000]
    lines = [{"prompt": row["prompt"], "response": text} for row, text in zip(REQUESTS, texts, strict=False)]
    file, out = write_lines(tmp_path / "mine.jsonl", lines), tmp_path / "out"
    evaluate("--responses", file, "--judge-model", MODEL, "--out", out, "--limit", 3)
    assert CALLS == ["base tea quality", "base ship quality"]
    by_id = scores(out)
    assert by_id["ship"]["mine"]["S_q"] == 75 and by_id["ship"]["mine"]["S_l"] == 100
    assert (by_id["bee"]["mine"]["S_l"], by_id["bee"]["mine"]["unjudged"]) == (0, "the response is empty")
    evaluate("--responses", file, "--judge-model", MODEL, "--out", out, "--limit", 3)
    assert len(CALLS) == 2 and scores(out) == by_id
    write_lines(file, [*lines[:2], {**lines[2], "response": "A shorter report."}])
    code, _, error = evaluate("--responses", file, "--judge-model", MODEL, "--out", out, "--limit", 3)
    assert code == 2 and "request ship differs" in one_error(error), "grades are of the text that was judged"
    write_lines(file, [*lines[:2], {**lines[2], "response": None}])
    evaluate("--responses", file, "--judge-model", MODEL, "--out", out, "--limit", 3)
    ship = scores(out)["ship"]["mine"]
    assert ship["grades"] is None and ship["error"] and ship["unjudged"] is None
    write_lines(file, [*lines[:2], {**lines[2], "response": ""}])
    evaluate("--responses", file, "--judge-model", MODEL, "--out", out, "--limit", 3)
    ship = scores(out)["ship"]["mine"]
    assert ship["grades"] is None and ship["unjudged"] == "the response is empty", "the old text's are in the run"


def test_the_responses_of_a_run_can_be_judged_later(evaluate: Run, tmp_path: Path) -> None:
    """Without writing it again, and by another judge."""
    evaluate("--model", MODEL, "--out", tmp_path / "written")
    CALLS.clear()
    evaluate("--responses", tmp_path / "written/model", "--judge-model", MODEL, "--out", tmp_path / "judged")
    evaluate(*BOTH, "--out", tmp_path / "at once")
    assert all("quality" in call for call in CALLS[:9]) and len(CALLS) == 18 + 5
    later, parallel = (read_report(tmp_path / name)["systems"]["model"] for name in ("judged", "at once"))
    assert {**later, "writer": 0, "run": 0, "sampling": 0} == {**parallel, "writer": 0, "run": 0, "sampling": 0}


def test_the_responses_of_the_search(evaluate: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """LongDPO's run, kept and dropped records: truncated if the model did not end it; an empty text is no response."""

    def respond(messages: Sequence[Mapping[str, Any]], call: dict[str, Any]) -> str:
        text = str(messages)
        if call["role"] == "judge":
            weights = [0.0] * 5 if "a ship" in text else [0, 0, 0, 0, 1]
            return json.dumps({"analysis": "x", **dict.fromkeys(PRINCIPLES, weights)})
        return "one two three four"

    class Policy(ScriptedChatModel):
        async def complete(self, messages: Any, **kwargs: Any) -> Reply:
            reply = await super().complete(messages, **kwargs)
            truncated = kwargs["role"] == "writer" and "a bee" in str(messages)
            return replace(reply, finish="length" if truncated else "stop")

    with monkeypatch.context() as patch:
        policy = Policy(respond=respond)
        patch.setattr("agentsys.systems.load_model", lambda *spec, **settings: policy)
        patch.setattr("agentsys.collect.fingerprint.load_model", lambda *spec, **settings: policy)
        context = longdpo_search.SearchContext(width=2, depth=1, eta=1.0, weights="stated")
        collect(longdpo_search.graph, REQUESTS[:3], tmp_path / "longdpo", context=context)
    code, _, _ = evaluate("--responses", tmp_path / "longdpo", "--out", tmp_path / "out", "--limit", 4)
    result = read_report(tmp_path / "out")["systems"]["longdpo"]
    assert (result["truncated"], result["truncated_known"], result["failed"], code) == (1, 2, 2, 3)
    by_id = scores(tmp_path / "out")
    assert by_id["bee"]["longdpo"]["truncated"] is True and by_id["tea"]["longdpo"]["truncated"] is False
    assert by_id["tea"]["longdpo"]["words"] == 4
    assert "nothing was written: no candidate" in by_id["ship"]["longdpo"]["error"]
    assert by_id["war"]["longdpo"]["error"] == f"no response in {tmp_path / 'longdpo'}"
