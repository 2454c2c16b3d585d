"""Corpus BLEU and chrF with confidence intervals.

BLEU (Papineni et al., 2002, "BLEU: a Method for Automatic Evaluation of Machine Translation") and chrF (Popović, 2015,
"chrF: character n-gram F-score for automatic MT evaluation") are functions of sums over sentences. So each sentence is
counted once, and a bootstrap resample (Koehn, 2004, "Statistical Significance Tests for Machine Translation
Evaluation") only adds up rows of a table. Values equal sacrebleu's `corpus_score` with its default settings.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from importlib.util import find_spec

Statistic = Callable[[Sequence[int]], float]
"""A number about the sentences with these indices; an index may come more than once."""


@dataclass(frozen=True, slots=True)
class Interval:
    """The ends of a confidence interval, in the unit of the statistic."""

    low: float
    high: float


@dataclass(frozen=True, slots=True)
class Score:
    """A value with the ends of its 95 % interval, all in one unit (BLEU and chrF: 0 to 100)."""

    value: float
    low: float
    high: float


def bleu(hypotheses: Sequence[str], references: Sequence[str], *, language: str) -> float:
    """Corpus BLEU-4 from 0 to 100 against one reference a sentence (Papineni et al., 2002, section 2.3).

    `language` ("Chinese" or "zh") is the references' and chooses the tokenizer: `zh` for Chinese; for Japanese
    `ja-mecab` where it is installed, else `char`; `13a` for every other. Raises ValueError if the lists are empty or
    their lengths differ.
    """
    return _bleu_statistic(hypotheses, references, language)(range(len(hypotheses)))


def chrf(hypotheses: Sequence[str], references: Sequence[str], *, language: str) -> float:
    """Corpus chrF2 from 0 to 100: character 1- to 6-grams, recall weighted twice (Popović, 2015, equation 1).

    chrF needs no tokenizer, so `language` changes nothing; it is here so that both metrics are called alike. Raises
    ValueError if the lists are empty or their lengths differ.
    """
    return _chrf_statistic(hypotheses, references)(range(len(hypotheses)))


def score_corpus(hypotheses: Sequence[str], references: Sequence[str], *, language: str) -> dict[str, Score]:
    """ "BLEU" and "chrF" of a corpus, 0 to 100, each with its 95 % bootstrap interval over sentences (Koehn, 2004).

    Raises ValueError if the lists are empty or their lengths differ.
    """
    statistics = {
        "BLEU": _bleu_statistic(hypotheses, references, language),
        "chrF": _chrf_statistic(hypotheses, references),
    }
    return {name: _with_interval(statistic, len(hypotheses)) for name, statistic in statistics.items()}


def mean_with_interval(values: Sequence[float]) -> Score:
    """The mean of `values`, in their unit, with its 95 % bootstrap interval. Raises ValueError if there are none."""
    import numpy as np

    table = np.asarray(values, dtype=float)
    return _with_interval(lambda indices: float(table[indices].mean()), len(table))


def bootstrap(statistic: Statistic, n: int, *, resamples: int = 1000, seed: int = 0, level: float = 0.95) -> Interval:
    """The percentile bootstrap interval of `statistic` over sentences 0 to n-1 (Koehn, 2004, section 3).

    Draws n indices with replacement, `resamples` times, and takes the quantiles that leave (1 - level) / 2 on each
    side. The same seed gives the same interval. Raises ValueError if n or resamples is under 1 or level not in (0, 1).
    """
    import numpy as np

    if n < 1 or resamples < 1 or not 0 < level < 1:
        raise ValueError(f"bootstrap needs n >= 1, resamples >= 1, 0 < level < 1; got {n}, {resamples}, {level}")
    rng = np.random.default_rng(seed)
    values = [statistic(rng.integers(n, size=n).tolist()) for _ in range(resamples)]
    low, high = np.quantile(values, [(1 - level) / 2, (1 + level) / 2])
    return Interval(float(low), float(high))


def _with_interval(statistic: Statistic, n: int) -> Score:
    interval = bootstrap(statistic, n)
    return Score(statistic(range(n)), interval.low, interval.high)


def _pairs(hypotheses: Sequence[str], references: Sequence[str]) -> Iterator[tuple[str, str]]:
    if len(hypotheses) != len(references):
        raise ValueError(f"{len(hypotheses)} hypotheses but {len(references)} references; give one for each sentence")
    if not hypotheses:
        raise ValueError("no sentences to score; give at least one hypothesis and its reference")
    return zip(hypotheses, references, strict=True)


def bleu_signature(language: str) -> str:
    """sacrebleu's signature of the BLEU that `score_corpus` computes, so that others can reproduce it."""
    from sacrebleu.metrics.bleu import BLEU

    return str(BLEU(tokenize=bleu_tokenizer(language), references=[["-"]]).get_signature())


def bleu_tokenizer(language: str) -> str:
    words = set(re.split(r"[^a-z]+", language.lower()))
    if words & {"zh", "zho", "cmn", "chinese"}:
        return "zh"
    if words & {"ja", "jpn", "japanese"}:
        return "ja-mecab" if find_spec("MeCab") and find_spec("ipadic") else "char"
    return "13a"


def _bleu_statistic(hypotheses: Sequence[str], references: Sequence[str], language: str) -> Statistic:
    import numpy as np
    from sacrebleu.metrics.bleu import BLEU

    # The setting only keeps sentence_score from warning at each sentence: the counts do not depend on it.
    metric = BLEU(tokenize=bleu_tokenizer(language), effective_order=True)
    scores = [
        metric.sentence_score(hypothesis, [reference]) for hypothesis, reference in _pairs(hypotheses, references)
    ]
    table = np.array([[score.sys_len, score.ref_len, *score.counts, *score.totals] for score in scores])
    order = metric.max_ngram_order

    def statistic(indices: Sequence[int]) -> float:
        hypothesis_length, reference_length, *counts = table[indices].sum(axis=0).tolist()
        score = BLEU.compute_bleu(
            counts[:order], counts[order:], hypothesis_length, reference_length, smooth_method=metric.smooth_method
        )
        return float(score.score)

    return statistic


def _chrf_statistic(hypotheses: Sequence[str], references: Sequence[str]) -> Statistic:
    import numpy as np
    from sacrebleu.metrics.chrf import CHRF
    from sacrebleu.metrics.helpers import extract_all_char_ngrams

    # For each n-gram order: how many in the hypothesis, in the reference, and in both.
    rows: list[list[list[int]]] = []
    for pair in _pairs(hypotheses, references):
        ours, gold = (extract_all_char_ngrams(text, CHRF.CHAR_ORDER, include_whitespace=False) for text in pair)
        # sacrebleu counts no hypothesis n-grams of an order that its reference is too short for.
        rows.append([[o.total() if g else 0, g.total(), (o & g).total()] for o, g in zip(ours, gold, strict=True)])
    table = np.array(rows)

    def statistic(indices: Sequence[int]) -> float:
        ours, gold, both = table[indices].sum(axis=0).T
        counted = (ours > 0) & (gold > 0)
        if not both.any():
            return 0.0
        precision = (both[counted] / ours[counted]).mean()
        recall = (both[counted] / gold[counted]).mean()
        weight = CHRF.BETA**2
        return float(100 * (1 + weight) * precision * recall / (weight * precision + recall))

    return statistic
