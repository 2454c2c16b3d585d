"""LongBench-Write's length score: how close a response is to its required length (Bai et al. 2024; used by LongDPO)."""

from __future__ import annotations

import re
from typing import Any, Final

_HAN: Final = re.compile(r"[\u3400-\u4dbf\u4e00-\u9fff]")
_WORD: Final = re.compile(r"[A-Za-z0-9]+(?:['’\-][A-Za-z0-9]+)*")
LONGEST: Final = 1_000_000
"""Maximum required length in words."""
BUCKETS: Final = ((500, "[0, 500)"), (2000, "[500, 2k)"), (4000, "[2k, 4k)"))
"""Upper bounds of the required length in words, and the names of the buckets; the last is [4k, 20k)."""


def count_words(text: str) -> int:
    """Return the number of English words plus Chinese characters."""
    return len(_WORD.findall(text)) + len(_HAN.findall(text))


def required_words(length: Any) -> int:
    """Return the required length of a record, a number or (in a CSV file) its text; 0 if there is none.

    Raises ValueError if it is not a whole number from 0 to LONGEST.
    """
    if length is None or length == "":
        return 0
    try:
        number = -1.0 if isinstance(length, bool) else float(length)
    except (TypeError, ValueError, OverflowError):
        number = -1.0
    if not 0 <= number <= LONGEST or not number.is_integer():
        raise ValueError(f"length {length!r} is not a number of words; correct or remove it")
    return int(number)


def length_score(required: int, actual: int) -> float:
    """Return S_l, 0-100: for x required and y actual words, 1 - (y / x - 1) / 3 above and 1 - (x / y - 1) / 2 below.

    Raises ValueError for a required length below 1.
    """
    if required < 1:
        raise ValueError(f"the required length must be at least 1 word, not {required}")
    if actual < 1:
        return 0.0
    excess = (actual / required - 1) / 3 if actual > required else (required / actual - 1) / 2
    return 100 * max(0.0, 1 - excess)


def bucket(required: int) -> str:
    """Return the name of the bucket of a required length."""
    return next((name for bound, name in BUCKETS if required < bound), "[4k, 20k)")
