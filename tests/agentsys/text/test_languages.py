"""Language codes: which code fits a requested language best."""

from __future__ import annotations

import pytest

from agentsys.text.languages import best_code, language

pytestmark = pytest.mark.needs("knowledge")


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
