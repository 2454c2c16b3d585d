"""graphs/punchbench/shortcuts.py: answers without the picture, flags, and items that are dropped for them."""

from __future__ import annotations

import random

import pytest

from agentsys.graphs.punchbench.shortcuts import (
    FEWEST,
    drop_shortcuts,
    guess_by_words,
    guess_longest,
    measure,
    report_shortcuts,
)
from agentsys.graphs.punchbench.tasks import Item
from tests.support.punchbench import item

WORDS = ("river", "candle", "butcher", "paper", "winter", "train", "pocket", "garden", "teapot", "ladder", "mirror")
pytestmark = pytest.mark.needs("knowledge")


def text(rng: random.Random, count: int = 6) -> str:
    return " ".join(rng.choice(WORDS) for _ in range(count))


def matching(count: int = 120, extra: int = 0, hint: str = "", share: float = 1.0) -> list[Item]:
    """Options of random words; the right one is `extra` words longer, and a share of them has the hint."""
    rng = random.Random(0)
    items = []
    for n in range(count):
        right = text(rng, 6 + extra) + (f" {hint}" if hint and rng.random() < share else "")
        options, answer = ([right, text(rng)], "A") if rng.random() < 0.5 else ([text(rng), right], "B")
        items.append(item(n, "reasoning", "matching", options=options, answer=answer))
    return items


def flags(items: list[Item]) -> dict[str, bool]:
    return {s.answerer: s.is_flagged for s in report_shortcuts({(items[0].task, items[0].format): items})}


def test_the_longest_option() -> None:
    items = matching(extra=3)
    guesses = guess_longest(items)
    shortcut = measure(items, "longest", guesses)
    assert shortcut.accuracy > 95 and shortcut.is_flagged and shortcut.low < shortcut.accuracy <= shortcut.high
    assert all(guess.confidence >= 0 for guess in guesses)


def test_words_that_give_the_answer_away_are_found_by_cross_validation() -> None:
    items = matching(hint="ironic")
    assert measure(items, "bag of words", guess_by_words(items)).accuracy > 95


def test_random_words_are_not_flagged() -> None:
    assert flags(matching()) == {"longest": False, "bag of words": False}


def test_yes_no_questions_are_classified_by_their_sentence_or_caption() -> None:
    rng = random.Random(1)
    captions = [text(rng) + (" sarcasm" if n % 2 else " plain") for n in range(80)]
    items = [item(n, caption=caption, answer="Yes" if n % 2 else "No") for n, caption in enumerate(captions)]
    assert measure(items, "bag of words", guess_by_words(items)).accuracy == 100
    with_sentence = [item(n, sentence=text(rng), caption=c, answer="Yes" if n % 2 else "No")
                     for n, c in enumerate(captions)]  # fmt: skip
    assert measure(with_sentence, "bag of words", guess_by_words(with_sentence)).accuracy < 75, "the caption is shown"


def test_pairs_stay_together_in_a_fold() -> None:
    """The same text in two items of one pair must not be learned in one and recognized in the other."""
    rng = random.Random(2)
    items = []
    for n in range(60):
        right, wrong = text(rng, 8), text(rng, 8)
        for kind in "os":
            one = item(n, "reasoning", "matching", options=[right, wrong], answer="A", caption_type=kind)
            items.append(one)
    assert measure(items, "bag of words", guess_by_words(items)).accuracy < 70


def test_one_class_only() -> None:
    items = [item(n) for n in range(30)]
    assert {guess.answer for guess in guess_by_words(items)} == {"Yes"}


def test_few_items_are_not_measured() -> None:
    items = matching(FEWEST - 1, extra=3)
    assert report_shortcuts({("reasoning", "matching"): items}) == []
    cleaned, dropped = drop_shortcuts({("reasoning", "matching"): items})
    assert cleaned["reasoning", "matching"] == items and dropped == 0


def test_items_are_dropped_until_the_report_is_clean() -> None:
    items = matching(hint="ironic", share=0.3)
    file = ("reasoning", "matching")
    assert flags(items)["longest"] or flags(items)["bag of words"]
    cleaned, dropped = drop_shortcuts({file: items})
    left = cleaned[file]
    assert 0 < dropped == len(items) - len(left) and len(left) >= FEWEST
    assert not any(s.is_flagged for s in report_shortcuts(cleaned))
    kept = sum("ironic" in " ".join(one.options) for one in left) / len(left)
    assert kept < sum("ironic" in " ".join(one.options) for one in items) / len(items)
