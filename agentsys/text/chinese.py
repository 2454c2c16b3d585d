"""Traditional and simplified Chinese: one script, so that texts can be compared."""

from __future__ import annotations

import re
from functools import cache
from typing import Any, Final

_HAN: Final = re.compile(r"[\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003ffff]")


def simplified(text: str) -> str:
    """The text with traditional Chinese characters simplified (OpenCC's t2s); a text without any is returned as it is.

    Characters alone are converted, no words of a region. Japanese texts change too where they share a character. A
    character with several simplified forms is converted by the word that it stands in, so the same characters can come
    out otherwise in a longer text. Raises ImportError if OpenCC is not installed.
    """
    return str(_converter().convert(text)) if _HAN.search(text) else text


@cache
def _converter() -> Any:
    from opencc import OpenCC

    return OpenCC("t2s")
