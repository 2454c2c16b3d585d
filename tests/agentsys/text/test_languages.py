"""Language codes: which code fits a requested language best, and what a code is called."""

from __future__ import annotations

import subprocess
import sys

import pytest

from agentsys.text.languages import best_code, known_language, language, language_name


@pytest.mark.parametrize(
    ("requested", "codes", "best"),
    [
        ("Chinese", ["en", "zh_CN"], "zh_CN"),
        ("zh-CN", ["zh-TW", "zh_Hans"], "zh_Hans"),
        ("zh-CN", ["zh-TW", "zh-Hant"], None),
        ("Traditional Chinese", ["zh-CN", "zh-HK"], "zh-HK"),
        ("zh", ["zh-TW", "zh"], "zh"),
        ("en-GB", ["en-US", "en-GB"], "en-GB"),
        ("en-GB", ["fr", "EN-US"], "EN-US"),
        ("zh", ["cmn-Hans"], "cmn-Hans"),
        ("English", ["x-default", "", "eng"], "eng"),
        ("French", ["en", "zh"], None),
    ],
)
def test_codes_are_matched_by_language_and_script(requested: str, codes: list[str], best: str | None) -> None:
    target = language(requested)
    assert target is not None and best_code(target, codes) == best


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("zh", "Chinese"),
        ("ZH", "Chinese"),
        ("zh-TW", "Chinese (Traditional, Taiwan)"),
        ("zh_hk", "Chinese (Traditional, Hong Kong SAR China)"),
        ("zh-CN", "Chinese (China)"),
        ("zh-Hans", "Chinese (Simplified)"),
        ("pt", "Portuguese"),
        ("pt-BR", "Portuguese (Brazil)"),
        ("eng", "English"),
        ("tlh", "Klingon"),
    ],
)
def test_a_code_becomes_a_name(text: str, name: str) -> None:
    assert language_name(text) == name


@pytest.mark.parametrize(
    "text",
    ["English", "chinese", "Simplified Chinese", "Klingon-like house style", "Old-style", "中文", ""],
)
def test_names_and_descriptions_stay_as_they_are(text: str) -> None:
    assert language_name(text) == text


@pytest.mark.parametrize("text", ["cn", "jp", "zz", "und", "qaa", "zh-Abcd"])
def test_what_looks_like_a_code_and_is_none_is_an_error(text: str) -> None:
    with pytest.raises(ValueError, match=f"'{text}' is not a language code; write one such as zh or pt-BR"):
        language_name(text)


def test_an_unknown_language_names_the_fix() -> None:
    with pytest.raises(ValueError, match="'Elvish' is not a language; write a code such as en or zh-CN"):
        known_language("Elvish")


def test_names_need_no_table_of_languages() -> None:
    code = "import sys; from agentsys.text.languages import language_name as n; n('English'); print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    assert not {"langcodes", "language_data", "agentsys.knowledge"} & {*done.stdout.split()}
