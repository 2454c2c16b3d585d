"""The table after a LongDPO run, eta from an earlier run, and the command's profile."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest

from agentsys.collect import RunOptions, acollect
from agentsys.commands import command, run_app
from agentsys.graphs import longdpo_collect
from agentsys.graphs.longdpo.report import eta_of_run, summarize, value_before_rewriting
from agentsys.graphs.longdpo.search import PAPER, SearchContext, graph
from agentsys.graphs.longdpo_collect import EtaOptions
from agentsys.models.scripted import ScriptedChatModel
from agentsys.records import InputError
from agentsys.traces import read_traces
from tests.support.longdpo_script import MEMORY, STORY, Script
from tests.support.toys import one_error

Start = Callable[..., ScriptedChatModel]
CONTEXT = SearchContext(width=2, depth=2, eta=1.0, weights="stated")
STEPS = {"root/0": "one", "root/1": "two", "root:0/0": "three", "root:0/1": "four"}
VALUES = {"one": 4.0, "two": 3.0, "three": 4.5, "four": 2.0}


async def run_once(start: Start, out: Path, context: SearchContext, script: Script) -> None:
    start(script)
    record = {"id": "r", "prompt": "Write a long letter.", "length": 300}
    await acollect(graph, [record], out, context=context, options=RunOptions(no_cache=True))


async def test_parts_that_were_not_at_work_are_named(start: Start, tmp_path: Path) -> None:
    await run_once(start, tmp_path, CONTEXT, Script(STEPS, VALUES))
    rows = dict(summarize(read_traces(tmp_path), CONTEXT))
    assert rows["pairs"] == "2 from 1 requests"
    assert rows["mean value of the chosen steps, 1-5"] == "4.25"
    assert rows["critique"] == (
        "0 of 2 steps were at most eta 1.00, 0 rewritten (lowest 4.00: take eta from this run with --eta-run)"
    )
    assert (rows["memory"], rows["simulations"]) == ("off (--embedding)", "off (--simulations)")


async def test_the_work_of_memory_critique_and_search_is_counted(start: Start, tmp_path: Path) -> None:
    rewritten = "Anna the keeper dreams by the red lamp."
    texts = {f"root/{i}": STORY[f"0/{i}"] for i in range(3)} | {f"root:0/{i}": STORY[f"1/{i}"] for i in range(3)}
    values = {**MEMORY["judgments"], STORY["1/1"]: 2.0, "dull": [1, 3, 1, 1, 1, 1, 1], rewritten: 4.0}
    script = Script({**texts, "root:0/1/rewrite": rewritten}, **{**MEMORY, "judgments": values})
    context = replace(CONTEXT, width=3, eta=2.5, embedding="words", simulations=3, alpha=0.0, parallel=1)
    await run_once(start, tmp_path, context, script)
    (trace,) = read_traces(tmp_path)
    rows = dict(summarize([trace], context))
    assert rows["critique"] == "1 of 2 steps were at most eta 2.50, 1 rewritten"
    assert rows["memory"] == "1 facts, 4 checks of a chunk, 1 candidates excluded"
    assert rows["simulations"] == "1.0 of 3 per layer wrote new steps"
    assert trace.result is not None
    assert [value_before_rewriting(layer) for layer in trace.result["layers"]] == pytest.approx([5.0, 2.0])
    assert eta_of_run(tmp_path, 0.5) == (pytest.approx(2.0), 2)
    assert eta_of_run(tmp_path, 0.51) == (pytest.approx(5.0), 2)


async def test_a_saturated_search_is_said(start: Start, tmp_path: Path) -> None:
    texts = STEPS | {"root:1/0": "five", "root:1/1": "six"}
    context = replace(CONTEXT, simulations=9)
    await run_once(start, tmp_path, context, Script(texts, VALUES | {"five": 2.5, "six": 2.5}))
    assert dict(summarize(read_traces(tmp_path), context))["simulations"] == (
        "2.0 of 9 per layer wrote new steps; 1 of 1 layers saturated: raise --lookahead or lower --simulations"
    )


async def test_eta_is_a_quantile_of_an_earlier_run(
    start: Start, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    await run_once(start, tmp_path / "pilot", CONTEXT, Script(STEPS, VALUES))
    assert EtaOptions(tmp_path / "pilot", 0.9).apply(CONTEXT).eta == pytest.approx(4.5)
    assert "eta: 4.500, the 0.9 quantile of 2 chosen steps" in capsys.readouterr().out
    assert EtaOptions().apply(CONTEXT) == CONTEXT
    with pytest.raises(InputError, match="--eta-quantile 1: give a share above 0 and below 1"):
        EtaOptions(tmp_path / "pilot", 1.0).apply(CONTEXT)
    with pytest.raises(InputError, match="nowhere: no traces there"):
        EtaOptions(tmp_path / "nowhere").apply(CONTEXT)


async def test_a_run_without_chosen_steps_gives_no_eta(start: Start, tmp_path: Path) -> None:
    await run_once(start, tmp_path, CONTEXT, Script(STEPS, dict.fromkeys(VALUES, 0)))
    with pytest.raises(InputError, match="its records have no chosen steps; name a run of `collect longdpo`"):
        eta_of_run(tmp_path, 0.5)


def test_profile_paper_turns_all_parts_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    contexts: list[SearchContext] = []

    async def no_check(spec: str) -> None: ...

    def run_with_view(graph: Any, source: Any, run: Any, context: SearchContext, out: Path) -> Any:
        contexts.append(context)
        raise InputError("enough")

    monkeypatch.setattr(longdpo_collect, "check_embedder", no_check)
    monkeypatch.setattr(longdpo_collect, "run_with_view", run_with_view)
    requests = tmp_path / "requests.jsonl"
    requests.write_text('{"prompt": "Write."}\n')
    app = command(longdpo_collect.main, profiles={"paper": PAPER})
    assert run_app(app, ["--input", str(requests), "--profile", "paper", "--embedding", "mine"]) == 2
    assert "enough" in one_error(capsys.readouterr().err)
    assert asdict(contexts[0]) == asdict(SearchContext(**{**PAPER, "embedding": "mine"}))
    assert (contexts[0].weights, contexts[0].nearest, contexts[0].simulations) == ("stated", 0, 16)
