"""How well a translation keeps to terms: accuracy, entity names, and consistency over a document.

Three measures, each of them two numbers a sentence (or document) that a corpus adds up and divides:

- *Exact-match term accuracy* (Alam et al., 2021, "On the Evaluation of Machine Translation for Terminology
  Consistency"): of the terms in the sources, those with one of their translations in the sentence's translation.
- *m-ETA*, manual entity translation accuracy (Conia et al., EMNLP 2024, XC-Translate): of the rows, those whose
  translation has at least one acceptable mention of the entity.
- *Term consistency* after LTCR, the lexical translation consistency ratio (Lyu et al., EMNLP 2021): of all pairs of
  sentences of one document that have the same term, those that render it alike; the mean over the terms. LTCR pools the
  pairs of all words. There a word that half of the sentences have outweighs all others, as pairs grow with the square.

LTCR finds how a word was rendered with a word aligner. Here it is found among the known translations of the term, so
that no model stands between the text and the number: a sentence that shows none of them agrees with no other.

Texts are compared NFKC-normalized and casefolded, Chinese ones in simplified characters.
"""

from __future__ import annotations

import re
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache

from agentsys.text.chinese import simplified


@dataclass(frozen=True, slots=True)
class KnownTerm:
    """A term of a source text and the translations of it that are right, each as good as the others."""

    source: str
    targets: tuple[str, ...]


@lru_cache(maxsize=4096)
def folded(text: str) -> str:
    """The form in which texts are compared: NFKC, simplified Chinese characters, casefolded, white space as one."""
    return " ".join(simplified(unicodedata.normalize("NFKC", text)).casefold().split())


def mentions_any(translation: str, mentions: Iterable[str]) -> bool:
    """Whether one of the mentions is part of the translation, wherever it stands (XC-Translate's rule)."""
    text = folded(translation)
    return any(mention in text for mention in map(folded, mentions) if mention)


def rendering(translation: str, targets: Iterable[str]) -> str | None:
    """Which of a term's translations the text has, folded; None if none. Of several the longest, as it holds others.

    A word of a script with spaces must stand alone: "flu" is not in "fluent".
    """
    text = folded(translation)
    found = [target for target in map(folded, targets) if target and _stands_alone(target).search(text)]
    return max(found, key=lambda target: (len(target), target), default=None)


@lru_cache(maxsize=4096)
def _stands_alone(target: str) -> re.Pattern[str]:
    """Finds a folded text that no letter or digit of a script with spaces goes on with.

    Chinese has no such borders; behind a Korean word a particle may stand.
    """
    from agentsys.text.words import _HANGUL, _SPACELESS

    letter = rf"[^\W_{_SPACELESS}]"
    before = rf"(?<!{letter})" if re.match(letter, target) else ""
    after = rf"(?!{letter})" if re.match(rf"[^\W_{_SPACELESS}{_HANGUL}]", target[-1]) else ""
    return re.compile(before + re.escape(target) + after)


def term_accuracy(translation: str, terms: Sequence[KnownTerm]) -> tuple[int, int]:
    """How many terms of a sentence have one of their translations in it, and how many there are."""
    return sum(rendering(translation, term.targets) is not None for term in terms), len(terms)


def entity_accuracy(translation: str, entities: Sequence[Sequence[str]]) -> tuple[int, int]:
    """Of entities, each given by its acceptable mentions: how many the translation names, and how many there are."""
    return sum(mentions_any(translation, mentions) for mentions in entities), len(entities)


def consistency(sentences: Iterable[tuple[str, Sequence[KnownTerm]]]) -> tuple[float, int]:
    """The consistency of each term of one document, 0 to 1, added up, and how many such terms there are.

    The sentences are given as translation and terms. A term (casefolded) counts if two sentences or more have it; a
    pair of them agrees if both render it with the same known translation.
    """
    found: defaultdict[str, list[str | None]] = defaultdict(list)
    for translation, terms in sentences:
        for source, targets in {folded(term.source): term.targets for term in terms}.items():
            found[source].append(rendering(translation, targets))
    shares = [_agreement(renderings) for renderings in found.values() if len(renderings) > 1]
    return sum(shares), len(shares)


def _agreement(renderings: Sequence[str | None]) -> float:
    """The share of pairs with the same rendering, counted by rendering: a term can be in thousands of sentences."""
    alike = sum(n * (n - 1) for rendering, n in Counter(renderings).items() if rendering is not None)
    return alike / (len(renderings) * (len(renderings) - 1))
