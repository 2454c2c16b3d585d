"""Terms in translations: term accuracy, entity accuracy, and term consistency in a document.

Three measures, each of them two numbers per sentence (or document), which are summed over a corpus and divided:

- *Exact-match term accuracy* (Alam et al., 2021, "On the Evaluation of Machine Translation for Terminology
  Consistency"): of the terms in the sources, those with one of their translations in the sentence's translation.
- *m-ETA*, manual entity translation accuracy (Conia et al., EMNLP 2024, XC-Translate): of the rows, those whose
  translation has at least one acceptable mention of the entity.
- *Term consistency* after LTCR, the lexical translation consistency ratio (Lyu et al., EMNLP 2021): of all pairs of
  sentences of one document that have the same term, those that translate it the same way; the mean over the terms.
  LTCR pools the pairs of all words, so that one frequent word outweighs all others (pairs grow quadratically).

LTCR finds the translation of a word with a word aligner. Here it is looked up among the known translations of the term,
so that the measure needs no model: a sentence without any known translation agrees with no other.

Texts are compared after `normalize_text`: NFKC, casefolded, Chinese in simplified characters.
"""

from __future__ import annotations

import re
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache

from agentsys.text.chinese import can_simplify, to_simplified


@dataclass(frozen=True, slots=True)
class KnownTerm:
    """A term of a source text and its correct translations, all equally good."""

    source: str
    targets: tuple[str, ...]


@lru_cache(maxsize=4096)
def normalize_text(text: str) -> str:
    """Normalize a text for comparison: NFKC, simplified Chinese characters, casefolded, single spaces.

    Without OpenCC, Chinese characters are left as they are.
    """
    script = to_simplified if can_simplify() else str
    return " ".join(script(unicodedata.normalize("NFKC", text)).casefold().split())


def mentions_any(translation: str, mentions: Iterable[str]) -> bool:
    """Whether the translation contains one of the mentions, also inside a word (XC-Translate's rule)."""
    text = normalize_text(translation)
    return any(mention in text for mention in map(normalize_text, mentions) if mention)


def rendering(translation: str, targets: Iterable[str]) -> str | None:
    """Return the translation of a term that a text contains, normalized: the longest of several, None for none.

    In scripts with spaces it must be a whole word: "flu" is not in "fluent".
    """
    text = normalize_text(translation)
    matches = [target for target in map(normalize_text, targets) if target and _whole_word_pattern(target).search(text)]
    return max(matches, key=lambda target: (len(target), target), default=None)


@lru_cache(maxsize=4096)
def _whole_word_pattern(target: str) -> re.Pattern[str]:
    """Return a pattern of a normalized text that is not part of a longer word.

    Chinese has no word boundaries; a particle may follow a Korean word.
    """
    from agentsys.text.words import HANGUL, SPACELESS

    letter = rf"[^\W_{SPACELESS}]"
    before = rf"(?<!{letter})" if re.match(letter, target) else ""
    after = rf"(?!{letter})" if re.match(rf"[^\W_{SPACELESS}{HANGUL}]", target[-1]) else ""
    return re.compile(before + re.escape(target) + after)


def term_accuracy(translation: str, terms: Sequence[KnownTerm]) -> tuple[int, int]:
    """Return how many terms of a sentence have one of their translations in it, and how many terms there are."""
    return sum(rendering(translation, term.targets) is not None for term in terms), len(terms)


def entity_accuracy(translation: str, entities: Sequence[Sequence[str]]) -> tuple[int, int]:
    """Return how many entities, each a list of acceptable mentions, the translation names, and how many there are."""
    return sum(mentions_any(translation, mentions) for mentions in entities), len(entities)


def consistency(sentences: Iterable[tuple[str, Sequence[KnownTerm]]]) -> tuple[float, int]:
    """Return the sum of the consistencies (0 to 1) of the terms of one document, and the number of these terms.

    `sentences` are pairs of a translation and its terms. A term (normalized) counts if at least two sentences have it;
    a pair of them agrees if both contain the same known translation.
    """
    renderings_by_term: defaultdict[str, list[str | None]] = defaultdict(list)
    for translation, terms in sentences:
        for source, targets in {normalize_text(term.source): term.targets for term in terms}.items():
            renderings_by_term[source].append(rendering(translation, targets))
    shares = [_agreement(renderings) for renderings in renderings_by_term.values() if len(renderings) > 1]
    return sum(shares), len(shares)


def _agreement(renderings: Sequence[str | None]) -> float:
    """Return the share of pairs with the same rendering, computed from counts: a term can be in many sentences."""
    agreeing = sum(n * (n - 1) for rendering, n in Counter(renderings).items() if rendering is not None)
    return agreeing / (len(renderings) * (len(renderings) - 1))
