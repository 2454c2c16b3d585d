"""The shape of thoughts, and its test against the released data; edit distances between drafts.

`measure_thought` counts one record with the fields of the published format (text, trans, thought). The same rules
counted released_thoughts.json, the numbers of the released MetaphorTrans thoughts (docs/drt-report.md lists the rules).
"""

from __future__ import annotations

import re
import unicodedata
from array import array
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any, Final

import orjson

from agentsys.records import BadRecord, InputError, read_records
from agentsys.text import scripts

PERCENTILES: Final = (1, 5, 25, 50, 75, 95, 99)
RELEASED: Final = Path(__file__).with_name("released_thoughts.json")
SHARE_MARGIN: Final = 0.1
"""How far the share of a yes-or-no measure may be from the released share."""

LABELS: Final = {
    "characters": "characters",
    "words": "words outside the drafts",
    "target_letters": "target-script letters",
    "target_share": "share of target letters, %",
    "paragraphs": "paragraphs",
    "drafts": "distinct full drafts",
    "draft_mentions": "quotations of full drafts",
    "draft_share": "share of full drafts, %",
    "assessments": "words of praise",
    "source_terms": "source terms, paragraph 1",
}
"""The counted measures, in the order of the tables."""
YES_NO: Final = {
    "opening": 'opens "I start", "I begin"',
    "filler": 'fillers: "Hmm", "Wait"',
    "key_words": 'names "key words"',
    "has_answer": "contains the answer",
    "ends_in_answer": "ends in the answer",
}
"""The yes-or-no measures, whose mean is a share of the thoughts."""

_CJK: Final = frozenset({"Han", "Kana", "Ideographic", "Katakana-hiragana", "Bopomofo"})
_OPENING: Final = re.compile(r"\W*(?:As )?I (?:first )?(?:start|begin|embark)\b", re.IGNORECASE)
_FILLER: Final = re.compile(r"\b(?:Hmm+|Wait|Let me)\b|\b(?:hmm+|but wait|let me (?:see|try|think))\b")
_KEY_WORDS: Final = re.compile(r"\bkey[ -]?(?:words?|terms?)\b", re.IGNORECASE)
_GOOD: Final = re.compile(
    r"(?<!\bmore )(?<!\bless )(?<!\bnot )(?<!\bnot very )\b(?:accurate(?:ly)?|natural(?:ly)?|fluent(?:ly)?|fluency|"
    r"smooth(?:ly)?|idiomatic(?:ally)?|clear(?:ly)?|effective(?:ly)?|excellent|good|well)\b",
    re.IGNORECASE,
)
_QUOTED: Final = re.compile(
    r"(?<!\w)'(\S.*?)'(?!\w)|\"([^\"\n]+)\"|“([^”\n]+)”|‘([^’\n]+)’|«([^»\n]+)»|„([^“”\n]+)[“”]|「([^」\n]+)」"
)
_BEGINNING: Final = 100
"""Characters of a thought's beginning, which is not a draft yet."""
_LIST: Final = re.compile(r"""['"’”][,，、;；.。]?\s*['"‘“]""")
"""Between two quoted words: they are a list, not one draft."""
_SPAN: Final = re.compile(r"T(?:[NA]{0,6}T|O{1,20}T)*")
"""Letters of the target's script (T), with signs (N, A) and names in another script (O) between them."""
_OTHER_WORD: Final = re.compile(r"O+(?:AO+)*")
"""A word in another script than the target's."""
_NO_LETTER: Final = re.compile(r"[\W_]+")
_WORD: Final = re.compile(r"[^\W\d_]+(?:['’-][^\W\d_]+)*")
_AFTER_COLON: Final = re.compile(r": ([^\n]+)")


def edit_distance(first: str, second: str) -> int:
    """The Levenshtein distance of two texts in characters (Hyyrö's bit-parallel form of Myers, 1999)."""
    if not first or not second:
        return len(first) + len(second)
    places: dict[str, int] = {}
    for i, char in enumerate(first):
        places[char] = places.get(char, 0) | 1 << i
    mask = (1 << len(first)) - 1
    last = 1 << (len(first) - 1)
    up, down, distance = mask, 0, len(first)
    for char in second:
        equal = places.get(char, 0)
        diagonal = ((((equal & up) + up) ^ up) | equal | down) & mask
        right, left = (down | ~(diagonal | up)) & mask, up & diagonal
        distance += bool(right & last) - bool(left & last)
        right, left = (right << 1 | 1) & mask, (left << 1) & mask
        up, down = (left | ~(diagonal | right)) & mask, right & diagonal
    return distance


