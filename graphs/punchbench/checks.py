"""What a text of the benchmark must meet, and the label of a pair. The paper leaves the checks to people."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from itertools import combinations
from typing import Any, Final

from agentsys.text.words import words

MAX_CAPTION: Final = 2000
"""Characters of a caption; longer ones are whole articles."""

_LABELS: Final = {"1": 1, "yes": 1, "true": 1, "punchline": 1, "0": 0, "no": 0, "false": 0, "no punchline": 0}


def read_label(value: Any) -> int | None:
    """The label of a pair, 1 for a punchline; None if none is given. Raises ValueError for another value."""
    if value is None or value == "":
        return None
    label = _LABELS.get(str(value).strip().lower())
    if label is None:
        raise ValueError(f"the label {str(value)[:40]!r} is neither 1 nor 0")
    return label


def label_of_votes(votes: Any, min_votes: int, min_agreement: float) -> int | None:
    """The label that people voted for: valid with more votes than `min_votes`, of which more than the share agree.

    None without votes. Raises ValueError for votes that are not valid, or not of the form {"yes": n, "no": n}.
    """
    if votes is None or votes == "":
        return None
    yes, no = _count_votes(votes)
    total = yes + no
    if total <= min_votes:
        raise ValueError(f"{total} votes, and more than {min_votes} are needed")
    if max(yes, no) <= min_agreement * total:
        raise ValueError(f"{max(yes, no)} of {total} votes agree, and more than {min_agreement:.0%} are needed")
    return int(yes > no)


def _count_votes(votes: Any) -> tuple[int, int]:
    if isinstance(votes, list) and all(read_label(vote) is not None for vote in votes):
        labels = [read_label(vote) for vote in votes]
        return labels.count(1), labels.count(0)
    if isinstance(votes, Mapping):
        counts = [votes.get("yes", 0), votes.get("no", 0)]
        if votes.keys() <= {"yes", "no"} and all(type(count) is int and count >= 0 for count in counts):
            return counts[0], counts[1]
    raise ValueError('the votes are not {"yes": number, "no": number}')


def find_label(pair: Mapping[str, Any], min_votes: int, min_agreement: float) -> int:
    """The label of a pair by its field and its votes. Raises ValueError without one, and if the two differ."""
    label = read_label(pair.get("label"))
    voted = label_of_votes(pair.get("votes"), min_votes, min_agreement)
    if label is None and voted is None:
        raise ValueError("no label; give the field label (1 or 0), or votes")
    if None not in (label, voted) and label != voted:
        raise ValueError(f"the label is {label}, and the votes say {voted}")
    return int(voted if label is None else label)  # type: ignore[arg-type]  # one of them is not None


def quotes(text: str, source: str, run: int) -> bool:
    """Whether a text repeats `run` words of the source in a row."""
    parts = words(text)
    runs = {tuple(parts[i : i + run]) for i in range(len(parts) - run + 1)}
    given = words(source)
    return any(tuple(given[i : i + run]) in runs for i in range(len(given) - run + 1))


def length_ratio(texts: Iterable[str]) -> float:
    """The length of the longest text in words per word of the shortest."""
    lengths = [max(1, len(words(text))) for text in texts]
    return max(lengths) / min(lengths)


def options_fault(options: Sequence[str], max_ratio: float) -> str:
    """Why options cannot stand side by side: one repeats or contains another, or its length gives it away; or ""."""
    plain = [" ".join(words(option)) for option in options]
    if not all(plain):
        return "an option is empty"
    if any(one in other or other in one for one, other in combinations(plain, 2)):
        return "an option repeats another"
    if (ratio := length_ratio(options)) > max_ratio:
        return f"the longest option has {ratio:.1f} times as many words as the shortest, and {max_ratio:g} are allowed"
    return ""


def parts_fault(caption: str, parts: Sequence[str]) -> str:
    """Why two parts are not those of a caption: word for word, in order, and most of it; or ""."""
    given, found = words(caption), [words(part) for part in parts]
    if not all(found):
        return "a part is empty"
    joined = " ".join(given)
    first, second = (" ".join(part) for part in found)
    start = joined.find(first)
    if start < 0 or joined.find(second, start + len(first)) < 0:
        return "the parts are not word for word in the caption, one after the other"
    if sum(map(len, found)) < 0.8 * len(given):
        return "the parts leave out much of the caption"
    return ""
