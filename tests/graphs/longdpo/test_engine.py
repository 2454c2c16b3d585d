"""LongDPO on the embedded engine: every step continues the very tokens of the steps before it."""

from __future__ import annotations

import json
from pathlib import Path

from agentsys.collect import RunOptions, acollect
from agentsys.graphs.longdpo.judge import PRINCIPLES
from agentsys.graphs.longdpo.search import SearchContext, graph
from agentsys.traces import read_traces
from tests.support.longdpo_script import weights_of
from tests.support.toys import write_lines


async def test_steps_share_the_exact_token_prefix(tmp_path: Path) -> None:
    judgments = [json.dumps({"analysis": ""} | {name: weights_of(s) for name in PRINCIPLES}) for s in (3, 4)]
    judge = write_lines(tmp_path / "judge.jsonl", [{"role": "judge", "replies": judgments}])
    context = SearchContext(
        model="embedded:qwen2.5-coder-0.5b",
        judge_model=f"scripted:{judge}",
        width=2,
        depth=3,
        step_tokens=9,
        eta=1.0,
        weights="stated",
    )
    record = {"id": "letter", "prompt": "Write a long letter about a lighthouse. Do not stop.", "length": 900}
    await acollect(graph, [record], tmp_path / "run", context=context, options=RunOptions(no_cache=True))
    (trace,) = read_traces(tmp_path / "run")
    assert trace.result is not None, trace.reason
    calls = {call.key: call for call in trace.calls}
    prefix_ids = None
    for layer in trace.result["layers"]:
        sent = [calls[step["key"]].prompt_ids for step in layer["candidates"]]
        assert sent[0] and all(ids == sent[0] for ids in sent)
        if prefix_ids is not None:
            assert sent[0] == prefix_ids, "the prefix of the layer before and its chosen step, token for token"
        chosen = layer["candidates"][layer["chosen"]]
        call = calls[chosen["key"]]
        assert call.ids is not None and chosen["ids"] == call.ids[: len(call.ids) - call.stop_ids]
        prefix_ids = sent[0] + chosen["ids"]
    assert len(trace.result["layers"]) >= 2
    assert all(target.kind == "step" for target in trace.targets) and trace.targets
