"""Finding the terms of a list in a text: whole words, case, plurals, overlaps."""

from __future__ import annotations

import random
import re

import pytest

from agentsys.terms.index import TermIndex, plural, singular

pytestmark = pytest.mark.needs("knowledge")


@pytest.mark.parametrize(
    ("terms", "text", "expected"),
    [
        (["mask", "face mask"], "A face mask is a mask.", ["face mask", "mask"]),
        (["acute care", "care home"], "in acute care homes", ["acute care"]),
        (["cat"], "concatenate cats cat's Cat", ["cats", "cat", "Cat"]),
        (["virus"], "antivirus virus_2 co-virus", ["virus"]),
        (["WHO", "IT"], "who saw it? WHO in IT. WHOs", ["WHO", "IT", "WHOs"]),
        (["COVID-19"], "感染covid-19的人", ["covid-19"]),
        (["冠状病毒", "新型冠状病毒"], "新型冠状病毒与冠状病毒", ["新型冠状病毒", "冠状病毒"]),
        (["close contact"], "close\ncontacts, ｃｌｏｓｅ　contact", ["close\ncontacts", "ｃｌｏｓｅ　contact"]),
        (["o'clock", "co-opt"], "o’clock co\u2011opt", ["o’clock", "co\u2011opt"]),
        (["therapy", "virus", "box", "day"], "therapies viruses boxes days", ["therapies", "viruses", "boxes", "days"]),
        (["deaths"], "one death", []),
        (["Straße"], "STRASSE straße", ["straße"]),
        (["cafe\u0301"], "Café", ["Café"]),
        (["𠮷野"], "在𠮷野家", ["𠮷野"]),
        ([], "text", []),
        (["", "  "], "text", []),
    ],
)
def test_spans(terms: list[str], text: str, expected: list[str]) -> None:
    spans = TermIndex(terms, "en").spans(text)
    assert [text[start:end] for start, end, _ in spans] == expected
    assert {term for *_, term in spans} <= set(terms)


def test_only_english_has_plurals() -> None:
    assert TermIndex(["main"], "fr").spans("mains") == [] and TermIndex(["main"], "en").spans("mains")


def test_the_case_in_the_text_selects_among_terms_that_differ_in_case() -> None:
    spans = TermIndex(["polish", "Polish"]).spans("Polish polish POLISH")
    assert [term for *_, term in spans] == ["Polish", "polish", "polish"]


def test_a_large_index_finds_what_a_plain_search_finds() -> None:
    rng = random.Random(0)
    vocabulary = ["".join(rng.choices("abcde", k=rng.randint(1, 4))) for _ in range(60)]
    terms = list({" ".join(rng.choices(vocabulary, k=rng.randint(1, 3))) for _ in range(2000)})
    index = TermIndex(terms)
    for _ in range(15):
        text = " ".join(rng.choices(vocabulary, k=30))
        every = [
            (match.start(), match.start() + len(term), term)
            for term in terms
            for match in re.finditer(rf"(?<!\w)(?={re.escape(term)}(?!\w))", text)
        ]
        kept: list[tuple[int, int, str]] = []
        for span in sorted(every, key=lambda one: (one[0] - one[1], one[0])):
            if all(span[1] <= start or end <= span[0] for start, end, _ in kept):
                kept.append(span)
        assert index.spans(text) == sorted(kept)


@pytest.mark.parametrize(
    ("one", "many"), [("mask", "masks"), ("therapy", "therapies"), ("box", "boxes"), ("watch", "watches")]
)
def test_plurals(one: str, many: str) -> None:
    assert plural(one) == many and singular(many) == one


@pytest.mark.parametrize("term", ["coronavirus", "news", "crisis", "illness", "bus", "病毒", "COVID-19", ""])
def test_words_that_are_not_plurals_have_no_singular(term: str) -> None:
    assert singular(term) == ""
