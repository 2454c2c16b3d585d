"""Pictures in tests: matplotlib with its own fonts alone, and the texts of a figure."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

SCRIPTS = {
    "Chinese": "中文，测试。",
    "Arabic": "العربية",
    "Devanagari": "हिन्दी में",
    "emoji": "a🎉👩\u200d🔬b",
    "Japanese": "かな漢字",
    "Korean": "한국어",
    "Thai": "ภาษาไทย",
    "Greek": "Ελληνικά",
}
"""A text in each of several scripts."""


@contextmanager
def only_dejavu() -> Iterator[None]:
    """No font but DejaVu is installed, neither on the machine nor by a package."""
    from matplotlib.font_manager import fontManager

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(fontManager, "ttflist", [font for font in fontManager.ttflist if font.name.startswith("DejaVu")])
        patch.setattr("matplotlib.font_manager.findSystemFonts", lambda: [])
        patch.setattr("agentsys.fonts.find_spec", lambda name: None)
        yield


def texts_of(figure: Any) -> list[str]:
    """All texts that are drawn, those at the ticks included."""
    from matplotlib.text import Text

    figure.draw_without_rendering()
    return [text for item in figure.findobj(Text) if item.get_visible() and (text := item.get_text())]
