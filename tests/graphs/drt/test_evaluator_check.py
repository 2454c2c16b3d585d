"""The evaluator check: three methods on pairs with a known order, with a scripted evaluator."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from agentsys.evaluation.sample import SampleOptions
from agentsys.graphs.drt.evaluator_measures import Pair, read_pairs, wilson
from agentsys.graphs.drt_evaluator import EXAMPLES, main
from agentsys.text.chinese import has_chinese
from tests.support.drt_judge import Judge
from tests.support.evaluations import COLLECT, ENDINGS, breaking, read_lines, read_report, run_command
from tests.support.shards import shard_lines
from tests.support.toys import write_lines

pytestmark = pytest.mark.usefixtures("isolated_cache")

PAIRS: list[dict[str, Any]] = [
    {"id": "a", "text": "One.", "better": "A1", "worse": "A2", "group": "clear"},
    {"id": "b", "text": "Two.", "better": "B1", "worse": "B2", "group": "subtle"},
    {"id": "c", "text": "三。", "better": "C1", "worse": "C2", "source_language": "zh", "target_language": "en"},
    {"id": "d", "text": "四。", "better": "D1", "worse": "D2", "source_language": "zh", "target_language": "en"},
]
MODEL = f"langchain:{Judge.__module__}:Judge"


@pytest.fixture
def check(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Any:
    """The command on these pairs."""

    def run(*options: object, pairs: Sequence[dict[str, Any]] = PAIRS) -> tuple[int, str, str]:
        file = write_lines(tmp_path / "pairs.jsonl", pairs)
        return run_command(main, capsys, "--pairs", file, "--out", tmp_path / "out", "--model", MODEL, *options)

    return run


def test_the_numbers(check: Any, tmp_path: Path) -> None:
    """Stated: right, equal, wrong, right. Expected: right, right, wrong, right. Pairwise: right, half, half, wrong."""
    code, shown, _ = check()
    assert code == 0
    report = read_report(tmp_path / "out")
    credits = [line["credits"] for line in read_lines(tmp_path / "out" / "pairs.jsonl")]
    assert [line["stated"] for line in credits] == [1, 0.5, 0, 1]
    assert [line["expected"] for line in credits] == [1, 1, 0, 1]
    assert [line["pairwise"] for line in credits] == [1, 0.5, 0.5, 0]
    methods = report["methods"]
    assert {name: method["value"] for name, method in methods.items()} == {
        "stated": 62.5,
        "expected": 75,
        "pairwise": 50,
    }
    assert [methods["pairwise"][count] for count in ("right", "undecided", "wrong", "unusable")] == [1, 2, 1, 0]
    lines = read_lines(tmp_path / "out" / "pairs.jsonl")
    assert lines[0]["expected"] == [80, 50] and lines[2]["expected"] == [60, 65]
    differences = {(one["method"], one["baseline"]): one["value"] for one in report["differences"]}
    assert differences == {("expected", "stated"): 12.5, ("pairwise", "stated"): -12.5, ("pairwise", "expected"): -25}
    assert report["groups"]["English to Chinese"] == {"n": 2, "stated": 75, "expected": 100, "pairwise": 75}
    assert report["groups"]["Chinese to English"] == {"n": 2, "stated": 50, "expected": 50, "pairwise": 25}
    assert list(report["groups"]) == ["English to Chinese", "Chinese to English", "clear", "subtle"]
    assert methods["stated"]["cost"] == {**methods["pairwise"]["cost"], **methods["stated"]["cost"], "calls": 2}
    assert methods["stated"]["cost"]["seconds"] == 1.0
    assert report["without_expected"] == 0 and "no expected score" not in shown
    assert "expected minus stated: +12.5 points" in shown


def test_it_asks_as_drt_does_without_a_comment(check: Any, tmp_path: Path) -> None:
    check()
    traces = {trace["id"]: trace for trace in map(json.loads, shard_lines(tmp_path / "out" / "evaluator"))}
    calls = {call["key"]: call["messages"] for call in traces["c"]["calls"]}
    assert set(calls) == {"evaluate/better", "evaluate/worse", "compare/0", "compare/1"}
    assert "from Chinese into English" in calls["evaluate/better"][0]["content"]
    assert "Comment" not in calls["evaluate/better"][1]["content"]
    first, second = (calls[f"compare/{order}"][1]["content"] for order in (0, 1))
    assert first.index("C1") < first.index("C2") and second.index("C2") < second.index("C1")


def test_a_rerun_makes_no_call_and_has_the_same_numbers(check: Any, tmp_path: Path) -> None:
    check("--limit", 2)
    check()
    before = read_report(tmp_path / "out")
    traces = shard_lines(tmp_path / "out" / "evaluator")
    check()
    assert shard_lines(tmp_path / "out" / "evaluator") == traces
    assert read_report(tmp_path / "out") == before


def test_a_method_without_a_usable_reply_is_wrong(check: Any, tmp_path: Path) -> None:
    code, shown, _ = check(pairs=[*PAIRS, {"id": "e", "text": "Five?", "better": "A1", "worse": "A2"}])
    assert code == 3
    methods = read_report(tmp_path / "out")["methods"]
    assert [method["unusable"] for method in methods.values()] == [1, 1, 1]
    assert methods["expected"]["value"] == pytest.approx(60)
    assert "no usable reply for 1 of 5 pairs" in shown and "not the JSON" in shown


def test_without_log_probabilities_the_stated_score_counts(check: Any, tmp_path: Path) -> None:
    rules = [
        {"role": "evaluator", "key": "evaluate/better", "replies": ['{"reason": "so", "score": 80}']},
        {"role": "evaluator", "replies": ['{"reason": "so", "score": 70}']},
        {"role": "comparer", "replies": ['{"reason": "so", "better": "first"}']},
    ]
    code, shown, _ = check("--model", f"scripted:{write_lines(tmp_path / 'rules.jsonl', rules)}")
    assert code == 0
    report = read_report(tmp_path / "out")
    assert [report["methods"][name]["value"] for name in ("stated", "expected", "pairwise")] == [100, 100, 50]
    assert "8 of 8 scores have no expected score" in shown
    assert report["methods"]["stated"]["cost"]["seconds"] is None


@pytest.mark.parametrize(
    ("pair", "reason"),
    [
        ({"id": "x", "text": "X.", "better": "A1"}, "worse"),
        ({"id": "x", "text": "X.", "better": "A1", "worse": " A1"}, "the same text"),
        ({"id": "x", "text": "X.", "better": "A1", "worse": "A2", "source_language": "xq"}, "not a language code"),
    ],
)
def test_a_pair_that_cannot_be_used(check: Any, pair: dict[str, Any], reason: str) -> None:
    code, shown, _ = check(pairs=[*PAIRS, pair])
    assert code == 3
    assert reason in shown


@ENDINGS
def test_how_it_ends(error: BaseException, code: int, words: str, check: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(COLLECT, breaking(error))
    ended, _, said = check()
    assert ended == code
    assert words in said


def test_other_pairs_in_the_same_folder_are_refused(check: Any) -> None:
    check()
    code, _, said = check(pairs=[{**PAIRS[0], "worse": "B2"}])
    assert code == 2
    assert "pair a differs" in said and "another --out" in said


def test_wilson() -> None:
    """Values of Wilson's formula for 40 of 40 and for 8 of 10 (Newcombe 1998 prints 49.0 to 94.3 for the latter)."""
    assert wilson(1.0, 40).low == pytest.approx(91.24, abs=0.01) and wilson(1.0, 40).high == pytest.approx(100)
    assert (wilson(0.8, 10).low, wilson(0.8, 10).high) == (pytest.approx(49.0, abs=0.1), pytest.approx(94.3, abs=0.1))


