"""Writing systems: of letters, of languages, and the runs of letters of one script in a text."""

from __future__ import annotations

import pytest

from agentsys.text.scripts import language_scripts, letter_runs, script_of, scripts_of


@pytest.mark.parametrize(
    ("character", "script"),
    [
        *(("a", "Latin"), ("é", "Latin"), ("壶", "Han"), ("の", "Kana"), ("カ", "Kana"), ("한", "Hangul")),
        *(("ж", "Cyrillic"), ("α", "Greek"), ("ع", "Arabic"), ("ש", "Hebrew"), ("ก", "Thai")),
        *(("1", ""), ("。", ""), (" ", ""), ("'", "")),
    ],
)
def test_the_script_of_a_character(character: str, script: str) -> None:
    assert script_of(character) == script


def test_the_scripts_of_a_text() -> None:
    assert scripts_of("a water壶, 2 cups") == {"Latin", "Han"}
    assert scripts_of("12 — 34。") == set()


@pytest.mark.parametrize(
    ("language", "scripts"),
    [
        ("English", {"Latin"}),
        ("de", {"Latin"}),
        ("Chinese", {"Han"}),
        ("zh-TW", {"Han"}),
        ("Japanese", {"Han", "Kana"}),
        ("ko", {"Hangul", "Han"}),
        ("Russian", {"Cyrillic"}),
        ("Hindi", {"Devanagari"}),
        ("the language of a house style", set()),
    ],
)
def test_the_scripts_of_a_language(language: str, scripts: set[str]) -> None:
    assert language_scripts(language) == scripts


@pytest.mark.parametrize(
    ("text", "script", "runs"),
    [
        ("The father's silence is a 墙 here.", "Han", ["墙"]),
        ("The father's silence is a 墙 here.", "Latin", ["The", "father's", "silence", "is", "a", "here"]),
        ("water壶", "Han", ["壶"]),
        ("water壶", "Latin", ["water"]),
        ("她下楼梯 laughing。", "Latin", ["laughing"]),
        ("The elderly's hands", "Han", []),
        ("", "Han", []),
    ],
)
def test_runs_of_letters(text: str, script: str, runs: list[str]) -> None:
    assert [text[start:end] for start, end in letter_runs(text, script)] == runs
