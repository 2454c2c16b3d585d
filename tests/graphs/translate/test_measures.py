"""graphs/translate/measures.py: scripts, the paired test against a baseline, and the sentences that are compared."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest

from agentsys.graphs.translate.measures import measure
from agentsys.graphs.translate.rows import Pair, TranslatedPair


def rows(texts: Sequence[str], *, document: str = "", **fields: Any) -> list[TranslatedPair]:
    return [
        TranslatedPair(Pair(str(i), "", i, "x", ("黃豆芽是亞洲美食",), document, **fields), translation=text)
        for i, text in enumerate(texts)
    ]


def test_one_script() -> None:
    systems = {"traditional": rows(["黃豆芽是亞洲美食"]), "simplified": rows(["黄豆芽是亚洲美食"])}
    apart = measure(systems, "Chinese", ["BLEU", "chrF"])
    assert apart["traditional"]["chrF"]["value"] == pytest.approx(100) and apart["simplified"]["chrF"]["value"] < 30
    same = measure(systems, "Chinese", ["BLEU", "chrF"], one_script=True)
    assert same["simplified"] == same["traditional"] and same["simplified"]["BLEU"]["value"] == pytest.approx(100)


def test_a_significant_difference() -> None:
    better = rows(["黃豆芽是亞洲美食"] * 12 + ["黃豆"] * 8)
    worse = rows(["黃豆芽是亞洲的"] * 20)
    scores = measure({"base": worse, "better": better}, "Chinese", ["BLEU", "chrF"], baseline="base")
    difference = scores["better"]["chrF"]["difference"]
    assert difference["value"] == pytest.approx(scores["better"]["chrF"]["value"] - scores["base"]["chrF"]["value"])
    reverse = measure({"base": worse, "better": better}, "Chinese", ["chrF"], baseline="better")
    assert reverse["base"]["chrF"]["difference"]["p"] == difference["p"]
    assert reverse["base"]["chrF"]["difference"]["value"] == -difference["value"]
    clear = measure({"base": worse, "better": rows(["黃豆芽是亞洲美食"] * 20)}, "Chinese", ["chrF"], baseline="base")
    assert clear["better"]["chrF"]["difference"]["p"] < 0.01


def test_judge_scores_are_compared_where_all_have_them() -> None:
    ours, theirs = rows(["一"] * 3), rows(["一"] * 3)
    for i, (one, other) in enumerate(zip(ours, theirs, strict=True)):
        one.scores["GRF"] = 10.0 * i
        if i:
            other.scores["GRF"] = 50.0
    scores = measure({"ours": ours, "theirs": theirs}, "Chinese", ["GRF", "GRB"], baseline="theirs")
    assert scores["ours"]["GRF"]["value"] == 15 and scores["ours"]["GRF"]["n"] == 2, "the first has no rival"
    assert scores["ours"]["GRF"]["difference"]["value"] == -35 and "GRB" not in scores["ours"]
