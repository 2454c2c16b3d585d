"""agentsys/fonts.py: fonts for every script, readable text where there is none, and no empty boxes in pictures."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import pytest

from agentsys.collect.run_report import draw_panels
from agentsys.collect.statistics import Panel
from agentsys.evaluation.report import figure as evaluation_figure
from agentsys.fonts import PACKAGES, Fonts, _files, choose_fonts, fit_fonts
from tests.support.pictures import SCRIPTS, only_dejavu, texts_of

pytest.importorskip("matplotlib")
NOTE_CHINESE = "No font for Chinese: pip install noto-cjk-sans-otc"
NOTE = "No font for Chinese, Devanagari, Japanese, Korean, Thai, symbol: pip install noto-cjk-sans-otc manimgx-fonts"


@pytest.fixture(autouse=True)
def no_warnings() -> Any:
    """matplotlib warns of every character that it draws as a box."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        yield


def picture(*texts: str) -> Any:
    """A figure with a text, a title, a legend and tick labels of several kinds."""
    from matplotlib.figure import Figure

    figure = Figure(layout="constrained")
    axes = figure.add_subplot()
    axes.barh([f"bar {text}" for text in texts], range(len(texts)), label=texts[0])
    axes.set_xticks([0, 1], [texts[0], "one"])
    axes.set_title(" ".join(texts))
    axes.legend()
    figure.text(0.5, 0.5, texts[-1])
    return figure


def test_text_in_latin_letters_is_drawn_as_before() -> None:
    from matplotlib import rcParams

    fonts = choose_fonts(["plain text", "naïve café – x²"])
    assert fonts == Fonts(tuple(rcParams["font.family"])) and fonts.note == ""
    assert fonts.readable("plain [text]") == "plain [text]"


@pytest.mark.parametrize(
    ("text", "readable"),
    [
        ("中文，测试。", "[Chinese]"),
        ("bank = 银行 (河岸)", "bank = [Chinese] ([Chinese])"),
        ("漢字かな交じり", "[Japanese]"),
        ("한국어", "[Korean]"),
        ("हिन्दी में", "[Devanagari]"),
        ("a🎉👩\u200d🔬b", "a[symbol]b"),
        ("中文🎉", "[Chinese]"),
        ("བོད", "[Tibetan]"),
        ("العربية", "العربية"),
        ("a] ^ - \\ 中", "a] ^ - \\ [Chinese]"),
    ],
)
def test_what_cannot_be_drawn_is_named(text: str, readable: str) -> None:
    with only_dejavu():
        assert choose_fonts([text]).readable(text) == readable


@pytest.mark.parametrize(
    ("text", "note"),
    [
        ("中文", "No font for Chinese: pip install noto-cjk-sans-otc"),
        ("ไทย", "No font for Thai: pip install manimgx-fonts"),
        ("བོད", "No font for Tibetan: install a Noto font that has it"),
        ("العربية", ""),
    ],
)
def test_the_note_names_script_and_package(text: str, note: str) -> None:
    with only_dejavu():
        assert choose_fonts([text]).note == note


def test_a_package_that_is_installed_is_not_advised(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("agentsys.fonts._is_installed", lambda package: package == "noto-cjk-sans-otc")
    assert Fonts((), frozenset("中")).note == "No font for Chinese: install a Noto font that has it"


def test_a_picture_without_fonts_has_no_boxes() -> None:
    with only_dejavu():
        figure = picture(*SCRIPTS.values())
        fit_fonts(figure)
        texts = texts_of(figure)
    assert {"bar [Chinese]", "bar [Devanagari]", "bar a[symbol]b", "[Chinese]", "one", NOTE} <= {*texts}
    assert "bar Ελληνικά" in texts and "bar العربية" in texts  # DejaVu has these


@pytest.mark.needs("fonts")
def test_the_fonts_of_the_packages_draw_every_script(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from matplotlib.font_manager import fontManager

    monkeypatch.setattr(fontManager, "ttflist", [font for font in fontManager.ttflist if "DejaVu" in font.name])
    monkeypatch.setattr("matplotlib.font_manager.findSystemFonts", lambda: [])
    figure = picture(*SCRIPTS.values())
    fit_fonts(figure)
    figure.savefig(tmp_path / "picture.png")
    assert {f"bar {text}" for text in SCRIPTS.values()} <= {*texts_of(figure)}
    assert not [text for text in texts_of(figure) if text.startswith("No font")]


@pytest.mark.needs("fonts")
def test_a_font_installed_after_matplotlib_made_its_list(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """matplotlib keeps its list of fonts in a file and does not look for new ones by itself."""
    [font] = _files("noto-cjk-sans-otc")
    (tmp_path / "broken.ttf").write_bytes(b"not a font")
    files = [str(tmp_path / "gone.ttf"), str(tmp_path / "broken.ttf"), font]
    with only_dejavu():
        monkeypatch.setattr("matplotlib.font_manager.findSystemFonts", lambda: files)
        fonts = choose_fonts(["中文"])
    assert fonts.families[1:] == ("Noto Sans CJK SC",) and not fonts.missing


def test_reports_and_evaluations_name_the_missing_font(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from matplotlib.figure import Figure

    drawn: list[str] = []
    save = Figure.savefig

    def savefig(figure: Any, *arguments: Any, **settings: Any) -> None:
        drawn.extend(texts_of(figure))
        save(figure, *arguments, **settings)

    monkeypatch.setattr(Figure, "savefig", savefig)
    with only_dejavu():
        panel = Panel("角色", lambda axes: axes.barh(["翻译", "advisor"], [1, 2]))
        draw_panels([panel], "运行", tmp_path / "report.png")
        with evaluation_figure(tmp_path / "curve.png", "模型", (5, 4), ("x", "y"), "below") as axes:
            axes.plot([1, 2], label="学生")
    assert {NOTE_CHINESE, f"x\n{NOTE_CHINESE}", "[Chinese]", "advisor"} <= {*drawn}
    assert not [text for text in drawn if not text.isascii() and "−" not in text]


def test_the_extra_has_the_packages() -> None:
    import tomllib

    from tests.support.paths import ROOT

    extras = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]["optional-dependencies"]
    assert sorted(line.partition("==")[0] for line in extras["fonts"]) == sorted(PACKAGES)
