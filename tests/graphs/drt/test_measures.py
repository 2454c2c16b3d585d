"""graphs/drt/measures.py: what is counted in a thought, and the test of a run's means against the released data."""

from __future__ import annotations

import gzip
import json
import random
from pathlib import Path

import orjson
import pytest

from agentsys.graphs.drt.measures import (
    LABELS,
    RELEASED,
    YES_NO,
    ThoughtShape,
    compare_shape,
    count_thoughts,
    edit_distance,
    find_drafts,
    main_script,
    measure_thought,
    released_range,
    released_shape,
)
from agentsys.records import InputError
from tests.support.drt_report import DRAFTS, TEXT, thought_of
from tests.support.toys import write_lines


def slow_distance(first: str, second: str) -> int:
    """Levenshtein's distance by its definition."""
    row = [*range(len(second) + 1)]
    for i, a in enumerate(first, 1):
        previous, row = row, [i]
        for j, b in enumerate(second, 1):
            row.append(min(previous[j] + 1, row[-1] + 1, previous[j - 1] + (a != b)))
    return row[-1]


@pytest.mark.parametrize(
    ("first", "second", "distance"),
    [("", "", 0), ("abc", "", 3), ("", "ab", 2), ("kitten", "sitting", 3), ("雾来了", "夜雾来了", 1), ("ab", "ba", 2)],
)
def test_edit_distance(first: str, second: str, distance: int) -> None:
    assert edit_distance(first, second) == distance


def test_edit_distance_is_levenshteins() -> None:
    rng = random.Random(7)
    for _ in range(400):
        first, second = ("".join(rng.choices("abc雾", k=rng.randrange(90))) for _ in range(2))
        assert edit_distance(first, second) == slow_distance(first, second), (first, second)


def test_a_thought_is_counted() -> None:
    thought = thought_of(DRAFTS[:3])
    assert measure_thought(TEXT, DRAFTS[2], thought) == {
        "characters": len(thought),
        "words": 36,
        "target_letters": 40,
        "target_share": pytest.approx(100 * 40 / len(thought)),
        "paragraphs": 4,
        "drafts": 3,
        "draft_mentions": 4,
        "draft_share": pytest.approx(100 * sum(len(d) - 1 for d in (*DRAFTS[:3], DRAFTS[2])) / len(thought)),
        "assessments": 4,
        "source_terms": 2,
        "opening": True,
        "filler": False,
        "key_words": True,
        "has_answer": True,
        "ends_in_answer": True,
    }


@pytest.mark.parametrize(
    ("thought", "name", "value"),
    [
        ("I begin by reading.", "opening", True),
        ("As I begin the translation, I look.", "opening", True),
        ("Let me see what it says.", "opening", False),
        ("Hmm, that is odd.", "filler", True),
        ("It is odd. Wait, no.", "filler", True),
        ("I wait for the words and let them come.", "filler", False),
        ("The keywords are clear.", "key_words", True),
        ("The key to it is a word.", "key_words", False),
        ("It could be more natural and is not accurate.", "assessments", 0),
        ("It is accurate, reads naturally, and its fluency is excellent.", "assessments", 4),
        ("The words 'fog', \"a cat,\" and 'fog' matter, and 'dog'.", "source_terms", 2),
        ("Nothing here.\n\nThe words 'fog' and 'cat' matter.", "source_terms", 0),
        ("In 'like a cat's paw' the cat is small.", "source_terms", 0),
        ("One.\n\n  \nTwo.\nThree.", "paragraphs", 3),
        ("I choose 夜雾悄悄进来，像一只猫", "has_answer", True),  # without its full stop
        ("I choose 夜雾进来", "has_answer", False),
    ],
)
def test_rules(thought: str, name: str, value: float) -> None:
    assert measure_thought(TEXT, DRAFTS[2], thought)[name] == value


@pytest.mark.parametrize(
    ("written", "trans", "drafts"),
    [
        ("The words are '雾', '猫', '进来了', '悄悄地'. I write: 雾像猫一样来。", "雾像猫一样地来。", ["雾像猫一样来"]),
        ("It is “你来了，”他说，“雾也来了。” I keep it.", "“你来了，”他说，“雾来了。”", ["你来了，”他说，“雾也来了"]),
        ("It is 他对John说雾来了。 I keep it.", "他对约翰说雾来了。", ["他对John说雾来了"]),
        ("Only '像猫' is weak.", "雾像猫一样进来了。", []),
        ("It is Туман вошёл, как кошка. I keep it.", "Туман вошел как кошка.", ["Туман вошёл, как кошка"]),
        ("It is 霧が猫のように来た。 I keep it.", "霧がネコのように来た。", ["霧が猫のように来た"]),
        ("I write nothing.", "...", []),
    ],
)
def test_drafts_are_found_by_their_script(written: str, trans: str, drafts: list[str]) -> None:
    thought = f"I start by reading the sentence twice, and then I look at its words one by one. {written}"
    assert find_drafts(thought, trans) == drafts


