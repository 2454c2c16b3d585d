"""graphs/translate/systems.py: what goes through a graph at once, and judgements that fail."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from agentsys.collect import RunOptions
from agentsys.graphs.translate.rows import Pair, TranslatedPair, missing_of
from agentsys.graphs.translate.system import Context
from agentsys.graphs.translate.systems import SYSTEMS, judge_translations, units_of
from tests.support.translations import MODEL

pytestmark = pytest.mark.usefixtures("isolated_cache")


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


def test_a_translation_whose_judgement_failed_is_kept_without_scores(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def broken(*_: Any) -> None:
        raise ValueError("no judge for this")

    monkeypatch.setattr("agentsys.graphs.translate.system.Translate._score", broken)
    rows = [TranslatedPair(Pair("a1", "", 1, "The flu spreads.", ("流感在传播。",)), translation="流感。")]
    judge_translations(rows, tmp_path / "judged", Context(model=MODEL), RunOptions(no_cache=True))
    assert rows[0].translation == "流感。" and not rows[0].scores
    report = missing_of(rows)
    assert report["missing"] == [] and report["unscored"][0]["reasons"].keys() == {"GRF", "GRB", "GEA"}
    assert "no judge for this" in report["unscored"][0]["reasons"]["GEA"]
