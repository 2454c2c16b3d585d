"""What can be answered without the picture: the shortcut report of task files, and items to drop.

An item is answered by a shortcut if its texts alone give the answer away. Three answerers see no picture: one takes the
longest option, one is a bag-of-words classifier that is cross-validated over pairs, and one is a language model (its
answers are those of an evaluation with the picture withheld, see measures.py). A file is flagged if the interval of an
answerer's accuracy lies above chance: shortcut = accuracy without the picture - chance.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from agentsys.graphs.punchbench.tasks import CHANCE, LETTERS, YES_NO, Format, Item, Task, balance
from agentsys.metrics.agreement import wilson_interval
from agentsys.text.words import words

FOLDS: Final = 5
SHARE: Final = 0.05
"""Share of a file's items that are dropped at a time, until the report is clean."""
FEWEST: Final = 20
"""Items below which a file is neither classified nor shortened: their accuracy says nothing."""

Files = Mapping[tuple[Task, Format], Sequence[Item]]


@dataclass(frozen=True, slots=True)
class Guess:
    """An answer without the picture, and how sure it is, on a scale of its answerer."""

    answer: str
    confidence: float


@dataclass(frozen=True, slots=True)
class Shortcut:
    """The accuracy in percent of an answerer on one file, with its 95 % interval; `low` above chance is a flag."""

    task: Task
    format: Format
    answerer: str
    n: int
    accuracy: float
    low: float
    high: float

    @property
    def is_flagged(self) -> bool:
        """Whether the file can be answered above chance without the picture."""
        return self.low > 100 * CHANCE[self.format]


def guess_longest(items: Sequence[Item]) -> list[Guess]:
    """The longest option of each item; of a Yes/No question with a sentence, Yes if that is longer than the median.

    The confidence is the share by which it is longer than the next one.
    """
    if items and items[0].format == "yes_no":
        lengths = [len(_yes_no_text(item)) for item in items]
        median = sorted(lengths)[len(lengths) // 2]
        return [Guess(YES_NO[length < median], abs(length - median) / max(median, 1)) for length in lengths]
    guesses = []
    for item in items:
        sizes = [len(option) for option in item.options]
        first, second = sorted(sizes, reverse=True)[:2]
        guesses.append(Guess(LETTERS[sizes.index(first)], (first - second) / max(first, 1)))
    return guesses


def guess_by_words(items: Sequence[Item]) -> list[Guess]:
    """The answer of a bag-of-words classifier that was trained on the items of other pairs.

    It learns which texts are right: a caption or a sentence with the answer Yes, an option that is the answer. Of the
    options it takes the most probable one. Needs scikit-learn.
    """
    from sklearn.feature_extraction.text import TfidfVectorizer
    from sklearn.linear_model import LogisticRegression
    from sklearn.model_selection import GroupKFold
    from sklearn.pipeline import make_pipeline

    texts = [list(_texts(item)) for item in items]
    groups = [item.pair for item in items]
    probabilities: list[list[float]] = [[] for _ in items]
    for train, test in GroupKFold(min(FOLDS, len(set(groups)))).split(items, groups=groups):
        model = make_pipeline(
            TfidfVectorizer(analyzer=words, sublinear_tf=True),
            LogisticRegression(class_weight="balanced", max_iter=1000),
        )
        rows = [pair for i in train for pair in texts[i]]
        labels = [is_right for _, is_right in rows]
        if len(set(labels)) < 2:  # all others have one answer, which a classifier gives to every text
            for i in test:
                probabilities[i] = [float(labels[0])] * len(texts[i])
            continue
        model.fit([text for text, _ in rows], labels)
        for i in test:
            probabilities[i] = [float(row[1]) for row in model.predict_proba([text for text, _ in texts[i]])]
    return [_choose(item, values) for item, values in zip(items, probabilities, strict=True)]


def _choose(item: Item, values: Sequence[float]) -> Guess:
    """The answer of a classifier that gives each text of an item the probability of being right."""
    if item.format == "yes_no":
        return Guess(YES_NO[values[0] < 0.5], abs(values[0] - 0.5))
    best, second = sorted(values, reverse=True)[:2]
    return Guess(LETTERS[values.index(best)], best - second)


def _texts(item: Item) -> Iterator[tuple[str, int]]:
    """The texts of an item that may be right, each with 1 if it is."""
    if item.format == "yes_no":
        yield _yes_no_text(item), int(item.answer == YES_NO[0])
    else:
        for letter, option in zip(LETTERS, item.options, strict=False):
            yield option, int(letter == item.answer)


def _yes_no_text(item: Item) -> str:
    """What may give a Yes/No question away: the sentence of a reasoning question, else the caption."""
    return item.sentence or item.caption


ANSWERERS: Final = {"longest": guess_longest, "bag of words": guess_by_words}


def measure(items: Sequence[Item], answerer: str, guesses: Sequence[Guess]) -> Shortcut:
    """The accuracy of the guesses on the items of one file."""
    right = sum(guess.answer == item.answer for item, guess in zip(items, guesses, strict=True))
    low, high = wilson_interval(right, len(items))
    share = 100 * right / len(items)
    return Shortcut(items[0].task, items[0].format, answerer, len(items), share, 100 * low, 100 * high)


def report_shortcuts(files: Files) -> list[Shortcut]:
    """The accuracies of both answerers on every file that has options and at least FEWEST items."""
    return [
        measure(items, name, answer(items))
        for items in files.values()
        if _is_measured(items)
        for name, answer in ANSWERERS.items()
    ]


def _is_measured(items: Sequence[Item]) -> bool:
    return len(items) >= FEWEST and items[0].format in CHANCE and len({item.pair for item in items}) > 1


def drop_shortcuts(files: Files) -> tuple[dict[tuple[Task, Format], list[Item]], int]:
    """The files without the items that a flagged answerer gets right with most confidence, and how many those were.

    Some are dropped at a time, and the answerers are trained and measured again, until no file is flagged or FEWEST
    items are left of it.
    """
    cleaned: dict[tuple[Task, Format], list[Item]] = {}
    dropped = 0
    for file, items in files.items():
        left = list(items)
        while _is_measured(left) and (surplus := _most_obvious(left)):
            left = [item for item in left if item.id not in surplus]
            left = balance(left) if file[1] == "yes_no" else left
        dropped += len(items) - len(left)
        cleaned[file] = left
    return cleaned, dropped


def _most_obvious(items: Sequence[Item]) -> set[str]:
    """The ids of the items to drop: those that flagged answerers are right about, the surest first."""
    obvious: set[str] = set()
    for name, answer in ANSWERERS.items():
        guesses = answer(items)
        if not measure(items, name, guesses).is_flagged:
            continue
        pairs = zip(items, guesses, strict=True)
        right = [(guess.confidence, item.id) for item, guess in pairs if guess.answer == item.answer]
        obvious |= {name for _, name in sorted(right, reverse=True)[: math.ceil(SHARE * len(items))]}
    return obvious


def shortcut_rows(shortcuts: Sequence[Shortcut]) -> list[dict[str, Any]]:
    """The report as JSON."""
    return [
        {
            "task": s.task, "format": s.format, "answerer": s.answerer, "n": s.n, "accuracy": round(s.accuracy, 2),
            "low": round(s.low, 2), "high": round(s.high, 2), "chance": 100 * CHANCE[s.format], "flagged": s.is_flagged,
        }
        for s in shortcuts
    ]  # fmt: skip
