"""How well a response keeps the length that was asked for (LongBench-Write, Bai et al. 2024; used by LongDPO)."""

from __future__ import annotations

import re
from typing import Any, Final

_HAN: Final = re.compile(r"[\u3400-\u4dbf\u4e00-\u9fff]")
_WORD: Final = re.compile(r"[A-Za-z0-9]+(?:['’\-][A-Za-z0-9]+)*")
LONGEST: Final = 1_000_000
"""Words that a record can ask for."""
BUCKETS: Final = ((500, "[0, 500)"), (2000, "[500, 2k)"), (4000, "[2k, 4k)"))
"""Upper bounds of the required length in words, and their names; above: [4k, 20k)."""


def count_words(text: str) -> int:
    """English words plus Chinese characters."""
    return len(_WORD.findall(text)) + len(_HAN.findall(text))


def required_words(given: Any) -> int:
    """The required length that a record names, a number or (in a CSV file) its text; 0 where it names none.

    Raises ValueError for what is no number of words, or one above LONGEST.
    """
    if given is None or given == "":
        return 0
    try:
        number = -1.0 if isinstance(given, bool) else float(given)
    except (TypeError, ValueError, OverflowError):
        number = -1.0
    if not 0 <= number <= LONGEST or not number.is_integer():
        raise ValueError(f"length {given!r} is no number of words; mend it or leave it out")
    return int(number)


def length_score(required: int, actual: int) -> float:
    """S_l, 0-100: y words for x required lose a third of (y / x - 1) above, half of (x / y - 1) below.

    Raises ValueError for a required length below 1.
    """
    if required < 1:
        raise ValueError(f"a required length of {required} words: at least 1 is needed")
    if actual < 1:
        return 0.0
    excess = (actual / required - 1) / 3 if actual > required else (required / actual - 1) / 2
    return 100 * max(0.0, 1 - excess)


def bucket(required: int) -> str:
    """The bucket of a required length."""
    return next((name for bound, name in BUCKETS if required < bound), "[4k, 20k)")
