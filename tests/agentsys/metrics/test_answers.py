"""Short answers: SQuAD's normalization, exact match with aliases, the lenient match, token F1, the paper's reward."""

from __future__ import annotations

import re
import string
from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agentsys.graphs.deeprag.narrative import reward
from agentsys.metrics.answers import Match, contains_match, exact_match, is_correct, normalize_answer, token_f1


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("  The  Magic\tFlute. ", "magic flute"),
        ("a banana and an apple", "banana and apple"),
        ("theatre, another", "theatre another"),
        ("O'Brien-Smith", "obriensmith"),
        ("1,819", "1819"),
        ("the-man", "theman"),  # punctuation is removed first, as in the script, so "the" is not a word any more
        ("Élan «vital»", "élan vital"),
        ("The", ""),
    ],
)
def test_normalization_equals_squads(text: str, expected: str) -> None:
    assert normalize_answer(text) == expected


def squad_script(text: str) -> str:
    """SQuAD's evaluation script, normalize_answer: what this project computed for every text."""
    text = "".join(char for char in text.lower() if char not in set(string.punctuation))
    return " ".join(re.sub(r"\b(a|an|the)\b", " ", text).split())


ascii_texts = st.text(st.sampled_from(string.printable + "aaattthhheeenn    "), max_size=40)


@settings(max_examples=2000)
@given(ascii_texts)
def test_ascii_is_normalized_as_by_squads_script(text: str) -> None:
    assert normalize_answer(text) == squad_script(text)


@settings(max_examples=500)
@given(ascii_texts, st.lists(ascii_texts, max_size=3))
def test_ascii_scores_are_those_of_the_script(answer: str, right: list[str]) -> None:
    assert exact_match(answer, right) == (squad_script(answer) in map(squad_script, right))
    counts = [(Counter(squad_script(answer).split()), Counter(squad_script(gold).split())) for gold in right]
    if not {squad_script(text) for text in (answer, *right)} & {"yes", "no", "noanswer"}:
        f1s = [2 * (a & b).total() / max((a + b).total(), 1) for a, b in counts]
        assert token_f1(answer, right) == pytest.approx(max(f1s, default=0.0))


@given(st.text())
def test_no_article_and_no_double_space_is_left(text: str) -> None:
    answer = normalize_answer(text)
    assert answer == " ".join(answer.split())
    assert not set(answer.split()) & {"an", "the"} or not text.isascii()


@pytest.mark.parametrize(
    ("answer", "gold", "same"),
    [
        ("上海。", "上海", True),
        ("「大阪」", "大阪", True),
        ("“Lima”", "Lima", True),
        ("‘Lima’—", "lima", True),
        ("Lima…", "Lima", True),
        ("¿Lima?", "lima", True),
        ("ليما؟", "ليما", True),
        ("दिल्ली।", "दिल्ली", True),
        ("Que\u0301bec", "Québec", True),
        ("ＬＩＭＡ", "lima", True),
        ("１９６９", "1969", True),
        ("١٩٦٩", "1969", True),
        ("१९६९", "1969", True),
        ("1969 年", "1969年", True),
        ("iPhone 手机", "iPhone手机", True),
        ("ｶﾞｿﾘﾝ", "ガソリン", True),
        ("한국", "\u1112\u1161\u11ab\u1100\u116e\u11a8", True),
        ("Straße", "STRASSE", True),
        ("Νίκος", "ΝΊΚΟΣ", True),
        ("Rock ’n’ Roll", "rock 'n' roll", True),
        ("Oʻahu", "O'ahu", True),
        ("a\u200bb\ufeff", "ab", True),
        ("−40", "-40", True),
        ("1⁄2", "1/2", True),
        ("€5", "5", True),
        ("The Élysée", "Élysée", True),
        ("列夫·托尔斯泰", "列夫托尔斯泰", True),
        ("ทุก ๆ วัน", "ทุกๆวัน", True),
        ("བོད་ཡིག", "བོད་ཡིག།", True),
        # What must stay different.
        ("维生素 A", "维生素", False),
        ("维生素 A", "维生素 B", False),
        ("resume", "résumé", False),
        ("漢", "汉", False),
        ("C♯", "C", False),
        ("。", "A", False),
        ("？", "！", False),
        ("１９６９", "1968", False),
        ("Ⅳ", "V", False),
    ],
)
def test_exact_match_beyond_ascii(answer: str, gold: str, same: bool) -> None:
    assert exact_match(answer, [gold]) is exact_match(gold, [answer]) is same


@pytest.mark.parametrize(
    ("text", "language", "expected"),
    [
        ("a la mesa", "", "la mesa"),
        ("a la mesa", "Spanish", "a la mesa"),
        ("An der Elbe", "de", "an der elbe"),
        ("the sea", "en-GB", "sea"),
        ("the sea", "English", "sea"),
        ("选项 A", "", "选项a"),
        ("the 大阪", "", "the大阪"),
    ],
)
def test_articles_are_english(text: str, language: str, expected: str) -> None:
    assert normalize_answer(text, language) == expected


