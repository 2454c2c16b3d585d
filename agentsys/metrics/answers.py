"""Short answers against gold answers: exact match and token F1 with SQuAD's normalization (Rajpurkar et al. 2016)."""

from __future__ import annotations

import re
import string
from collections import Counter
from collections.abc import Sequence
from typing import Literal

Match = Literal["exact", "contains"]

_ARTICLES = re.compile(r"\b(a|an|the)\b")
_PUNCTUATION = str.maketrans("", "", string.punctuation)


def normalize_answer(answer: str) -> str:
    """Return the answer in lower case, without punctuation and articles, with single spaces."""
    return " ".join(_ARTICLES.sub(" ", answer.lower().translate(_PUNCTUATION)).split())


def exact_match(answer: str, golds: Sequence[str]) -> bool:
    """Whether the answer equals one of the golds (an answer and its aliases), both normalized."""
    return normalize_answer(answer) in {normalize_answer(gold) for gold in golds}


def contains_match(answer: str, golds: Sequence[str]) -> bool:
    """Whether the answer contains a gold or a gold the answer, both normalized; an empty text matches nothing."""
    text = normalize_answer(answer)
    return bool(text) and any(gold in text or text in gold for gold in map(normalize_answer, golds) if gold)


def is_correct(answer: str, golds: Sequence[str], match: Match = "exact") -> bool:
    """Whether the answer is correct by `exact_match` or `contains_match`."""
    return (exact_match if match == "exact" else contains_match)(answer, golds)


def token_f1(answer: str, golds: Sequence[str]) -> float:
    """Return the best F1 of normalized tokens over the golds, 0-1. "yes", "no" and "noanswer" match only themselves."""
    return max((_f1(normalize_answer(answer), normalize_answer(gold)) for gold in golds), default=0.0)


_CLOSED = {"yes", "no", "noanswer"}


def _f1(answer: str, gold: str) -> float:
    if answer != gold and (answer in _CLOSED or gold in _CLOSED):  # as in HotpotQA's script
        return 0.0
    answer_tokens, gold_tokens = Counter(answer.split()), Counter(gold.split())
    shared = (answer_tokens & gold_tokens).total()
    return 2 * shared / (answer_tokens.total() + gold_tokens.total()) if shared else 0.0
