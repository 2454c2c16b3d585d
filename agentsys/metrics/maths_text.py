"""Mathematical answers as text: folded into ASCII and LaTeX, and answers that are words, not mathematics."""

from __future__ import annotations

import re
import unicodedata
from functools import lru_cache
from typing import Final

from agentsys.text.thoughts import THOUGHT_END, THOUGHT_START

_SUPERSCRIPTS: Final = str.maketrans("⁰¹²³⁴⁵⁶⁷⁸⁹⁺⁻⁽⁾ⁿ", "0123456789+-()n")
_SUBSCRIPTS: Final = str.maketrans("₀₁₂₃₄₅₆₇₈₉", "0123456789")
_PLAIN: Final = {
    "−": "-", "﹣": "-", "٬": ",", "٫": ".", "٪": "%", "‰": "‰", "、": ",", "。": "。", "،": ",", "⁄": "/", "∕": "/",
    "\u00a0": " ", "\u2007": " ", "\u2009": " ", "\u202f": " ", "\u3000": " ", "\u200b": "", "\ufeff": "", "º": "°",
    "˚": "°", "℃": "°C", "℉": "°F",
}  # fmt: skip
_LATEX: Final = {
    "×": r"\times ", "÷": r"\div ", "·": r"\cdot ", "⋅": r"\cdot ", "∞": r"\infty ", "π": r"\pi ", "θ": r"\theta ",
    "≤": r"\le ", "⩽": r"\le ", "≥": r"\ge ", "⩾": r"\ge ", "≠": r"\ne ", "∪": r"\cup ", "∩": r"\cap ",
    "∅": r"\emptyset ", "±": r"\pm ", "ℝ": r"\mathbb{R}", "°": r"^\circ ", "∈": r"\in ",
}  # fmt: skip
_GROUP_SPACE: Final = re.compile(r"(?<=\d)(?:\\[,;: ]|\\thinspace\s?|~|\{,\}|,\\!|['’])(?=\d{3}(?!\d))")
"""A space or mark between digits that can only separate thousands; a bare space may also separate two answers."""
_FRENCH_INTERVAL: Final = re.compile(r"([\[\]])([^\[\]]*[,;][^\[\]]*)([\[\]])")
"""An interval whose open ends have the bracket turned around: ]0,1[."""
_WRAPPER: Final = re.compile(r"\\(?:text|textrm|textbf|textit|mathrm|mathbf|mathit|mbox|operatorname)\s*\{([^{}]*)\}")
_FUNCTIONS: Final = re.compile(r"(?:arc)?(?:sin|cos|tan|cot|sec|csc)|log|ln|exp|sqrt|pi\b|lim|det|gcd|lcm|mod\b|infty")
_CHOICE: Final = re.compile(
    r"(?:(?:the\s+)?(?:correct\s+)?(?:option|choice|answer|选项|选择|選項|选)(?:\s+is)?\s*:?\s*)?"
    r"(?:\(([A-H])\)(?=\s|$)|([A-H])\s*[).:．、](?=\s|$|[^\x00-\x7f])|([A-H]))\s*(?:选项)?\s*",
    re.IGNORECASE,
)
_SAME_WORDS: Final = {
    "yes": "yes", "no": "no", "true": "true", "false": "false", "是": "yes", "是的": "yes", "否": "no", "不是": "no",
    "はい": "yes", "いいえ": "no", "예": "yes", "네": "yes", "아니요": "no", "对": "true", "正确": "true",
    "錯": "false", "错": "false", "错误": "false", "正しい": "true", "誤り": "false",
}  # fmt: skip


def remove_thought(response: str) -> str:
    """Return what follows the thought of a reasoning model; "" if the thought does not end."""
    ends = list(THOUGHT_END.finditer(response))
    if ends:
        return response[ends[-1].end() :]
    return "" if THOUGHT_START.match(response) else response


def fold_text(text: str) -> str:
    """Return a text with digits of all scripts, full-width forms, minus signs and spaces in ASCII."""
    return text if text.isascii() else "".join(map(_fold_character, text))


@lru_cache(maxsize=4096)
def _fold_character(char: str) -> str:
    if char in _PLAIN:
        return _PLAIN[char]
    if unicodedata.category(char) == "Nd":
        return str(unicodedata.digit(char))
    if "\uff01" <= char <= "\uff5e":
        return chr(ord(char) - 0xFEE0)
    # Mathematical letters (bold, italic) are letters; other compatibility forms, such as x², are not their parts.
    return unicodedata.normalize("NFKC", char) if "\U0001d400" <= char <= "\U0001d7ff" else char


