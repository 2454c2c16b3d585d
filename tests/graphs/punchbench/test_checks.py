"""graphs/punchbench/checks.py and the coefficients of agreement."""

from __future__ import annotations

import pytest

from agentsys.graphs.punchbench.checks import length_ratio, options_fault, parts_fault, quotes


@pytest.mark.parametrize(
    ("text", "source", "run", "expected"),
    [
        ("he says a lovely quiet evening here", "What a lovely quiet evening", 4, True),
        ("he says a lovely, quiet EVENING", "What a lovely quiet evening", 4, True),
        ("he says a lovely evening", "What a lovely quiet evening", 4, False),
        ("short", "short", 4, False),
        ("他说多么安静的夜晚", "多么安静的夜晚", 4, True),
    ],
)
def test_quotes(text: str, source: str, run: int, expected: bool) -> None:
    assert quotes(text, source, run) is expected


def test_options() -> None:
    assert options_fault(["one two", "three four"], 2) == ""
    assert options_fault(["one two", "One, two!"], 2) == "an option repeats another"
    assert options_fault(["one", " ... "], 2) == "an option is empty"
    assert options_fault(["one two three", "x"], 2).startswith("the longest option has 3.0 times as many words")
    assert length_ratio(["a b c d", "a b"]) == 2


def test_parts() -> None:
    caption = "Finally a quiet weekend. The neighbours bought a drum kit."
    assert parts_fault(caption, ["Finally a quiet weekend.", "The neighbours bought a drum kit."]) == ""
    assert parts_fault(caption, ["Finally a quiet weekend.", ""]) == "a part is empty"
    assert "one after the other" in parts_fault(caption, ["The neighbours bought a drum kit.", "Finally a quiet"])
    assert parts_fault(caption, ["Finally", "a drum kit."]) == "the parts leave out much of the caption"
