"""The paper's profile with a strong model, scripted: its thoughts have the shape of the released ones."""

from __future__ import annotations

from pathlib import Path

from agentsys.collect import RunOptions, collect
from agentsys.collect.run_report import make_report
from agentsys.graphs.drt.measures import LABELS, YES_NO
from agentsys.graphs.drt.system import Context, graph
from tests.support.paths import ROOT


def test_each_mean_lies_in_the_released_range(tmp_path: Path) -> None:
    context = Context(
        "langchain:tests.support.strong_teacher:StrongTeacher",
        profile="paper",
        source_language="English",
        target_language="Chinese",
    )
    sentences = ROOT / "graphs" / "examples" / "similes.jsonl"
    summary = collect(graph, sentences, tmp_path / "run", context=context, options=RunOptions(no_cache=True, limit=8))
    assert (summary.kept, summary.dropped, summary.failed) == (8, 0, 0)
    thoughts = make_report(tmp_path / "run").data["drt"]["thoughts"]
    assert {name: numbers["mean"] for name, numbers in thoughts["measures"].items() if not numbers["in_range"]} == {}
    assert set(thoughts["measures"]) == {*LABELS, *YES_NO}
    assert thoughts["measures"]["drafts"]["mean"] == 3
