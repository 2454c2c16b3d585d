"""Conversion of traditional to simplified Chinese, so that texts in both scripts can be compared."""

from __future__ import annotations

import re
from functools import cache
from importlib.util import find_spec
from typing import Any, Final

_HAN: Final = re.compile(r"[\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003ffff]")


def to_simplified(text: str) -> str:
    """Return the text with traditional Chinese characters simplified (OpenCC's t2s).

    Only characters are converted, not regional words. Japanese texts change too where they share a character. A
    character with several simplified forms is converted according to its word, so a longer text may be converted
    differently from its parts. Raises ImportError if OpenCC is not installed.
    """
    return str(_converter().convert(text)) if _HAN.search(text) else text


def has_chinese(text: str) -> bool:
    """Whether a text has a Chinese character, which `to_simplified` may convert."""
    return bool(_HAN.search(text))


@cache
def can_simplify() -> bool:
    """Whether OpenCC is installed."""
    return find_spec("opencc") is not None


@cache
def _converter() -> Any:
    from opencc import OpenCC

    return OpenCC("t2s")