def script_of(char: str) -> str:
    """The script of a letter, with one name for the scripts of Chinese and Japanese; "" for other characters."""
    script = scripts.script_of(char)
    return "CJK" if script in _CJK else script


def main_script(text: str) -> str:
    """The script of most letters of a text; "" without letters."""
    counts: Counter[str] = Counter()
    for char, count in Counter(text).items():
        if script := script_of(char):
            counts[script] += count
    return max(counts, key=lambda script: counts[script], default="")


def own_script(thought: str) -> str:
    """The script that a thought is written in: that of its beginning, without what it quotes."""
    return main_script(_QUOTED.sub(" ", thought[: 4 * _BEGINNING])[:_BEGINNING])


class _Classes(dict[int, str]):
    """For str.translate: T for a letter of the target's script, O for another letter, A for an apostrophe or a hyphen,
    N for all else."""

    def __init__(self, script: str) -> None:
        self.script = script

    def __missing__(self, code: int) -> str:
        script = script_of(chr(code))
        if script:
            self[code] = "T" if script == self.script else "O"
        else:
            self[code] = "A" if chr(code) in "'’-" else "N"
        return self[code]


_classes: Final = cache(_Classes)


def letters(text: str) -> str:
    """The letters and digits of a text, normalized (NFKC): by them two drafts are the same."""
    return _NO_LETTER.sub("", unicodedata.normalize("NFKC", text))


def find_drafts(thought: str, trans: str, drafts: Sequence[str] = ()) -> list[str]:
    """The passages of a thought that are whole drafts: with at least half as many letters as the translation.

    If the translation's script is not that of the thought, they are found by it. If it is, they are the `drafts` where
    these are quoted, or without any the passages in quotation marks and after colons.
    """
    script = main_script(trans)
    if not script:
        return []
    if script == own_script(thought):
        return _find_in_same_script(thought, trans, drafts)
    classes = thought.translate(_classes(script))
    spans = (thought[match.start() : match.end()] for match in _SPAN.finditer(classes))
    return [part for span in spans for part in _LIST.split(span) if _is_whole(part, trans)]


def _find_in_same_script(thought: str, trans: str, drafts: Sequence[str]) -> list[str]:
    if drafts:
        distinct = {*drafts, trans} - {""}
        places = [(m.start(), draft) for draft in distinct for m in re.finditer(re.escape(draft), thought)]
        return [draft for _, draft in sorted(places)]
    quotes = [(m.start(), next(filter(None, m.groups()))) for m in _QUOTED.finditer(thought)]
    lines = [(m.start(), m[1]) for m in _AFTER_COLON.finditer(thought) if not _QUOTED.search(m[1])]
    return [text for _, text in sorted(quotes + lines) if _is_whole(text, trans) and len(text) <= 2 * len(trans)]


def _is_whole(text: str, trans: str) -> bool:
    return len(letters(text)) >= len(letters(trans)) / 2


def measure_thought(text: str, trans: str, thought: str, drafts: Sequence[str] = ()) -> dict[str, float | None]:
    """The measures of one thought, by the names of LABELS and YES_NO; None where one does not apply.

    `drafts`: the drafts of the record if they are known (see `find_drafts`). The lists of words are English: they do
    not apply to a thought in another script, and the target's letters not to one in the target's script.
    """
    script, own = main_script(trans), own_script(thought)
    passages = find_drafts(thought, trans, drafts)
    drafted = sum(map(len, passages))
    size = max(len(thought), 1)
    if script == own:
        in_target, words = None, _count_words(thought, passages)
    else:
        classes = thought.translate(_classes(script))
        in_target, words = classes.count("T"), len(_OTHER_WORD.findall(classes))
    return {
        "characters": len(thought),
        "words": words,
        "target_letters": in_target,
        "target_share": None if in_target is None else 100 * in_target / size,
        "paragraphs": sum(bool(line.strip()) for line in thought.splitlines()),
        "drafts": len(set(map(letters, passages))),
        "draft_mentions": len(passages),
        "draft_share": 100 * drafted / size,
        "source_terms": len(_quoted_terms(thought, text)),
        "has_answer": trans in thought or letters(trans) in letters(thought),
        "ends_in_answer": bool(passages) and letters(passages[-1]) == letters(trans),
        **_english_measures(thought, own == "Latin"),
    }


