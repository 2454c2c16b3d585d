"""Words, and windows of words, in scripts with and without spaces."""

from __future__ import annotations

import pytest

from agentsys.text.words import windows, words


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("The director's CD-ROM, 1999", ["the", "director", "s", "cd", "rom", "1999"]),
        ("STRASSE Straße Ünïcode ＡＢＣ", ["strasse", "strasse", "ünïcode", "abc"]),
        ("e\u0301te\u0301", ["été"]),
        ("我爱北京", ["我爱", "爱北", "北京"]),
        ("第 1 章,GPT模型x", ["第", "1", "章", "gpt", "模型", "x"]),
        ("東京タワー", ["東京", "京タ", "タワ", "ワー"]),
        ("हिन्दी भाषा", ["हिन्दी", "भाषा"]),
        ("?! —", []),
    ],
)
def test_words(text: str, expected: list[str]) -> None:
    assert words(text) == expected


def test_windows_overlap_and_cover() -> None:
    assert list(windows("a b  c d e", 3, 1)) == ["a b  c", "c d e"]
    assert list(windows("a b c d e f", 3, 1)) == ["a b c", "c d e", "e f"]
    assert list(windows("我爱北京 now", 3, 0)) == ["我爱北", "京 now"]
    assert list(windows("a", 3, 2)) == ["a"]