def to_latex(text: str) -> str:
    """Return a folded answer with mathematical characters as LaTeX, and without separators of thousands in LaTeX."""
    text = _GROUP_SPACE.sub("", text)
    if match := _FRENCH_INTERVAL.fullmatch(text.strip()):
        text = f"{'(' if match[1] == ']' else '['}{match[2]}{')' if match[3] == '[' else ']'}"
    if text.isascii():
        return text
    text = re.sub("[⁰¹²³⁴⁵⁶⁷⁸⁹⁺⁻⁽⁾ⁿ]+", lambda match: f"^{{{match[0].translate(_SUPERSCRIPTS)}}}", text)
    text = re.sub("[₀-₉]+", lambda match: f"_{{{match[0].translate(_SUBSCRIPTS)}}}", text)
    text = re.sub(r"√\s*(\d+|[A-Za-z]|\([^()]*\)|\{[^{}]*\})", _root, text)
    text = re.sub(r"(?<=\d)\s*[和或]\s*(?=-?\d)", ",", text)
    text = re.sub("[½⅓¼⅕⅙⅐⅛⅑⅔⅖¾⅗⅜⅘⅚⅝⅞]", _vulgar_fraction, text)
    return "".join(_LATEX.get(char, char) for char in text)


def _root(match: re.Match[str]) -> str:
    return f"\\sqrt{{{match[1].strip('(){}')}}}"


def _vulgar_fraction(match: re.Match[str]) -> str:
    above, _, below = unicodedata.normalize("NFKC", match[0]).partition("\u2044")
    return f"\\frac{{{above}}}{{{below}}}"


def without_wrappers(text: str) -> str:
    r"""Return a LaTeX text without \text{} and its kin, around their content."""
    return _WRAPPER.sub(r"\1", text)


def separate_scripts(text: str) -> str:
    """Put spaces between numbers and letters of scripts without spaces: math-verify finds numbers by their spaces."""
    text = re.sub(r"(?<=[\u0e00-\u0eff\u3000-\u30ff\u3400-\u9fff])(?=[-$]?\d)", " ", text)
    return re.sub(r"(?<=\d)(?=[\u0e00-\u0eff\u3000-\u30ff\u3400-\u9fff])", " ", text)


def normalize_answer(answer: str) -> str:
    r"""Normalize an answer for comparison as text: lower case, no dollar signs, \text, white space or final period."""
    bare = without_wrappers(fold_text(answer))
    bare = re.sub(r"[\s$]|\\[ !,;]", "", bare).strip("\"'“”‘’「」*").rstrip(".。").strip("\"'“”‘’「」*")
    return unicodedata.normalize("NFKC", bare).casefold()


def choice_letter(answer: str) -> tuple[str, str] | None:
    """Return the letter of an answer such as "B", "(B)", "B. 12" or "Option B", and the text after it; None for others.

    A bare letter must be all: "A man" is no choice, "A) man" is.
    """
    text = re.sub(r"\\[ ,;:!]|~", " ", without_wrappers(fold_text(answer))).strip(" \t$*.")
    match = _CHOICE.match(text)
    if match is None:
        return None
    rest = text[match.end() :]
    if rest and match[3]:
        return None
    return (match[1] or match[2] or match[3]).upper(), rest


def same_word(answer: str) -> str:
    """Return "yes", "no", "true" or "false" if that is all that an answer says before a punctuation mark, else ""."""
    text = without_wrappers(fold_text(answer)).strip().strip("$*\"'").strip().casefold()
    return _SAME_WORDS.get(re.split(r"[,.;:!。,;\n]|\s+[-–—]", text, maxsplit=1)[0].strip("* "), "")


def is_words(answer: str) -> bool:
    r"""Whether an answer is words, which must not be read as products of letters: "listen" would equal "silent".

    Short words of small or of only capital letters are products, "xy" and "ABC", unless they stand in \text{}.
    """
    text = fold_text(answer).strip().strip("$").strip().rstrip(".")
    in_text = _WRAPPER.fullmatch(text)
    bare = without_wrappers(text).strip()
    words = re.findall(r"[^\W\d_]+", bare)
    if not words or re.search(r"[\d=<>+*/^\\{}()\[\]|]", bare) or (_FUNCTIONS.match(bare) and not in_text):
        return False
    if in_text or len(words) > 1:
        return max(map(len, words)) > 1
    if re.fullmatch("[\u0370-\u03ff]", bare):
        return False
    return len(bare) >= 4 or not bare.isascii() or bool(re.fullmatch("[A-Z][a-z]{2,}", bare)) or bool(same_word(bare))
