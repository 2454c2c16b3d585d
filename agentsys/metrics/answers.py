"""Short answers against gold ones: exact match and token F1 as SQuAD normalizes them (Rajpurkar et al. 2016)."""

from __future__ import annotations

import re
import string
from collections import Counter
from collections.abc import Sequence
from typing import Literal

Match = Literal["exact", "contains"]

_ARTICLES = re.compile(r"\b(a|an|the)\b")
_PUNCTUATION = str.maketrans("", "", string.punctuation)


def normalized(answer: str) -> str:
    """Lower case, without punctuation and articles, white space folded."""
    return " ".join(_ARTICLES.sub(" ", answer.lower().translate(_PUNCTUATION)).split())


def exact_match(answer: str, golds: Sequence[str]) -> bool:
    """Whether the answer is one of the golds (an answer and its aliases), both normalized."""
    return normalized(answer) in {normalized(gold) for gold in golds}


def contains_match(answer: str, golds: Sequence[str]) -> bool:
    """Lenient: the answer contains a gold or a gold contains the answer, normalized; an empty one matches nothing."""
    given = normalized(answer)
    return bool(given) and any(gold in given or given in gold for gold in map(normalized, golds) if gold)


def is_correct(answer: str, golds: Sequence[str], match: Match = "exact") -> bool:
    """`exact_match`, or `contains_match` where it is asked for."""
    return (exact_match if match == "exact" else contains_match)(answer, golds)


def token_f1(answer: str, golds: Sequence[str]) -> float:
    """The best F1 over the golds of the shared tokens, normalized; 0-1. Yes, no and noanswer match only themselves."""
    return max((_f1(normalized(answer), normalized(gold)) for gold in golds), default=0.0)


_CLOSED = {"yes", "no", "noanswer"}


def _f1(answer: str, gold: str) -> float:
    if answer != gold and (answer in _CLOSED or gold in _CLOSED):  # as HotpotQA's script has it
        return 0.0
    given, wanted = Counter(answer.split()), Counter(gold.split())
    shared = (given & wanted).total()
    return 2 * shared / (given.total() + wanted.total()) if shared else 0.0
