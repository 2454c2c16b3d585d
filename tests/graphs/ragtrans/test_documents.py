"""Documents: paragraphs, truncation, leaks of a reference, and selection by MMR."""

from __future__ import annotations

import math

import pytest

from agentsys.graphs.ragtrans.documents import (
    JOIN,
    Reference,
    count_tokens,
    fit,
    mmr,
    overlap,
    remove_leaks,
    split_paragraphs,
    truncate_text,
)

EN = "The harbour of Elmsund was built in the year 1871 by fishermen who came from the northern islands."
ZH = "埃尔姆松德港由来自北方群岛的渔民于一八七一年建成。"


def test_paragraphs_are_separated_by_line_breaks_or_two_spaces() -> None:
    assert split_paragraphs(" One. Still one.\n\n two  three\r\n　　四 ") == ["One. Still one.", "two", "three", "四"]
    assert split_paragraphs(" \n ") == []


def test_a_document_is_truncated_at_a_paragraph() -> None:
    fitted = fit(["a" * 40, "b" * 40, "c" * 4, "d"], 20)
    assert fitted.paragraphs == ["a" * 40, "b" * 40]  # "c" alone would fit, but no paragraph is skipped
    assert fitted.as_json() == {"tokens": 20, "of_tokens": 22, "paragraphs": 2, "of_paragraphs": 4}
    assert fitted.tokens < fitted.of_tokens
    whole = fit(["short"], 20)
    assert whole.tokens == whole.of_tokens
    assert fit([], 20).paragraphs == []


@pytest.mark.parametrize("document", ["word " * 20_000, "汉" * 100_000, "x" * 100_000])
def test_one_paragraph_of_a_hundred_thousand_characters_is_truncated_inside(document: str) -> None:
    fitted = fit([document.strip()], 768)
    [text] = fitted.paragraphs
    assert 700 < count_tokens(text) <= 768
    assert document.startswith(text)
    assert not text.startswith("word") or text.endswith("word")
    assert fitted.tokens < fitted.of_tokens


def test_no_character_is_split() -> None:
    assert truncate_text("汉字汉字", 1) == "汉"


@pytest.mark.parametrize(
    ("reference", "text", "leak"),
    [
        (ZH, f"据载，{ZH}后来扩建。", "contained"),
        (ZH, "港口由渔民建成。", None),
        (ZH, "埃尔姆松德港由来自北方群岛的渔民建成。", "overlap"),
        (EN, EN.upper().replace(".", "!"), "contained"),
        (EN, "Fishermen who came from the northern islands live there.", None),
        (EN, EN.replace("fishermen", "sailors"), "overlap"),
        ("治疗", "治疗", "contained"),
        ("治疗", "治疗方法有很多。", None),  # a heading may occur anywhere
        ("新冠病毒感染的肺炎患者需要住院治疗。", "據載，新冠病毒感染的肺炎患者需要住院治療。", "contained"),
        ("", "anything", None),
        ("anything at all", "", None),
    ],
)
def test_leaks_of_a_reference(reference: str, text: str, leak: str | None) -> None:
    assert Reference(reference).leak(text) == leak


def test_paragraphs_that_leak_only_together_are_all_removed() -> None:
    left, right = EN[:50].strip(), EN[50:].strip()
    assert remove_leaks(["before", EN, "after"], [Reference(EN)]) == (["before", "after"], 1)
    halves = [left.rpartition(" ")[0], f"{left.rpartition(' ')[2]} {right}"]
    assert Reference(EN).leak(JOIN.join(halves))
    assert remove_leaks(halves, [Reference(EN)])[0] == []


def test_mmr_weighs_relevance_against_novelty() -> None:
    relevance, similarities = [0.9, 0.8, 0.3], {(0, 1): 1.0, (0, 2): 0.0, (1, 2): 0.0}

    def similarity(i: int, j: int) -> float:
        return similarities[min(i, j), max(i, j)]

    assert mmr(relevance, similarity, 2, 1.0) == [0, 1]
    assert mmr(relevance, similarity, 2, 0.5) == [0, 2]  # 0.5 x 0.8 - 0.5 x 1 < 0.5 x 0.3
    assert mmr(relevance, similarity, 9, 0.5) == [0, 2, 1]
    assert mmr([0.5, 0.5, 0.5], lambda i, j: -0.5 if {i, j} == {0, 2} else 0.0, 2, 0.0) == [0, 2]
    assert mmr([], similarity, 2, 0.5) == []
    with pytest.raises(ValueError, match="lambda 2 is not between 0 and 1"):
        mmr(relevance, similarity, 2, 2.0)


def test_overlap_is_a_cosine_of_word_sets() -> None:
    assert overlap("the cat sat", "The cat, the cat!") == pytest.approx(2 / math.sqrt(6))
    assert overlap("cat", "猫") == 0
    assert overlap("", "cat") == 0