@pytest.mark.parametrize(
    ("answer", "gold", "f1"),
    [
        ("上海大学", "上海师范大学", 0.8),  # characters: 4 of 4 and 4 of 6
        ("上海", "上海", 1.0),
        ("広島", "長崎", 0.0),
        ("ไปบ้าน", "ไปบ้าน", 1.0),
        ("บ้าน", "ไปบ้าน", 0.75),  # บ้ า น of ไ ป บ้ า น: a vowel or tone mark belongs to its consonant
        ("Lenovo公司", "lenovo", 0.5),  # a Latin word in a Chinese text is one token
        ("서울에", "서울", 0.0),  # Korean is split at spaces
        ("서울 시청", "서울 시청 앞", 0.8),
        ("नई दिल्ली", "दिल्ली", 2 / 3),
        ("the Élysée Palace", "Élysée", 2 / 3),
    ],
)
def test_f1_beyond_ascii(answer: str, gold: str, f1: float) -> None:
    assert token_f1(answer, [gold]) == pytest.approx(f1)


def test_the_lenient_match_beyond_ascii() -> None:
    assert contains_match("答案是「上海」。", ["上海"]) and not contains_match("。", ["上海"])


@pytest.mark.parametrize(
    ("answer", "right", "exact", "contains"),
    [
        ("The Magic Flute!", ["magic flute"], True, True),
        ("Die Zauberflöte", ["The Magic Flute", "die zauberflöte"], True, True),  # an alias
        ("Wolfgang Amadeus Mozart", ["Mozart"], False, True),
        ("Mozart", ["Wolfgang Amadeus Mozart"], False, True),
        ("Salieri", ["Mozart", "W. A. Mozart"], False, False),
        ("", ["Mozart"], False, False),
        ("the", ["Mozart"], False, False),  # empty after normalization, so it matches nothing
        ("Mozart", ["!"], False, False),
        ("Mozart", [], False, False),
        ("no", ["north"], False, True),  # why the lenient match is a separate function
    ],
)
def test_exact_and_lenient(answer: str, right: list[str], exact: bool, contains: bool) -> None:
    assert exact_match(answer, right) is exact
    assert contains_match(answer, right) is contains
    assert is_correct(answer, right) is is_correct(answer, right, "exact") is exact, "exact unless asked otherwise"
    assert is_correct(answer, right, "contains") is contains


@pytest.mark.parametrize(
    ("answer", "right", "expected"),
    [
        ("Mozart", ["Mozart"], 1.0),
        ("Amadeus Mozart", ["Wolfgang Amadeus Mozart"], 0.8),
        ("Amadeus Mozart", ["nobody", "Wolfgang Amadeus Mozart"], 0.8),  # the best of the golds
        ("la la land", ["la land"], 0.8),  # a repeated token counts as often as both have it
        ("Salieri", ["Mozart"], 0.0),
        ("yes", ["yes it is"], 0.0),  # yes and no have no partial credit
        ("yes it is", ["yes"], 0.0),
        ("Yes.", ["yes"], 1.0),
        ("", ["Mozart"], 0.0),
        ("Mozart", [], 0.0),
    ],
)
def test_token_f1(answer: str, right: list[str], expected: float) -> None:
    assert token_f1(answer, right) == pytest.approx(expected)


words = st.lists(st.sampled_from(["north", "sea", "the", "1819", "Ishmael"]), max_size=5).map(" ".join)


@given(words, words)
def test_f1_is_symmetric_and_1_only_for_the_same_tokens(left: str, right: str) -> None:
    f1 = token_f1(left, [right])
    assert f1 == pytest.approx(token_f1(right, [left]))
    same = sorted(normalize_answer(left).split()) == sorted(normalize_answer(right).split()) != []
    assert (f1 == 1.0) is same


@pytest.mark.parametrize(
    ("answer", "searches", "well_formed", "match", "expected"),
    [
        ("the Mozart", 0, True, "exact", 1.0),
        ("Mozart", 1, True, "exact", 0.9),
        ("Mozart", 3, False, "exact", 0.7),  # a right answer may be badly formed
        ("Mozart", 5, True, "exact", 0.5),
        ("Mozart", 6, True, "exact", 0.5),  # capped at five
        ("Mozart", 50, True, "exact", 0.5),
        ("Salieri", 0, True, "exact", 0.1),
        ("Salieri", 4, True, "exact", 0.1),  # retrievals do not lower the reward of a wrong answer
        ("Salieri", 0, False, "exact", 0.0),
        ("W. A. Mozart", 1, True, "exact", 0.1),
        ("W. A. Mozart", 1, True, "contains", 0.9),
    ],
)
def test_the_reward_of_the_paper(answer: str, searches: int, well_formed: bool, match: Match, expected: float) -> None:
    """Section 5.3: 0 wrong and badly formed, 0.1 wrong and well formed, else 1 - 0.1 min(5, retrievals)."""
    assert reward(answer, ["Mozart"], searches, well_formed, match) == pytest.approx(expected)