def test_drafts_in_the_script_of_the_thought() -> None:
    """By quotation marks and colons, or by the drafts that a run has."""
    trans = "Fog came like a cat, softly."
    first, second = "The fog came like a cat.", "Fog came in, softly, like a cat"
    thought = f'I pick "fog". I write: {first}\nThen I write "{second}" and keep {trans}'
    assert find_drafts(thought, trans) == [first, second]
    assert find_drafts(thought, trans, [first, second]) == [first, second, trans]
    measures = measure_thought("夜雾如猫。", trans, thought, [first, second])
    assert (measures["target_letters"], measures["target_share"]) == (None, None)
    assert (measures["drafts"], measures["draft_mentions"], measures["ends_in_answer"]) == (3, 3, True)
    assert measures["words"] == 10  # without those of the drafts


def test_a_thought_in_another_script_than_latin() -> None:
    """The lists of English words do not apply to it."""
    thought = "我首先看一看句子里的关键词：'fog'、'cat'，然后写出第一稿：Туман вошёл."
    measures = measure_thought(TEXT, "Туман вошёл.", thought)
    assert [measures[name] for name in ("opening", "filler", "key_words", "assessments")] == [None] * 4
    assert (measures["target_letters"], measures["drafts"]) == (10, 1)


@pytest.mark.parametrize(
    ("text", "script"), [("Ab", "Latin"), ("雾とネコ", "CJK"), ("a雾来了", "CJK"), ("12!", ""), ("가나", "Hangul")]
)
def test_the_main_script(text: str, script: str) -> None:
    assert main_script(text) == script


def test_the_summary_has_mean_and_percentiles() -> None:
    shape = ThoughtShape()
    for size in range(1, 102):
        shape.add(TEXT, DRAFTS[0], "x" * size)
    summary = shape.summary()
    assert summary["characters"] == {
        "mean": 51, "p1": 2, "p5": 6, "p25": 26, "p50": 51, "p75": 76, "p95": 96, "p99": 100
    }  # fmt: skip
    assert summary["opening"] == {"mean": 0}


def test_the_released_numbers_are_whole() -> None:
    released = orjson.loads(RELEASED.read_bytes())
    assert (released["n"], len(released["commit"])) == (800, 40)
    assert "not shipped" in released["source"]
    assert set(released["measures"]) == {*LABELS, *YES_NO}
    for name in LABELS:
        numbers = [released["measures"][name][f"p{p}"] for p in (1, 5, 25, 50, 75, 95, 99)]
        assert numbers == sorted(numbers) and numbers[0] <= released["measures"][name]["mean"] <= numbers[-1]
    assert 1730 < released["measures"]["characters"]["mean"] < 1736
    assert released["measures"]["filler"] == {"mean": 0.0}


def test_a_mean_is_compared_with_the_released_range() -> None:
    released = released_shape()["measures"]
    assert released_range("characters", released) == (1286.75, 2333.1)
    assert released_range("filler", released) == (0.0, 0.1)
    means = {"characters": 1286.75, "words": 400.0, "filler": 0.1, "opening": 0.89}
    verdicts = compare_shape({name: {"mean": mean} for name, mean in means.items()})
    assert verdicts == {"characters": True, "words": False, "filler": True, "opening": False}


RECORD = {"text": TEXT, "trans": DRAFTS[2], "thought": thought_of(DRAFTS[:3])}


def test_a_file_of_thoughts_is_counted(tmp_path: Path) -> None:
    plain = write_lines(tmp_path / "a.jsonl", [RECORD, RECORD])
    packed = tmp_path / "b.jsonl.gz"
    packed.write_bytes(gzip.compress(plain.read_bytes()))
    for path in (plain, packed):
        shape = count_thoughts(path)
        assert (shape.count, shape.summary()["drafts"]["mean"]) == (2, 3)


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        ([], "no records there"),
        ([{"text": TEXT, "trans": "译"}], "thought"),
        ([RECORD, "no object"], "a.jsonl:2"),
    ],
)
def test_an_unusable_file_is_one_line(lines: list[object], message: str, tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    with pytest.raises(InputError, match=message):
        count_thoughts(path)