def _english_measures(thought: str, is_latin: bool) -> dict[str, float | None]:
    if not is_latin:
        return dict.fromkeys(("opening", "filler", "key_words", "assessments"))
    return {
        "opening": bool(_OPENING.match(thought)),
        "filler": bool(_FILLER.search(thought)),
        "key_words": bool(_KEY_WORDS.search(thought)),
        "assessments": sum(1 for _ in _GOOD.finditer(thought)),
    }


def _count_words(thought: str, drafts: Sequence[str]) -> int:
    """The words of a thought outside the drafts; each character of Chinese or Japanese counts as a word."""
    for draft in drafts:
        thought = thought.replace(draft, " ")
    return sum(len(word) if script_of(word[0]) == "CJK" else 1 for word in _WORD.findall(thought))


def _quoted_terms(thought: str, text: str) -> set[str]:
    """The distinct quotations in the first paragraph that are words of the source."""
    first = next((line for line in thought.splitlines() if line.strip()), "")
    source = text.casefold()
    terms = {next(filter(None, m.groups())).strip(" ,.;:!?，。").casefold() for m in _QUOTED.finditer(first)}
    return {term for term in terms if term and term in source}


class ThoughtShape:
    """The measures of many thoughts: a number for each measure and thought is in memory."""

    def __init__(self) -> None:
        self.values: dict[str, array[float]] = {name: array("d") for name in (*LABELS, *YES_NO)}
        self.count = 0

    def add(self, text: str, trans: str, thought: str, drafts: Sequence[str] = ()) -> None:
        """Count a thought."""
        self.count += 1
        for name, value in measure_thought(text, trans, thought, drafts).items():
            if value is not None:
                self.values[name].append(value)

    def summary(self) -> dict[str, dict[str, float]]:
        """Mean and percentiles of each measure that applies; of a yes-or-no measure the share, from 0 to 1."""
        import numpy as np

        summary: dict[str, dict[str, float]] = {}
        for name, values in self.values.items():
            if not values:
                continue
            summary[name] = {"mean": round(float(np.mean(values)), 4)}
            if name in LABELS:
                points = np.percentile(values, PERCENTILES)
                summary[name] |= {f"p{p}": round(float(point), 2) for p, point in zip(PERCENTILES, points, strict=True)}
        return summary


def released_shape() -> dict[str, Any]:
    """The numbers of the released thoughts: `source`, `n`, and `measures` as `ThoughtShape.summary` has them."""
    return dict(orjson.loads(RELEASED.read_bytes()))


def released_range(name: str, measures: Mapping[str, Mapping[str, float]]) -> tuple[float, float]:
    """Where the mean of a measure is to lie: from the released 5th to the 95th percentile, or SHARE_MARGIN around a
    released share."""
    if name in LABELS:
        return measures[name]["p5"], measures[name]["p95"]
    share = measures[name]["mean"]
    return max(0.0, share - SHARE_MARGIN), min(1.0, share + SHARE_MARGIN)


def compare_shape(summary: Mapping[str, Mapping[str, float]]) -> dict[str, bool]:
    """Whether the mean of each measure lies in the released range."""
    measures = released_shape()["measures"]
    ranges = {name: released_range(name, measures) for name in summary if name in measures}
    return {name: low <= summary[name]["mean"] <= high for name, (low, high) in ranges.items()}


def count_thoughts(path: str | Path) -> ThoughtShape:
    """The shape of the thoughts in a file with the fields text, trans and thought.

    Raises InputError for a file that cannot be read and for one without such records.
    """
    shape = ThoughtShape()
    for record in _read_thoughts(path):
        shape.add(record["text"], record["trans"], record["thought"])
    if not shape.count:
        raise InputError(f"{path}: no records there")
    return shape


def _read_thoughts(path: str | Path) -> Iterable[Mapping[str, Any]]:
    def rows() -> Iterator[Mapping[str, Any]]:
        for record in read_records(path, required=("text", "trans", "thought")):
            if isinstance(record, BadRecord):
                raise InputError(f"{record.source}: {record.reason}")
            yield record.data

    return rows()