def shipped() -> list[Pair]:
    languages = {"source_language": "", "target_language": ""}
    pairs = [*read_pairs(EXAMPLES, SampleOptions(), languages)]
    assert all(isinstance(pair, Pair) for pair in pairs)
    return [pair for pair in pairs if isinstance(pair, Pair)]


def test_the_shipped_pairs() -> None:
    """40 pairs: two directions, half of each subtle; what is longer is not the better one by rule."""
    pairs = shipped()
    assert Counter((pair.direction, pair.group) for pair in pairs) == {
        (direction, group): 10
        for direction in ("English to Chinese", "Chinese to English")
        for group in ("clear", "subtle")
    }
    assert len({pair.text for pair in pairs}) == 40
    for pair in pairs:
        assert has_chinese(pair.text) == (pair.source_language == "Chinese")
        assert has_chinese(pair.better) == (pair.target_language == "Chinese")
        assert pair.note
    raw = [json.loads(line) for line in EXAMPLES.read_text(encoding="utf-8").splitlines()]
    assert {line["fault"] for line in raw} == {
        "grammar", "literalism", "omission", "untranslated word", "wrong sense",
    }  # fmt: skip
    longer = sum(len(pair.better) > len(pair.worse) for pair in pairs)
    assert 12 <= longer <= 28
