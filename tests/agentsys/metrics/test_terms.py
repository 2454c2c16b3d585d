"""Terms in translations: normalization, whole words, and measures computed by hand."""

from __future__ import annotations

import subprocess
import sys

import pytest

from agentsys.metrics.terms import (
    KnownTerm,
    consistency,
    entity_accuracy,
    mentions_any,
    normalize_text,
    rendering,
    term_accuracy,
)
from agentsys.text.chinese import to_simplified

pytestmark = pytest.mark.needs("knowledge")


def test_simplified() -> None:
    assert to_simplified("黃豆芽是亞洲美食的常見食材嗎？") == "黄豆芽是亚洲美食的常见食材吗？"
    assert to_simplified("乾隆年間，天氣乾燥") == "乾隆年间，天气干燥", "converted according to the word"
    assert to_simplified("黄豆芽") == "黄豆芽" and to_simplified("Straße") == "Straße"


def test_a_text_without_chinese_needs_no_converter() -> None:
    code = (
        "import sys; from agentsys.text import chinese; chinese.to_simplified('Straße'); print('opencc' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


@pytest.mark.parametrize(
    ("text", "other"),
    [
        ("ＣＯＶＩＤ－１９", "covid-19"),
        ("COVID-19", "Covid-19"),
        ("黃豆芽", "黄豆芽"),
        ("Straße", "STRASSE"),
        ("two\u3000 words", "Two words"),
        ("e\u0301clair", "éclair"),
    ],
)
def test_normalize_text(text: str, other: str) -> None:
    assert normalize_text(text) == normalize_text(other)


def test_different_words_stay_different() -> None:
    assert len({normalize_text(text) for text in ("flu", "flew", "流感", "流行性感冒", "")}) == 5


def test_mentions_any_follows_m_eta() -> None:
    assert mentions_any("食用黄豆芽对健康有什么好处？", ["大豆芽", "黃豆芽"])
    assert mentions_any("Harry Potters Welt", ["harry potter"]), "also inside a word"
    assert not mentions_any("豆芽", ["黃豆芽"]) and not mentions_any("豆芽", []) and not mentions_any("豆芽", [" "])
    assert not mentions_any("", ["黃豆芽"])


@pytest.mark.parametrize(
    ("translation", "targets", "expected"),
    [
        ("他得了流感。", ["流感"], "流感"),
        ("他得了流行性感冒。", ["流感", "流行性感冒"], "流行性感冒"),
        ("新型冠狀病毒疾病", ["冠状病毒", "冠状病毒疾病"], "冠状病毒疾病"),
        ("Er spricht fließend.", ["ließ"], None),
        ("die Grippe-Welle", ["grippe"], "grippe"),
        ("die Grippewelle", ["Grippe"], None),
        ("感染COVID-19的人", ["Covid-19"], "covid-19"),
        ("感染COVID-19A的人", ["Covid-19"], None),
        ("그는 독감에 걸렸다.", ["독감"], "독감"),
        ("신종독감이다.", ["독감"], None),
        ("a (b) c", ["(b)"], "(b)"),
        ("a+b", ["."], None),
        ("anything", ["", " "], None),
        ("", ["x"], None),
    ],
)
def test_rendering(translation: str, targets: list[str], expected: str | None) -> None:
    assert rendering(translation, targets) == expected


def test_accuracy() -> None:
    terms = [KnownTerm("flu", ("流感",)), KnownTerm("mask", ("口罩", "面罩")), KnownTerm("test", ("检测",))]
    assert term_accuracy("流感檢測，戴面罩", terms) == (3, 3)
    assert term_accuracy("流感", terms) == (1, 3) and term_accuracy("流感", []) == (0, 0)
    assert entity_accuracy("黄豆芽和豆腐", [["黃豆芽"], ["乾隆"], ["tofu", "豆腐"]]) == (2, 3)


FLU = KnownTerm("flu", ("流感", "流行性感冒"))
MASK = KnownTerm("mask", ("口罩",))


def test_consistency() -> None:
    """Flu: four sentences, two pairs of which agree, 2 of 6; mask: three sentences, one without it, 1 of 3."""
    sentences = [
        ("流感和口罩", [FLU, MASK]),
        ("流感", [FLU, MASK]),
        ("流行性感冒，口罩", [FLU, MASK]),
        ("流行性感冒", [KnownTerm("Flu", FLU.targets)]),
    ]
    assert consistency(sentences) == pytest.approx((2 / 6 + 1 / 3, 2))
    assert consistency(sentences[:2]) == (1.0, 2), "流感 twice, 口罩 once"
    assert consistency(sentences[:1]) == (0, 0), "one sentence has no pair"
    assert consistency([]) == (0, 0)


def test_sentences_without_a_known_translation_agree_with_none() -> None:
    assert consistency([("感冒", [FLU]), ("感冒", [FLU])]) == (0.0, 1)


def test_scripts_do_not_make_a_translation_inconsistent() -> None:
    virus = KnownTerm("virus", ("病毒性", "傳染"))
    assert consistency([("传染", [virus]), ("傳染", [virus])]) == (1.0, 1)


def test_a_term_twice_in_a_sentence_counts_once() -> None:
    assert consistency([("流感，流感", [FLU, FLU]), ("流感", [FLU])]) == (1.0, 1)
