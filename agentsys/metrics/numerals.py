"""Numbers as people write them: separators of thousands, decimal commas, Chinese numerals, English number words."""

from __future__ import annotations

import re
from fractions import Fraction
from typing import Final

_ENGLISH_GROUPS: Final = re.compile(r"\d{1,3}(?:,\d{3})+|\d{1,2}(?:,\d{2})+,\d{3}")
"""1,234,567, and India's 12,34,567."""
_DOT_GROUPS: Final = re.compile(r"\d{1,3}(?:\.\d{3})+")
_SPACE_GROUPS: Final = re.compile(r"(\d{1,3}(?:([ '’_])\d{3})(?:\2\d{3})*)(?:[.,](\d+))?")


def read_decimal(token: str) -> Fraction | None:
    """Return the value of digits with separators, such as "1,234.5", "1.234,5", "1 234,5", "1'234" or "3,5"; else None.

    One comma before exactly three digits separates thousands (unless the number begins with 0), any other single comma
    is a decimal one; a single dot is always a decimal point. So 1,000 is a thousand, and 1.000 is one.
    """
    token = token.strip()
    if not re.fullmatch(r"\.?\d.*", token) or token.count(".") > 1 < token.count(","):
        return None
    if match := _SPACE_GROUPS.fullmatch(token):
        return Fraction(f"{re.sub('[^0-9]', '', match[1])}.{match[3] or 0}")
    if not re.fullmatch(r"[\d.,]+", token):
        return None
    return _read_dots_and_commas(token)


def _read_dots_and_commas(token: str) -> Fraction | None:
    decimal = max(".,", key=token.rfind)
    whole, _, fraction = token.rpartition(decimal)
    if token.count(decimal) > 1:  # 1,234,567 or 1.234.567
        groups = _ENGLISH_GROUPS if decimal == "," else _DOT_GROUPS
        whole, fraction = (token, "") if groups.fullmatch(token) else ("", "")
    elif "." in token and "," in token:
        groups = _ENGLISH_GROUPS if decimal == "." else _DOT_GROUPS
        whole = whole if groups.fullmatch(whole) else ""
    elif decimal not in token or (decimal == "," and re.fullmatch(r"[1-9]\d{0,2},\d{3}", token)):
        whole, fraction = token, ""
    elif decimal == ".":
        whole = whole or "0"
    digits = re.sub("[.,]", "", whole)
    return Fraction(f"{digits}.{fraction or 0}") if digits else None


_CHINESE_DIGITS: Final = {
    **{char: value for value, char in enumerate("零一二三四五六七八九")},
    **{char: value for value, char in enumerate("〇壹贰叁肆伍陆柒捌玖")},
    **{char: value for value, char in enumerate("零壹貳參肆伍陸柒捌玖")},
    **{"两": 2, "兩": 2, "弐": 2, "参": 3},
}
_SMALL_UNITS: Final = {"十": 10, "拾": 10, "百": 100, "佰": 100, "千": 1000, "仟": 1000}
_LARGE_UNITS: Final = {"万": 10**4, "萬": 10**4, "만": 10**4, "亿": 10**8, "億": 10**8, "억": 10**8, "兆": 10**12}
CHINESE_NUMERAL: Final = "".join({**_CHINESE_DIGITS, **_SMALL_UNITS, **_LARGE_UNITS})
"""The characters of Chinese numerals, for a character class."""
_CHINESE_TOKEN: Final = re.compile(rf"\d[\d.,]*|[{CHINESE_NUMERAL}]")
_CHINESE_NUMBER: Final = rf"[\d.,{CHINESE_NUMERAL}]+"
_CHINESE_FRACTION: Final = re.compile(
    rf"(?:({_CHINESE_NUMBER})又)?({_CHINESE_NUMBER})分之({_CHINESE_NUMBER}(?:[点點][{CHINESE_NUMERAL}]+)?)"
)


def read_chinese(text: str) -> Fraction | None:
    """Return the value of a Chinese numeral, also one with digits: 三百二十一, 二〇二四, 1.5万, 三点一四, 二分之一."""
    if not text:
        return None
    if text[0] in "负負":
        value = read_chinese(text[1:])
        return None if value is None else -value
    if match := _CHINESE_FRACTION.fullmatch(text):
        whole, below, above = (read_chinese(part) if part else Fraction(0) for part in match.groups())
        return None if whole is None or above is None or not below else whole + above / below
    if match := re.fullmatch(r"([^点點]+)[点點](.+)", text):
        whole, digits = read_chinese(match[1]), [_CHINESE_DIGITS.get(char) for char in match[2]]
        if whole is None or None in digits:
            return None
        return whole + Fraction("0." + "".join(map(str, digits)))
    tokens = _CHINESE_TOKEN.findall(text)
    if "".join(tokens) != text:
        return None
    if all(token in _CHINESE_DIGITS for token in tokens):  # 二〇二四
        return Fraction("".join(str(_CHINESE_DIGITS[token]) for token in tokens))
    return _sum_chinese(tokens)


def _sum_chinese(tokens: list[str]) -> Fraction | None:
    """Sum sections of ten thousand: 三千二百 has the units 千 and 百, 万 multiplies all before it."""
    total = section = Fraction(0)
    number: Fraction | None = None
    for token in tokens:
        if token in _SMALL_UNITS:
            section += (Fraction(1) if number is None else number) * _SMALL_UNITS[token]
            number = None
        elif token in _LARGE_UNITS:
            section += number or 0
            if not section and not total:
                return None
            scale = _LARGE_UNITS[token]
            total = (total + section) * scale if total < scale else total + section * scale  # 一万亿, 一亿二万
            section, number = Fraction(0), None
        else:
            digit = _CHINESE_DIGITS.get(token)
            value = read_decimal(token) if digit is None else Fraction(digit)
            if value is None or number:  # two digits in a row, such as 三五百
                return None
            number = value
    scale = {**_SMALL_UNITS, **_LARGE_UNITS}.get(tokens[-2], 0) if len(tokens) > 1 else 0
    if number and number < 10 and scale >= 100:  # 一百二 is 120
        number *= scale // 10
    return total + section + (number or 0)


_SMALL_WORDS: Final = (
    "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen seventeen "
    "eighteen nineteen"
)
_TENS: Final = "twenty thirty forty fifty sixty seventy eighty ninety"
_WORDS: Final = {word: value for value, word in enumerate(_SMALL_WORDS.split())} | {
    word: 10 * value for value, word in enumerate(_TENS.split(), 2)
}
SCALES: Final = {
    "hundred": 100, "thousand": 10**3, "lakh": 10**5, "lakhs": 10**5, "million": 10**6, "crore": 10**7,
    "crores": 10**7, "billion": 10**9, "trillion": 10**12,
}  # fmt: skip
"""English and Indian words that multiply the number before them."""


def read_words(text: str) -> tuple[Fraction, str] | None:
    """Return the value of the English number words that a text begins with, and the rest; None if there are none.

    "and" joins only after a scale: "one hundred and five", but "two and three" are two numbers.
    """
    total = section = end = 0
    last = ""
    for match in re.finditer(r"([A-Za-z]+)(?:[ -]|$)", text):
        word = match[1].lower()
        if match.start() != end and last != "and":
            break
        if word in _WORDS:
            section += _WORDS[word]
        elif word in SCALES and section:
            section *= SCALES[word]
            if word != "hundred":
                total, section = total + section, 0
        elif not (word == "and" and last in SCALES):
            break
        last = word
        if word != "and":
            end = match.end()
    return (Fraction(total + section), text[end:].strip()) if end else None
