"""Long texts in entries, as in LongGenBench (Wu et al. 2024): a program counts what the request required.

The field `entries` of a record says what its text consists of, here twelve entries "Week 1", "Week 2", ...:

    {"label": "Week", "count": 12, "required": [{"at": [3], "words": ["apple pie"]},
                                                {"at": [4, 5, 6], "words": ["lentil", "lentils"]},
                                                {"at": [2, 4, 6, 8, 10, 12], "words": ["fish"]}]}

An entry begins with its label and number at the beginning of a line (after marks such as `#*#` or `**`) and ends where
the next one begins. A requirement, once, over a range or periodic, holds in an entry that contains one of its words.
LongGenBench asks a judge model instead; LongDPO reports its completion rate and two rates of requirements.

As the value of a step, the scores replace the judge's: `score_step`.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Annotated, Any, Final, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from agentsys.metrics.lengths import count_words, length_score, required_words

CRITERIA: Final = {
    "completed": "all entries that the request asks for are there, each under its heading",
    "items": "each entry contains what the request requires of it",
    "length": "the text becomes as long as the request asks for",
}
"""The criteria of a step's value, in the critic's words."""

Number = Annotated[int, Field(ge=1)]


class Requirement(BaseModel):
    """One of the `words` must occur in each of the entries `at`."""

    model_config = ConfigDict(extra="forbid")

    at: Annotated[list[Number], Field(min_length=1)]
    words: Annotated[list[Annotated[str, Field(pattern=r"\w")]], Field(min_length=1)]


class Entries(BaseModel):
    """What the text of a request consists of."""

    model_config = ConfigDict(extra="forbid")

    label: Annotated[str, Field(pattern=r"\w")]
    count: Number
    required: list[Requirement] = []

    @model_validator(mode="after")
    def check_numbers(self) -> Self:
        """Raises ValueError for a requirement of an entry that is not in the text."""
        highest = max((number for requirement in self.required for number in requirement.at), default=0)
        if highest > self.count:
            raise ValueError(f"a requirement is at entry {highest}, but count is {self.count}")
        return self


def read_entries(record: Mapping[str, Any]) -> Entries | None:
    """The field `entries` of a record; None if it has none. Raises ValueError for one that is malformed."""
    if record.get("entries") is None:
        return None
    try:
        return Entries.model_validate(record["entries"])
    except ValidationError as err:
        first = err.errors()[0]
        place = ".".join(map(str, ("entries", *first["loc"])))
        raise ValueError(f"{place}: {first['msg'].removeprefix('Value error, ')}; see docs/longdpo.md") from None


@dataclass(frozen=True, slots=True)
class EntryScores:
    """Shares from 0 to 1; None without a requirement, or for `items_present` without a required entry in the text.

    `completed`: entries that are there. `items`: requirements that hold, over all (entry, requirement) pairs;
    `items_present`: over those whose entry is there.
    """

    completed: float
    items: float | None
    items_present: float | None


def split_entries(text: str, label: str) -> dict[int, str]:
    """The text of each entry by its number; of two with the same number the first."""
    heading = re.compile(rf"^[\W_]*{re.escape(label)}\s+(\d+)\b", re.MULTILINE | re.IGNORECASE)
    headings = list(heading.finditer(text))
    ends = [*(match.start() for match in headings[1:]), len(text)]
    texts: dict[int, str] = {}
    for match, end in zip(headings, ends, strict=False):  # without a heading the text ends no entry
        texts.setdefault(int(match[1]), text[match.end() : end])
    return texts


def score_entries(task: Entries, text: str) -> EntryScores:
    """Count the entries of a text, and the requirements that hold in them."""
    texts = split_entries(text, task.label)
    verdicts = list(_check_requirements(task, texts))
    return EntryScores(
        completed=sum(number in texts for number in range(1, task.count + 1)) / task.count,
        items=_share([bool(verdict) for verdict in verdicts]),
        items_present=_share([verdict for verdict in verdicts if verdict is not None]),
    )


def _check_requirements(task: Entries, texts: Mapping[int, str]) -> Iterator[bool | None]:
    """Whether each requirement holds in each entry that it names; None where the entry is not in the text."""
    for requirement in task.required:
        pattern = re.compile("|".join(map(_word_pattern, requirement.words)), re.IGNORECASE)
        for number in sorted(set(requirement.at)):
            yield bool(pattern.search(texts[number])) if number in texts else None


def _word_pattern(word: str) -> str:
    """A word as a whole, or a phrase across line ends; other scripts than Latin, which may have no spaces, anywhere."""
    pattern = r"\s+".join(map(re.escape, word.split()))
    return rf"(?<!\w){pattern}(?!\w)" if word.isascii() else pattern


def _share(verdicts: Sequence[bool]) -> float | None:
    return fmean(verdicts) if verdicts else None


def score_step(record: Mapping[str, Any], text: str, final: bool) -> dict[str, float]:
    """The scores 1-5 of a record's text so far, by criterion; `items` and `length` only if the record requires them.

    Before the end (`final`), the length is that of the whole text if it goes on as before: words / share completed.
    Raises ValueError for a record without entries, and for malformed ones.
    """
    task, length = read_entries(record), required_words(record.get("length"))
    if task is None:
        raise ValueError("the record has no field 'entries' (docs/longdpo.md); with --value judge it needs none")
    scores = score_entries(task, text)
    shares = {"completed": scores.completed}
    if scores.items is not None:
        shares["items"] = scores.items
    if length:
        words = count_words(text)
        whole = words if final else round(words / scores.completed) if scores.completed else 0
        shares["length"] = length_score(length, whole) / 100
    return {name: 1 + 4 * share for name, share in shares.items()}
