"""Fonts of pictures: those that have the characters of some texts, and what to draw where no font has them.

matplotlib draws a box for a character without a glyph. Here such characters become `[Chinese]`, and the picture says
which package has a font. matplotlib is imported by the functions: an extra brings it.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Final

PREFERRED: Final = (
    "Noto Sans CJK SC", "Noto Sans SC", "Source Han Sans SC", "PingFang SC", "Microsoft YaHei", "Hiragino Sans GB",
    "Noto Sans CJK JP", "Noto Sans Arabic", "Noto Sans Devanagari", "Noto Sans", "Noto Emoji", "Arial Unicode MS",
)  # fmt: skip
"""Families that are tried before all others."""
PACKAGES: Final = {
    "noto-cjk-sans-otc": "Hani Hira Kana Hang Bopo",
    "manimgx-fonts": "Arab Armn Beng Deva Ethi Geor Gujr Guru Hebr Khmr Knda Laoo Mlym Mymr Orya Sinh Taml Telu Thai "
    "Zsym",
}
"""The packages of the extra `fonts`, and the scripts (ISO 15924; Zsym: symbols) that their files have."""

_NAMES: Final = {"Hani": "Chinese", "Hira": "Japanese", "Kana": "Japanese", "Hang": "Korean", "Zsym": "symbol"}
_JOINERS: Final = "\u200c\u200d\ufe0e\ufe0f"
_BOXES: Final = "Last Resort"
"""Part of the name of fonts whose glyphs are boxes."""


@dataclass(frozen=True, slots=True)
class Fonts:
    """matplotlib's font families for some texts, and the characters that no installed font has."""

    families: tuple[str, ...]
    missing: frozenset[str] = frozenset()

    def readable(self, text: str) -> str:
        """The text with the name of the script, as [Chinese], in place of characters that cannot be drawn."""
        if self.missing.isdisjoint(text):
            return text
        chars = "".join(map(re.escape, sorted(self.missing)))
        runs = rf"[{chars}](?:[{chars}\s{_JOINERS}]*[{chars}{_JOINERS}])?"
        return re.sub(runs, lambda run: f"[{_name_script(run[0])}]", text)

    @property
    def note(self) -> str:
        """A line for the picture: the scripts that have no font, and the packages to install. "" if nothing is missing.

        "No font for Chinese, symbol: pip install noto-cjk-sans-otc manimgx-fonts"
        """
        if not self.missing:
            return ""
        scripts = {_script(char) for char in self.missing}
        packages = [name for name, has in PACKAGES.items() if scripts & {*has.split()} and not _is_installed(name)]
        fix = f"pip install {' '.join(packages)}" if packages else "install a Noto font that has it"
        return f"No font for {', '.join(sorted({_name_script(char) for char in self.missing}))}: {fix}"


def choose_fonts(texts: Iterable[str]) -> Fonts:
    """The fonts for some texts: matplotlib's default ones, then as few others as have the remaining characters."""
    from matplotlib import rcParams
    from matplotlib.font_manager import FontProperties, findfont

    families = list(rcParams["font.family"])
    missing = {char for text in texts for char in text if not (char.isspace() or char in _JOINERS)}
    missing -= _drawable(findfont(FontProperties(family=families)), 0, missing)
    for font in _candidates() if missing else ():
        if drawable := _drawable(font.fname, getattr(font, "index", 0), missing):
            families.append(font.name)
            missing -= drawable
        if not missing:
            break
    return Fonts(tuple(dict.fromkeys(families)), frozenset(missing))


def fit_fonts(figure: Any) -> None:
    """Give all texts of a finished figure fonts that have their characters, and add a line if there are none.

    The figure has a constrained layout.
    """
    from matplotlib.text import Text

    axes = [axis for part in figure.axes for axis in (part.xaxis, part.yaxis)]
    ticks = {axis: [label.get_text() for label in axis.get_ticklabels()] for axis in axes}
    texts = [text for text in figure.findobj(Text) if text.get_text()]
    fonts = choose_fonts([text.get_text() for text in texts] + [label for labels in ticks.values() for label in labels])
    for text in texts:
        text.set_fontfamily(list(fonts.families))
        text.set_text(fonts.readable(text.get_text()))
    for axis, labels in ticks.items():
        axis.set_tick_params(labelfontfamily=list(fonts.families))
        if not fonts.missing.isdisjoint("".join(labels)):
            axis.set_ticks(axis.get_ticklocs(), labels=map(fonts.readable, labels))
    if fonts.note and figure.legends:  # a legend of the figure may lie below the axes, over its label
        first = figure.axes[0]
        first.set_xlabel(f"{first.get_xlabel()}\n{fonts.note}", fontsize=8)
    elif fonts.note:
        figure.supxlabel(fonts.note, fontsize=8)


def _candidates() -> Iterator[Any]:
    """The fonts of PACKAGES and of matplotlib's list, then those that were installed since it made its list."""
    from matplotlib.font_manager import findSystemFonts, fontManager

    _add_fonts(path for package in PACKAGES for path in _files(package))
    listed = fontManager.ttflist.copy()
    yield from _sort(listed)
    _add_fonts(findSystemFonts())
    yield from _sort(fontManager.ttflist[len(listed) :])


def _sort(fonts: Iterable[Any]) -> list[Any]:
    places = {name: place for place, name in enumerate(PREFERRED)}
    return sorted(
        (font for font in fonts if _BOXES not in font.name), key=lambda font: places.get(font.name, len(places))
    )


def _add_fonts(paths: Iterable[str]) -> None:
    """Make font files known to matplotlib, except those that it cannot read, such as colored emoji."""
    from matplotlib.font_manager import fontManager

    listed = {font.fname for font in fontManager.ttflist}
    for path in paths:
        if path not in listed:
            try:
                fontManager.addfont(path)
            except (OSError, RuntimeError, ValueError):
                continue


def _files(package: str) -> Iterator[str]:
    """The font files of a package, which is not imported."""
    spec = find_spec(package.replace("-", "_"))
    for folder in (spec and spec.submodule_search_locations) or ():
        yield from sorted(str(path) for path in Path(folder).iterdir() if path.suffix in (".otf", ".ttc", ".ttf"))


def _is_installed(package: str) -> bool:
    return find_spec(package.replace("-", "_")) is not None


def _drawable(path: str, face: int, chars: set[str]) -> set[str]:
    """Those of the characters that a face of a font file has."""
    from matplotlib.ft2font import FT2Font

    font = FT2Font(path, face_index=face) if face else FT2Font(path)
    return {char for char in chars if font.get_char_index(ord(char))}


def _script(char: str) -> str:
    """The code of a character's script; punctuation that is as wide as a Chinese character is Chinese."""
    from fontTools import unicodedata as scripts  # matplotlib requires fonttools

    script: str = scripts.script(char)
    if script not in ("Zyyy", "Zinh"):
        return script
    is_symbol = unicodedata.category(char)[0] == "S"
    return "Hani" if not is_symbol and unicodedata.east_asian_width(char) in "WF" else "Zsym"


def _name_script(text: str) -> str:
    """The name of a text's script: Japanese if it has kana, else the first that is no symbol."""
    from fontTools.unicodedata import script_name

    scripts = sorted(dict.fromkeys(map(_script, text)), key=lambda script: (script == "Zsym", script not in _KANA))
    return _NAMES.get(scripts[0]) or script_name(scripts[0]).replace("_", " ")


_KANA: Final = ("Hira", "Kana")
